"""Conditional ranges: which fields of a space are present, given the values of others.

A condition names a field of the same space; the sampler's question goes through the fields in an order in which every
field comes after those that it depends on, and a field whose condition does not hold has no value at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from luthier.errors import LuthierError, close_matches
from luthier.tuning.ranges import Range, Space, Uniform


class Baseline(Protocol):
    """Where the values of fields outside the space come from: a `Recipe`, or anything with its `value`."""

    def value(self, path: str) -> Any:
        """The value at a dotted path.

        Raises:
            LuthierError: there is none.
        """


def is_conditional(space: Space) -> bool:
    """Whether any range has a condition."""
    return any(range_.conditions for range_ in space.values())


def ordered(space: Space) -> list[str]:
    """The paths, each after those that its conditions name; else in their own order.

    Raises:
        LuthierError: the conditions go in a circle.
    """
    order: list[str] = []
    waiting = list(space)
    while waiting:
        ready = [
            path for path in waiting if all(c.path in order or c.path not in space for c in space[path].conditions)
        ]
        if not ready:
            raise LuthierError(f"the conditions of {', '.join(waiting)} go in a circle: take one of them away")
        order.append(ready[0])
        waiting.remove(ready[0])
    return order


def present(range_: Range, values: Mapping[str, Any]) -> bool:
    """Whether a range's conditions hold; one on an absent field does not."""
    return all(c.path in values and c.holds(values[c.path]) for c in range_.conditions)


def active(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the fields that are present, in the order of the space; those of other fields are dropped."""
    if not is_conditional(space):
        return {path: values[path] for path in space}
    kept: dict[str, Any] = {}
    for path in ordered(space):
        if present(space[path], kept):
            kept[path] = values[path]
    return {path: kept[path] for path in space if path in kept}


def completed(space: Space, start: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """All values that are present: those that a group leaves alone stay where the search starts."""
    told = {**start, **values}
    return active({path: range_ for path, range_ in space.items() if path in told}, told)


def resolved(space: Space, baseline: Baseline) -> dict[str, Range]:
    """The space with conditions on its own fields only: those on other fields are decided by the baseline.

    An arm varies some fields of a space and leaves the rest at the baseline.
    """
    own: dict[str, Range] = {}
    for path in ordered(space):
        outer = [c for c in space[path].conditions if c.path not in space]
        if all(c.holds(value_or_none(baseline, c.path)) for c in outer):
            own[path] = replace(space[path], conditions=tuple(c for c in space[path].conditions if c.path in space))
    while lost := [path for path in own if any(c.path not in own for c in own[path].conditions)]:
        for path in lost:  # a field that depends on one that is never present
            del own[path]
    return {path: own[path] for path in space if path in own}


def configurations(space: Space, levels: Callable[[str], Iterable[Any]]) -> Iterator[dict[str, Any]]:
    """Every different configuration of the levels that each path has, in order."""
    order = ordered(space)

    def complete(values: dict[str, Any], rest: list[str]) -> Iterator[dict[str, Any]]:
        if not rest:
            yield {path: values[path] for path in space if path in values}
        elif not present(space[rest[0]], values):
            yield from complete(values, rest[1:])
        else:
            for value in levels(rest[0]):
                yield from complete({**values, rest[0]: value}, rest[1:])

    return complete({}, order)


def known(baseline: Baseline, paths: Iterable[str]) -> dict[str, Any]:
    """The baseline's values by path, of those that it has."""
    found = {}
    for path in paths:
        with suppress(LuthierError):
            found[path] = baseline.value(path)
    return found


def value_or_none(baseline: Baseline, path: str) -> Any:
    """The baseline's value; None where it has none."""
    return known(baseline, [path]).get(path)


def check_conditions(space: Space) -> None:
    """Whether every condition can be met.

    Raises:
        LuthierError: a condition on an unknown field, on a continuous one, on a value that its field never has, or
            conditions that go in a circle.
    """
    for path, range_ in space.items():
        for condition in range_.conditions:
            if condition.path not in space:
                hint = close_matches(condition.path, space)
                raise LuthierError(
                    f"space[{path!r}]: when() names {condition.path!r}, not a field of the space; {hint}"
                )
            parent = space[condition.path]
            if isinstance(parent, Uniform) and parent.step is None:
                raise LuthierError(
                    f"space[{path!r}]: when() needs a field with single values; {condition.path!r} is {parent}"
                )
            if bad := [value for value in condition.values if not parent.contains(value)]:
                raise LuthierError(
                    f"space[{path!r}]: when() asks {condition.path!r} for {bad[0]!r}, which {parent} never is"
                )
    ordered(space)
