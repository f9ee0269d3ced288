"""Samplers that learn with Optuna: Gaussian process, NSGA-II, any object of Optuna's; and our prior mixture."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from luthier.errors import LuthierError
from luthier.tuning.conditions import active, is_conditional
from luthier.tuning.drawing import around_defaults
from luthier.tuning.optuna_view import Translation, ask
from luthier.tuning.parzen import pure_tpe
from luthier.tuning.ranges import Choice, Uniform
from luthier.tuning.views import Sampler, Seen, View

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

PRIOR_TRIALS = 10
"""After so many trials with a reading, half of the prior mixture's answers come from the model."""

_GP_STARTUP = 8
_GP_SEES = (60, 60)  # best trials and most recent of the others; its fit takes the cube of them
_GP_STEPS = 10_000  # a range of more is a continuum to it
_POPULATION = 20
_NSGAII_SEES = (100, 200)


def gp(view: View) -> dict[str, Any]:
    """Optuna's Gaussian process: for costly trials and few of them.

    It reads completed trials only, so paused ones are completed with their last value. Fields with conditions are
    modelled as if always present; an absent one stands in the middle of its range.
    """
    from optuna.samplers import GPSampler

    flat = _flat(view)
    smooth = _smooth(flat)
    sampler = GPSampler(seed=view.seed, n_startup_trials=_GP_STARTUP)
    values = ask(smooth, sampler, Translation(smooth).completed(telling(smooth, *_GP_SEES)))
    stepped = {path: flat.space[path].at(values[path]) for path in values if smooth.space[path] is not flat.space[path]}
    return active(view.space, values | stepped)


def nsgaii(view: View) -> dict[str, Any]:
    """Optuna's NSGA-II: for several objectives and many trials.

    Generations are counted off the trials in the order of their numbers, so that nothing needs to be kept between
    questions; of many trials it sees the best and the most recent.

    Source: Deb et al. 2002, A Fast and Elitist Multiobjective Genetic Algorithm.
    """
    from optuna.samplers import NSGAIISampler

    sampler = NSGAIISampler(seed=view.seed, population_size=_POPULATION)
    return from_optuna_object(sampler)(replace(view, seen=telling(view, *_NSGAII_SEES)))


def prior(view: View) -> dict[str, Any]:
    """TPE, mixed with draws around the known good values; their share decays as trials come in.

    With n readings, 10 / (10 + n) of the answers are such draws. Wrong known values cost a part of the first trials,
    and never the later ones.

    Source: Hvarfner et al. 2022, piBO (a prior whose weight decays with the trials); Mallik et al. 2023, PriorBand
    (a mixture of prior and model).
    """
    n = sum(seen.scores is not None for seen in view.seen)
    return around_defaults(view) if view.rng("share").random() < PRIOR_TRIALS / (PRIOR_TRIALS + n) else pure_tpe(view)


def from_optuna_object(sampler: BaseSampler) -> Sampler:
    """One of Optuna's samplers, or of a class derived from them, as one of ours: a fresh copy for each question.

    Raises:
        LuthierError: one that keeps its state in Optuna's study, which is made anew for each question.
    """
    import optuna

    if isinstance(sampler, (optuna.samplers.QMCSampler, optuna.samplers.CmaEsSampler, optuna.samplers.GridSampler)):
        names = "'sobol', 'halton', 'cmaes' and 'grid'"
        raise LuthierError(
            f"{type(sampler).__name__} keeps its place in Optuna's own study and would begin anew with each trial: "
            f"use one of Luthier's {names} instead"
        )

    def sample(view: View) -> dict[str, Any]:
        fresh = copy.deepcopy(sampler)
        reseed(fresh, view.seed)
        if isinstance(fresh, optuna.samplers.TPESampler):
            return ask(view, fresh, _for_tpe(view, view.seen))
        flat = _flat(view)
        return active(view.space, ask(flat, fresh, Translation(flat, _generation(fresh)).completed(flat.seen)))

    return sample


def reseed(sampler: BaseSampler, seed: int) -> None:
    """Seed every random state of a sampler: its own method takes the seed from the operating system."""
    from optuna.samplers import BaseSampler
    from optuna.samplers._lazy_random_state import LazyRandomState

    for part in vars(sampler).values():
        if isinstance(part, LazyRandomState):
            part.rng.seed(seed)
        elif isinstance(part, BaseSampler):
            reseed(part, seed)


def telling(view: View, n_best: int, n_recent: int) -> tuple[Seen, ...]:
    """The best trials and the most recent of the others, in order: more would cost time and change little."""
    if len(view.seen) <= n_best + n_recent:
        return view.seen
    best = set(view.ranked(n_best))
    recent = [index for index in range(len(view.seen)) if index not in best][-n_recent:]
    return tuple(view.seen[index] for index in sorted(best.union(recent)))


def _for_tpe(view: View, seen: tuple[Seen, ...]) -> list[Any]:
    """One objective: cut short is PRUNED. With several, Optuna's TPE cannot read that: they are completed."""
    translation = Translation(view)
    if len(view.directions) > 1:
        return translation.completed(seen)
    return [translation.unfinished(each) for each in seen]


def _flat(view: View) -> View:
    """The view without conditions: every field is present, absent ones stand in the middle of their ranges."""
    if not is_conditional(view.space):
        return view
    space = {path: replace(range_, conditions=()) for path, range_ in view.space.items()}
    middle = {path: range_.at(0.5) for path, range_ in space.items()}
    return replace(view, space=space, seen=tuple(seen._replace(values=middle | seen.values) for seen in view.seen))


def _smooth(view: View) -> View:
    """The view with ranges of very many steps as positions in them: Optuna's process would list every step."""
    fine = {
        path: range_
        for path, range_ in view.space.items()
        if not isinstance(range_, Choice) and (range_.size or 0) > _GP_STEPS
    }
    if not fine:
        return view

    def smooth(values: dict[str, Any]) -> dict[str, Any]:
        return {path: fine[path].position(value) if path in fine else value for path, value in values.items()}

    seen = tuple(each._replace(values=smooth(each.values)) for each in view.seen)
    return replace(view, space={**view.space, **dict.fromkeys(fine, Uniform(0.0, 1.0))}, seen=seen)


def _generation(sampler: BaseSampler) -> Any:
    """For a genetic algorithm, the note of its generation that Optuna leaves in a trial."""
    from optuna.samplers._ga import BaseGASampler

    if not isinstance(sampler, BaseGASampler) or not sampler.population_size:
        return lambda _: {}
    key, size = sampler._get_generation_key(), sampler.population_size
    return lambda index: {key: index // size}
