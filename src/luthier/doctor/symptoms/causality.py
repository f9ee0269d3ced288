"""Sequence models that see the element they are to predict: no mask, recurrence from both ends, unshifted targets."""

from __future__ import annotations

from luthier.doctor.findings import Finding
from luthier.doctor.symptoms.layers import names
from luthier.doctor.symptoms.outcomes import read
from luthier.doctor.symptoms.paths import SAME_VALUES, Graph, graphs
from luthier.doctor.vitals import Look, Node, Vitals

_FUSED = {"multi_head_attention", "scaled_dot_product_attention"}
_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
_PRODUCTS = {"matmul", "bmm", "baddbmm", "einsum"}
_SCALING = {"div", "mul", "dropout", "to", "contiguous"}
_MOVING = {"getitem", "select", "narrow", "index_select", "split", "chunk", "unbind", "cat", "roll", "pad", "gather"}
_WHOLE = SAME_VALUES - _MOVING


def next_among_inputs(vitals: Vitals) -> Finding | None:
    """The target at every place is the input at the next one, and some operation brings it there."""
    share, same = read(vitals.data, "ahead", "share"), read(vitals.data, "ahead", "same")
    look = next((look for look in vitals.looks if look.nodes), None)
    if share is None or share < 0.99 or same is None or same > 0.9 or look is None:
        return None
    places = [node.module or node.op for node in look.nodes if _sees_later(look, node)]
    if not places:
        return None
    return Finding(
        "data_leakage",
        "critical",
        f"The targets are the inputs one place later, and {names(places)} shows every place the later ones: the "
        "network only has to copy.",
        (f"{share:.0%} of the targets equal the next input; no causal mask was seen there",),
        tuple(dict.fromkeys(places)),
        0,
        0.9,
        source="Vaswani et al. 2017, Attention is all you need, section 3.2.3",
    )


def target_as_input(vitals: Vitals) -> Finding | None:
    """The classes that the loss compares with are a further argument of the model, which answers from them unshifted.

    A first argument that is the target too is a task of its own: copying, an autoencoder.
    """
    for graph in graphs(vitals):
        for index in sorted(graph.learning):
            node = graph.nodes[index]
            if node.op not in ("cross_entropy", "nll_loss") or len(node.arguments) < 2:
                continue
            source = graph.back(node.arguments[1].source, _WHOLE)[1]
            places = _reads(graph, node, source) if source.startswith("input:") and source != "input:0" else []
            if places:
                return _told(places, source)
    return None


def _reads(graph: Graph, loss: Node, source: str) -> list[str]:
    """Layers that read an input at its own places, on a way to the answer that shifts nothing."""
    found, waiting, seen = [], [graph.at(loss.arguments[0].source)], set()
    while waiting:
        node = waiting.pop()
        if node is None or node.index in seen or node.op in _MOVING:
            continue
        seen.add(node.index)
        if node.op in ("embedding", "linear") and graph.back(node.arguments[0].source, _WHOLE)[1] == source:
            found.append(node.module or node.op)
        waiting.extend(graph.producers(node))
    return found


def _told(places: list[str], source: str) -> Finding:
    return Finding(
        "data_leakage",
        "critical",
        f"The targets themselves are given to the model, and {names(places)} reads them place by place: the network "
        "only has to copy. A decoder is given the targets shifted by one place.",
        (f"the loss compares with argument {source.removeprefix('input:')} of the model (counted from 0)",),
        tuple(dict.fromkeys(places)),
        0,
        0.9,
        source="Williams and Zipser 1989, A learning algorithm for continually running networks (teacher forcing)",
    )


def _sees_later(look: Look, node: Node) -> bool:
    if node.op in _FUSED:
        masked = node.attrs.get("masked") and not node.attrs.get("ahead")
        return not node.attrs.get("causal") and not masked and _square(look, node)
    if node.op in _RECURRENT:
        return bool(node.attrs.get("bidirectional"))
    return node.op == "softmax" and len(node.shape) >= 3 and node.shape[-1] == node.shape[-2] and _bare(look, node)


def _square(look: Look, node: Node) -> bool:
    """Attention of a sequence to itself."""
    shapes = {argument.shape for argument in node.arguments[:2]}
    return len(shapes) == 1 and look.inputs is not None and bool(set(look.inputs.shape[1:2]) & set(*shapes))


def _bare(look: Look, node: Node) -> bool:
    """The scores come from a product of queries and keys and were only scaled, or masked so that later ones show."""
    nodes = {item.index: item for item in look.nodes}
    while node.arguments and node.arguments[0].source.startswith("n"):
        above = nodes.get(int(node.arguments[0].source[1:]))
        if above is None or above.op in _PRODUCTS:
            return above is not None
        if above.op not in _SCALING and not above.attrs.get("ahead"):
            return False
        node = above
    return False
