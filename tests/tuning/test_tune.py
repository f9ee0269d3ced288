"""Whole studies on worker processes, small ones; killed and resumed."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import luthier
from luthier.errors import LuthierError
from luthier.recipe import Recipe
from luthier.show.terminal import TuneConsole
from luthier.task import Task
from luthier.tuning.asking import budget_of
from luthier.tuning.budgets import seconds
from luthier.tuning.ledger import StudyError, read_events
from luthier.tuning.optuna_store import NUMBER, url
from luthier.tuning.searched import derived_for, recipe_search
from luthier.tuning.space import choice, loguniform, uniform
from luthier.tuning.study import Study
from luthier.tuning.tune import tune

SPACE: Any = {"lr": loguniform(1e-3, 0.3), "batch_size": choice(16, 32)}
RECIPE = Recipe(optimizer="sgd", lr=0.001, batch_size=32, epochs=9)
workers_of = runpy.run_path(str(Path(__file__).parents[2] / "bench" / "chaos.py"))["workers_of"]


def data(n: int, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=generator)
    return x, (x[:, :3] + 0.3 * torch.randn(n, 3, generator=generator)).argmax(1)


def tiny_task(model: Any = None, name: str = "tiny") -> Task:
    return Task(model or (lambda: nn.Linear(8, 3)), data(200, 0), val=data(100, 1), test=data(100, 2), name=name)


def wide(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.Linear(width, 3))


def test_less_time_is_set_aside_where_there_are_no_test_data() -> None:
    task = tiny_task()
    with_test = recipe_search(task, RECIPE, SPACE, None, 0).closing_s
    ends = {told: budget_of(told, recipe_search(task, RECIPE, SPACE, None, 0)) for told in ("5s", "10min")}
    assert [each.together([], 1) for each in ends.values()] == [1.0, with_test]
    task.test = None
    assert 0 < recipe_search(task, RECIPE, SPACE, None, 0).closing_s < with_test


def test_without_retraining_the_searchs_own_readings_are_compared(tmp_path: Path) -> None:
    study = tune(tiny_task(), RECIPE, SPACE, trials=2, workers=1, repeats=0, folder=tmp_path, console=False)
    assert [trial.kind for trial in study.trials] == ["search"] * 2
    assert study.comparison is not None
    assert (study.comparison.retrained, len(study.comparison.winner)) == (False, 1)
    assert study.state.test_readings == 1


def own_optimizer(parameters: Any, lr: float) -> Any:
    return torch.optim.SGD(parameters, lr)


def test_the_recipes_of_a_study_have_the_callables_of_its_baseline(tmp_path: Path) -> None:
    recipe = Recipe(optimizer=own_optimizer, lr=0.01, batch_size=32, epochs=1)
    space: Any = {"batch_size": choice(16, 32)}
    study = tune(tiny_task(), recipe, space, trials=2, workers=1, repeats=1, folder=tmp_path / "s", test=False)
    assert study.best is not None
    record = luthier.fit(tiny_task(), study.recipe(study.best.number), folder=tmp_path / "again", console=False)
    assert record.metrics["val_accuracy"][-1] == study.best.value
    assert study.record().rows == study.best.rows
    weight, again = (each.load_best(tiny_task()).state_dict()["weight"] for each in (study.record(), record))
    assert torch.equal(weight, again)
    assert [row["params.batch_size"] for row in study.table()[:2]] == [32, 16]
    with pytest.raises(StudyError, match=r"is a task: study\.record\(\)\.load_best\(task\)"):
        study.saved()


class Log:
    """A console that remembers, and may act on what it hears."""

    def __init__(self, act: Any = None) -> None:
        self.said: list[Any] = []
        self.act = act

    def started(self, study: Study) -> None:
        self.said.append(("started", len(study.trials)))

    def trial(self, trial: Any) -> None:
        self.said.append(("trial", trial.number, trial.state))
        if self.act is not None:
            self.act(trial)

    def progress(self, info: dict[str, Any]) -> None:
        assert info["elapsed_s"] >= 0

    def widened(self, ranges: Any) -> None:
        self.said.append(("widened", ranges))

    def finished(self, study: Study) -> None:
        self.said.append(("finished", len(study.trials)))


def optuna_trials(study: Study) -> dict[int, str]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    loaded = optuna.load_study(study_name=study.name, storage=url(study.folder))
    found = {trial.user_attrs[NUMBER]: trial.state.name for trial in loaded.trials}
    assert len(found) == len(loaded.trials)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="finds its worker processes in /proc")
def test_a_study_survives_the_death_of_a_worker_and_goes_on(tmp_path: Path) -> None:
    """One study, twice: in the first call a worker is killed; the second call asks for more trials."""
    killed: list[Any] = []

    def kill(trial: Any) -> None:
        if trial.number == 1 and trial.state == "running" and not killed:  # written down, not yet ordered
            killed.append(workers_of(tmp_path))
            os.kill(killed[0][0], signal.SIGKILL)

    folder, task, log = tmp_path / "study", tiny_task(), Log(kill)
    study = tune(task, RECIPE, SPACE, trials=4, workers=1, folder=folder, console=log, repeats=2)
    assert killed
    assert log.said[0] == ("started", 0)
    assert log.said[-1] == ("finished", 8)
    search = [trial for trial in study.trials if trial.kind == "search"]
    assert [trial.number for trial in search] == [0, 1, 2, 3]
    assert search[1].crashes == 1
    assert search[1].state != "failed"
    reason = next(event.payload["reason"] for event in read_events(folder) if event.kind == "crashed")
    assert reason.startswith("the worker process was killed by SIGKILL")
    comparison = study.comparison
    assert comparison is not None
    assert len(comparison.baseline) == len(comparison.winner) == 2
    assert comparison.test is not None
    assert set(comparison.test["winner"]) == {"loss", "accuracy"}
    assert study.state.test_readings == 1
    assert comparison.difference > 0.05
    assert optuna_trials(study) == {
        trial.number: {"finished": "COMPLETE", "stopped": "PRUNED"}[trial.state] for trial in search
    }
    assert not (folder / "workers" / "task").exists()
    assert workers_of(tmp_path) == []
    before = {trial.number: trial.rows for trial in study.trials if trial.ended}

    more = tune(task, RECIPE, SPACE, trials=6, workers=2, folder=folder, repeats=2)
    assert len([trial for trial in more.trials if trial.kind == "search"]) == 6
    assert {number: more.trials[number].rows[: len(rows)] for number, rows in before.items()} == before
    assert set(optuna_trials(more)) == {trial.number for trial in more.trials if trial.kind == "search"}
    assert more.elapsed_s > study.elapsed_s

    again = Study.open(folder)
    assert again.trials == more.trials
    assert again.baseline.lr == RECIPE.lr
    assert again.recipe(1).seed == 0
    assert list(again.best_by_arm()) == ["all"]
    for changes, said in wrong_continuations():
        with pytest.raises(StudyError, match=said):
            tune(**{"task": task, "recipe": RECIPE, "space": SPACE, "folder": folder, "trials": 9, **changes})
    with pytest.raises(StudyError, match="already holds a study"):
        tune(task, RECIPE, SPACE, folder=folder, resume=False)


def wrong_continuations() -> list[tuple[Any, str]]:
    return [
        ({"space": {"lr": loguniform(1e-3, 0.5), "batch_size": choice(16, 32)}}, "space lr: uniform 0.001 0.3"),
        ({"recipe": RECIPE.replace({"epochs": 4})}, "recipe epochs: 9 there, 4 now"),
        ({"task": tiny_task(lambda: nn.Linear(8, 3, bias=False))}, "the code of the model's builder has changed"),
        ({"seed": 5}, "recipe seed: 0 there, 5 now"),
        ({"groups": {"a": ["lr"]}}, "groups"),
    ]


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
import test_tune as t
t.tune(t.tiny_task(), t.RECIPE, t.SPACE, trials=6, workers=2, folder={folder!r}, repeats=1, test=False)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for orphans in /proc")
def test_after_kill_9_of_the_parent_nothing_is_left_and_the_same_call_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    script = SCRIPT.format(here=str(Path(__file__).parent), folder=str(folder))
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and parent.poll() is None:
        if (folder / "study.db").exists() and sum(event.kind == "row" for event in safely_read(folder)) >= 3:
            break
        time.sleep(0.02)
    parent.kill()
    parent.communicate()
    events = safely_read(folder)
    assert sum(event.kind == "row" for event in events) >= 3
    while workers_of(folder) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert workers_of(folder) == []

    known = Study.open(folder)
    task = tiny_task()
    study = tune(task, RECIPE, SPACE, trials=6, workers=1, folder=folder, repeats=1, test=False)
    search = [trial for trial in study.trials if trial.kind == "search"]
    assert len(search) == 6
    assert [trial.values for trial in search[: len(known.trials)]] == [trial.values for trial in known.trials]
    assert "RUNNING" not in optuna_trials(study).values()
    assert all(trial.ended for trial in search)


def safely_read(folder: Path) -> Any:
    try:
        return read_events(folder)
    except StudyError:  # between making the file and its tables
        return []


class Broken(nn.Module):
    def __init__(self) -> None:
        raise RuntimeError("no such layer")


class Printing(nn.Linear):
    """Prints, and gives NaN."""

    def __init__(self) -> None:
        super().__init__(8, 3)

    def forward(self, x: Any) -> Any:
        print("hello from the task", flush=True)
        return super().forward(x) * float("nan")


@pytest.mark.parametrize(("presses", "number"), [(1, signal.SIGINT), (2, signal.SIGINT), (1, signal.SIGTERM)])
def test_ctrl_c_leaves_a_study_to_go_on_with(tmp_path: Path, presses: int, number: int) -> None:
    def press(trial: Any) -> None:
        if trial.state == "running" and not pressed:
            pressed.append(trial.number)
            for _ in range(presses):
                os.kill(os.getpid(), number)

    def call() -> Study:
        return tune(tiny_task(), RECIPE, SPACE, trials=3, workers=1, folder=tmp_path, console=Log(press))

    pressed: list[int] = []
    if presses == 2:
        with pytest.raises(KeyboardInterrupt, match="the same call goes on"):
            call()
    elif number == signal.SIGTERM:
        with pytest.raises(SystemExit, match="143"):
            call()
    else:
        assert call().ended == "interrupted"
    study = Study.open(tmp_path)
    assert [trial.state for trial in study.trials] == ([] if presses == 2 else ["paused"])  # not yet ordered
    assert workers_of(tmp_path) == []


@pytest.mark.parametrize(("model", "said"), [(Broken, "no such layer"), (Printing, "NaN or infinite")])
def test_when_every_trial_fails_the_study_stops_with_the_reason(tmp_path: Path, model: Any, said: str) -> None:
    with pytest.raises(StudyError, match=said):
        tune(tiny_task(model), RECIPE, SPACE, trials=20, workers=1, folder=tmp_path)
    trials = Study.open(tmp_path).trials
    assert [trial.state for trial in trials][:3] == ["failed"] * 3
    assert said in trials[0].reason
    if model is Printing:
        assert "hello from the task" in (tmp_path / "workers" / "worker-0.log").read_text()


def test_a_trial_that_diverges_is_ended_at_once_and_says_so(tmp_path: Path) -> None:
    call: Any = {"trials": 2, "workers": 1, "strategy": "full", "sampler": "random", "repeats": 1}
    study = tune(tiny_task(), RECIPE, {"lr": choice(1e4)}, folder=tmp_path, **call)
    baseline, hot = study.trials
    assert (baseline.state, baseline.reason) == ("finished", "all 9 epochs trained")
    assert hot.state == "failed"
    assert hot.reason.startswith("diverged: the loss is ")
    assert 5 <= hot.step <= 8


def test_a_reference_reaches_the_workers_and_groups_are_arms(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\nfrom torch import nn\nfrom luthier import Task\n"
        "def task():\n    x = torch.randn(64, 8)\n"
        "    return Task(lambda: nn.Linear(8, 3), (x, x[:, :3].argmax(1)), val=(x, x[:, :3].argmax(1)), name='mine')\n"
    )
    space = {**SPACE, "weight_decay": loguniform(1e-6, 1e-2)}
    groups = {"lr": ["lr"], "lr + decay": ["lr", "weight_decay"]}
    study = tune(
        f"{file}:task", RECIPE, space, trials=5, workers=1, folder=tmp_path / "s", groups=groups, repeats=1, seed=4
    )
    assert [trial.arm for trial in study.trials if trial.kind == "search"] == [
        "baseline",
        "lr",
        "lr + decay",
        "lr",
        "lr + decay",
    ]
    assert [list(trial.values) for trial in study.trials[1:3]] == [["lr"], ["lr", "weight_decay"]]
    assert set(study.best_by_arm()) == set(groups)
    assert {trial.seed for trial in study.trials if trial.kind == "search"} == {4}
    assert study.comparison is not None
    assert study.comparison.test is None
    assert json.loads((study.folder / "trials" / "0001" / "recipe.json").read_text())["seed"] == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {}}, "space is empty"),
        ({"space": {"lrr": uniform(0, 1)}}, "did you mean 'lr'"),
        (
            {"task": tiny_task(wide), "space": {"model.widht": choice(4, 8)}},
            r"wide has no keyword 'widht': did you mean",
        ),
        ({"trials": 0}, "trials must be"),
        ({"workers": 0}, "workers must be"),
        ({"repeats": -1}, "repeats must be"),
        ({"seed": -1}, "seed must be"),
        ({"budget": "soon"}, "a budget is a time"),
        ({"budget": 0}, "a budget is a time"),
        ({"sampler": "tpee"}, "did you mean 'tpe'"),
        ({"strategy": "halfing"}, "did you mean 'halving'"),
        ({"groups": {}}, "groups is empty"),
        ({"groups": {"a": ["dropout"]}}, "names dropout"),
        ({"groups": {"a": []}}, "no fields"),
        ({"groups": {"baseline": ["lr"]}}, "cannot be called"),
        ({"task": 3}, "task must be"),
    ],
)
def test_wrong_calls_are_refused_before_anything_is_written(tmp_path: Path, changes: Any, said: str) -> None:
    call: Any = {"task": tiny_task(), "recipe": RECIPE, "space": SPACE, "folder": tmp_path / "study", **changes}
    with pytest.raises(LuthierError, match=said):
        tune(**call)
    assert not (tmp_path / "study").exists()


def test_a_derived_space_leaves_out_what_the_task_would_not_feel() -> None:
    assert {"batch_size", "label_smoothing"} <= set(derived_for(tiny_task(), RECIPE))
    loader = DataLoader(TensorDataset(*data(100, 0)), batch_size=20)
    assert "batch_size" not in derived_for(Task(lambda: nn.Linear(8, 3), loader, val=data(50, 1)), RECIPE)
    own = Task(lambda: nn.Linear(8, 3), data(100, 0), val=data(50, 1), step=lambda model, batch: batch)
    assert "label_smoothing" not in derived_for(own, RECIPE)


@pytest.mark.parametrize(("text", "expected"), [("5min", 300), ("90s", 90), (2.5, 2.5), ("1 h", 3600), (".5m", 30)])
def test_times_are_read(text: Any, expected: float) -> None:
    assert seconds(text) == expected


def test_test_data_that_were_read_before_are_said_to_be_left_unread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = tiny_task()
    call: Any = {"trials": 2, "workers": 1, "repeats": 1}
    first = tune(task, RECIPE, SPACE, folder=tmp_path / "first", **call)
    assert first.state.unread == ""
    words = "Test data not read: this task's were read before, for the final reading. Make the task anew"
    assert words not in capsys.readouterr().out
    second = tune(task, RECIPE, SPACE, folder=tmp_path / "second", console=TuneConsole(), **call)
    assert second.comparison is not None
    assert second.comparison.test is None
    assert words in capsys.readouterr().out.replace("\n", " ")
    assert words in second.report(tmp_path / "report.html").read_text().replace("&#x27;", "'")
    again = tune(tiny_task(), RECIPE, SPACE, folder=tmp_path / "second", **{**call, "trials": 2})
    assert again.state.unread == ""
    assert again.comparison is not None
    assert again.comparison.test is not None
