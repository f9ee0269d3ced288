"""Strategies: how much of its budget a trial gets before others are tried."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from luthier.errors import unknown
from luthier.tuning.jobs import Continue
from luthier.tuning.state import State, Trial


class Strategy(ABC):
    """How much of its budget a trial gets before others are tried."""

    @abstractmethod
    def first_stop(self, total_steps: int) -> int:
        """The step to which a new trial is trained."""

    @abstractmethod
    def promote(self, state: State, arm: str) -> Continue | None:
        """A paused trial of the arm that has earned more, if there is one."""

    def last(self, state: State, arm: str) -> Continue | None:
        """When no new trial is to come: the paused trial that the arm's result needs, if it has none yet."""
        trials = arm_trials(state, arm)
        if any(trial.state in ("finished", "running") for trial in trials):
            return None
        return whole(next(iter(most_promising(state, trials)), None))


class Full(Strategy):
    """Every trial gets its full budget."""

    def first_stop(self, total_steps: int) -> int:
        """The end."""
        return total_steps

    def promote(self, state: State, arm: str) -> Continue | None:
        """Nothing: no trial is paused before its end."""
        return None


@dataclass(frozen=True)
class Halving(Strategy):
    """Asynchronous successive halving with trials that pause and continue.

    A trial pauses at each rung; it goes on when it is among the best `floor(n / eta)` of the n trials of its arm that
    have reached the rung, highest rung first. Trials that failed count as reaching the lowest rung, as its worst.
    A rung is a fraction of the trial's own steps, and its schedule spans the whole of them: a learning rate that decays
    late reads worse on the way than a constant one and better at the end, so trials are ranked among those of their
    own schedule only.


    Source: Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning, Algorithm 2 (there promoted
    trials are retrained or kept in memory; here they continue from their checkpoint).
    """

    eta: int = 3
    rungs: tuple[float, ...] = (1 / 9, 1 / 3)

    def first_stop(self, total_steps: int) -> int:
        """The lowest rung."""
        return rung_step(self.rungs[0], total_steps)

    def promote(self, state: State, arm: str) -> Continue | None:
        """The best paused trial among a rung's best third, highest rung first."""
        ladders = by_schedule(arm_trials(state, arm))
        for index in reversed(range(len(self.rungs))):
            candidates = (self._promotable(state, ladder, index) for ladder in ladders)
            if (trial := next((trial for trial in candidates if trial is not None), None)) is not None:
                ends = (*self.rungs[index + 1 :], 1.0)
                stops = [rung_step(end, trial.total_steps) for end in ends]
                return Continue(trial.number, next(stop for stop in stops if stop > trial.step))
        return None

    def _promotable(self, state: State, trials: list[Trial], index: int) -> Trial | None:
        reached = [(self.reading(state, trial, index), trial) for trial in trials]
        there = [(value, trial) for value, trial in reached if value is not None]
        failed = sum(1 for value, trial in reached if value is None and trial.state == "failed")
        quota = (len(there) + (failed if index == 0 else 0)) // self.eta
        sign = -1.0 if state.direction == "max" else 1.0
        there.sort(key=lambda pair: (sign * pair[0], pair[1].number))
        return next((trial for _, trial in there[:quota] if self._waits_at(trial, index)), None)

    def reading(self, state: State, trial: Trial, index: int) -> float | None:
        """The trial's best value up to a rung; None when it has not reached it."""
        step = self.step(trial, index)
        return trial.best_until(step, state.metric, state.direction) if trial.step >= step else None

    def step(self, trial: Trial, index: int) -> int:
        """The step of a rung in this trial."""
        return rung_step(self.rungs[index], trial.total_steps)

    def _waits_at(self, trial: Trial, index: int) -> bool:
        """Whether the trial is paused at this rung, the last one that it has reached."""
        reached = [rung for rung in range(len(self.rungs)) if trial.step >= self.step(trial, rung)]
        return trial.state == "paused" and reached[-1:] == [index] and trial.step < trial.total_steps


STRATEGIES: dict[str, Strategy] = {"full": Full(), "halving": Halving()}


def strategy_named(name: str) -> Strategy:
    """A strategy by its name.

    Raises:
        LuthierError: an unknown name.
    """
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES)
    return STRATEGIES[name]


def rung_step(fraction: float, total_steps: int) -> int:
    """The step of a rung: at least 1, at most the whole.

    >>> rung_step(1 / 9, 90), rung_step(1 / 9, 4)
    (10, 1)
    """
    return max(1, min(total_steps, round(fraction * total_steps)))


def by_schedule(trials: list[Trial]) -> list[list[Trial]]:
    """Trials by their sampled schedule, in order of its first trial; one list when the schedule is not searched."""
    ladders: dict[Any, list[Trial]] = {}
    for trial in trials:
        ladders.setdefault(trial.values.get("schedule"), []).append(trial)
    return list(ladders.values())


def arm_trials(state: State, arm: str) -> list[Trial]:
    """The search trials of an arm."""
    return [trial for trial in state.search if trial.arm == arm]


def most_promising(state: State, trials: list[Trial]) -> list[Trial]:
    """Paused trials with a value: those furthest along first, the better one first among equals."""
    ranked = state.rank(trial for trial in trials if trial.state == "paused")
    return sorted(ranked, key=lambda trial: -round(9 * trial.step / trial.total_steps))


def whole(trial: Trial | None) -> Continue | None:
    """Train a trial to its end."""
    return None if trial is None else Continue(trial.number, trial.total_steps)
