"""Examples whose rows are mixed by a change of shape: view and reshape read on in memory, they move no dimension."""

from __future__ import annotations

from luthier.doctor.findings import Finding
from luthier.doctor.symptoms.facts import progress
from luthier.doctor.symptoms.harm import FITTED
from luthier.doctor.symptoms.outcomes import from_start, generalises
from luthier.doctor.symptoms.paths import Graph, graphs
from luthier.doctor.vitals import Node, Vitals

_SOURCE = "torch.Tensor.view: 'the returned tensor shares the same data', in the same order"


def mixed(vitals: Vitals) -> Finding | None:
    """A view where a transpose was meant: the batch becomes another dimension without being moved there."""
    for graph in graphs(vitals):
        for index in sorted(graph.learning | graph.upstream(graph.outputs)):
            node = graph.nodes[index]
            if node.op in ("view", "reshape") and node.index in graph.inside and _moves_batch(graph, node):
                return _finding(vitals, node)
    return None


def _moves_batch(graph: Graph, node: Node) -> bool:
    """(batch, time, ...) read as (time, batch, ...) or the other way round; splitting and joining leave it in front."""
    size = graph.batch_size
    before, after = (node.arguments[0].shape if node.arguments else ()), node.shape
    if size is None or size < 2 or len(before) < 2 or len(after) < 2:
        return False
    there, back = (before, after) if before[0] == size else (after, before)
    return there[0] == size and back[0] != size and back[1] == size and back[0] > 1 and back[0] % size != 0


def _finding(vitals: Vitals, node: Node) -> Finding:
    learnt = progress(vitals)
    well = learnt is not None and learnt > FITTED and generalises(vitals) is not False
    before, after = node.arguments[0].shape, node.shape
    return from_start(
        "label_misaligned",
        _SOURCE,
        "info" if well else "critical",
        f"{node.op} in {node.module or 'the model'} turns {before} into {after}, which moves no dimension but reads on "
        "in memory: each row then holds parts of several examples, and the targets belong to none. Transpose instead.",
        [f"step 0: {node.op} of {before} gives {after} in a batch of {before[0] if before[0] > 1 else before[1]}"],
        0.9,
        mixed=True,
    )
