"""Rules about the loop, on vitals made by hand and on watched loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import luthier
from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.remedies import prescribe
from luthier.doctor.symptoms import SYMPTOMS
from luthier.doctor.symptoms.freshness import is_fresh
from luthier.doctor.vitals import (
    Anatomy,
    Argument,
    Evaluation,
    Event,
    Look,
    Metrics,
    Node,
    Optimizer,
    Parameter,
    Stats,
    Steps,
    Vitals,
)

LOOP = (
    "missing_zero_grad",
    "optimizer_reset",
    "train_eval_slip",
    "small_batch_bn",
    "grad_clip_too_small",
    "lr_schedule_collapse",
    "input_bottleneck",
)


def ask(symptom: str, vitals: Vitals) -> list[Finding]:
    answer = SYMPTOMS[symptom](vitals)
    assert not isinstance(answer, NotSeen), answer
    return answer


def severities(symptom: str, vitals: Vitals) -> list[str]:
    return [finding.severity for finding in ask(symptom, vitals)]


def steps(rates: Sequence[float], losses: Sequence[float] | None = None, wait: float = 0.0, busy: float = 0.0) -> Steps:
    n = len(rates)
    return Steps(tuple(range(n)), tuple(losses or [1.0] * n), tuple(rates), (wait,) * n, (busy,) * n)


def looks(n: int = 6, **given: Any) -> list[Look]:
    return [Look(step=step, training=True, n_forward=1, n_backward=1, **given) for step in range(n)]


# ------------------------------------------------------------------ by hand


@pytest.mark.parametrize("symptom", LOOP)
def test_empty_vitals_are_not_seen(symptom: str) -> None:
    assert isinstance(SYMPTOMS[symptom](Vitals()), NotSeen)


def test_gradients_never_cleared() -> None:
    dirty = [replace(look, cleared=look.step == 0, entry_grad=float(look.step)) for look in looks()]
    (finding,) = ask("missing_zero_grad", Vitals(looks=dirty))
    assert (finding.severity, finding.onset, finding.certainty) == ("critical", 1, 1.0)
    assert ask("missing_zero_grad", Vitals(looks=looks(cleared=True))) == []


def test_gradients_of_a_loop_that_never_steps_need_no_clearing() -> None:
    dirty = [replace(look, cleared=look.step == 0) for look in looks()]
    said = [Event(0, "steps_without_optimizer", {"calls": 10})]
    assert ask("missing_zero_grad", Vitals(looks=dirty, events=said)) == []


def test_gradients_cleared_once_an_epoch() -> None:
    rare = [replace(look, cleared=look.step % 4 == 0) for look in looks(12)]
    assert severities("missing_zero_grad", Vitals(looks=rare)) == ["critical"]


def optimizers(kind: str, every: int, n: int = 5, sizes: Sequence[int] = (), **group: float) -> list[Optimizer]:
    counts = list(sizes) or [4] * n
    return [
        Optimizer(
            every * i, i, kind, replaces=i - 1 if i else None, groups=({"lr": 0.1, "n_parameters": size, **group},)
        )
        for i, size in enumerate(counts)
    ]


def test_optimizers_made_anew() -> None:
    def answer(rows: list[Optimizer]) -> list[str]:
        return severities("optimizer_reset", Vitals(optimizers=rows, looks=looks(100)))

    assert answer(optimizers("Adam", every=1)) == ["critical"]
    assert answer(optimizers("SGD", every=20, momentum=0.9)) == ["warning"]
    assert answer(optimizers("SGD", every=20, momentum=0)) == ["info"], "plain SGD has nothing to lose"
    assert answer(optimizers("Adam", every=20, sizes=(2, 4, 6))) == [], "more layers are thawed in each phase"
    assert answer(optimizers("Adam", every=20, n=2)) == []


def test_state_cleared_shows_in_its_own_count() -> None:
    counts = [1, 2, 3, 1, 2, 3, 1, 2, 3]
    seen = [Look(step=step, n_backward=1, state_step=count) for step, count in enumerate(counts)]
    (finding,) = ask("optimizer_reset", Vitals(optimizers=optimizers("Adam", 1, n=1), looks=seen))
    assert finding.numbers["times"] == 2


DROPOUT = Anatomy(modules={"": "Net", "drop": "Dropout"}, module_settings={"drop": {"p": 0.5}})
BATCH_NORM = Anatomy(modules={"": "Net", "bn": "BatchNorm1d"})
PLAIN = Anatomy(modules={"": "Net", "drop": "Dropout"}, module_settings={"drop": {"p": 0.0}})


def test_training_in_eval_mode_since_the_first_evaluation() -> None:
    slipped = [replace(look, training=look.step < 4) for look in looks(12)]
    (finding,) = ask("train_eval_slip", Vitals(anatomies=[DROPOUT], looks=slipped))
    assert (finding.onset, finding.certainty) == (4, 1.0)
    assert ask("train_eval_slip", Vitals(anatomies=[PLAIN], looks=slipped)) == [], "nothing depends on the mode"


def evaluations(at: Sequence[int], **given: Any) -> list[Evaluation]:
    return [Evaluation(step=step, **{"grad": False, "forwards": 2, "random": True, **given}) for step in at]


def test_evaluation_in_training_mode() -> None:
    told = [Metrics(step, {"val_loss": 1.0}) for step in (4, 8, 12)]
    wrong = Vitals(anatomies=[DROPOUT], looks=looks(), metrics=told, evaluations=evaluations((4, 8, 12), training=True))
    assert severities("train_eval_slip", wrong) == ["warning"]
    right = replace(wrong, evaluations=evaluations((4, 8, 12), training=False, random=False))
    assert ask("train_eval_slip", right) == []


def lost_in_evaluation(told: float) -> Vitals:
    n = 100
    losses = tuple(0.1 + 2.2 * 0.9**step for step in range(n))
    pair = (Argument("n0", (8, 10)), Argument("target", (8,), "int64"))
    nodes = (Node(0, "batch_norm", "bn", (), {"training": True}, (8, 4)), Node(1, "cross_entropy", None, pair))
    return Vitals(
        anatomies=[BATCH_NORM],
        looks=[Look(step, True, n_backward=1, nodes=nodes, batch_size=8) for step in (0, 50, 99)],
        steps=Steps(tuple(range(n)), losses, (0.1,) * n, (0.0,) * n, (0.0,) * n),
        metrics=[Metrics(step, {"train_loss": told, "val_loss": told}) for step in (40, 70, 100)],
        evaluations=evaluations((40, 70, 100), training=False, random=False),
    )


def test_running_statistics_that_are_not_those_of_training() -> None:
    (finding,) = ask("train_eval_slip", lost_in_evaluation(90.0))
    assert (finding.severity, finding.numbers["kind"]) == ("warning", "apart")
    assert "running statistics" in prescribe(finding).remedies[0].text
    assert ask("train_eval_slip", lost_in_evaluation(0.4)) == []
    plain = replace(lost_in_evaluation(90.0), anatomies=[PLAIN], looks=looks())
    assert ask("train_eval_slip", plain) == [], "no batch norm: the metric is something else"


def test_training_accuracy_after_every_step_is_no_evaluation() -> None:
    rows = evaluations(range(1, 13), training=True, forwards=1)
    told = [Metrics(step, {"val_loss": 1.0}) for step in (4, 8, 12)]
    assert ask("train_eval_slip", Vitals(anatomies=[DROPOUT], looks=looks(), metrics=told, evaluations=rows)) == []


def test_dropout_that_ignores_the_mode() -> None:
    rows = evaluations((4, 8), training=False, stochastic=("dropout",))
    (finding,) = ask("train_eval_slip", Vitals(anatomies=[PLAIN], looks=looks(), evaluations=rows))
    assert finding.numbers["kind"] == "functional"


def test_batch_norm_without_running_statistics_is_on_purpose() -> None:
    anatomy = Anatomy(modules={"n": "BatchNorm1d"}, module_settings={"n": {"track_running_stats": False}})
    rows = evaluations((4, 8), training=False, stochastic=("batch_norm",), random=False)
    assert ask("train_eval_slip", Vitals(anatomies=[anatomy], looks=looks(), evaluations=rows)) == []


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((2, 8), "critical"), ((4, 8), "critical"), ((2, 8, 6, 6), "warning"), ((4, 8, 64, 64), "info"), ((32, 8), None)],
)
def test_batch_norm_over_few_examples(shape: tuple[int, ...], expected: str | None) -> None:
    norm = Node(0, "batch_norm", "norm", (Argument("input:0", shape),), {"training": True}, shape)
    assert severities("small_batch_bn", Vitals(looks=looks(nodes=(norm,)))) == ([expected] if expected else [])


def test_one_odd_batch_does_not_make_a_small_one() -> None:
    def norm(n: int) -> Node:
        return Node(0, "batch_norm", "norm", (Argument("input:0", (n, 8)),), {"training": True}, (n, 8))

    seen = [replace(look, nodes=(norm(2 if look.step == 3 else 32),)) for look in looks()]
    assert ask("small_batch_bn", Vitals(looks=seen)) == []


def clipped(norms: Sequence[float], limit: float, lr: float = 0.1, kind: str = "SGD") -> Vitals:
    seen = [
        Look(
            step, n_backward=1, grad_before_clip=(norm,), grad=(min(norm, limit),), weight=(1.0,), update=(lr * limit,)
        )
        for step, norm in enumerate(norms)
    ]
    return Vitals(looks=seen, optimizers=optimizers(kind, 1, n=1))


def test_clipping() -> None:
    norms = [2.0, 1.5, 1.8, 1.2, 2.2, 1.9]
    assert severities("grad_clip_too_small", clipped(norms, 1e-3)) == ["warning"]
    assert severities("grad_clip_too_small", clipped(norms, 1e-3, kind="Adam")) == ["warning"]
    assert severities("grad_clip_too_small", clipped(norms, 0.1, kind="Adam")) == ["info"], "Adam rescales"
    large = [600.0 * norm for norm in norms]
    assert severities("grad_clip_too_small", clipped(large, 1.0, kind="Adam")) == ["info"], "a sum, clipped at 1"
    assert severities("grad_clip_too_small", clipped(norms, 2e-3, lr=10.0, kind="Adam")) == ["warning"], (
        "nobody means that"
    )
    assert ask("grad_clip_too_small", clipped(norms, 1.0)) == []
    assert ask("grad_clip_too_small", clipped([0.5, 0.4, 30.0, 0.6], 1.0)) == [], "only spikes are cut"
    assert isinstance(SYMPTOMS["grad_clip_too_small"](clipped(norms, 0.0)), NotSeen), "zeroed, not clipped"


def test_unscaling_is_no_clipping() -> None:
    norms = [2.0, 1.5, 1.8, 1.2]
    seen = [
        Look(step, n_backward=1, grad_before_clip=(norm * 65536,), grad=(norm,), weight=(1.0,), update=(0.1,))
        for step, norm in enumerate(norms)
    ]
    assert ask("grad_clip_too_small", Vitals(looks=seen)) == []


N = 200
SCHEDULES: dict[str, tuple[Callable[[int], float], str | None]] = {
    "constant": (lambda s: 0.1, None),
    "cosine": (lambda s: 0.05 * (1 + math.cos(math.pi * s / N)), None),
    "warm-up, linear": (lambda s: 0.1 * min(s / 20, (N - s) / (N - 20)), None),
    "steps by 10 at half and three quarters": (lambda s: 0.1 * 0.1 ** ((s >= N // 2) + (s >= 3 * N // 4)), None),
    "restarts": (lambda s: 0.05 * (1 + math.cos(math.pi * (s % 40) / 40)), None),
    "triangles": (lambda s: 0.1 * (1 - abs(s % 40 - 20) / 20), None),
    "exponential per batch": (lambda s: 0.1 * 0.9**s, "critical"),
    "steps by 10 in batches": (lambda s: 0.1 * 0.1 ** ((s >= 7) + (s >= 11)), "critical"),
    "linear, wrong total": (lambda s: 0.1 * max(0.0, 1 - s / 20), "critical"),
    "cosine over and over": (lambda s: 0.05 * (1 + math.cos(math.pi * s / 10)), "warning"),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    schedule, expected = SCHEDULES[name]
    vitals = Vitals(steps=steps([schedule(step) for step in range(N)]))
    assert severities("lr_schedule_collapse", vitals) == ([expected] if expected else [])


def test_a_small_lr_at_a_fitted_loss_is_worth_knowing_only() -> None:
    losses = [math.exp(-step / 10) for step in range(N)]
    vitals = Vitals(steps=steps([0.1 if step < 60 else 1e-4 for step in range(N)], losses))
    assert severities("lr_schedule_collapse", vitals) == ["info"]


def test_the_decay_of_the_optimizer_itself_counts():
    rows = [Optimizer(0, 0, "Adagrad", groups=({"lr": 0.1, "lr_decay": decay},)) for decay in (0.0, 1e-3, 1.0)]
    seen = [severities("lr_schedule_collapse", Vitals(steps=steps([0.1] * 400), optimizers=[row])) for row in rows]
    assert seen == [[], [], ["critical"]]


def test_waiting_for_data() -> None:
    assert severities("input_bottleneck", Vitals(steps=steps([0.1] * 20, wait=0.02, busy=0.002))) == ["warning"]
    assert ask("input_bottleneck", Vitals(steps=steps([0.1] * 20, wait=0.001, busy=0.0002))) == []
    assert ask("input_bottleneck", Vitals(steps=steps([0.1] * 20, wait=0.02, busy=0.02))) == []


def parameter(values: Tensor, layer_type: str = "Linear") -> Parameter:
    kind = "uniform" if values.abs().max() < 1.8 * values.std() else "normal"
    return Parameter(
        "w", tuple(values.shape), layer_type=layer_type, numel=values.numel(), fan_in=values[0].numel(),
        rms=float(values.square().mean().sqrt()), absmax=float(values.abs().max()), initial=kind,
    )  # fmt: skip


def test_fresh_weights() -> None:
    torch.manual_seed(0)
    assert is_fresh(parameter(nn.Linear(32, 64).weight.detach()))
    assert is_fresh(parameter(nn.init.kaiming_normal_(torch.empty(64, 32))))
    assert is_fresh(parameter(nn.init.xavier_normal_(torch.empty(16, 8, 3, 3))))
    assert not is_fresh(parameter(1.3 * nn.init.kaiming_normal_(torch.empty(64, 32))))
    assert not is_fresh(Parameter("w", initial="normal"))


def test_frozen_later_and_embeddings() -> None:
    weight = Parameter("fc.weight", (8, 8), numel=64, layer="fc", layer_type="Linear", initial="normal")
    table = replace(weight, name="table.weight", layer="table", layer_type="Embedding", rms=1.0, absmax=3.0, fan_in=8)
    began = Anatomy(parameters=(weight, replace(table, requires_grad=False)))
    later = Anatomy(step=9, parameters=(replace(weight, requires_grad=False), replace(table, requires_grad=False)))
    (finding,) = ask("frozen_params", Vitals(anatomies=[began, later]))
    assert (finding.severity, finding.where) == ("warning", ("fc",))
    assert severities("frozen_params", Vitals(anatomies=[began])) == ["info"], "fixed random codes serve well"


# ------------------------------------------------------------------ watched


def mode_net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


class Functional(nn.Module):
    """Dropout by F.dropout, which may forget the mode."""

    def __init__(self, forgets: bool) -> None:
        super().__init__()
        self.inner, self.head, self.forgets = nn.Linear(6, 16), nn.Linear(16, 3), forgets

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(F.relu(self.inner(x)), 0.3, self.forgets or self.training))


def loop(
    model: nn.Module,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = lambda model: torch.optim.Adam(model.parameters()),
    zero: Callable[[int], bool] = lambda step: True,
    anew: Callable[[int], bool] = lambda step: False,
    evaluates_in_train: bool = False,
    trains_again: bool = True,
    batch: int = 16,
    clip: float | None = None,
) -> Vitals:
    torch.manual_seed(0)
    x, y = torch.randn(64, 6), torch.randint(0, 3, (64,))
    stepper = optimizer(model)
    watch = luthier.watch(model, stepper)
    for step in range(24):
        stepper = optimizer(model) if anew(step) else stepper
        part = torch.randint(0, 64, (batch,))
        if zero(step):
            stepper.zero_grad()
        loss = F.cross_entropy(model(x[part]), y[part])
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        stepper.step()
        watch.step(loss, inputs=x[part], targets=y[part])
        if step % 6 == 5:
            model.train(evaluates_in_train)
            with torch.no_grad():
                value = F.cross_entropy(model(x), y)
            watch.metrics(train_loss=loss.detach(), val_loss=value)
            if trains_again:
                model.train()
    watch.close()
    return watch.vitals


def serious(vitals: Vitals) -> set[str]:
    answers = [SYMPTOMS[name](vitals) for name in LOOP]
    found = [finding for answer in answers if not isinstance(answer, NotSeen) for finding in answer]
    return {finding.symptom for finding in found if finding.severity != "info"}


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


SICK: dict[str, tuple[str, Callable[[], Vitals]]] = {
    "never cleared": ("missing_zero_grad", lambda: loop(mode_net(), zero=lambda step: False)),
    "cleared each epoch": ("missing_zero_grad", lambda: loop(mode_net(), zero=lambda step: step % 6 == 0)),
    "Adam each epoch": ("optimizer_reset", lambda: loop(mode_net(), anew=lambda step: step % 6 == 0)),
    "SGD each step": ("optimizer_reset", lambda: loop(mode_net(), momentum, anew=lambda step: True)),
    "train forgotten": ("train_eval_slip", lambda: loop(mode_net(), trains_again=False)),
    "eval forgotten": ("train_eval_slip", lambda: loop(mode_net(), evaluates_in_train=True)),
    "F.dropout": ("train_eval_slip", lambda: loop(Functional(forgets=True))),
    "batch of 2": ("small_batch_bn", lambda: loop(mode_net(), batch=2)),
    "clipped to nothing": ("grad_clip_too_small", lambda: loop(mode_net(), momentum, clip=1e-4)),
}
HEALTHY: dict[str, Callable[[], Vitals]] = {
    "modules": lambda: loop(mode_net()),
    "functional": lambda: loop(Functional(forgets=False)),
    "momentum, clipped": lambda: loop(mode_net(), momentum, clip=5.0),
    "no modes": lambda: loop(nn.Linear(6, 3), trains_again=False),
}


@pytest.mark.parametrize("name", SICK)
def test_sick_loops(name: str) -> None:
    symptom, program = SICK[name]
    assert symptom in serious(program())


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_loops(name: str) -> None:
    assert serious(HEALTHY[name]()) == set()


def test_stats_absent_everywhere_raise_nothing() -> None:
    bare = Node(0, "softmax", "", (Argument("input:0"),), {}, (), "float32", True, Stats())
    odd = Node(1, "mse_loss", None, (Argument("n0"), Argument("n7")), {"dim": None}, (), "float32", True)
    half = Vitals(anatomies=[Anatomy()], looks=[Look(0, nodes=(bare, odd), outputs=(9,), roots=(1,), n_backward=1)])
    for symptom, rule in SYMPTOMS.items():
        assert isinstance(rule(half), (list, NotSeen)), symptom
