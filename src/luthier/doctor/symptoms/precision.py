"""Numbers too coarse to learn with: updates that round away, gradients that underflow."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms.facts import known, loss_curve, middle
from luthier.doctor.symptoms.layers import is_matrix, names
from luthier.doctor.vitals import Node, Vitals

_HALF = ("float16", "bfloat16")
_NARROW = frozenset({"log", "log2", "log10", "div", "true_divide", "reciprocal", "rsqrt", "exp", "pow"})


def precision_loss(vitals: Vitals) -> list[Finding] | NotSeen:
    """Updates that round away, or gradients that underflow, because numbers are kept too coarsely."""
    if not vitals.anatomies or not vitals.looks:
        return NotSeen("no full look at parameters was taken")
    sought = (_rounded, _overflow, _out_of_range, _underflow, _unmoved, _coarse)
    found = next((finding for look_for in sought if (finding := look_for(vitals)) is not None), None)
    return [found] if found is not None else []


def _half_positions(vitals: Vitals) -> list[int]:
    """Positions of trainable parameters in half precision that the optimizer steps itself."""
    parameters = vitals.anatomies[-1].parameters
    return [i for i, item in enumerate(parameters) if item.requires_grad and item.dtype.endswith(_HALF)]


def _at(numbers: Sequence[float | None], positions: Sequence[int]) -> list[float]:
    return known([numbers[i] for i in positions if i < len(numbers)])


def _rounded(vitals: Vitals) -> Finding | None:
    half = _half_positions(vitals)
    if not half:
        return None
    parameters = vitals.anatomies[-1].parameters
    unmoved = middle([middle(_at(look.unmoved, half)) for look in vitals.looks])
    kind = parameters[half[0]].dtype.removeprefix("torch.")
    severe = unmoved > 0.3
    return Finding(
        "precision_loss",
        "critical" if unmoved > 0.8 else "warning",
        f"The weights are kept in {kind}: "
        + (
            f"{unmoved:.0%} of their elements do not change in a step, the updates round away."
            if severe
            else "small updates round away."
        ),
        (f"{len(half)} of {len(parameters)} parameters are {kind}; median share of elements unmoved: {unmoved:.0%}",),
        tuple(parameters[i].name for i in half[:4]),
        0,
        0.9 if severe else 0.6,
        {"dtype": kind, "unmoved": unmoved},
        source="Micikevicius et al., Mixed precision training, 2018",
    )


def _underflow(vitals: Vitals) -> Finding | None:
    """Gradients that are zero because half-precision activations carried them, without loss scaling."""
    if any(event.name == "step_skipped" for event in vitals.events):
        return None
    parameters = vitals.anatomies[-1].parameters
    matrices = [i for i, item in enumerate(parameters) if is_matrix(item)]
    looks = [
        look
        for look in vitals.looks
        if any(node.dtype.endswith("float16") and not node.dtype.endswith("bfloat16") for node in look.nodes)
    ]
    zeros = [middle(_at(look.grad_zero, matrices)) for look in looks]
    if len(zeros) < 2 or middle(zeros) < 0.5:
        return None
    return Finding(
        "precision_loss",
        "warning",
        f"{middle(zeros):.0%} of the gradient's elements are zero: they are too small for float16 and underflow "
        "without loss scaling.",
        (f"seen at {len(looks)} looks with float16 activations",),
        (),
        looks[0].step,
        0.7,
        {"grad_zero": middle(zeros), "dtype": "float16"},
        source="Micikevicius et al., Mixed precision training, 2018",
    )


def _overflow(vitals: Vitals) -> Finding | None:
    """Activations or losses beyond 65504, the largest number of float16, without a scaler that backs off."""
    if any(event.name == "step_skipped" for event in vitals.events):
        return None
    for look in vitals.looks:
        for node in look.nodes:
            sick = node.stats is not None and (node.stats.nonfinite or 0.0) > 0
            given = [argument.dtype for argument in node.arguments]
            if sick and node.dtype.endswith("float16") and not node.dtype.endswith("bfloat16") and given:
                return Finding(
                    "precision_loss",
                    "critical",
                    f"{node.op} in {node.module or 'the loss'} overflows in float16, whose largest number is 65504.",
                    (f"step {look.step}: non-finite values in float16",),
                    (node.module,) if node.module else (),
                    look.step,
                    0.8,
                    {"dtype": "float16"},
                    source="Micikevicius et al., Mixed precision training, 2018",
                )
            if sick:
                return None
    return None


def _out_of_range(vitals: Vitals) -> Finding | None:
    """A loss that was lost at once though float16 takes a logarithm or divides: it knows nothing between 0 and 6e-8."""
    curve = loss_curve(vitals)
    if curve is None or curve.lost_at is None or max(curve.values) > 10 * abs(curve.start):
        return None
    if any(event.name == "step_skipped" for event in vitals.events):
        return None
    for look in vitals.looks:
        for node in look.nodes:
            if node.op in _NARROW and node.arguments and node.arguments[0].dtype.endswith("float16"):
                if node.arguments[0].dtype.endswith("bfloat16"):
                    continue  # as wide as float32
                return _lost(node, curve.lost_at)
    return None


def _lost(node: Node, step: int) -> Finding:
    place = node.module or "the loss"
    return Finding(
        "precision_loss",
        "critical",
        f"{node.op} in {place} works in float16, where numbers below 6e-8 are 0 and above 65504 infinite: from step "
        f"{step} on the loss is not finite.",
        (f"step {step}: the loss is not finite, and nothing had grown before",),
        (node.module,) if node.module else (),
        step,
        0.85,
        {"dtype": "float16"},
        source="Micikevicius et al., Mixed precision training, 2018",
    )


def _unmoved(vitals: Vitals) -> Finding | None:
    """Weights in single precision so large that the updates are below their resolution (6e-8 of the weight)."""
    parameters = vitals.anatomies[-1].parameters
    sick = []
    for i, item in enumerate(parameters):
        shares = known([look.unmoved[i] if i < len(look.unmoved) else None for look in vitals.looks])
        size = item.rms or 0.0
        if len(shares) >= 3 and middle(shares) > 0.5 and size > 100 and item.requires_grad:
            sick.append((item.name, size, middle(shares)))
    if not sick:
        return None
    name, size, share = sick[0]
    return Finding(
        "precision_loss",
        "warning",
        f"{name} is so large ({size:.2g}) that {share:.0%} of its elements do not change in a step: "
        "updates below 6e-8 of a weight round away in float32.",
        (f"parameters hit: {names([item[0] for item in sick])}",),
        tuple(item[0] for item in sick),
        0,
        0.8,
        {"unmoved": share},
    )


def _coarse(vitals: Vitals) -> Finding | None:
    """Inputs whose differences are near the resolution of their type: a large offset, or half precision."""
    for look in vitals.looks[:3]:
        stats = look.inputs.stats if look.inputs is not None else None
        if look.inputs is None or stats is None or not stats.std or stats.mean is None or stats.integral:
            continue
        kind = look.inputs.dtype.removeprefix("torch.")
        resolution = {"float32": 6e-8, "float16": 5e-4, "bfloat16": 4e-3}.get(kind)
        if resolution is not None and stats.std < 30 * resolution * abs(stats.mean):
            return Finding(
                "precision_loss",
                "warning",
                f"The inputs lie around {stats.mean:.4g} and differ by only {stats.std:.2g}, "
                f"hardly more than {kind} can tell apart there.",
                (f"step {look.step}: mean {stats.mean:.6g}, standard deviation {stats.std:.3g}",),
                (),
                0,
                0.8,
                {"mean": stats.mean, "std": stats.std, "dtype": kind},
            )
    return None
