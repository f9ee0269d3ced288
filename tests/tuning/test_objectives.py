"""Several objectives: what may be asked for, how trials are scored and ranked, and whole studies."""

import random
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import nn

from luthier.errors import LuthierError
from luthier.recipe import Recipe
from luthier.show.terminal import TuneConsole
from luthier.task import Task
from luthier.tuning.folding import fold
from luthier.tuning.fronts import Fronts
from luthier.tuning.ladders import ladders_of
from luthier.tuning.objectives import Objective, as_readings, best_scores, function_objectives, task_objectives
from luthier.tuning.optuna_store import NUMBER, url
from luthier.tuning.pareto import by_front
from luthier.tuning.space import integers, loguniform, uniform
from luthier.tuning.state import Event, State
from luthier.tuning.strategies import Halving
from luthier.tuning.study import Study
from luthier.tuning.tune import tune

BOTH = {"accuracy": "max", "size": "min"}
SPACE: Any = {"w": uniform(0, 1), "x": uniform(-1, 1)}


def state_of(*trials: list[tuple[int, float, float]], objectives: Any = BOTH, end: str = "finished") -> State:
    """Trials by their readings (step, accuracy, size) of 90 steps."""
    facts: list[Any] = [("created", {"task": {"metric": "accuracy", "direction": "max"}, "objectives": objectives})]
    for number, readings in enumerate(trials):
        known = {"number": number, "kind": "search", "arm": "all", "values": {}, "seed": 0, "of": None}
        facts.append(("proposed", {**known, "total_steps": 90, "until": readings[-1][0]}))
        for step, accuracy, size in readings:
            row = {"kind": "epoch", "step": step, "time_s": step / 10, "val_accuracy": accuracy, "val_size": size}
            facts.append(("row", {"number": number, "row": row}))
        facts.append((end, {"number": number, "step": readings[-1][0], "reason": "said so"}))
    return fold([Event(index, 0.0, kind, payload) for index, (kind, payload) in enumerate(facts)], Path("study"))


def test_a_trials_scores_are_those_of_its_best_row_in_the_first_objective() -> None:
    nan = float("nan")
    state = state_of(
        [(30, 0.8, 7.0), (60, 0.9, 9.0), (90, 0.85, 5.0)], [(30, 0.7, 3.0), (60, 0.9, nan)], [(90, nan, 1)]
    )
    assert [trial.scores for trial in state.trials] == [{"accuracy": 0.9, "size": 9}, {"accuracy": 0.7, "size": 3}, {}]
    assert [trial.value for trial in state.trials] == [0.9, 0.7, None]
    assert state.trials[2].reason == "no finite validation value of accuracy, size"


def test_the_front_is_led_by_the_best_and_holds_what_nothing_beats() -> None:
    points = [(0.8, 2.0), (0.9, 5.0), (0.7, 3.0), (0.9, 4.0), (0.5, 1.0)]
    state = state_of(*[[(90, *point)] for point in points])
    assert [trial.number for trial in state.front] == [3, 0, 4]
    assert state.winner is state.front[0]
    assert not state_of(*[[(90, *point)] for point in points], end="stopped").front


def test_the_time_of_a_training_counts_as_if_it_were_over() -> None:
    named = {"accuracy": "max", "train_time_s": "min"}
    waiting = state_of([(30, 0.8, 1)], objectives=named, end="paused").trials[0]
    over = state_of([(30, 0.8, 1), (60, 0.7, 1)], objectives=named).trials[0]
    assert (waiting.scores["train_time_s"], over.scores["train_time_s"]) == (pytest.approx(9), pytest.approx(6))


def test_a_ranking_by_fronts_follows_every_change() -> None:
    rng, ranking, held = random.Random(0), Fronts(), dict[int, tuple[float, float]]()
    for number in range(40):
        held[number] = (rng.randrange(6), rng.randrange(6))
        ranking.put(number, *held[number])
        if number % 7 == 6:
            ranking.drop(number - 3)
            del held[number - 3]
        order = [list(held)[place] for place in by_front(list(held.values()))]
        assert list(ranking) == order
        assert (ranking.first, ranking.place(order[-1])) == (order[0], len(order) - 1)


def test_a_rung_sends_on_who_is_on_the_front_and_not_who_is_more_accurate() -> None:
    readings = [(0.9, 9.0), (0.8, 8.0), (0.7, 8.5), (0.6, 8.6), (0.5, 1.0), (0.4, 9.0)]
    state = state_of(*[[(10, *each)] for each in readings], end="paused")
    ladder = next(iter(ladders_of(state, Halving()).by_arm["all"].values()))
    assert list(ladder.rungs[0].reached)[:2] == [0, 4]
    assert ladder.promotable(0, 3) == 0
    assert [trial.number for trial in state.undominated(state.trials)] == [0, 1, 4]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["accuracy", "size"], "no objective 'size'"),
        (["parameters"], "first objective of a task is its metric, 'accuracy'"),
        ({"accuracy": "min"}, "accuracy improves towards 'max', got 'min'"),
        (["accuracy", "accuracy"], "named twice"),
        ([], "objectives must be a list of names"),
        ("accuracy", "objectives must be a list of names"),
    ],
)
def test_wrong_objectives_of_a_task_are_explained(asked: Any, message: str) -> None:
    with pytest.raises(LuthierError, match=message):
        task_objectives(asked, "accuracy", "max")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["accuracy", "size"], "say which way accuracy improves"),
        ({"accuracy": "up"}, "direction of accuracy must be 'max' or 'min', got 'up'"),
        ({"val acc": "max"}, "needs a name"),
        ({"train_time_s": "min", "accuracy": "max"}, "first objective is what the function reports"),
    ],
)
def test_wrong_objectives_of_a_function_are_explained(asked: Any, message: str) -> None:
    with pytest.raises(LuthierError, match=message):
        function_objectives(asked, None, None)
    with pytest.raises(LuthierError, match="leave those out"):
        function_objectives(BOTH, "accuracy", None)


@pytest.mark.parametrize(
    "report",
    [
        0.5,
        {"accuracy": 0.5},
        {"accuracy": 0.5, "size": 1.0, "x": "y"},
        {"accuracy": 0.5, "size": 1.0, "step": 3},
        {"accuracy": 0.5, "size": 1, "val_size": 3},
        {"accuracy": 0.5, "size": "big"},
    ],
)
def test_wrong_reports_are_explained(report: Any) -> None:
    with pytest.raises(LuthierError, match=r"trial\.report expects"):
        as_readings(report, list(BOTH), "trial.report expects")


def test_one_objective_is_the_metric() -> None:
    assert task_objectives(["loss"], "loss", "min") == task_objectives(None, "loss", "min")
    assert function_objectives({"loss": "min"}, None, None) == function_objectives(None, "loss", "min")
    assert best_scores([{"step": 1, "val_a": 2.0}], [Objective("a", "max")], 1) == (2.0,)


def test_what_cannot_search_for_several_says_so(tmp_path: Path) -> None:
    call: Any = {"space": SPACE, "folder": tmp_path / "s"}
    with pytest.raises(LuthierError, match=r"'cmaes' searches for one objective, for several take auto, .*nsgaii"):
        tune(print, objectives=BOTH, sampler="cmaes", **call)
    with pytest.raises(LuthierError, match="train_time_s cannot steer a deterministic study"):
        tune(print, objectives={"accuracy": "max", "train_time_s": "min"}, deterministic=True, **call)


def fronts(study: Study) -> tuple[list[int], list[int]]:
    """Our front and Optuna's."""
    theirs = optuna.load_study(study_name=study.name, storage=url(study.folder))
    assert theirs.metric_names == list(study.objectives)
    return sorted(t.number for t in study.front), sorted(t.user_attrs[NUMBER] for t in theirs.best_trials)


def test_a_function_with_two_objectives_is_stopped_early_resumed_and_deterministic(tmp_path: Path) -> None:
    def train(trial: Any) -> None:
        for step in range(1 + (trial.restore() or 0), 10):
            trial.save(step)
            w, x = trial.params["w"], trial.params["x"]
            trial.report({"accuracy": 1 - (1 - w) ** 2 - 0.3 / step, "size": w + abs(x)}, step=step)

    call: Any = {"space": SPACE, "objectives": BOTH, "steps": 9, "deterministic": True}
    tune(train, trials=10, workers=1, folder=tmp_path / "s", **call)
    study = tune(train, trials=24, workers=2, folder=tmp_path / "s", **call)
    again = tune(train, trials=24, workers=1, folder=tmp_path / "t", **call)
    assert study.objectives == BOTH
    assert {trial.state for trial in study.trials} == {"finished", "stopped"}
    assert study.front[0] == study.best
    assert len(study.front) > 2
    ours, theirs = fronts(study)
    assert ours == theirs
    assert Study.open(tmp_path / "s").front == study.front
    assert [t.values for t in again.trials[:10]] == [t.values for t in study.trials[:10]]
    with pytest.raises(LuthierError, match=r"objectives: .* there, None now"):
        tune(train, trials=24, folder=tmp_path / "s", **{**call, "objectives": None, "metric": "accuracy"})


def test_a_trial_that_reports_nan_for_one_objective_fails_alone(tmp_path: Path) -> None:
    def train(trial: Any) -> Any:
        return {"accuracy": trial.params["w"], "size": float("nan") if trial.number == 1 else 1.0}

    study = tune(train, space=SPACE, objectives=BOTH, trials=4, workers=1, sampler="nsgaii", folder=tmp_path)
    assert [trial.state for trial in study.trials] == ["finished", "failed", "finished", "finished"]
    assert study.trials[1].reason == "reported NaN for size at step 1"


def test_a_task_with_accuracy_and_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(160, 8, generator=generator)

    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))

    task = Task(net, (x[:100], x[:100, :3].argmax(1)), val=(x[100:], x[100:, :3].argmax(1)), name="costs")
    recipe = Recipe(epochs=3, batch_size=20, lr=0.01, model={"width": 8})
    names = ["accuracy", "parameters", "latency_ms", "train_time_s", "loss"]
    space: Any = {"lr": loguniform(1e-3, 0.1), "model.width": integers(2, 64, log=True)}
    call: Any = {"objectives": names, "workers": 1, "repeats": 1, "folder": tmp_path / "s", "console": TuneConsole()}
    study = tune(task, recipe, space, trials=6, **call)
    assert list(study.objectives.values()) == ["max", "min", "min", "min", "min"]
    for trial in (trial for trial in study.trials if trial.state == "finished"):
        width = trial.values.get("model.width", 8)
        assert trial.scores["parameters"] == 9 * width + 3 * width + 3
        assert trial.scores["latency_ms"] > 0
        assert trial.scores["train_time_s"] == trial.time_s
    ours, theirs = fronts(study)
    assert ours == theirs
