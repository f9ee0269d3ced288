"""Layers that follow each other with nothing but linear operations between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms.paths import (
    ATTENTION,
    DROPOUTS,
    LINEAR_POOLS,
    MAX_POOLS,
    NORMS,
    PRODUCTS,
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

_PAIRWISE = names("cosine_similarity pairwise_distance cdist bilinear")
_AFFINE = names("add sub mul div neg")
_LINEAR = SAME_VALUES | DROPOUTS | NORMS | LINEAR_POOLS | names("cat stack pad embedding embedding_bag mean sum")
_PER_EXAMPLE = names("layer_norm rms_norm instance_norm group_norm normalize")
_PASSED = SAME_VALUES | DROPOUTS | NORMS | LINEAR_POOLS | MAX_POOLS


@dataclass(frozen=True)
class Pair:
    """Two layers with weights and no activation between them: together they are one linear map.

    Attributes:
        first, second: the layers. between: operations between them, last first.
    """

    first: Node
    second: Node
    between: tuple[Node, ...]

    @property
    def pooled(self) -> bool:
        """Max pooling lies between, which is a weak nonlinearity."""
        return any(node.op in MAX_POOLS for node in self.between)


def missing_nonlinearity(vitals: Vitals) -> list[Finding] | NotSeen:
    """Layers follow each other without an activation, so that they can learn no more than one of them."""
    if (missing := unseen(vitals)) is not None:
        return missing
    return gravest(item for graph in graphs(vitals) for item in _unbroken(graph))


def layers_of(graph: Graph) -> list[Node]:
    """The layers with weights on the way from the model's input to the loss (or to its output), in order."""
    ways = graph.learning or graph.upstream(graph.outputs)
    return [graph.nodes[index] for index in sorted(ways & graph.inside) if is_dense(graph.nodes[index])]


def _unbroken(graph: Graph) -> list[Finding]:
    layers = layers_of(graph)
    pairs = [pair for layer in layers if (pair := _pair(graph, layer)) is not None]
    useless = [pair for pair in pairs if not _justified(graph, pair)]
    bends = _nonlinear(graph, layers)
    if not bends and (useless or (not pairs and _follow_each_other(graph, layers))):
        return [_linear_model(graph, layers, useless)]
    plain = [
        pair for pair in useless if not (pair.pooled or _is_projection(graph, pair) or _reads_normalised(graph, pair))
    ]
    if plain:
        return [_linear_pair(graph, plain, layers)]
    return []


def _pair(graph: Graph, layer: Node) -> Pair | None:
    """The layer before this one when only linear operations (or pooling) lie between."""
    between: list[Node] = []
    node = graph.at(graph.main(layer).source)
    while node is not None and not is_dense(node) and (node.op in _PASSED or _is_affine(graph, node)):
        between.append(node)
        node = graph.at(graph.main(node).source) if node.arguments else None
    if node is None or not is_dense(node) or node.index not in graph.inside or node.index in graph.outputs:
        return None
    return Pair(node, layer, tuple(between))


def _is_affine(graph: Graph, node: Node) -> bool:
    """Arithmetic with numbers, parameters or constants; sums of two branches are not meant."""
    if node.op == "leaky_relu" and node.attrs.get("negative_slope") == 1:
        return True
    if node.op not in _AFFINE or (node.op == "div" and node.attrs.get("reversed")):
        return False
    return sum(graph.is_prediction(item) for item in node.arguments) == 1


def _justified(graph: Graph, pair: Pair) -> bool:
    """Reasons for two layers in a row: a bottleneck, factorised convolutions, attention, a branch."""
    return (
        _is_bottleneck(graph, pair)
        or _is_factorised(pair)
        or _projects_attention(graph, pair)
        or _joins_another(graph, pair)
        or _branches(graph, pair)
    )


def _is_bottleneck(graph: Graph, pair: Pair) -> bool:
    """Fewer numbers between the two than on either side: a code, or a low-rank factor."""
    middle = min(math.prod(node.shape) for node in (pair.first, *pair.between))
    return middle < min(math.prod(graph.main(pair.first).shape), math.prod(pair.second.shape))


def _is_projection(graph: Graph, pair: Pair) -> bool:
    """The first brings many numbers down to a few before the next layer: a summary, chosen to be small."""
    middle = min(math.prod(node.shape) for node in (pair.first, *pair.between))
    return 4 * middle <= math.prod(graph.main(pair.first).shape)


def _reads_normalised(graph: Graph, pair: Pair) -> bool:
    """The head reads what was normalised example by example: an embedding on a sphere, which bends the way."""
    return pair.second.index in graph.outputs and any(node.op in _PER_EXAMPLE for node in pair.between)


def _is_factorised(pair: Pair) -> bool:
    """Depthwise and pointwise convolutions, or a tall and a wide kernel."""
    for node in (pair.first, pair.second):
        kernel = node.attrs.get("kernel")
        if node.attrs.get("groups", 1) != 1 or (isinstance(kernel, (list, tuple)) and len(set(kernel)) > 1):
            return True
    return False


def _projects_attention(graph: Graph, pair: Pair) -> bool:
    """The second makes queries, keys or values, or the first follows the weighted sum of attention."""
    after = _after(graph, pair.second)
    weights = [use for node in after if node.op in SOFTMAXES for use in _after(graph, node)]  # of a learnt query
    if any(_mixes(graph, node) for node in (*after, *weights)):
        return True
    before = graph.origin(graph.main(pair.first).source, SAME_VALUES | DROPOUTS | LINEAR_POOLS)
    return before is not None and _mixes(graph, before)


def _after(graph: Graph, layer: Node) -> list[Node]:
    """What reads a layer behind changes of shape and arithmetic with constants."""
    found: list[Node] = []
    waiting = list(graph.consumers[layer.index])
    while waiting:
        node = graph.nodes[waiting.pop()]
        if node.op in SAME_VALUES | DROPOUTS or _is_affine(graph, node):
            waiting.extend(graph.consumers[node.index])
        else:
            found.append(node)
    return found


def _mixes(graph: Graph, node: Node) -> bool:
    """Products of two values that both depend on the input: attention, gates, distances."""
    if node.op in ATTENTION | _PAIRWISE or (node.op in PRODUCTS and not is_dense(node)):
        return True
    return node.op == "mul" and len({item.source for item in node.arguments if graph.is_prediction(item)}) == 2


def _joins_another(graph: Graph, pair: Pair) -> bool:
    """The second is added to a branch that does not come from before the first, such as the state of a recurrence."""
    before = graph.upstream([pair.first.index])
    for node in _after(graph, pair.second):
        others = {item.index for item in graph.producers(node) if pair.second.index not in graph.upstream([item.index])}
        if node.op == "add" and others and not others & before:
            return True
    return False


def _branches(graph: Graph, pair: Pair) -> bool:
    """What lies between is also read by something that is no layer, such as a residual connection."""
    chain = [pair.first, *pair.between]
    on_chain = {node.index for node in chain} | {pair.second.index}
    others = [
        graph.nodes[reader]
        for node in chain
        for reader in graph.consumers[node.index]
        if reader not in on_chain and reader in graph.learning
    ]
    ends = [
        end for node in others for end in ([node] if node.op not in _PASSED else graph.readers(node.index, _PASSED))
    ]
    return any(not is_dense(node) for node in ends)


def _nonlinear(graph: Graph, layers: Sequence[Node]) -> list[Node]:
    """Operations before some layer that are not linear; pooling and normalisation do not count."""
    before = graph.upstream(node.index for node in layers) & graph.inside
    marked = frozenset(node.index for node in layers)
    after_one = graph.downstream(marked)
    return [
        node
        for index in sorted(before & after_one - marked)
        if (node := graph.nodes[index]).op not in _LINEAR | MAX_POOLS and not _is_sum(graph, node)
    ] + [graph.nodes[index] for index in sorted(before) if graph.nodes[index].op in ATTENTION | names("lstm gru rnn")]


def _is_sum(graph: Graph, node: Node) -> bool:
    if node.op in ("add", "sub", "neg"):
        return True
    return _is_affine(graph, node)


def _follow_each_other(graph: Graph, layers: Sequence[Node]) -> bool:
    """Some layer depends on another one (through sums, as in a recurrence or residual net)."""
    for layer in layers:
        others = graph.upstream([layer.index]) - {layer.index}
        if any(other.index in others for other in layers):
            return True
    return False


def _linear_model(graph: Graph, layers: Sequence[Node], pairs: Sequence[Pair]) -> Finding:
    pooled = any(pair.pooled for pair in pairs)
    named = tuple(dict.fromkeys(place(node) for node in layers))
    what = "nothing but max pooling" if pooled else "no activation"
    return Finding(
        symptom="missing_nonlinearity",
        severity="warning" if pooled else "critical",
        cause=f"between the {len(layers)} layers with weights there is {what}: the model can learn hardly more than a "
        "single linear layer.",
        evidence=(f"step {graph.onset}: {_route(named)} follow each other without an activation.",),
        where=named,
        onset=0,
        certainty=0.9 if pooled else 1.0,
        numbers={"layers": len(layers)},
    )


def _linear_pair(graph: Graph, pairs: Sequence[Pair], layers: Sequence[Node]) -> Finding:
    named = tuple(dict.fromkeys(place(node) for pair in pairs for node in (pair.first, pair.second)))
    first = pairs[0]
    much = 5 * len(pairs) >= len(layers) - 1  # of a deep net one layer lost explains little
    return Finding(
        symptom="missing_nonlinearity",
        severity="warning",
        cause=f"{place(first.second)} follows {place(first.first)} without an activation between them: the two can "
        "learn no more than one of them.",
        evidence=tuple(
            f"step {graph.onset}: from {place(pair.first)} {pair.first.shape} to {place(pair.second)} "
            f"{pair.second.shape} all operations are linear."
            for pair in pairs[:3]
        ),
        where=named,
        onset=0,
        certainty=0.9 if much else 0.7,
        numbers={"layers": len(layers), "pairs": len(pairs)},
    )


def _route(named: Sequence[str]) -> str:
    return " -> ".join(named if len(named) <= 6 else [*named[:3], "...", *named[-2:]])
