"""How a search with a budget closes: early enough for the best trial that waits to come to its end.

Else many are begun and none has a result. Both limits were chosen on recorded curves (see LOG.md).
"""

from __future__ import annotations

import math
from itertools import islice

from luthier.tuning.budgets import fits
from luthier.tuning.jobs import Continue, Plan
from luthier.tuning.standings import standings
from luthier.tuning.state import State
from luthier.tuning.strategies import whole

BEGINS = 1.3
"""New trials begin while there is so much room."""

BETS = 1.15
"""With less room the best trials go on to their ends, whatever the rungs say."""

_HALF = 0.5
_MOST = 50


def room(state: State, plan: Plan, left: float | None) -> float:
    """How many times over what is left suffices for the best waiting trial to come to its end.

    It is never asked to keep more than half of the whole budget. Infinite without a budget or a waiting trial.
    """
    best = standings(state).paused.first
    if left is None or plan.budget is None or best is None:
        return math.inf
    trial = state.trials[best]
    rest = plan.budget.rest(trial, trial.total_steps)
    return math.inf if not rest else left / min(rest, _HALF * plan.budget.total)


def trainings(state: State, plan: Plan) -> float:
    """How many whole trainings the budget holds; infinite without one, or while nobody knows what a training takes."""
    typical = None if plan.budget is None else plan.budget.typical(state)
    if plan.budget is None or not typical:
        return math.inf
    return plan.budget.total * (1 if plan.budget.exact else plan.workers) / typical


def bet(state: State, plan: Plan, left: float | None) -> Continue | None:
    """The best waiting trial that can still come to its end."""
    jobs = (whole(state.trials[number]) for number in islice(standings(state).paused, _MOST))
    return next((job for job in jobs if fits_in(state, plan, job, left)), None)


def fits_in(state: State, plan: Plan, job: Continue, left: float | None) -> bool:
    """Whether a training comes to the job's step with what is left."""
    return plan.budget is None or fits(plan.budget.rest(state.trials[job.number], job.until_step), left)
