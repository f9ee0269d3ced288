"""What a training function is given: reports, rungs, states; with a parent that follows a script."""

import errno
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from torch import nn

import luthier
from luthier.doctor.vitals import Vitals
from luthier.errors import CheckpointError, LuthierError, RecordError
from luthier.tuning import saves
from luthier.tuning.functions import LiveTrial, TrialPaused, run_function
from luthier.tuning.messages import Inbox, encode
from luthier.tuning.saves import Saves, read_best, read_state, write_state
from luthier.tuning.shipping import ship


class Parent:
    """A channel without a process behind it."""

    def __init__(self, **answer: Any) -> None:
        self.pausing: int | None = None
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.answer = answer

    def say(self, event: str, **details: Any) -> None:
        self.said.append((event, details))

    def ask(self, event: str, **details: Any) -> dict[str, Any]:
        self.say(event, **details)
        return self.answer

    @property
    def readings(self) -> list[tuple[int, float]]:
        return [(details["row"]["step"], details["row"]["val_value"]) for event, details in self.said if event == "row"]

    @property
    def questions(self) -> list[int]:
        return [details["step"] for event, details in self.said if event == "asked"]


def run(
    function: Callable[[Any], Any], folder: Path, parent: Any = None, until: int = 4, steps: int | None = 4, **more: Any
) -> tuple[str, dict[str, Any]]:
    order = {"number": 7, "folder": str(folder), "values": {"lr": 0.5}, "seed": 3, "until": until, "steps": steps}
    return run_function(function, {"reported": {"value": "val_value"}, **order, **more}, parent or Parent())


def test_a_function_reads_its_parameters_and_reports(tmp_path: Path) -> None:
    def train(trial: LiveTrial) -> None:
        assert (trial.params, trial.number, trial.seed) == ({"lr": 0.5}, 7, 3)
        for epoch, value in enumerate((torch.tensor(0.25), np.float32(0.5), 0.75, 1)):
            trial.report(value, step=epoch + 1)  # type: ignore[arg-type]

    parent = Parent()
    state, details = run(train, tmp_path / "t", parent)
    assert (state, details["step"], details["total_steps"]) == ("finished", 4, 4)
    assert parent.readings == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert not (tmp_path / "t").exists()


def resumable(trial: LiveTrial) -> None:
    state = trial.restore()
    for epoch in range(0 if state is None else state["epoch"], 4):
        trial.save({"epoch": epoch + 1})
        trial.report(float(epoch), step=epoch + 1)


def test_what_was_saved_is_paused_at_the_rung_and_goes_on_there(tmp_path: Path) -> None:
    first, second = Parent(), Parent()
    state, details = run(resumable, tmp_path, first, until=2)
    assert (state, details["step"], details["reason"]) == ("paused", 2, "at step 2")
    state, details = run(resumable, tmp_path, second, until=4, known=2)
    assert (state, details["step"]) == ("finished", 4)
    assert [step for step, _ in first.readings + second.readings] == [1, 2, 3, 4]
    assert not first.questions + second.questions


def test_readings_that_the_parent_never_heard_are_told_again(tmp_path: Path) -> None:
    assert run(resumable, tmp_path, until=3)[0] == "paused"
    assert run(resumable, tmp_path, parent := Parent(), until=3, known=1)[0] == "paused"
    assert parent.readings == [(2, 1.0), (3, 2.0)]
    assert run(resumable, tmp_path, parent := Parent(), known=3)[0] == "finished"
    assert parent.readings == [(4, 3.0)]


def reports_first(trial: LiveTrial) -> None:
    state = trial.restore()
    for epoch in range(0 if state is None else state["epoch"], 4):
        trial.report(float(epoch), step=epoch + 1)
        trial.save({"epoch": epoch + 1})


@pytest.mark.parametrize("rung", [1, 2, 3])
def test_a_state_may_be_saved_after_its_report(tmp_path: Path, rung: int) -> None:
    first, second = Parent(), Parent()
    state, details = run(reports_first, tmp_path, first, until=rung)
    assert (state, details["step"], details["reason"]) == ("paused", rung, f"at step {rung}")
    assert (Saves(tmp_path / "checkpoints").read() or (None,))[0] == {"epoch": rung}
    assert run(reports_first, tmp_path, second, until=4, known=rung)[0] == "finished"
    assert [step for step, _ in first.readings + second.readings] == [1, 2, 3, 4]
    assert not first.questions + second.questions


def test_an_interrupted_trial_that_saves_after_its_report_pauses_with_that_step(tmp_path: Path) -> None:
    parent = Parent()
    parent.pausing = 7
    assert run(reports_first, tmp_path, parent)[1]["reason"] == "interrupted"
    assert (Saves(tmp_path / "checkpoints").read() or (None,))[0] == {"epoch": 1}
    assert run(reports_first, tmp_path, known=1)[0] == "finished"


@pytest.mark.parametrize("first", ["save", "report"])
def test_a_function_that_saves_now_and_then_pauses_at_its_next_state(tmp_path: Path, first: str) -> None:
    def now_and_then(trial: LiveTrial) -> None:
        for step in range((trial.restore() or 0) + 1, 10):
            acts = [lambda s=step: s % 3 or trial.save(s), lambda s=step: trial.report(float(s), step=s)]
            for act in acts if first == "save" else reversed(acts):
                act()

    parents, paused = [Parent(), Parent()], 6 if first == "save" else 4
    state, details = run(now_and_then, tmp_path, parents[0], until=4, steps=9)
    assert (state, details["step"], details["reason"]) == ("paused", paused, f"at step {paused}")
    assert (Saves(tmp_path / "checkpoints").read() or (None,))[0] == (6 if first == "save" else 3)
    assert run(now_and_then, tmp_path, parents[1], until=9, steps=9, known=paused)[0] == "finished"
    assert [step for parent in parents for step, _ in parent.readings] == list(range(1, 10))
    assert not parents[0].questions + parents[1].questions


def test_states_between_two_reports_are_kept_and_hear_of_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_batches(trial: LiveTrial) -> None:
        epoch, done = trial.restore() or (1, 0)
        for batch in range(done + 1, 6):
            trial.save((epoch, batch))
            kept.append((Saves(tmp_path / "checkpoints").read() or (None,))[0])
        trial.report(0.5, step=epoch)

    monkeypatch.setattr(saves, "_EVERY_S", -1.0)
    kept: list[Any] = []
    assert run(by_batches, tmp_path / "other", until=1, steps=1)[0] == "finished"
    assert run(by_batches, tmp_path, steps=1)[0] == "finished"
    assert kept[-5:] == [None, (1, 2), (1, 3), (1, 4), (1, 5)]
    (tmp_path / "checkpoints" / "last.safetensors").unlink()
    parent = Parent()
    parent.pausing = 7
    state, details = run(by_batches, tmp_path, parent, steps=1)
    assert (state, details["reason"], details["step"]) == ("paused", "interrupted", 0)
    assert (Saves(tmp_path / "checkpoints").read() or (None,))[0] == (1, 2)
    assert run(by_batches, tmp_path, steps=1)[0] == "finished"


@pytest.mark.parametrize("first", ["save", "report"])
def test_steps_may_be_counted_from_0(tmp_path: Path, first: str) -> None:
    def train(trial: LiveTrial) -> None:
        for epoch in range(trial.restore() or 0, 4):
            acts = [lambda e=epoch: trial.save(e + 1), lambda e=epoch: trial.report(float(e), step=e)]
            for act in acts if first == "save" else reversed(acts):
                act()

    parents = [Parent(), Parent()]
    state, details = run(train, tmp_path, parents[0], until=2)
    assert (state, details["step"], details["reason"]) == ("paused", 2, "at step 2")
    assert run(train, tmp_path, parents[1], until=4, known=2)[0] == "finished"
    assert [each for parent in parents for each in parent.readings] == [(1, 0.0), (2, 1.0), (3, 2.0), (4, 3.0)]


@pytest.mark.parametrize("error", [TrialPaused("no gain for 3 epochs"), optuna.TrialPruned("no gain for 3 epochs")])
def test_a_function_may_stop_its_trial(tmp_path: Path, error: Exception) -> None:
    def train(trial: LiveTrial) -> None:
        trial.report(0.5, step=1)
        raise error

    state, details = run(train, tmp_path)
    assert (state, details["reason"], details["step"]) == ("stopped", "by the function: no gain for 3 epochs", 1)
    assert run(lambda trial: (_ for _ in ()).throw(TrialPaused), tmp_path / "b")[1]["reason"] == "by the function"


def test_a_deterministic_study_seeds_what_a_function_draws_from(tmp_path: Path) -> None:
    def train(trial: LiveTrial) -> float:
        return random.random() + float(np.random.rand()) + float(torch.rand(1))

    def value(**order: Any) -> float:
        run(train, tmp_path, parent := Parent(), **order)
        return parent.readings[0][1]

    assert value(seeded=True) == value(seeded=True) != value()
    assert value(seeded=True, seed=2**40) != value(seeded=True, seed=1)


def test_a_large_state_that_was_saved_before_its_report_keeps_that_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(trial: LiveTrial) -> None:
        for step in range(int(trial.restore() or 0) + 1, 5):
            trial.save(torch.tensor(step))
            trial.report(float(step), step=step)
            if step == dies_at:
                raise SystemExit

    monkeypatch.setattr(saves, "_SMALL_BYTES", 0)
    dies_at = 2
    with pytest.raises(SystemExit):
        run(killed, tmp_path)
    dies_at, parent = 0, Parent()
    assert run(killed, tmp_path, parent)[0] == "finished"
    assert parent.readings == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    later = tmp_path / "checkpoints" / "later.json"
    later.write_text(later.read_text().replace('"step":4', '"step":9'))
    kept = Saves(tmp_path / "checkpoints")
    kept.keep(torch.tensor(7), {"step": 6})
    assert (Saves(tmp_path / "checkpoints").read() or (0, {}))[1]["step"] == 6


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("saves_first", [True, False])
def test_a_kill_before_the_best_state_is_called_so_does_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves_first: bool, large: bool
) -> None:
    class Killed(BaseException):
        """As if the process were gone."""

    def train(trial: LiveTrial) -> None:
        for step in range(int(trial.restore() or 0), 4):
            acts = [
                lambda s=step: trial.save(torch.tensor(s + 1)),
                lambda s=step: trial.report([0.5, 0.9, 0.2, 0.3][s], step=s + 1),
            ]
            for act in acts if saves_first else reversed(acts):
                act()

    def kill(folder: Path) -> None:
        state, _ = read_state(folder) or (0, {})
        if state == 2:
            raise Killed
        link(folder)

    link = saves._link
    monkeypatch.setattr(saves, "_EVERY_S", 0.0)
    if large:
        monkeypatch.setattr(saves, "_SMALL_BYTES", 0)
    monkeypatch.setattr(saves, "_link", kill)
    with pytest.raises(Killed):
        run(train, tmp_path)
    monkeypatch.setattr(saves, "_link", link)
    assert run(train, tmp_path)[0] == "finished"
    best, last = (each(tmp_path / "checkpoints") or (0, {}) for each in (read_best, read_state))
    assert (int(best[0]), int(last[0])) == (2, 4)


def test_what_another_trial_saved_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    assert run(resumable, tmp_path, until=2)[0] == "paused"
    with pytest.raises(LuthierError, match="holds what a trial of another study saved: remove that folder"):
        run(resumable, tmp_path, values={"lr": 0.25})
    with pytest.raises(LuthierError, match="another study"):
        run(resumable, tmp_path, seed=4)
    assert run(resumable, tmp_path, known=2)[0] == "finished"


def test_a_disk_without_room_is_said_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saves, "write_state", full)
    with pytest.raises(RecordError, match=r"checkpoints cannot be written \(No space left on device\): make room"):
        run(resumable, tmp_path, until=2)


def test_a_trial_that_goes_on_is_watched_as_one_training(tmp_path: Path) -> None:
    def watched(trial: LiveTrial) -> None:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        first = (trial.restore() or 0) + 1
        with trial.watch(model, optimizer) as watch:
            for epoch in range(first, 4):
                for _ in range(30):
                    loss = model(torch.ones(4, 3)).square().mean()
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    watch.step(loss)
                trial.save(epoch)
                trial.report(0.5, step=epoch)
            seen.append(watch.vitals)

    seen: list[Any] = []
    assert run(watched, tmp_path, until=1, steps=3)[0] == "paused"
    assert run(watched, tmp_path, until=3, steps=3, known=1)[0] == "finished"
    read = Vitals.load(tmp_path / "vitals.jsonl")
    assert read.steps.step == seen[0].steps.step == tuple(range(90))
    assert read.steps.loss == seen[0].steps.loss


def test_a_function_that_restores_and_never_saves_hears_whether_it_goes_on(tmp_path: Path) -> None:
    def hopeful(trial: LiveTrial) -> None:
        trial.restore()
        plain(trial)

    over = Parent(order="stop", reason="outranked")
    state, details = run(hopeful, tmp_path, over, until=2)
    assert (state, details["reason"], over.questions) == ("stopped", "outranked", [2])


def test_a_step_that_is_trained_once_more_is_not_told_again(tmp_path: Path) -> None:
    def saves_its_beginning(trial: LiveTrial) -> None:
        if (state := trial.restore()) is None:
            trial.save(state := {"epoch": 0})
        for epoch in range(state["epoch"], 4):
            trial.report(float(epoch), step=epoch + 1)
            trial.save({"epoch": epoch + 1})

    first, second = Parent(), Parent()
    assert run(saves_its_beginning, tmp_path, first, until=2)[0] == "paused"
    assert run(saves_its_beginning, tmp_path, second, until=3, known=2)[0] == "paused"
    assert (Saves(tmp_path / "checkpoints").read() or (None,))[0] == {"epoch": 3}
    assert run(saves_its_beginning, tmp_path, second, known=3)[0] == "finished"
    assert [step for step, _ in first.readings + second.readings] == [1, 2, 3, 4]


def test_a_function_that_begins_anew_in_spite_of_its_state_is_told(tmp_path: Path) -> None:
    def begins_anew(trial: LiveTrial) -> None:
        trial.restore()
        forgetful(trial)

    assert run(begins_anew, tmp_path, until=2)[0] == "paused"
    with pytest.raises(LuthierError, match=r"got step 1 after step 2: the state restored is of step 2"):
        run(begins_anew, tmp_path, known=2)


def forgetful(trial: LiveTrial) -> None:
    """Saves, but never looks at what it saved."""
    for epoch in range(4):
        trial.save({"epoch": epoch + 1})
        trial.report(float(epoch), step=epoch + 1)


def plain(trial: LiveTrial) -> None:
    for epoch in range(4):
        trial.report(float(epoch), step=epoch + 1)


@pytest.mark.parametrize("function", [plain, forgetful])
def test_a_function_that_cannot_be_paused_hears_whether_it_goes_on(tmp_path: Path, function: Any) -> None:
    on, over = Parent(order="go", until=4), Parent(order="stop", reason="outranked")
    assert run(function, tmp_path, on, until=2)[0] == "finished"
    assert on.questions == [2]
    state, details = run(function, tmp_path, over, until=2)
    assert (state, details["reason"], details["step"]) == ("stopped", "outranked", 2)


def test_the_parent_pauses_at_the_next_report_and_a_function_that_swallows_it_hears_it_again(tmp_path: Path) -> None:
    parent, heard = Parent(), []

    def stubborn(trial: LiveTrial) -> None:
        for step in range(1, 5):
            try:
                trial.report(1.0, step=step)
            except TrialPaused:
                heard.append(step)

    parent.pausing = 7
    state, details = run(stubborn, tmp_path, parent)
    assert (state, details["reason"], details["step"]) == ("paused", "interrupted", 1)
    assert heard == [1, 2, 3, 4]
    assert parent.readings == [(1, 1.0)]


def test_the_length_of_a_training_may_be_unknown(tmp_path: Path) -> None:
    state, details = run(plain, tmp_path, until=1 << 31, steps=None)
    assert (state, details["step"], details["total_steps"]) == ("finished", 4, 4)


def test_a_returned_number_is_the_reading_of_the_last_step(tmp_path: Path) -> None:
    parent = Parent()
    assert run(lambda trial: 0.5, tmp_path, parent)[0] == "finished"
    assert parent.readings == [(4, 0.5)]


@pytest.mark.parametrize("step", [np.int64(2), np.array(2), torch.tensor(2)])
def test_a_step_may_be_a_whole_number_of_any_library(tmp_path: Path, step: Any) -> None:
    parent = Parent()
    run(lambda trial: trial.report(0.5, step=step), tmp_path, parent)
    assert encode(parent.said[-1][1])
    assert parent.readings == [(2, 0.5)]


@pytest.mark.parametrize("function", [lambda trial: trial.report(float("nan"), step=2), lambda trial: float("nan")])
def test_nan_fails_the_trial(tmp_path: Path, function: Any) -> None:
    state, details = run(function, tmp_path, steps=None, until=2)
    assert state == "failed"
    assert details["reason"].startswith("reported NaN at step")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda trial: None, "returned without a report"),
        (lambda trial: "0.9", "return None or a number, got '0.9' of type str"),
        (lambda trial: trial.report("0.9", step=1), "expects a number, got '0.9' of type str"),
        (lambda trial: trial.report(None, step=1), "expects a number, got None"),
        (lambda trial: trial.report(True, step=1), "expects a number, got True"),
        (lambda trial: trial.report(torch.zeros(2), step=1), "expects one number, got Tensor of shape"),
        (lambda trial: trial.report(1.0, step=-1), "whole number"),
        (lambda trial: trial.report(1.0, step=1.5), "whole number"),
        (lambda trial: trial.report(1.0, step=True), "whole number"),
        (lambda trial: trial.report(1.0, step=torch.tensor(2.0)), "whole number"),
        (lambda trial: trial.report(1.0, step=np.arange(2)), "whole number"),
        (lambda trial: [trial.report(1.0, step=step) for step in (2, 2)], "got step 2 after step 2"),
        (lambda trial: [trial.report(1.0, step=step) for step in (0, 1, 1)], "got step 1 after step 1"),
        (lambda trial: [trial.report(1.0, step=step) for step in (1, 0)], "got step 0 after step 1"),
        (lambda trial: trial.report(1.0, step=5), "tune was told steps=4"),
        (lambda trial: [trial.report(1.0, step=s) for s in range(5)], "got step 4, counted from 0, but .* steps=4"),
    ],
)
def test_wrong_reports_are_explained(tmp_path: Path, function: Any, said: str) -> None:
    with pytest.raises(LuthierError, match=said):
        run(function, tmp_path)


def test_only_the_process_that_runs_the_function_reports(tmp_path: Path) -> None:
    def train(trial: LiveTrial) -> None:
        trial._pid += 1
        trial.report(1.0, step=1)

    with pytest.raises(LuthierError, match="forked process"):
        run(train, tmp_path)


@pytest.mark.parametrize("state", [{"epoch": 3, 1: (2, None)}, {"w": torch.arange(4.0), "best": float("-inf")}, None])
def test_states_come_back_as_they_were(tmp_path: Path, state: Any) -> None:
    assert read_state(tmp_path) is None
    write_state(tmp_path, state, {"step": 2})
    got, note = read_state(tmp_path) or (None, {})
    assert str(got) == str(state)
    assert note == {"step": 2}


def test_a_state_that_cannot_be_stored_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"an array of <U1 at \['w'\]"):
        Saves(tmp_path).keep({"w": np.array(["a"])}, {})


def test_arrays_of_numpy_are_saved(tmp_path: Path) -> None:
    saves, weight = Saves(tmp_path), np.arange(3)
    saves.keep({"w": weight, "best": np.float32(0.5)}, {})
    weight += 1
    saves.write()
    state, _ = saves.read() or ({}, {})
    assert (state["w"].tolist(), state["best"]) == ([0, 1, 2], 0.5)


def test_a_state_is_copied_when_it_is_saved_and_written_when_it_must_be(tmp_path: Path) -> None:
    saves, weight = Saves(tmp_path), torch.zeros(3)
    saves.keep({"w": weight, "tied": weight}, {"step": 1})
    weight += 1
    assert saves.read() is None
    saves.write()
    state, _ = saves.read() or ({}, {})
    assert state["w"].sum() == 0
    assert state["w"].data_ptr() == state["tied"].data_ptr()
    saves._written_at -= 2
    saves.keep({"w": weight}, {"step": 1})
    saves.settle({"step": 2})
    assert (saves.read() or ({}, {}))[1] == {"step": 2}


def test_a_watched_trial_ends_when_its_numbers_do(tmp_path: Path) -> None:
    def train(trial: LiveTrial) -> None:
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e20)
        with trial.watch(model, optimizer) as watch:
            for _ in range(100):
                loss = (model(torch.randn(8, 4)) ** 2).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                watch.step(loss)
        trial.report(1.0, step=1)

    state, details = run(train, tmp_path / "t")
    assert state == "failed"
    assert details["reason"].startswith("nan_inf: ")
    assert (tmp_path / "t" / "vitals.jsonl").stat().st_size > 0
    assert (tmp_path / "t" / "params.json").is_file()


@pytest.mark.parametrize(("kind", "told"), [("steep", "diverged: the loss is "), ("dead", "dead network: "), ("", "")])
def test_a_watched_trial_ends_when_it_cannot_become_anything(tmp_path: Path, kind: str, told: str) -> None:
    def train(trial: LiveTrial) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        if kind == "dead":
            nn.init.constant_(model[0].bias, -100.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with trial.watch(model, optimizer, stop=trial.params["stop"]) as watch:
            for epoch in range(1, 5):
                for _ in range(30):
                    x = torch.randn(16, 4)
                    scale = 300.0 if kind == "steep" and epoch > 1 else 1.0  # for good, and never infinite
                    loss = scale * nn.functional.mse_loss(model(x), x.sum(1, keepdim=True))
                    optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
                    optimizer.step()
                    watch.step(loss, inputs=x, targets=x.sum(1, keepdim=True))
                trial.report(1.0, step=epoch)

    state, details = run(train, tmp_path / "t", values={"stop": True})
    assert (state, details["reason"][: len(told)]) == ("failed" if kind else "finished", told)
    assert run(train, tmp_path / "u", values={"stop": False})[0] == "finished"
    if kind:
        assert run(train, tmp_path / "v", values={"stop": True}, guarded=False)[0] == "finished"


def test_a_worker_that_waits_for_an_answer_leaves_with_its_parent_and_never_imports_torch(tmp_path: Path) -> None:
    def train(trial: Any) -> None:
        assert "torch" not in sys.modules
        trial.report(1.0, step=1)

    ship(tmp_path / "task", function=train)
    command = [sys.executable, "-m", "luthier.tuning.worker"]
    study = {"order": "prepare", "folder": str(tmp_path / "task"), "reference": None, "log": str(tmp_path / "log")}
    order = {"order": "train", "number": 0, "folder": str(tmp_path), "values": {}, "seed": 0, "until": 1, "steps": 9}
    order["reported"] = {"value": "val_value"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(encode(study) + encode(order))
        process.stdin.flush()
        inbox, heard = Inbox(), []
        while "asked" not in heard and (piece := os.read(process.stdout.fileno(), 1 << 16)):
            heard += [message["event"] for message in inbox.feed(piece)]
        assert heard == ["ready", "row", "asked"]
        process.stdin.close()
        assert process.wait(20) is not None


def test_the_exception_is_public() -> None:
    assert luthier.TrialPaused is TrialPaused
