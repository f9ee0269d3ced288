"""An answer that is (nearly) the same for every example, and the operation that makes it so."""

from __future__ import annotations

import math

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms.activations import Reading, place_of
from luthier.doctor.symptoms.facts import (
    is_classification,
    loss_curve,
    middle,
    node_of,
    progress,
    target_mean,
    target_std,
)
from luthier.doctor.symptoms.layers import ACTIVATIONS, MULTIPLYING
from luthier.doctor.vitals import Look, Node, Vitals

_SAME = 1e-6
"""Spread between examples that rounding alone leaves."""


def constant_output(vitals: Vitals) -> list[Finding] | NotSeen:
    """The net answers (nearly) the same to every example although the examples differ."""
    looks = [look for look in vitals.looks if look.outputs and look.step > 0]
    spreads = [(look, spread) for look in looks if (spread := _spread(look)) is not None]
    if len(spreads) < 3:
        return NotSeen("the model's outputs were seen at fewer than 3 looks: train for more steps")
    limit = _limit(vitals)
    late = spreads[-max(len(spreads) // 3, 3) :]
    learnt = progress(vitals)
    if _same_inputs(vitals):
        return [_without_information(vitals)]
    if any(spread >= limit for _, spread in late) or (learnt is not None and learnt > 0.3):
        return []
    inputs = middle([_input_spread(look) for look, _ in late], 1.0)
    if inputs < 1e-3:
        return []
    first = next(i for i in range(len(spreads)) if all(spread < limit for _, spread in spreads[i:]))
    onset = 0 if first == 0 else spreads[first][0].step
    value = middle([spread for _, spread in late])
    lost = _loses(vitals.looks[0]) if vitals.looks[0].step == 0 else None
    if lost is not None and value < _SAME:
        return [_lost(vitals.looks[0], lost)]
    curve = loss_curve(vitals)
    level = f"; the loss is {curve.end:.3g}" if curve is not None else ""
    return [
        Finding(
            "constant_output",
            "critical" if value < 1e-4 and len(spreads) >= 5 else "warning",
            f"The outputs differ between examples by only {value:.1e} of their size: every input gets the same answer.",
            (f"at {len(late)} looks up to step {late[-1][0].step}, while the inputs differ by {inputs:.2g}{level}",),
            (),
            onset,
            0.8,
            {"across": value},
        )
    ]


def _loses(look: Look) -> Node | None:
    """The operation that makes all answers alike by itself (no weights, no units that died): all behind it is lost."""
    node = look.nodes[look.outputs[0]] if look.outputs and look.outputs[0] < len(look.nodes) else None
    while node is not None and node.module is not None:
        given = [made for item in node.arguments if (made := node_of(look, item.source)) is not None]
        if node.stats is not None:
            if not _alike(node):
                return None
            if any(_differs(look, made) for made in given):
                return node if node.op not in MULTIPLYING | ACTIVATIONS | {"softmax", "embedding"} else None
        node = given[0] if given else None
    return None


def _alike(node: Node) -> bool:
    across = node.stats.across if node.stats is not None else None
    return node.shape[:1] == (1,) if across is None else across < _SAME


def _differs(look: Look, node: Node) -> bool:
    """Its numbers, or those of what it is a view of, differ between examples."""
    while node.stats is None and node.arguments and (made := node_of(look, node.arguments[0].source)) is not None:
        node = made
    return node.stats is not None and (node.stats.across or 0.0) > 1e-3


def _lost(look: Look, node: Node) -> Finding:
    place = place_of(Reading(look, node))
    return Finding(
        "constant_output",
        "critical",
        f"{place} ({node.op}, result of shape {node.shape}) puts out the same for every example, whatever it is given: "
        "nothing in front of it can be learnt.",
        ("from step 0 on; what it is given differs between examples",),
        (place,),
        0,
        0.95,
        {"lost": True},
    )


def _without_information(vitals: Vitals) -> Finding:
    n = int(vitals.data["examples"])
    return Finding(
        "constant_output",
        "critical",
        "Every example that the model is given is the same, so it can only give one answer: the inputs are lost before "
        "the model (integer division, a wrong column, a vocabulary that knows no token).",
        (f"{n} examples of training batches were compared: 1 distinct",),
        (),
        0,
        0.95,
        {"distinct": 1},
    )


def _same_inputs(vitals: Vitals) -> bool:
    """Every example that the model was given is the same."""
    return int(vitals.data.get("examples") or 0) >= 32 and int(vitals.data.get("distinct") or 0) == 1


def _spread(look: Look) -> float | None:
    """Spread over the batch of the first output that has one."""
    for index in look.outputs:
        node = look.nodes[index] if 0 <= index < len(look.nodes) else None
        for _ in range(10):  # views carry no numbers: what they view does
            if node is None or node.stats is not None or not node.arguments:
                break
            node = node_of(look, node.arguments[0].source)
        if node is not None and node.stats is not None and node.stats.across is not None:
            return None if node.stats.nonfinite else node.stats.across
    return None


def _input_spread(look: Look) -> float | None:
    stats = look.inputs.stats if look.inputs is not None else None
    return stats.across if stats is not None else None


def _limit(vitals: Vitals) -> float:
    """Below this spread outputs count as constant: 1e-3, or a twentieth of what the targets need if that is less."""
    mean, std = target_mean(vitals), target_std(vitals)
    if is_classification(vitals) or mean is None or std is None or std == 0:
        return 1e-3
    return min(1e-2, 0.05 * std / math.hypot(mean, std))
