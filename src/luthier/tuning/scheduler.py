"""What to train next: pure functions from a study's state to a job.

`next_job` reads nothing but the state, the plan and the clock it is given, so that recorded curves and a fake
clock run the very same code, and a resumed study decides as it would have before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from luthier.tuning import closing
from luthier.tuning.budgets import Budget, fits
from luthier.tuning.jobs import BASELINE, Continue, Outlook, Plan, Propose, Start, Stop
from luthier.tuning.ladders import Ladder, ladders_of
from luthier.tuning.standings import standings, waits
from luthier.tuning.state import State, Trial
from luthier.tuning.strategies import strategy_for, whole


def next_job(state: State, plan: Plan, propose: Propose, clock: float) -> Start | Continue | None:
    """The next training of the search, or None when there is nothing to do now.

    Order: a training that was cut off (crash, kill, deadline) goes on to where it was to go; the baseline, first and
    over its full budget; promotions; new trials, dealt over the arms in turn; at last what the result still needs.
    With a budget, what the best waiting trial needs to its end is kept for it, see `closing`.

    Args:
        state: as folded from the ledger.
        plan: the study's plan.
        propose: gives values for a new trial.
        clock: seconds that the study has been at work.
    """
    rest, left = budget_left(state, plan, clock), search_left(state, plan, clock)
    if rest is not None and fits(rest, 0.0):
        return None
    if not state.trials and plan.baseline:
        return _start(state, plan, BASELINE, propose, rest)
    if (job := _unfinished(state, plan, "search", rest)) is not None and state.trials[job.number].arm == BASELINE:
        return job  # it is owed all of the budget
    if (left is not None and left <= 0) or reached(state, plan):
        return None
    if (job := _unfinished(state, plan, "search", left)) is not None:
        return job
    outlook = Outlook(_share(state, plan, clock, left), left, trainings=closing.trainings(state, plan))
    return next((job for job in _ways_on(state, plan, propose, outlook) if job is not None), None)


def _ways_on(state: State, plan: Plan, propose: Propose, outlook: Outlook) -> Iterator[Start | Continue | None]:
    """What the search may do next, the best first; the later ones are only thought of when nothing came before."""
    left, late = outlook.left, replace(outlook, more=False)
    begins = strategy_for(plan).begins(outlook) and _may_start(state, plan, left)
    room, bets = closing.room(state, plan, left), left is not None and _trials_left(state, plan)
    if bets and room < closing.BETS:
        yield closing.bet(state, plan, left)
    if begins and room >= closing.BEGINS:
        yield _promotion(state, plan, outlook)
        yield _new_trial(state, plan, propose, left)
    yield _promotion(state, plan, late)
    yield _needed(state, plan, left)
    if bets:
        yield closing.bet(state, plan, left)
    yield _promotion(state, plan, late, ends=False)
    if begins:
        yield _new_trial(state, plan, propose, left)


def _needed(state: State, plan: Plan, left: float | None) -> Continue | None:
    """What the result of an arm still needs."""
    jobs = (strategy_for(plan).last(state, arm) for arm in plan.arms)
    return next((job for job in jobs if job is not None and closing.fits_in(state, plan, job, left)), None)


def _promotion(state: State, plan: Plan, outlook: Outlook, ends: bool = True) -> Continue | None:
    """A promotion of the strategy that fits into what is left, by default with all that the trial needs to its end."""
    strategy, left = strategy_for(plan), outlook.left
    for arm in plan.arms:
        if (job := strategy.promote(state, arm, outlook)) is not None:
            way = whole(state.trials[job.number]) if ends else job
            if closing.fits_in(state, plan, way, left):
                return job
    return None


def _share(state: State, plan: Plan, clock: float, left: float | None) -> float:
    """Share of the search's budget that is spent."""
    if not _trials_left(state, plan):
        return 1.0
    if plan.budget is None or left is None:
        return 0.0
    used = plan.budget.used(state, clock)
    return used / (used + left)


def next_repeat(state: State, plan: Plan) -> Start | Continue | None:
    """The next retraining of winner or baseline with another seed, or None when all are there or under way.

    A baseline that did not come to its end has nothing to be compared with: then neither is retrained.
    """
    left = None if plan.budget is None or not plan.budget.exact else budget_left(state, plan, 0.0)
    if (job := _unfinished(state, plan, "repeat", left)) is not None:
        return job
    winner, baseline = state.winner, state.baseline
    if winner is None or (baseline is not None and baseline.state != "finished"):
        return None
    both = [trial for trial in (baseline, winner) if trial is not None]
    if plan.virtual is None:
        both.sort(key=lambda trial: -trial.time_s)  # the longest first: all end early
    for seed in range(plan.seed + 1, plan.seed + 1 + plan.repeats):
        missing = [_repeat(state, trial, seed) for trial in both if seed not in _seeds(state, trial)]
        if missing:
            return missing[0] if fits(sum(_cost(plan, start) or 0.0 for start in missing), left) else None
    return None


def _seeds(state: State, trial: Trial) -> set[int]:
    return {repeat.seed for repeat in state.repeats(trial.number)}


def _repeat(state: State, trial: Trial, seed: int) -> Start:
    """A retraining of a trial with another seed."""
    total = trial.total_steps
    return Start(len(state.trials), trial.arm, trial.values, total, total, "repeat", seed, of=trial.number)


def outranked(state: State, plan: Plan) -> list[Stop]:
    """Ends for the trials that wait at a rung when the search is over; those that were cut off may still go on.

    A later call with larger totals takes them up again: among more trials they may be promoted.
    """
    strategy = strategy_for(plan)
    ladders, outlook = ladders_of(state, strategy), Outlook(1.0, None, False, closing.trainings(state, plan))
    eta_at = lambda index: strategy.eta_at(index, outlook)  # noqa: E731
    waiting = [trial for trial in state.search if trial.state == "paused" and waits(trial)]
    return [Stop(trial.number, _why(trial, ladders.of(trial), eta_at), may_return=True) for trial in waiting]


def reserve(state: State, plan: Plan) -> float:
    """What to keep for the repeats at the end: those of the winner so far (else the likely one) and the baseline."""
    if plan.budget is None:
        return 0.0
    if state.baseline is not None and state.baseline.ended and state.baseline.state != "finished":
        return plan.budget.together([], plan.workers)  # nothing to compare with, see `next_repeat`
    standing = standings(state)
    likely = standing.finished.first if standing.finished.first is not None else standing.paused.first
    first = None if state.baseline is None else state.baseline.number
    known = [state.trials[number] for number in dict.fromkeys((first, likely)) if number is not None]
    seeds = range(plan.seed + 1, plan.seed + 1 + plan.repeats)
    missing = [_missing(plan.budget, state, trial, seed) for trial in known for seed in seeds]
    return plan.budget.together([cost for cost in missing if cost is not None], plan.workers)


def _missing(budget: Budget, state: State, trial: Trial, seed: int) -> float | None:
    """What the repeat of a trial with a seed still takes of the budget; None when nothing or not known."""
    repeat = next((repeat for repeat in state.repeats(trial.number) if repeat.seed == seed), None)
    if repeat is None or not budget.exact:
        return None if repeat is not None and repeat.ended else budget.whole(trial)
    return budget.rest(repeat, repeat.until) if repeat.state in ("waiting", "paused") else None


def search_left(state: State, plan: Plan, clock: float) -> float | None:
    """What the search still has of the budget, the repeats' share set aside; None without a budget."""
    left = budget_left(state, plan, clock)
    return None if left is None else left - reserve(state, plan)


def budget_left(state: State, plan: Plan, clock: float) -> float | None:
    """What is left of the budget; None without one."""
    return None if plan.budget is None else plan.budget.total - plan.budget.used(state, clock)


def budget_over(state: State, plan: Plan, clock: float) -> bool:
    """Whether trainings under way must pause since the budget is used up.

    Those of a deterministic study end where the scheduler told them to, unless the time is over.
    """
    if plan.budget is None or (plan.budget.exact and plan.virtual is not None):
        return False
    return plan.budget.over(state, clock)


def search_over(state: State, plan: Plan, clock: float) -> bool:
    """Whether they must pause: the target is reached, or the rest of the budget belongs to the repeats.

    Of a budget in steps what fits in is paid for.
    """
    if plan.virtual is None and reached(state, plan):
        return True
    if plan.budget is None or plan.budget.exact:
        return budget_over(state, plan, clock)
    left = search_left(state, plan, clock)
    baseline_open = plan.baseline and not any(trial.ended for trial in state.trials[:1])
    return budget_over(state, plan, clock) or (left is not None and left <= 0 and not baseline_open)


def narrow(state: State, plan: Plan, clock: float) -> bool:
    """Whether the search wants further trials for which the rest of the budget has no room."""
    left = search_left(state, plan, clock)
    return left is not None and _trials_left(state, plan) and (left <= 0 or left < _least(state, plan))


def reached(state: State, plan: Plan) -> bool:
    """Whether a trial that trained to its end has read the value that is searched for."""
    return plan.target is not None and standings(state).best <= state.sign * plan.target


def _unfinished(state: State, plan: Plan, kind: str, left: float | None) -> Continue | None:
    """A training that has not come to where it was told to go, the earliest first."""
    jobs = (Continue(number, state.trials[number].until) for number in standings(state).cut_off[kind])
    exact = plan.budget is not None and plan.budget.exact
    return next((job for job in jobs if not exact or closing.fits_in(state, plan, job, left)), None)


def _may_start(state: State, plan: Plan, left: float | None) -> bool:
    """Whether trials and budget allow a new one: near the end the budget belongs to those under way."""
    if not _trials_left(state, plan):
        return False
    if left is None or plan.budget is None or (plan.strategy == "full" and plan.budget.exact):
        return True  # whether the very trial fits is seen when its values are known
    return left >= _least(state, plan)


def _least(state: State, plan: Plan) -> float:
    """What must be left of the budget for a new trial to be worth beginning; 0 while nobody knows."""
    typical = None if plan.budget is None else plan.budget.typical(state)
    if plan.budget is None or typical is None:
        return 0.0
    return typical if plan.strategy == "full" else min(typical, 0.35 * plan.budget.total)


def _trials_left(state: State, plan: Plan) -> bool:
    return plan.trials is None or standings(state).n_search < plan.trials


def _new_trial(state: State, plan: Plan, propose: Propose, left: float | None) -> Start | None:
    """A new trial in the arm with the fewest; other arms step in for an exhausted one."""
    begun = standings(state).begun
    for arm in sorted(plan.arms, key=lambda name: begun[name]):
        if (start := _start(state, plan, arm, propose, left)) is not None:
            return start
    return None


def _start(state: State, plan: Plan, arm: str, propose: Propose, left: float | None) -> Start | None:
    """A new trial, if the arm has one and its beginning fits into what is left: its lowest rung where not the whole."""
    number = len(state.trials)
    if (proposal := propose(state, number, arm)) is None:
        return None
    total = proposal.total_steps
    lowest = total if arm == BASELINE else strategy_for(plan).first_stop(number, total)
    for until in (total, lowest) if proposal.whole else (lowest,):
        start = Start(number, arm, proposal.values, until, total, seed=plan.seed, source=proposal.source)
        if fits(_cost(plan, start), left):
            return start
    return None


def _cost(plan: Plan, start: Start) -> float | None:
    return None if plan.budget is None else plan.budget.beginning(start)


def _why(trial: Trial, ladder: Ladder, eta_at: Callable[[int], float]) -> str:
    share = f"after {trial.step / trial.total_steps:.0%} of its steps"
    index = next((i for i, rung in reversed([*enumerate(ladder.rungs)]) if trial.number in rung.reached), None)
    if index is None:
        return f"outranked: no finite reading {share}"
    reached = ladder.rungs[index].reached
    place, count = reached.place(trial.number), len(reached)
    earned = place < int(count / eta_at(index))  # it was to go on, but for the budget
    return f"{'out of budget' if earned else 'outranked'}: place {1 + place} of {count} {share}"
