"""A search over the parameters of a training function, as the parent sees it; the worker's side is in `functions`."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.errors import LuthierError, close_matches
from luthier.files import to_stored
from luthier.hashing import bound, read_values, source_hash
from luthier.tuning.conditions import active, completed, resolved
from luthier.tuning.identity import READS
from luthier.tuning.objectives import TRAIN_TIME, Objective, Objectives, described, function_objectives
from luthier.tuning.ranges import Choice, Range, Space
from luthier.tuning.space import as_space, check_ranges
from luthier.tuning.starts import centre, centres
from luthier.tuning.state import State, Trial
from luthier.tuning.values import unwrapped

_LIKELY_EPOCHS = 10  # while nobody knows better


@dataclass
class FunctionSearch:
    """A training function and the ranges of its parameters; see `Searched`.

    Attributes:
        function: called with a `LiveTrial`.
        steps: the last step that it reports; None: the first trial to finish shows it.
        start_values: what trial 0 trains with, over all of its steps; None: it is a trial like the others.
    """

    recipes = False

    function: Callable[..., Any]
    space: dict[str, Range]
    objectives: tuple[Objective, ...]
    steps: int | None = None
    start_values: dict[str, Any] | None = None
    groups: Mapping[str, Any] | None = None
    repeats: int = 0
    seed: int = 0
    closing_s: float = 0.0
    widens: bool = False
    reference: str | None = None
    why_unread: str = ""

    def __post_init__(self) -> None:
        plain = self.function.func if isinstance(self.function, functools.partial) else self.function
        self.name = re.sub(r"\W", "", getattr(plain, "__name__", type(plain).__name__)) or "function"
        self.start = Values(self.start_values or {})
        self.epochs = self.steps or _LIKELY_EPOCHS
        reported = {each.name: each.column for each in self.objectives if each.name != TRAIN_TIME}
        first = self.objectives[0]
        self.order: dict[str, Any] = {"steps": self.steps, "reported": reported, "direction": first.direction}
        told = {"metric": first.name, "direction": first.direction, "steps": self.steps}
        task = {"name": self.name, "function": source_hash(plain), "arguments": bound(self.function), **told}
        task[READS] = read_values(plain)
        self.description: dict[str, Any] = {
            "task": task,
            "recipe": None,
            "start": to_stored(self.start_values),
            "objectives": described(self.objectives),
        }

    def total_steps(self, values: Mapping[str, Any], state: State) -> int | None:
        """As told, else as the first trial to finish showed."""
        if self.steps is not None:
            return self.steps
        return next((trial.total_steps for trial in state.trials if trial.state == "finished"), None)

    def complete(self, values: dict[str, Any]) -> dict[str, Any]:
        """All parameters that are present, those of other groups too."""
        return completed(self.space, self.start_values or {}, values)

    def work(self, values: Mapping[str, Any], steps: int) -> float:
        """Steps: what one takes is the function's own affair."""
        return float(steps)

    def read_test(self, trials: list[Trial]) -> list[dict[str, float]] | None:
        """Nothing: a function keeps its test data to itself."""
        return None

    def starts(self, ranges: Mapping[str, Range]) -> list[tuple[str, dict[str, Any]]]:
        """About the middle of the space, unless values to start from were given."""
        return centres(resolved(ranges, self.start)) if self.start_values is None else []

    def filled(self, ranges: Mapping[str, Range], values: dict[str, Any]) -> dict[str, Any]:
        """The others where the search starts, else in the middle of their range."""
        start = self.start_values or {}
        others = {path: start[path] if path in start else centre(range_) for path, range_ in ranges.items()}
        return active(ranges, {**others, **values})

    def things(self) -> dict[str, Any]:
        """The function."""
        return {"function": self.function}


@dataclass(frozen=True)
class Values:
    """Values by name, asked for as those of a recipe are."""

    by_name: dict[str, Any]

    def value(self, path: str) -> Any:
        """The value under a name.

        Raises:
            LuthierError: there is none.
        """
        if path not in self.by_name:
            raise LuthierError(f"there is no value for {path!r}")
        return self.by_name[path]


def is_function(thing: object) -> bool:
    """Whether it can be tuned as a training function: a function, method or partial, or an object to be called."""
    return callable(thing) and not inspect.isclass(thing) and not hasattr(thing, "named_parameters")  # no network


def function_search(
    function: Any,
    space: Space | None,
    groups: Mapping[str, Any] | None,
    steps: int | None,
    metric: str | None,
    direction: str | None,
    start: Mapping[str, Any] | None,
    objectives: Objectives | None = None,
) -> FunctionSearch:
    """A search over a function's parameters; see `tune` for the arguments.

    Raises:
        LuthierError: they do not fit; says what to do.
    """
    if space is None:
        raise LuthierError(
            "a training function needs a space, got none: give space={'lr': luthier.loguniform(1e-5, 1e-1), ...}"
        )
    ranges = as_space(space)
    check_ranges(ranges)
    if start is not None and not isinstance(start, Mapping):
        raise LuthierError(f"start must be values by name, such as {{'lr': 0.1}}, got {start!r}")
    values = None if start is None else _started(ranges, start)
    search = FunctionSearch(function, ranges, function_objectives(objectives, metric, direction), steps, values, groups)
    _check_signature(search)
    _check_steps(steps)
    if values is not None:
        _check_start(values, ranges, groups if isinstance(groups, Mapping) else {})
    elif isinstance(groups, Mapping) and any(set(fields) < set(ranges) for fields in groups.values()):
        raise LuthierError(
            "groups tune some parameters and keep the others where the search starts: add start={...} with a value for "
            "each parameter of the space"
        )
    return search


def _started(ranges: Mapping[str, Range], start: Mapping[str, Any]) -> dict[str, Any]:
    """The start's values as the ranges have them, where they do; what can have one value only has it."""
    own = {
        name: ranges[name].own(value) if name in ranges and ranges[name].contains(value) else unwrapped(value)
        for name, value in start.items()
    }
    only = {
        name: range_.options[0] for name, range_ in ranges.items() if isinstance(range_, Choice) and range_.size == 1
    }
    return {**only, **own}


def _check_signature(search: FunctionSearch) -> None:
    try:
        signature = inspect.signature(search.function)
    except ValueError:  # built in: it will say itself what it was called with
        return
    try:
        signature.bind(None)
    except TypeError:
        raise LuthierError(
            f"a training function takes one argument, the trial, got {search.name}{signature}: "
            f"write def {search.name}(trial), and read trial.params"
        ) from None


def _check_steps(steps: Any) -> None:
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise LuthierError(f"steps must be a whole number of at least 1, the last step reported, got {steps!r}")


def _check_start(values: dict[str, Any], space: dict[str, Range], groups: Mapping[str, Any]) -> None:
    for name in values:
        if name not in space:
            raise LuthierError(f"start names {name!r}, which the space does not have: {close_matches(name, space)}")

    def may_be_needed(name: str, range_: Range) -> bool:
        """Whether nobody else gives it: a group may bring in, by a condition, what it does not tune itself."""
        depends = {condition.path for condition in range_.conditions}
        return not depends or any(depends & set(fields) and name not in fields for fields in groups.values())

    if missing := [name for name, range_ in space.items() if name not in values and may_be_needed(name, range_)]:
        raise LuthierError(f"start must give a value for every range of the space, {', '.join(missing)} is missing")
