"""Samplers that need no model: grid, random, the quasi-random sequences, and draws around known good values."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping
from typing import Any

from luthier.tuning.conditions import active
from luthier.tuning.ranges import Choice, Range, Uniform
from luthier.tuning.views import View, start

GRID_LEVELS = 5
"""Levels that the grid takes of a range without steps (both ends included); whole numbers: at most as many."""

GRID_STEPS = 1000
"""Steps that the grid takes of a range of real numbers with steps, at most."""

PRIOR_WIDTH = 0.2
"""Standard deviation of draws around a known good value, as a part of the range on its own scale."""

PRIOR_KEEPS = 0.5
"""Chance that a draw around a known good option is that option."""


def grid(view: View) -> dict[str, Any]:
    """One point of the grid, by its seed: in random order, so that a grid cut short is no corner of itself.

    A range without steps counts as `GRID_LEVELS` levels, one with steps as at most `GRID_STEPS`.
    """
    levels = {path: grid_levels(range_) for path, range_ in view.space.items()}
    index = view.rng("grid").randrange(math.prod(len(values) for values in levels.values()))
    return active(view.space, _at(levels, index))


def grid_levels(range_: Range) -> list[Any]:
    """The values of a range that the grid takes: of very many steps some, evenly spread."""
    return range_.levels(min(range_.size, GRID_STEPS) if isinstance(range_, Uniform) and range_.size else GRID_LEVELS)


def uniform_random(view: View) -> dict[str, Any]:
    """Every range drawn on its own scale."""
    rng = view.rng("random")
    return active(view.space, {path: range_.at(rng.random()) for path, range_ in view.space.items()})


def sobol(view: View) -> dict[str, Any]:
    """The next point of a scrambled Sobol sequence: covers the space more evenly than random draws.

    Source: Sobol 1967; scrambling: Matousek 1998 (`scipy.stats.qmc.Sobol`).
    """
    from scipy.stats import qmc

    return _point_of(view, qmc.Sobol(len(view.space), rng=view.stream))


def halton(view: View) -> dict[str, Any]:
    """The next point of a scrambled Halton sequence: for few dimensions, at any number of trials.

    Source: Halton 1960; scrambling: Owen 2017 (`scipy.stats.qmc.Halton`).
    """
    from scipy.stats import qmc

    return _point_of(view, qmc.Halton(len(view.space), rng=view.stream))


def _point_of(view: View, sequence: Any) -> dict[str, Any]:
    """The point of a sequence at the view's index: it follows from stream and index alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on balance, which single points never have
        if view.index:
            sequence.fast_forward(view.index)
        point = sequence.random(1)[0].tolist()
    return active(view.space, {path: r.at(part) for (path, r), part in zip(view.space.items(), point, strict=True)})


def around_defaults(view: View) -> dict[str, Any]:
    """A draw around the known good values: numbers truncated normal on their own scale, options mostly kept.

    A field without a known good value is drawn anywhere in its range.
    """
    rng = view.rng("prior")
    return active(view.space, {path: _around(range_, path, view, rng) for path, range_ in view.space.items()})


def _around(range_: Range, path: str, view: View, rng: random.Random) -> Any:
    if path not in view.defaults or not range_.contains(view.defaults[path]):
        return range_.at(rng.random())
    if isinstance(range_, Choice):
        return view.defaults[path] if rng.random() < PRIOR_KEEPS else range_.at(rng.random())
    position = -1.0
    while not 0.0 <= position <= 1.0:
        position = rng.gauss(start(range_, path, view), PRIOR_WIDTH)
    return range_.at(position)


def _at(levels: Mapping[str, list[Any]], index: int) -> dict[str, Any]:
    """The configuration at an index of the product of all levels."""
    values = {}
    for path, options in levels.items():
        index, place = divmod(index, len(options))
        values[path] = options[place]
    return values
