"""What a study searches for: one objective, or several at once."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from luthier.errors import LuthierError, close_matches

Objectives: TypeAlias = Sequence[str] | Mapping[str, str]
"""Objectives as a user names them: names, or names with their directions; the first leads."""

MEASURED = ("parameters", "latency_ms")
"""What workers measure of a task's network; see `measuring`."""

TRAIN_TIME = "train_time_s"
"""Seconds of a whole training, at the pace so far while it is not over: the study knows them of every trial."""

RESULT = "result"
"""Kind of a row with what a function returned after its reports, which counts in their place."""

_VALIDATION = "val_"
_ROW = ("kind", "step", "time_s")
"""What a row holds beside readings."""

_COSTS = dict.fromkeys((*MEASURED, TRAIN_TIME), "min")
_OF_THE_CLOCK = ("latency_ms", TRAIN_TIME)


@dataclass(frozen=True)
class Objective:
    """One thing that a study searches for.

    Attributes:
        name: of a metric or a cost.
        direction: which way it improves, "max" or "min".
        reported: whether a function reports it, under whatever name.
    """

    name: str
    direction: str
    reported: bool = False

    @cached_property
    def sign(self) -> float:
        """The factor that makes a better value smaller."""
        return -1.0 if self.direction == "max" else 1.0

    @cached_property
    def column(self) -> str:
        """Where a row of readings holds it."""
        if self.name in MEASURED or (self.reported and self.name.startswith(_VALIDATION)):
            return self.name
        return f"{_VALIDATION}{self.name}"

    def of(self, row: Mapping[str, Any], total_steps: int) -> float:
        """Its reading in a row, for a training of so many steps; NaN when there is none."""
        if self.name == TRAIN_TIME:
            return float(row["time_s"]) / float(row["step"]) * total_steps
        value = row.get(self.column)
        return math.nan if value is None else float(value)


def best_scores(
    rows: Iterable[Mapping[str, Any]], objectives: Sequence[Objective], total_steps: int
) -> tuple[float, ...] | None:
    """The readings of all objectives in the row that is best in the first one; None when no row has them all.

    One row, since that is one network: the one whose weights are kept. Numbers that are not finite count as none.

    >>> rows = [{"step": 1, "val_accuracy": 0.7, "val_loss": 0.9}, {"step": 2, "val_accuracy": 0.8, "val_loss": 1.0}]
    >>> best_scores(rows, [Objective("accuracy", "max"), Objective("loss", "min")], 2)
    (0.8, 1.0)
    """
    read = [tuple([objective.of(row, total_steps) for objective in objectives]) for row in rows]
    whole = [scores for scores in read if all(map(math.isfinite, scores))]
    return min(whole, key=lambda scores: losses(scores, objectives), default=None)


def losses(scores: Iterable[float], objectives: Iterable[Objective]) -> tuple[float, ...]:
    """Scores with the signs that make smaller better."""
    return tuple([objective.sign * score for objective, score in zip(objectives, scores, strict=True)])


def task_objectives(asked: Objectives | None, metric: str, direction: str) -> tuple[Objective, ...]:
    """The objectives of a study of a task: its metric first, then its loss and what its network costs.

    Raises:
        LuthierError: an unknown name, one twice, a wrong direction, or another one than the metric in front.
    """
    if asked is None:
        return (Objective(metric, direction),)
    known = {metric: direction, "loss": "min", **_COSTS}
    named = _named(asked)
    for name, way in named.items():
        if name not in known:
            raise LuthierError(f"a task has no objective {name!r}: {close_matches(name, known)}")
        if way not in (None, known[name]):
            raise LuthierError(f"{name} improves towards {known[name]!r}, got {way!r}")
    if next(iter(named)) != metric:
        raise LuthierError(
            f"the first objective of a task is its metric, {metric!r}, which decides about the best weights: put it "
            "in front, or give the task another metric"
        )
    return tuple(Objective(name, known[name]) for name in named)


_SHORT = {"maximize": "max", "minimize": "min"}  # as Optuna says
_LOSSES = re.compile(r"(^|_)(loss|error|err|rmse|mse|mae|nll|perplexity|ppl|wer|cer|latency|time)(_|$)")
COLUMNS = ("number", "kind", "arm", "state", "reason", "source", "seed", "step", "total_steps", "time_s")
"""What a study's table tells of each trial besides its values and objectives."""


def function_objectives(asked: Objectives | None, metric: str | None, direction: str | None) -> tuple[Objective, ...]:
    """The objectives of a study of a training function: what it reports, and the time that it takes.

    Raises:
        LuthierError: no name, one twice, a direction that is missing or none; one and the same thing said twice.
    """
    if asked is None:
        if direction is None and metric is not None and _LOSSES.search(metric.lower()):
            raise LuthierError(f"say which way {metric} improves: direction='min', or 'max'")
        named: dict[str, str | None] = {metric or "value": direction or "max"}
    elif metric is not None or direction is not None:
        raise LuthierError("objectives name metric and direction already: leave those out")
    else:
        named = _named(asked)
    named = {name: _SHORT.get(str(way), way) for name, way in named.items()}
    for name, way in named.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise LuthierError(f"what a function reports needs a name such as 'accuracy', got {name!r}")
        if name in COLUMNS:
            raise LuthierError(f"{name!r} is what a study calls something of its trials: give the metric another name")
        if name != TRAIN_TIME and way is None:
            raise LuthierError(f"say which way {name} improves: objectives={{{name!r}: 'max', ...}}, or 'min'")
        if way not in (None, "max", "min"):
            raise LuthierError(f"the direction of {name} must be 'max' or 'min', got {way!r}")
    if next(iter(named)) == TRAIN_TIME:
        raise LuthierError(f"the first objective is what the function reports; {TRAIN_TIME} may follow it")
    if twins := [name for name in named if f"{_VALIDATION}{name}" in named]:
        raise LuthierError(f"{twins[0]!r} and '{_VALIDATION}{twins[0]}' are kept under one name: call one otherwise")
    return tuple(Objective(name, way or "min", reported=True) for name, way in named.items())


def described(objectives: Sequence[Objective]) -> dict[str, str] | None:
    """What a ledger notes of several objectives; one is described with its task."""
    return {each.name: each.direction for each in objectives} if len(objectives) > 1 else None


def check_clock(objectives: Iterable[Objective]) -> None:
    """Whether the objectives allow the same decisions each time.

    Raises:
        LuthierError: one is read off the clock.
    """
    if timed := [objective.name for objective in objectives if objective.name in _OF_THE_CLOCK]:
        raise LuthierError(
            f"{' and '.join(timed)} cannot steer a deterministic study, since no two calls measure the same: take "
            "'parameters', or leave deterministic out"
        )


def as_readings(value: Any, names: Sequence[str], expects: str) -> dict[str, float]:
    """What a function told, as numbers by name: the objectives first, then what else it told.

    Args:
        value: a number where there is one objective; or a dict of numbers, of the objectives and any others.
        names: of the objectives.
        expects: how a complaint begins.

    Raises:
        LuthierError: an objective is missing, something is no number, or has a name that rows have for something else.
    """
    if not isinstance(value, Mapping):
        if len(names) > 1:
            raise LuthierError(f"{expects} a dict with {', '.join(names)}, the objectives of the study, got {value!r}")
        return {names[0]: as_number(value, expects)}
    if missing := [name for name in names if name not in value]:
        raise LuthierError(
            f"{expects} a dict with {', '.join(names)}; {', '.join(missing)} is missing: {dict(value)!r}"
        )
    others = [name for name in value if name not in names]
    taken = {*_ROW, *(f"{_VALIDATION}{name}" for name in names)}
    if bad := [name for name in others if not isinstance(name, str) or name in taken]:
        raise LuthierError(f"{expects} other names for readings than {', '.join(sorted(taken))}, got {bad[0]!r}")
    return {name: as_number(value[name], f"{expects} for {name}") for name in (*names, *others)}


def as_number(value: Any, expects: str) -> float:
    """A reading as a float.

    Raises:
        LuthierError: it is none.
    """
    if hasattr(value, "item") and getattr(value, "size", 1) != 0:
        try:
            value = value.item()
        except (RuntimeError, ValueError):
            raise LuthierError(f"{expects} one number, got {type(value).__name__} of shape {value.shape}") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise LuthierError(f"{expects} a number, got {value!r} of type {type(value).__name__}")
    return float(value)


def as_step(told: Any) -> int:
    """A step as an int, also where it is one of NumPy or torch.

    Raises:
        LuthierError: no whole number from 0.
    """
    try:
        step = -1 if isinstance(told, bool) else operator.index(told)
    except (TypeError, ValueError):  # not whole, or not one
        step = -1
    if step < 0:
        raise LuthierError(f"trial.report expects step as a whole number (epochs trained), got {told!r}")
    return step


def _named(asked: Any) -> dict[str, str | None]:
    names = list(asked) if isinstance(asked, (list, tuple, Mapping)) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise LuthierError(
            "objectives must be a list of names, or a dict of names and directions such as "
            f"{{'accuracy': 'max', 'parameters': 'min'}}, got {asked!r}"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise LuthierError(f"the objective {twice[0]!r} is named twice: once is enough")
    return dict(asked) if isinstance(asked, Mapping) else dict.fromkeys(names)
