"""Metrics in the unit of the loss: r2 and rmse tell a squared error, a perplexity tells a cross entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from luthier.doctor.symptoms import readings
from luthier.doctor.symptoms.baselines import baseline, loss_name
from luthier.doctor.symptoms.losses import loss_curve
from luthier.doctor.vitals import Vitals

_ALIKE = 2.0  # the first value against the training loss of its time: further apart it has another unit


def metric(vitals: Vitals, side: str, kind: str) -> list[tuple[int, float]]:
    """`readings.metric`; a loss that nobody told is worked out from a score that determines it."""
    told = readings.metric(vitals, side, kind)
    return told or (_as_loss(vitals, side) if kind == "loss" else [])


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
