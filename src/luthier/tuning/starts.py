"""The first trials of a search: known-good settings where the space holds them, or the middle of a function's space."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from luthier.errors import LuthierError
from luthier.training.known_good import ADAPTIVE, FOR_ADAPTIVE, FOR_SGD
from luthier.tuning.conditions import active, ordered, present, resolved
from luthier.tuning.ranges import Choice, Uniform

if TYPE_CHECKING:
    from luthier.recipe import Recipe
    from luthier.tuning.space import Range

_WORDS = "width|units|neurons|channels|filters|dim|d_model|hidden(?!_?(layer|depth))"
_UNITS = re.compile(rf"((?<![a-z])|(?=[A-Z]))(?i:({_WORDS})s?)(?![a-z])")


def known_good(ranges: Mapping[str, Range], baseline: Recipe) -> Iterator[dict[str, Any]]:
    """Values for the first trials: known-good ones where the ranges hold them, the baseline's own elsewhere.

    A value of the baseline outside its range (no weight decay, where the range begins at 1e-6) is moved to its edge. A
    range whose condition does not hold has no value.
    """
    space = resolved(ranges, baseline)
    for start in FOR_ADAPTIVE if getattr(baseline.optimizer, "name", "") in ADAPTIVE else FOR_SGD:
        fitting = {path: value for path, value in start.items() if path in space and space[path].contains(value)}
        values = _completed(fitting, space, baseline)
        if fitting.keys() & values.keys() and all(space[path].contains(value) for path, value in values.items()):
            yield values


def centres(ranges: Mapping[str, Range]) -> list[tuple[str, dict[str, Any]]]:
    """The middle of a function's space: first without what may be left out, as it is, and with the largest network.

    The middle is that of each range on its own scale: whoever names a range has put what is likely to work inside. Of
    options that are numbers the middle one, of others the first, as people name what they use themselves first. What
    may be left out are real numbers of a range that begins at 0 (a dropout, a smoothing, a penalty): a short training
    is better without. Numbers of units are known by their names (`width`, `hidden_size`, `n_units`, ...): after as many
    epochs the largest network is seldom behind.

    >>> from luthier.tuning.ranges import Integers, Uniform
    >>> for reason, values in centres({"dropout": Uniform(0.0, 0.5), "width": Integers(32, 128, log=True)}):
    ...     print(reason, values)
    the middle of the space without what may be left out {'dropout': 0.0, 'width': 64}
    the middle of the space {'dropout': 0.25, 'width': 64}
    the middle of the space with the largest network {'dropout': 0.25, 'width': 128}

    Source: the first trial of Ax 1 (`CenterGenerationNode`); the others from trainings by hand (see LOG.md).
    """
    middle = {path: _middle(range_) for path, range_ in ranges.items()}
    plain = {path: 0.0 for path, range_ in ranges.items() if isinstance(range_, Uniform) and range_.low == 0}
    largest = {path: max(_ends(range_)) for path, range_ in ranges.items() if _counts_units(path, range_)}
    changes = {" without what may be left out": plain, "": {}, " with the largest network": largest}
    return [
        (f"the middle of the space{how}", active(ranges, middle | change))
        for how, change in changes.items()
        if change or not how
    ]


def _counts_units(path: str, range_: Range) -> bool:
    """Whether it is the number of units of a layer."""
    return _UNITS.search(path) is not None and _are(_ends(range_), int)


def _ends(range_: Range) -> tuple[Any, ...]:
    return range_.options if isinstance(range_, Choice) else (range_.at(0.0), range_.at(1.0))  # a step may end before


def _are(values: Iterable[Any], numbers: type | tuple[type, ...]) -> bool:
    return all(isinstance(value, numbers) and not isinstance(value, bool) for value in values)


def _middle(range_: Range) -> Any:
    if not isinstance(range_, Choice):
        return range_.at(0.5)
    options = range_.options
    return sorted(options)[(len(options) - 1) // 2] if _are(options, (int, float)) else options[0]


def _completed(fitting: Mapping[str, Any], space: Mapping[str, Range], baseline: Recipe) -> dict[str, Any]:
    """A value for each range that is present; none at all where the recipe has no such setting."""
    values: dict[str, Any] = {}
    for path in ordered(space):
        if not present(space[path], values):
            continue
        try:
            values[path] = fitting[path] if path in fitting else _within(space[path], _own(path, values, baseline))
        except LuthierError:
            return {}
    return {path: values[path] for path in space if path in values}


def _own(path: str, values: Mapping[str, Any], baseline: Recipe) -> Any:
    """The baseline's value; where it lacks the part, what that part begins with when these values bring it in."""
    try:
        return baseline.value(path)
    except LuthierError:
        return baseline.replace(dict(values)).value(path)


def _within(range_: Range, value: Any) -> Any:
    """The value, or the edge of a range of numbers that is nearest to it; its low end for what is not set.

    Of options that do not hold the value the middle one.
    """
    if isinstance(range_, Choice):
        return value if range_.contains(value) else range_.options[(len(range_.options) - 1) // 2]
    low, high = getattr(range_, "low", None), getattr(range_, "high", None)
    if range_.contains(value) or low is None or high is None:
        return value
    return min(max(value, low), high) if isinstance(value, (int, float)) else low
