"""How the training came out, as far as rules about data need it: against chance, validation against training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import stdev
from typing import Any

from luthier.doctor.findings import Finding, Severity
from luthier.doctor.symptoms import facts
from luthier.doctor.vitals import Argument, Vitals

FEWEST_PAIRS = 20
DISCRETE = 0.005
AHEAD = 0.1


def from_start(
    symptom: str, source: str, severity: Severity, cause: str, evidence: list[str], certainty: float, **numbers: Any
) -> Finding:
    """A finding about data: it was so before any weight moved."""
    return Finding(symptom, severity, cause, tuple(evidence), (), 0, certainty, numbers, source=source)


def read(data: Mapping[str, Any], *path: str) -> float | None:
    """A finite number at a path of nested mappings; None when any part of it is missing."""
    value: Any = data
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def series(data: Mapping[str, Any], *path: str) -> list[float]:
    """A list of finite numbers at a path; [] when missing or when it holds anything else."""
    value: Any = data
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(value, list | tuple) or not all(isinstance(v, int | float) and math.isfinite(v) for v in value):
        return []
    return [float(item) for item in value]


def share(value: float) -> float:
    """An accuracy as a fraction, also when it was given in percent."""
    return value / 100 if value > 1.5 else value


def best_val_accuracy(vitals: Vitals) -> float | None:
    """The highest accuracy in validation; from evaluations when no metric holds it."""
    values = [share(value) for _, value in facts.metric(vitals, "val", "accuracy") if math.isfinite(value)]
    if not values:
        seen = [row.predictions for row in vitals.evaluations if row.predictions is not None]
        values = [predictions.correct / predictions.n for predictions in seen if predictions.n >= 20]
    return max(values) if values else None


def majority(vitals: Vitals) -> float | None:
    """Share of the most frequent class; of several binary labels that of the more frequent answer."""
    counts = facts.class_counts(vitals)
    if counts and sum(counts.values()):
        return max(counts.values()) / sum(counts.values())
    ones = facts.target_mean(vitals) if facts.loss_name(vitals).startswith("binary") else None
    return max(ones, 1 - ones) if ones is not None and 0 <= ones <= 1 else None


def n_validation(vitals: Vitals) -> int:
    """Examples of a typical evaluation; 200 when none was seen."""
    sizes = [row.n for row in vitals.evaluations if row.n]
    return max(sizes) if sizes else 200


def val_beats_chance(vitals: Vitals) -> bool | None:
    """Whether validation ever got clearly better than the best constant answer; None when nothing tells."""
    answers: list[bool] = []
    accuracy, most = best_val_accuracy(vitals), majority(vitals)
    if accuracy is not None and most is not None and _of_classes(vitals):
        noise = math.sqrt(most * (1 - most) / n_validation(vitals))
        tried = max(len(facts.metric(vitals, "val", "accuracy")), 1)
        answers.append(accuracy > most + max((2.5 + 0.5 * math.log(tried)) * noise, 0.03))
    base = facts.baseline(vitals)
    losses = [value for _, value in facts.metric(vitals, "val", "loss") if math.isfinite(value)]
    if losses and base is not None and not base.assumed:
        numbers = not facts.is_classification(vitals)  # the spread of validation targets is known to sqrt(2 / n) only
        answers.append(base.progress(min(losses)) > 0.07 + (2 * math.sqrt(2 / n_validation(vitals)) if numbers else 0))
    scores = [value for _, value in facts.metric(vitals, "val", "r2") if math.isfinite(value)]
    if scores:
        answers.append(max(scores) > 0.1)
    return any(answers) if answers else None


def generalises(vitals: Vitals) -> bool | None:
    """Whether validation stays clearly above the best constant answer in the second half; None when nothing tells.

    Stricter than `val_beats_chance`: a network that learnt labels by heart draws some smooth border, and by luck that
    agrees a little with the classes of validation now and then (so the swing between evaluations counts as noise).
    """
    accuracy, most = late_val_accuracy(vitals), majority(vitals)
    if accuracy is not None and most is not None and _of_classes(vitals):
        noise = math.sqrt(most * (1 - most) / n_validation(vitals))
        values = late([share(value) for _, value in facts.metric(vitals, "val", "accuracy")])
        swing = 2.5 * stdev(values) if len(values) >= 3 else math.inf
        return accuracy > most + max(2.5 * noise, 0.06, min(0.2 * (1 - most), swing))
    base = facts.baseline(vitals)
    losses = late([value for _, value in facts.metric(vitals, "val", "loss")])
    if losses and base is not None and not base.assumed:
        return base.progress(facts.middle(losses)) > 0.07 + math.sqrt(2 / n_validation(vitals))
    return val_beats_chance(vitals)


def contrary(vitals: Vitals) -> bool:
    """Validation stays below what guessing gives: what was learnt contradicts it, and no overfitting does that."""
    counts, accuracy = facts.class_counts(vitals), late_val_accuracy(vitals)
    total = sum(counts.values())
    if accuracy is None or total < 100 or not _of_classes(vitals):
        return False
    chance = sum((count / total) ** 2 for count in counts.values())
    return accuracy < chance - 3 * math.sqrt(chance * (1 - chance) / n_validation(vitals))


def _of_classes(vitals: Vitals) -> bool:
    """An accuracy speaks of these targets: the loss is one for classes, or a sum with one, over whole targets."""
    return facts.is_classification(vitals) or (not facts.loss_name(vitals) and bool(facts.class_counts(vitals)))


def late_val_accuracy(vitals: Vitals) -> float | None:
    """Median accuracy in the second half of the evaluations."""
    values = late([share(value) for _, value in facts.metric(vitals, "val", "accuracy")])
    return facts.middle(values) if values else best_val_accuracy(vitals)


def late(values: list[float]) -> list[float]:
    """The second half of the finite values."""
    finite = [value for value in values if math.isfinite(value)]
    return finite[len(finite) // 2 :]


def val_worse(vitals: Vitals) -> bool | None:
    """Whether the last validation is clearly worse than training; None when nothing tells."""
    answers: list[bool] = []
    train, val = facts.accuracies(vitals)
    if train is not None and val is not None and math.isfinite(train) and math.isfinite(val):
        answers.append(train - val > 0.1)
    losses, val_losses = facts.epoch_losses(vitals)
    if losses and val_losses:
        before, after = facts.middle([v for _, v in losses[-3:]]), facts.middle([v for _, v in val_losses[-3:]])
        base = facts.baseline(vitals)
        level = 0.15 * base.value if base is not None and base.value > 0 else 0.0
        answers.append(after > 1.5 * before and after - before > level)
    return any(answers) if answers else None


def conflict(vitals: Vitals) -> tuple[float, int] | None:
    """How far targets of equal inputs differ (1 = as if drawn anew) and the number of pairs; None when unknown."""
    conflict, pairs = read(vitals.data, "repeats", "conflict"), read(vitals.data, "repeats", "pairs")
    twins = read(vitals.data, "repeats", "twins")
    if conflict is None or pairs is None or pairs < FEWEST_PAIRS or (twins or 0.0) > DISCRETE:
        return None
    return None if partly_seen(vitals) else (conflict, int(pairs))


def foretold(vitals: Vitals) -> bool:
    """Targets of equal inputs change and the network still foretells them: no noise, which nobody can foretell.

    Several tasks do so, and targets that the training itself makes (bootstrapping).
    """
    changed, came = read(vitals.data, "repeats", "conflict"), facts.progress(vitals)
    pairs = read(vitals.data, "repeats", "pairs") or 0
    return changed is not None and came is not None and pairs >= FEWEST_PAIRS and came > 1 - changed / 2


def partly_seen(vitals: Vitals) -> bool:
    """The model reads several inputs (a pair, two views), of which the sample holds the first alone.

    Examples that agree there may differ in the others. Masks, lengths and places are no inputs of their own.
    """
    if any(look.n_forward > max(look.n_backward, 1) for look in vitals.looks[:3]):
        return True  # it runs several times for one loss, on one input each
    read_too: set[str] = set()
    for look in vitals.looks[:3]:
        given = [item for node in look.nodes for item in node.arguments if item.source.startswith("input:")]
        first = next((item for item in given if item.source == "input:0"), None)
        read_too |= {item.source for item in given if first is not None and _like(item, first)}
    return len(read_too | {"input:0"}) > 1


def _like(item: Argument, first: Argument) -> bool:
    """An input of the same examples and of the same kind; no hidden state, no mask of zeros and ones."""
    stats = item.stats
    mask = stats is not None and bool(stats.integral) and stats.min in (0, 1) and stats.max in (0, 1)
    return item.dtype == first.dtype and len(item.shape) > 1 and item.shape[:1] == first.shape[:1] and not mask


def always_new(vitals: Vitals) -> bool:
    """Inputs do not come again although the examples kept of two epochs and more would hold many twice."""
    pairs, n = read(vitals.data, "repeats", "pairs"), read(vitals.data, "examples") or 0.0
    steps, size = facts.steps_per_epoch(vitals), facts.batch_size(vitals)
    if pairs is None or not steps or not size or max((look.step for look in vitals.looks), default=0) < 2 * steps:
        return False
    return pairs < 0.1 * n**2 / (4 * steps * size) > 1


def agreement(vitals: Vitals) -> tuple[float, float, int]:
    """Correlation of the learners' predictions with the targets, its z, examples; 0 if they see half the inputs."""
    learn = vitals.data.get("learn")
    data = vitals.data if isinstance(learn, dict) and not partly_seen(vitals) else {}
    values = (read(data, "learn", "correlation"), read(data, "learn", "z"), read(data, "learn", "n"))
    return values[0] or 0.0, values[1] or 0.0, int(values[2] or 0)


def data_allow_no_more(vitals: Vitals) -> bool:
    """Small learners, cross-validated on ten examples a feature or more, predict no better: what is left is noise."""
    features, lead = read(vitals.data, "features"), lead_over_learners(vitals)
    n = agreement(vitals)[2]
    return lead is not None and bool(features) and n >= 10 * (features or 0.0) and lead >= -1 / math.sqrt(n)


def data_allow_more(vitals: Vitals) -> bool:
    """Small learners, cross-validated, predict clearly better than the network does in training and in validation."""
    lead = lead_over_learners(vitals)
    several = read(vitals.data, "learn", "accuracy") is None and read(vitals.data, "learn", "tail") is None
    hidden = facts.accuracies(vitals)[0] is None and bool(val_worse(vitals))  # it may do better in training
    return lead is not None and lead < -AHEAD and not several and not hidden


def behind_learners(vitals: Vitals) -> bool:
    """Small learners do better beyond the error of their own score (2.5 of it, and 3 points of accuracy)."""
    lead, accuracy = lead_over_learners(vitals), read(vitals.data, "learn", "accuracy")
    if lead is None or accuracy is None:
        return False
    error = math.sqrt(accuracy * (1 - accuracy) / agreement(vitals)[2])
    return lead < -max(2.5 * error, 0.03)


def lead_over_learners(vitals: Vitals) -> float | None:
    """What the network reached in training or validation, whichever is more, less what small learners reach.

    In accuracy for classes, else in the share of the constant answer's loss that is gone; None when the learners find
    nothing or the network's side is unknown.
    """
    _, z, n = agreement(vitals)
    accuracy, r2 = read(vitals.data, "learn", "accuracy"), read(vitals.data, "learn", "r2")
    if z < 5 or n < 120:
        return None
    if accuracy is not None:
        reached = [value for value in (*facts.accuracies(vitals), best_val_accuracy(vitals)) if value is not None]
        return max(reached) - accuracy if reached else None
    base, came = facts.baseline(vitals), facts.progress(vitals)
    if r2 is None or base is None or base.assumed or came is None:
        return None
    losses = late([value for _, value in facts.metric(vitals, "val", "loss")])
    possible = r2 if base.loss == "mse_loss" else 1 - math.sqrt(max(1 - r2, 0.0))
    return max(came, *(base.progress(value) for value in losses)) - possible if losses else came - possible
