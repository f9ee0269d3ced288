"""The operations of a look as a graph: who made what, who reads it, what lies on the way to the loss."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.vitals import Argument, Look, Node, Stats, Vitals


def names(text: str) -> frozenset[str]:
    """The words of a text: how sets of operations are written here, in the names of `measure.operations`."""
    return frozenset(text.split())


SAME_VALUES = names(
    "view reshape flatten squeeze unsqueeze permute transpose movedim getitem select narrow index_select to contiguous "
    "clone expand broadcast_to split chunk unbind detach identity alias requires_grad"
)
DROPOUTS = names("dropout native_dropout")
NORMS = names("batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm")
LINEAR_POOLS = names(
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean sum"
)
MAX_POOLS = names(
    "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d amax max"
)
CONVOLUTIONS = names("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")
PRODUCTS = names("matmul einsum tensordot")
RECURRENT = names("lstm gru rnn lstm_cell gru_cell rnn_cell")
ATTENTION = names("multi_head_attention scaled_dot_product_attention transformer_encoder_layer_fwd")
SOFTMAXES = names("softmax softmin gumbel_softmax")
UNTIL = 8
"""Different graphs of one training that are looked at: more appear when shapes or models change."""


def node_index(source: str) -> int | None:
    """Position of the node that a source names; None for anything else.

    >>> node_index("n12"), node_index("input:0")
    (12, None)
    """
    return int(source[1:]) if source[:1] == "n" and source[1:].isdigit() else None


@dataclass(frozen=True)
class Graph:
    """The operations that several looks have in common.

    Attributes:
        nodes: index -> operation, with the numbers of the first look.
        outputs, roots: indices of the model's outputs, and of what backward() was called on.
        looks: the looks of this structure, in order.
    """

    nodes: dict[int, Node]
    outputs: tuple[int, ...] = ()
    roots: tuple[int, ...] = ()
    looks: tuple[Look, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, looks: Sequence[Look]) -> Graph:
        """The graph of looks with the same operations."""
        first = looks[0]
        nodes = {node.index: node for node in first.nodes}
        outputs = tuple(index for index in first.outputs if index in nodes)
        return cls(nodes, outputs, tuple(index for index in first.roots if index in nodes), tuple(looks))

    @property
    def onset(self) -> int:
        """Step of the first of its looks."""
        return self.looks[0].step if self.looks else 0

    @cached_property
    def consumers(self) -> dict[int, tuple[int, ...]]:
        """Index -> indices of the operations that read its output."""
        found: dict[int, list[int]] = {index: [] for index in self.nodes}
        for node in self.nodes.values():
            for producer in self.producers(node):
                found[producer.index].append(node.index)
        return {index: tuple(dict.fromkeys(readers)) for index, readers in found.items()}

    def at(self, source: str) -> Node | None:
        """The operation that a source names."""
        index = node_index(source)
        return None if index is None else self.nodes.get(index)

    def producers(self, node: Node) -> list[Node]:
        """The operations whose outputs a node reads."""
        found = (self.at(argument.source) for argument in node.arguments)
        return [item for item in found if item is not None and item.index != node.index]

    def upstream(self, indices: Iterable[int], differentiable: bool = False) -> frozenset[int]:
        """All operations that these depend on, and themselves.

        Args:
            indices: where to start.
            differentiable: only along outputs that a gradient flows to.
        """
        seen: set[int] = set()
        waiting = [index for index in indices if index in self.nodes]
        while waiting:
            index = waiting.pop()
            if index in seen or (differentiable and not self.nodes[index].requires_grad):
                continue
            seen.add(index)
            waiting.extend(producer.index for producer in self.producers(self.nodes[index]))
        return frozenset(seen)

    def downstream(self, indices: Iterable[int]) -> frozenset[int]:
        """All operations that depend on these, and themselves."""
        seen: set[int] = set()
        waiting = [index for index in indices if index in self.nodes]
        while waiting:
            index = waiting.pop()
            if index not in seen:
                seen.add(index)
                waiting.extend(self.consumers[index])
        return frozenset(seen)

    @cached_property
    def learning(self) -> frozenset[int]:
        """Operations that a gradient flows through on its way from the loss."""
        return self.upstream(self.roots, differentiable=True)

    @cached_property
    def inside(self) -> frozenset[int]:
        """Operations of the model: those in its modules, and those between two of them (model.encode called alone)."""
        marked = [index for index, node in self.nodes.items() if node.module is not None]
        return frozenset(marked) | (self.downstream(marked) & self.upstream(marked))

    @cached_property
    def predicted(self) -> frozenset[int]:
        """Operations that depend on what the model answered, and the model's own."""
        return self.downstream(self.inside | frozenset(self.outputs))

    def is_prediction(self, argument: Argument) -> bool:
        """Whether a tensor comes from the model."""
        return node_index(argument.source) in self.predicted

    def back(self, source: str, through: frozenset[str]) -> tuple[list[Node], str]:
        """Walk up while the operations are of certain kinds.

        Returns:
            The operations passed, last first, and the source where the walk ended.
        """
        passed: list[Node] = []
        node = self.at(source)
        while node is not None and node.op in through and node.arguments:
            passed.append(node)
            source = self.main(node).source
            node = self.at(source)
        return passed, source

    def origin(self, source: str, through: frozenset[str] = SAME_VALUES) -> Node | None:
        """The operation that made these values, seen through changes of shape and type."""
        return self.at(self.back(source, through)[1])

    def main(self, node: Node) -> Argument:
        """The argument that carries the signal: the first that comes from the model, else the first."""
        return next((item for item in node.arguments if self.is_prediction(item)), node.arguments[0])

    def readers(self, index: int, through: frozenset[str] = frozenset()) -> list[Node]:
        """The operations that read an output, looking through those of certain kinds."""
        found: dict[int, Node] = {}
        waiting, seen = list(self.consumers.get(index, ())), set()
        while waiting:
            reader = self.nodes[waiting.pop(0)]
            if reader.index in seen:
                continue
            seen.add(reader.index)
            if reader.op in through:
                waiting.extend(self.consumers[reader.index])
            else:
                found[reader.index] = reader
        return list(found.values())

    def numbers(self, source: str, argument: Argument | None = None) -> list[Stats]:
        """What was measured of a source, look by look: closely as an argument if it was, else as an output.

        Several tensors may be called "target", one of each loss: then `argument` says which of them is meant.
        """
        taken = self._taken(source, argument)
        index = node_index(source)
        found = []
        for look in self.looks:
            stats = _of_argument(look, *taken) if taken is not None else _given(look, source)
            stats = stats or (_of_output(look, index) if index is not None else None)
            if stats is not None:
                found.append(stats)
        return found

    def _taken(self, source: str, wanted: Argument | None) -> tuple[int, int] | None:
        """Node and position of the argument where a source was measured, at best this very one."""
        found = [
            (argument is not wanted, node.index, position)
            for node in self.nodes.values()
            for position, argument in enumerate(node.arguments)
            if argument.source == source and argument.stats is not None
        ]
        return min(found)[1:] if found else None

    def numbers_of(self, argument: Argument) -> list[Stats]:
        """`numbers` of an argument; if nothing was measured, of what it is a view of.

        A tensor from outside with the shape and type of the batch's targets is taken for them: indexing a data set
        twice gives two tensors of the same values.
        """
        passed, source = self.back(argument.source, SAME_VALUES - {"getitem", "select", "narrow"})
        for candidate in dict.fromkeys((argument.source, *(f"n{node.index}" for node in passed), source)):
            if found := self.numbers(candidate, argument):
                return found
        end = passed[-1].arguments[0] if passed else argument
        alike = [look.targets for look in self.looks if look.targets is not None and look.targets.stats is not None]
        if source.startswith("extern") and alike and (alike[0].shape, alike[0].dtype) == (end.shape, end.dtype):
            return [item.stats for item in alike if item.stats is not None]
        return []

    @property
    def batch_size(self) -> int | None:
        """Examples of the first look's batch."""
        look = self.looks[0]
        if look.batch_size:
            return look.batch_size
        return next((item.shape[0] for item in (look.targets, look.inputs) if item and item.shape), None)


def _node(look: Look, index: int) -> Node | None:
    if index < len(look.nodes) and look.nodes[index].index == index:
        return look.nodes[index]
    return next((node for node in look.nodes if node.index == index), None)


def _of_output(look: Look, index: int) -> Stats | None:
    node = _node(look, index)
    return node.stats if node is not None else None


def _of_argument(look: Look, index: int, position: int) -> Stats | None:
    node = _node(look, index)
    return node.arguments[position].stats if node is not None and position < len(node.arguments) else None


def _given(look: Look, source: str) -> Stats | None:
    """Numbers of the batch as passed to watch.step."""
    if source in ("target", "targets") and look.targets is not None:
        return look.targets.stats
    return look.inputs.stats if source in ("input:0", "inputs") and look.inputs is not None else None


_last: list[tuple[weakref.ref[Vitals], tuple[int, int], list[Graph]]] = []
"""The vitals asked for last with their graphs: every rule asks for those of the same vitals in turn."""


def graphs(vitals: Vitals) -> list[Graph]:
    """The different graphs of a training (one, unless several models are trained or shapes of the program change)."""
    state = (len(vitals.looks), id(vitals.looks[-1]) if vitals.looks else 0)
    if _last and _last[0][0]() is vitals and _last[0][1] == state:
        return _last[0][2]
    groups: dict[tuple[object, ...], list[Look]] = {}
    for look in vitals.looks:
        if look.nodes:
            key = (look.roots, tuple((node.op, tuple(a.source for a in node.arguments)) for node in look.nodes))
            groups.setdefault(key, []).append(look)
    found = [Graph.of(looks) for looks in list(groups.values())[:UNTIL]]
    _last[:] = [(weakref.ref(vitals), state, found)]
    return found


def unseen(vitals: Vitals, loss: bool = False) -> NotSeen | None:
    """Why the operations (with `loss`: also those of the loss) could not be looked at; None when they were."""
    if vitals.anatomy is not None and vitals.anatomy.compiled:
        return NotSeen("the model is compiled: watch it once without torch.compile to see its operations")
    found = graphs(vitals)
    if not found:
        return NotSeen("no operations were seen: watch the model whose forward runs in the training loop")
    if loss and not any(graph.roots for graph in found):
        return NotSeen("no loss was seen: call backward() on a loss computed from the model's output")
    return None


def gravest(found: Iterable[Finding]) -> list[Finding]:
    """The worst of some findings (the surest among equals), as a list; empty when there is none."""
    order = {"critical": 0, "warning": 1, "info": 2}
    return sorted(found, key=lambda item: (order[item.severity], -item.certainty))[:1]


def weights(node: Node) -> list[Argument]:
    """The parameters that an operation was given."""
    return [item for item in node.arguments if item.source.partition(":")[0] in ("param", "leaf")]


def is_dense(node: Node) -> bool:
    """Whether it is a linear map with weights to learn: linear, convolution, or a product with a parameter."""
    if node.op == "linear" or node.op in CONVOLUTIONS:
        return True
    return node.op in PRODUCTS and bool(weights(node))


def place(node: Node) -> str:
    """How to name an operation to its author: its module, its parameter, or its kind."""
    if node.module:
        return node.module
    named = [item.source.removeprefix("param:").rpartition(".")[0] for item in weights(node) if ":" in item.source]
    return next((name for name in named if name), node.op)
