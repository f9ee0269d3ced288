"""What the curves of loss and metrics say; never more than a warning, since a curve shows no mechanism."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import median, pstdev

from luthier.doctor.findings import Finding, NotSeen, Severity
from luthier.doctor.symptoms.courses import (
    FEW,
    Course,
    accurate,
    course_of,
    good_enough,
    learnt_most,
    lost_ground,
    narrow_layers,
    poor_below,
)
from luthier.doctor.symptoms.facts import (
    Baseline,
    batch_size,
    is_classification,
    known,
    metric,
    middle,
    steps_per_epoch,
)
from luthier.doctor.symptoms.floors import floored
from luthier.doctor.symptoms.harm import FITTED
from luthier.doctor.symptoms.layers import total
from luthier.doctor.symptoms.outcomes import behind_learners, data_allow_more, majority
from luthier.doctor.vitals import Vitals


def no_learning(vitals: Vitals) -> list[Finding] | NotSeen:
    """The loss has not moved beyond its noise, or never got below that of a constant answer; or nothing stepped."""
    course = course_of(vitals)
    if course is None:
        return [_without_steps(vitals)] if _trained_without_steps(vitals) else FEW
    curve, base = course.curve, course.base
    best = base.progress(curve.best)
    tail = max(len(curve.values) // 10, 3)
    moved = curve.start - curve.end
    still = abs(moved) < max(3 * curve.noise / math.sqrt(tail), 0.03 * curve.start)
    blur = min(2 * curve.noise / math.sqrt(tail) / (base.value - base.floor), 0.1) if not base.assumed else 0.0
    stuck = still if base.assumed else course.end < 0.04 + blur and best < max(0.1, 2 * blur)
    if moved < 0.1 * curve.start and never_stepped(vitals):
        return [_without_steps(vitals)]
    if not stuck or _above_chance(vitals, base):
        return []
    cleared = _cleared_before_step(vitals)
    why = (
        "nothing about the inputs was learnt" if not cleared else "gradients are cleared between backward() and step()"
    )
    return [
        Finding(
            "no_learning",
            "critical" if cleared else "warning",
            f"After {vitals.n_steps} steps the loss is {curve.end:.3g} (start {curve.start:.3g}); a constant answer "
            f"would cost {base.value:.3g}: {why}.",
            (f"noise of the loss from step to step: {curve.noise:.2g}; lowest smoothed loss: {curve.best:.3g}",),
            onset=0,
            certainty=0.95 if cleared else 0.5,
            numbers={"start": curve.start, "end": curve.end, "baseline": base.value},
        )
    ]


def never_stepped(vitals: Vitals) -> bool:
    """watch.step was called and backward() ran, but no optimizer stepped."""
    told = any(event.name == "steps_without_optimizer" for event in vitals.events)
    looks = [look for look in vitals.looks if look.n_backward]
    return told and len(looks) >= 3 and not any(known(look.update) for look in looks)


def _trained_without_steps(vitals: Vitals) -> bool:
    """Forwards in training mode with gradients, epoch after epoch, but no step and no fall of the loss."""
    forwards = sum(row.forwards for row in vitals.evaluations if row.training and row.grad)
    losses = [value for _, value in metric(vitals, "train", "loss") or metric(vitals, "val", "loss")]
    still = len(losses) >= 3 and max(losses) - min(losses) < 0.03 * abs(losses[0])
    return not vitals.n_steps and forwards >= 30 and still


def _without_steps(vitals: Vitals) -> Finding:
    return Finding(
        "no_learning",
        "critical",
        f"In {vitals.n_steps} steps of the loop no optimizer stepped: gradients are computed and thrown away.",
        ("backward() ran and watch.step was called, but no optimizer moved a weight, and the loss does not fall",),
        onset=0,
        certainty=0.98,
        numbers={"never_stepped": True},
    )


def _cleared_before_step(vitals: Vitals) -> bool:
    """Gradients were there after backward() and gone when the optimizer stepped."""
    looks = [look for look in vitals.looks if any(known(look.grad_before_clip))]
    return len(looks) >= 3 and not any(any(known(look.grad)) for look in looks)


def _above_chance(vitals: Vitals, base: Baseline) -> bool:
    """Accuracy far above what the loss of a constant answer allows; or fitted from the first step on."""
    if base.assumed and is_classification(vitals) and base.value < 0.3:
        return True
    most = majority(vitals) or 0.0
    return accurate(vitals, max(0.9 if base.loss.startswith("binary") else 0.6, (1 + most) / 2))


def plateau(vitals: Vitals) -> list[Finding] | NotSeen:
    """The loss moved, then stood still early and far from a good value."""
    course = course_of(vitals, 60)
    if course is None:
        return FEW
    curve, base = course.curve, course.base
    held = _cut_off(vitals, course) or floored(vitals, course)
    if held is not None:
        return [held]
    limit = poor_below(vitals)
    moved = max(course.end - course.begin, 0.0)
    if base.assumed or not course.flat or moved < 0.05 or not 0.02 < course.end < limit or good_enough(vitals, 0.75):
        return []
    since = next(i for i, value in enumerate(curve.smooth) if base.progress(value) > course.end - 0.1 * moved - 0.02)
    early = since < 0.4 * len(curve.smooth) and not narrow_layers(vitals)
    return [
        Finding(
            "plateau",
            "warning" if early else "info",
            f"The loss fell to {curve.end:.3g} by step {curve.steps[since]} and has stood still since, "
            f"{course.end:.0%} of the way from a constant answer to a perfect one.",
            (f"the last third of the steps brought {curve.drop:.2g}, the noise is {curve.noise:.2g}",),
            onset=curve.steps[since],
            certainty=0.4,
            numbers={"level": curve.end, "progress": course.end},
        )
    ]


def _cut_off(vitals: Vitals, course: Course) -> Finding | None:
    """Every gradient has become exactly zero while the loss is not: something cuts the loss off from the weights."""
    looks = [look for look in vitals.looks if known(look.grad)]
    still = [look for look in looks if not total(look.grad)]
    late = looks[-max(len(looks) // 5, 3) :]
    silent = [look for look in late if not total(look.grad)]
    if len(looks) < 8 or len(looks) == len(still) or len(silent) < max(2, len(late) // 2):
        return None
    if abs(course.curve.end) < 1e-3 * abs(course.curve.start):
        return None
    return Finding(
        "plateau",
        "warning",
        f"The loss stands at {course.curve.end:.3g} and no gradient reaches any weight: it is clamped there (clamp, "
        "maximum, relu, rounding), so nothing more is learnt.",
        (f"all gradients are exactly 0 at {len(silent)} of the last {len(late)} looks, from step {still[0].step} on",),
        (),
        still[0].step,
        0.8,
        {"level": course.curve.end, "progress": course.end},
    )


# --- swings ----------------------------------------------------------------------------------------------------------


def oscillating_loss(vitals: Vitals) -> list[Finding] | NotSeen:
    """Swings that do not die out and are larger than mini-batches of this size explain."""
    course = course_of(vitals)
    if course is None:
        return FEW
    curve, span = course.curve, course.base.value - course.base.floor
    late = curve.values[len(curve.values) // 2 :]
    swing = min(curve.noise, _detrended(late))
    expected = _expected_noise(vitals, median(late))
    epochs = _swinging_epochs(vitals, span) or lost_ground(vitals, course)
    by_step = swing > 2.5 * expected and swing > 0.15 * span and _from_zero(vitals, course.base)
    if not by_step and not epochs:
        return []
    size = f"{swing:.2g} from step to step where batches explain {expected:.2g}" if by_step else epochs
    return [
        Finding(
            "oscillating_loss",
            "warning",
            f"The loss goes on swinging in the second half of the training: {size}.",
            (f"level there {median(late):.3g}, highest {max(late):.3g}, lowest {min(late):.3g}",),
            onset=curve.steps[len(curve.steps) // 2],
            certainty=0.5,
            numbers={"swing": swing, "expected": expected},
        )
    ]


def _from_zero(vitals: Vitals, base: Baseline) -> bool:
    """Zero is the least that the loss can be, so that its level tells how far examples spread; not of likelihoods."""
    free = {"poisson_nll_loss", "gaussian_nll_loss"}
    return base.floor >= 0 and not any(node.op in free for look in vitals.looks[:3] for node in look.nodes)


def _detrended(values: Sequence[float]) -> float:
    """Standard deviation without the highest and lowest twentieth, so that single spikes do not count."""
    cut = len(values) // 20
    kept = sorted(values)[cut : len(values) - cut]
    return pstdev(kept) if len(kept) > 1 else 0.0


def _expected_noise(vitals: Vitals, level: float) -> float:
    """Standard deviation of a mini-batch loss: that of single examples divided by sqrt(batch size).

    Where single losses were not seen they are taken to spread like an exponential (squares: chi-square) distribution.
    """
    spreads = [
        max((look.predictions.loss[5] - look.predictions.loss[1]) / 2.56, look.predictions.loss[6] / 5)
        for look in vitals.looks
        if look.predictions is not None and len(look.predictions.loss) == 7
    ]
    late = spreads[-max(len(spreads) // 3, 1) :]
    single = max(middle(late), abs(level) * (1.0 if is_classification(vitals) else math.sqrt(2)))
    return single / math.sqrt(batch_size(vitals) or 16)


def _swinging_epochs(vitals: Vitals, span: float) -> str:
    """Metrics of whole epochs that jump up and down; "" when they do not."""
    for side in ("train", "val"):
        points = [value for _, value in metric(vitals, side, "loss")]
        late = points[len(points) // 3 :]
        jumps = [b - a for a, b in itertools.pairwise(late)]
        turns = sum(a * b < 0 for a, b in itertools.pairwise(jumps))
        if len(jumps) >= 4 and turns >= 0.6 * (len(jumps) - 1) and median(map(abs, jumps)) > 0.25 * span:
            return f"the {side} loss of whole epochs jumps by {median(map(abs, jumps)):.2g}"
    return ""


# --- stopped too early -----------------------------------------------------------------------------------------------


def too_few_epochs(vitals: Vitals) -> list[Finding] | NotSeen:
    """Loss and validation still fall steadily, far from fitted, at full learning rate, when training ends."""
    course = course_of(vitals)
    if course is None:
        return FEW
    curve, base = course.curve, course.base
    span = base.value - base.floor
    behind = data_allow_more(vitals) and not accurate(vitals, 0.75)
    hasty = not is_classification(vitals) and _brief(vitals, base, 0.1)  # no accuracy says that most is learnt
    steep = (course.steady and (behind or curve.drop > 0.03 * span)) or _brief(vitals, base, 0.05)
    far = course.end < (0.9 if behind else FITTED if hasty else 0.6)
    more = course.steady and (course.at_its_steepest or data_allow_more(vitals) or behind_learners(vitals))
    learnt = learnt_most(vitals, 0.9 if more else 0.78)
    if not steep or not far or learnt or _decayed(vitals) or not course.stable:
        return []
    if not _validation_falls(vitals):
        return []
    epoch = steps_per_epoch(vitals)
    epochs = f" ({vitals.n_steps / epoch:.0f} epochs)" if epoch else ""
    severity: Severity = "warning" if not base.assumed else "info"
    return [
        Finding(
            "too_few_epochs",
            severity,
            f"Training ended after {vitals.n_steps} steps{epochs} while the loss was still falling steadily "
            f"({curve.drop:.2g} over the last third, now {curve.end:.3g}).",
            (f"{max(course.end, 0):.0%} of the way from a constant answer to a perfect one; the lr had not decayed",),
            certainty=0.45,
            numbers={"drop": curve.drop, "end": curve.end, "steps": vitals.n_steps},
        )
    ]


def _brief(vitals: Vitals, base: Baseline, share: float) -> bool:
    """Two to four epochs, each of which took more than this share of what was left of the validation loss."""
    values = [value for _, value in metric(vitals, "val", "loss")]
    falls = [a - b for a, b in itertools.pairwise(values)]
    few = 2 <= len(values) <= 4 and (vitals.n_steps <= 200 or data_allow_more(vitals))
    left = [min(value, base.value) - base.floor for value in values]
    return few and all(fall > share * before for fall, before in zip(falls, left, strict=False))


def _decayed(vitals: Vitals) -> bool:
    rates = [lr for lr in vitals.steps.lr if lr is not None and math.isfinite(lr)]
    return bool(rates) and rates[-1] < 0.3 * max(rates)


def _validation_falls(vitals: Vitals) -> bool:
    """The last validation loss is its lowest, or close to it."""
    values = [value for _, value in metric(vitals, "val", "loss")]
    return len(values) < 3 or values[-1] <= min(values) + 0.05 * abs(min(values))
