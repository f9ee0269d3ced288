"""What to train next: pure functions from a study's state to a job.

`next_job` reads nothing but the state, the plan and the clock it is given, so that recorded curves and a fake
clock run the very same code, and a resumed study decides as it would have before.
"""

from __future__ import annotations

from luthier.tuning.jobs import BASELINE, Continue, Outlook, Plan, Propose, Start, Stop
from luthier.tuning.ladders import Ladder, Ladders
from luthier.tuning.standings import follow, standings
from luthier.tuning.state import State, Trial
from luthier.tuning.strategies import strategy_for, whole


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
    left = search_left(state, plan, clock)
    if plan.budget_s is not None and clock >= plan.budget_s:
        return None
    if not state.trials and plan.baseline:
        return _start(state, plan, BASELINE, propose)
    job = _unfinished(state, "search")
    if left is not None and left <= 0:
        return job if job is not None and state.trials[job.number].arm == BASELINE else None  # owed all of the budget
    return job or _next_of_search(state, plan, propose, Outlook(_share(state, plan, clock, left), left))


def _next_of_search(state: State, plan: Plan, propose: Propose, outlook: Outlook) -> Start | Continue | None:
    strategy, left = strategy_for(plan), outlook.left_s
    for arm in plan.arms:
        if (promoted := strategy.promote(state, arm, outlook)) is not None and _fits(state, promoted, left):
            return promoted
    begins = strategy.begins(outlook) and _may_start(state, plan, left)
    if begins and (start := _new_trial(state, plan, propose)) is not None:
        return start
    for arm in plan.arms:
        if (needed := strategy.last(state, arm)) is not None and _fits(state, needed, left):
            return needed
    return _last_bets(state, left) if left is not None and _trials_left(state, plan) else None


def _share(state: State, plan: Plan, clock: float, left: float | None) -> float:
    """Share of the search's budget that is spent."""
    if not _trials_left(state, plan):
        return 1.0
    return 0.0 if left is None else clock / (clock + left)


def next_repeat(state: State, plan: Plan) -> Start | Continue | None:
    """The next retraining of winner or baseline with another seed, or None when all are there or under way.

    A baseline that did not come to its end has nothing to be compared with: then neither is retrained.
    """
    if (job := _unfinished(state, "repeat")) is not None:
        return job
    winner, baseline = state.winner, state.baseline
    if winner is None or (baseline is not None and baseline.state != "finished"):
        return None
    both = [trial for trial in (baseline, winner) if trial is not None]
    if plan.virtual is None:
        both.sort(key=lambda trial: -trial.time_s)  # the longest first: all end early
    for seed in range(plan.seed + 1, plan.seed + 1 + plan.repeats):
        for trial in both:
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


def outranked(state: State, plan: Plan) -> list[Stop]:
    """Ends for the trials that wait at a rung when the search is over; those that were cut off may still go on."""
    ladders = follow(state, strategy_for(plan), lambda: Ladders(strategy_for(plan)))
    waiting = [trial for trial in state.search if trial.state == "paused" and trial.step >= trial.until]
    return [Stop(trial.number, _outranked_reason(trial, ladders.of(trial))) for trial in waiting]


def reserve_s(state: State, plan: Plan) -> float:
    """Seconds to keep for the repeats at the end: those of the winner so far (else the likely one) and the baseline."""
    if not plan.repeats:
        return plan.closing_s
    standing = standings(state)
    likely = standing.finished.first if standing.finished.first is not None else standing.paused.first
    first = None if state.baseline is None else state.baseline.number
    known = [state.trials[number] for number in dict.fromkeys((first, likely)) if number is not None]
    missing = [
        trial.expected_s or 0.0
        for trial in known
        for offset in range(1, 1 + plan.repeats)
        if not any(repeat.seed == plan.seed + offset and repeat.ended for repeat in state.repeats(trial.number))
    ]
    if not missing:
        return plan.closing_s
    return plan.closing_s + 1.15 * max(sum(missing) / plan.workers, max(missing))


def search_left(state: State, plan: Plan, clock: float) -> float | None:
    """Seconds that the search still has, the repeats' share set aside; None without a budget."""
    return None if plan.budget_s is None else plan.budget_s - reserve_s(state, plan) - clock


def _unfinished(state: State, kind: str) -> Continue | None:
    """A training that has not come to where it was told to go, the earliest first."""
    number = standings(state).cut_off[kind].first
    return None if number is None else Continue(number, state.trials[number].until)


def _may_start(state: State, plan: Plan, left: float | None) -> bool:
    """Whether trials and time allow a new one: near the end the time belongs to those under way."""
    if not _trials_left(state, plan):
        return False
    typical = standings(state).typical_s
    if left is None or typical is None or plan.budget_s is None:
        return True
    return left > (typical if plan.strategy == "full" else min(typical, 0.35 * plan.budget_s))


def _trials_left(state: State, plan: Plan) -> bool:
    return plan.trials is None or standings(state).n_search < plan.trials


def _new_trial(state: State, plan: Plan, propose: Propose) -> Start | None:
    """A new trial in the arm with the fewest; other arms step in for an exhausted one."""
    begun = standings(state).begun
    for arm in sorted(plan.arms, key=lambda name: begun[name]):
        if (start := _start(state, plan, arm, propose)) is not None:
            return start
    return None


def _start(state: State, plan: Plan, arm: str, propose: Propose) -> Start | None:
    number = len(state.trials)
    if (proposal := propose(state, number, arm)) is None:
        return None
    total = proposal.total_steps
    until = total if arm == BASELINE else strategy_for(plan).first_stop(number, total)
    return Start(number, arm, proposal.values, until, total, seed=plan.seed, source=proposal.source)


def _last_bets(state: State, left: float) -> Continue | None:
    """In the last seconds of a budget: the most promising paused trial that can still come to its end."""
    jobs = (whole(state.trials[number]) for number in standings(state).paused)
    return next((job for job in jobs if _fits(state, job, left)), None)


def _fits(state: State, job: Continue, left: float | None) -> bool:
    """Whether a training comes to the job's step in the time that is left."""
    trial = state.trials[job.number]
    if left is None or not trial.step:
        return True
    return trial.time_s / trial.step * (job.until_step - trial.step) <= left


def _outranked_reason(trial: Trial, ladder: Ladder) -> str:
    share = f"after {trial.step / trial.total_steps:.0%} of its steps"
    rung = next((rung for rung in reversed(ladder.rungs) if trial.number in rung.reached), None)
    if rung is None:
        return f"outranked: no finite reading {share}"
    return f"outranked: place {1 + rung.reached.place(trial.number)} of {len(rung.reached)} {share}"
