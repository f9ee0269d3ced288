"""The rungs of successive halving: who has reached each, who waits there, and who has earned more."""

from __future__ import annotations

import sys
from math import isfinite
from statistics import median
from typing import Any

from luthier.files import to_json
from luthier.tuning.fronts import Fronts
from luthier.tuning.objectives import losses
from luthier.tuning.standings import Follower, Ranking, follow, waits
from luthier.tuning.state import State, Trial
from luthier.tuning.views import SCHEDULE

_TELLING = 4  # gains that tell how differently trials gain


class Rung:
    """One rung: all trials that have reached it by their reading there, and those that wait at it."""

    def __init__(self) -> None:
        self.reached, self.waiting = Ranking(), Ranking()

    @property
    def best_waiting(self) -> int | None:
        """The best trial that waits here."""
        return self.waiting.first

    def promotable(self, eta: float, failed: int) -> int | None:
        """The best trial that waits here, when it is among the best `1 / eta` of all that came."""
        best = self.best_waiting
        if best is None or self.reached.place(best) >= int((len(self.reached) + failed) / eta):
            return None
        return best


class FrontRung(Rung):
    """A rung of a study with several objectives: who waits is ranked by front among all that came."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = Fronts()

    @property
    def best_waiting(self) -> int | None:
        """The trial that comes first of those that wait here."""
        return min(self.waiting, key=self.reached.place, default=None)


class Ladder:
    """Trials that are ranked among each other.

    Args:
        rungs: fractions of a trial's steps, rising, each below 1.
        several: whether there are several objectives.
    """

    def __init__(self, rungs: tuple[float, ...], several: bool = False) -> None:
        self.fractions, self.several = rungs, several
        self.rungs = [FrontRung() if several else Rung() for _ in rungs]
        self._failed: set[int] = set()

    def take(self, state: State, trial: Trial) -> None:
        """Take in how a trial stands now."""
        last: Rung | None = None
        for rung in self.rungs:  # higher ones too: a training whose checkpoint is gone begins anew
            rung.waiting.drop(trial.number)
        for fraction, rung in zip(self.fractions, self.rungs, strict=True):
            step = rung_step(fraction, trial.total_steps)
            if trial.step < step:
                break
            if trial.number not in rung.reached:
                scores = trial.scores_until(step, state.objectives)
                if scores is None:
                    break
                rung.reached.put(trial.number, *losses(scores, state.objectives))
            if trial.state == "failed":  # whatever it has read before: else it keeps those out that would not fail
                rung.reached.put(trial.number, *[sys.float_info.max] * len(state.objectives))
            last = rung
        if last is not None and trial.state == "paused" and waits(trial):
            last.waiting.put(trial.number, *last.reached.key(trial.number))
        if self.rungs and trial.state == "failed" and trial.number not in self.rungs[0].reached:
            self._failed.add(trial.number)

    def promotable(self, index: int, eta: float, patience: float = 0.0) -> int | None:
        """The trial that a rung sends on; failed trials count as the worst of the lowest rung.

        Args:
            index: of the rung.
            eta: the best `1 / eta` of all that came go on.
            patience: and so does who is behind the last of these by less than so many standard deviations of what
                trials gain on the way to the next rung: there the order may be another.
        """
        among = self.rungs[index].promotable(eta, len(self._failed) if index == 0 else 0)
        return among if among is not None or not patience else self._close(index, int(self.came(index) / eta), patience)

    def _close(self, index: int, most: int, patience: float) -> int | None:
        """The best trial that waits at a rung, when it is close behind the first `most`."""
        reached, best = self.rungs[index].reached, self.rungs[index].best_waiting
        if best is None or self.several or not 0 < most <= len(reached):
            return None
        behind = reached.key(best)[0] - reached.key(reached.at(most - 1))[0]
        return best if behind < patience * self._scatter(index) else None

    def _scatter(self, index: int) -> float:
        """How differently trials gain from a rung to the next: as a standard deviation, from the median one.

        One that learns at once what others have learnt before does not change it. 0 while few have gone on, and at the
        highest rung.
        """
        if index + 1 == len(self.rungs):
            return 0.0
        here, above = (rung.reached for rung in self.rungs[index : index + 2])
        pairs = ((here.key(number)[0], above.key(number)[0]) for number in above if number in here)
        gains = [before - after for before, after in pairs if after != sys.float_info.max]
        finite = [gain for gain in gains if isfinite(gain)]
        if len(finite) < _TELLING:
            return 0.0
        middle = median(finite)
        return 1.4826 * median(abs(gain - middle) for gain in finite)

    def came(self, index: int) -> int:
        """How many trials have come to a rung, the failed ones to the lowest."""
        return len(self.rungs[index].reached) + (len(self._failed) if index == 0 else 0)


class Ladders(Follower):
    """All ladders of a study: one for each arm, bracket and schedule.

    Args:
        strategy: tells a trial's bracket and the brackets' rungs.
        several: whether there are several objectives.
    """

    def __init__(self, strategy: Any, several: bool = False) -> None:
        super().__init__()
        self.strategy, self.several = strategy, several
        self.by_arm: dict[str, dict[tuple[int, str], Ladder]] = {}
        self._steps: dict[int, tuple[int, int]] = {}  # of each trial: up to its lowest rung, above it
        self._low = self._high = 0

    def take(self, state: State, trial: Trial) -> None:
        """Take in how a trial stands now."""
        if trial.kind == "search":
            self.of(trial).take(state, trial)
            self._count(trial)

    @property
    def climbed(self) -> float:
        """Which part of all that was trained, or ordered, lies above the lowest rungs; 0 before anything is."""
        return self._high / (self._low + self._high) if self._high else 0.0

    def _count(self, trial: Trial) -> None:
        at = min(trial.until, trial.total_steps) if trial.state == "running" else trial.step
        low = min(at, self.strategy.lowest(trial.number, trial.total_steps))
        before = self._steps.get(trial.number, (0, 0))
        self._steps[trial.number] = low, at - low
        self._low += low - before[0]
        self._high += at - low - before[1]

    def of(self, trial: Trial) -> Ladder:
        """The ladder of a trial."""
        bracket = self.strategy.bracket(trial.number)
        ladders = self.by_arm.setdefault(trial.arm, {})
        key = bracket, to_json(trial.values.get(SCHEDULE))
        if key not in ladders:
            ladders[key] = Ladder(self.strategy.brackets[bracket], self.several)
        return ladders[key]


def ladders_of(state: State, strategy: Any) -> Ladders:
    """The ladders of a study under a strategy, up to date."""
    found: Ladders = follow(state, strategy, lambda: Ladders(strategy, len(state.objectives) > 1))
    return found


def rung_step(fraction: float, total_steps: int) -> int:
    """The step of a rung: at least 1, at most the whole.

    >>> rung_step(1 / 9, 90), rung_step(1 / 9, 4)
    (10, 1)
    """
    return max(1, min(total_steps, round(fraction * total_steps)))
