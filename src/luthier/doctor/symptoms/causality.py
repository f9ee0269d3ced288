"""Sequence models that predict the next element and see it: attention without a mask, recurrence from both ends."""

from __future__ import annotations

from luthier.doctor.findings import Finding
from luthier.doctor.symptoms.layers import names
from luthier.doctor.symptoms.outcomes import read
from luthier.doctor.vitals import Look, Node, Vitals

_FUSED = {"multi_head_attention", "scaled_dot_product_attention"}
_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
_PRODUCTS = {"matmul", "bmm", "baddbmm", "einsum"}
_SCALING = {"div", "mul", "dropout", "to", "contiguous"}


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


def _sees_later(look: Look, node: Node) -> bool:
    if node.op in _FUSED:
        return not node.attrs.get("causal") and not node.attrs.get("masked") and _square(look, node)
    if node.op in _RECURRENT:
        return bool(node.attrs.get("bidirectional"))
    return node.op == "softmax" and len(node.shape) >= 3 and node.shape[-1] == node.shape[-2] and _bare(look, node)


def _square(look: Look, node: Node) -> bool:
    """Attention of a sequence to itself."""
    shapes = {argument.shape for argument in node.arguments[:2]}
    return len(shapes) == 1 and look.inputs is not None and bool(set(look.inputs.shape[1:2]) & set(*shapes))


def _bare(look: Look, node: Node) -> bool:
    """The scores come from a product of queries and keys and were only scaled: nothing masked them."""
    nodes = {item.index: item for item in look.nodes}
    while node.arguments and node.arguments[0].source.startswith("n"):
        above = nodes.get(int(node.arguments[0].source[1:]))
        if above is None or above.op in _PRODUCTS:
            return above is not None
        if above.op not in _SCALING:
            return False
        node = above
    return False
