"""FitConsole: what it says in a pipe and in a terminal, and how little it does per step."""

from __future__ import annotations

import io
import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from luthier.errors import NonFiniteLoss
from luthier.fitting import fit
from luthier.recipe import Recipe
from luthier.record import Record
from luthier.show.console import Throttle, is_live, open_console
from luthier.show.terminal import FitConsole, opinion, own_choices
from luthier.task import Task

WHY = "why, and what to do: luthier diagnose"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.act(self.first(x)))


def task(**changes: Any) -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 4, generator=generator)
    return Task(Net, (x, x[:, :3].argmax(1)), val=0.25, name="toy [red]", **changes)


def run(
    folder: Path, output: io.StringIO, recipe: Recipe | None = None, *, terminal: bool = False, **options: Any
) -> Record:
    shown = Console(file=output, force_terminal=terminal, width=100, color_system="standard" if terminal else None)
    hook = FitConsole(folder, shown)
    recipe = Recipe(epochs=3, batch_size=16, lr=0.01, dropout=0.2) if recipe is None else recipe
    return fit(task(), recipe, folder=folder, hooks=[hook], console=False, tensorboard=False, **options)


def test_a_pipe_gets_one_plain_line_per_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    record = run(tmp_path / "run", output := io.StringIO())
    text = output.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    lines = [line for line in text.splitlines() if line.lstrip().startswith(("1/3 ", "2/3 ", "3/3 "))]
    assert len(lines) == 3
    assert [
        f"{100 * value:.2f}%" in line for value, line in zip(record.metrics["val_accuracy"], lines, strict=True)
    ] == [True] * 3


def test_start_and_end_tell_what_and_how_well(tmp_path: Path) -> None:
    record = run(tmp_path / "run", output := io.StringIO())
    text = output.getvalue()
    assert text.startswith("toy [red] on cpu: 67 parameters, 3 epochs, 15 steps of 16\n")
    assert "recipe: lr 0.01, dropout 0.2, epochs 3, batch_size 16\n" in text
    assert "surgery: dropout" in text
    assert "finished: all 3 epochs trained" in text
    assert record.best is not None
    assert f"best val accuracy {100 * record.best:.2f}% in epoch" in text
    assert str(tmp_path / "run") in text


def test_the_end_tells_what_the_doctor_found(tmp_path: Path) -> None:
    calm = run(tmp_path / "run", output := io.StringIO())
    assert calm.findings is not None
    assert "doctor: " + ("healthy" if calm.findings["is_healthy"] else "") in output.getvalue()
    bad = {"symptom": "lr_too_high", "severity": "critical", "consequences": [{"symptom": "dead_relu"}]}
    under = {"symptom": "dead_relu", "severity": "warning", "consequences": []}
    for found, told in (
        ({"findings": [bad, under], "healthy": ["nan_inf"], "not_seen": {}}, f"lr_too_high (critical); {WHY}"),
        ({"findings": [], "healthy": ["nan_inf"], "not_seen": {}}, "healthy: 1 check in order"),
        ({"findings": [], "healthy": [], "not_seen": {"nan_inf": "no step"}}, "nothing wrong in what could be seen"),
    ):
        stored = {"is_healthy": not found["findings"], **found}
        (calm.path / "findings.json").write_text(json.dumps(stored))
        assert f"doctor: {told}" in str(opinion(calm.path))
    (calm.path / "findings.json").unlink()
    assert opinion(calm.path) is None


def test_the_first_epoch_is_the_best_so_far(tmp_path: Path) -> None:
    run(tmp_path / "run", output := io.StringIO())
    first = next(line for line in output.getvalue().splitlines() if line.lstrip().startswith("1/3"))
    assert first.endswith("best")


def test_a_resumed_training_says_where_it_goes_on(tmp_path: Path) -> None:
    run(tmp_path / "run", io.StringIO(), until=7)
    run(tmp_path / "run", output := io.StringIO(), resume=True)
    assert "resumed at step 7, epoch 2" in output.getvalue()


def test_a_failed_training_says_why(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLoss):
        run(tmp_path / "run", output := io.StringIO(), Recipe(epochs=2, batch_size=16, lr=1e30, optimizer="sgd"))
    assert "failed: NonFiniteLoss: the loss became NaN or infinite at step" in output.getvalue()


def test_what_surgery_could_not_do_is_told(tmp_path: Path) -> None:
    toy = task()
    toy.model = lambda: nn.Sequential(nn.Linear(4, 3))
    hook = FitConsole(None, Console(file=(output := io.StringIO())))
    recipe = Recipe(epochs=1, batch_size=16, norm="batch")
    fit(toy, recipe, folder=tmp_path / "run", hooks=[hook], console=False, tensorboard=False)
    assert "surgery left the model: no norm, and no Linear" in output.getvalue()


def test_a_terminal_gets_a_live_line_and_the_cursor_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    run(tmp_path / "run", output := io.StringIO(), terminal=True)
    text = output.getvalue()
    assert "ETA" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "3/3" in text


def test_ci_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    assert not is_live(Console(force_terminal=True))
    assert not open_console().is_terminal


@pytest.mark.parametrize(("cost", "at_most"), [(0.0, 101), (0.001, 26), (0.1, 2)])
def test_redrawing_is_rare_and_rarer_when_it_is_slow(
    monkeypatch: pytest.MonkeyPatch, cost: float, at_most: int
) -> None:
    clock = itertools.count()
    now = {"s": 100.0}
    monkeypatch.setattr(time, "perf_counter", lambda: now["s"])
    throttle, drawn = Throttle(), 0
    for _ in itertools.takewhile(lambda step: step < 10_000, clock):  # ten seconds of steps of 1 ms
        now["s"] += 0.001
        if throttle.due():
            now["s"] += cost
            throttle.done()
            drawn += 1
    assert 1 <= drawn <= at_most


def test_settings_that_come_with_a_part_are_not_own_choices() -> None:
    assert own_choices(Recipe()) == ""
    assert own_choices(Recipe(optimizer="sgd", schedule={"name": "step", "gamma": 0.5})) == (
        "optimizer sgd, schedule step, schedule.gamma 0.5"
    )
