import random
import threading
from typing import Any

import optuna
import pytest

from luthier.errors import LuthierError
from luthier.tuning.modelling import _flat, from_optuna_object, nsgaii, telling
from luthier.tuning.optuna_view import Translation, quiet, to_distribution
from luthier.tuning.space import choice, integers, loguniform, uniform
from luthier.tuning.views import Seen, View

SPACE = {"dropout": uniform(0.0, 0.5), "augment": choice((), ("flip",)), "width": integers(1, 6, step=2)}


def view(*seen: Seen, directions: tuple[str, ...] = ("max",), space: Any = SPACE, seed: int = 0) -> View:
    return View(space, seen, directions, seed)


def seen(state: str, *scores: float, share: float = 1.0, dropout: float = 0.1) -> Seen:
    return Seen({"dropout": dropout, "augment": (), "width": 3}, state, scores or None, share)


def many(n: int, *functions: Any) -> tuple[Seen, ...]:
    rng = random.Random(0)
    values = [{path: range_.at(rng.random()) for path, range_ in SPACE.items()} for _ in range(n)]
    return tuple(Seen(each, "finished", tuple(f(each) for f in functions)) for each in values)


def test_what_optuna_is_told() -> None:
    trials = (seen("finished", 0.9), seen("paused", 0.4, share=1 / 3), seen("running", 0.6), seen("failed", 0.8))
    translation = Translation(view(*trials))
    for_tpe = [translation.unfinished(each) for each in trials]
    assert [trial.state.name for trial in for_tpe] == ["COMPLETE", "PRUNED", "RUNNING", "PRUNED"]
    assert for_tpe[1].intermediate_values == {333: 0.4}
    assert for_tpe[3].constraints == {"trains": 1.0}
    completed = translation.completed(trials)
    assert [trial.state.name for trial in completed] == ["COMPLETE", "COMPLETE", "RUNNING", "COMPLETE"]
    assert [trial.values for trial in completed if trial.values] == [[0.9], [0.4], [0.4]]  # failed: the worst
    assert [trial.constraints.get("trains") for trial in completed] == [-1.0, -1.0, None, 1.0]
    assert completed[0].params == {"dropout": 0.1, "augment": "[]", "width": 3}
    assert Translation(view(seen("failed"))).completed((seen("failed"),)) == []


def test_ranges_become_distributions() -> None:
    assert str(to_distribution(integers(1, 6, step=2))) == "IntDistribution(high=5, log=False, low=1, step=2)"
    assert to_distribution(loguniform(1e-3, 1)).log
    assert to_distribution(choice((), ("flip",))).choices == ("[]", '["flip"]')


OBJECTS = [
    optuna.samplers.TPESampler(),
    optuna.samplers.TPESampler(multivariate=False),
    optuna.samplers.RandomSampler(),
    optuna.samplers.NSGAIISampler(population_size=6),
    optuna.samplers.GPSampler(n_startup_trials=4),
]


@pytest.mark.parametrize("sampler", OBJECTS, ids=lambda sampler: type(sampler).__name__)
def test_any_object_of_optuna_answers_from_the_view_alone(sampler: Any) -> None:
    known = many(14, lambda v: v["width"])
    sample = from_optuna_object(sampler)
    first = sample(view(*known, seed=5))
    assert list(first) == list(SPACE)
    assert all(SPACE[path].contains(value) for path, value in first.items())
    assert sample(view(*known, seed=5)) == first  # nothing is kept between questions
    by_seed = any(sample(view(*known, seed=seed)) != first for seed in (6, 7))
    assert by_seed or isinstance(sampler, optuna.samplers.GPSampler)  # one optimum


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("kind", ["QMCSampler", "CmaEsSampler"])
def test_objects_that_would_forget_are_refused(kind: str) -> None:
    sampler = getattr(optuna.samplers, kind)(seed=0)
    with pytest.raises(LuthierError, match="'sobol', 'halton', 'cmaes'"):
        from_optuna_object(sampler)


def test_several_objectives_reach_optuna() -> None:
    trials = many(45, lambda v: 1 - abs(v["dropout"] - 0.4), lambda v: v["width"])
    both = view(*trials, directions=("max", "min"))
    answers = [nsgaii(view(*trials, directions=("max", "min"), seed=seed)) for seed in range(20)]
    assert sum(answer["width"] == 1 for answer in answers) >= 10  # a third, if by chance
    assert from_optuna_object(optuna.samplers.TPESampler(seed=1))(both).keys() == SPACE.keys()


def test_a_sampler_without_conditions_sees_absent_fields_in_the_middle() -> None:
    space = {"kind": choice("a", "b"), "x": uniform(0, 4).when("kind", "a")}
    flat = _flat(View(space, (Seen({"kind": "b"}, "finished", (1.0,)),), ("max",), 0))
    assert flat.seen[0].values == {"kind": "b", "x": 2.0}
    assert flat.space["x"].conditions == ()


def test_models_are_told_the_best_and_the_most_recent() -> None:
    trials = tuple(seen("finished", float(value)) for value in (9, 1, 8, 2, 3, 4, 5))
    assert [each.scores for each in telling(view(*trials), 2, 3)] == [(9.0,), (8.0,), (3.0,), (4.0,), (5.0,)]


def test_quiet_lasts_until_the_last_thread_leaves() -> None:
    before = optuna.logging.get_verbosity()
    with quiet():
        thread = threading.Thread(target=quiet().__enter__)
        thread.start()
        thread.join()
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR
    quiet().__exit__()
    assert optuna.logging.get_verbosity() == before
