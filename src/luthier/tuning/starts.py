"""The first trials of a search: what the call names, known-good settings, or the middle of a function's space."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from luthier.errors import LuthierError, close_matches
from luthier.training.known_good import ADAPTIVE, FOR_ADAPTIVE, FOR_FEW_EXAMPLES, FOR_SGD
from luthier.tuning.conditions import active, ordered, present, resolved
from luthier.tuning.ranges import Choice, Uniform
from luthier.tuning.values import unwrapped

if TYPE_CHECKING:
    from luthier.recipe import Recipe
    from luthier.tuning.searched import Searched
    from luthier.tuning.space import Range

NAMED = "named by the call"
"""Why a configuration of `tune(first=...)` is tried."""

_WORDS = "width|units|neurons|channels|filters|dim|d_model|hidden(?!_?(layer|depth))"
_UNITS = re.compile(rf"((?<![a-z])|(?=[A-Z]))(?i:({_WORDS})s?)(?![a-z])")


def named(first: Any, searched: Searched, arms: Mapping[str, list[str]]) -> list[tuple[str, dict[str, Any]]]:
    """The configurations that a call names: the arm of each, and all of its values.

    Args:
        first: configurations, each with values by dotted path or name.
        searched: knows the ranges, and the values that are left out.
        arms: of the study, with their fields.

    Raises:
        LuthierError: a name or a value that the space does not have, names of several groups, or values of fields that
            are not present with the others.
    """
    if not isinstance(first, (list, tuple)) or not all(isinstance(each, Mapping) and each for each in first):
        raise LuthierError(f"first must be a list of configurations such as [{{'lr': 0.1}}], got {first!r}")
    return [_named(f"first[{index}]", values, searched, arms) for index, values in enumerate(first)]


def _named(
    where: str, values: Mapping[str, Any], searched: Searched, arms: Mapping[str, list[str]]
) -> tuple[str, dict[str, Any]]:
    for path, value in values.items():
        if path not in searched.space:
            hint = close_matches(path, searched.space)
            raise LuthierError(f"{where} names {path!r}, which the space does not have: {hint}")
        if not searched.space[path].contains(value := unwrapped(value)):
            raise LuthierError(
                f"{where}: {path}={value!r} is not in {searched.space[path]}: widen the range, or change the value"
            )
    arm = next((arm for arm, fields in arms.items() if values.keys() <= set(fields)), None)
    if arm is None:
        raise LuthierError(f"{where} names {', '.join(values)}, which no single group tunes: {dict(arms)}")
    ranges = resolved({path: searched.space[path] for path in arms[arm]}, searched.start)
    own = {path: searched.space[path].own(unwrapped(value)) for path, value in values.items()}
    whole = searched.filled(ranges, own)
    if absent := own.keys() - whole.keys():
        raise LuthierError(
            f"{where}: {', '.join(sorted(absent))} has no place beside {whole or 'the baseline'}: leave it out, "
            "or name what brings it in"
        )
    return arm, whole


def known_good(ranges: Mapping[str, Range], baseline: Recipe, few_examples: bool = False) -> Iterator[dict[str, Any]]:
    """Values for the first trials: known-good ones where the ranges hold them, the baseline's own elsewhere.

    With few examples for so large a network (see `known_good.PARAMETERS_PER_EXAMPLE`) the first has dropout, unless the
    baseline has some.

    A value of the baseline outside its range (no weight decay, where the range begins at 1e-6) is moved to its edge. A
    range whose condition does not hold has no value.
    """
    space = resolved(ranges, baseline)
    starts = FOR_ADAPTIVE if getattr(baseline.optimizer, "name", "") in ADAPTIVE else FOR_SGD
    if few_examples and starts is FOR_ADAPTIVE and not baseline.dropout:
        starts = ({**starts[0], **FOR_FEW_EXAMPLES}, *starts[1:])
    for start in starts:
        fitting = {path: value for path, value in start.items() if path in space and space[path].contains(value)}
        values = filled(fitting, space, baseline)
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
    middle = {path: centre(range_) for path, range_ in ranges.items()}
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


def centre(range_: Range) -> Any:
    """The middle of a range on its own scale; of options that are numbers the middle one, of others the first."""
    if not isinstance(range_, Choice):
        return range_.at(0.5)
    options = range_.options
    return sorted(options)[(len(options) - 1) // 2] if _are(options, (int, float)) else options[0]


def filled(fitting: Mapping[str, Any], space: Mapping[str, Range], baseline: Recipe) -> dict[str, Any]:
    """A value for each range that is present, the baseline's where none is given.

    None at all where the recipe has no such setting.
    """
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
