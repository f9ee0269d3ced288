"""CMA-ES over a view: the strategy's generations are gone through anew from the trials seen.

Nothing is kept between questions, so that the answer follows from the ledger alone. A generation is as many ended
trials as the population has, in the order of their numbers; with several workers a few of them were drawn from the
generation before, which the strategy takes as they are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.tuning.conditions import active
from luthier.tuning.ranges import Choice
from luthier.tuning.views import Seen, View, start

SIGMA = 0.25
"""First step size, as a part of each range on its own scale."""


def cmaes(view: View) -> dict[str, Any]:
    """Covariance matrix adaptation for numbers; a distribution learnt with the same generations for choices.

    For many trials and few, dependent, numeric fields. Starts at the known good values. Fields that were
    absent from a trial stand at their start.

    Source: Hansen 2016, The CMA Evolution Strategy: A Tutorial; the choices: Baluja 1994, Population-Based
    Incremental Learning (here with the weights of the strategy's better half).
    """
    choices = {path: range_ for path, range_ in view.space.items() if isinstance(range_, Choice)}
    numbers = [path for path in view.space if path not in choices]
    population = 4 + math.floor(3 * math.log(len(view.space)))
    generations = _generations(view, population)
    rng = np.random.default_rng(view.seed)
    values = {path: _draw_option(path, range_, generations, rng) for path, range_ in choices.items()}
    if numbers:
        values |= _draw_numbers(view, numbers, generations, population)
    return active(view.space, values)


def _generations(view: View, population: int) -> list[list[Seen]]:
    """Complete generations of the trials that do not run, each best first."""
    place = {index: rank for rank, index in enumerate(view.ranked())}
    told = sorted(place)
    whole = len(told) - len(told) % population
    generations = [told[at : at + population] for at in range(0, whole, population)]
    return [[view.seen[index] for index in sorted(each, key=place.__getitem__)] for each in generations]


def _draw_numbers(view: View, paths: list[str], generations: list[list[Seen]], population: int) -> dict[str, Any]:
    from cmaes import CMA

    centre = np.array([start(view.space[path], path, view) for path in paths])
    bounds = np.array([[0.0, 1.0]] * len(paths))
    strategy = CMA(centre, SIGMA, bounds=bounds, seed=0, population_size=population)
    for generation in generations:  # the strategy reads ranks only
        strategy.tell([(_position(view, paths, seen), float(rank)) for rank, seen in enumerate(generation)])
    strategy.reseed_rng(view.seed)
    return {path: view.space[path].at(part) for path, part in zip(paths, strategy.ask().tolist(), strict=True)}


def _position(view: View, paths: list[str], seen: Seen) -> NDArray[np.float64]:
    """Where a trial lies on the scales of these fields."""
    parts = [
        view.space[path].position(seen.values[path]) if path in seen.values else start(view.space[path], path, view)
        for path in paths
    ]
    return np.array(parts)


def _draw_option(path: str, range_: Choice, generations: list[list[Seen]], rng: np.random.Generator) -> Any:
    """An option, by the shares that the better halves of the generations gave it; none ever falls out."""
    shares = np.full(range_.size, 1 / range_.size)
    for generation in generations:
        better = [seen.values[path] for seen in generation[: len(generation) // 2] if path in seen.values]
        if better:
            counts = np.array([better.count(option) for option in range_.options]) / len(better)
            shares = np.maximum(0.7 * shares + 0.3 * counts, 0.1 / range_.size)
    return range_.options[rng.choice(range_.size, p=shares / shares.sum())]
