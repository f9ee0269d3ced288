"""A ranking by several objectives at once."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.tuning.pareto import by_front
from luthier.tuning.standings import Ranking


class Fronts(Ranking):
    """Trial numbers front by front, the least crowded of a front first; equal ones in the order of their numbers.

    Whoever joins may move all others, so the order is made anew at the first question after a change.

    Source: Deb et al. 2002, NSGA-II, for the order; Schmucker et al. 2021, Multi-objective Asynchronous Successive
    Halving, for its use at rungs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[int, int] = {}

    def put(self, number: int, *key: float) -> None:
        """Add a trial by its losses, or move it."""
        super().put(number, *key)
        self._places.clear()

    def drop(self, number: int) -> None:
        """Take a trial away, if it is there."""
        super().drop(number)
        self._places.clear()

    def place(self, number: int) -> int:
        """How many trials come before this one."""
        if not self._places:
            numbers = sorted(self._keys)
            order = by_front([self.key(each) for each in numbers])
            self._places = {numbers[index]: place for place, index in enumerate(order)}
        return self._places[number]

    @property
    def first(self) -> int | None:
        """The first trial; None when there is none."""
        return next(iter(self), None)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._keys, key=self.place))
