"""Records operations while a trace listens: arguments before, results after, numbers of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from luthier.doctor.measure import answers
from luthier.doctor.measure.attributes import arguments, attributes, tensors
from luthier.doctor.measure.graph import (
    KEPT_ARGUMENTS,
    MOST_NODES,
    Argument,
    Graph,
    Node,
    Outer,
    argument,
    compared_with,
)
from luthier.doctor.measure.operations import ARITHMETIC, RECURRENT, SENSITIVE, Operation, names
from luthier.doctor.measure.rows import DeadUnits, Flat, Units
from luthier.doctor.measure.stats import Pending, measure

ALWAYS_MEASURED = 150
KEPT_FREE = 200
_SOFT = ("softmax", "log_softmax", "softmin", "gumbel_softmax")
_FIXED_FLAT = {
    "sigmoid": Flat(0.02, 0.98),
    "tanh": Flat(-0.96, 0.96),
    "hardsigmoid": Flat(0.0, 1.0),
    **dict.fromkeys((*RECURRENT, "rnn_cell", "gru_cell", "lstm_cell"), Flat(-0.96, 0.96)),
}
_RELUS = names("relu relu6 threshold")
_POOLS = names("conv conv_transpose max_pool avg_pool adaptive_avg_pool adaptive_max_pool")
_FEATURES_FIRST = {f"{name}{n}d" for name in _POOLS for n in (1, 2, 3)} | names(
    "batch_norm instance_norm group_norm interpolate pixel_shuffle"
)
_FEATURES_LAST = names("""
    linear embedding layer_norm rms_norm matmul einsum multi_head_attention scaled_dot_product_attention lstm gru rnn
""")


class Recorder:
    """Fills a graph.

    Args:
        graph: empty. memory: of the units seen alive.

    Attributes:
        recording: whether functions are recorded. module: innermost watched module that runs; None outside.
        predictions: of the first loss that tells classes. failure: why recording ended early.
        compared: what the first loss compared with, unless it gives one for each example: that may be
            weighed by anything, an action's reward too.
    """

    def __init__(self, graph: Graph, memory: DeadUnits) -> None:
        self.graph = graph
        self.memory = memory
        self.recording = False
        self.module: str | None = None
        self.predictions: Pending | None = None
        self.compared: Tensor | None = None
        self.failure: str | None = None
        self._batch: int | None = None
        self._visits: dict[tuple[str, str | None], int] = {}

    def run(
        self, known: Operation, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run a torch function as it is and record it."""
        given = arguments(known, args, kwargs)
        if not given:
            return function(*args, **kwargs)
        try:
            before = self._before(known, given)
        except Exception as error:
            self._fail(error)
            return function(*args, **kwargs)
        result = function(*args, **kwargs)
        try:
            self._after(known, before, given, args, kwargs, result)
        except Exception as error:
            self._fail(error)
        return result

    def record(self, known: Operation, given: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Record what ran unseen."""
        if not (self.recording and given and outputs):
            return
        try:
            self._after(known, self._before(known, given), given, (), {}, tuple(outputs))
        except Exception as error:
            self._fail(error)

    def take_input(self, tensor: Tensor, position: int) -> Argument | None:
        """A tensor is passed to a watched model; None when an operation made it, or it is known."""
        try:
            if self._batch is None and tensor.dim() > self.memory.batch_dim:
                self._batch = tensor.shape[self.memory.batch_dim]
            outer = self.graph.input(tensor, position)
            if outer is None or outer.lent is not None:
                return None
            outer.lent = measure(tensor, "detail", batch_dim=self._batch_dim(tensor))
            return argument(outer, tensor, outer.lent)
        except Exception as error:
            self._fail(error)
            return None

    def _fail(self, error: Exception) -> None:
        """A fault of ours must not reach the training: recording ends, and the rows say so."""
        self.recording = False
        self.failure = f"{type(error).__name__}: {error}"

    def _before(self, known: Operation, given: Sequence[Tensor]) -> list[Argument]:
        sources = [self.graph.source(tensor) for tensor in given[:KEPT_ARGUMENTS]]
        closely = known.is_loss or (known.name in ARITHMETIC and self._compares(sources))
        plainly = known.name in SENSITIVE
        found = []
        for source, tensor in zip(sources, given, strict=False):
            pending: Pending | None = None
            if closely or plainly:
                pending = self._numbers(source, tensor, closely)
            elif type(source) is Outer and source.lent is not None and source.label is not None:
                pending = source.lent
            found.append(argument(source, tensor, pending))
        return found

    def _compares(self, sources: Sequence[Node | Outer]) -> bool:
        """Outside the model, something computed meets something given: a loss written by hand."""
        if self.module is not None or len(sources) < 2:
            return False
        return any(isinstance(source, Node) for source in sources) and any(
            isinstance(source, Outer) and not (source.label or "").startswith(("param", "buffer")) for source in sources
        )

    def _numbers(self, source: Node | Outer, tensor: Tensor, closely: bool) -> Pending:
        """Numbers of an argument: those of its source when these are known."""
        same = source.ref() is tensor
        known = (source.pending or source.lent) if type(source) is Node else source.lent
        if known is None or not same or (closely and not known.whole_rows):
            known = measure(tensor, "detail" if closely else "plain", batch_dim=self._batch_dim(tensor))
            if same:
                source.lent = known
        known.detail = known.detail or closely
        return known

    def _after(
        self,
        known: Operation,
        before: list[Argument],
        given: Sequence[Tensor],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        result: Any,
    ) -> None:
        if isinstance(result, Tensor):
            outputs = [result]
        elif result is None:
            outputs = list(given[:1])
        else:
            outputs = tensors(result)
        if not outputs or (result is given[0] and _did_nothing(known)):
            return
        if self._is_full():
            stand_in = next((item.source for item in before if isinstance(item.source, Node)), None)
            if stand_in is not None:
                self.graph.adopt(stand_in, outputs)
            return
        shown = next((output for output in outputs if output.is_floating_point()), outputs[0])
        node = Node(known.name, self.module, before, shown)
        node.attrs = attributes(known, args, kwargs, result)
        node.layout = _layout(node)
        occurrence = self._occurrence(node)
        if _is_worth_measuring(known, before, node, shown) and self._is_measured(occurrence):
            node.pending = self._measure(node, shown, occurrence)
        self.graph.add(node, outputs)
        if known.is_loss and self.predictions is None:
            self.predictions = answers.of_loss(known.name, given, node.attrs)
        if known.is_loss and self.compared is None and node.attrs.get("reduction") != "none":
            compared = compared_with(before)
            self.compared = None if compared is None else compared.detach()

    def _is_full(self) -> bool:
        """Inside the model there is less room, so that the loss always finds some."""
        return len(self.graph.nodes) >= MOST_NODES - (0 if self.module is None else KEPT_FREE)

    def _occurrence(self, node: Node) -> int:
        place = (node.op, node.module)
        count = self._visits.get(place, 0)
        self._visits[place] = count + 1
        return count

    def _is_measured(self, occurrence: int) -> bool:
        """All of a usual net; of loops over time, occurrences 0, 1, 2, 4, 8, ..."""
        return len(self.graph.nodes) < ALWAYS_MEASURED or occurrence & (occurrence - 1) == 0

    def _measure(self, node: Node, output: Tensor, occurrence: int) -> Pending:
        units = None
        batch_dim = self._batch_dim(output)
        if _is_relu(node) and output.dim() > 1:
            dim = _unit_dim(node, output.dim())
            units = Units(self.memory, (node.op, node.module, occurrence), dim) if dim != batch_dim else None
        return measure(output, batch_dim=batch_dim, flat=_flat(node), units=units)

    def _batch_dim(self, tensor: Tensor) -> int:
        """The dimension that counts examples: the first of the batch's size, else the first."""
        shape = tensor.shape
        if self._batch is None or not shape or shape[0] == self._batch or self._batch not in shape:
            return 0
        return shape.index(self._batch)


def _did_nothing(known: Operation) -> bool:
    """The tensor itself came back: `x.to(x.device)`, `x.contiguous()`."""
    return known.is_view or known.name == "to"


def _is_worth_measuring(known: Operation, before: Sequence[Argument], node: Node, output: Tensor) -> bool:
    """Floats that are no mere view of what was measured already."""
    return (
        output.is_floating_point() and not known.is_view and not (known.name == "to" and before[0].dtype == node.dtype)
    )


def _is_relu(node: Node) -> bool:
    """Whether what is not positive becomes 0."""
    if node.op == "clamp":
        return node.attrs.get("min") == 0 and "max" not in node.attrs
    return node.op in _RELUS and node.attrs.get("threshold", 0) == 0 and node.attrs.get("value", 0) == 0


def _flat(node: Node) -> Flat | None:
    if node.op in _SOFT:
        dim = node.attrs.get("dim", -1)
        high = math.log(0.99) if node.op == "log_softmax" else 0.99
        return Flat(high=high, dim=dim) if node.shape else None
    if node.op == "hardtanh":
        return Flat(float(node.attrs.get("min", -1.0)), float(node.attrs.get("max", 1.0)))
    if node.attrs.get("nonlinearity") == "relu":
        return None
    return _FIXED_FLAT.get(node.op)


def _layout(node: Node) -> str | None:
    """Where the features are: told by the operation, or by what it was given when the shape stays."""
    if node.op in _FEATURES_FIRST:
        return "first"
    if node.op in _FEATURES_LAST:
        return "last"
    source = node.arguments[0].source
    return source.layout if isinstance(source, Node) and len(source.shape) == len(node.shape) else None


def _unit_dim(node: Node, dims: int) -> int:
    if dims == 2:
        return 1
    layout = node.layout or ("last" if dims == 3 else "first")
    return 1 if layout == "first" else dims - 1
