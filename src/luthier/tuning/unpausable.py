"""Trials of functions that cannot be paused: at a rung they go on at once or end."""

from __future__ import annotations

import math

from luthier.tuning.budgets import fits
from luthier.tuning.jobs import Continue, Plan, Stop
from luthier.tuning.ladders import ladders_of
from luthier.tuning.scheduler import search_left
from luthier.tuning.state import State
from luthier.tuning.strategies import strategy_for

_ETA = 3.0


def at_rung(state: State, plan: Plan, number: int) -> Continue | Stop:
    """Whether a trial at its rung is among the best `ceil(n / eta)` of the n that have come there so far.

    Asynchronous halving that pauses decides later, when more have come; this is its form for trials that nobody can
    take up again. The first to come goes on.

    Source: Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning; the stopping form is Ray Tune's.
    """
    strategy, trial = strategy_for(plan), state.trials[number]
    ladder = ladders_of(state, strategy).of(trial)
    rung = next((rung for rung in reversed(ladder.rungs) if number in rung.reached), None)
    on = Continue(number, strategy.next_stop(trial))
    exact = plan.budget if plan.budget is not None and plan.budget.exact else None
    if exact is not None and not fits(exact.rest(trial, on.until_step), search_left(state, plan, clock=0.0)):
        return Stop(number, f"out of budget at step {trial.step} of {trial.total_steps}", may_return=True)
    if rung is None:
        return on
    place, count = rung.reached.place(number), len(rung.reached)
    if place < math.ceil(count / getattr(strategy, "eta", _ETA)):
        return on
    share = f"{trial.step / trial.total_steps:.0%}"
    return Stop(
        number,
        f"outranked: place {place + 1} of {count} after {share} of its steps "
        "(it had to end there: functions that call trial.restore and trial.save can be paused instead)",
    )
