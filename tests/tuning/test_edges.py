"""Ranges at whose end the best trials lie are told, never widened silently."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.tuning.test_steering import study

import luthier
from luthier.tuning.edges import KNOWN_GOOD, best_of, crowded, end_of
from luthier.tuning.ranges import Range
from luthier.tuning.space import choice, integers, loguniform, uniform

CASES = [
    (loguniform(1e-5, 1e-3), (1e-3, 9.9e-4, 8e-4), "upper"),
    (loguniform(1e-5, 1e-3), (1e-5, 1.1e-5, 1e-5), "lower"),
    (loguniform(1e-5, 1e-3), (1e-3, 9.9e-4, 5e-4), None),
    (loguniform(1e-5, 1e-3), (1e-3, 1e-3), None),  # two are few
    (loguniform(1e-5, 1e-3), (2e-3, 1e-4), "upper"),  # beyond: asked for by the doctor
    (uniform(0.0, 0.5), (0.0, 0.01, 0.02), "lower"),
    (uniform(0.0, 0.5, step=0.05), (0.5, 0.5, 0.5), "upper"),
    (integers(1, 3), (3, 3, 3), None),  # a third of all trials lie there
    (integers(1, 64), (64, 63, 62), "upper"),
    (integers(1, 64, log=True), (1, 1, 1), None),
    (integers(16, 256, log=True), (250, 256, 255), "upper"),
    (choice(16, 32, 64), (64, 64, 64), None),
]


@pytest.mark.parametrize(("range_", "values", "end"), CASES)
def test_at_which_end_the_best_lie(range_: Range, values: tuple[float, ...], end: str | None) -> None:
    state = study(*[({"x": value}, 0.9 - number / 100) for number, value in enumerate(values)], ({"x": 1}, 0.1))
    best = best_of(state, "all")[: len(values)]
    assert end_of("x", range_, best) == end


def test_known_good_settings_alone_say_nothing() -> None:
    state = study(*[({"x": 1.0}, 0.9)] * 3, source=KNOWN_GOOD)
    assert best_of(state, "all") == []


@pytest.mark.parametrize(("known", "told"), [(1, True), (2, False)])
def test_mostly_known_good_settings_at_an_end_are_no_crowd(known: int, told: bool) -> None:
    state = study(({"x": 1.0}, 0.9), ({"x": 0.99}, 0.89), ({"x": 0.98}, 0.88))
    placed = [number for number, trial in enumerate(state.trials) if "x" in trial.values][:known]
    for number in placed:
        state.trials[number] = replace(state.trials[number], source=KNOWN_GOOD)
    assert bool(crowded({"x": uniform(0.0, 1.0)}, state, {"all": ["x"]})) is told


def test_a_study_says_that_its_range_may_be_too_narrow(tmp_path: Path) -> None:
    def train(trial: Any) -> None:
        trial.report(trial.params["x"] - abs(trial.params["y"]), step=1)

    values = iter([{"x": x, "y": 0.0} for x in (0.3, 1.0, 0.99, 0.98)])
    space = {"x": uniform(0.0, 1.0), "y": uniform(0.0, 1.0)}
    found = luthier.tune(
        train, space=space, steps=1, trials=4, workers=1, folder=tmp_path, sampler=lambda view: next(values)
    )
    (edge,) = found.crowded  # nothing lies below the zero of y
    assert str(edge) == "the best trials (#1, #2, #3) lie at the upper end of x 0..1: higher values may be better"
