"""Validation inputs or labels that are made in another way than those of training."""

from __future__ import annotations

import math

from luthier.doctor.findings import Finding, NotSeen, Severity
from luthier.doctor.symptoms import facts
from luthier.doctor.symptoms.imbalance import IMBALANCED
from luthier.doctor.symptoms.outcomes import (
    always_new,
    generalises,
    majority,
    n_validation,
    read,
    series,
    share,
    val_worse,
)
from luthier.doctor.vitals import Vitals


def train_val_mismatch(vitals: Vitals) -> list[Finding] | NotSeen:
    """Validation inputs distributed or prepared differently, or labelled in another way."""
    answers = (look(vitals) for look in (_below_chance, _other_classes, _other_inputs))
    found = [answer for answer in answers if answer is not None]
    if found:
        return [max(found, key=lambda finding: (finding.severity != "info", finding.certainty))]
    if read(vitals.data, "compare", "shift") is None:
        return NotSeen("training and validation inputs were not seen together: evaluate within the watch, in eval mode")
    return []


def _other_inputs(vitals: Vitals) -> Finding | None:
    """Means or spreads of the inputs differ far more than between random parts of all examples."""
    shift, spread = read(vitals.data, "compare", "shift"), read(vitals.data, "compare", "log_spread")
    shift_null = series(vitals.data, "compare", "shift_null")
    spread_null = series(vitals.data, "compare", "spread_null")
    if shift is None or spread is None or len(shift_null) != 2 or len(spread_null) != 2:
        return None
    effect = math.sqrt(max(shift**2 - shift_null[0] ** 2, 0.0))
    sure_shift = shift - shift_null[0] > 6 * max(shift_null[1], 0.15 * shift_null[0])
    sure_spread = abs(spread - spread_null[0]) > 6 * max(spread_null[1], 0.02)
    effect, stretch = effect if sure_shift else 0.0, abs(spread) if sure_spread else 0.0
    severity = _mismatch_severity(vitals, effect, stretch)
    if severity is None:
        return None
    rms = series(vitals.data, "compare", "rms")
    evidence = [
        f"means of the features differ by {effect:.2f} standard deviations, spreads by a factor of {2**spread:.2f} "
        f"between training and validation inputs (random halves: {shift_null[0]:.2f} and {2 ** spread_null[0]:.2f})"
    ]
    if len(rms) == 2:
        evidence.append(f"root mean square {rms[0]:.3g} in training, {rms[1]:.3g} in validation")
    counts = facts.class_counts(vitals)
    uneven = len(counts) > 1 and max(counts.values()) >= IMBALANCED * min(counts.values())
    uneven = uneven and generalises(vitals) is not False
    return Finding(
        symptom="train_val_mismatch",
        severity=severity,
        cause="Validation inputs are prepared or distributed differently from training inputs.",
        evidence=tuple(evidence),
        onset=0,
        certainty=0.9 if severity == "critical" else 0.3 if severity == "info" else 0.55 if uneven else 0.75,
        numbers={"shift": effect, "spread": 2**spread},
        source="Lopez-Paz & Oquab 2017, Revisiting Classifier Two-Sample Tests (permutation test)",
    )


def _mismatch_severity(vitals: Vitals, effect: float, stretch: float) -> Severity | None:
    """How bad a difference of inputs is, given how validation came out; augmentation makes one on purpose."""
    worse, beats = val_worse(vitals), generalises(vitals)
    if effect >= 1.0 or stretch >= 1.3:
        fine = worse is False and beats is not False
        return "critical" if not fine else "info" if always_new(vitals) else "warning"
    if effect >= 0.5 or stretch >= 0.5:
        return "warning" if worse or beats is False else "info"
    helpless = beats is False and (facts.progress(vitals) or 0.0) > 0.3
    if helpless and effect >= 0.15:  # of tokens, where most counts are 0 in either part
        return "warning"
    if effect >= 0.25 or stretch >= 0.3:
        return "warning" if helpless else "info"
    return None


def _below_chance(vitals: Vitals) -> Finding | None:
    """Validation is answered wrongly more often than by chance although training is answered well: other labels."""
    train, val = facts.accuracies(vitals)
    counts = facts.class_counts(vitals)
    most = majority(vitals)
    if train is None or val is None or most is None or len(counts) < 2 or not facts.is_classification(vitals):
        return None
    train, val, chance = share(train), share(val), 1 / len(counts)
    if facts.metric(vitals, "val", "f1") == facts.metric(vitals, "val", "accuracy") != []:
        chance *= 2 / (len(counts) + 1)  # the least F1, that of a constant answer
    noise = math.sqrt(chance * (1 - chance) / n_validation(vitals))
    balanced = most < 1.5 * chance
    if not balanced or train < chance + 0.5 * (1 - chance) or val > 0.6 * chance or val > chance - 4 * noise:
        return None
    return Finding(
        symptom="train_val_mismatch",
        severity="critical",
        cause="Validation labels follow another numbering than training labels.",
        evidence=(f"accuracy {train:.2f} in training, {val:.2f} in validation, where guessing gives {chance:.2f}",),
        onset=0,
        certainty=0.7,
        source="An accuracy below chance needs knowledge of the labels",
    )


def _other_classes(vitals: Vitals) -> Finding | None:
    """The classes of validation are others than those of training, or far more frequent."""
    counts = facts.class_counts(vitals)
    seen = [row.predictions for row in vitals.evaluations if row.predictions is not None and row.predictions.by_class]
    if not counts or not seen or not facts.is_classification(vitals):
        return None
    largest = max(seen, key=lambda item: item.n)
    n, total = sum(entry[0] for entry in largest.by_class.values()), sum(counts.values())
    if n < 30 or total < 100:
        return None
    val = {label: entry[0] / n for label, entry in largest.by_class.items()}
    train = {label: count / total for label, count in counts.items()}
    labels = {*val, *train}
    apart = sum(abs(val.get(label, 0.0) - train.get(label, 0.0)) for label in labels) / 2
    unknown = sum(portion for label, portion in val.items() if label not in train)
    if apart < 0.2 + 1.5 * math.sqrt(len(labels) / n) and unknown < 0.1:
        return None
    serious = unknown >= 0.1 or (apart >= 0.4 and bool(val_worse(vitals)))
    return Finding(
        symptom="train_val_mismatch",
        severity="warning" if serious else "info",
        cause="Validation holds other classes than training, or the same in other proportions.",
        evidence=(
            f"shares of the classes differ by {apart:.0%} between {total} training and {n} validation targets; "
            f"{unknown:.0%} of the validation targets are of classes never seen in training",
        ),
        onset=0,
        certainty=0.75 if unknown >= 0.1 else 0.5 if serious else 0.3,
        source="total variation distance of the class shares",
    )
