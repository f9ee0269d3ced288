"""Strategies: how much of its budget a trial gets before others are tried."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from luthier.errors import unknown
from luthier.tuning.jobs import Continue, Outlook, Plan
from luthier.tuning.ladders import ladders_of, rung_step
from luthier.tuning.standings import standings
from luthier.tuning.state import State, Trial


@dataclass(frozen=True)
class Strategy(ABC):
    """How much of its budget a trial gets before others are tried.

    A trial pauses at each rung: a fraction of its own steps, while its schedule spans the whole of them. A learning
    rate that decays late reads worse on the way than a constant one and better at the end, so trials are ranked among
    those of their own schedule only.

    Attributes:
        brackets: the rungs of each bracket, rising fractions below 1; every trial belongs to one bracket.
    """

    brackets: tuple[tuple[float, ...], ...] = ((),)

    def bracket(self, number: int) -> int:
        """The bracket of a trial."""
        return 0

    def first_stop(self, number: int, total_steps: int) -> int:
        """The step to which a new trial is trained."""
        return self.lowest(number, total_steps) or total_steps

    def lowest(self, number: int, total_steps: int) -> int:
        """The step of a trial's lowest rung; 0 when it has none."""
        rungs = self.brackets[self.bracket(number)]
        return rung_step(rungs[0], total_steps) if rungs else 0

    def eta_at(self, index: int, outlook: Outlook) -> float:
        """Of so many trials that came to a rung one has earned more; infinite where a rung does not say so."""
        return math.inf

    @abstractmethod
    def promote(self, state: State, arm: str, outlook: Outlook) -> Continue | None:
        """A paused trial of the arm that has earned more, if there is one."""

    def begins(self, outlook: Outlook) -> bool:
        """Whether new trials still begin."""
        return True

    def last(self, state: State, arm: str) -> Continue | None:
        """When no new trial is to come: the paused trial that the arm's result needs.

        The best one when none has finished or is under way; then each that already reads better than the
        best one over its full budget, with several objectives each that is on the front as it reads now.
        """
        standing = standings(state)
        best = next((state.trials[n] for n in standing.paused if state.trials[n].arm == arm), None)
        if best is None or not standing.alive[arm]:
            return whole(best) if best is not None else None
        if len(state.objectives) > 1:
            both = (t for t in state.search if t.arm == arm and t.state in ("paused", "finished"))
            return next((whole(trial) for trial in state.undominated(both) if trial.state == "paused"), None)
        finished = next((state.trials[n] for n in standing.finished if state.trials[n].arm == arm), None)
        return whole(best) if finished is not None and state.rank([best, finished])[0] is best else None

    def next_stop(self, trial: Trial) -> int:
        """The step of the rung above."""
        stops = [rung_step(end, trial.total_steps) for end in (*self.brackets[self.bracket(trial.number)], 1.0)]
        return next(stop for stop in stops if stop > trial.step)


@dataclass(frozen=True)
class Full(Strategy):
    """Every trial gets its full budget."""

    def promote(self, state: State, arm: str, outlook: Outlook) -> Continue | None:
        """Nothing: no trial is paused before its end."""
        return None


@dataclass(frozen=True)
class Halving(Strategy):
    """Asynchronous successive halving with trials that pause and continue.

    A trial pauses at each rung; it goes on when it is among the best `floor(n / eta)` of the n trials of its arm that
    have reached the rung, highest rung first. Trials that failed count as reaching the lowest rung, as its worst.

    Source: Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning, Algorithm 2 (there promoted
    trials are retrained or kept in memory; here they continue from their checkpoint).
    """

    brackets: tuple[tuple[float, ...], ...] = ((1 / 9, 1 / 3),)
    eta: float = 3

    def promote(self, state: State, arm: str, outlook: Outlook) -> Continue | None:
        """The best paused trial among a rung's best, highest rung first."""
        ladders = ladders_of(state, self).by_arm.get(arm, {})
        for index in reversed(range(max(map(len, self.brackets)))):
            needs = self.needs(index, outlook)
            for (bracket, _), ladder in ladders.items():
                if index >= len(self.brackets[bracket]) or ladder.came(index) < needs:
                    continue
                eta, patience = self.eta_at(index, outlook), self.patience_at(index, outlook)
                if (number := ladder.promotable(index, eta, patience)) is not None:
                    return Continue(number, self.next_stop(state.trials[number]))
        return None

    def eta_at(self, index: int, outlook: Outlook) -> float:
        """The same at each rung."""
        return self.eta

    def patience_at(self, index: int, outlook: Outlook) -> float:
        """How close behind them others go on, too; see `Ladder.promotable`."""
        return 0

    def needs(self, index: int, outlook: Outlook) -> float:
        """How many trials must have come to a rung before one of them goes on."""
        return 0


@dataclass(frozen=True)
class Hyperband(Halving):
    """Successive halving in brackets of different patience: a share of the trials is not judged early.

    Each bracket gets about the same number of steps, so the hastiest one gets most trials.

    Source: Li et al. 2018, Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization, Algorithm 1; the
    asynchronous form: Li et al. 2020.
    """

    brackets: tuple[tuple[float, ...], ...] = ((1 / 9, 1 / 3), (1 / 3,), ())
    deal: tuple[int, ...] = (0, 1, 0, 2, 0, 1, 0, 0, 1, 0, 2, 0, 1, 0, 0, 1, 2)

    def bracket(self, number: int) -> int:
        """Dealt in a fixed order: 9, 5 and 3 of 17."""
        return self.deal[number % len(self.deal)]


@dataclass(frozen=True)
class TopK(Strategy):
    """Train many trials for one epoch until a share of the budget is spent, then the best ones to their end.

    Source: Egele et al. 2023, Is One Epoch All You Need For Multi-Fidelity Hyperparameter Optimization?

    Attributes:
        explore: share of the budget for the first epochs.
    """

    explore: float = 0.5

    def promote(self, state: State, arm: str, outlook: Outlook) -> Continue | None:
        """The best that has trained for one epoch, once the exploration is over."""
        standing = standings(state)
        if self.begins(outlook) or (outlook.left is None and standing.alive[arm] >= self.most(standing.begun[arm])):
            return None
        ladders = ladders_of(state, self).by_arm.get(arm, {})
        waiting = (ladder.promotable(0, eta=1) for ladder in ladders.values())
        best = min((n for n in waiting if n is not None), key=_value_in(state), default=None)
        return None if best is None else whole(state.trials[best])

    def begins(self, outlook: Outlook) -> bool:
        """Until the exploration's share is spent."""
        return outlook.share < self.explore

    def most(self, begun: int) -> int:
        """How many go on when the budget is a number of trials: both halves take as many steps."""
        first = self.brackets[0][0]
        return max(1, round(begun * first * (1 - self.explore) / (self.explore * (1 - first))))


@dataclass(frozen=True)
class Auto(Halving):
    """Our best: patient halving. Many rungs, and half of the trials go on at each, so that few good ones are cut.

    With a small budget a rung sends nobody on before as many have come as one of them would need to get to its end by
    halves: of 16 trials at the lowest rung 8 would go on, then 4, 2 and 1. So chance does not decide between the first
    two. Where there is room for more than `ample` trainings, half of them suffice, and good values come earlier. When
    no trial is to begin any more, those that are there suffice.

    And unless the budget is a very large one, a quarter only goes on from the lowest rung: else most of it goes to
    trials that are outranked soon after, and too few configurations are looked at. With them goes who is close behind,
    measured by how differently trials gain up to the next rung: where readings that early say little (a network that
    begins to learn in its second epoch) most go on, where they say much hardly anybody else.

    Where the search starts from nothing that is known to be good, it looks around first: until half of a budget is
    spent a third of the training at most goes on above the lowest rungs. The model then learns from more trials, and
    who is trained further is chosen among more.

    The rungs, both etas, the wait, the patience and the looking around were chosen on recorded curves (see LOG.md).

    Attributes:
        whole: how many trials, from the first on, train to their end at once: a study that starts from something known
            has a result to compare with as early as can be.
        ample: trainings that make a budget a large one.
        lowest_eta: `eta` at the lowest rung where the budget holds fewer trainings than `roomy`.
        roomy: trainings from which on half go on there, too, as in a study without a budget.
        patience: with a quarter, how many standard deviations of the gains are close.
        explore: until which share of a budget it looks around first.
        climbs: how much of what was trained until then may lie above the lowest rungs.
    """

    brackets: tuple[tuple[float, ...], ...] = ((0.1, 0.2, 0.4, 0.7),)
    eta: float = 2
    whole: int = 0
    ample: float = 8
    lowest_eta: float = 4
    roomy: float = 32
    patience: float = 1
    explore: float = 0
    climbs: float = 1 / 3

    def promote(self, state: State, arm: str, outlook: Outlook) -> Continue | None:
        """As in halving, but while it looks around, no more than its part of the training."""
        early = outlook.more and outlook.left is not None and outlook.share < self.explore
        if early and ladders_of(state, self).climbed > self.climbs:
            return None
        return super().promote(state, arm, outlook)

    def first_stop(self, number: int, total_steps: int) -> int:
        """The lowest rung, but for the first trials."""
        return total_steps if number < self.whole else super().first_stop(number, total_steps)

    def eta_at(self, index: int, outlook: Outlook) -> float:
        """A larger one at the lowest rung, unless the budget is a very large one."""
        return self.lowest_eta if self._is_narrow(index, outlook) else self.eta

    def patience_at(self, index: int, outlook: Outlook) -> float:
        """None but where few go on."""
        return self.patience if self._is_narrow(index, outlook) else 0

    def _is_narrow(self, index: int, outlook: Outlook) -> bool:
        return index == 0 and outlook.trainings < self.roomy

    def needs(self, index: int, outlook: Outlook) -> float:
        """As many as leave one of them at the end, or half of that, while trials begin."""
        full = self.eta ** (len(self.brackets[0]) - index) if outlook.more else 0
        return full if outlook.trainings < self.ample else full / 2


def _one_epoch(plan: Plan) -> Strategy:
    return TopK(brackets=((1 / plan.epochs,),)) if plan.epochs > 1 else Full()


STRATEGIES: dict[str, Callable[[Plan], Strategy]] = {
    "auto": lambda plan: Auto(whole=2) if plan.baseline else Auto(explore=0.5),
    "full": lambda _: Full(),
    "halving": lambda _: Halving(),
    "hyperband": lambda _: Hyperband(),
    "one-epoch-top-k": _one_epoch,
}


def strategy_for(plan: Plan) -> Strategy:
    """The strategy of a plan.

    Raises:
        LuthierError: an unknown name.
    """
    return _made(plan.strategy, plan.epochs, plan.baseline)


@lru_cache
def _made(name: str, epochs: int, baseline: bool) -> Strategy:
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES)
    return STRATEGIES[name](Plan({}, strategy=name, epochs=epochs, baseline=baseline))


def whole(trial: Trial) -> Continue:
    """Train a trial to its end."""
    return Continue(trial.number, trial.total_steps)


def _value_in(state: State) -> Callable[[int], Any]:
    return lambda number: (state.sign * (state.trials[number].value or 0.0), number)
