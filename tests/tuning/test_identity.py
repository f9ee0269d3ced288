"""A study goes on as itself only: what has changed is said, and code may change when the caller says so."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.errors import LuthierError
from luthier.fitting import fit
from luthier.recipe import Recipe
from luthier.task import Task
from luthier.tuning.ledger import StudyError, read_events
from luthier.tuning.opening import StudyWarning
from luthier.tuning.recipes import take_over
from luthier.tuning.space import choice, uniform
from luthier.tuning.study import Study
from luthier.tuning.tune import tune

SCALE = 1.0
SPACE: Any = {"x": uniform(0, 1)}


def first_version() -> Any:
    def train(trial: Any) -> float:
        return SCALE * float(trial.params["x"])

    return train


def second_version() -> Any:
    def train(trial: Any) -> float:
        print("mended")
        return SCALE * float(trial.params["x"])

    return train


def test_an_edited_function_goes_on_when_that_is_said(tmp_path: Path) -> None:
    call: Any = {"space": SPACE, "workers": 1, "folder": tmp_path, "sampler": "random"}
    tune(first_version(), trials=2, **call)
    hint = r"code of the function has changed\): .*or go on with resume='edited' \(--edited\)"
    with pytest.raises(StudyError, match=hint):
        tune(second_version(), trials=3, **call)
    assert len(tune(second_version(), trials=3, resume="edited", **call).trials) == 3
    study = tune(second_version(), trials=4, **call)  # now it is this one
    assert len(study.trials) == 4
    assert study.task == Study.open(tmp_path).task
    with pytest.raises(StudyError, match=hint):
        tune(first_version(), trials=5, **call)
    assert [event.kind for event in read_events(tmp_path)].count("edited") == 1


def test_another_space_is_another_study_whatever_is_said(tmp_path: Path) -> None:
    call: Any = {"workers": 1, "folder": tmp_path, "trials": 2}
    tune(first_version(), space=SPACE, **call)
    with pytest.raises(StudyError, match=r"space x: .*; the code of the function has changed\): .*was begun with$"):
        tune(second_version(), space={"x": uniform(0, 2)}, resume="edited", **call)


def test_a_changed_constant_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call: Any = {"space": SPACE, "workers": 1, "folder": tmp_path, "sampler": "random"}
    tune(first_version(), trials=2, **call)
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 100.0)
    with warnings.catch_warnings(action="error"), pytest.raises(StudyWarning):
        tune(first_version(), trials=3, **call)
    told = r"^SCALE, which the function reads, changed since the last call of the study in "
    with pytest.warns(StudyWarning, match=told) as caught:  # again: it has not been noted
        study = tune(first_version(), trials=3, **call)
    assert [each.filename for each in caught] == [__file__]
    assert study.trials[2].value == 100 * study.trials[2].values["x"]
    assert len(tune(first_version(), trials=4, **call).trials) == 4


def test_what_only_one_version_reads_is_told_as_a_change_of_code(tmp_path: Path) -> None:
    def reads_nothing() -> Any:
        def train(trial: Any) -> float:
            return float(trial.params["x"])

        return train

    call: Any = {"space": SPACE, "workers": 1, "folder": tmp_path}
    tune(first_version(), trials=1, **call)
    tune(reads_nothing(), trials=2, resume="edited", **call)  # a warning would be an error


def test_a_list_for_a_tuple_is_the_same_space_and_others_are_shown_as_written(tmp_path: Path) -> None:
    def train(trial: Any) -> float:
        return float(len(trial.params["layers"]))

    call: Any = {"workers": 1, "folder": tmp_path, "start": {"layers": (8,)}, "repeats": 1}
    tune(train, space={"layers": choice((8,), (8, 8), (9, 9, 9))}, trials=1, **call)
    study = tune(train, space={"layers": choice([8], [8, 8], [9, 9, 9])}, trials=3, **call)
    assert study.best is not None
    assert study.best.value == 3.0
    told = r"space layers: choice \[\(8,\), \(8, 8\), \(9, 9, 9\)\] there, choice \[\(8,\), \(7, 7\)\] now"
    with pytest.raises(StudyError, match=told) as caught:
        tune(train, space={"layers": choice((8,), (7, 7))}, trials=3, **call)
    assert "{'tuple'" not in str(caught.value)
    with pytest.raises(StudyError, match=r"start: \{'layers': \(8,\)\} there, \{'layers': \(8, 8\)\} now"):
        tune(train, space={"layers": choice((8,), (8, 8), (9, 9, 9))}, trials=3, **call | {"start": {"layers": (8, 8)}})


@pytest.mark.parametrize("resume", ["yes", None, 1])
def test_a_wrong_resume_is_explained(tmp_path: Path, resume: Any) -> None:
    with pytest.raises(LuthierError, match="resume must be True, False or 'edited', got"):
        tune(first_version(), space=SPACE, trials=1, folder=tmp_path, resume=resume)


def test_a_waiting_training_goes_on_with_an_edited_model(tmp_path: Path) -> None:
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    data, recipe = (x, (x[:, 0] > 0).long()), Recipe(epochs=2, batch_size=10)
    before = Task(lambda: torch.nn.Linear(4, 2), data, val=data, name="t")
    after = Task(lambda: torch.nn.Linear(4, 2).float(), data, val=data, name="t")
    fit(before, recipe, folder=tmp_path, until=4, console=False)
    with pytest.raises(LuthierError, match="model_source"):
        fit(after, recipe, folder=tmp_path, resume=True, console=False)
    take_over(after, tmp_path)
    assert fit(after, recipe, folder=tmp_path, resume=True, console=False).status["state"] == "finished"


TASK = """
import luthier, torch
X = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
def task():
    def model():
        net = torch.nn.Linear(4, 2)
        return net{more}
    y = (X[:, 0] > 0).long()
    return luthier.Task(model=model, train=(X[:40], y[:40]), val=(X[40:], y[40:]), name="t")
"""


def test_the_command_line_goes_on_with_an_edited_model(tmp_path: Path) -> None:
    def call(*more: str) -> Any:
        recipe = [
            "--epochs",
            "1",
            "--batch-size",
            "10",
            "--workers",
            "1",
            "--repeats",
            "1",
            "--space",
            "lr=0.001..0.1 log",
        ]
        words = [sys.executable, "-m", "luthier", "tune", "t.py:task", *recipe, *more]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    (tmp_path / "t.py").write_text(TASK.format(more=""))
    assert call("--trials", "1").returncode == 0
    (tmp_path / "t.py").write_text(TASK.format(more=".float()"))
    refused = call("--trials", "2")
    assert refused.returncode != 0
    assert "--edited" in refused.stderr
    assert call("--trials", "2", "--edited").returncode == 0
    assert [trial.kind for trial in Study.open(tmp_path / "studies" / "t").trials].count("search") == 2
