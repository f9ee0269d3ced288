"""What a call of `tune` asks for: its arguments, checked, and the plan that follows from them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.errors import LuthierError, unknown
from luthier.tuning.budgets import Budget, Time, Work, read_budget, seconds
from luthier.tuning.depot import Depot, checked_address
from luthier.tuning.function_search import FunctionSearch, function_search, is_function
from luthier.tuning.jobs import Plan
from luthier.tuning.objectives import Objectives, check_clock
from luthier.tuning.proposing import AUTO
from luthier.tuning.samplers import SAMPLERS, check_sampler, fitting, sampler_label
from luthier.tuning.searched import Searched, recipe_search
from luthier.tuning.space import space_to_json
from luthier.tuning.starts import named
from luthier.tuning.strategies import STRATEGIES
from luthier.tuning.study import arms
from luthier.tuning.values import is_number, unwrapped
from luthier.tuning.virtual import VIRTUAL_WORKERS

if TYPE_CHECKING:
    from luthier.recipe import Recipe
    from luthier.tuning.ranges import Space

DEFAULT_TRIALS = 30
_CLOSING_SHARE = 0.2  # of a short budget, at most, for what comes after its trainings
_MOST_PROCESSES, _PER_CORE = 256, 8  # some trainings only wait, for a remote job or a disk


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How a study is to be searched and by whom; the attributes are arguments of `tune`.

    Raises:
        LuthierError: one of them makes no sense.
    """

    trials: int | None
    budget: str | float | None
    sampler: Any
    strategy: str
    workers: int | None
    seed: int | None
    repeats: int | None
    trial_timeout: float | None
    deterministic: bool
    constraints: Sequence[Callable[[dict[str, Any]], bool | float]]
    on: str | None
    resources: Mapping[str, Any] | None
    checkpoints: str | None
    first: Sequence[Mapping[str, Any]]
    target: float | None

    def __post_init__(self) -> None:
        self._check_counts()
        if self.budget is not None:
            read_budget(self.budget)
        if self.trial_timeout is not None:
            seconds(self.trial_timeout)
        if isinstance(self.sampler, str) and self.sampler not in (AUTO, *SAMPLERS):
            raise unknown("sampler", self.sampler, (AUTO, *SAMPLERS))
        if self.strategy not in STRATEGIES:
            raise unknown("strategy", self.strategy, STRATEGIES)
        target = unwrapped(self.target)
        if target is not None and not (is_number(target) and math.isfinite(target)):
            raise LuthierError(f"target must be a number that ends the search when it is reached, got {self.target!r}")
        if self.on is None and self.resources is not None:
            raise LuthierError("resources are for workers on Ray: add on='ray', or leave them out")
        if self.on is None and self.checkpoints is not None:
            raise LuthierError("checkpoints are carried for workers on Ray: add on='ray', or leave checkpoints out")
        if self.checkpoints is not None:
            checked_address(self.checkpoints)
        if not isinstance(self.constraints, (list, tuple)) or not all(map(callable, self.constraints)):
            raise LuthierError(f"constraints must be a list of functions of a trial's values, got {self.constraints!r}")

    def _check_counts(self) -> None:
        for name, low in (("trials", 1), ("workers", 1), ("repeats", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise LuthierError(f"{name} must be a whole number of at least {low}, got {value!r}")
        if self.processes > (most := max(_MOST_PROCESSES, _PER_CORE * n_cores())):
            raise LuthierError(
                f"workers must be at most {most} on this machine of {n_cores()} cores, got {self.workers}: each is a "
                "process; one per core is the default"
            )

    @property
    def timeout_s(self) -> float | None:
        """Seconds that a trial may be silent."""
        return None if self.trial_timeout is None else seconds(self.trial_timeout)

    @property
    def processes(self) -> int:
        """Workers on this machine."""
        return (self.workers or n_cores()) if self.on is None else 0

    def plan(self, searched: Searched) -> Plan:
        """What the study is to do.

        Raises:
            LuthierError: groups, a budget or several objectives that do not fit.
        """
        check_sampler(self.sampler, len(searched.objectives))
        if self.deterministic:
            check_clock(searched.objectives)
        groups = arms(searched.groups, searched.space)
        return Plan(
            arms=groups,
            trials=DEFAULT_TRIALS if self.trials is None and self.budget is None else self.trials,
            budget=None if self.budget is None else budget_of(self.budget, searched),
            workers=self.workers or n_cores(),
            seed=searched.seed if self.seed is None else self.seed,
            repeats=searched.repeats if self.repeats is None else self.repeats,
            strategy=self.strategy,
            epochs=searched.epochs,
            baseline=searched.start_values is not None,
            virtual=VIRTUAL_WORKERS if self.deterministic else None,
            first=self._first(searched, groups),
            target=None if self.target is None else float(self.target),
        )

    def _first(self, searched: Searched, groups: Mapping[str, list[str]]) -> list[tuple[str, dict[str, Any]]]:
        first = named(self.first, searched, groups)
        for index, (arm, values) in enumerate(first):
            if not fitting(self.constraints, searched.space.keys() - groups[arm], searched.start)(values):
                raise LuthierError(f"the constraints refuse first[{index}], {values}: change one of them")
        return first

    def settings(self, searched: Searched, plan: Plan, depot: Depot | None = None) -> dict[str, Any]:
        """What the ledger notes of this call."""
        kept = {} if depot is None else {"checkpoints": depot.address, "calls": depot.call}
        totals = {name: getattr(plan, name) for name in ("trials", "workers", "seed", "repeats")}
        return {
            "sampler": sampler_label(self.sampler),
            "strategy": self.strategy,
            **totals,
            "budget": None if plan.budget is None else str(plan.budget),
            "budget_s": plan.budget.total if isinstance(plan.budget, Time) else None,
            "target": plan.target,
            "reference": searched.reference,
            "constraints": [getattr(each, "__name__", repr(each)) for each in self.constraints],
            **kept,
        }


def budget_of(told: str | float, searched: Searched) -> Budget:
    """The budget of a study.

    Raises:
        LuthierError: epochs of a function.
    """
    amount, unit = read_budget(told)
    if unit == "s":
        return Time(amount, min(searched.closing_s, _CLOSING_SHARE * amount))
    if unit == "epochs" and isinstance(searched, FunctionSearch):
        raise LuthierError(
            "a training function reports steps, and how many make an epoch it does not tell: "
            f"give the budget as time or steps, such as '{amount:g} steps', got {told!r}"
        )
    return Work(amount, unit, searched.epochs)


def description(searched: Searched, plan: Plan) -> dict[str, Any]:
    """What identifies a study: a later call must ask for the same."""
    return {
        **searched.description,
        "name": searched.name,
        "space": space_to_json(searched.space),
        "groups": None if searched.groups is None else plan.arms,
        "seed": plan.seed,
        "virtual": plan.virtual,
    }


def searched_for(
    task: Any,
    recipe: Recipe | None,
    space: Space | None,
    groups: Mapping[str, Any] | None,
    seed: int | None,
    steps: int | None,
    metric: str | None,
    direction: str | None,
    start: Mapping[str, Any] | None,
    objectives: Objectives | None = None,
) -> Searched:
    """What is searched over: recipes for a task, or the parameters of a function; see `tune`."""
    if not is_function(task):
        of_function = {"steps": steps, "metric": metric, "direction": direction, "start": start}
        if given := [name for name, value in of_function.items() if value is not None]:
            raise LuthierError(f"{', '.join(given)}: for a training function only; task and recipe say this already")
        return recipe_search(task, recipe, space, groups, seed, objectives)
    if recipe is not None:
        raise LuthierError("a training function takes no recipe: name its parameters in space={...}")
    return function_search(task, space, groups, steps, metric, direction, start, objectives)


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
