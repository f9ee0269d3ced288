"""What ends a trial at once, and what does not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luthier.doctor.fatal import AFTER, diverged
from luthier.doctor.guard import Guard, Hopeless, next_look
from luthier.doctor.vitals import Vitals
from luthier.fitting import fit
from luthier.recipe import Recipe
from luthier.record import Record
from luthier.task import Task
from luthier.training.hooks import Hook

QUIET: dict[str, Any] = {"watch": False, "console": False, "tensorboard": False, "signals": False}


class Steps(Hook):
    """Counts."""

    step = 0

    def step_end(self, run: Any) -> None:
        self.step = run.step


def data(n: int, seed: int) -> Any:
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :3].argmax(1)


class Net(nn.Sequential):
    """Two layers; with a bias that leaves every hidden unit at zero it is dead."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
        nn.init.constant_(self[0].bias, bias)  # type: ignore[arg-type]


def task() -> Task:
    return Task(Net, data(640, 0), val=data(200, 1), name="guarded")


def guarded(folder: Path, recipe: Recipe, **more: Any) -> tuple[str, int]:
    """Why a training was ended, and after which step; "" when it was not."""
    steps = Steps()
    try:
        fit(task(), recipe, folder=folder, hooks=[steps, Guard()], resume=True, **QUIET, **more)
    except Hopeless as error:
        return str(error), steps.step
    return "", steps.step


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "lr": 0.05, "schedule": "one-cycle"},
        {"optimizer": "sgd", "optimizer.momentum": 0.98, "lr": 0.3, "schedule": "cosine"},
        {"optimizer": "sgd", "lr": 1e-3, "warmup_frac": 0.5},
        {"optimizer": "rmsprop", "lr": 0.05, "zero_last": True, "dropout": 0.5},
        {"optimizer": "sgd", "lr": 1e-5},
    ],
)
def test_steep_jittery_and_slow_trainings_go_on(tmp_path: Path, changes: Any) -> None:
    recipe = Recipe(batch_size=16, epochs=4).replace(changes)
    assert guarded(tmp_path, recipe) == ("", 160)


@pytest.mark.parametrize(
    ("changes", "said", "by"),
    [
        ({"optimizer": "sgd", "lr": 300.0, "model.bias": 0.5}, "diverged: the loss is", 10),
        ({"model.bias": -100.0}, "dead network: every input gets the same answer", 20),
        ({"lr": 1e-12}, "nothing learned: a step moves the weights by at most", 10),
    ],
)
def test_what_cannot_become_anything_is_ended_soon(tmp_path: Path, changes: Any, said: str, by: int) -> None:
    recipe = Recipe(batch_size=16, epochs=4).replace(changes)
    reason, step = guarded(tmp_path / "whole", recipe)
    assert reason.startswith(said)
    assert step <= by
    assert Record(tmp_path / "whole").status["state"] == "failed"
    assert guarded(tmp_path / "parts", recipe, until=5)[0] == ""
    assert guarded(tmp_path / "parts", recipe) == (reason, step)


def test_the_training_stays_the_same(tmp_path: Path) -> None:
    recipe = Recipe(batch_size=16, epochs=2, dropout=0.2, lr=0.01)
    plain = fit(task(), recipe, folder=tmp_path / "plain", **QUIET)
    watched = fit(task(), recipe, folder=tmp_path / "watched", hooks=[Guard()], **QUIET)
    times = ("time_s",)
    rows = [[{k: v for k, v in row.items() if k not in times} for row in each.rows] for each in (plain, watched)]
    assert rows[0] == rows[1]


def vitals(losses: list[float]) -> Vitals:
    about = {"kind": "anatomy", "model_types": ["Net"], "loss_fn": "cross_entropy"}
    targets = {"kind": "targets", "step": 0, "n": 30, "counts": {"0": 10, "1": 10, "2": 10}}
    steps = {"kind": "steps", "step": list(range(len(losses))), "loss": losses}
    return Vitals.from_rows([about, targets, steps])


def test_a_jump_that_falls_again_is_no_divergence() -> None:
    start = [1.1, 1.0, 0.9, 0.8, 0.9]
    assert diverged(vitals([*start, *[5.0] * AFTER])) is not None
    assert diverged(vitals([*start, *[5.0] * (AFTER - 1)])) is None
    assert diverged(vitals([*start, *[9.0 * 0.97**i for i in range(AFTER)]])) is None
    assert diverged(vitals([*start, *[3.0] * AFTER])) is None
    assert diverged(vitals([*start, *[1e3] * 5])) is not None
    assert diverged(vitals([*start, *[1e3] * 4])) is None


def test_looks_grow_rare() -> None:
    steps = [0]
    while steps[-1] < 150:
        steps.append(next_look(steps[-1]))
    assert steps[1:8] == [4, 5, 6, 7, 8, 10, 12]
    assert steps[-2:] == [125, 150]
