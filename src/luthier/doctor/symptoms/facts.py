"""Derived numbers that many rules share: the training loss, what a constant answer costs, metrics in pairs."""

from __future__ import annotations

import bisect
import math
from typing import Any

from luthier.doctor.symptoms.baselines import (
    LOSSES,
    VIEWS,
    Baseline,
    added_to,
    baseline,
    class_counts,
    given_counts,
    is_classification,
    loss_name,
    loss_node,
    node_of,
    target_mean,
    target_std,
    targets_in_losses,
)
from luthier.doctor.symptoms.losses import LossCurve, loss_curve, slope
from luthier.doctor.symptoms.readings import (
    batch_size,
    known,
    middle,
    remembered,
    side_and_kind,
    side_of,
    steps_per_epoch,
)
from luthier.doctor.symptoms.units import accuracies, metric
from luthier.doctor.vitals import Vitals

__all__ = [
    "LOSSES",
    "VIEWS",
    "Baseline",
    "LossCurve",
    "accuracies",
    "added_to",
    "baseline",
    "batch_size",
    "class_counts",
    "epoch_losses",
    "example",
    "given_counts",
    "is_classification",
    "known",
    "loss_curve",
    "loss_name",
    "loss_node",
    "metric",
    "middle",
    "node_of",
    "penalty_share",
    "progress",
    "progress_at",
    "remembered",
    "side_and_kind",
    "side_of",
    "slope",
    "steps_per_epoch",
    "target_mean",
    "target_std",
    "targets_in_losses",
]


def progress(vitals: Vitals) -> float | None:
    """How far the training loss came: 0 = no better than a constant answer, 1 = perfect; None when unknown."""
    curve, base = loss_curve(vitals), baseline(vitals)
    return None if curve is None or base is None else base.progress(curve.end)


def progress_at(vitals: Vitals, step: int) -> float | None:
    """`progress` around one step."""
    curve, base = loss_curve(vitals), baseline(vitals)
    if curve is None or base is None:
        return None
    after = bisect.bisect_left(curve.steps, step)
    return base.progress(curve.smooth[min(after, len(curve.smooth) - 1)])


def epoch_losses(vitals: Vitals) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Training and validation loss at the same steps; the training one from the steps when no metric holds it."""
    val = metric(vitals, "val", "loss")
    train = dict(metric(vitals, "train", "loss"))
    curve = loss_curve(vitals)
    pairs = []
    begin = -1
    for step, value in val:
        seen = train.get(step)
        if seen is None and curve is not None:
            seen = middle([v for s, v in zip(curve.steps, curve.values, strict=True) if begin < s <= step], math.nan)
        begin = step
        if seen is not None and math.isfinite(seen):
            pairs.append((step, seen, value))
    return [(step, seen) for step, seen, _ in pairs], [(step, value) for step, _, value in pairs]


def penalty_share(vitals: Vitals, begin: float = 0.5, end: float = 1.0) -> float:
    """Share of the reported loss that its own operation does not explain: median of looks between two fractions."""
    reported = dict(zip(vitals.steps.step, vitals.steps.loss, strict=False))
    shares = []
    for look in vitals.looks[int(begin * len(vitals.looks)) : math.ceil(end * len(vitals.looks))]:
        node, value = loss_node(look), reported.get(look.step)
        mean = node.stats.mean if node is not None and node.stats is not None else None
        if mean is not None and value is not None and math.isfinite(value) and value > 0 and added_to(look, node):
            shares.append(1 - mean / value)
    return middle(shares)


def example(vitals: Vitals) -> dict[str, Any]:
    """What one example is, for the remedies: its shape, and whether it is of tokens; empty when nobody looked."""
    shape = {"input_shape": vitals.data["shape"]} if vitals.data.get("shape") else {}
    return {**shape, "tokens": True} if vitals.data.get("tokens") else shape
