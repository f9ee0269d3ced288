"""The operations of one traced iteration and the tensors between them, held weakly."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from luthier.doctor.measure.operations import LOSSES, VIEWS
from luthier.doctor.measure.rows import Row
from luthier.doctor.measure.stats import Pending

MOST_NODES = 2_000
KEPT_ARGUMENTS = 64
_RESHAPING = VIEWS | {"to", "one_hot"}
_DTYPES = {value: str(value).removeprefix("torch.") for value in vars(torch).values() if isinstance(value, torch.dtype)}


class Outer:
    """A tensor that no recorded operation made: a parameter, an input, a target, or any other."""

    __slots__ = ("label", "leaf", "lent", "ref", "requires_grad")

    def __init__(self, tensor: Tensor, label: str | None) -> None:
        self.ref = weakref.ref(tensor)
        self.label = label
        self.requires_grad = tensor.requires_grad
        self.leaf = label is None and self.requires_grad and tensor.is_leaf
        self.lent: Pending | None = None


class Argument(NamedTuple):
    """A tensor given to an operation."""

    source: Node | Outer
    shape: tuple[int, ...]
    dtype: str
    requires_grad: bool
    pending: Pending | None


class Node:
    """One operation.

    Attributes:
        pending: numbers of its output. lent: numbers of the output of a view, measured because an operation took it.
        order: of execution.
        attached: it ran without gradients, but its result carries one (custom autograd functions, checkpoints).
        layout: "first" or "last": where its output has the features, when known.
        ref: its first output.
    """

    __slots__ = (
        "arguments",
        "attached",
        "attrs",
        "dtype",
        "layout",
        "lent",
        "module",
        "op",
        "order",
        "pending",
        "ref",
        "requires_grad",
        "shape",
    )

    def __init__(self, op: str, module: str | None, arguments: Sequence[Argument], output: Tensor) -> None:
        self.op = op
        self.module = module
        self.arguments = arguments
        self.attrs: dict[str, Any] = {}
        self.shape = tuple(output.shape)
        self.dtype = _DTYPES[output.dtype]
        self.requires_grad = output.requires_grad
        self.attached = False
        self.order = 0
        self.ref = weakref.ref(output)
        self.pending: Pending | None = None
        self.lent: Pending | None = None
        self.layout: str | None = None


def argument(source: Node | Outer, tensor: Tensor, pending: Pending | None) -> Argument:
    """An argument as it is before the operation runs."""
    return Argument(source, tuple(tensor.shape), _DTYPES[tensor.dtype], tensor.requires_grad, pending)


class Graph:
    """Which operation every living tensor came from.

    Args:
        labels: id -> (itself, source) of parameters and buffers.
    """

    def __init__(self, labels: dict[int, tuple[Tensor, str]]) -> None:
        self.nodes: list[Node] = []
        self.outers: list[Outer] = []
        self._labels = labels
        self._count = 0
        self._by_id: dict[int, tuple[weakref.ref[Tensor], Node | Outer]] = {}

    def label(self, tensor: Tensor) -> str | None:
        """Source of a parameter or buffer."""
        found = self._labels.get(id(tensor))
        return None if found is None else found[1]

    def source(self, tensor: Tensor) -> Node | Outer:
        """Where a tensor comes from; a new `Outer` for one not seen before."""
        found = self._by_id.get(id(tensor))
        if found is not None and found[0]() is tensor:
            source = found[1]
            if not source.requires_grad and type(source) is Node and tensor.requires_grad and not tensor.is_leaf:
                _attach(source)
            return source
        outer = Outer(tensor, self.label(tensor))
        self._by_id[id(tensor)] = (outer.ref, outer)
        self.outers.append(outer)
        return outer

    def node_of(self, tensor: Tensor) -> Node | None:
        """The operation that made a tensor."""
        found = self._by_id.get(id(tensor))
        if found is None or found[0]() is not tensor:
            return None
        source = self.source(tensor)
        return source if isinstance(source, Node) else None

    def input(self, tensor: Tensor, position: int) -> Outer | None:
        """Note that a tensor was passed to a watched model; None when an operation made it."""
        source = self.source(tensor)
        if isinstance(source, Node):
            return None
        source.label = source.label or f"input:{position}"
        return source

    def add(self, node: Node, outputs: Iterable[Tensor]) -> None:
        """A further operation; its outputs belong to it from now on, also one changed in place."""
        self._count += 1
        node.order = self._count
        self.nodes.append(node)
        self.adopt(node, outputs)

    def adopt(self, node: Node, outputs: Iterable[Tensor]) -> None:
        """Let tensors belong to an operation."""
        for output in outputs:
            self._by_id[id(output)] = (weakref.ref(output), node)

    def living(self) -> list[Node]:
        """Operations with a living output."""
        return [node for ref, node in self._by_id.values() if isinstance(node, Node) and ref() is not None]

    def drop_dead(self) -> None:
        """Forget operations that no living tensor rests on, as after a forward whose loss is gone."""
        kept = reaching(self.living())
        self.nodes = [node for node in self.nodes if id(node) in kept]


def _attach(result: Node) -> None:
    """Mark operations that ran without gradients although their result carries one, as far as it flows back.

    A custom autograd function and a reentrant checkpoint run their forward so and attach the graph to the result.
    """
    found: dict[int, Node] = {}
    waiting = [result]
    while waiting:
        node = waiting.pop()
        if not node.requires_grad and node.op != "detach" and node.order not in found:
            found[node.order] = node
            waiting.extend(given.source for given in node.arguments if isinstance(given.source, Node))
    for order in sorted(found):
        node = found[order]
        node.requires_grad = node.attached = any(
            given.requires_grad or given.source.requires_grad for given in node.arguments
        )


def reaching(sinks: Iterable[Node]) -> set[int]:
    """Ids of the operations that some sink rests on, the sinks among them."""
    found: set[int] = set()
    waiting = list(sinks)
    while waiting:
        node = waiting.pop()
        if id(node) not in found:
            found.add(id(node))
            waiting.extend(given.source for given in node.arguments if isinstance(given.source, Node))
    return found


def name_targets(nodes: Sequence[Node], outers: Sequence[Outer], targets: Sequence[Tensor]) -> None:
    """Label outer tensors "target": those given as targets, and what a loss compares with, also through a view."""
    places = {(tensor.data_ptr(), tensor.numel()) for tensor in targets if tensor.layout is torch.strided}
    for outer in outers if places else ():
        tensor = outer.ref() if outer.label is None else None
        if tensor is not None and tensor.layout is torch.strided and (tensor.data_ptr(), tensor.numel()) in places:
            outer.label = "target"
    for node in nodes:
        if node.op in LOSSES and len(node.arguments) > 1:
            compared = _behind_views(node.arguments[1].source)
            if compared is not None and compared.label is None and not compared.leaf:
                compared.label = "target"


def compared_with(arguments: Sequence[Argument]) -> Tensor | None:
    """What a loss compares with, as given from outside; None when computed, taken by the model too, or learnt."""
    outer = _behind_views(arguments[1].source) if len(arguments) > 1 else None
    return outer.ref() if outer is not None and outer.label in (None, "target") and not outer.requires_grad else None


def _behind_views(source: Node | Outer) -> Outer | None:
    while isinstance(source, Node):
        if source.op not in _RESHAPING or not source.arguments:
            return None
        source = source.arguments[0].source
    return source


class Rows:
    """The kept operations as plain rows.

    Args:
        nodes: in order. outputs, roots: operations that are the model's output, and that backward was called on.
    """

    def __init__(self, nodes: Sequence[Node], outputs: Iterable[Node], roots: Iterable[Node]) -> None:
        self.nodes = nodes
        self._index = {id(node): position for position, node in enumerate(nodes)}
        self._numbered: dict[int, str] = {}
        self._counts = {"leaf": 0, "extern": 0}
        self.graph: Row = {
            "kind": "graph",
            "nodes": [self._node(position, node) for position, node in enumerate(nodes)],
            "outputs": self._indices(outputs),
            "roots": self._indices(roots),
        }

    def argument(self, given: Argument) -> Row:
        """The row of `vitals.Argument`, without its numbers."""
        return {
            "source": self._source(given.source),
            "shape": list(given.shape),
            "dtype": given.dtype,
            "requires_grad": given.requires_grad or (type(given.source) is Node and given.source.attached),
        }

    def index(self, node: Node) -> int:
        """Position of a kept operation."""
        return self._index[id(node)]

    def _indices(self, nodes: Iterable[Node]) -> list[int]:
        return list(dict.fromkeys(self._index[id(node)] for node in nodes if id(node) in self._index))

    def _node(self, position: int, node: Node) -> Row:
        return {
            "index": position,
            "op": node.op,
            "module": node.module,
            "arguments": [self.argument(given) for given in node.arguments],
            "attrs": node.attrs,
            "shape": list(node.shape),
            "dtype": node.dtype,
            "requires_grad": node.requires_grad,
        }

    def _source(self, source: Node | Outer) -> str:
        if isinstance(source, Node):
            position = self._index.get(id(source))
            if position is not None:
                return f"n{position}"
        elif source.label is not None:
            return source.label
        kind = "leaf" if isinstance(source, Outer) and source.leaf else "extern"
        known = self._numbered.get(id(source))
        if known is None:
            known = self._numbered[id(source)] = f"{kind}:{self._counts[kind]}"
            self._counts[kind] += 1
        return known
