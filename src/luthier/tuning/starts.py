"""The first trials of a search: known-good settings where the space holds them, or the middle of a function's space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from luthier.errors import LuthierError
from luthier.training.known_good import ADAPTIVE, FOR_ADAPTIVE, FOR_SGD
from luthier.tuning.conditions import active, ordered, present, resolved
from luthier.tuning.ranges import Choice, Uniform

if TYPE_CHECKING:
    from luthier.recipe import Recipe
    from luthier.tuning.space import Range


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


def centre(ranges: Mapping[str, Range]) -> dict[str, Any]:
    """The middle of each range on its own scale: whoever names a range has put what is likely to work inside.

    Of options that are numbers the middle one, of others the first, as people name what they use themselves first.

    >>> from luthier.tuning.ranges import Uniform
    >>> centre({"lr": Uniform(1e-5, 1e-1, log=True), "width": Choice((32, 64, 128)), "act": Choice(("relu", "tanh"))})
    {'lr': 0.001, 'width': 64, 'act': 'relu'}

    Source: the first trial of Ax 1 (`CenterGenerationNode`).
    """
    return active(ranges, {path: _middle(range_) for path, range_ in ranges.items()})


def plain_centre(ranges: Mapping[str, Range]) -> dict[str, Any]:
    """The same without what may be left out: real numbers of a range that begins at 0 are 0.

    Such a range is that of a dropout, a smoothing, a penalty: a short training is better without.

    >>> from luthier.tuning.ranges import Uniform
    >>> plain_centre({"lr": Uniform(1e-5, 1e-1, log=True), "dropout": Uniform(0.0, 0.5)})
    {'lr': 0.001, 'dropout': 0.0}
    """
    nothing = {path: 0.0 for path, range_ in ranges.items() if _may_be_nothing(range_)}
    return active(ranges, {path: nothing.get(path, _middle(range_)) for path, range_ in ranges.items()})


def _may_be_nothing(range_: Range) -> bool:
    return isinstance(range_, Uniform) and range_.low == 0


def _middle(range_: Range) -> Any:
    if not isinstance(range_, Choice):
        return range_.at(0.5)
    numbers = all(isinstance(option, (int, float)) and not isinstance(option, bool) for option in range_.options)
    return sorted(range_.options)[(len(range_.options) - 1) // 2] if numbers else range_.options[0]


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
