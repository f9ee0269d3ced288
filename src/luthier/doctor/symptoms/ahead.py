"""Is validation better than training? Clean labels are easier to agree with than noisy ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from luthier.doctor.symptoms import facts
from luthier.doctor.symptoms.outcomes import n_validation, read, share
from luthier.doctor.vitals import Vitals

DROPOUT = 0.3
FEWEST = 90


def ahead_in_validation(vitals: Vitals, margin: float) -> str | None:
    """A sentence when accuracy in validation is higher than in training by a margin and two standard errors.

    Every training batch looked at is compared with validation at its own step (between two evaluations on the line
    from one to the other), so that the progress made meanwhile cancels. Looked at in the first 55% of the training
    (later the wrong labels may have been learnt by heart) and in the second half. Dropout would explain a part of it.

    Args:
        vitals: of the training.
        margin: in accuracy (0-1).
    """
    rate = dropout_rate(vitals)
    if rate >= DROPOUT:
        return None
    points = [(step, share(value)) for step, value in facts.metric(vitals, "val", "accuracy") if math.isfinite(value)]
    end = max(vitals.n_steps, 1)
    for low, high in ((0.0, 0.55), (0.5, 1.0)):
        n, right, expected = 0, 0, 0.0
        for look in vitals.looks:
            value = _between(points, look.step)
            if value is not None and look.predictions is not None and low * end <= look.step <= high * end:
                n, right = n + look.predictions.n, right + look.predictions.correct
                expected += value * look.predictions.n
        if n < FEWEST:
            continue
        train, val = right / n, expected / n
        if val - train > margin + 0.25 * rate + 2 * math.sqrt(max(train * (1 - train), 0.01) / n):
            return f"accuracy in validation is higher than in training: {val:.2f} against {train:.2f} ({n} examples)"
    return None


def _between(points: Sequence[tuple[int, float]], step: int) -> float | None:
    """Value at a step on the line between its neighbours; None outside the points."""
    for (left, first), (right, second) in itertools.pairwise(points):
        if left <= step <= right:
            return first + (second - first) * (step - left) / max(right - left, 1)
    return None


def lower_loss_in_validation(vitals: Vitals, factor: float) -> str | None:
    """A sentence when the loss in validation is below that in training in most evaluations of either half.

    The training loss is the mean of the steps around the evaluation, without the share that penalties add to it.

    Args:
        vitals: of the training.
        factor: of the training loss (0-1); the error of a small validation set and dropout lower it.
    """
    rate = dropout_rate(vitals)
    if rate >= DROPOUT:
        return None
    limit = factor - 1 / math.sqrt(n_validation(vitals)) - rate / 2
    end = max(vitals.n_steps, 1)
    points = [(step, value) for step, value in facts.metric(vitals, "val", "loss") if math.isfinite(value)]
    own = 1 - max(facts.penalty_share(vitals, 0.0), 0.0)
    pairs = [(step, _around(vitals, step, max(5, end // 20), own), value) for step, value in points]
    for low, high in ((0.1, 0.6), (0.5, 1.01)):
        part = [(s, train, value) for s, train, value in pairs if train is not None and low * end <= s <= high * end]
        found = [(s, train, value) for s, train, value in part if 0 < value < limit * train]
        if len(part) >= 2 and len(found) >= 0.7 * len(part):
            step, seen, value = found[-1]
            return f"the loss in validation is lower than in training ({value:.3g} against {seen:.3g} at step {step})"
    return None


def _around(vitals: Vitals, step: int, width: int, own: float) -> float | None:
    """Mean training loss of the steps around one, of which this share is the loss's own; None below five."""
    near = [
        loss
        for at, loss in zip(vitals.steps.step, vitals.steps.loss, strict=False)
        if abs(at - step) <= width and loss is not None and math.isfinite(loss)
    ]
    return own * sum(near) / len(near) if len(near) >= 5 else None


def dropout_rate(vitals: Vitals) -> float:
    """The largest rate of dropout at work in training: it alone makes training look worse than validation."""
    nodes = [node for look in vitals.looks[:1] for node in look.nodes if "dropout" in node.op]
    return max((read(node.attrs, "p") or 0.0 for node in nodes), default=0.0)
