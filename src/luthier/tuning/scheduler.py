"""What to train next: pure functions from a study's state to a job.

`next_job` reads nothing but the state, the plan and the clock it is given, so that recorded curves and a fake
clock run the very same code, and a resumed study decides as it would have before.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from luthier.errors import unknown
from luthier.tuning.state import State, Trial

BASELINE = "baseline"


@dataclass(frozen=True)
class Start:
    """Begin a trial and train it to a step."""

    number: int
    arm: str
    values: dict[str, Any]
    until_step: int
    total_steps: int
    kind: str = "search"
    seed: int = 0
    of: int | None = None


@dataclass(frozen=True)
class Continue:
    """Train a paused trial further, from its checkpoint."""

    number: int
    until_step: int


@dataclass(frozen=True)
class Stop:
    """End a paused trial for good."""

    number: int
    reason: str


Job: TypeAlias = Start | Continue | Stop


@dataclass(frozen=True)
class Proposal:
    """Values for a new trial, and the steps that it takes with them."""

    values: dict[str, Any]
    total_steps: int


Propose: TypeAlias = Callable[[State, int, str], Proposal | None]
"""(state, number of the new trial, arm) -> values, or None when the arm's space is exhausted."""


@dataclass(frozen=True)
class Plan:
    """What a study is to do.

    Attributes:
        arms: name of each arm -> the fields that it varies, in dealing order.
        trials: search trials in all, the baseline included; None: as many as the budget allows.
        budget_s: seconds in all, over all calls; None: no limit.
        workers: trainings at a time.
        seed: of the search trials; repeats take the seeds after it.
        repeats: seeds that winner and baseline are trained with, the search trial's own included.
        strategy: a name of `STRATEGIES`.
    """

    arms: dict[str, list[str]]
    trials: int | None = None
    budget_s: float | None = None
    workers: int = 1
    seed: int = 0
    repeats: int = 3
    strategy: str = "halving"


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
        return _whole(next(iter(most_promising(state, trials)), None))


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
    A rung is a fraction of the trial's own steps, and its schedule spans the whole of them.

    Source: Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning, Algorithm 2 (there promoted
    trials are retrained or kept in memory; here they continue from their checkpoint).
    """

    eta: int = 3
    rungs: tuple[float, ...] = field(default=(1 / 9, 1 / 3))

    def first_stop(self, total_steps: int) -> int:
        """The lowest rung."""
        return rung_step(self.rungs[0], total_steps)

    def promote(self, state: State, arm: str) -> Continue | None:
        """The best paused trial among a rung's best third, highest rung first."""
        trials = arm_trials(state, arm)
        for index in reversed(range(len(self.rungs))):
            if (trial := self._promotable(state, trials, index)) is not None:
                ends = (*self.rungs[index + 1 :], 1.0)
                stops = [rung_step(end, trial.total_steps) for end in ends]
                return Continue(trial.number, next(stop for stop in stops if stop > trial.step))
        return None

    def _promotable(self, state: State, trials: list[Trial], index: int) -> Trial | None:
        reached = [(self.reading(state, trial, index), trial) for trial in trials]
        there = [(value, trial) for value, trial in reached if value is not None]
        failed = sum(1 for trial in trials if trial.state == "failed" and trial.step < self.step(trial, 0))
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


def arm_trials(state: State, arm: str) -> list[Trial]:
    """The search trials of an arm."""
    return [trial for trial in state.search if trial.arm == arm]


def most_promising(state: State, trials: list[Trial]) -> list[Trial]:
    """Paused trials with a value: those furthest along first, the better one first among equals."""
    ranked = state.rank(trial for trial in trials if trial.state == "paused")
    return sorted(ranked, key=lambda trial: -round(9 * trial.step / trial.total_steps))


def next_job(state: State, plan: Plan, propose: Propose, clock: float) -> Start | Continue | None:
    """The next training of the search, or None when there is nothing to do now.

    Order: a training that was cut off (crash, kill, deadline) goes on to where it was to go; the baseline, first and
    over its full budget; promotions; new trials, dealt over the arms in turn; at last what the result still needs.

    Args:
        state: as folded from the ledger.
        plan: the study's plan.
        propose: gives values for a new trial.
        clock: seconds that the study has been at work.
    """
    strategy = strategy_named(plan.strategy)
    left = search_left(state, plan, clock)
    job = _unfinished(state, "search")
    if left is not None and left <= 0:
        return job if job is not None and job.number == 0 and clock < (plan.budget_s or 0) else None
    if job is not None:
        return job
    if not state.trials:
        return _start(state, plan, BASELINE, propose)
    for arm in plan.arms:
        if (promoted := strategy.promote(state, arm)) is not None and _fits(state, promoted, left):
            return promoted
    if _may_start(state, plan, left) and (start := _new_trial(state, plan, propose)) is not None:
        return start
    for arm in plan.arms:
        if (needed := strategy.last(state, arm)) is not None and _fits(state, needed, left):
            return needed
    return _last_bets(state, left) if left is not None and _trials_left(state, plan) else None


def next_repeat(state: State, plan: Plan) -> Start | Continue | None:
    """The next retraining of baseline or winner with another seed, or None when all are there or under way."""
    if (job := _unfinished(state, "repeat")) is not None:
        return job
    if (winner := state.winner) is None or state.trials[0].state != "finished":
        return None
    for offset in range(1, plan.repeats):
        for trial in (state.trials[0], winner):
            seed = plan.seed + offset
            if all(repeat.seed != seed for repeat in state.repeats(trial.number)):
                return Start(
                    number=len(state.trials),
                    arm=trial.arm,
                    values=trial.values,
                    until_step=trial.total_steps,
                    total_steps=trial.total_steps,
                    kind="repeat",
                    seed=seed,
                    of=trial.number,
                )
    return None


def outranked(state: State) -> list[Stop]:
    """Ends for the trials that wait at a rung when the search is over; those that were cut off may still go on."""
    waiting = [trial for trial in state.search if trial.state == "paused" and trial.step >= trial.until]
    return [Stop(trial.number, _outranked_reason(state, trial)) for trial in waiting]


def reserve_s(state: State, plan: Plan) -> float:
    """Seconds to keep for the repeats at the end: those of the winner so far (else the likely one) and the baseline."""
    if plan.repeats < 2:
        return 1.0
    winner = state.winner or next(iter(state.rank(trial for trial in state.search if trial.number)), None)
    known = [trial for trial in (state.trials[0] if state.trials else None, winner) if trial is not None]
    missing = [
        trial.expected_s or 0.0
        for trial in known
        for offset in range(1, plan.repeats)
        if not any(repeat.seed == plan.seed + offset and repeat.ended for repeat in state.repeats(trial.number))
    ]
    if not missing:
        return 1.0
    return 1.0 + 1.15 * max(sum(missing) / plan.workers, max(missing))


def search_left(state: State, plan: Plan, clock: float) -> float | None:
    """Seconds that the search still has, the repeats' share set aside; None without a budget."""
    return None if plan.budget_s is None else plan.budget_s - reserve_s(state, plan) - clock


def typical_s(state: State) -> float | None:
    """Median of the seconds that a whole trial takes; None before the first reading."""
    expected = [trial.expected_s for trial in state.search if trial.expected_s is not None]
    return statistics.median(expected) if expected else None


def _unfinished(state: State, kind: str) -> Continue | None:
    """A training that has not come to where it was told to go, the earliest first."""
    cut_off = (t for t in state.trials if t.kind == kind and t.state in ("waiting", "paused") and t.step < t.until)
    trial = next(cut_off, None)
    return None if trial is None else Continue(trial.number, trial.until)


def _may_start(state: State, plan: Plan, left: float | None) -> bool:
    """Whether trials and time allow a new one: near the end the time belongs to those under way."""
    if not _trials_left(state, plan):
        return False
    typical = typical_s(state)
    if left is None or typical is None or plan.budget_s is None:
        return True
    return left > (typical if plan.strategy == "full" else min(typical, 0.35 * plan.budget_s))


def _trials_left(state: State, plan: Plan) -> bool:
    return plan.trials is None or len(state.search) < plan.trials


def _new_trial(state: State, plan: Plan, propose: Propose) -> Start | None:
    """A new trial in the arm with the fewest; other arms step in for an exhausted one."""
    counts = {arm: len(arm_trials(state, arm)) for arm in plan.arms}
    for arm in sorted(plan.arms, key=lambda name: counts[name]):
        if (start := _start(state, plan, arm, propose)) is not None:
            return start
    return None


def _start(state: State, plan: Plan, arm: str, propose: Propose) -> Start | None:
    number = len(state.trials)
    if (proposal := propose(state, number, arm)) is None:
        return None
    total = proposal.total_steps
    until = total if arm == BASELINE else strategy_named(plan.strategy).first_stop(total)
    return Start(number, arm, proposal.values, until, total, seed=plan.seed)


def _last_bets(state: State, left: float) -> Continue | None:
    """In the last seconds of a budget: the most promising paused trial that can still come to its end."""
    jobs = (_whole(trial) for trial in most_promising(state, [trial for trial in state.search if trial.number]))
    return next((job for job in jobs if job is not None and _fits(state, job, left)), None)


def _fits(state: State, job: Continue, left: float | None) -> bool:
    """Whether a training comes to the job's step in the time that is left."""
    trial = state.trials[job.number]
    if left is None or not trial.step:
        return True
    return trial.time_s / trial.step * (job.until_step - trial.step) <= left


def _whole(trial: Trial | None) -> Continue | None:
    return None if trial is None else Continue(trial.number, trial.total_steps)


def _outranked_reason(state: State, trial: Trial) -> str:
    share = trial.step / trial.total_steps
    rivals = [t for t in arm_trials(state, trial.arm) if t.step >= trial.step * t.total_steps / trial.total_steps]
    place = 1 + [t.number for t in state.rank(rivals)].index(trial.number) if trial.value is not None else len(rivals)
    return f"outranked: place {place} of {len(rivals)} after {share:.0%} of its steps"
