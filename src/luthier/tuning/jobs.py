"""The words between scheduler, workers and strategies: jobs, proposals, and the plan of a study."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from luthier.tuning.budgets import Budget
from luthier.tuning.state import BASELINE as BASELINE
from luthier.tuning.state import State


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
    source: str = ""


@dataclass(frozen=True)
class Continue:
    """Train a paused trial further, from its checkpoint."""

    number: int
    until_step: int


@dataclass(frozen=True)
class Stop:
    """End a paused trial.

    Attributes:
        may_return: whether a later call may go on with it.
    """

    number: int
    reason: str
    may_return: bool = False


Job: TypeAlias = Start | Continue | Stop


@dataclass(frozen=True)
class Proposal:
    """Values for a new trial, the steps that it takes with them, and who asked for it if it was not the sampler.

    A whole one trains to its end at once, whatever the strategy's rungs.
    """

    values: dict[str, Any]
    total_steps: int
    source: str = ""
    whole: bool = False


Propose: TypeAlias = Callable[[State, int, str], Proposal | None]
"""(state, number of the new trial, arm) -> values, or None when the arm's space is exhausted."""


@dataclass(frozen=True)
class Plan:
    """What a study is to do.

    Attributes:
        arms: name of each arm -> the fields that it varies, in dealing order.
        trials: search trials in all, the baseline included; None: as many as the budget allows.
        budget: of all calls together; None: no limit.
        workers: trainings at a time.
        seed: of the search trials; repeats take the seeds after it.
        repeats: further seeds that winner and baseline are trained with, for their comparison.
        strategy: a name of `STRATEGIES`.
        epochs: of the longest training, to tell how much of it one epoch is.
        baseline: whether trial 0 is the starting point itself, over its full budget.
        virtual: workers of a deterministic study's virtual clock (see `virtual`); None: decisions follow the real one.
        first: configurations to begin with: the arm and the values of each.
        target: value of the first objective with which the search is over; None: none is.
    """

    arms: dict[str, list[str]]
    trials: int | None = None
    budget: Budget | None = None
    workers: int = 1
    seed: int = 0
    repeats: int = 3
    strategy: str = "halving"
    epochs: int = 10
    baseline: bool = True
    virtual: int | None = None
    first: Sequence[tuple[str, dict[str, Any]]] = ()
    target: float | None = None


@dataclass(frozen=True)
class Outlook:
    """How far the search has come.

    Attributes:
        share: of its budget that is spent, 0-1; 1 when no trial may begin any more.
        left: what it still has of it; None without a budget.
        more: whether new trials are still to begin.
        trainings: how many whole ones the budget holds in all; infinite without a budget, or while nobody knows.
    """

    share: float
    left: float | None
    more: bool = True
    trainings: float = math.inf
