"""The batch size against noise and number of updates."""

from __future__ import annotations

from statistics import pstdev

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms.facts import baseline, batch_size, loss_curve, steps_per_epoch
from luthier.doctor.symptoms.overshooting import late_ratio
from luthier.doctor.vitals import Vitals


def batch_too_small(vitals: Vitals) -> list[Finding] | NotSeen:
    """Batches of a few examples whose noise drowns the trend of the loss."""
    size, curve, base = batch_size(vitals), loss_curve(vitals), baseline(vitals)
    if size is None or curve is None or base is None:
        return NotSeen("the batch size was not seen: pass inputs= and targets= to watch.step")
    learnt = base.progress(curve.end)
    span = base.value - base.floor
    noise = max(curve.noise, pstdev(curve.values[len(curve.values) // 2 :]))  # losses of single examples are skewed
    noisy = noise > 0.2 * span or noise > 0.5 * abs(curve.start - curve.end)
    settled = curve.level(0.4, 0.6) - curve.level(0.85, 1.0) < 0.1 * span
    if size > 4 or len(curve.values) < 30 or learnt > 0.9 or not noisy or (size > 2 and not settled):
        return []  # a loss that still falls plainly is not drowned
    ratio = late_ratio(vitals)
    return [
        Finding(
            "batch_too_small",
            "warning",
            f"With batches of {size} the noise of the loss ({noise:.2g} from step to step) drowns its trend "
            f"(from {curve.start:.2g} to {curve.end:.2g}).",
            (f"{len(curve.values)} steps; update over weight norm late in training: {ratio:.2g}",),
            onset=0,
            certainty=0.6 if size <= 2 else 0.5,
            numbers={"batch_size": size, "noise": noise},
            source="McCandlish et al., An empirical model of large-batch training, 2018",
        )
    ]


def batch_too_large(vitals: Vitals) -> list[Finding] | NotSeen:
    """So few updates, each over (nearly) all data, that the loss is still falling when training ends."""
    size, curve = _examples_per_step(vitals), loss_curve(vitals)
    if size is None or curve is None:
        return NotSeen("the batch size was not seen: pass inputs= and targets= to watch.step")
    epoch = 1.0 if _same_batch(vitals) else steps_per_epoch(vitals)
    hasty = vitals.n_steps <= 60 and size >= 256  # so few updates of so many examples, whatever an epoch is
    if epoch is None and not hasty:
        return NotSeen("the number of steps in an epoch was not seen: call watch.metrics after every epoch")
    base = baseline(vitals)
    learnt = base.progress(curve.end) if base is not None else 0.0
    scale = base.value if base is not None else curve.start
    falling = curve.falls and curve.drop > 0.05 * scale
    whole = hasty if epoch is None else epoch <= 1.5
    few = vitals.n_steps <= 60 and whole and curve.level(0.5, 0.7) - curve.level(0.85, 1.0) > 0.01 * scale
    if (epoch or 1) > 3 or size < 64 or vitals.n_steps > 300 or not (falling or few) or learnt > (0.75 if few else 0.6):
        return []
    seen = f"an epoch has only {epoch:.0f} steps" if epoch else f"{size * vitals.n_steps} examples make few steps"
    return [
        Finding(
            "batch_too_large",
            "warning",
            f"With batches of {size} {seen}; after {vitals.n_steps} of them the loss ({curve.end:.3g}) still falls.",
            (f"the last third of the steps brought {curve.drop:.2g}; {learnt:.0%} of the way to a perfect answer",),
            onset=0,
            certainty=0.55,
            numbers={"batch_size": size, "steps_per_epoch": epoch, "suggested_batch_size": max(size // 8, 16)},
            source="Keskar et al., On large-batch training for deep learning, 2017",
        )
    ]


def _examples_per_step(vitals: Vitals) -> int | None:
    """The batch size, times the backward calls whose gradients every step adds up."""
    size, counts = batch_size(vitals), [look.n_backward for look in vitals.looks]
    closures = any("LBFGS" in row.type for row in vitals.optimizers)
    several = vitals.anatomy is not None and len(vitals.anatomy.model_types) > 1
    if size is None or len(counts) < 2 or min(counts) < 4 or closures or several:
        return size
    return size * min(counts)


def _same_batch(vitals: Vitals) -> bool:
    """Every batch holds the same targets: the whole data set at once."""
    rows = {(row.n, tuple(sorted((row.counts or {}).items())), row.mean, row.std) for row in vitals.targets}
    return len(vitals.targets) >= 3 and len(rows) == 1
