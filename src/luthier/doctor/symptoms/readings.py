"""Metrics by side (training, validation) and kind (loss, accuracy, ...), however they were spelt."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, TypeVar

from luthier.doctor.vitals import Vitals

_SIDES = {"train": "train", "training": "train", "tr": "train"} | dict.fromkeys(
    ("val", "valid", "validation", "dev", "test", "eval", "holdout"), "val"
)
_KINDS = {
    "loss": "loss",
    "nll": "loss",
    "ce": "loss",
    "bce": "loss",
    "xent": "loss",
    "logloss": "loss",
    "acc": "accuracy",
    "accuracy": "accuracy",
    "top1": "accuracy",
    "f1": "f1",
    "auc": "auc",
    "r2": "r2",
    "mse": "mse",
    "mae": "mae",
    "rmse": "rmse",
    "error": "error",
    "ppl": "perplexity",
    "perplexity": "perplexity",
}
_ADDED = ("epoch", "mean", "macro")


_T = TypeVar("_T")


def remembered(vitals: Vitals, name: str, compute: Callable[[Vitals], _T]) -> _T:
    """A derived number, computed once for every state of the vitals: dozens of rules ask for the same ones."""
    rows = (vitals.looks, vitals.targets, vitals.metrics, vitals.anatomies, vitals.evaluations)
    state = (vitals.steps, *(len(kind) for kind in rows))
    memory: dict[str, Any] = vars(vitals).setdefault("_remembered", {})
    kept = memory.get(name)
    if kept is None or kept[0][0] is not state[0] or kept[0][1:] != state[1:]:
        kept = memory[name] = (state, compute(vitals))
    value: _T = kept[1]
    return value


def known(values: Sequence[float | None]) -> list[float]:
    """The finite numbers of a sequence that may hold None, NaN and infinities."""
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def middle(values: Sequence[float | None], default: float = 0.0) -> float:
    """Median of the finite numbers; `default` when there is none."""
    numbers = known(values)
    return median(numbers) if numbers else default


def side_and_kind(name: str) -> tuple[str, str] | None:
    """What a metric's name says; a name without a side belongs to training.

    >>> side_and_kind("valid_acc"), side_and_kind("loss"), side_and_kind("lr")
    (('val', 'accuracy'), ('train', 'loss'), None)
    """
    words = _words(name)
    sides = [_SIDES[word] for word in words if word in _SIDES]
    kinds = [_KINDS[word] for word in words if word in _KINDS]
    if len(kinds) != 1 or len(sides) > 1 or len(words) > len(sides) + 1 + sum(word in words for word in _ADDED):
        return None
    return (sides[0] if sides else "train"), kinds[0]


def side_of(name: str) -> str | None:
    """The side that some word of a metric's name tells, whatever else it measures.

    >>> side_of("tags_right_dev"), side_of("lr")
    ('val', None)
    """
    return next((_SIDES[word] for word in _words(name) if word in _SIDES), None)


def _words(name: str) -> list[str]:
    return name.lower().replace("/", "_").replace(".", "_").replace("-", "_").split("_")


def metric(vitals: Vitals, side: str, kind: str) -> list[tuple[int, float]]:
    """(step, value) of the first metric of this side ("train", "val") and kind ("loss", "accuracy", ...).

    A score without a side (top1, rmse) is one of validation where evaluations were seen and no other name is.
    """
    names = sorted(
        {name for row in vitals.metrics for name in row.values},
        key=lambda name: ("test" in name, kind not in name, name),
    )
    spelt = [name for name in names if side_and_kind(name) == (side, kind)]
    bare = _of_evaluations(vitals, names, kind)
    found = [name for name in spelt if name not in bare] or (bare if side == "val" else [])
    return vitals.named(found[0]) if found else []


def _of_evaluations(vitals: Vitals, names: Sequence[str], kind: str) -> list[str]:
    """Scores without a side that only an evaluation can have given: training keeps its own under loss, or has none."""
    told = [side_and_kind(name) for name in names]
    evaluated = any(not row.training or not row.grad for row in vitals.evaluations)
    if kind == "loss" or not evaluated or ("val", kind) in told or "loss" in names:
        return []
    return [name for name in names if side_and_kind(name) == ("train", kind) and side_of(name) is None]


def steps_per_epoch(vitals: Vitals) -> float | None:
    """Steps between rows of metrics, taken as epochs; None below 2 rows."""
    steps = sorted({row.step for row in vitals.metrics})
    gaps = [later - earlier for earlier, later in itertools.pairwise(steps)]
    return float(median(gaps)) if gaps else None


def batch_size(vitals: Vitals) -> int | None:
    """Usual number of examples of a batch."""
    sizes = [look.batch_size for look in vitals.looks if look.batch_size] or [row.n for row in vitals.targets if row.n]
    return int(median(sizes)) if sizes else None
