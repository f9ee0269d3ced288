"""Ranges at whose ends the best trials crowd: beyond there may be better values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.tuning.ranges import Choice, Range
from luthier.tuning.standings import standings

if TYPE_CHECKING:
    from luthier.tuning.state import State, Trial

KNOWN_GOOD = "known-good settings"
"""The source of trials that begin a search."""

_CROWD = 3
_EDGE = 0.05


@dataclass(frozen=True)
class Edge:
    """A range that may be too narrow.

    Attributes:
        path: of the range.
        range: as it was at the end.
        end: "lower" or "upper".
        trials: numbers of the best trials, which lie at that end or beyond it, best first.
    """

    path: str
    range: Range
    end: str
    trials: tuple[int, ...]

    def __str__(self) -> str:
        best = ", ".join(f"#{number}" for number in self.trials)
        other = "lower" if self.end == "lower" else "higher"
        where = f"at the {self.end} end of {self.path} {self.range}"
        return f"the best trials ({best}) lie {where}: {other} values may be better"


def crowded(space: Mapping[str, Range], state: State, arms: Mapping[str, Iterable[str]]) -> list[Edge]:
    """Ranges at whose end an arm's best trials lie, but for a zero below which there is nothing.

    Known-good settings were put where they are: where they are most of the best, nothing was found there.
    """
    found: dict[str, Edge] = {}
    for arm, fields in arms.items():
        best = best_of(state, arm)
        if 2 * sum(trial.source == KNOWN_GOOD for trial in best) > len(best):
            continue
        for path in fields:
            end = end_of(path, space[path], best)
            if end is not None and not (end == "lower" and getattr(space[path], "low", None) == 0):
                found.setdefault(path, Edge(path, space[path], end, tuple(trial.number for trial in best)))
    return list(found.values())


def best_of(state: State, arm: str) -> list[Trial]:
    """The arm's best finished trials, at most three; none where the search only began with them: that says nothing."""
    best = [state.trials[number] for number in standings(state).finished if state.trials[number].arm == arm][:_CROWD]
    return [] if all(trial.source == KNOWN_GOOD for trial in best) else best


def end_of(path: str, range_: Range, best: list[Trial]) -> str | None:
    """At which end of a range of numbers the best three lie; the best one is enough where it lies beyond.

    An end is a twentieth of the range on its scale: a few whole numbers have none.
    """
    if isinstance(range_, Choice):
        return None
    found = [trial.values.get(path) for trial in best]
    values = [float(value) for value in found if value is not None and (value or not range_.log)]
    if not values or len(values) < len(best):
        return None
    places = [range_.position(value) for value in values]  # type: ignore[arg-type]
    crowd = len(places) == _CROWD
    if values[0] < range_.low or (crowd and max(places) <= _EDGE):
        return "lower"
    return "upper" if values[0] > range_.high or (crowd and min(places) >= 1 - _EDGE) else None
