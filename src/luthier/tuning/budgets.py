"""Budgets: how much a study may take in all, over all of its calls, search and repeats together.

A budget of time is followed by the clock: what a training takes can only be guessed, and what is under way when the
time is over pauses. One of steps or epochs follows from the ledger alone: what a training takes is known before it
begins, so nothing begins that does not fit. Steps that are repeated, after a crash or without a checkpoint, count once.
"""

from __future__ import annotations

import re
import statistics
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from math import fsum
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.errors import LuthierError
from luthier.tuning.standings import Follower, follow, standings
from luthier.tuning.state import State, Trial

if TYPE_CHECKING:
    from luthier.tuning.jobs import Start

_SECONDS = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_WORK = {"step": "steps", "steps": "steps", "epoch": "epochs", "epochs": "epochs"}
_LATEST = 101
_MARGIN = 1.15  # repeats may take longer than the trials that they repeat
_GRAIN = 1e-6  # parts of epochs add up to whole ones up to rounding


@dataclass(frozen=True)
class Budget(ABC):
    """How much a study may take.

    Attributes:
        total: in the budget's own unit, over all calls, above 0.
        exact: whether it is known beforehand what a training takes.
    """

    total: float
    exact: ClassVar[bool]

    @abstractmethod
    def used(self, state: State, clock: float) -> float:
        """What the study has taken at this time."""

    @abstractmethod
    def beginning(self, start: Start) -> float | None:
        """What a new trial takes to its first stop; None while nobody knows."""

    @abstractmethod
    def rest(self, trial: Trial, until: int) -> float | None:
        """What a trial takes from where it is to a step; None while nobody knows."""

    @abstractmethod
    def whole(self, trial: Trial) -> float | None:
        """What a trial takes from beginning to end; None while nobody knows."""

    @abstractmethod
    def typical(self, state: State) -> float | None:
        """Median of what whole trials of the search take, over the latest ones; None before the first is known."""

    @abstractmethod
    def over(self, state: State, clock: float) -> bool:
        """Whether trainings under way must pause."""

    def spent(self, state: State) -> str:
        """What has been used of it, in words; "" where the clock says it."""
        return ""

    @abstractmethod
    def together(self, costs: list[float], workers: int) -> float:
        """What several trainings take side by side, with what the study's end takes."""


@dataclass(frozen=True)
class Time(Budget):
    """Seconds at work.

    Attributes:
        closing_s: set aside for reading the test data and closing.
    """

    closing_s: float = 0.0
    exact: ClassVar[bool] = False

    def used(self, state: State, clock: float) -> float:
        """The clock."""
        return clock

    def beginning(self, start: Start) -> float | None:
        """Nobody knows."""
        return None

    def rest(self, trial: Trial, until: int) -> float | None:
        """At the trial's own pace."""
        return trial.time_s / trial.step * (until - trial.step) if trial.step else None

    def whole(self, trial: Trial) -> float | None:
        """At the trial's own pace."""
        return trial.expected_s

    def typical(self, state: State) -> float | None:
        """Of those that have read something."""
        return standings(state).typical_s

    def over(self, state: State, clock: float) -> bool:
        """When the time is."""
        return clock >= self.total

    def together(self, costs: list[float], workers: int) -> float:
        """As long as the longest, or as all of them on so many workers."""
        longest = max(sum(costs) / workers, max(costs)) if costs else 0.0
        return self.closing_s + _MARGIN * longest

    def __str__(self) -> str:
        return f"{self.total:g} s"


@dataclass(frozen=True)
class Work(Budget):
    """Optimizer steps (for a function: steps that it reports), or epochs: examples seen over training examples.

    Attributes:
        unit: "steps" or "epochs".
        epochs: of a whole training, unless its own values say otherwise.
    """

    unit: str = "steps"
    epochs: int = 1
    exact: ClassVar[bool] = True

    def used(self, state: State, clock: float) -> float:
        """What has been trained, with all that trainings under way were ordered to."""
        return self._tally(state).total

    def beginning(self, start: Start) -> float:
        """Its steps to there."""
        return start.until_step * self.price(start)

    def rest(self, trial: Trial, until: int) -> float | None:
        """Its steps from here to there; None for a training that nobody knows the length of."""
        return None if until > trial.total_steps else (until - trial.step) * self.price(trial)

    def whole(self, trial: Trial) -> float:
        """All of its steps."""
        return trial.total_steps * self.price(trial)

    def typical(self, state: State) -> float | None:
        """Of all that have begun."""
        latest = islice((trial for trial in reversed(state.trials) if trial.kind == "search"), _LATEST)
        return statistics.median(costs) if (costs := [self.whole(trial) for trial in latest]) else None

    def over(self, state: State, clock: float) -> bool:
        """When it is spent while trainings are under way whose length nobody knew."""
        return bool(self._tally(state).boundless) and self.used(state, clock) >= self.total

    def spent(self, state: State) -> str:
        """Such as "7,200 of 20,000 steps"."""
        return f"{self.used(state, 0.0):,.0f} of {self}"

    def together(self, costs: list[float], workers: int) -> float:
        """All that they take."""
        return fsum(costs)

    def price(self, trial: Trial | Start) -> float:
        """What one step of a trial counts."""
        epochs, steps = self.length(trial)
        return epochs / steps

    def length(self, trial: Trial | Start) -> tuple[float, int]:
        """Of how many units a whole trial is, and of how many steps."""
        if self.unit == "steps":
            return 1, 1
        return float(trial.values.get("epochs", self.epochs)), trial.total_steps

    def _tally(self, state: State) -> _Tally:
        tally: _Tally = follow(state, self, lambda: _Tally(self))
        return tally

    def __str__(self) -> str:
        return f"{self.total:,.12g} {self.unit}"


class _Tally(Follower):
    """What a study's trainings have taken: the same sum in whatever order they are looked at.

    Attributes:
        boundless: trainings under way that nobody knows the length of.
    """

    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work
        self._steps: Counter[tuple[float, int]] = Counter()
        self._by_trial: dict[int, tuple[tuple[float, int], int]] = {}
        self.boundless: set[int] = set()

    def take(self, state: State, trial: Trial) -> None:
        """Take in how a trial stands now."""
        length, steps = self._work.length(trial), trial.step
        self.boundless.discard(trial.number)
        if trial.state == "running" and trial.until <= trial.total_steps:
            steps = max(steps, trial.until)
        elif trial.state == "running":
            self.boundless.add(trial.number)
        if (before := self._by_trial.get(trial.number)) is not None:
            self._steps[before[0]] -= before[1]
        self._by_trial[trial.number] = length, steps
        self._steps[length] += steps

    @property
    def total(self) -> float:
        """In the budget's unit."""
        return fsum(count * (units / steps) for (units, steps), count in self._steps.items())


def fits(cost: float | None, left: float | None) -> bool:
    """Whether what something takes is within what is left; either may be unknown or without limit: None."""
    return cost is None or left is None or cost <= left + _GRAIN


def read_budget(told: str | float) -> tuple[float, str]:
    """A budget's amount and unit: "s", "steps" or "epochs".

    >>> read_budget("5min"), read_budget("20000 steps"), read_budget("300epochs")
    ((300.0, 's'), (20000.0, 'steps'), (300.0, 'epochs'))

    Raises:
        LuthierError: no such amount, or not above zero.
    """
    amount, unit = _amount(told)
    if unit in _SECONDS and amount > 0:
        return amount * _SECONDS[unit], "s"
    if unit in _WORK and amount > 0:
        return amount, _WORK[unit]
    raise LuthierError(
        "a budget is a time above zero (90s, 5min, 1h), steps (20000 steps) or epochs (300 epochs), "
        f"all trials together, got {told!r}"
    )


def seconds(told: str | float) -> float:
    """A time in seconds.

    >>> seconds("5min"), seconds("1.5h"), seconds(90)
    (300.0, 5400.0, 90.0)

    Raises:
        LuthierError: not a time, or not above zero.
    """
    amount, unit = _amount(told)
    if unit not in _SECONDS or amount <= 0:
        raise LuthierError(f"expected a time above zero such as 90s, 5min or 1h, got {told!r}")
    return amount * _SECONDS[unit]


def _amount(told: Any) -> tuple[float, str]:
    """Number and unit as they are written; a number of 0 where there is none."""
    match = re.fullmatch(r"\s*(\d[\d_]*\.?\d*|\.\d+)\s*([a-z]*)\s*", str(told).lower())
    return (0.0, "") if match is None else (float(match[1]), match[2])
