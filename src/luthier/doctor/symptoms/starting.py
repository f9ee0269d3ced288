"""Units out of their working range before any weight moved: on a flat part, behind shut gates, dead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from luthier.doctor.symptoms.activations import dead_at_first, place_of, readings
from luthier.doctor.symptoms.facts import node_of
from luthier.doctor.symptoms.layers import ACTIVATIONS, GATED, RECURRENT, SQUASHING, Layer, layers, source_of
from luthier.doctor.vitals import Look, Node, Parameter, Stats, Vitals

_FLAT = 4.0
"""Beyond it, on either side, a sigmoid is flat."""


def stuck_at_start(vitals: Vitals) -> str:
    """Squashing units, or the softmax of an attention, on their flat parts."""
    flat = [
        (series[0].stats.flat or 0.0, place_of(series[0]))
        for series in readings(vitals, _squashes).values()
        if series[0].look.step == 0
    ]
    worst = max(flat, default=(0.0, ""))
    return f"step 0: {worst[0]:.0%} of {worst[1]} lies on the flat part" if worst[0] > 0.5 else ""


def _squashes(node: Node) -> bool:
    """Of two entries a softmax has one near 1 easily."""
    return node.op in SQUASHING | RECURRENT or (node.op == "softmax" and node.shape[-1:] > (2,))


def dead_at_start(vitals: Vitals) -> str:
    """Units that put out zero for every example."""
    dead = [
        (dead_at_first(series), place_of(series[0]))
        for series in readings(vitals, lambda node: node.op in ACTIVATIONS).values()
        if series[0].look.step == 0
    ]
    worst = max(dead, default=(0.0, ""))
    return f"{worst[0]:.0%} of the units of {worst[1]} are dead from the start" if worst[0] > 0.5 else ""


def gates_at_start(vitals: Vitals, look: Look) -> str:
    """Gates that nothing shows (they are computed within one operation), judged by the sums that they are given."""
    held = {item.name: item for item in vitals.anatomies[0].parameters} if vitals.anatomies else {}
    chain = layers(vitals, look)
    for layer in chain:
        if layer.node is None or layer.node.op not in GATED or "weight_ih" not in layer.name:
            continue
        about, size = _sums(look, layer, layer.node, held)
        share = sum(math.erfc((_FLAT + side * about) / (size * math.sqrt(2))) for side in (-1, 1)) / 2
        if share > 0.5:
            return f"step 0: about {share:.0%} of the gates of {layer.place} lie on the flat part"
    return ""


def _sums(look: Look, layer: Layer, node: Node, held: Mapping[str, Parameter]) -> tuple[float, float]:
    """Mean and standard deviation over units and examples: of what comes in, of the state (the output), of biases."""
    given = _given(look, node)
    back = held.get(layer.name.replace("weight_ih", "weight_hh"))
    biases = [held.get(layer.name.replace("weight_ih", kind)) for kind in ("bias_ih", "bias_hh")]
    known: Sequence[Parameter] = [item for item in biases if item is not None]
    spread = [math.sqrt(max((item.rms or 0.0) ** 2 - (item.mean or 0.0) ** 2, 0.0)) for item in known]
    parts = (_size(given) * _gain(layer.parameter), _size(node.stats) * _gain(back), *spread)
    return sum(item.mean or 0.0 for item in known), max(math.hypot(*parts), 1e-9)


def _given(look: Look, node: Node) -> Stats | None:
    """Numbers of the sequence that a layer reads: of what made it, else of the batch that it is a view of."""
    source = source_of(look, node.arguments[0].source) if node.arguments else ""
    made = node_of(look, source)
    if made is not None:
        return made.stats
    return look.inputs.stats if look.inputs is not None else None


def _size(stats: Stats | None) -> float:
    return math.hypot(stats.mean or 0.0, stats.std or 0.0) if stats is not None else 0.0


def _gain(parameter: Parameter | None) -> float:
    if parameter is None or not parameter.fan_in:
        return 0.0
    return (parameter.rms or 0.0) * math.sqrt(parameter.fan_in)
