"""Rows of a finished trace: the operations that the loss rests on, and their numbers with one transfer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from luthier.doctor.measure import answers
from luthier.doctor.measure.graph import MOST_NODES, Argument, Node, Rows, argument, name_targets, reaching
from luthier.doctor.measure.operations import LOSSES
from luthier.doctor.measure.recorder import Recorder
from luthier.doctor.measure.rows import Row
from luthier.doctor.measure.stats import Pending, measure, read


class Forward:
    """One forward of a watched model: its mode, what was in eval mode although it trains, its outputs."""

    def __init__(self, training: bool, eval_modules: Sequence[str] = ()) -> None:
        self.training = training
        self.eval_modules = eval_modules
        self.outputs: list[Node] = []


@dataclass
class Traced:
    """What a trace has gathered.

    Attributes:
        recorder: of the operations. forwards: recorded ones. roots: what backward() was called on.
        inputs: tensors passed to the model, in order. output: a copy of the last classifier output.
    """

    recorder: Recorder
    forwards: list[Forward]
    roots: list[Node]
    inputs: list[Argument]
    output: Tensor | None = None

    def used_forwards(self) -> list[Forward]:
        """Those that a root rests on: an evaluation without no_grad before the step is none of them."""
        if not self.roots:
            return self.forwards
        rooted = reaching(self.roots)
        used = [forward for forward in self.forwards if any(id(node) in rooted for node in forward.outputs)]
        return used or self.forwards[-1:]


def rows_of(traced: Traced, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> tuple[Row, Row, Row]:
    """The rows that `Trace.read` returns, but for the counts."""
    forwards = traced.used_forwards()
    outputs = [node for forward in forwards for node in forward.outputs]
    kept = _kept(traced, outputs)
    name_targets(kept, traced.recorder.graph.outers, targets)
    rows = Rows(kept, outputs, traced.roots)
    wanted = _Wanted()
    for position, node in enumerate(kept):
        wanted.add(position, node)
    batch = _batch(traced, inputs, targets)
    for name, given in batch.items():
        wanted.ask(name, given.pending)
    wanted.ask("predictions", traced.recorder.predictions or _late_predictions(traced.output, targets))
    wanted.read()
    extras: Row = {name: {**rows.argument(given), "stats": wanted.answers[name]} for name, given in batch.items()}
    sizes = [batch[name].shape[0] for name in ("targets", "inputs") if name in batch and batch[name].shape]
    extras["batch_size"] = sizes[0] if sizes else None
    extras["predictions"] = wanted.answers.get("predictions")
    extras["loss_arguments"] = _loss_arguments(kept, rows)
    if forwards:
        extras["training"] = forwards[0].training
        extras["eval_modules"] = list(forwards[0].eval_modules)
    if traced.recorder.failure is not None:
        extras["trace_error"] = traced.recorder.failure
    return rows.graph, wanted.numbers, extras


def _kept(traced: Traced, outputs: Sequence[Node]) -> list[Node]:
    """Operations that a root, a model output or (in an evaluation) a loss rests on."""
    nodes = traced.recorder.graph.nodes
    sinks = [*traced.roots, *outputs]
    if not traced.roots:
        sinks += [node for node in nodes if node.op in LOSSES]
    kept = reaching(sinks)
    return [node for node in nodes if id(node) in kept][-MOST_NODES:]


def _batch(traced: Traced, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> dict[str, Argument]:
    """Inputs and targets: the first tensor of each."""
    found = {}
    if traced.inputs:
        found["inputs"] = traced.inputs[0]
    elif inputs:
        outer = traced.recorder.graph.input(inputs[0], 0) or traced.recorder.graph.source(inputs[0])
        found["inputs"] = argument(outer, inputs[0], measure(inputs[0], "detail"))
    if targets:
        source = traced.recorder.graph.source(targets[0])
        found["targets"] = argument(source, targets[0], measure(targets[0], "detail"))
    return found


def _late_predictions(output: Tensor | None, targets: Sequence[Tensor]) -> Pending | None:
    """Of a loss written by hand: the model's (n, classes) output against whole targets of shape (n)."""
    if output is None or len(targets) != 1 or targets[0].dim() != 1 or len(targets[0]) != len(output):
        return None
    return answers.of_classes(output, targets[0].detach().to(output.device), maybe_chances=True)


def _loss_arguments(kept: Sequence[Node], rows: Rows) -> list[Row]:
    return [
        {"index": rows.index(node), "op": node.op, "arguments": [rows.argument(given) for given in node.arguments]}
        for node in kept
        if node.op in LOSSES
    ]


class _Wanted:
    """Collects what is pending, reads all of it together and gives the numbers their places.

    Attributes:
        numbers: {"<index>": {"stats": ..., "arguments": {"<place>": ...}}} of operations. answers: rows asked by name.
    """

    def __init__(self) -> None:
        self.numbers: Row = {}
        self.answers: Row = {}
        self._pending: list[Pending] = []
        self._slots: dict[int, int] = {}
        self._places: list[tuple[str, str | None, int]] = []
        self._names: list[tuple[str, int]] = []

    def add(self, position: int, node: Node) -> None:
        """Everything of one operation."""
        if node.pending is not None:
            self._places.append((str(position), None, self._slot(node.pending)))
        for place, given in enumerate(node.arguments):
            if given.pending is not None:
                self._places.append((str(position), str(place), self._slot(given.pending)))

    def ask(self, name: str, pending: Pending | None) -> None:
        """Something else, by name."""
        if pending is not None:
            self._names.append((name, self._slot(pending)))

    def read(self) -> None:
        """One transfer for all."""
        found = read(self._pending)
        for index, place, slot in self._places:
            row = self.numbers.setdefault(index, {})
            if place is None:
                row["stats"] = found[slot]
            else:
                row.setdefault("arguments", {})[place] = found[slot]
        for name, slot in self._names:
            self.answers[name] = found[slot]

    def _slot(self, pending: Pending) -> int:
        """One row for a tensor that is result of one operation and argument of others."""
        known = self._slots.get(id(pending))
        if known is None:
            known = self._slots[id(pending)] = len(self._pending)
            self._pending.append(pending)
        return known
