"""Which fields matter: what is known to matter is found, what is known not to is not, but for chance."""

import math
import random
from pathlib import Path
from typing import Any

import pytest

from luthier.tuning.importance import LEAST, importances
from luthier.tuning.space import choice, integers, loguniform, uniform
from luthier.tuning.tune import tune

SPACE: Any = {
    "lr": loguniform(1e-5, 1e-1),
    "optimizer": choice("adam", "sgd"),
    "momentum": uniform(0.0, 1.0).when("optimizer", "sgd"),
    "width": integers(16, 128, log=True),
    "layers": choice((64,), (64, 64), None),
}


def ranked(seed: int, n: int, score: Any) -> list[dict[str, Any]]:
    """Values drawn at random, the best by a score first."""
    chance = random.Random(seed)
    drawn = []
    for _ in range(n):
        values = {path: range_.at(chance.random()) for path, range_ in SPACE.items()}
        if values["optimizer"] == "adam":
            del values["momentum"]
        drawn.append((score(values) + 0.1 * chance.gauss(0, 1), values))
    return [values for _, values in sorted(drawn, key=lambda pair: -pair[0])]


def test_what_matters_is_clear_and_the_rest_within_chance() -> None:
    def score(values: dict[str, Any]) -> float:
        return -abs(math.log10(values["lr"]) + 3)

    found = [importances(SPACE, ranked(seed, 60, score)) for seed in range(10)]
    assert all(each[0].path == "lr" and each[0].clear for each in found)
    assert all(sum(field.share for field in each) == pytest.approx(1.0) for each in found)
    false = sum(field.clear for each in found for field in each[1:])
    assert false <= 6  # of 40, of which 2 are expected; more than 6 in 1 of 200 cases


def test_a_conditional_field_that_matters_is_found() -> None:
    found = importances(SPACE, ranked(0, 200, lambda values: values.get("momentum", 0.0)))
    clear = {field.path for field in found if field.clear}
    assert {"momentum", "optimizer"} <= clear
    assert "lr" not in clear


def test_the_same_trials_tell_the_same_and_few_tell_nothing() -> None:
    values = ranked(1, LEAST, lambda values: values["width"])
    assert importances(SPACE, values) == importances(SPACE, values) != []
    assert importances(SPACE, values[1:]) == []


def test_a_study_tells_what_matters_and_shows_it(tmp_path: Path) -> None:
    def train(trial: Any) -> None:
        if trial.number == 3:
            raise ValueError("no")
        trial.report({"error": trial.params["x"], "cost": 2 * trial.params["x"]}, step=1)

    space: Any = {"x": loguniform(1e-3, 1.0), "kind": choice("a", "b"), "rate": uniform(0, 1).when("kind", "b")}
    call: Any = {"objectives": {"error": "min", "cost": "min"}, "sampler": "random", "workers": 1, "steps": 1}
    study = tune(train, space=space, trials=40, folder=tmp_path / "s", **call)
    assert (study.importances()[0].path, study.importances()[0].clear) == ("x", True)
    page = study.report(tmp_path / "report.html").read_text()
    assert "What matters" in page
    assert '<td class="bar"><i style="width:' in page
    few = tune(train, space=space, trials=LEAST, folder=tmp_path / "few", **call)  # one of them failed
    assert few.importances() == []
    assert "What matters" not in few.report(tmp_path / "few.html").read_text()
