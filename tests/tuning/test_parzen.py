import math
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad

from luthier.tuning.parzen import Density, pure_tpe, recency, split, tpe, widths
from luthier.tuning.space import choice, integers, loguniform, uniform
from luthier.tuning.views import Seen, View

SPACE = {"lr": loguniform(1e-4, 1.0), "kind": choice("a", "b", "c"), "depth": integers(1, 4)}


def trial(lr: float, kind: str = "a", depth: int = 2, state: str = "finished", score: float | None = 0.5) -> Seen:
    return Seen({"lr": lr, "kind": kind, "depth": depth}, state, None if score is None else (score,))


def view(*seen: Seen, space: Any = SPACE, directions: tuple[str, ...] = ("max",), seed: int = 0) -> View:
    return View(space, seen, directions, seed)


def test_a_density_integrates_to_one() -> None:
    line = {"x": uniform(0.0, 1.0)}
    trials = [Seen({"x": x}, "finished", (1.0,)) for x in (0.02, 0.4, 0.45, 1.0)]
    density = Density(view(space=line), trials)
    assert quad(lambda x: float(np.exp(density.log([{"x": x}]))[0]), 0, 1, limit=200)[0] == pytest.approx(1, abs=1e-4)
    options = {"kind": choice("a", "b", "c")}
    shares = Density(view(space=options), [Seen({"kind": "a"}, "finished", (1.0,))] * 3)
    logs = shares.log([{"kind": kind} for kind in "abc"])
    assert np.exp(logs).mean() == pytest.approx(1)  # densities against the flat one
    assert logs[0] > 0 > logs[1] == logs[2]


def test_draws_follow_the_density() -> None:
    density = Density(view(), [trial(0.01, "b", 4)] * 20)
    columns = density.draw(np.random.default_rng(0), 2000)
    lr = [SPACE["lr"].at(part) for part in columns["lr"]]
    assert np.median(lr) == pytest.approx(0.01, rel=0.3)
    assert np.mean([SPACE["kind"].at(part) == "b" for part in columns["kind"]]) > 0.7
    assert all(column.min() >= 0 and column.max() <= 1 for column in columns.values())


def test_an_absent_field_is_flat() -> None:
    space = {"kind": choice("a", "b"), "x": uniform(0, 1).when("kind", "a")}
    trials = [Seen({"kind": "a", "x": 0.9}, "finished", (1.0,)), Seen({"kind": "b"}, "finished", (1.0,))]
    density = Density(view(space=space), trials)
    logs = density.log([{"kind": "b"}, {"kind": "a", "x": 0.9}, {"kind": "a", "x": 0.1}])
    assert logs[1] > logs[2]
    only = Density(view(space={"kind": space["kind"]}), trials)
    assert logs[0] == pytest.approx(only.log([{"kind": "b"}])[0])


def test_widths_are_the_larger_gap_within_bounds() -> None:
    found = widths(np.array([0.5, 0.52, 0.9, math.nan]), uniform(0, 1))
    assert found == pytest.approx([0.2, 0.38, 0.38, 1.0])  # at least a fifth while kernels are so few
    assert widths(np.full(200, 0.5), uniform(0, 1))[3] == pytest.approx(0.1)
    assert widths(np.full(200, 0.5), integers(1, 4))[3] == pytest.approx(0.125)


def test_the_good_are_the_best_part_and_failed_or_running_ones_never() -> None:
    trials = [trial(0.01, score=value / 20) for value in range(18)]
    good, others = split(view(*trials, trial(0.1, state="failed", score=2.0), trial(0.2, state="running", score=3.0)))
    assert [each.scores for each in good] == [(0.75,), (0.8,), (0.85,)]
    assert len(others) == 17
    several, _ = split(
        View(SPACE, tuple(t._replace(scores=(1.0, t.scores[0])) for t in trials if t.scores), ("max", "min"), 0)
    )
    assert several[0].scores == (1.0, 0.0)


def test_trials_trained_further_rank_first_only_where_they_differ_in_their_schedules() -> None:
    """A whole training that was begun with, and is a bad one, is not to be looked for again."""
    seen = (trial(0.1, score=0.9)._replace(state="paused", share=0.1), trial(0.1, score=0.5), trial(0.1, score=0.6))
    assert view(*seen).ranked() == [0, 2, 1]
    assert view(*seen, space={**SPACE, "schedule": choice("cosine", "constant")}).ranked() == [2, 1, 0]


def test_where_trials_fail_the_estimator_does_not_go() -> None:
    good = [trial(10 ** -(1 + index / 10), "b") for index in range(20)]
    failed = [trial(0.5 + index / 100, "b", state="failed", score=None) for index in range(20)]
    answers = [pure_tpe(view(*good, *failed, seed=seed))["lr"] for seed in range(30)]
    assert sum(lr > 0.45 for lr in answers) <= 3


def test_a_part_of_the_answers_is_random() -> None:
    seen = [trial(0.01, "aab"[index % 3], 2, score=float(index % 3 < 2)) for index in range(60)]
    model = sum(pure_tpe(view(*seen, seed=seed))["kind"] == "b" for seed in range(300))
    mixed = sum(tpe(view(*seen, seed=seed))["kind"] == "b" for seed in range(300))
    assert model < mixed < 60


def test_recent_trials_weigh_most() -> None:
    assert recency(3).tolist() == [1, 1, 1]
    weights = recency(100)
    assert len(weights) == 100
    assert weights[0] == pytest.approx(0.01)
    assert (weights[-25:] == 1).all()


def test_a_trial_that_violated_a_constraint_is_never_good() -> None:
    space = {"x": uniform(0.0, 1.0)}
    bad = [Seen({"x": 0.9}, "failed", (9.0,))] * 20
    view = View(space, (*bad, Seen({"x": 0.1}, "finished", (1.0,))), ("max",), 0)
    assert split(view)[0] == [view.seen[-1]]


def test_trials_under_way_do_not_make_more_of_the_others_good() -> None:
    read, under_way = [trial(n / 20, score=n) for n in range(10)], [trial(0.9, state="running") for _ in range(10)]
    assert len(split(view(*read, *under_way))[0]) == len(split(view(*read))[0]) == 2
