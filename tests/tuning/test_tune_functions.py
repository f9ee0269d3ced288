"""Whole studies of training functions on worker processes: cheap ones without torch."""

import atexit
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch

import luthier
from luthier.errors import LuthierError
from luthier.recipe import Recipe
from luthier.show.terminal import TuneConsole
from luthier.show.verdict import winner_changes
from luthier.tuning.ledger import StudyError, read_events
from luthier.tuning.optuna_store import url
from luthier.tuning.space import choice, fixed, integers, loguniform, uniform
from luthier.tuning.starts import NAMED
from luthier.tuning.store_sqlite import SqliteStore
from luthier.tuning.study import Study
from luthier.tuning.tune import tune

SPACE: Any = {"x": uniform(0, 1), "kind": choice("a", "b")}


def saving_function() -> Any:
    def saving(trial: Any) -> None:  # sent to the workers by value: they need not import this module
        state = trial.restore()
        with (trial.folder / "starts").open("a") as file:
            file.write(f"{0 if state is None else state}\n")
        for step in range(1 if state is None else state + 1, 10):
            trial.save(step)
            trial.report(trial.params["x"] * step, step=step)

    return saving


def starts(study: Study, number: int) -> list[int]:
    return [int(line) for line in (study.trials[number].folder / "starts").read_text().split()]


def test_a_function_is_tuned_paused_resumed_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call: Any = {"space": SPACE, "steps": 9, "workers": 2, "folder": tmp_path / "s", "strategy": "halving"}
    tune(saving_function(), trials=5, **call)
    study = tune(saving_function(), trials=12, console=TuneConsole(), **call)
    assert [trial.arm for trial in study.trials] == ["all"] * 12
    assert {trial.state for trial in study.trials} == {"finished", "stopped"}
    best = study.best
    assert best is not None
    assert best.value == pytest.approx(9 * best.params["x"])
    assert best.params["x"] == max(trial.params["x"] for trial in study.trials if trial.state == "finished")
    assert starts(study, best.number) in ([0, 1, 3], [0])
    assert [row["step"] for row in best.rows] == list(range(1, 10))
    assert {starts(study, trial.number)[-1] for trial in study.trials} > {0}
    assert study.comparison is None
    with pytest.raises(StudyError, match=r"has no recipe: read study\.best\.params"):
        study.recipe(best.number)
    assert "tuning saving for the highest validation value" in capsys.readouterr().out
    assert "Parameters of trial" in study.report(tmp_path / "report.html").read_text()
    assert Study.open(tmp_path / "s").best == best


def test_with_a_start_trial_0_is_the_baseline_and_the_winner_is_compared_with_it(tmp_path: Path) -> None:
    def loss(trial: Any) -> None:
        for step in (1, 2, 3, 4):
            trial.report((trial.params["lr"] - 0.1) ** 2 / step + 1e-6 * trial.seed, step=step)

    start, call = {"lr": 0.9}, {"space": {"lr": loguniform(1e-3, 1)}, "workers": 1, "folder": tmp_path}
    study = tune(loss, trials=5, start=start, repeats=2, direction="min", metric="loss", sampler="random", **call)
    first = study.trials[0]
    assert (first.arm, first.params, first.state, first.total_steps) == ("baseline", start, "finished", 4)
    assert study.comparison is not None
    assert study.comparison.better
    assert [trial.seed for trial in study.trials if trial.of is not None] == [1, 1, 2, 2]
    cut = [trial for trial in study.trials if trial.state == "stopped"]
    assert all("trial.save can be paused" in trial.reason and trial.step < 4 for trial in cut)
    assert "Changing lr took" in study.report(tmp_path / "report.html").read_text()


def test_bad_ends_cost_their_trial_only_and_are_explained(tmp_path: Path) -> None:
    def fates(trial: Any) -> None:
        print(f"trial {trial.number} prints")
        if trial.number == 2:
            raise KeyError("missing column")
        if trial.number == 3:
            sys.exit(3)
        if trial.number == 4:
            os._exit(7)
        if trial.number == 5:
            time.sleep(600)
        if trial.number == 6 and os.fork() == 0:
            time.sleep(600)  # a child that outlives the trial
        trial.report(0.5, step=1)

    call: Any = {"space": SPACE, "steps": 1, "workers": 1, "sampler": "random"}
    study = tune(fates, trials=8, folder=tmp_path, trial_timeout=1.5, **call)
    states = [trial.state for trial in study.trials]
    assert states == ["finished"] * 2 + ["failed"] * 4 + ["finished"] * 2
    reasons = [trial.reason for trial in study.trials]
    assert re.fullmatch(r"KeyError: 'missing column' \(line \d+ of test_tune_functions.py\)", reasons[2])
    assert reasons[3].startswith("SystemExit: 3 (line ")
    assert reasons[4].startswith("the worker process exited with code 7")
    assert study.trials[4].crashes == 2
    assert reasons[5].startswith("silent for 1.5 s: its worker was killed")
    log = (tmp_path / "workers" / "worker-0.log").read_text()
    assert "trial 0 prints" in log
    assert "KeyError: 'missing column'" in log


def test_a_killed_worker_costs_the_time_since_the_last_save(tmp_path: Path) -> None:
    def fragile(trial: Any) -> None:
        state = trial.restore()
        for step in range(1 if state is None else state + 1, 6):
            if step == 3:
                time.sleep(1.1)  # what is saved more often than once a second is not written each time
            trial.save(step)
            trial.report(1.0, step=step)
            if step == 4 and state is None:
                os.kill(os.getpid(), signal.SIGKILL)

    study = tune(fragile, space=SPACE, steps=5, trials=1, workers=1, folder=tmp_path, strategy="full")
    trial = study.trials[0]
    assert (trial.state, trial.crashes, trial.step) == ("finished", 1, 5)
    assert [row["step"] for row in trial.rows] == [1, 2, 3, 4, 5]


def test_a_signal_to_end_is_for_the_parent_and_for_processes_of_the_training(tmp_path: Path) -> None:
    def stopped(trial: Any) -> float:
        import multiprocessing

        for number in (signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join(30)
        return float(child.exitcode or 0)

    trial = tune(stopped, space=SPACE, trials=1, workers=1, folder=tmp_path).trials[0]
    assert (trial.state, trial.value, trial.crashes) == ("finished", -signal.SIGTERM, 0)


def test_a_worker_whose_accelerator_is_lost_is_replaced(tmp_path: Path) -> None:
    def asserting(trial: Any) -> float:
        import types

        def synchronize() -> None:
            raise RuntimeError("CUDA error: device-side assert triggered")

        if trial.number == 1:
            cuda = types.SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize)
            sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)  # type: ignore[assignment]
            synchronize()
        return float(os.getpid())

    study = tune(asserting, space=SPACE, trials=4, workers=1, folder=tmp_path, strategy="full")
    assert [trial.state for trial in study.trials] == ["finished", "failed", "finished", "finished"]
    first, _, third, last = (trial.value for trial in study.trials)
    assert first != third == last
    assert [trial.crashes for trial in study.trials] == [0] * 4


def test_trials_of_a_study_that_is_gone_are_not_taken_up(tmp_path: Path) -> None:
    call: Any = {"space": SPACE, "steps": 9, "trials": 1, "workers": 1, "folder": tmp_path}
    tune(saving_function(), **call)
    (tmp_path / "study.db").unlink()
    with pytest.raises(StudyError, match="trials holds trials whose study is gone: remove that folder"):
        tune(saving_function(), **call)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_trial_that_always_kills_its_worker_is_given_up(tmp_path: Path, deterministic: bool) -> None:
    def deadly(trial: Any) -> None:
        trial.restore()
        for step in range(1, 6):
            trial.report(0.5, step=step)
            if step == 4:
                time.sleep(0.2)
                os._exit(3)

    with pytest.raises(StudyError, match="exited with code 3"):
        tune(
            deadly,
            space=SPACE,
            steps=6,
            trials=1,
            workers=1,
            folder=tmp_path,
            strategy="full",
            deterministic=deterministic,
        )
    trial = Study.open(tmp_path).trials[0]
    assert (trial.state, trial.step) == ("failed", 4)
    assert trial.crashes <= 4


def test_ctrl_c_leaves_a_study_that_goes_on(tmp_path: Path) -> None:
    pressed: list[int] = []

    class Press:
        def started(self, study: Study) -> None: ...

        def trial(self, trial: Any) -> None:
            if trial.step == 3 and not pressed:
                pressed.append(trial.number)
                os.kill(os.getpid(), signal.SIGINT)

        def progress(self, info: Any) -> None:
            doing.append(info["doing"])

        def widened(self, ranges: Any) -> None: ...

        def finished(self, study: Study) -> None: ...

    doing: list[str] = []

    def slow(trial: Any) -> None:
        state = trial.restore()
        for step in range(1 if state is None else state + 1, 10):
            time.sleep(0.05)
            trial.save(step)
            trial.report(1.0, step=step)

    call: Any = {"space": SPACE, "steps": 9, "trials": 1, "workers": 1, "folder": tmp_path, "strategy": "full"}
    study = tune(slow, console=Press(), **call)
    assert study.ended == "interrupted"
    assert list(dict.fromkeys(doing)) == ["search", "stopping"]
    assert study.trials[0].state == "paused"
    assert 3 <= study.trials[0].step < 9
    study = tune(slow, **call)
    assert (study.ended, study.trials[0].state, len(study.trials[0].rows)) == ("finished", "finished", 9)


def test_another_function_or_space_is_refused_in_the_same_folder(tmp_path: Path) -> None:
    def one(trial: Any) -> float:
        return 1.0

    def other(trial: Any) -> float:
        return 2.0

    call: Any = {"trials": 1, "workers": 1, "folder": tmp_path, "sampler": "random"}
    tune(one, space={"x": uniform(0, 1)}, **call)
    with pytest.raises(StudyError, match="the code of the function has changed"):
        tune(other, space={"x": uniform(0, 1)}, **call)
    with pytest.raises(StudyError, match="space x"):
        tune(one, space={"x": uniform(0, 2)}, **call)
    with pytest.raises(StudyError, match="task direction"):
        tune(one, space={"x": uniform(0, 1)}, direction="min", **call)


def test_a_script_needs_no_main_guard_and_a_partial_is_a_function(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import functools, json, luthier\n"
        "OFFSET = 5\n"
        "def train(trial, scale):\n    return scale * trial.params['x'] + OFFSET\n"
        "study = luthier.tune(functools.partial(train, scale=0), space={'x': luthier.uniform(0, 1)}, trials=2,\n"
        "                     workers=1, sampler='random')\n"
        "print(json.dumps([study.name, study.best.value]))\n"
    )
    done = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, check=True)
    *shown, told = done.stdout.splitlines()
    assert json.loads(told) == ["train", 5.0]
    assert shown[0].startswith("tuning train for the highest validation value: ")  # unless console=False
    assert (tmp_path / "studies" / "train" / "study.db").is_file()


def test_workers_find_the_modules_that_their_parent_finds(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "queue.py").write_text("raise ImportError('a file of the project, which hides a module of Python')")
    script = tmp_path / "scripts" / "go.py"
    script.write_text(
        "import luthier\n"
        "def train(trial):\n    return trial.params['x']\n"
        "study = luthier.tune(train, space={'x': luthier.uniform(0, 1)}, trials=1, workers=1, console=False)\n"
        "print(study.trials[0].state)\n"
    )
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "finished\n"


def test_programs_that_a_training_starts_look_for_modules_as_those_of_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(trial: Any) -> float:
        (trial.folder / "path").write_text(subprocess.check_output(["printenv"], text=True))
        return 1.0

    call: Any = {"space": {"x": uniform(0, 1)}, "trials": 1, "workers": 1}
    for own in ("/somewhere:/else", None):
        monkeypatch.setenv("PYTHONPATH", own) if own else monkeypatch.delenv("PYTHONPATH", raising=False)
        study = tune(train, folder=tmp_path / str(own).strip("/").replace("/", ""), **call)
        lines = (study.trials[0].folder / "path").read_text().splitlines()
        assert [line for line in lines if "PYTHONPATH" in line] == ([f"PYTHONPATH={own}"] if own else [])


@pytest.mark.parametrize("ends", ["at once", "with an error", "never"])
def test_what_others_do_at_the_end_of_a_process_is_done(tmp_path: Path, ends: str) -> None:
    def train(trial: Any) -> float:
        def bye() -> None:
            (trial.folder / "bye").write_text("")
            if ends == "never":
                time.sleep(600)
            if ends == "with an error":
                raise ValueError("cannot flush")

        (trial.folder / "pid").write_text(str(os.getpid()))
        atexit.register(bye)
        return 1.0

    study = tune(train, space={"x": uniform(0, 1)}, trials=2, workers=1, folder=tmp_path)
    assert [(trial.folder / "bye").exists() for trial in study.trials] == [ends != "never", True]
    with pytest.raises(ProcessLookupError):
        os.kill(int((study.trials[0].folder / "pid").read_text()), 0)
    assert ("cannot flush" in (tmp_path / "workers" / "worker-0.log").read_text()) == (ends == "with an error")


class Thing:
    def method(self, trial: Any) -> float:
        return float(trial.params["x"])


def locked() -> Any:
    lock = threading.Lock()

    def train(trial: Any) -> None:
        with lock:
            trial.report(1.0, step=1)

    return train


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {}}, "space is empty"),
        ({"space": None}, "needs a space"),
        ({"space": {"x": (0, 1)}}, "must be a range"),
        ({"space": [("x", uniform(0, 1)), ("x", uniform(0, 2))]}, "'x' twice"),
        ({"task": lambda: 1.0}, "takes one argument, the trial"),
        ({"task": lambda trial, more: 1.0}, "takes one argument, the trial"),
        ({"task": Thing}, "a function of one argument"),
        ({"task": torch.nn.Linear(1, 1)}, "a function of one argument"),
        ({"task": locked()}, r"lock \(lock\), which the function uses, cannot be sent"),
        ({"recipe": Recipe()}, "takes no recipe"),
        ({"direction": "up"}, "the direction of value must be 'max' or 'min'"),
        ({"metric": "val_loss"}, "say which way val_loss improves: direction='min', or 'max'"),
        ({"metric": "state"}, "'state' is what a study calls something of its trials: give the metric another name"),
        ({"space": uniform(0, 1)}, r"a space is ranges by name, such as .*, got 0\.\.1"),
        ({"space": {1: uniform(0, 1)}}, "a space names its ranges by text, such as 'lr', got 1"),
        ({"start": 0.5}, r"start must be values by name, such as \{'lr': 0.1\}, got 0.5"),
        ({"groups": ["x"], "start": {"x": 0.5}}, r"groups are lists of fields by name, such as .*, got \['x'\]"),
        ({"groups": {"a": None}, "start": {"x": 0.5}}, "groups are lists of fields by name"),
        ({"metric": "val acc"}, "needs a name such as 'accuracy'"),
        ({"steps": 0}, "steps must be"),
        ({"start": {"x": 1, "y": 2}}, "start names 'y'"),
        ({"start": {}}, "x is missing"),
        ({"workers": 0}, "workers must be"),
        ({"workers": 100_000}, r"workers must be at most \d+ on this machine of \d+ cores, got 100000"),
        ({"budget": "0s"}, "a budget is a time"),
        ({"first": {"x": 0.5}}, r"first must be a list of configurations such as \[\{'lr': 0.1\}\], got \{'x'"),
        ({"first": [{}]}, "first must be a list of configurations"),
        ({"first": None}, "first must be a list of configurations"),
        ({"first": [{"x": 0.5}, {"X": 0.5}]}, r"first\[1\] names 'X', which the space does not have: known are x"),
        ({"first": [{"x": 1.5}]}, r"first\[0\]: x=1.5 is not in 0\.\.1: widen the range"),
        ({"first": [{"x": "0.5"}]}, r"first\[0\]: x='0.5' is not in"),
        ({"first": [{"x": 0.5}], "constraints": [lambda v: v["x"] < 0.3]}, r"constraints refuse first\[0\], \{'x': 0"),
        (
            {
                "space": {"o": choice("adam", "sgd"), "m": uniform(0, 1).when("o", "sgd")},
                "first": [{"o": "adam", "m": 0.5}],
            },
            r"first\[0\]: m has no place beside \{'o': 'adam'\}: leave it out, or name what brings it in",
        ),
        (
            {
                "space": {"a": uniform(0, 1), "b": uniform(0, 1)},
                "groups": {"one": ["a"], "other": ["b"]},
                "start": {"a": 0.5, "b": 0.5},
                "first": [{"a": 0.1, "b": 0.2}],
            },
            r"first\[0\] names a, b, which no single group tunes",
        ),
        ({"target": "0.9"}, "target must be a number that ends the search when it is reached, got '0.9'"),
        ({"target": float("nan")}, "target must be a number"),
        ({"target": True}, "target must be a number"),
        ({"console": "loud"}, "console must be True, False or a listener as .*, got 'loud'"),
        ({"trial_timeout": 0}, "time above zero"),
        ({"groups": {"a": ["z"]}}, "names z"),
        (
            {
                "space": {"o": choice("adam", "sgd"), "m": uniform(0, 1).when("o", "sgd")},
                "groups": {"a": ["o"], "b": ["m"]},
                "start": {"o": "adam"},
            },
            "m is missing",
        ),
    ],
)
def test_wrong_calls_are_explained(tmp_path: Path, changes: Any, said: str) -> None:
    call: Any = {"task": Thing().method, "space": {"x": uniform(0, 1)}, "folder": tmp_path / "s", **changes}
    with pytest.raises(LuthierError, match=said):
        tune(**call)


def test_settings_of_functions_are_refused_for_tasks() -> None:
    with pytest.raises(LuthierError, match="steps, direction: for a training function only"):
        tune("digits", steps=3, direction="max")


@pytest.mark.parametrize("sampler", ["auto", "random", "grid"])
def test_configurations_that_the_call_names_come_first_and_once(tmp_path: Path, sampler: str) -> None:
    space: Any = {"x": choice(0.1, 0.2, 0.3, 0.4), "k": choice("a", "b"), "m": choice(1, 2, 3).when("k", "b")}
    first: Any = [{"x": np.float64(0.3)}, {"k": "b", "x": 0.1}, {"m": 2, "k": "b"}]

    def train(trial: Any) -> Any:
        return trial.params["x"]

    call: Any = {"space": space, "workers": 1, "folder": tmp_path, "sampler": sampler, "steps": 1}
    study = tune(train, trials=2, first=first, **call)
    assert [trial.params for trial in study.trials] == [{"x": 0.3, "k": "a"}, {"x": 0.1, "k": "b", "m": 2}]
    assert [trial.source for trial in study.trials] == [NAMED] * 2
    study = tune(train, trials=50, first=[*first, {"x": 0.4}], **call)
    assert [trial.params for trial in study.trials[2:4]] == [{"x": 0.2, "k": "b", "m": 2}, {"x": 0.4, "k": "a"}]
    assert len(study.trials) == 4 * (1 + 3)
    assert len({json.dumps(trial.params, sort_keys=True) for trial in study.trials}) == 16


def test_what_the_call_names_goes_to_its_group_and_leaves_the_rest_at_the_start(tmp_path: Path) -> None:
    space: Any = {"a": uniform(0, 1), "b": uniform(0, 1), "c": uniform(0, 1)}
    call: Any = {"start": {"a": 0.5, "b": 0.25, "c": 0.75}, "groups": {"one": ["a"], "two": ["b", "c"]}, "repeats": 1}
    first = [{"c": 0.1}, {"a": 0.5}, {"c": 0.2}, {"a": 0.9}]
    study = tune(lambda trial: 1.0, space=space, first=first, trials=5, workers=1, folder=tmp_path, **call)
    named = [(trial.arm, trial.values) for trial in study.trials if trial.source == NAMED]
    assert named == [("one", {"a": 0.9}), ("two", {"b": 0.25, "c": 0.1}), ("two", {"b": 0.25, "c": 0.2})]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("direction", ["max", "min"])
def test_the_search_ends_at_its_target_and_goes_on_to_a_further_one(
    tmp_path: Path, direction: str, deterministic: bool
) -> None:
    sign = 1 if direction == "max" else -1

    def train(trial: Any) -> None:
        done = trial.restore() or 0
        for step in range(done + 1, 5):
            trial.save(step)
            trial.report(sign * (trial.params["x"] + step / 100), step=step)

    first = [{"x": place / 100} for place in range(10, 20)]
    call: Any = {"space": {"x": uniform(0, 1)}, "direction": direction, "steps": 4, "first": first, "workers": 1}
    call |= {"folder": tmp_path, "strategy": "full", "deterministic": deterministic, "trials": 10}
    study = tune(train, target=sign * 0.16, **call)
    under_way = 3 if deterministic else 0  # on the other virtual workers
    assert (study.ended, len(study.trials), study.settings["target"]) == ("target", 3 + under_way, sign * 0.16)
    study = tune(train, target=np.float64(sign * 0.195), **call)
    assert (study.ended, len(study.trials)) == ("target", 7 + under_way)
    assert [trial.params["x"] for trial in study.trials] == [each["x"] for each in first[: 7 + under_way]]
    study = tune(train, **call)
    assert (study.ended, len(study.trials)) == ("finished", 10)


def test_trainings_under_way_pause_when_the_target_is_reached(tmp_path: Path) -> None:
    def train(trial: Any) -> None:
        for step in range((trial.restore() or 0) + 1, 401):
            time.sleep(0 if trial.params["x"] > 0.5 else 0.05)
            trial.save(step)
            trial.report(trial.params["x"], step=step)

    call: Any = {"space": {"x": uniform(0, 1)}, "steps": 400, "strategy": "full", "folder": tmp_path, "workers": 2}
    study = tune(train, first=[{"x": 0.1}, {"x": 0.9}], trials=8, target=0.9, **call)
    assert study.ended == "target"
    assert [(trial.state, trial.params["x"]) for trial in study.trials] == [("paused", 0.1), ("finished", 0.9)]


def test_a_study_gives_back_what_its_trials_saved_and_a_table_of_them(tmp_path: Path) -> None:
    def train(trial: Any) -> None:
        trial.save({"weights": trial.params["x"]})
        if trial.params["x"] == 0.4:
            raise ValueError("no")
        trial.report(trial.params["x"], step=1)

    space: Any = {"x": choice(0.1, 0.2, 0.3, 0.4, 0.5), "m": choice(1, 2).when("x", 0.1)}
    study = tune(train, space=space, trials=20, workers=1, folder=tmp_path, sampler="grid", metric="score")
    assert study.saved() == {"weights": 0.5}
    rows = study.table()
    number = {row["params.x"]: row["number"] for row in rows}
    assert Study.open(tmp_path).saved(number[0.3]) == {"weights": 0.3}
    with pytest.raises(
        StudyError, match=r"saved is there: it never called trial\.save, or it is not among the best three"
    ):
        study.saved(number[0.1])
    with pytest.raises(StudyError, match="has trials 0 to 5, got 9"):
        study.saved(9)
    with pytest.raises(StudyError, match="has trials 0 to 5, got '9'"):
        study.saved("9")  # type: ignore[arg-type]
    with pytest.raises(StudyError, match=r"which leaves no record: call study\.saved\(\)"):
        study.record()
    assert sorted((row["params.x"], row["params.m"] or 0, row["score"], row["state"]) for row in rows) == [
        (0.1, 1, 0.1, "finished"),
        (0.1, 2, 0.1, "finished"),
        (0.2, 0, 0.2, "finished"),
        (0.3, 0, 0.3, "finished"),
        (0.4, 0, None, "failed"),
        (0.5, 0, 0.5, "finished"),
    ]
    assert rows[number[0.4]]["reason"].startswith("ValueError: no (line ")
    assert len({tuple(row) for row in rows}) == 1


@pytest.mark.parametrize("deterministic", [False, True])
def test_trials_that_stop_themselves_have_ended(tmp_path: Path, deterministic: bool) -> None:
    def train(trial: Any) -> None:
        for step in range(trial.restore() or 0, 6):
            trial.save(step + 1)
            trial.report(trial.params["x"] * (step + 1), step=step)
            if trial.params["x"] < 0.5 and step == 2:
                raise luthier.TrialPaused("no gain")

    call: Any = {"space": {"x": uniform(0, 1)}, "steps": 6, "deterministic": deterministic, "strategy": "full"}
    study = tune(train, trials=12, workers=2, folder=tmp_path, **call)
    states = {(trial.params["x"] < 0.5, trial.state, trial.step, trial.reason) for trial in study.trials}
    assert states == {
        (True, "stopped", 3, "by the function: no gain"),
        (False, "finished", 6, "trained to its end, step 6"),
    }
    assert Study.open(tmp_path).trials == study.trials


def test_a_study_whose_trials_all_stop_themselves_says_so(tmp_path: Path) -> None:
    def train(trial: Any) -> None:
        trial.report(1.0, step=1)
        raise luthier.TrialPaused

    with pytest.raises(StudyError, match="no trial was trained to its end, each one stopped before"):
        tune(train, space={"x": uniform(0, 1)}, trials=3, workers=1, folder=tmp_path)


def test_an_object_that_can_be_called_is_a_function(tmp_path: Path) -> None:
    study = tune(Called(2.0), space={"x": uniform(0, 1)}, trials=2, workers=1, folder=tmp_path)
    assert (study.name, [trial.state for trial in study.trials]) == ("Called", ["finished"] * 2)
    with pytest.raises(StudyError, match="the arguments of the function, or what it closes over, have changed"):
        tune(Called(3.0), space={"x": uniform(0, 1)}, trials=2, workers=1, folder=tmp_path)


class Called:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, trial: Any) -> float:
        return self.factor * float(trial.params["x"])


def test_a_study_that_never_read_anything_begins_anew_when_the_mistake_is_mended(tmp_path: Path) -> None:
    call: Any = {"space": {"x": uniform(0, 1)}, "start": {"x": 0.5}, "workers": 1, "folder": tmp_path, "repeats": 1}

    def train(trial: Any) -> None:
        trial.report(trial.parms["x"], step=1)

    told = r"first 3 trials all failed.* AttributeError.* \(line \d+ of test_tune_functions.py\)\. What the trainings"
    with pytest.raises(StudyError, match=told):
        tune(train, trials=9, **call)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.create_study(study_name="train", storage=url(tmp_path), direction="maximize")  # as a longer call would have

    def train(trial: Any) -> None:  # type: ignore[no-redef]
        trial.report(trial.params["x"], step=1)

    study = tune(train, trials=3, direction="min", **call)
    assert [trial.state for trial in study.trials] == ["finished"] * 5
    assert study.comparison is not None
    assert Study.open(tmp_path).trials == study.trials
    stored = optuna.load_study(study_name="train", storage=url(tmp_path))
    assert stored.direction.name == "MINIMIZE"
    assert [trial.state.name for trial in stored.trials] == ["COMPLETE"] * 3

    def train(trial: Any) -> None:  # type: ignore[no-redef]
        trial.report(trial.params["x"] + 1, step=1)

    with pytest.raises(
        StudyError, match=r"\(the code of the function has changed\): choose another folder, remove this"
    ):
        tune(train, trials=4, direction="min", **call)


def test_other_arguments_are_another_study(tmp_path: Path) -> None:
    def train(trial: Any, goal: float) -> float:
        return -abs(float(trial.params["x"]) - goal)

    call: Any = {"space": {"x": uniform(0, 1)}, "workers": 1, "folder": tmp_path, "trials": 2}
    tune(functools.partial(train, goal=0.1), **call)
    tune(functools.partial(train, goal=0.1), **call)
    with pytest.raises(StudyError, match=r"\(the arguments of the function, or what it closes over, have changed\)"):
        tune(functools.partial(train, goal=0.9), **call)


@pytest.mark.parametrize("saves", [False, True])
def test_those_that_fail_late_do_not_keep_out_those_that_would_not(tmp_path: Path, saves: bool) -> None:
    def train(trial: Any) -> None:
        x = trial.params["x"]
        for step in range((trial.restore() or 0) + 1 if saves else 1, 5):
            if saves:
                trial.save(step)
            trial.report(float("nan") if x > 0.3 and step == 4 else x * step, step=step)

    study = tune(train, space={"x": uniform(0.01, 1)}, trials=20, steps=4, workers=1, folder=tmp_path)
    assert study.best is not None
    best = max(trial.params["x"] for trial in study.trials if trial.params["x"] <= 0.3)
    assert study.best.params["x"] == best


def test_retrainings_without_a_baseline_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def train(trial: Any) -> float:
        return 1.5 if trial.seed else 0.5

    call: Any = {"direction": "maximize", "space": {"x": uniform(0, 1)}, "trials": 2, "repeats": 2, "workers": 1}
    study = tune(train, folder=tmp_path, **call)
    assert study.direction == "max"
    assert "Best validation value so far: 0.5, trial 0; with 2 seeds more 1.5 ± 0." in capsys.readouterr().out


def test_a_console_of_few_characters_does_not_end_a_study(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import luthier\n"
        "def train(trial):\n    assert trial.number != 1\n    return 1.0\n"
        "print(luthier.tune(train, space={'x': luthier.uniform(0, 1)}, trials=4, workers=1).ended)\n"
    )
    for encoding in ("ascii", "latin-1"):
        surroundings = {**os.environ, "PYTHONIOENCODING": encoding}
        command = [sys.executable, str(script)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, env=surroundings, check=True)
        assert b"failed" in done.stdout or encoding != "ascii"
        assert done.stdout.endswith(b"finished\n")


def test_a_budget_too_small_says_so(tmp_path: Path) -> None:
    def slow(trial: Any) -> None:
        trial.restore()
        for step in range(1, 1000):
            time.sleep(0.02)
            trial.save(step)
            trial.report(1.0, step=step)

    with pytest.raises(StudyError, match="budget of 1 s was too small for one whole training"):
        tune(functools.partial(slow), space=SPACE, steps=1000, budget=1, workers=1, folder=tmp_path, sampler="random")
    assert [trial.state for trial in Study.open(tmp_path).trials[:1]] == ["paused"]


def test_a_function_that_does_not_hear_is_killed_when_the_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaf(trial: Any) -> None:
        trial.report(1.0, step=1)
        time.sleep(600)

    monkeypatch.setattr("luthier.tuning.calls._GRACE_S", 0.3)
    with pytest.raises(StudyError, match="too small for one whole training"):
        tune(deaf, space=SPACE, steps=2, budget=1, workers=1, folder=tmp_path, strategy="full")
    trial = Study.open(tmp_path).trials[0]
    assert (trial.state, trial.step, trial.crashes) == ("paused", 1, 0)


def test_constraints_hold_for_every_trial(tmp_path: Path) -> None:
    def small(values: dict[str, Any]) -> bool:
        return bool(values["x"] + values["y"] < 0.8)

    def train(trial: Any) -> None:
        trial.report(trial.params["x"] + trial.params["y"], step=1)

    space = {"x": uniform(0.0, 1.0), "y": uniform(0.0, 1.0)}
    study = tune(train, space=space, steps=1, trials=20, workers=1, folder=tmp_path / "a", constraints=[small])
    assert len(study.trials) == 20
    assert all(small(trial.values) for trial in study.trials)
    with pytest.raises(LuthierError, match="constraints refuse all"):
        tune(train, space=space, trials=3, workers=1, folder=tmp_path / "b", constraints=[lambda _: False])
    with pytest.raises(LuthierError, match="list of functions"):
        tune(train, space=space, trials=3, workers=1, folder=tmp_path / "c", constraints=small)  # type: ignore[arg-type]


def test_an_end_and_the_order_that_follows_are_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[list[str]] = []
    commit = SqliteStore.commit

    def counting(store: SqliteStore, rows: Any, owner: str, lease_s: float) -> bool:
        commits.append([kind for _, _, kind, _ in rows])
        return commit(store, rows, owner, lease_s)

    monkeypatch.setattr(SqliteStore, "commit", counting)
    call: Any = {"sampler": "random", "strategy": "full", "steps": 9, "workers": 1}
    tune(saving_function(), space=SPACE, trials=8, folder=tmp_path / "s", **call)
    assert sum("finished" in kinds and "assigned" in kinds for kinds in commits) == 7


def test_what_has_ended_does_not_wait_for_a_slow_sampler(tmp_path: Path) -> None:
    durable: list[int] = []

    def slow(view: Any) -> dict[str, Any]:
        durable.append(sum(event.kind == "finished" for event in read_events(tmp_path / "s")))
        time.sleep(0.2)
        return {"x": len(durable) / 10, "kind": "a"}

    call: Any = {"sampler": slow, "strategy": "full", "steps": 9, "workers": 1}
    tune(saving_function(), space=SPACE, trials=4, folder=tmp_path / "s", **call)
    assert durable == [0, 1, 2, 3]


def test_groups_keep_the_other_parameters_where_the_search_starts(tmp_path: Path) -> None:
    def both(trial: Any) -> float:
        (trial.folder / "told").write_text(repr(sorted(trial.params.items())))
        return float(trial.params["a"] - trial.params["b"])

    space: Any = {"a": uniform(0, 1), "b": uniform(0, 1)}
    call: Any = {"space": space, "groups": {"first": ["a"], "second": ["b"]}, "workers": 1, "folder": tmp_path}
    with pytest.raises(LuthierError, match=r"groups tune some parameters .* add start="):
        tune(both, trials=3, **call)
    study = tune(both, trials=5, start={"a": 0.25, "b": 0.75}, sampler="random", **call)
    assert [trial.state for trial in study.trials] == ["finished"] * 5
    for trial in Study.open(tmp_path).trials:
        values = {"a": 0.25, "b": 0.75} | trial.values
        assert (trial.folder / "told").read_text() == repr(sorted(values.items()))
        assert trial.params == values
        assert len(trial.values) == (2 if trial.arm == "baseline" else 1)


def test_lists_among_the_values_do_not_keep_a_study_from_going_on(tmp_path: Path) -> None:
    space: Any = {
        "layers": choice((64, 64), (128,)),
        "nested": choice([[3, 3], [2, 2]], [[1]]),
        "schedule": choice([10, 20], [5, 15]),
        "rate": uniform(0, 1).when("layers", (64, 64)),
    }
    start = {"layers": (64, 64), "nested": [[1]], "schedule": [5, 15], "rate": 0.5}

    def rate(trial: Any) -> None:
        for step in (1, 2, 3, 4):
            trial.report(trial.params.get("rate", 0.1) * step, step=step)

    call: Any = {"space": space, "start": start, "workers": 1, "folder": tmp_path, "steps": 4, "strategy": "halving"}
    tune(rate, trials=4, **call)
    assert len(tune(rate, trials=8, **call).trials) == 8


def test_a_start_has_what_its_conditions_allow_and_so_have_the_shown_values(tmp_path: Path) -> None:
    space: Any = {"optimizer": choice("adam", "sgd"), "momentum": uniform(0.5, 0.9).when("optimizer", "sgd")}

    def told(trial: Any) -> float:
        return float(len(trial.params))

    start = {"optimizer": "sgd", "momentum": 0.9}
    study = tune(told, space=space, start=start, trials=8, workers=1, folder=tmp_path / "a", sampler="random")
    by = {trial.values["optimizer"]: study.full_values(trial) for trial in study.trials}
    assert by["adam"] == {"optimizer": "adam", "momentum": None}
    assert by["sgd"]["momentum"] is not None
    first = tune(told, space=space, start={**start, "optimizer": "adam"}, trials=1, workers=1, folder=tmp_path / "b")
    assert (first.trials[0].params, first.trials[0].value) == ({"optimizer": "adam"}, 1.0)


def test_a_start_may_hold_numbers_of_numpy(tmp_path: Path) -> None:
    def told(trial: Any) -> float:
        return float(trial.params["n"])

    study = tune(told, space={"n": integers(1, 9)}, start={"n": np.int64(3)}, trials=1, workers=1, folder=tmp_path)
    assert study.trials[0].value == 3.0


@pytest.mark.parametrize("name", ["what?", "a%20b", "sweep{lr=0.1}", "a{0}", "x#y", "50%", "ü b"])
def test_a_folder_may_be_called_what_means_something_to_databases(tmp_path: Path, name: str) -> None:
    call: Any = {"space": SPACE, "workers": 1}
    tune(lambda trial: 0.5, trials=1, folder=tmp_path / "a b", **call)
    tune(lambda trial: 1.0, trials=2, folder=tmp_path / name, **call)
    assert Study.open(tmp_path / name).best is not None
    read = optuna.load_study(study_name="lambda", storage=url(tmp_path / name))
    assert read.best_value == 1.0
    assert {each.name for each in tmp_path.iterdir()} == {"a b", name}


def test_a_folder_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    study = tune(lambda trial: 1.0, space=SPACE, trials=1, workers=1, folder="~/study")
    assert study.folder == tmp_path / "study"
    assert Study.open("~/study").best is not None


def test_a_start_that_no_log_scale_holds_is_stored_too(tmp_path: Path) -> None:
    def told(trial: Any) -> float:
        return float(trial.params["lr"])

    call: Any = {"space": {"lr": loguniform(1e-6, 0.1)}, "start": {"lr": 0.0}, "workers": 1, "folder": tmp_path}
    tune(told, trials=2, **call)
    assert len(tune(told, trials=3, **call).trials) == 3


def test_a_report_tells_what_a_winner_adds_to_a_conditional_start(tmp_path: Path) -> None:
    space: Any = {"optimizer": choice("adam", "sgd"), "momentum": uniform(0.5, 0.9).when("optimizer", "sgd")}
    space["lr"] = fixed(0.1)

    def better_with_momentum(trial: Any) -> float:
        return float(trial.params.get("momentum", 0.0))

    start = {"optimizer": "adam", "lr": 0.1}
    study = tune(better_with_momentum, space=space, start=start, trials=6, workers=1, folder=tmp_path)
    assert study.comparison is not None
    changes = winner_changes(study, study.comparison.winner_number)
    assert changes == {"optimizer": ("adam", "sgd"), "momentum": (None, study.best.values["momentum"])}
    page = study.report(tmp_path / "report.html").read_text()
    assert "As the search read them" in page
    assert "Retrained on the same seeds" not in page
