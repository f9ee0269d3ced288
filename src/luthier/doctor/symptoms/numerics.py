"""Numbers that are none: where NaN and infinity came from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms.activations import Reading, place_of
from luthier.doctor.symptoms.facts import LossCurve, known, loss_curve, middle, node_of
from luthier.doctor.symptoms.layers import MULTIPLYING, names
from luthier.doctor.vitals import Argument, Look, Node, Stats, Vitals

_RISKS = {
    "log": "log of 0",
    "log2": "log of 0",
    "log10": "log of 0",
    "sqrt": "sqrt at 0, whose slope is infinite",
    "rsqrt": "rsqrt at 0",
    "div": "a division by 0",
    "true_divide": "a division by 0",
    "reciprocal": "a division by 0",
    "exp": "exp of a large number",
    "pow": "a power with no value or slope there",
    "norm": "the norm of a zero vector, whose slope is not defined",
    "acos": "acos at the edge of its range",
    "asin": "asin at the edge of its range",
    "atanh": "atanh at the edge of its range",
}
_FRAGILE = {"softmax", "log_softmax", "where", "mul", "sub", "prod", "std", "var", "cosh", "sinh", "tan", "logsumexp"}
_LARGEST_EXP = 88.0  # exp of more overflows float32


def nan_inf(vitals: Vitals) -> list[Finding] | NotSeen:
    """Loss, weights or gradients became NaN or infinite; a step that GradScaler skipped is none."""
    if not vitals.looks and not vitals.steps.loss:
        return NotSeen("no training step was seen")
    curve = loss_curve(vitals)
    step, what = _first_sick(vitals, curve)
    if step is None:
        return []
    origin = _origin(vitals, step)
    risk = None if origin else _risk(vitals, step)
    grown = _grown(vitals, curve)
    evidence = [f"step {step}: {what}"]
    if origin is not None:
        evidence.append(origin[1])
    if risk is not None:
        evidence.append(risk[1])
    evidence += grown
    where, how, certainty = _verdict(origin, risk, grown)
    return [
        Finding(
            "nan_inf",
            "critical",
            f"From step {step} on {what}{how}.",
            tuple(evidence),
            where,
            0 if step <= 1 else step,
            certainty,
            {"diverged": certainty < 0.8, "operation": (origin or risk or ("", "", ""))[2]},
        )
    ]


def _verdict(
    origin: tuple[str, str, str] | None, risk: tuple[str, str, str] | None, grown: Sequence[str]
) -> tuple[tuple[str, ...], str, float]:
    """Where it began, the end of the sentence that says why, and how certain that is."""
    if origin is not None and (origin[2] in _RISKS or origin[2] in _FRAGILE) and not grown:
        return (origin[0],), f": {origin[2]} at {origin[0]} made it from finite numbers", 1.0
    if origin is not None:
        certainty = 0.8 if origin[2] in _RISKS else 0.6
        return (origin[0],), f": numbers grew until {origin[2]} at {origin[0]} overflowed", certainty
    if grown:
        return (), ", after the numbers had grown without bound", 0.6
    if risk is not None:
        return (risk[0],), f", most likely from {_RISKS[risk[2]]} at {risk[0]}", 0.8
    return (), " at once: nothing had grown before", 0.8


def _first_sick(vitals: Vitals, curve: LossCurve | None) -> tuple[int | None, str]:
    """First step with something that is not finite, and what."""
    found: list[tuple[int, int, str]] = []
    if curve is not None and curve.lost_at is not None:
        found.append((curve.lost_at, 0, "the loss is not finite"))
    skipped = {event.step for event in vitals.events if event.name == "step_skipped"}
    for look in vitals.looks:
        if any(not math.isfinite(value) for value in look.weight if value is not None):
            found.append((look.step, 1, "weights are not finite"))
        if any((share or 0.0) > 0 for share in look.grad_nonfinite) and not skipped & {look.step, look.step + 1}:
            scaled = any(event.name == "step_skipped" for event in vitals.events)
            if not scaled:
                found.append((look.step, 2, f"gradients are not finite ({_sick_gradients(vitals, look)})"))
        for index in look.roots:
            node = look.nodes[index] if 0 <= index < len(look.nodes) else None
            if node is not None and _nonfinite(node.stats) and look.step not in skipped:
                found.append((look.step, 0, "the loss is not finite"))
    if not found and curve is None:
        losses = [(step, loss) for step, loss in zip(vitals.steps.step, vitals.steps.loss, strict=False)]
        found += [(step, 0, "the loss is not finite") for step, loss in losses if math.isinf(loss)]
    return (min(found)[0], min(found)[2]) if found else (None, "")


def _sick_gradients(vitals: Vitals, look: Look) -> str:
    parameters = vitals.anatomies[-1].parameters if vitals.anatomies else ()
    sick = [i for i, share in enumerate(look.grad_nonfinite) if (share or 0.0) > 0]
    return names([parameters[i].name for i in sick if i < len(parameters)])


def _nonfinite(stats: Stats | None) -> bool:
    return stats is not None and (stats.nonfinite or 0.0) > 0


def _origin(vitals: Vitals, step: int) -> tuple[str, str, str] | None:
    """(place, evidence, operation) of the first operation that made non-finite numbers from finite ones.

    Walks back from the loss along non-finite arguments; masks of -inf that a softmax turns finite are so left aside.
    """
    for look in vitals.looks:
        if look.step < step - 1:
            continue
        roots = [look.nodes[i] for i in look.roots if 0 <= i < len(look.nodes) and _nonfinite(look.nodes[i].stats)]
        for root in roots:
            node = _walk(look, root)
            given = [argument for argument in node.arguments if argument.source.startswith(("param:", "buffer:", "in"))]
            if any(_nonfinite(argument.stats) for argument in given) or _sick_weights(look):
                return None
            place = _named(look, node)
            numbers = _given(look, node)
            return place, f"step {look.step}: {node.op} at {place}, given {numbers}, put out non-finite values", node.op
        if look.step > step:
            break
    return None


def _sick_weights(look: Look) -> bool:
    return any(not math.isfinite(value) for value in look.weight if value is not None)


def _walk(look: Look, node: Node) -> Node:
    """The earliest node behind this one whose output is not finite while what it was given is."""
    for _ in range(len(look.nodes)):
        sick = [earlier for argument in node.arguments if (earlier := _sick(look, argument)) is not None]
        if not sick:
            return node
        softened = node.op == "softmax"  # a row that is masked as a whole: the softmax is at fault
        if softened:
            return node
        node = min(sick, key=lambda item: item.index)
    return node


def _sick(look: Look, argument: Argument) -> Node | None:
    """The node with non-finite numbers that an argument comes from, through views (which carry no numbers)."""
    source = argument.source
    for _ in range(20):
        node = node_of(look, source)
        if node is None:
            return None
        if node.stats is not None:
            return node if _nonfinite(node.stats) else None
        if not node.arguments:
            return None
        source = node.arguments[0].source
    return None


def _named(look: Look, node: Node) -> str:
    if node.module is None:
        return f"the loss ({node.op})"
    return place_of(Reading(look, node))


def _given(look: Look, node: Node) -> str:
    """Range of what an operation was given."""
    ranges = []
    for argument in node.arguments:
        source = node_of(look, argument.source)
        stats = argument.stats or (source.stats if source is not None else None)
        if stats is not None and stats.min is not None and stats.max is not None:
            ranges.append(f"{stats.min:.3g} to {stats.max:.3g}")
    return " and ".join(ranges) or "finite numbers"


def _risk(vitals: Vitals, step: int) -> tuple[str, str, str] | None:
    """The operation that came closest to the edge of its domain at a look before the fall."""
    for look in reversed([look for look in vitals.looks if look.step <= step]):
        for node in look.nodes:
            if node.op in _RISKS and (told := _edge(look, node)):
                place = _named(look, node)
                return place, f"step {look.step}: {node.op} at {place} was given {told}", node.op
    return None


def _edge(look: Look, node: Node) -> str:
    """What brings this operation to the edge of its domain; "" when it is far from it."""
    position = 1 if node.op in ("div", "true_divide") and len(node.arguments) > 1 else 0
    if position >= len(node.arguments):
        return ""
    source = node_of(look, node.arguments[position].source)
    stats = node.arguments[position].stats or (source.stats if source is not None else None)
    if stats is None or stats.min is None or stats.max is None:
        return ""
    if node.op == "exp":
        return f"up to {stats.max:.3g}" if stats.max > 0.5 * _LARGEST_EXP else ""
    if node.op in ("acos", "asin", "atanh"):
        return f"{stats.min:.3g} to {stats.max:.3g}" if max(-stats.min, stats.max) > 1 - 1e-6 else ""
    if node.op == "pow" and float(node.attrs.get("exponent") or 2) >= 1:
        return ""
    if node.op == "div" and len(node.arguments) < 2:
        return ""
    near = stats.min <= 1e-12 and (node.op not in ("div", "true_divide") or stats.max >= -1e-12)
    if node.op in ("norm",) and node.stats is not None:
        near = (node.stats.min or 0.0) <= 1e-12
    zero = (stats.zero or 0.0) > 0 or abs(stats.min) <= 1e-12 or stats.min < 0
    return f"{stats.min:.3g} to {stats.max:.3g}" if near and zero else ""


def _grown(vitals: Vitals, curve: LossCurve | None) -> list[str]:
    """Signs that losses, weights or activations grew without bound before they were lost."""
    told = []
    if curve is not None and max(curve.values) > 10 * max(abs(curve.start), 1e-12):
        told.append(f"the loss grew from {curve.start:.3g} to {max(curve.values):.3g} before")
    weights = [(look.step, max(known(look.weight), default=0.0)) for look in vitals.looks]
    weights = [pair for pair in weights if pair[1] > 0]
    if len(weights) > 1 and max(weight for _, weight in weights) > 10 * weights[0][1]:
        told.append(f"the largest weight norm grew from {weights[0][1]:.3g} to {max(w for _, w in weights):.3g}")
    spread = [middle(list(_spreads(look)), 0.0) for look in vitals.looks if look.nodes]
    if len(spread) > 1 and spread[0] > 0 and max(spread) > 100 * spread[0]:
        told.append(f"activations grew {max(spread) / spread[0]:.0e} times")
    return told


def _spreads(look: Look) -> Iterable[float | None]:
    return (node.stats.std for node in look.nodes if node.stats is not None and node.op in MULTIPLYING)
