"""Gradients that fade or blow up, over depth and over time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms import recurrences
from luthier.doctor.symptoms.facts import baseline, known, middle, progress, progress_at
from luthier.doctor.symptoms.harm import FITTED, harm, several_models
from luthier.doctor.symptoms.layers import SQUASHING, Layer, biases, layers, names, normalised, total
from luthier.doctor.vitals import Look, Vitals

ATTENTION = frozenset({"softmax", "scaled_dot_product_attention", "multi_head_attention"})
_GLOROT = "Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010"
_PASCANU = "Pascanu, Mikolov and Bengio, On the difficulty of training recurrent neural networks, 2013"


@dataclass(frozen=True)
class _Depth:
    """Gradient over weight of the first third of the layers and of the last third, at one look."""

    step: int
    early: float
    late: float
    first: Layer
    last: Layer

    @property
    def share(self) -> float:
        return self.early / self.late if self.late > 0 else 1.0


def _gradient(look: Look) -> str:
    """Name of the list that holds the gradients before clipping."""
    return "grad_before_clip" if any(value is not None for value in look.grad_before_clip) else "grad"


def _depth(vitals: Vitals, look: Look) -> _Depth | None:
    """Relative gradients over depth; None below 3 layers with gradient."""
    of = _gradient(look)
    pairs = [(layer, ratio) for layer in layers(vitals, look) if (ratio := layer.ratio(look, of)) is not None]
    if len(pairs) < 3:
        return None
    third = max(len(pairs) // 3, 1)
    early = median(ratio for _, ratio in pairs[:third])
    late = max(ratio for _, ratio in pairs[-third:])
    return _Depth(look.step, early, late, pairs[0][0], pairs[-1][0])


def vanishing_gradient(vitals: Vitals) -> list[Finding] | NotSeen:
    """Early layers get a negligible gradient, against late layers and against their own weights, while unfitted."""
    if not any(known(look.grad) for look in vitals.looks):
        return NotSeen("no gradients were seen: watch the model while it trains")
    unfitted = [look for look in vitals.looks if (progress_at(vitals, look.step) or 0.0) < 0.9]
    depths = [depth for look in unfitted if (depth := _depth(vitals, look)) is not None and depth.late > 0]
    if len(depths) > 2:
        depths = [depth for depth in depths if depth.step > 0]  # layers that start at zero hide the rest at step 0
    for found in (
        _over_depth(vitals, depths),
        _behind_biases(vitals, unfitted),
        recurrences.fading(vitals),
        _fitted(vitals),
    ):
        if found is not None:
            return [found]
    return []


def _over_depth(vitals: Vitals, depths: Sequence[_Depth]) -> Finding | None:
    if not depths:
        return None
    share = median(depth.share for depth in depths)
    learnt = progress(vitals)
    stuck = learnt is not None and not several_models(vitals) and learnt < 0.3
    if share > (3e-2 if stuck and _deep_or_squashed(vitals) else 1e-3) or median(d.early for d in depths) > 1:
        return None
    hit = next((depth for depth in depths if depth.share <= 10 * share), depths[0])
    severity = "info" if (learnt or 0.0) > FITTED else "critical" if share < 1e-4 and stuck else "warning"
    return Finding(
        "vanishing_gradient",
        severity,  # type: ignore[arg-type]
        f"The gradient fades on its way back: the early layers ({hit.first.place}) get {share:.1e} of what the last "
        f"ones ({hit.last.place}) get, relative to their weights, so they hardly move.",
        (
            f"step {hit.step}: gradient over weight {hit.early:.1e} in the first third of the layers, "
            f"{hit.late:.1e} in the last third",
            f"median over {len(depths)} looks before the loss was fitted: {share:.1e}",
        ),
        (hit.first.place,),
        hit.step if hit.step > 1 else 0,
        0.8 if share < 1e-3 else 0.6,
        {"share": share},
        source=_GLOROT,
    )


def _deep_or_squashed(vitals: Vitals) -> bool:
    """Depth that makes a gradient fade, the more so with squashing units; in a shallow net 30 times is nothing."""
    look = vitals.looks[0]
    if any(node.op in ATTENTION for node in look.nodes if node.module is not None):
        return False  # queries and keys act through the softmax alone: their gradients are small by nature
    squashed = any(node.op in SQUASHING for node in look.nodes if node.module is not None)
    return len(layers(vitals, look)) >= (5 if squashed else 6)


def _behind_biases(vitals: Vitals, looks: Sequence[Look]) -> Finding | None:
    """The error signal itself, seen in the biases' gradients, fades although the weights' gradients look alike."""
    learnt = progress(vitals)
    if learnt is None or learnt > 0.1:
        return None
    shares, steps, place = [], [], ""
    for look in looks:
        held = biases(vitals, look)
        chain = [
            (layer.place, held[layer.place][0])
            for layer in layers(vitals, look)
            if layer.place in held and not normalised(look, layer)  # before a norm layer a bias has no gradient
        ]
        norms = [(name, look.grad[i]) for name, i in chain if i < len(look.grad)]
        ends = (norms[0][1], norms[-1][1]) if len(norms) >= 4 else (None, None)
        if ends[0] is not None and ends[1] and math.isfinite(ends[0]) and math.isfinite(ends[1]):
            shares.append(ends[0] / ends[1])
            steps.append(look.step)
            place = norms[0][0]
    if len(shares) < 2 or median(shares) > 1e-3 or median(shares) == 0:
        return None
    return Finding(
        "vanishing_gradient",
        "warning",
        f"The error signal shrinks to {median(shares):.1e} of its size between the last layer and {place}, "
        "so the early layers learn nothing.",
        (f"gradient of the first bias over that of the last, median of {len(shares)} looks: {median(shares):.1e}",),
        (place,),
        steps[0],
        0.7,
        {"share": median(shares)},
        source=_GLOROT,
    )


def _fitted(vitals: Vitals) -> Finding | None:
    """Small gradients of a loss that is fitted: worth knowing, no fault."""
    learnt = progress(vitals)
    sizes = [(look.step, size) for look in vitals.looks if (size := total(look.grad)) is not None]
    if learnt is None or learnt < 0.95 or len(sizes) < 6:
        return None
    early, late = middle([size for _, size in sizes[:5]]), middle([size for _, size in sizes[-3:]])
    if early <= 0 or late > 1e-2 * early:
        return None
    return Finding(
        "vanishing_gradient",
        "info",
        f"The gradients have become small ({late:.1e} against {early:.1e} at the start) because the loss is fitted.",
        (f"the training loss has come {learnt:.0%} of the way from a constant answer to 0",),
        onset=next(step for step, size in sizes if size <= 1e-1 * early),
        certainty=0.6,
        numbers={"fitted": True},
    )


def exploding_gradient(vitals: Vitals) -> list[Finding] | NotSeen:
    """Gradients grow by orders of magnitude, over the training or towards the early layers, and the loss suffers."""
    series = _sizes(vitals)
    if not series:
        return NotSeen("no gradients were seen: watch the model while it trains")
    hurt = harm(vitals)
    hurt_or_drowned = hurt or _drowned(vitals)
    for found in (
        recurrences.growing(vitals, hurt_or_drowned),
        _growing(series, hurt),
        _deep(vitals, hurt),
        _outweighing(vitals, hurt_or_drowned),
    ):
        if found is not None:
            return [found]
    return []


def _sizes(vitals: Vitals) -> list[tuple[int, float]]:
    """(step, gradient norm over all parameters before clipping); infinite where a gradient is not finite."""
    sizes: dict[int, float] = {}
    clipped = any(_is_clipped(look) for look in vitals.looks)
    for row in () if clipped else vitals.norms:
        sizes[row.step] = _size(row.grad)
    for look in vitals.looks:
        numbers = getattr(look, _gradient(look))
        if any(value is not None for value in numbers):
            sizes[look.step] = _size(numbers)
    return sorted(sizes.items())


def _size(numbers: Sequence[float | None]) -> float:
    size = total(numbers)
    return math.inf if size is None else size


def _is_clipped(look: Look) -> bool:
    before, after = total(look.grad_before_clip), total(look.grad)
    return before is not None and after is not None and before > 1.01 * after


def _growing(series: Sequence[tuple[int, float]], hurt: str) -> Finding | None:
    early = middle([size for step, size in series if step < 10][:10] or [size for _, size in series[:3]])
    finite = [(step, size) for step, size in series if math.isfinite(size)]
    if early <= 0 or not finite or not hurt:
        return None
    start = middle([size for _, size in series[:3]])
    early = min(early, start) if start > 0 else early
    high = [(step, size) for step, size in finite if size > 100 * early]
    if len(high) < 2 and not (high and high[-1][0] >= finite[-1][0]):
        return None
    step, peak = high[0][0], max(size for _, size in high)
    return Finding(
        "exploding_gradient",
        "critical" if peak > 1e4 * early else "warning",
        f"The gradient norm grew from {early:.2g} to {peak:.2g}, {peak / early:.0e} times, and {hurt}.",
        (f"gradient norm {early:.3g} at the start, {high[0][1]:.3g} at step {step}, at most {peak:.3g}",),
        onset=step,
        certainty=0.7,
        numbers={"grad_norm_early": early, "grad_norm_peak": peak},
        source=_PASCANU,
    )


def _deep(vitals: Vitals, hurt: str) -> Finding | None:
    """Grows towards the early layers before any weight moved."""
    look = next((look for look in vitals.looks if look.step == 0), None)
    depth = _depth(vitals, look) if look is not None else None
    if depth is None or depth.late <= 0 or depth.share < 1e3 or not hurt:
        return None
    return Finding(
        "exploding_gradient",
        "warning",
        f"Relative to its weights {depth.first.place} gets {depth.share:.0e} times the gradient of {depth.last.place}: "
        "it grows on its way back.",
        (f"step 0: gradient over weight {depth.early:.2g} in the early layers, {depth.late:.2g} in the last", hurt),
        (depth.first.place,),
        0,
        0.7,
        {"share": depth.share},
        source=_PASCANU,
    )


def _outweighing(vitals: Vitals, hurt: str) -> Finding | None:
    """Gradients far larger than the weights that they are to change, from the start."""
    found = [hit for look in itertools.islice(vitals.looks, 5) if (hit := _largest(vitals, look)) and hit[2] > 100]
    finite = sum(math.isfinite(size) for _, size in _sizes(vitals)[:5])
    if len(found) < min(2, max(finite, 1)) or not hurt:
        return None
    step, layer, ratio = found[0]
    return Finding(
        "exploding_gradient",
        "warning",
        f"The gradient of {layer.name} is {ratio:.2g} times as large as the weights themselves, and {hurt}.",
        (f"step {step}: gradient norm over weight norm {ratio:.3g} in {names([item[1].name for item in found])}",),
        tuple(dict.fromkeys(item[1].place for item in found)),
        step,
        0.6,
        {"ratio": ratio},
        source=_PASCANU,
    )


def _largest(vitals: Vitals, look: Look) -> tuple[int, Layer, float] | None:
    """Step, layer and ratio of the largest gradient over its weights."""
    of = _gradient(look)
    ratios = [(layer, ratio) for layer in layers(vitals, look) if (ratio := layer.ratio(look, of)) is not None]
    return (look.step, *max(ratios, key=lambda pair: pair[1])) if ratios else None


def _drowned(vitals: Vitals) -> str:
    """What came of a training whose gradients stayed a thousand times the weights, in units of the loss; "" otherwise.

    Optimizers that divide by the gradient's own size keep its loss finite, and yet one example outweighs all others.
    """
    base, learnt = baseline(vitals), progress(vitals)
    ratios = [hit[2] for look in vitals.looks if (hit := _largest(vitals, look)) is not None]
    if base is None or learnt is None or learnt > 0.5 or len(ratios) < 10 or several_models(vitals):
        return ""
    if middle(ratios) <= 1000 * max(1.0, abs(base.value)):
        return ""
    return f"the loss came only {learnt:.0%} of the way to a perfect answer"
