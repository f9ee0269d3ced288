"""Faults of the targets as numbers: their scale, their classes, and whether they hold anything to learn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

from luthier.doctor.findings import Finding, NotSeen, Severity
from luthier.doctor.symptoms import facts
from luthier.doctor.symptoms.imbalance import one_each
from luthier.doctor.symptoms.outcomes import from_start, read
from luthier.doctor.vitals import Vitals

NO_TARGETS = "no targets were seen: pass targets= to watch.step"
HUGE, LARGE, TINY, VANISHING = 30.0, 10.0, 0.01, 0.003
MOST_LABELS = 32


def unscaled_target(vitals: Vitals) -> list[Finding] | NotSeen:
    """Regression targets far from zero mean and unit scale.

    The gradient of a squared error grows with the targets; a fresh network answers about 0 +- 1, so the first steps
    only carry its output to where the targets are (or, when these are tiny, shrink it).
    """
    if facts.is_classification(vitals):
        return []
    mean, std = facts.target_mean(vitals), facts.target_std(vitals)
    if mean is None or std is None or not math.isfinite(mean) or not math.isfinite(std):
        return NotSeen(NO_TARGETS)
    if facts.loss_name(vitals) == "" and any(row.counts for row in vitals.targets):
        return NotSeen("whole-number targets and an unknown loss: classes or numbers? Give loss_fn to watch")
    rms, came = math.hypot(mean, std), facts.progress(vitals)
    slow = came is None or came < 0.5 or _carried(vitals)
    if std == 0 or _output_fits(vitals, rms):
        return []
    severity: Severity
    if rms >= HUGE:
        size, severity = "large", "critical" if rms >= 1000 and slow else "warning"
    elif rms >= LARGE:
        size, severity = "large", "warning" if slow else "info"
    elif rms <= TINY:
        size, severity = "tiny", "warning" if slow or rms <= VANISHING else "info"
    else:
        return []
    evidence = [f"targets: mean {mean:.4g}, spread {std:.4g}, where about 0 and 1 work best"]
    first = next((value for value in vitals.steps.loss if value is not None and math.isfinite(value)), None)
    if first is not None:
        evidence.append(f"loss at the first step {first:.4g}")
    if came is not None:
        evidence.append(f"at the end the loss is {1 - came:.3g} times that of a constant answer")
    return [
        Finding(
            symptom="unscaled_target",
            severity=severity,
            cause=f"The targets are {size} (mean {mean:.4g}, spread {std:.4g}): loss and gradients follow their scale, "
            "which no usual learning rate and initialisation fit.",
            evidence=tuple(evidence),
            onset=0,
            certainty=0.8 if rms >= HUGE or (rms <= TINY and slow) else 0.6,
            numbers={"mean": mean, "std": std},
            source="Bishop 1995, Neural Networks for Pattern Recognition, section 8.2",
        )
    ]


def _carried(vitals: Vitals) -> bool:
    """A quarter of the training went by before the loss got below a constant answer's: it carried the output there."""
    curve, base = facts.loss_curve(vitals), facts.baseline(vitals)
    if curve is None or base is None or base.assumed or curve.start < 2 * base.value:
        return False
    below = next((i for i, value in enumerate(curve.smooth) if value < 0.9 * base.value), len(curve.smooth))
    return below > len(curve.smooth) / 4 and base.progress(curve.end) < 0.95


def _output_fits(vitals: Vitals, rms: float) -> bool:
    """The fresh network already answers in the targets' scale: the model scales its output itself."""
    for look in vitals.looks[:1]:
        for index in look.outputs:
            node = look.nodes[index] if 0 <= index < len(look.nodes) else None
            if node is not None and node.stats is not None and node.stats.mean is not None:
                size = math.hypot(node.stats.mean, node.stats.std or 0.0)
                return 0.3 * rms <= size <= 3 * rms
    return False


def degenerate_labels(vitals: Vitals) -> list[Finding] | NotSeen:
    """Targets that are constant, cut off, or outside what the loss is made for."""
    if not vitals.targets and not facts.targets_in_losses(vitals):
        return NotSeen(NO_TARGETS)
    if vitals.anatomy is not None and len(vitals.anatomy.model_types) > 1:
        return NotSeen("several models train together: their targets may be constant on purpose")
    for look in (_constant, _constant_columns, _outside, _truncated, _few_classes):
        found = look(vitals)
        if found is not None:
            return [found]
    return []


def _labels(vitals: Vitals) -> dict[str, int]:
    """All labels of whole-number targets with their counts, negative ones too (but not -100, which is ignored)."""
    counts: dict[str, int] = {}
    for row in vitals.targets:
        for label, count in (row.counts or {}).items():
            if label != "-100":
                counts[label] = counts.get(label, 0) + count
    return counts


_finding = partial(
    from_start,
    "degenerate_labels",
    "Humbatova et al. 2020, Taxonomy of Real Faults in Deep Learning Systems (training data)",
)


def _constant(vitals: Vitals) -> Finding | None:
    """Every target is the same."""
    if not vitals.targets:
        return _constant_in_losses(vitals)
    n = sum(row.n for row in vitals.targets)
    if len(vitals.targets) < 3 or n < 30:
        return None
    counts = _labels(vitals)
    if counts and all(row.counts for row in vitals.targets):
        if len(counts) > 1:
            return None
        value = next(iter(counts))
    else:
        means = [row.mean for row in vitals.targets if row.mean is not None and math.isfinite(row.mean)]
        spreads = [row.std for row in vitals.targets if row.std is not None and math.isfinite(row.std)]
        if len(means) != len(vitals.targets) or len(spreads) != len(means):
            return None
        middle = facts.middle(means)
        if max(spreads) > 1e-6 * (abs(middle) + 1e-12) or max(means) - min(means) > 1e-6 * (abs(middle) + 1e-12):
            return None
        value = f"{middle:.4g}"
    return _only(value, n, len(vitals.targets))


def _only(value: str, n: int, batches: int) -> Finding:
    return _finding(
        "critical",
        f"All targets are {value}: there is nothing to learn but that constant.",
        [f"{n} targets in {batches} batches, all equal to {value}"],
        0.95,
        value=value,
    )


def _constant_in_losses(vitals: Vitals) -> Finding | None:
    """The same where nobody told the targets: read off the loss."""
    seen = facts.targets_in_losses(vitals)
    values = {value for stats in seen for value in (stats.min, stats.max)}
    n = sum(stats.n for stats in seen)
    if len(seen) < 3 or n < 30 or len(values) != 1 or None in values:
        return None
    return _only(f"{values.pop():.4g}", n, len(seen))


def _constant_columns(vitals: Vitals) -> Finding | None:
    """Half of the numbers or labels that every example has, or more, never change; pixels and places often do not."""
    share, n = read(vitals.data, "targets", "constant"), read(vitals.data, "distinct")
    shapes = {(look.targets.shape, look.inputs.shape) for look in vitals.looks if look.targets and look.inputs}
    rows = all(len(shape) == 2 and shape[1] <= MOST_LABELS and shape[1:] != given[1:2] for shape, given in shapes)
    if share is None or share < 0.5 or (n or 0) < 50 or not shapes or not rows:
        return None
    return _finding(
        "warning",
        f"{share:.0%} of the targets' columns hold the same number for every example: nothing is to be learnt there.",
        [f"seen over {n:.0f} different examples"],
        0.7,
        share=share,
    )


def _outside(vitals: Vitals) -> Finding | None:
    """Binary cross entropy with targets beyond 0 and 1."""
    for look in vitals.looks:
        node = facts.loss_node(look)
        if node is None or not node.op.startswith("binary_cross_entropy") or len(node.arguments) < 2:
            continue
        stats = node.arguments[1].stats
        if stats is None or stats.min is None or stats.max is None:
            continue
        if stats.min < -1e-6 or stats.max > 1 + 1e-6:
            return _finding(
                "critical",
                f"The targets of {node.op} go from {stats.min:.4g} to {stats.max:.4g}, but only 0 to 1 have a meaning: "
                "the loss has no lower bound.",
                [f"targets at step {look.step}: from {stats.min:.4g} to {stats.max:.4g}"],
                0.9,
            )
    return None


def _truncated(vitals: Vitals) -> Finding | None:
    """Numbers cut to whole ones: a regression whose targets are few whole numbers, far too many of them 0.

    Cutting maps all of (-1, 1) to 0 and only half as wide a range to every other whole number.
    """
    counts = _labels(vitals)
    if facts.loss_name(vitals) not in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss") or not counts:
        return None
    if not all(row.counts for row in vitals.targets) or not 2 <= len(counts) <= 40:
        return None
    total = sum(counts.values())
    values = [float(label) for label in counts]
    zero = counts.get("0", 0)
    beside = max(counts.get("1", 0), counts.get("-1", 0))
    both_signs = min(values) < 0 < max(values)
    if total < 100 or (both_signs and zero < 1.4 * beside) or (not both_signs and zero < 0.8 * total):
        return None
    few = both_signs and (len(counts) <= 9 or zero >= 0.45 * total)
    return _finding(
        "warning" if both_signs else "info",
        f"The targets of a regression are only {len(counts)} whole numbers, {zero / total:.0%} of them 0: they look "
        "cut off by a conversion to integers.",
        [f"targets seen: {_listed(counts, total)}"],
        0.65 if few else 0.5 if both_signs else 0.3,
    )


def _few_classes(vitals: Vitals) -> Finding | None:
    """Far fewer classes among the labels than the network has outputs."""
    counts = facts.class_counts(vitals)
    classes = _outputs(vitals)
    total = sum(counts.values())
    if classes is None or len(counts) < 2 or total < 20 * classes or not one_each(vitals):
        return None
    if len(counts) > classes / 2 or classes > 64:
        return None
    return _finding(
        "warning",
        f"The network tells {classes} classes apart, but only {len(counts)} occur among {total} labels.",
        [f"labels seen: {_listed(counts, total)}"],
        0.6,
        classes=classes,
    )


def _outputs(vitals: Vitals) -> int | None:
    for look in vitals.looks:
        node = facts.loss_node(look)
        if node is not None and node.op in ("cross_entropy", "nll_loss") and node.arguments:
            shape = node.arguments[0].shape
            return shape[1] if len(shape) == 2 else None
    return None


def _listed(counts: Mapping[str, int], total: int) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{label} ({count / total:.1%})" for label, count in ordered[:8])
