"""Training against validation: what was learnt by heart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms.facts import (
    accuracies,
    baseline,
    epoch_losses,
    example,
    is_classification,
    metric,
    middle,
)
from luthier.doctor.symptoms.outcomes import majority, n_validation, share
from luthier.doctor.vitals import Vitals

_PRECHELT = "Prechelt, Early stopping, but when?, 1998"
_GUO = "Guo et al. 2017, On Calibration of Modern Neural Networks, section 3"


def overfitting(vitals: Vitals) -> list[Finding] | NotSeen:
    """Training goes on improving while validation worsens or stays far behind."""
    train, val = epoch_losses(vitals)
    train_accuracy, val_accuracy = accuracies(vitals)
    if len(val) < 2 and (train_accuracy is None or val_accuracy is None):
        return NotSeen("no validation was seen: pass train_loss and val_loss to watch.metrics after every epoch")
    by_accuracy = None
    if train_accuracy is not None and val_accuracy is not None:
        by_accuracy = train_accuracy - val_accuracy
    found = _overfit_losses(vitals, train, val, by_accuracy) if len(val) >= 2 else None
    if found is None and by_accuracy is not None and train_accuracy is not None:
        found = _overfit_accuracies(train_accuracy, by_accuracy, len(val) < 2)
    if found is None:
        return []
    return [replace(found, numbers={**found.numbers, **example(vitals)})]


def _overfit_losses(
    vitals: Vitals, train: Sequence[tuple[int, float]], val: Sequence[tuple[int, float]], by_accuracy: float | None
) -> Finding | None:
    base = baseline(vitals)
    if base is None or len(val) < 3 or _alike(vitals, by_accuracy):
        return None
    span = base.value - base.floor
    tail = min(3, max(len(val) // 4, 1))
    end_train, end_val = median(v for _, v in train[-tail:]), median(v for _, v in val[-tail:])
    at = min(range(len(val)), key=lambda i: val[i][1])
    lowest, gap = val[at][1], (end_val - end_train) / span
    shaky = middle([abs(b[1] - a[1]) for a, b in zip(val[at:], val[at + 1 :], strict=False)])
    worse, better = end_val - lowest, train[at][1] - end_train
    rises = at < len(val) - tail and worse > max(0.1 * abs(lowest), 0.03 * span, shaky)
    rises = rises and better > 0.1 * abs(train[at][1])
    by_heart = base.progress(end_train)
    memorised = not base.assumed and by_heart > 0.9 and gap > _wide_gap(vitals, by_accuracy, by_heart)
    memorised = memorised and (by_accuracy is None or by_accuracy > _far_behind(vitals))
    if not (rises and gap > 0.15) and not memorised:
        return None
    sure = not memorised and _too_sure(vitals, by_accuracy)
    risen = f"; validation was lowest ({lowest:.3g}) at step {val[at][0]}" if rises else ""
    return Finding(
        "overfitting",
        "info" if sure else "warning",
        f"The training loss fell to {end_train:.3g} while the validation loss ended at {end_val:.3g}{risen}: "
        "the net learns its examples by heart.",
        (
            f"gap between validation and training loss: {gap:.0%} of the loss of a constant answer",
            *([f"accuracy is {by_accuracy:.1%} points higher in training"] if by_accuracy is not None else []),
            *(["accuracy in validation has not fallen: only the certainty of its few errors grew"] if sure else []),
        ),
        onset=val[at][0] if rises else val[0][0],
        certainty=0.6,
        numbers={"gap": gap, "best_step": val[at][0]},
        source=_GUO if sure else _PRECHELT,
    )


def _alike(vitals: Vitals, by_accuracy: float | None) -> bool:
    """Accuracies differ by no more than a validation set of this size shows by chance: three standard errors.

    Where that in training is unknown it is taken to be perfect.
    """
    accuracy = accuracies(vitals)[1]
    if accuracy is None:
        return False
    gap = 1 - accuracy if by_accuracy is None else by_accuracy
    return gap < max(3 * math.sqrt(max(accuracy * (1 - accuracy), 0.0) / n_validation(vitals)), 0.02)


def _far_behind(vitals: Vitals) -> float:
    """Gap of accuracies that tells of learning by heart: a tenth of what guessing leaves."""
    return max(0.1 * (1 - (majority(vitals) or 0.0)), 0.05)


def _too_sure(vitals: Vitals, by_accuracy: float | None) -> bool:
    """The loss of validation rises while its answers stay right: the net grows surer of the same few errors.

    Where accuracy in training is unknown it is taken to be perfect.
    """
    values = [share(value) for _, value in metric(vitals, "val", "accuracy")]
    if len(values) < 3:
        return False
    end = median(values[-3:])
    gap = 1 - end if by_accuracy is None else by_accuracy
    fallen = max(values) - end > 2 * math.sqrt(max(end * (1 - end), 0.0) / n_validation(vitals))
    return gap < _far_behind(vitals) and not fallen


def _wide_gap(vitals: Vitals, by_accuracy: float | None, by_heart: float) -> float:
    """Gap of a net that learnt by heart; a loss of classes rises with confidence alone, so it needs the accuracies.

    What a regression leaves of its training loss is noise that validation has too; known by heart, none is left.
    """
    if by_accuracy is not None or (by_heart > 0.99 and not is_classification(vitals)):
        return 0.2
    return 0.4 if is_classification(vitals) else 1 / 3


def _overfit_accuracies(train: float, gap: float, alone: bool) -> Finding | None:
    if train < 0.97 or gap < (0.12 if alone else 0.15):
        return None
    return Finding(
        "overfitting",
        "warning",
        f"Accuracy is {train:.1%} in training, {train - gap:.1%} in validation: the net learns its examples by heart.",
        (f"gap of {gap:.1%} points",),
        certainty=0.55,
        numbers={"gap": gap},
        source=_PRECHELT,
    )
