import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter
from torch.optim import lr_scheduler as reference
from torch.optim.lr_scheduler import LRScheduler

from luthier.errors import LuthierError
from luthier.parts import Function, callables_given
from luthier.training.schedules import (
    SCHEDULES,
    BatchGrowth,
    BatchGrowthChoice,
    Constant,
    Cosine,
    CosineRestarts,
    Cyclic,
    Exponential,
    MultiStep,
    OneCycle,
    Plateau,
    Polynomial,
    Progress,
    Schedule,
    ScheduleChoice,
    Step,
    lr_factor,
    momentum_at,
)

LR = 0.3
EPOCHS, STEPS_PER_EPOCH = 9, 7
TOTAL = EPOCHS * STEPS_PER_EPOCH
Make = Callable[[torch.optim.Optimizer], LRScheduler]


class Holder(BaseModel):
    schedule: ScheduleChoice


def points(history: tuple[float, ...] = ()) -> Iterator[Progress]:
    for step in range(TOTAL):
        yield Progress(step, TOTAL, step // STEPS_PER_EPOCH, EPOCHS, history)


def optimizer(momentum: float = 0.9) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR, momentum=momentum)


def torch_lrs(make: Make, per_epoch: bool) -> list[tuple[float, float]]:
    """lr and momentum that torch's scheduler sets for each step of a whole training."""
    opt = optimizer()
    scheduler = make(opt)
    seen = []
    for step in range(TOTAL):
        seen.append((float(opt.param_groups[0]["lr"]), float(opt.param_groups[0]["momentum"])))
        opt.step()
        if step + 1 < TOTAL and (not per_epoch or (step + 1) % STEPS_PER_EPOCH == 0):
            scheduler.step()
    return seen


PAIRS: list[tuple[Schedule, Make]] = [
    (Constant(), lambda o: reference.LambdaLR(o, lambda _: 1.0)),
    (Step(step_size=2, gamma=0.3), lambda o: reference.StepLR(o, 2, 0.3)),
    (Step(step_size=13, gamma=0.3, unit="step"), lambda o: reference.StepLR(o, 13, 0.3)),
    (MultiStep(milestones=(2, 3, 7), gamma=0.5), lambda o: reference.MultiStepLR(o, [2, 3, 7], 0.5)),
    (MultiStep(milestones=(5, 40), unit="step"), lambda o: reference.MultiStepLR(o, [5, 40], 0.1)),
    (Exponential(gamma=0.8), lambda o: reference.ExponentialLR(o, 0.8)),
    (Exponential(gamma=0.97, unit="step"), lambda o: reference.ExponentialLR(o, 0.97)),
    (Polynomial(power=2.5), lambda o: reference.PolynomialLR(o, TOTAL, 2.5)),
    (Polynomial(unit="epoch"), lambda o: reference.PolynomialLR(o, EPOCHS, 1.0)),
    (Cosine(), lambda o: reference.CosineAnnealingLR(o, TOTAL)),
    (Cosine(min_factor=0.1, unit="epoch"), lambda o: reference.CosineAnnealingLR(o, EPOCHS, 0.1 * LR)),
    (
        CosineRestarts(period=2, growth=2, min_factor=0.05),
        lambda o: reference.CosineAnnealingWarmRestarts(o, 2, 2, 0.05 * LR),
    ),
    (CosineRestarts(period=10, growth=1, unit="step"), lambda o: reference.CosineAnnealingWarmRestarts(o, 10, 1)),
    (CosineRestarts(period=4, growth=3, unit="step"), lambda o: reference.CosineAnnealingWarmRestarts(o, 4, 3)),
    (OneCycle(), lambda o: reference.OneCycleLR(o, LR, TOTAL)),
    (OneCycle(anneal="linear"), lambda o: reference.OneCycleLR(o, LR, TOTAL, anneal_strategy="linear")),
    (
        OneCycle(three_phase=True, pct_start=0.4, div_factor=10, final_div_factor=50),
        lambda o: reference.OneCycleLR(
            o, LR, TOTAL, three_phase=True, pct_start=0.4, div_factor=10, final_div_factor=50
        ),
    ),
    (
        OneCycle(three_phase=True, anneal="linear", base_momentum=0.7, max_momentum=0.8),
        lambda o: reference.OneCycleLR(
            o, LR, TOTAL, three_phase=True, anneal_strategy="linear", base_momentum=0.7, max_momentum=0.8
        ),
    ),
    (OneCycle(cycle_momentum=False), lambda o: reference.OneCycleLR(o, LR, TOTAL, cycle_momentum=False)),
    (Cyclic(up=5, down=8), lambda o: reference.CyclicLR(o, 0.1 * LR, LR, 5, 8)),
    (Cyclic(up=2, unit="epoch"), lambda o: reference.CyclicLR(o, 0.1 * LR, LR, 2)),
    (
        Cyclic(mode="triangular2", up=6, base_factor=0.25),
        lambda o: reference.CyclicLR(o, 0.25 * LR, LR, 6, mode="triangular2"),
    ),
    (
        Cyclic(mode="exp-range", up=6, gamma=0.99, base_momentum=0.6),
        lambda o: reference.CyclicLR(o, 0.1 * LR, LR, 6, mode="exp_range", gamma=0.99, base_momentum=0.6),
    ),
    (Cyclic(up=5, cycle_momentum=False), lambda o: reference.CyclicLR(o, 0.1 * LR, LR, 5, cycle_momentum=False)),
]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize(("schedule", "make"), PAIRS, ids=lambda x: repr(x) if isinstance(x, Schedule) else "")
def test_equals_torch_over_a_whole_training(schedule: Schedule, make: Make) -> None:
    per_epoch = getattr(schedule, "unit", "step") == "epoch"
    for progress, (lr, momentum) in zip(points(), torch_lrs(make, per_epoch), strict=True):
        assert LR * schedule.factor(progress) == pytest.approx(lr, rel=1e-9, abs=1e-12)
        ours = schedule.momentum(progress)
        assert (0.9 if ours is None else ours) == pytest.approx(momentum, rel=1e-9)


def test_every_schedule_but_plateau_is_compared_with_torch() -> None:
    assert {schedule.name for schedule, _ in PAIRS} == set(SCHEDULES) - {"plateau"}


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (Constant(), lambda o, n: reference.LambdaLR(o, lambda _: 1.0)),
        (Cosine(), lambda o, n: reference.CosineAnnealingLR(o, n)),
        (Polynomial(power=2), lambda o, n: reference.PolynomialLR(o, n, 2)),
        (Step(step_size=13, unit="step"), lambda o, n: reference.StepLR(o, 13)),
    ],
)
def test_warmup_equals_torch_linear_then_schedule(schedule: Schedule, make: Any) -> None:
    w = round(0.2 * TOTAL)

    def sequence(opt: torch.optim.Optimizer) -> LRScheduler:
        ramp = reference.LinearLR(opt, start_factor=1 / (w + 1), total_iters=w)
        return reference.SequentialLR(opt, [ramp, make(opt, TOTAL - w)], [w])

    ours = [LR * lr_factor(schedule, progress, 0.2) for progress in points()]
    assert ours == pytest.approx([lr for lr, _ in torch_lrs(sequence, per_epoch=False)], rel=1e-9, abs=1e-12)


def test_warmup_leaves_epoch_schedules_counting_all_epochs() -> None:
    schedule = Step(step_size=3, gamma=0.1)
    for progress in points():
        if progress.step >= round(0.2 * TOTAL):
            assert lr_factor(schedule, progress, 0.2) == schedule.factor(progress)


def test_warmup_rises_to_the_first_value_of_one_cycle_and_holds_its_momentum() -> None:
    schedule = OneCycle()
    factors = [lr_factor(schedule, progress, 0.3) for progress in points()]
    w = round(0.3 * TOTAL)
    assert factors[w] == pytest.approx(1 / 25)
    assert factors[: w + 1] == sorted(factors[: w + 1])
    assert [momentum_at(schedule, progress, 0.3) for progress in points()][: w + 1] == pytest.approx([0.95] * (w + 1))
    assert max(factors) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("mode", ["rel", "abs"])
@pytest.mark.parametrize("minimise", [True, False])
@pytest.mark.parametrize("cooldown", [0, 3])
def test_plateau_equals_torch_on_random_histories(mode: Any, minimise: bool, cooldown: int) -> None:
    rng = random.Random(f"{mode}{minimise}{cooldown}")
    reductions = 0
    for patience in [0, 1, 2, 3] * 8:
        schedule = Plateau(
            gamma=0.5,
            patience=patience,
            threshold=0.05,
            threshold_mode=mode,
            cooldown=cooldown,
            min_factor=0.1,
        )
        history = [rng.choice([rng.gauss(0.5, 0.5), rng.random(), math.nan]) for _ in range(25)]
        opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = reference.ReduceLROnPlateau(
            opt,
            mode="min" if minimise else "max",
            factor=0.5,
            patience=schedule.patience,
            threshold=0.05,
            threshold_mode=mode,
            cooldown=cooldown,
            min_lr=0.1,
            eps=0,
        )
        for n, value in enumerate(history):
            scheduler.step(value)
            now = Progress(n + 1, 25, n + 1, 25, history[: n + 1], minimise)
            assert schedule.factor(now) == pytest.approx(opt.param_groups[0]["lr"])
        reductions += schedule.factor(now) < 1
    assert reductions > 10  # the histories do put it to the test


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@given(
    total=st.integers(1, 400),
    at=st.floats(0, 1),
    epochs=st.integers(1, 40),
    warmup=st.floats(0, 1),
    history=st.lists(st.floats(), max_size=20),
)
def test_default_factor_is_in_bounds_anywhere(
    name: str, total: int, at: float, epochs: int, warmup: float, history: list[float]
) -> None:
    progress = Progress(round(at * (total - 1)), total, round(at * (epochs - 1)), epochs, history)
    schedule = SCHEDULES[name](name=name)
    assert 0 <= lr_factor(schedule, progress, warmup) <= 1 + 1e-12
    momentum = momentum_at(schedule, progress, warmup)
    assert momentum is None or 0 < momentum < 1


@given(
    pct=st.floats(0.001, 0.5),
    three=st.booleans(),
    anneal=st.sampled_from(["cos", "linear"]),
    total=st.integers(1, 60),
)
def test_one_cycle_is_in_bounds_for_any_settings(pct: float, three: bool, anneal: Any, total: int) -> None:
    schedule = OneCycle(pct_start=pct, three_phase=three, anneal=anneal)
    for step in range(total):
        progress = Progress(step, total, 0, 1)
        assert 1 / 25e4 * 0.999999 <= schedule.factor(progress) <= 1 + 1e-9
        momentum = schedule.momentum(progress)
        assert momentum is not None
        assert 0.85 - 1e-9 <= momentum <= 0.95 + 1e-9


@pytest.mark.parametrize("schedule", [schedule for schedule, _ in PAIRS] + [Plateau(patience=1)], ids=repr)
def test_json_round_trip(schedule: Schedule) -> None:
    held = Holder(schedule=schedule)
    assert Holder.model_validate_json(held.model_dump_json()) == held
    assert json.loads(held.model_dump_json())["schedule"]["name"] == schedule.name


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_a_name_stands_for_the_defaults(name: str) -> None:
    assert Holder.model_validate({"schedule": name}).schedule == SCHEDULES[name](name=name)


def test_open_lengths_follow_the_training() -> None:
    def factors(schedule: Schedule) -> list[float]:
        return [schedule.factor(Progress(epoch * 5, 50, epoch, 10)) for epoch in range(10)]

    assert factors(Step()) == pytest.approx([1] * 4 + [0.1] * 4 + [0.01] * 2)
    assert factors(MultiStep()) == pytest.approx([1] * 5 + [0.1] * 3 + [0.01] * 2)
    restarts = [CosineRestarts(unit="step").factor(Progress(t, 70, 0, 1)) for t in range(70)]
    assert [t for t in range(70) if restarts[t] == pytest.approx(1)] == [0, 10, 30]
    cyclic = [Cyclic(base_factor=0).factor(Progress(t, 40, 0, 1)) for t in range(40)]
    assert [t for t in range(40) if cyclic[t] == pytest.approx(1)] == [10, 30]


def test_a_callable_is_a_schedule_and_is_checked() -> None:
    def halves(progress: Progress) -> float:
        return 0.5**progress.epoch

    held = Holder.model_validate({"schedule": halves})
    assert held.schedule.factor(Progress(0, 10, 3, 5)) == 0.125
    with callables_given({"halves": halves}):
        again = Holder.model_validate_json(held.model_dump_json())
    assert again.schedule.factor(Progress(0, 10, 3, 5)) == 0.125
    assert isinstance(getattr(held.schedule, "call", None), Function)

    def wrong(progress: Progress) -> float:
        return -1.0

    with pytest.raises(LuthierError, match=r"finite factor >= 0, got -1\.0 at step 4"):
        Holder.model_validate({"schedule": wrong}).schedule.factor(Progress(4, 10, 0, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "cosin"}, "did you mean 'cosine'"),
        ({"name": "step", "step_size": 0}, "greater than or equal to 1"),
        ({"name": "step", "gama": 0.1}, "gama"),
        ({"name": "multi-step", "milestones": (5, 3)}, "milestones must ascend"),
        ({"name": "one-cycle", "three_phase": True, "pct_start": 0.6}, "pct_start <= 0.5"),
        ({"name": "cyclic", "down": 4}, "down=4 needs up"),
        ({"name": "cyclic", "base_momentum": 0.95}, "must not exceed max_momentum"),
        ({"name": "plateau", "gamma": 1.0}, "less than 1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Holder.model_validate({"schedule": settings})


def test_batch_growth() -> None:
    growth = TypeAdapter(BatchGrowthChoice).validate_python({"name": "grow", "factor": 1.5, "every": 3, "maximum": 100})
    assert [growth.batch_size(32, epoch) for epoch in (0, 2, 3, 6, 9, 12)] == [32, 32, 48, 72, 100, 100]
    assert BatchGrowth(maximum=16).batch_size(64, 50) == 64


@given(
    base=st.integers(1, 2000),
    factor=st.floats(1.01, 100),
    every=st.integers(1, 5),
    maximum=st.integers(1, 5000),
    epoch=st.integers(0, 10000),
)
def test_batches_never_shrink_nor_pass_the_maximum(
    base: int, factor: float, every: int, maximum: int, epoch: int
) -> None:
    growth = BatchGrowth(factor=factor, every=every, maximum=maximum)
    assert base <= growth.batch_size(base, epoch) <= growth.batch_size(base, epoch + 1) <= max(base, maximum)


def test_import_needs_no_torch() -> None:
    code = "import sys; " + "; ".join(
        f"import luthier.training.{room}" for room in ("schedules", "optimizers", "averaging", "penalties", "stopping")
    )
    subprocess.run([sys.executable, "-c", code + "; sys.exit('torch' in sys.modules)"], check=True)
