"""The rungs of successive halving: who has reached each, who waits there, and who has earned more."""

from __future__ import annotations

from typing import Any

from luthier.tuning.standings import Follower, Ranking
from luthier.tuning.state import State, Trial


class Rung:
    """One rung: all trials that have reached it by their reading there, and those that wait at it."""

    def __init__(self) -> None:
        self.reached, self.waiting = Ranking(), Ranking()

    def promotable(self, eta: float, failed: int) -> int | None:
        """The best trial that waits here, when it is among the best `1 / eta` of all that came."""
        best = self.waiting.first
        if best is None or self.reached.place(best) >= int((len(self.reached) + failed) / eta):
            return None
        return best


class Ladder:
    """Trials that are ranked among each other.

    Args:
        rungs: fractions of a trial's steps, rising, each below 1.
    """

    def __init__(self, rungs: tuple[float, ...]) -> None:
        self.fractions = rungs
        self.rungs = [Rung() for _ in rungs]
        self._failed: set[int] = set()

    def take(self, state: State, trial: Trial) -> None:
        """Take in how a trial stands now."""
        last: Rung | None = None
        for fraction, rung in zip(self.fractions, self.rungs, strict=True):
            step = rung_step(fraction, trial.total_steps)
            rung.waiting.drop(trial.number)
            if trial.step < step:
                break
            if trial.number not in rung.reached:
                value = trial.best_until(step, state.metric, state.direction)
                if value is None:
                    break
                rung.reached.put(trial.number, state.sign * value)
            last = rung
        if last is not None and trial.state == "paused" and trial.until <= trial.step < trial.total_steps:
            last.waiting.put(trial.number, *last.reached.key(trial.number))
        if self.rungs and trial.state == "failed" and trial.number not in self.rungs[0].reached:
            self._failed.add(trial.number)

    def promotable(self, index: int, eta: float) -> int | None:
        """The trial that a rung sends on; failed trials count as the worst of the lowest rung."""
        return self.rungs[index].promotable(eta, len(self._failed) if index == 0 else 0)


class Ladders(Follower):
    """All ladders of a study: one for each arm, bracket and schedule.

    Args:
        strategy: tells a trial's bracket and the brackets' rungs.
    """

    def __init__(self, strategy: Any) -> None:
        super().__init__()
        self.strategy = strategy
        self.by_arm: dict[str, dict[tuple[int, Any], Ladder]] = {}

    def take(self, state: State, trial: Trial) -> None:
        """Take in how a trial stands now."""
        if trial.kind == "search":
            self.of(trial).take(state, trial)

    def of(self, trial: Trial) -> Ladder:
        """The ladder of a trial."""
        bracket = self.strategy.bracket(trial.number)
        ladders = self.by_arm.setdefault(trial.arm, {})
        key = (bracket, trial.values.get("schedule"))
        if key not in ladders:
            ladders[key] = Ladder(self.strategy.brackets[bracket])
        return ladders[key]


def rung_step(fraction: float, total_steps: int) -> int:
    """The step of a rung: at least 1, at most the whole.

    >>> rung_step(1 / 9, 90), rung_step(1 / 9, 4)
    (10, 1)
    """
    return max(1, min(total_steps, round(fraction * total_steps)))
