"""What a classifier answered: counted from the scores and targets that a loss call (or the watch) was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from luthier.doctor.measure.stats import Arrays, Pending, measurable

CONFIDENT = 0.9
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
MOST_CLASSES = 256
MOST_ROWS = 16_384
MOST_SCORES = 1_000_000
COPIED = 65_536


def of_loss(name: str, given: Sequence[Tensor], attrs: Mapping[str, Any]) -> Pending | None:
    """Answers of one loss call, to be read later.

    Args:
        name: plain name of the loss. given: its tensors: scores, targets.
        attrs: of the node: ignore_index.

    Returns:
        None when the loss does not tell classes.
    """
    if len(given) < 2 or not all(measurable(tensor) for tensor in given[:2]):
        return None
    scores, targets = given[0].detach(), given[1].detach()
    if name in ("cross_entropy", "nll_loss"):
        return of_classes(scores, targets, ignored=attrs.get("ignore_index"))
    if name == "binary_cross_entropy_with_logits":
        return _of_pair(scores, targets)
    if name == "binary_cross_entropy":
        return _of_pair(torch.logit(scores.float(), 1e-7), targets)
    return None


def of_classes(
    scores: Tensor, targets: Tensor, ignored: int | None = None, maybe_chances: bool = False
) -> Pending | None:
    """Answers of scores over classes.

    Args:
        scores: (n, classes) or (n, classes, ...), logits or log-probabilities.
        targets: whole numbers, (n) or (n, ...).
        ignored: target that does not count.
        maybe_chances: scores that are non-negative and sum to 1 are taken as probabilities.
    """
    if scores.dim() < 2 or targets.is_floating_point() or targets.dtype == torch.bool:
        return None
    classes = scores.shape[1]
    if targets.shape != scores.shape[:1] + scores.shape[2:] or targets.numel() == 0:
        return None
    if scores.dim() > 2:
        scores = scores.movedim(1, -1).reshape(-1, classes)
    targets = targets.reshape(-1)
    every = max(-(-len(targets) // MOST_ROWS), -(-scores.numel() // MOST_SCORES))
    scores, targets = scores[::every].float(), targets[::every]
    logs = torch.log_softmax(scores, 1)
    if maybe_chances:
        chances = (scores >= 0).all() & ((scores.sum(1) - 1).abs() < 1e-3).all()
        logs = torch.where(chances, scores.clamp_min(1e-12).log(), logs)
    best, answers = logs.max(1)
    loss = -logs.gather(1, targets.long().clamp(0, classes - 1)[:, None])[:, 0]

    def finish(arrays: Arrays) -> dict[str, Any]:
        truth, answered, losses, confidence = arrays
        counted = (truth >= 0) & (truth < classes)
        if ignored is not None:
            counted &= truth != ignored
        return _row(truth[counted], answered[counted], losses[counted], np.exp(confidence[counted]), classes)

    return Pending([targets.clone(), answers, loss, best], finish)


def _of_pair(scores: Tensor, targets: Tensor) -> Pending | None:
    """Answers of one logit per example to the question 0 or 1."""
    if scores.dim() == 0 or scores.numel() != scores.shape[0] or targets.numel() != scores.numel():
        return None
    every = -(-scores.numel() // MOST_ROWS)
    scores, targets = scores.reshape(-1)[::every].float(), targets.reshape(-1)[::every].float()
    loss = functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")

    def finish(arrays: Arrays) -> dict[str, Any]:
        logits, truth, losses = arrays
        confidence = 1 / (1 + np.exp(-np.minimum(np.abs(logits), 700.0)))
        return _row((truth > 0.5).astype(float), (logits > 0).astype(float), losses, confidence, 2)

    return Pending([scores.clone(), targets.clone(), loss], finish)


def kept_output(outputs: Sequence[Tensor]) -> Tensor | None:
    """A copy of a model's small (n, classes) output, for targets that become known only later."""
    if len(outputs) != 1 or not measurable(outputs[0]):
        return None
    output = outputs[0]
    fits = output.dim() == 2 and output.is_floating_point() and 2 <= output.shape[1] <= MOST_CLASSES
    return output.detach().clone() if fits and 0 < output.numel() <= COPIED else None


def _row(
    truth: NDArray[np.float64],
    answered: NDArray[np.float64],
    losses: NDArray[np.float64],
    confidence: NDArray[np.float64],
    classes: int,
) -> dict[str, Any]:
    """The row of `vitals.Predictions`."""
    right = truth == answered
    finite = losses[np.isfinite(losses)]
    row: dict[str, Any] = {
        "n": len(truth),
        "correct": int(right.sum()),
        "confident_wrong": int((~right & (confidence > CONFIDENT)).sum()),
        "loss": [float(value) for value in np.quantile(finite, QUANTILES)] if len(finite) else [],
    }
    if classes <= MOST_CLASSES:
        counts = [
            np.bincount(values.astype(int), minlength=classes).tolist() for values in (truth, answered, truth[right])
        ]
        row["by_class"] = {str(k): list(found) for k, found in enumerate(zip(*counts, strict=True)) if any(found)}
    return row
