import copy
import json
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from luthier.errors import CheckpointError
from luthier.training.averaging import AVERAGINGS, EMA, SWA, Averaging, AveragingChoice, AveragingPart, build_averaging
from luthier.training.schedules import Progress

EPOCHS, STEPS_PER_EPOCH = 4, 5
TOTAL = EPOCHS * STEPS_PER_EPOCH


class Holder(BaseModel):
    averaging: AveragingChoice


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def after(taken: int) -> Progress:
    return Progress(taken, TOTAL, taken // STEPS_PER_EPOCH, EPOCHS)


def move(model: nn.Sequential, step: int) -> None:
    """A training step without an optimizer: new weights and new running statistics, the same in every test."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator))
        model[1](torch.randn(8, 4, generator=generator))


def run(averaging: Averaging, model: nn.Sequential, first: int = 0, last: int = TOTAL) -> list[dict[str, Tensor]]:
    """The model's states after each of these steps."""
    states = []
    for step in range(first, last):
        move(model, step)
        averaging.update(model, after(step + 1))
        states.append(copy.deepcopy(model.state_dict()))
    return states


def state_of(averaging: Averaging) -> dict[str, Tensor]:
    assert averaging.model is not None
    return averaging.model.state_dict()


def test_ema_equals_a_hand_written_average_of_weights_and_statistics() -> None:
    model = net()
    averaging = build_averaging(EMA(decay=0.9), model)
    assert averaging.model is None
    states = run(averaging, model)
    for name, value in state_of(averaging).items():
        expected = states[0][name]
        for n, state in enumerate(states[1:], start=1):
            d = min(0.9, (1 + n) / (10 + n))
            expected = d * expected + (1 - d) * state[name] if expected.is_floating_point() else state[name]
        assert torch.allclose(value, expected, atol=1e-6), name


def test_ema_without_warmup_equals_torch() -> None:
    model = net()
    averaging = build_averaging(EMA(decay=0.8, warmup=False), model)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))  # type: ignore[no-untyped-call]
    for step in range(TOTAL):
        move(model, step)
        averaging.update(model, after(step + 1))
        theirs.update_parameters(model)
    assert averaging.model is not None
    for ours, reference in zip(averaging.model.parameters(), theirs.module.parameters(), strict=True):
        assert torch.allclose(ours, reference, atol=1e-6)


@pytest.mark.parametrize(
    ("part", "averaged"),
    [
        (SWA(start_frac=0.75), [15, 20]),
        (SWA(start_frac=0.8), [20]),
        (SWA(start_frac=1), [20]),
        (SWA(start_frac=0), [5, 10, 15, 20]),
        (SWA(start_frac=0.8, every="step"), [16, 17, 18, 19, 20]),
    ],
)
def test_swa_is_the_mean_of_the_last_weights(part: SWA, averaged: list[int]) -> None:
    model = net()
    averaging = build_averaging(part, model)
    for step in range(averaged[0] - 1):
        averaging.update(model, after(step + 1))
        assert averaging.model is None
    model = net()
    averaging = build_averaging(part, model)
    states = run(averaging, model)
    for name, value in state_of(averaging).items():
        if name in dict(model.named_parameters()):
            mean = torch.stack([states[taken - 1][name] for taken in averaged]).mean(0)
            assert torch.allclose(value, mean, atol=1e-6), name
        else:
            assert torch.equal(value, states[-1][name]), name  # running statistics are the newest
    assert averaging.n_averaged == len(averaged)


def test_swa_sets_batch_norm_statistics_anew_without_random_numbers() -> None:
    model = net()
    averaging = build_averaging(SWA(), model)
    run(averaging, model)
    batches = [torch.randn(16, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    average = averaging.model
    assert isinstance(average, nn.Sequential)
    theirs = copy.deepcopy(average)
    theirs[2] = nn.Identity()
    update_bn(batches, theirs)
    average.train()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    averaging.refresh_batch_norm(batches, lambda module, inputs: module(inputs))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in average.modules())
    norm = average[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.momentum == 0.1
    for name, expected in theirs[1].named_buffers():
        assert torch.allclose(norm.get_buffer(name), expected, atol=1e-6), name


def test_batch_norm_is_put_back_when_the_data_fail() -> None:
    model = net()
    averaging = build_averaging(SWA(), model)
    run(averaging, model)
    with pytest.raises(RuntimeError):
        averaging.refresh_batch_norm([torch.randn(2, 99)], lambda module, inputs: module(inputs))
    assert isinstance(averaging.model, nn.Sequential)
    assert averaging.model[1].momentum == 0.1


@pytest.mark.parametrize("case", ["ema", "not begun", "no norm"])
def test_refresh_reads_no_data_where_nothing_is_to_be_refreshed(case: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU()) if case == "no norm" else net()
    averaging = build_averaging(EMA() if case == "ema" else SWA(), model)
    if case != "not begun":
        averaging.update(model, after(TOTAL))
    batches = iter([torch.randn(4, 3)])
    averaging.refresh_batch_norm(batches, lambda module, inputs: pytest.fail("the data were read"))
    assert len(list(batches)) == 1


@pytest.mark.parametrize("name", sorted(AVERAGINGS))
def test_a_resumed_average_is_the_uninterrupted_one(name: str) -> None:
    part = AVERAGINGS[name](name=name)
    whole = net()
    uninterrupted = build_averaging(part, whole)
    run(uninterrupted, whole)
    model = net()
    stopped = build_averaging(part, model)
    run(stopped, model, last=17)
    saved = copy.deepcopy(stopped.state_dict())
    resumed = build_averaging(part, net())
    resumed.load_state_dict(saved)
    run(resumed, model, first=17)
    assert resumed.n_averaged == uninterrupted.n_averaged
    for ours, theirs in zip(state_of(resumed).values(), state_of(uninterrupted).values(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_average_stands_apart_from_the_model() -> None:
    model = net()
    averaging = build_averaging(EMA(), model)
    averaging.update(model, after(1))
    kept = copy.deepcopy(state_of(averaging))
    move(model, 1)
    assert all(torch.equal(a, b) for a, b in zip(state_of(averaging).values(), kept.values(), strict=True))
    assert averaging.model is not None
    assert not any(p.requires_grad for p in averaging.model.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_buffers_that_a_module_replaces_are_followed() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("seen", torch.zeros(2))
    averaging = build_averaging(SWA(start_frac=0), model)
    for value in (1.0, 2.0):
        model.seen = torch.full((2,), value)
        averaging.update(model, after(TOTAL))
    assert state_of(averaging)["seen"].tolist() == [2.0, 2.0]


def test_the_state_of_another_model_is_refused() -> None:
    averaging = build_averaging(EMA(), net())
    with pytest.raises(CheckpointError, match="does not fit the model"):
        averaging.load_state_dict({"n_averaged": 1, "weights": nn.Linear(3, 3).state_dict()})


@pytest.mark.parametrize("part", [EMA(decay=0.9, warmup=False), SWA(start_frac=0.5, every="step")], ids=repr)
def test_json_round_trip(part: AveragingPart) -> None:
    held = Holder(averaging=part)
    assert Holder.model_validate(json.loads(held.model_dump_json())) == held
    assert Holder.model_validate({"averaging": part.name}).averaging == AVERAGINGS[part.name](name=part.name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "ewa"}, "unknown averaging 'ewa'"),
        ({"name": "ema", "decay": 1.0}, "less than 1"),
        ({"name": "swa", "start_frac": 1.5}, "less than or equal to 1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Holder.model_validate({"averaging": settings})
