"""How the trials of a study stand, kept up to date event by event: a decision reads it without a walk over all trials.

Everything here follows from the state alone; after a restart it is built anew from it.
"""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

from luthier.tuning.state import BASELINE, State, Trial

_LATEST = 101


class Ranking:
    """Trial numbers in the order of their keys, smallest first; equal keys in the order of the numbers."""

    def __init__(self) -> None:
        self._keys: dict[int, tuple[Any, ...]] = {}
        self._sorted: list[tuple[Any, ...]] = []

    def put(self, number: int, *key: float) -> None:
        """Add a trial, or move it."""
        entry = (*key, number)
        if self._keys.get(number) != entry:
            self.drop(number)
            self._keys[number] = entry
            insort(self._sorted, entry)

    def drop(self, number: int) -> None:
        """Take a trial away, if it is there."""
        if (entry := self._keys.pop(number, None)) is not None:
            del self._sorted[bisect_left(self._sorted, entry)]

    def key(self, number: int) -> tuple[float, ...]:
        """The key of a trial that is there."""
        return self._keys[number][:-1]

    def place(self, number: int) -> int:
        """How many trials come before this one."""
        return bisect_left(self._sorted, self._keys[number])

    def at(self, place: int) -> int:
        """The trial at a place, 0 for the first."""
        return int(self._sorted[place][-1])

    @property
    def first(self) -> int | None:
        """The first trial; None when there is none."""
        return int(self._sorted[0][-1]) if self._sorted else None

    def __contains__(self, number: int) -> bool:
        return number in self._keys

    def __len__(self) -> int:
        return len(self._sorted)

    def __iter__(self) -> Iterator[int]:
        return (int(entry[-1]) for entry in self._sorted)


class Follower(ABC):
    """Takes in each trial that has changed since the last look."""

    def __init__(self) -> None:
        self._seen = 0

    def follow(self, state: State) -> None:
        """Come up to date."""
        for number in dict.fromkeys(state.changed[self._seen :]):
            self.take(state, state.trials[number])
        self._seen = len(state.changed)

    @abstractmethod
    def take(self, state: State, trial: Trial) -> None:
        """Take in how a trial stands now; the same twice changes nothing."""


class Standings(Follower):
    """Counts and rankings of a study's trials.

    Attributes:
        n_search: search trials so far, the baseline included.
        begun: search trials so far, by arm.
        alive: by arm, how many are running or finished.
        cut_off: by kind, trainings that have not come to where they were told to go or not told their end, by number.
        finished: search trials but the baseline over their full budget, best first.
        paused: search trials with a value that wait at a rung, best first.
        best: the best reading of the first objective among the finished search trials, smaller is better; infinite
            before there is one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.n_search = 0
        self.begun: Counter[str] = Counter()
        self.alive: Counter[str] = Counter()
        self.cut_off = {"search": Ranking(), "repeat": Ranking()}
        self.finished = Ranking()
        self.paused = Ranking()
        self.best = math.inf
        self._known: dict[int, bool] = {}
        self._expected: dict[int, float] = {}

    @property
    def typical_s(self) -> float | None:
        """Median of the seconds that a whole trial takes, over the latest ones; None before the first reading."""
        latest = list(islice(reversed(self._expected.values()), _LATEST))
        return statistics.median(latest) if latest else None

    def take(self, state: State, trial: Trial) -> None:
        """Take in how a trial stands now."""
        self._cut_off(trial)
        if trial.kind != "search":
            return
        if trial.number not in self._known:
            self._known[trial.number] = False
            self.n_search += 1
            self.begun[trial.arm] += 1
        alive = trial.state in ("running", "finished")
        self.alive[trial.arm] += alive - self._known[trial.number]
        self._known[trial.number] = alive
        self._rank(state, trial)
        if trial.state in ("paused", "finished") and trial.expected_s is not None:
            self._expected[trial.number] = trial.expected_s

    def _cut_off(self, trial: Trial) -> None:
        """One that took its last step and did not tell its end is among them: it only has to end."""
        ranking = self.cut_off[trial.kind]
        if trial.state in ("waiting", "paused") and not waits(trial):
            ranking.put(trial.number)
        else:
            ranking.drop(trial.number)

    def _rank(self, state: State, trial: Trial) -> None:
        if trial.value is not None and trial.state == "paused" and waits(trial):
            self.paused.put(trial.number, *state.losses(trial))
        else:
            self.paused.drop(trial.number)
        if trial.value is not None and trial.state == "finished":
            self.best = min(self.best, state.sign * trial.value)
        if trial.value is not None and trial.state == "finished" and trial.arm != BASELINE:
            self.finished.put(trial.number, *state.losses(trial))


def waits(trial: Trial) -> bool:
    """Whether a paused trial has come to the rung that it was told to come to."""
    return trial.until <= trial.step < trial.total_steps


def standings(state: State) -> Standings:
    """The standings of a study, up to date."""
    found: Standings = follow(state, "standings", Standings)
    return found


def follow(state: State, key: Any, make: Any) -> Any:
    """What follows the state under a key; made at the first call."""
    follower = state.followers.get(key)
    if follower is None:
        follower = state.followers[key] = make()
    follower.follow(state)
    return follower
