"""Activations that do not fit their place."""

from __future__ import annotations

import math
from collections.abc import Sequence

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms.graph import layers_of
from luthier.doctor.symptoms.objectives import LOSSES, REGRESSION
from luthier.doctor.symptoms.paths import (
    DROPOUTS,
    LINEAR_POOLS,
    MAX_POOLS,
    NORMS,
    SAME_VALUES,
    SOFTMAXES,
    Graph,
    graphs,
    gravest,
    is_dense,
    names,
    place,
    unseen,
)
from luthier.doctor.vitals import Node, Vitals

_PASSED = SAME_VALUES | DROPOUTS | NORMS | LINEAR_POOLS | MAX_POOLS
_GROWING = names("exp expm1 sinh cosh tan")
_POWERS = names("square pow mul")
_TAME, _WILD = 1e2, 1e6
"""What an exponential of an ordinary layer puts out at most (e^5), and what none does."""
_STEPS = names("sign round floor ceil trunc heaviside")
_SQUASHING = names("tanh sigmoid hardtanh hardsigmoid softsign") | SOFTMAXES


def bad_activation(vitals: Vitals) -> list[Finding] | NotSeen:
    """An activation that does not fit its place: it explodes, has no gradient, fades with depth, or loses the sign."""
    if (missing := unseen(vitals)) is not None:
        return missing
    found: list[Finding] = []
    for graph in graphs(vitals):
        hidden = [node for node in _candidates(graph) if _is_hidden(graph, node)]
        found.extend(_unbounded(graph, hidden) or _feeds_itself(graph))
        found.extend(_stepwise(graph))
        found.extend(_hidden_softmax(graph, hidden))
        found.extend(_sigmoid_stack(vitals, graph, hidden))
        found.extend(_one_sided(graph))
    return gravest(found)


def _candidates(graph: Graph) -> list[Node]:
    return [graph.nodes[index] for index in sorted(graph.learning & graph.inside) if graph.nodes[index].arguments]


def _is_hidden(graph: Graph, node: Node) -> bool:
    """It works on the output of a layer, and only layers read it."""
    if is_dense(node) or node.op in _PASSED:
        return False
    after = graph.readers(node.index, _PASSED)
    return bool(after) and all(is_dense(reader) for reader in after) and _from_layers(graph, graph.main(node).source)


def _from_layers(graph: Graph, source: str, depth: int = 2) -> bool:
    """It is the output of a layer, or a sum of such (as in a recurrence)."""
    before = graph.origin(source, SAME_VALUES | DROPOUTS | NORMS)
    if before is not None and before.op == "add" and depth:
        parts = [item.source for item in before.arguments if graph.is_prediction(item)]
        return bool(parts) and all(_from_layers(graph, part, depth - 1) for part in parts)
    return before is not None and is_dense(before)


def _misfit(
    graph: Graph, nodes: Sequence[Node], cause: str, evidence: str, severity: str, certainty: float
) -> list[Finding]:
    return [
        Finding(
            symptom="bad_activation",
            severity="critical" if severity == "critical" else "warning" if severity == "warning" else "info",
            cause=cause,
            evidence=(f"step {graph.onset}: {evidence}",),
            where=tuple(dict.fromkeys(place(node) for node in nodes)),
            onset=0,
            certainty=certainty,
            numbers={"op": nodes[0].op, "count": len(nodes)},
        )
    ]


def _unbounded(graph: Graph, hidden: Sequence[Node]) -> list[Finding]:
    growing = [node for node in hidden if node.op in _GROWING]
    powers = [node for node in hidden if node.op in _POWERS and _is_power(node)]
    if growing:
        cause = f"{growing[0].op} is used as an activation between layers: its output and gradient grow exponentially."
        return _misfit(graph, growing, cause, _largest(graph, growing), "critical", 1.0)
    if powers:
        cause = (
            "a power is used as an activation between layers: its slope grows with the input, so that activations and "
        )
        return _misfit(graph, powers, cause + "gradients explode or fade.", _largest(graph, powers), "warning", 0.9)
    return []


def _feeds_itself(graph: Graph) -> list[Finding]:
    """Exponentials of layers' outputs that multiply what later ones read: ordinary at first, then beyond all bounds.

    Those that are divided by their sum (a softmax) stay bounded, and are left out.
    """
    growing = [node for node in _candidates(graph) if node.op in _GROWING and _multiplies(graph, node)]
    first = next((node.stats for node in growing if node.stats is not None), None)
    wild = [node for node in growing[1:] if node.stats is not None and (node.stats.nonfinite or _peak(node) > _WILD)]
    if graph.onset > 0 or first is None or first.nonfinite or _peak(growing[0]) > _TAME or not wild:
        return []
    cause = f"{growing[0].op} multiplies the signal inside of the model, unbounded: each one feeds the next, and they "
    cause += "grow beyond all bounds before any weight has moved."
    text = f"the first {growing[0].op} puts out {_peak(growing[0]):.3g} at most, a later one {_peak(wild[0]):.3g}."
    return _misfit(graph, growing, cause, text, "critical", 0.95)


def _multiplies(graph: Graph, node: Node) -> bool:
    readers = graph.readers(node.index, SAME_VALUES)
    return _from_layers(graph, graph.main(node).source) and bool(readers) and all(r.op == "mul" for r in readers)


def _peak(node: Node) -> float:
    return abs(node.stats.max or 0.0) if node.stats is not None else 0.0


def _is_power(node: Node) -> bool:
    if node.op == "mul":
        return len(node.arguments) == 2 and node.arguments[0].source == node.arguments[1].source
    exponent = node.attrs.get("exponent", node.attrs.get("scalar", 2))
    return isinstance(exponent, (int, float)) and exponent >= 2


def _largest(graph: Graph, nodes: Sequence[Node]) -> str:
    values = [item.max for node in nodes for item in graph.numbers(f"n{node.index}") if item.max is not None]
    reached = f", its output reached {max(values):.3g}" if values else ""
    return f"{nodes[0].op} stands between layers at {len(nodes)} places{reached}."


def _stepwise(graph: Graph) -> list[Finding]:
    nodes = [node for node in _candidates(graph) if node.op in _STEPS]
    if not nodes:
        return []
    cause = f"{nodes[0].op} lies on the way to the loss: its gradient is zero everywhere, so nothing before it learns."
    return _misfit(graph, nodes, cause, f"{nodes[0].op} at {len(nodes)} places.", "critical", 1.0)


def _hidden_softmax(graph: Graph, hidden: Sequence[Node]) -> list[Finding]:
    nodes = [node for node in hidden if node.op in SOFTMAXES]
    if not nodes:
        return []
    cause = "softmax is used as an activation between layers: its outputs share a sum of 1, so signal and gradient get "
    return _misfit(graph, nodes, cause + "small.", f"softmax at {len(nodes)} places.", "warning", 0.9)


def _sigmoid_stack(vitals: Vitals, graph: Graph, hidden: Sequence[Node]) -> list[Finding]:
    """Each sigmoid shrinks the gradient to a quarter at most, so that it fades over three and more."""
    nodes = [node for node in hidden if node.op in ("sigmoid", "hardsigmoid")]
    normed = any(graph.nodes[index].op in NORMS for index in graph.inside)
    if len(nodes) < 3 or len(nodes) < 0.75 * len(hidden):
        return []
    shrink = _shrink(vitals, graph)
    faded = shrink is not None and shrink < 0.05
    severity = "critical" if faded and len(nodes) >= 4 else "warning" if faded else "info"
    cause = f"{len(nodes)} sigmoid layers follow each other: each passes at most a quarter of the gradient on, so the "
    cause += "first layers hardly learn."
    text = f"{len(nodes)} hidden sigmoids" + (" with normalisation" if normed else "")
    if shrink is not None:
        text += f", gradient per weight of the first layer {shrink:.2g} of the last layer's"
    return _misfit(graph, nodes, cause, text + ".", severity, 0.95 if faded else 0.6)


def _shrink(vitals: Vitals, graph: Graph) -> float | None:
    """Gradient per weight (root mean square) of the first layer, relative to the last one's, at the first look."""
    if vitals.anatomy is None or not graph.looks:
        return None
    look = graph.looks[0]
    sizes = {item.name: (position, item.numel) for position, item in enumerate(vitals.anatomies[0].parameters)}
    values = []
    for layer in layers_of(graph):
        for argument in layer.arguments[1:2]:
            position, numel = sizes.get(argument.source.removeprefix("param:"), (-1, 0))
            if 0 <= position < len(look.grad) and look.grad[position] is not None and numel:
                values.append(float(look.grad[position] or 0.0) / math.sqrt(numel))
    return values[0] / values[-1] if len(values) >= 2 and values[-1] > 0 else None


def _ends_in_classes(graph: Graph, node: Node) -> bool:
    """It is the head of a classifier: `output_range_mismatch` tells."""
    ends = graph.readers(node.index, SAME_VALUES | names("log clamp"))
    return not ends or any(end.op in LOSSES - REGRESSION for end in ends)


def _one_sided(graph: Graph) -> list[Finding]:
    """ReLU right before an activation that needs both signs, inside of the model."""
    nodes = []
    for node in _candidates(graph):
        origin = graph.origin(node.arguments[0].source, SAME_VALUES) if node.op in _SQUASHING else None
        if origin is not None and origin.op == "relu" and not _ends_in_classes(graph, node):
            nodes.append(node)
    if not nodes:
        return []
    cause = (
        f"ReLU stands right before {nodes[0].op}, which then sees no negative values and gives only half of its range."
    )
    return _misfit(graph, nodes, cause, f"relu -> {nodes[0].op} at {len(nodes)} places.", "warning", 0.8)
