"""Label noise: a share of the labels is wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from operator import itemgetter

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms import facts
from luthier.doctor.symptoms.ahead import ahead_in_validation, lower_loss_in_validation
from luthier.doctor.symptoms.outcomes import (
    agreement,
    best_val_accuracy,
    conflict,
    foretold,
    from_start,
    late_val_accuracy,
    majority,
    n_validation,
    read,
    series,
    share,
)
from luthier.doctor.vitals import Vitals

NOTHING = "too few pairs of inputs and targets were seen: pass inputs= and targets= to watch.step"
FEWEST = 120
UNCHANGED = 5  # inputs that come again just as they were: no augmentation is at work


def label_noise(vitals: Vitals) -> list[Finding] | NotSeen:
    """A share of the labels is wrong.

    Wrong labels contradict even sure predictions from examples around them; at the border between classes contradiction
    fades with certainty. What is merely hard to learn is told apart by the network: it does better than the small
    learners, and better in training than in validation.
    """
    if read(vitals.data, "learn", "n") is None and read(vitals.data, "repeats", "conflict") is None:
        return NotSeen(NOTHING)
    for look in (_drawn_anew, _contradicted, _outdone, _never_sure, _far_off):
        found = look(vitals)
        if found is not None:
            return [replace(found, numbers={**found.numbers, **facts.example(vitals)})]
    return []


_noise = partial(
    from_start,
    "label_noise",
    "Northcutt et al. 2021, Confident Learning; Arpit et al. 2017, A Closer Look at Memorization",
)


def _drawn_anew(vitals: Vitals) -> Finding | None:
    """Equal inputs with other labels each time, although inputs do tell the labels."""
    found = conflict(vitals)
    _, z, n = agreement(vitals)
    classes = read(vitals.data, "learn", "accuracy") is not None
    if found is None or found[0] < (0.08 if classes else 0.2) or z < 5 or n < FEWEST or foretold(vitals):
        return None
    return _noise(
        "warning",
        "Labels of the same inputs change from epoch to epoch: noise is added to them.",
        [f"over {found[1]} inputs seen again, labels differ {found[0]:.0%} as much as labels drawn at random"],
        0.85,
        share=found[0],
    )


def _contradicted(vitals: Vitals) -> Finding | None:
    """Class labels that sure predictions from other examples contradict."""
    _, z, n = agreement(vitals)
    quarters = series(vitals.data, "learn", "contradicted")
    accuracy = read(vitals.data, "learn", "accuracy")
    if len(quarters) != 4 or accuracy is None or z < 5 or n < FEWEST:
        return None
    floor, wrong = quarters[0], 1 - accuracy
    error = math.sqrt(max(floor * (1 - floor), 0.01) / (n / 4))
    if floor - 2 * error < 0.03 or floor < 0.1 or floor < 0.35 * wrong:
        return None
    certainty, said = _network_agrees(vitals, quarters, accuracy)
    if certainty == 0.0 or (certainty < 0.8 and floor - 2 * error < 0.1):
        return None
    return _noise(
        "warning" if certainty >= 0.5 else "info",
        f"About {floor:.0%} of the training labels are wrong.",
        [
            f"{floor:.0%} of the labels contradict the surest quarter of cross-validated predictions, {wrong:.0%} all "
            f"of them ({n} examples)",
            said,
        ],
        certainty,
        share=floor,
    )


def _network_agrees(vitals: Vitals, quarters: list[float], accuracy: float) -> tuple[float, str]:
    """Certainty from how the network did, and a sentence on it: 0 when the labels are learnable after all."""
    ahead = ahead_in_validation(vitals, 0.05) or lower_loss_in_validation(vitals, 0.85)
    if ahead is not None:
        return 0.8, ahead
    most = read(vitals.data, "learn", "majority") or 0.0
    flat = quarters[0] >= 0.55 * (1 - accuracy) and quarters[1] <= quarters[0] + 0.16
    even = quarters[0] >= 0.75 * (1 - accuracy)
    if not flat or (quarters[0] > 0.5 * (1 - most) and not (even and _predictable(vitals, accuracy - most))):
        return 0.0, ""
    values = [share(value) for _, value in facts.metric(vitals, "val", "accuracy")]
    best, learnt = best_val_accuracy(vitals), facts.progress(vitals) or 0.0
    if best is None:
        train, _ = facts.accuracies(vitals)
        stuck = train is not None and train <= accuracy + 0.08 + 1.5 * _error(vitals, _looked_at(vitals))
        return (0.6, f"the network gets no further in training ({train:.2f})") if stuck else (0.3, "no validation seen")
    reached = late_val_accuracy(vitals) or best
    error = _error(vitals, n_validation(vitals))
    if learnt < 0.02 and reached <= most + 2 * error:
        return 0.3, "the network learnt nothing, so that it is no witness"
    if reached <= accuracy + 0.08 + 1.5 * error and (even or reached >= accuracy - 0.1):
        return 0.65, f"the network itself gets no further: accuracy {reached:.2f} in validation, {accuracy:.2f} there"
    then = facts.progress_at(vitals, _peak(vitals))
    by_heart = then is None or learnt > then + 0.02
    if best > accuracy and len(values) >= 4 and best - values[-1] >= 0.04 and by_heart:
        return (
            0.55,
            f"accuracy in validation peaked at {best:.2f} and fell to {values[-1]:.2f}: wrong labels were learnt",
        )
    return 0.0, ""


def _error(vitals: Vitals, n: int) -> float:
    """Standard error of an accuracy over n examples against that of the small learners."""
    return math.sqrt(0.25 / max(n, 1) + 0.25 / max(read(vitals.data, "learn", "n") or 1, 1))


def _looked_at(vitals: Vitals) -> int:
    """Training examples whose predictions were seen in the second half; 200 when none were."""
    late = [look.predictions for look in vitals.looks if look.step >= 0.5 * vitals.n_steps]
    return sum(item.n for item in late if item is not None) or 200


def _peak(vitals: Vitals) -> int:
    """Step of the highest accuracy in validation."""
    points = facts.metric(vitals, "val", "accuracy")
    return max(points, key=itemgetter(1))[0] if points else 0


def _predictable(vitals: Vitals, ahead: float) -> bool:
    """The learners are ahead of the most frequent class by more than chance (four standard errors)."""
    return ahead > 4 * math.sqrt(0.25 / max(read(vitals.data, "learn", "n") or 1, 1))


def _outdone(vitals: Vitals) -> Finding | None:
    """Validation is much better than training on the very examples (no augmentation, no dropout)."""
    pairs = read(vitals.data, "repeats", "pairs")
    if pairs is None or pairs < UNCHANGED:
        return None
    if facts.is_classification(vitals):
        ahead = ahead_in_validation(vitals, 0.12) or lower_loss_in_validation(vitals, 0.7)
        weaker = (ahead_in_validation(vitals, 0.04), lower_loss_in_validation(vitals, 0.8))
        if ahead is None and None not in weaker:
            ahead = "; ".join(line for line in weaker if line)
    else:
        r2, together = read(vitals.data, "learn", "r2"), read(vitals.data, "learn", "together")
        scattered = r2 is not None and r2 < 0.8 and together is not None and together < 2.5
        ahead = lower_loss_in_validation(vitals, 0.7) if scattered else None
    came = _before_by_heart(vitals)
    if ahead is None or (came is not None and came > 0.7):
        return None  # a training that got this far has few labels wrong: the parts differ by chance
    return _noise("warning", "A share of the training labels is wrong, those of validation are not.", [ahead], 0.65)


def _before_by_heart(vitals: Vitals) -> float | None:
    """How far training came while validation still followed: wrong labels are learnt by heart after that."""
    points = [point for point in facts.metric(vitals, "val", "loss") if math.isfinite(point[1])]
    return facts.progress_at(vitals, min(points, key=itemgetter(1))[0]) if points else facts.progress(vitals)


def _never_sure(vitals: Vitals) -> Finding | None:
    """The network stands still where it is right about most examples, equally unsure of all, and far off at the rest.

    With a share of wrong labels the best prediction gives every example the same moderate probability; where classes
    overlap instead some examples are easy, and their loss goes to 0.
    """
    curve = facts.loss_curve(vitals)
    looks = [look.predictions for look in vitals.looks if look.step >= 0.6 * vitals.n_steps]
    seen = [item for item in looks if item is not None and item.n and len(item.loss) == 7]
    n = sum(item.n for item in seen)
    most = majority(vitals)
    if curve is None or n < 120 or len(seen) < 3 or most is None or not facts.is_classification(vitals):
        return None
    before, end = curve.level(0.45, 0.65), curve.level(0.8, 1.0)
    if before - end > 0.1 * max(curve.start - end, 0.0):
        return None
    easy, typical, hard = (sum(item.loss[i] * item.n for item in seen) / n for i in (1, 3, 5))
    right = sum(item.correct for item in seen) / n
    if not most + 0.25 * (1 - most) < right < 0.9 or easy < max(0.15, 0.35 * typical) or hard < 3.5 * typical:
        return None
    return _noise(
        "warning",
        f"About {1 - right:.0%} of the training labels cannot be predicted though the rest can: they look wrong.",
        [
            f"in the last part of the training {right:.0%} of the examples are answered rightly, all with similar "
            f"confidence (loss {easy:.2f} at the 10% quantile, {typical:.2f} in the middle), while a tenth has "
            f"losses above {hard:.2f}"
        ],
        0.55,
        share=1 - right,
    )


def _far_off(vitals: Vitals) -> Finding | None:
    """A regression with single targets far off, each alone among well predicted ones."""
    _, z, n = agreement(vitals)
    tail, together, r2 = (read(vitals.data, "learn", name) for name in ("tail", "together", "r2"))
    if tail is None or together is None or r2 is None or z < 4 or n < FEWEST:
        return None
    if tail < 4.8 or together > 2.0 or r2 > 0.7:
        return None
    came = facts.progress(vitals)
    fitted = came is not None and came > r2 + 0.3
    return _noise(
        "info" if fitted else "warning",
        "Some targets are far off although most follow from the inputs.",
        [
            f"the 5% worst predicted targets are off {tail:.1f} times as far as the typical one (2.9 for normal "
            f"noise), and stand alone ({n} examples)"
        ],
        0.35 if fitted else 0.6,
    )
