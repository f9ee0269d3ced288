"""What counts as the value of a trial of a function: its best report, or what it returns."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from luthier.errors import LuthierError
from luthier.show.report_data import study_data
from luthier.show.terminal import TuneConsole
from luthier.tuning.optuna_store import url
from luthier.tuning.space import choice, fixed, uniform
from luthier.tuning.study import Study
from luthier.tuning.tune import tune


def returning() -> Any:
    def train(trial: Any) -> float:
        start = trial.restore() or 0
        for epoch in range(start, 4):
            trial.save(epoch + 1)
            trial.report(0.9 - 0.1 * trial.params["x"] if epoch == 1 else 0.2, step=epoch + 1)
        return 0.5 + 0.1 * float(trial.params["x"])

    return train


@pytest.mark.parametrize("strategy", ["full", "halving"])
def test_what_a_function_returns_counts_in_place_of_its_reports(tmp_path: Path, strategy: str) -> None:
    call: Any = {"space": {"x": choice(0, 1, 2)}, "steps": 4, "workers": 1, "folder": tmp_path, "strategy": strategy}
    study = tune(returning(), trials=3, sampler="grid", console=TuneConsole(), **call)
    best = study.best
    assert best is not None
    if strategy == "full":  # by its reports 0 is best, by its results 2
        assert best.params == {"x": 2}
    for each in (best, Study.open(tmp_path).best):
        assert each is not None
        assert each.value == each.level == pytest.approx(0.5 + 0.1 * best.params["x"])
        assert [row["val_value"] for row in each.rows][1] == pytest.approx(0.9 - 0.1 * best.params["x"])
        assert [row["step"] for row in each.rows] == [1, 2, 3, 4, 4]
    assert optuna.load_study(study_name="train", storage=url(tmp_path)).best_value == best.value


def test_the_terminal_forgets_a_report_that_the_result_takes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(trial: Any) -> float:
        trial.report(0.9, step=1)
        return float(0.5 if trial.number == 0 else 0.6)

    tune(train, space={"x": uniform(0, 1)}, trials=2, workers=1, folder=tmp_path, sampler="random")
    ended = [line for line in capsys.readouterr().out.splitlines() if "finished" in line and line.lstrip()[0] == "#"]
    assert "0.5" in ended[0]
    assert "0.6" in ended[1]
    assert "best so far" in ended[1]


def test_several_objectives_may_be_returned(tmp_path: Path) -> None:
    def train(trial: Any) -> Any:
        trial.report({"accuracy": 0.9, "size": 1.0}, step=1)
        return {"accuracy": 0.5, "size": 2.0}

    objectives = {"accuracy": "max", "size": "min"}
    study = tune(train, space={"x": uniform(0, 1)}, trials=1, workers=1, folder=tmp_path, objectives=objectives)
    assert study.front[0].scores == {"accuracy": 0.5, "size": 2.0}


def test_a_result_that_is_no_number_is_refused(tmp_path: Path) -> None:
    def train(trial: Any) -> Any:
        trial.report(0.9, step=1)
        return [0.9]

    with pytest.raises(LuthierError, match="should return None or a number, got"):
        tune(train, space={"x": uniform(0, 1)}, trials=1, workers=1, folder=tmp_path)


@pytest.mark.parametrize(("budget", "ended"), [("9 steps", "budget"), ("8 steps", "budget"), ("40 steps", "finished")])
def test_a_study_knows_that_its_budget_holds_no_further_trial(tmp_path: Path, budget: str, ended: str) -> None:
    def train(trial: Any) -> None:
        for step in (1, 2, 3, 4):
            trial.report(float(step), step=step)

    call: Any = {"space": {"x": choice(*range(5))}, "steps": 4, "workers": 1, "folder": tmp_path, "strategy": "full"}
    study = tune(train, budget=budget, trials=5, **call)
    assert study.ended == ended
    assert len(study.trials) == (5 if ended == "finished" else 2)


def test_a_study_of_a_small_space_has_not_run_out_of_budget(tmp_path: Path) -> None:
    study = tune(lambda trial: 1.0, space={"x": choice(1, 2)}, budget="1min", workers=1, folder=tmp_path)
    assert (len(study.trials), study.ended) == (2, "finished")


@pytest.mark.parametrize(("with_fresh_seeds", "best", "who"), [(0.7, 1, "winner"), (0.3, 0, "best other trial")])
def test_retraining_decides_between_baseline_and_winner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], with_fresh_seeds: float, best: int, who: str
) -> None:
    def train(trial: Any) -> float:
        lucky = 0.55 if with_fresh_seeds > 0.5 else 0.4  # the search's own seed says the opposite
        other = with_fresh_seeds if trial.seed else 0.95 - lucky
        return 0.5 if trial.params["x"] == 0 else other

    call: Any = {"space": {"x": choice(0, 1)}, "start": {"x": 0}, "repeats": 2, "trials": 2, "workers": 1}
    study = tune(train, folder=tmp_path, **call)
    assert study.comparison is not None
    assert study.comparison.retrained
    assert [trial.value for trial in study.trials[:2]] == pytest.approx([0.5, 0.4 if best else 0.55])
    for each in (study.best, Study.open(tmp_path).best):
        assert each is not None
        assert each.number == best
    assert f"What the {who} (#1) changes" in capsys.readouterr().out
    page = study.report(tmp_path / "report.html").read_text()
    assert f"{who.capitalize()}, trial 1" in page
    assert f"Parameters of trial {best}" in page
    assert ("No trial is shown to beat the baseline" in page) is (best == 0)


def test_a_lucky_reading_makes_no_winner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def train(trial: Any) -> None:
        for step in range(1, 21):
            lucky = trial.params["x"] == 1 and step == 7
            trial.report(0.8 if lucky else 0.5 - 0.1 * trial.params["x"], step=step)

    call: Any = {"space": {"x": choice(0, 1)}, "start": {"x": 0}, "trials": 2, "workers": 1, "steps": 20}
    study = tune(train, folder=tmp_path, **call)
    assert study.best is not None
    assert (study.best.number, study.trials[1].value) == (0, 0.8)
    assert "What the best other trial (#1) changes" in capsys.readouterr().out


def test_what_is_returned_is_no_reading_on_the_way(tmp_path: Path) -> None:
    def train(trial: Any) -> float:
        for step in (1, 2):
            trial.report(step / 10, step=step)
        return 0.05

    study = tune(train, space={"x": uniform(0, 1)}, trials=1, workers=1, folder=tmp_path / "it", steps=2)
    (stored,) = optuna.load_study(study_name="train", storage=url(tmp_path / "it")).trials
    assert (stored.value, stored.intermediate_values) == (0.05, {1: 0.1, 2: 0.2})
    drawn = study_data(study)["trials"][0]
    assert (drawn["value"], drawn["curve"]["val_value"]) == (0.05, [0.1, 0.2])


@pytest.mark.parametrize(("options", "ended"), [(2, "finished"), (3, "budget")])
def test_a_space_of_which_all_is_tried_has_not_run_out_of_budget(tmp_path: Path, options: int, ended: str) -> None:
    def train(trial: Any) -> None:
        for step in (1, 2, 3, 4):
            trial.report(float(step), step=step)

    call: Any = {"space": {"x": choice(*range(options))}, "steps": 4, "workers": 1, "strategy": "full"}
    study = tune(train, budget="11 steps", trials=5, folder=tmp_path, **call)
    assert (len(study.trials), study.ended) == (2, ended)


def test_a_metric_that_says_validation_keeps_its_name(tmp_path: Path) -> None:
    def train(trial: Any) -> None:
        for step in (1, 2):
            trial.report({"val_loss": trial.params["x"] / step, "train_loss": 0.5, "loss": 1.0}, step=step)

    call: Any = {"space": {"x": choice(1.0, 2.0)}, "steps": 2, "trials": 2, "workers": 1, "folder": tmp_path}
    study = tune(train, metric="val_loss", direction="min", **call)
    for each in (study, Study.open(tmp_path)):
        assert each.best is not None
        assert each.best.value == 0.5
        assert [row["val_loss"] for row in each.best.rows] == [1.0, 0.5]
        assert set(each.best.rows[0]) == {"kind", "step", "time_s", "val_loss", "train_loss", "loss"}
        data = study_data(each)
        assert (data["metric"]["column"], data["trials"][0]["curve"]["val_loss"][1]) == (
            "val_loss",
            each.trials[0].value,
        )
    (stored, _) = optuna.load_study(study_name="train", storage=url(tmp_path)).trials
    assert stored.intermediate_values == {1: study.trials[0].rows[0]["val_loss"], 2: study.trials[0].value}


def test_two_metrics_of_one_name_are_refused(tmp_path: Path) -> None:
    objectives = {"val_loss": "min", "loss": "min"}
    with pytest.raises(LuthierError, match="'loss' and 'val_loss' are kept under one name"):
        tune(lambda trial: 1.0, space={"x": uniform(0, 1)}, objectives=objectives, folder=tmp_path)


def test_other_readings_are_kept(tmp_path: Path) -> None:
    def train(trial: Any) -> None:
        trial.report({"accuracy": 0.4, "train_loss": 1.5, "lr": float("nan")}, step=1)
        trial.report(0.5, step=2)

    space: Any = {"x": uniform(0, 1)}
    study = tune(train, space=space, metric="accuracy", steps=2, trials=1, workers=1, folder=tmp_path)
    for best in (study.best, Study.open(tmp_path).best):
        assert best is not None
        assert (best.value, best.scores) == (0.5, {"accuracy": 0.5})
        assert (best.rows[0]["train_loss"], best.rows[0]["val_accuracy"]) == (1.5, 0.4)
        assert "train_loss" not in best.rows[1]
    assert study.report(tmp_path / "report.html").exists()


def test_a_start_need_not_name_what_is_fixed(tmp_path: Path) -> None:
    def train(trial: Any) -> float:
        return float(trial.params["lr"]) * float(trial.params["layers"])

    space: Any = {"lr": uniform(0, 1), "layers": fixed(2)}
    study = tune(train, space=space, start={"lr": 0.5}, trials=2, workers=1, folder=tmp_path)
    assert study.trials[0].params == {"lr": 0.5, "layers": 2}
    assert study.start.value("layers") == 2


def test_a_metric_that_says_that_it_is_validations_says_it_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call: Any = {"space": {"x": uniform(0, 1)}, "metric": "val_loss", "direction": "min", "workers": 1}
    study = tune(lambda trial: 0.5, trials=1, folder=tmp_path, **call)
    assert "for the lowest validation loss:" in capsys.readouterr().out
    assert "validation val" not in study.report(tmp_path / "report.html").read_text()


def test_a_report_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    study = tune(lambda trial: 0.5, space={"x": uniform(0, 1)}, trials=1, workers=1, folder=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(LuthierError, match=r"the report .*file.report\.html cannot be written \(.*\): choose another"):
        study.report(tmp_path / "file" / "report.html")


def curve_of(values: list[float], saves_first: bool) -> Any:
    def train(trial: Any) -> None:
        for step in range(trial.restore() or 0, len(values)):
            acts = [lambda s=step: trial.save(s + 1), lambda s=step: trial.report(values[s], step=s + 1)]
            for act in acts if saves_first else reversed(acts):
                act()

    return train


@pytest.mark.parametrize("saves_first", [True, False])
@pytest.mark.parametrize(("direction", "best"), [("max", 4), ("min", 6)])
def test_the_state_of_the_best_reading_is_kept(tmp_path: Path, saves_first: bool, direction: str, best: int) -> None:
    train = curve_of([0.4, 0.5, 0.6, 0.9, 0.3, 0.1, 0.9, 0.5, 0.2], saves_first)
    call: Any = {"space": {"x": choice(1)}, "steps": 9, "trials": 1, "workers": 1, "direction": direction}
    study = tune(train, folder=tmp_path, **call)
    assert (study.saved(), study.saved(last=True)) == (best, 9)
    assert Study.open(tmp_path).saved(0) == best


@pytest.mark.parametrize("first", [False, True])
def test_a_state_saved_at_each_improvement_is_the_best(tmp_path: Path, first: bool) -> None:
    def train(trial: Any) -> None:
        trial.restore()
        if first:
            trial.save(0)
        top = 0.0
        for step, value in enumerate([0.1, 0.2, 0.15, 0.12, 0.9, 0.1, 0.3, 0.4, 0.5]):
            trial.report(value, step=step + 1)
            if value > top:
                top = value
                trial.save(step + 1)

    study = tune(train, space={"x": choice(1)}, steps=9, trials=1, workers=1, folder=tmp_path)
    assert (study.saved(), study.saved(last=True)) == (5, 5)


def test_a_state_saved_now_and_then_after_its_report_is_told_by_that(tmp_path: Path) -> None:
    def train(trial: Any) -> None:
        for step, value in enumerate([0.1, 0.2, 0.9, 0.1, 0.1, 0.2, 0.3, 0.4, 0.5]):
            trial.report(value, step=step + 1)
            if step % 3 == 2:
                trial.save(step + 1)

    study = tune(train, space={"x": choice(1)}, steps=9, trials=1, workers=1, folder=tmp_path)
    assert (study.saved(), study.saved(last=True)) == (3, 9)


def test_no_link_is_left_behind(tmp_path: Path) -> None:
    train = curve_of([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], True)
    call: Any = {"space": {"x": choice(*range(9))}, "steps": 9, "workers": 1, "strategy": "halving", "sampler": "grid"}
    study = tune(train, folder=tmp_path, trials=9, **call)
    assert not [path for trial in study.trials for path in (trial.folder / "checkpoints").glob(".best*")]


def test_the_best_state_outlives_a_pause(tmp_path: Path) -> None:
    train = curve_of([0.9, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.8], True)
    call: Any = {"space": {"x": choice(*range(9))}, "steps": 9, "workers": 2, "strategy": "halving", "sampler": "grid"}
    study = tune(train, folder=tmp_path, trials=9, **call)
    finished = [trial.number for trial in study.trials if trial.state == "finished"]
    assert finished
    assert all((study.saved(number), study.saved(number, last=True)) == (1, 9) for number in finished[:3])


def test_the_state_of_a_result_is_the_last(tmp_path: Path) -> None:
    study = tune(returning(), space={"x": choice(1)}, steps=4, trials=1, workers=1, folder=tmp_path)
    assert study.saved() == study.saved(last=True) == 4


def test_the_best_weights_are_kept_beside_the_last(tmp_path: Path) -> None:
    def train(trial: Any) -> None:
        import torch

        weights = torch.zeros(3)
        for step, value in enumerate([0.5, 0.9, 0.1]):
            weights += 1
            trial.save({"weights": weights, "step": step})
            trial.report(value, step=step + 1)

    study = tune(train, space={"x": choice(1)}, steps=3, trials=1, workers=1, folder=tmp_path)
    assert study.saved()["weights"].tolist() == [2, 2, 2]
    assert study.saved(last=True)["weights"].tolist() == [3, 3, 3]


def test_a_studys_seed_is_its_recipes(tmp_path: Path) -> None:
    import torch
    from torch import nn

    from luthier.recipe import Recipe
    from luthier.task import Task

    data = (torch.randn(40, 3), torch.arange(40) % 2)
    task = Task(lambda: nn.Linear(3, 2), data, val=data, name="t")
    call: Any = {"space": {"lr": uniform(0.01, 0.1)}, "trials": 1, "workers": 1, "console": False}
    recipe = Recipe(epochs=1, batch_size=8, seed=7)
    assert tune(task, recipe, folder=tmp_path / "a", **call).trials[0].seed == 7
    assert tune(task, recipe, folder=tmp_path / "b", seed=3, **call).trials[0].seed == 3


SCRIPT = """
import luthier, sys

def train(trial):
    for step in range(1, 4):
        trial.report(trial.params["x"] * step, step=step)

luthier.tune(train, space={"x": luthier.uniform(0, 1)}, trials=20, workers=1, folder="study", strategy="full")
open("through", "w").close()
"""


def test_a_reader_that_leaves_does_not_end_the_study(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    with subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"tuning train")
        process.stdout.close()
        assert process.wait(120) == 0
    assert [trial.state for trial in Study.open(tmp_path / "study").trials] == ["finished"] * 20
    assert (tmp_path / "through").exists()
