"""What to train next: pure functions from a study's state to a job.

`next_job` reads nothing but the state, the plan and the clock it is given, so that recorded curves and a fake
clock run the very same code, and a resumed study decides as it would have before.
"""

from __future__ import annotations

import statistics

from luthier.tuning.jobs import BASELINE, Continue, Plan, Propose, Start, Stop
from luthier.tuning.state import State, Trial
from luthier.tuning.strategies import arm_trials, by_schedule, most_promising, strategy_named, whole

_TEST_S = 5.0  # set aside for reading the test data and closing


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
    if plan.budget_s is not None and clock >= plan.budget_s:
        return None
    if not state.trials:
        return _start(state, plan, BASELINE, propose)
    job = _unfinished(state, "search")
    if left is not None and left <= 0:
        return job if job is not None and job.number == 0 else None  # the baseline is owed all of the budget
    if job is not None:
        return job

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
    both = sorted((state.trials[0], winner), key=lambda trial: -trial.time_s)  # the longest first: all end early
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


def outranked(state: State) -> list[Stop]:
    """Ends for the trials that wait at a rung when the search is over; those that were cut off may still go on."""
    waiting = [trial for trial in state.search if trial.state == "paused" and trial.step >= trial.until]
    return [Stop(trial.number, _outranked_reason(state, trial)) for trial in waiting]


def reserve_s(state: State, plan: Plan) -> float:
    """Seconds to keep for the repeats at the end: those of the winner so far (else the likely one) and the baseline."""
    winner = state.winner or next(iter(state.rank(trial for trial in state.search if trial.number)), None)
    known = [trial for trial in (state.trials[0] if state.trials else None, winner) if trial is not None]
    missing = [
        trial.expected_s or 0.0
        for trial in known
        for offset in range(1, 1 + plan.repeats)
        if not any(repeat.seed == plan.seed + offset and repeat.ended for repeat in state.repeats(trial.number))
    ]
    if not missing:
        return _TEST_S
    return _TEST_S + 1.15 * max(sum(missing) / plan.workers, max(missing))


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
    jobs = (whole(trial) for trial in most_promising(state, [trial for trial in state.search if trial.number]))
    return next((job for job in jobs if job is not None and _fits(state, job, left)), None)


def _fits(state: State, job: Continue, left: float | None) -> bool:
    """Whether a training comes to the job's step in the time that is left."""
    trial = state.trials[job.number]
    if left is None or not trial.step:
        return True
    return trial.time_s / trial.step * (job.until_step - trial.step) <= left


def _outranked_reason(state: State, trial: Trial) -> str:
    share = trial.step / trial.total_steps
    ladder = next(ladder for ladder in by_schedule(arm_trials(state, trial.arm)) if trial in ladder)
    rivals = [t for t in ladder if t.step >= trial.step * t.total_steps / trial.total_steps]
    place = 1 + [t.number for t in state.rank(rivals)].index(trial.number) if trial.value is not None else len(rivals)
    return f"outranked: place {place} of {len(rivals)} after {share:.0%} of its steps"
