"""Softmax over the dimension that is summed next, and not over the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms.objectives import LOSSES
from luthier.doctor.symptoms.paths import (
    DROPOUTS,
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

_UNCHANGED = DROPOUTS | names("to contiguous clone masked_fill nan_to_num clamp")
_HEAD = SAME_VALUES | names("log clamp add neg gather mean sum mul")
_DEEPEST = 12


@dataclass(frozen=True)
class _Use:
    """What a softmax output is summed over: dimensions of the softmax, and by which operation."""

    dims: frozenset[int]
    by: Node
    product: bool


def softmax_wrong_dim(vitals: Vitals) -> list[Finding] | NotSeen:
    """Softmax over the batch, over a dimension of size 1, or over another one than attention sums over."""
    if (missing := unseen(vitals)) is not None:
        return missing
    found: list[Finding] = []
    for graph in graphs(vitals):
        ways = graph.learning | graph.upstream(graph.outputs)
        for index in sorted(ways):
            node = graph.nodes[index]
            if node.op in SOFTMAXES | {"log_softmax"} and node.arguments and node.shape:
                found.extend(_examined(graph, node))
            elif node.op == "multi_head_attention":
                found.extend(_over_batch(graph, node))
    return gravest(found)


def chosen_dim(node: Node) -> int:
    """Dimension that a softmax runs over, from 0; without one torch takes 0 for 0, 1 or 3 dimensions, else 1."""
    n = len(node.shape)
    dim = node.attrs.get("dim")
    if isinstance(dim, (list, tuple)):
        dim = dim[0] if dim else None
    if not isinstance(dim, int):
        return 0 if n in (0, 1, 3) else 1
    return dim % n if n else 0


def _examined(graph: Graph, node: Node) -> list[Finding]:
    dim = chosen_dim(node)
    if node.shape[dim] == 1 and math.prod(node.shape) > 1:
        return [_finding(graph, node, dim, "which has size 1: every result is exactly 1, whatever the scores are", 1.0)]
    use = _next_sum(graph, node)
    if use is not None:
        return _of_use(graph, node, dim, use)
    if (wanted := _class_dim(graph, node)) is not None:
        if dim == wanted:
            return []
        what = "the batch" if dim == 0 else "another dimension than the classes"
        return [_finding(graph, node, dim, f"{what}: the classes of one example do not share 100%", 1.0)]
    if _is_batch(graph, node, dim):
        return [_finding(graph, node, dim, "the batch: examples compete with each other", 0.8)]
    return []


def _of_use(graph: Graph, node: Node, dim: int, use: _Use) -> list[Finding]:
    if dim in use.dims or not use.dims:
        return []
    summed = ", ".join(str(item) for item in sorted(use.dims))
    what = f"but {use.by.op} then sums over dimension {summed}: the weights of one sum do not add up to 1"
    if use.product:
        return [_finding(graph, node, dim, what, 1.0)]
    if dim == 0 or all(item.shape == node.shape for item in use.by.arguments):
        return [_finding(graph, node, dim, what, 0.85)]
    return []


def _finding(graph: Graph, node: Node, dim: int, what: str, certainty: float) -> Finding:
    where = place(node)
    named = f"{node.op} in {where}" if where != node.op else node.op
    return Finding(
        symptom="softmax_wrong_dim",
        severity="critical",
        cause=f"{named} runs over dimension {dim} of {node.shape}, {what}.",
        evidence=(f"step {graph.onset}: {node.op}(dim={node.attrs.get('dim')}) of a tensor of shape {node.shape}.",),
        where=(where,) if node.module else (),
        onset=0,
        certainty=certainty,
        numbers={"dim": dim, "shape": list(node.shape)},
    )


def _next_sum(graph: Graph, node: Node) -> _Use | None:
    """Follow the output to the product or weighted sum that uses it, keeping track of its dimensions."""
    waiting = [(node, dict(enumerate(range(len(node.shape)))), 0)]
    while waiting:
        current, dims, depth = waiting.pop(0)
        for reader in (graph.nodes[index] for index in graph.consumers[current.index]):
            use = _use(graph, current, reader, dims)
            if use is not None:
                return use
            moved = _moved(current, reader, dims)
            if moved and depth < _DEEPEST:
                waiting.append((reader, moved, depth + 1))
    return None


def _use(graph: Graph, current: Node, reader: Node, dims: Mapping[int, int]) -> _Use | None:
    """The dimensions of the softmax that a reader sums over; `dims`: of the softmax -> of the current tensor."""
    position = next((p for p, a in enumerate(reader.arguments) if a.source == f"n{current.index}"), None)
    if position is None:
        return None
    n = len(reader.arguments[position].shape)
    if reader.op == "matmul" and len(reader.arguments) >= 2:
        operands = reader.arguments[-2:]
        first = operands[0].source == f"n{current.index}"
        contracted = [n - 1 if first or n == 1 else n - 2]
    elif reader.op == "einsum":
        contracted = _einsum_dims(reader, position)
    elif reader.op == "mul":
        return _weighted_sum(graph, reader, n, dims)
    else:
        return None
    found = frozenset(own for own, here in dims.items() if here in contracted)
    return _Use(found, reader, product=True) if contracted else None


def _einsum_dims(node: Node, position: int) -> list[int]:
    equation = node.attrs.get("equation")
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return []
    operands, _, result = equation.replace(" ", "").partition("->")
    letters = operands.split(",")
    return [p for p, letter in enumerate(letters[position]) if letter not in result] if position < len(letters) else []


def _weighted_sum(graph: Graph, product: Node, n: int, dims: Mapping[int, int]) -> _Use | None:
    """weights * values, summed next; broadcasting aligns dimensions at the right."""
    if len(product.arguments) != 2 or product.arguments[0].source == product.arguments[1].source:
        return None
    for reader in (graph.nodes[index] for index in graph.consumers[product.index]):
        dim = reader.attrs.get("dim")
        if reader.op != "sum" or dim is None:
            continue
        total = len(product.shape)
        summed = {item % total for item in (dim if isinstance(dim, (list, tuple)) else [dim]) if total}
        found = frozenset(own for own, here in dims.items() if here + total - n in summed)
        return _Use(found, product, product=False)
    return None


def _moved(current: Node, reader: Node, dims: Mapping[int, int]) -> dict[int, int]:
    """Where the dimensions of the softmax lie in the reader's output; empty when that cannot be followed."""
    n = len(current.shape)
    attrs = reader.attrs
    dim = attrs.get("dim")
    if reader.op in _UNCHANGED or (reader.op in ("mul", "div") and reader.shape == current.shape):
        return dict(dims)
    if reader.op == "transpose" and isinstance(dim, (list, tuple)) and len(dim) == 2:
        one, other = dim[0] % n, dim[1] % n
        swap = {one: other, other: one}
        return {own: swap.get(here, here) for own, here in dims.items()}
    if reader.op == "transpose" and n == 2:
        return {own: 1 - here for own, here in dims.items()}
    if reader.op == "permute" and isinstance(dim, (list, tuple)) and len(dim) == n:
        order = [item % n for item in dim]
        return {own: order.index(here) for own, here in dims.items() if here in order}
    if reader.op == "unsqueeze" and isinstance(dim, int):
        new = dim % (n + 1)
        return {own: here + (here >= new) for own, here in dims.items()}
    if reader.op == "squeeze" and isinstance(dim, int) and len(reader.shape) == n - 1:
        gone = dim % n
        return {own: here - (here > gone) for own, here in dims.items() if here != gone}
    if reader.op in ("view", "reshape", "flatten", "expand"):
        return _kept_from_right(current.shape, reader.shape, dims)
    return {}


def _kept_from_right(old: Sequence[int], new: Sequence[int], dims: Mapping[int, int]) -> dict[int, int]:
    """Dimensions that a view leaves as they are, counted from the right."""
    kept = 0
    while kept < min(len(old), len(new)) and old[-1 - kept] == new[-1 - kept]:
        kept += 1
    shift = len(new) - len(old)
    return {own: here + shift for own, here in dims.items() if here >= len(old) - kept}


def _class_dim(graph: Graph, node: Node) -> int | None:
    """Dimension of the classes when the softmax is the head of a classifier; None elsewhere."""
    layer = graph.origin(graph.main(node).source, SAME_VALUES | DROPOUTS)
    if layer is None or len(node.shape) < 2:
        return None
    ends = graph.readers(node.index, _HEAD)
    to_loss = any(reader.op in LOSSES for reader in ends)
    is_output = node.index in graph.outputs or (not ends and node.index not in graph.inside)
    if not to_loss and not is_output:
        return None
    if len(node.shape) == 2:
        return 1
    return _picture_dim(graph, node) if to_loss else None


def _picture_dim(graph: Graph, node: Node) -> int | None:
    """Of three and more dimensions the loss takes the second; after a view that joins the others, the last."""
    for reader in graph.readers(node.index, names("to contiguous clone")):
        if reader.op in ("nll_loss", "cross_entropy"):
            return 1
        if reader.op in ("view", "reshape", "flatten") and reader.shape[-1:] == node.shape[-1:]:
            return len(node.shape) - 1
    return None


def _is_batch(graph: Graph, node: Node, dim: int) -> bool:
    """The dimension is the batch beyond doubt: no other one has its size, and inputs come batch first."""
    size = graph.batch_size
    look = graph.looks[0]
    if size is None or size < 2 or dim != 0 or len(node.shape) < 2 or node.shape.count(size) != 1:
        return False
    first = look.inputs.shape[:1] if look.inputs is not None else (size,)
    layer = graph.origin(graph.main(node).source, SAME_VALUES | DROPOUTS)
    return node.shape[0] == size and first == (size,) and layer is not None and (is_dense(layer) or bool(node.module))


def _over_batch(graph: Graph, node: Node) -> list[Finding]:
    """nn.MultiheadAttention takes (length, batch, features) unless batch_first: else it attends over the batch."""
    size = graph.batch_size
    look = graph.looks[0]
    shape = node.arguments[0].shape if node.arguments else ()
    if size is None or len(shape) != 3 or shape[0] != size or shape[1] == size or look.inputs is None:
        return []
    if look.inputs.shape[:1] != (size,) or look.targets is None or look.targets.shape[:1] != (size,):
        return []  # without one target for each, dimension 0 of the inputs may as well be the length
    if node.attrs.get("masked") or node.attrs.get("causal"):
        return []  # a mask over dimension 0 says that it is the sequence
    cause = f"attention in {place(node)} is given {shape} and takes the first dimension for the sequence, but that is "
    return [
        Finding(
            symptom="softmax_wrong_dim",
            severity="critical",
            cause=f"{cause}the batch of {size}: examples attend to each other.",
            evidence=(f"step {graph.onset}: queries of shape {shape}, batch of {size}.",),
            where=(place(node),),
            onset=0,
            certainty=0.95,
            numbers={"shape": list(shape)},
        )
    ]
