"""Activations that grow: beyond the scale of the data in training, or from layer to layer before it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from luthier.doctor.findings import Finding, NotSeen, Severity
from luthier.doctor.symptoms import recurrences
from luthier.doctor.symptoms.activations import UNSEEN, Reading, looked_inside, place_of, readings
from luthier.doctor.symptoms.facts import is_classification, middle, node_of, progress, target_mean, target_std
from luthier.doctor.symptoms.harm import FITTED, harm
from luthier.doctor.symptoms.initial import free_gains, growth_at_start, loss_above
from luthier.doctor.symptoms.layers import ACTIVATIONS, MULTIPLYING, first_look, names
from luthier.doctor.vitals import Look, Node, Vitals

ORDINARY_GAIN = 2.0
UNLEARNT = 0.3
SCALING = {"mul", "div", "pow", "square", "exp"}


def exploding_activation(vitals: Vitals) -> list[Finding] | NotSeen:
    """Activations or logits that grow far beyond the scale of inputs and targets."""
    if not looked_inside(vitals):
        return NotSeen(UNSEEN)
    ordinary = _scale(vitals)
    sick: list[tuple[float, Reading, Reading]] = []
    for series in readings(vitals, _carries).values():
        finite = [reading for reading in series if reading.stats.std is not None and math.isfinite(reading.stats.std)]
        if not finite:
            continue
        first, last = finite[0], max(finite[-2:], key=_std)
        grown = _std(last) > 100 * max(_std(first), 1e-12) and _std(last) > 100 * ordinary
        if grown or _std(last) > 1e4 * ordinary or _std(first) > 1e4 * ordinary:
            sick.append((max(_std(last), _std(first)), first, last))
    born = compounding(vitals)
    if born is not None:
        return [born]
    return [_exploded(vitals, sick, ordinary)] if sick else []


def compounding(vitals: Vitals) -> Finding | None:
    """The weights' scale is ordinary, but what the layers (branches, time steps) make of it grows with their number."""
    look, learnt = first_look(vitals), progress(vitals)
    far = bool(loss_above(vitals, 10.0))  # nobody starts there on purpose, however well it ends
    if look is None or (learnt is not None and learnt > FITTED and not far):
        return None
    amplified = _amplified(look)
    above, growth = loss_above(vitals, 5.0), amplified or growth_at_start(look, 100.0)
    slower = "" if growth or learnt is None or (learnt > UNLEARNT and not far) else _growth_over_depth(look)
    gain = middle([gain for _, gain in free_gains(vitals, look)], 1.0)
    if not above or not (growth or slower) or gain > ORDINARY_GAIN:
        return None
    if recurrences.growing(vitals, harm(vitals)) is not None:
        return None  # for what is multiplied by itself over time they are of no ordinary size: see exploding_gradient
    grown = [place_of(series[0]) for series in readings(vitals, _carries).values() if _std(series[0]) > 30]
    return Finding(
        "exploding_activation",
        "critical" if growth else "warning",
        f"Activations grow {'in one operation' if amplified else 'with every layer, branch or time step'} although the "
        "weights are of ordinary size, until the first answers are far too large.",
        (above, growth or slower, f"rms of the weights times sqrt(fan_in): {gain:.2g} in the median")
        + ((f"layers: {names(grown)}",) if grown else ()),
        tuple(dict.fromkeys(grown))[:8],
        0,
        0.85 if growth else 0.75,
        {"gain": gain},
        source="Zhang, Dauphin and Ma, Fixup initialization, 2019",
    )


def _amplified(look: Look) -> str:
    """An operation without weights (a product with a number, a temperature) makes what it is given far larger."""
    for node in look.nodes:
        given = [made.stats for item in node.arguments if (made := node_of(look, item.source)) is not None]
        before = max((stats.std or 0.0 for stats in given if stats is not None), default=0.0)
        after = (node.stats.std or 0.0) if node.stats is not None else 0.0
        if node.op in SCALING and node.module is not None and before > 0 and after > max(30 * before, 10.0):
            return f"step 0: {node.op} (operation {node.index}) puts out {after:.3g} from {before:.3g}"
    return ""


def _growth_over_depth(look: Look) -> str:
    """What the layers put out grows tenfold or more from first to last, be it the same for all examples or not."""
    inside = [node for node in look.nodes if node.module is not None and node.op in MULTIPLYING]
    sizes = [math.hypot(node.stats.mean or 0.0, node.stats.std or 0.0) for node in inside if node.stats is not None]
    first, last = middle(sizes[:2]), middle(sizes[-3:])
    if len(sizes) < 6 or not first > 0 or last < 10 * first:
        return ""
    return f"step 0: layers put out {first:.2g} at first and {last:.2g} in the end"


def _std(reading: Reading) -> float:
    return reading.stats.std or 0.0


def _carries(node: Node) -> bool:
    return node.op in MULTIPLYING or node.op in ACTIVATIONS


def _scale(vitals: Vitals) -> float:
    """Largest of the root mean squares of inputs and targets, at least 1."""
    found = [1.0]
    for look in vitals.looks[:5]:
        stats = look.inputs.stats if look.inputs is not None else None
        if stats is not None:
            found.append(math.hypot(stats.mean or 0.0, stats.std or 0.0))
        for node in look.nodes:
            for argument in node.arguments:
                if argument.source.startswith("input:") and argument.stats is not None:
                    found.append(math.hypot(argument.stats.mean or 0.0, argument.stats.std or 0.0))
    if not is_classification(vitals):
        found.append(math.hypot(target_mean(vitals) or 0.0, target_std(vitals) or 0.0))
    return max(value for value in found if math.isfinite(value))


def _exploded(vitals: Vitals, sick: Sequence[tuple[float, Reading, Reading]], ordinary: float) -> Finding:
    largest, first, last = max(sick, key=lambda item: item[0])
    learnt = progress(vitals)
    severity: Severity = "info" if learnt is not None and learnt > FITTED else "warning"
    if largest > 1e6 * ordinary and severity == "warning":
        severity = "critical"
    born = _std(first) > 0.1 * largest and first.look.step == 0
    return Finding(
        "exploding_activation",
        severity,
        f"The activations of {place_of(last)} have a standard deviation of {largest:.2g}, "
        f"{largest / ordinary:.0e} times the scale of the data.",
        (f"step {first.look.step}: {_std(first):.3g}; step {last.look.step}: {_std(last):.3g}",),
        tuple(dict.fromkeys(place_of(item[2]) for item in sick))[:8],
        0 if born else last.look.step if first is last else _first_above(vitals, sick, ordinary),
        0.7,
        {"std": largest},
    )


def _first_above(vitals: Vitals, sick: Sequence[tuple[float, Reading, Reading]], ordinary: float) -> int:
    """First look at which a sick operation was 100 times the scale of the data."""
    modules = {item[2].node.module for item in sick}
    for look in vitals.looks:
        for node in look.nodes:
            if node.module in modules and _carries(node) and node.stats and (node.stats.std or 0.0) > 100 * ordinary:
                return look.step
    return sick[0][2].look.step
