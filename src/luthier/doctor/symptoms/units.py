"""Metrics in the unit of the loss: r2 and rmse tell a squared error, a perplexity tells a cross entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from luthier.doctor.symptoms import readings
from luthier.doctor.symptoms.baselines import baseline, class_counts, loss_name
from luthier.doctor.symptoms.losses import loss_curve
from luthier.doctor.symptoms.readings import middle
from luthier.doctor.vitals import Vitals

_ALIKE = 2.0  # the first value against the training loss of its time: further apart it has another unit


def metric(vitals: Vitals, side: str, kind: str) -> list[tuple[int, float]]:
    """`readings.metric`; what nobody told is worked out from a score that determines it."""
    told = readings.metric(vitals, side, kind)
    if told or kind not in ("loss", "accuracy"):
        return told
    if kind == "accuracy":
        return readings.metric(vitals, side, "f1") if _even(vitals) else []
    return _as_loss(vitals, side)


def _even(vitals: Vitals) -> bool:
    """Classes come about equally often: F1 then says about what accuracy says."""
    counts = class_counts(vitals)
    return len(counts) > 1 and min(counts.values()) >= 0.5 * max(counts.values())


def accuracies(vitals: Vitals) -> tuple[float | None, float | None]:
    """Final accuracy (0-1) in training and validation; from batches and evaluations seen when no metric holds them."""
    train = metric(vitals, "train", "accuracy")
    val = metric(vitals, "val", "accuracy")
    late = [look for look in vitals.looks if look.step >= 0.5 * vitals.n_steps]  # what it was before is not final
    seen = [look.predictions for look in late if look.predictions is not None and look.predictions.n]
    batches = sum(item.correct for item in seen) / sum(item.n for item in seen) if seen else None
    evaluated = [row.predictions for row in vitals.evaluations if row.predictions is not None and row.predictions.n]
    evaluation = evaluated[-1].correct / evaluated[-1].n if evaluated else None
    return (_share(train) if train else batches), (_share(val) if val else evaluation)


def _share(points: Sequence[tuple[int, float]]) -> float:
    """Median of the last (up to 3) values, percentages as fractions."""
    value = middle([value for _, value in points[-3:]], math.nan)
    return value / 100 if value > 1.5 else value


def _as_loss(vitals: Vitals, side: str) -> list[tuple[int, float]]:
    name, base = loss_name(vitals), baseline(vitals)
    if base is None or base.assumed:
        return []
    if name == "mse_loss" and (scores := readings.metric(vitals, side, "r2")):
        return [(step, (1 - score) * base.value) for step, score in scores]
    for kind, convert in _SAME.get(name, ()):
        points = [(step, convert(value)) for step, value in readings.metric(vitals, side, kind)]
        if points and _one_unit(vitals, points):
            return points
    return []


def _logarithm(value: float) -> float:
    return math.log(value) if value > 0 else math.nan


_SAME: dict[str, tuple[tuple[str, Callable[[float], float]], ...]] = {
    "mse_loss": (("mse", float), ("rmse", lambda value: value**2)),
    "l1_loss": (("mae", float),),
    "cross_entropy": (("perplexity", _logarithm),),
    "nll_loss": (("perplexity", _logarithm),),
}


def _one_unit(vitals: Vitals, points: Sequence[tuple[int, float]]) -> bool:
    """Before anything was learnt by heart validation costs about what training does; targets may be scaled back."""
    curve, (at, value) = loss_curve(vitals), points[0]
    near = [loss for step, loss in zip(curve.steps, curve.smooth, strict=True) if step <= at][-5:] if curve else []
    level = sum(near) / len(near) if near else 0.0
    return level > 0 and math.isfinite(value) and level / _ALIKE < value < level * _ALIKE
