"""What a classifier answered: counted from the scores and targets that a loss call (or the watch) was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from luthier.doctor.measure.rows import Array, Row
from luthier.doctor.measure.stats import Pending, measurable, plain

CONFIDENT = 0.9
QUANTILES = np.array((0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0))
MOST_CLASSES = 256
COPIED = 131_072


def of_loss(name: str, given: Sequence[Tensor], attrs: Mapping[str, Any]) -> Pending | None:
    """Answers of one loss call, to be read later.

    Args:
        name: plain name of the loss. given: its tensors: scores, targets.
        attrs: of the node: ignore_index.

    Returns:
        None when the loss does not tell classes.
    """
    if len(given) < 2:
        return None
    if name in ("cross_entropy", "nll_loss"):
        return of_classes(given[0], given[1], ignored=attrs.get("ignore_index"))
    if name == "binary_cross_entropy_with_logits":
        return _of_pair(given[0], given[1], as_chances=False)
    if name == "binary_cross_entropy":
        return _of_pair(given[0], given[1], as_chances=True)
    return None


def of_classes(
    scores: Tensor, targets: Tensor, ignored: int | None = None, maybe_chances: bool = False
) -> Pending | None:
    """Answers of scores over classes; of very many rows evenly spaced ones.

    Args:
        scores: (n, classes) or (n, classes, ...), logits or log-probabilities.
        targets: whole numbers, (n) or (n, ...).
        ignored: target that does not count.
        maybe_chances: scores that are non-negative and sum to 1 are taken as probabilities.
    """
    if scores.dim() < 2 or targets.is_floating_point() or not (measurable(scores) and measurable(targets)):
        return None
    if targets.shape != scores.shape[:1] + scores.shape[2:] or targets.numel() == 0:
        return None
    scores, targets = plain(scores), plain(targets)
    classes = scores.shape[1]
    if scores.dim() > 2:
        scores = scores.movedim(1, -1).reshape(-1, classes)
    every = -(-scores.numel() // COPIED)
    copies = [scores[::every].float().clone(), targets.reshape(-1)[::every].clone()]

    def finish(arrays: list[Array], _: bool) -> Row:
        return _class_row(arrays[0], arrays[1].astype(np.int64), ignored, maybe_chances)

    return Pending(copies, finish)


def kept_output(outputs: Sequence[Tensor]) -> Tensor | None:
    """A copy of a model's small (n, classes) output, for targets that become known only later."""
    if len(outputs) != 1 or not measurable(outputs[0]):
        return None
    output = outputs[0]
    fits = output.dim() == 2 and output.is_floating_point() and 2 <= output.shape[1] <= MOST_CLASSES
    return plain(output).clone() if fits and 0 < output.numel() <= COPIED else None


def _of_pair(scores: Tensor, targets: Tensor, as_chances: bool) -> Pending | None:
    """Answers of one score per example to the question 0 or 1."""
    if scores.dim() == 0 or scores.numel() != scores.shape[0] or targets.numel() != scores.numel():
        return None
    if not (measurable(scores) and measurable(targets)):
        return None
    every = -(-scores.numel() // COPIED)
    copies = [plain(tensor).reshape(-1)[::every].float().clone() for tensor in (scores, targets)]

    def finish(arrays: list[Array], _: bool) -> Row:
        logits, truth = (array.astype(np.float64) for array in arrays)
        if as_chances:
            chances = logits.clip(1e-7, 1 - 1e-7)
            logits = np.log(chances / (1 - chances))
        losses = np.logaddexp(0, logits) - logits * truth
        confidence = 1 / (1 + np.exp(-np.abs(logits)))
        return _row((truth > 0.5).astype(np.int64), (logits > 0).astype(np.int64), losses, confidence, 2)

    return Pending(copies, finish)


def _class_row(scores: Array, truth: Array, ignored: int | None, maybe_chances: bool) -> Row:
    classes = scores.shape[1]
    counted = (truth >= 0) & (truth < classes)
    if ignored is not None:
        counted &= truth != ignored
    if not counted.all():
        scores, truth = scores[counted], truth[counted]
    if maybe_chances and (scores >= 0).all() and (np.abs(scores.sum(1) - 1) < 1e-3).all():
        scores = np.log(scores.clip(1e-12))
    logs = scores - scores.max(1, keepdims=True, initial=-np.inf)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    answered, rows = logs.argmax(1) if len(logs) else truth, np.arange(len(truth))
    return _row(truth, answered, -logs[rows, truth], np.exp(logs[rows, answered]), classes)


def _row(truth: Array, answered: Array, losses: Array, confidence: Array, classes: int) -> Row:
    """The row of `vitals.Predictions`."""
    right = truth == answered
    finite = np.sort(losses[np.isfinite(losses)])
    places = QUANTILES * (len(finite) - 1)
    row: Row = {
        "n": len(truth),
        "correct": int(right.sum()),
        "confident_wrong": int((~right & (confidence > CONFIDENT)).sum()),
        "loss": np.interp(places, np.arange(len(finite)), finite).tolist() if len(finite) else [],
    }
    if classes <= MOST_CLASSES:
        counts = [np.bincount(values, minlength=classes).tolist() for values in (truth, answered, truth[right])]
        row["by_class"] = {str(k): list(found) for k, found in enumerate(zip(*counts, strict=True)) if any(found)}
    return row
