"""What a look has left on the device is read when the next iteration ends: one transfer, a step late."""

from __future__ import annotations

from typing import Any

from luthier.doctor.measure.attaching import first_tensor
from luthier.doctor.measure.iteration import Pending
from luthier.doctor.measure.journal import Journal
from luthier.doctor.measure.samples import Samples

MOST_GRAPHS = 64


class Late:
    """Reads looks and writes their rows; a structure of operations is written once and then named by its number.

    Args:
        journal: where rows go.
        samples: given the examples of each look.

    Attributes:
        pending: the look that is still to be read.
    """

    def __init__(self, journal: Journal, samples: Samples) -> None:
        self._journal, self._samples = journal, samples
        self._graphs: dict[int, int] = {}
        self.pending: Pending | None = None

    def of_step(self, step: int) -> bool:
        """Whether a look of this step is still to be read."""
        return self.pending is not None and self.pending.row["step"] == step

    def tell(self, inputs: Any, targets: Any) -> None:
        """What the user says of the step that was looked at."""
        if self.pending is not None:
            self.pending.tell(inputs, targets)

    def read(self) -> None:
        """Read it, if there is one."""
        pending, self.pending = self.pending, None
        if pending is None:
            return
        row, graph = pending.read()
        if graph is not None:
            row["graph"] = self._graph(graph)
        if pending.inputs is not None and row["kind"] == "look":
            targets = first_tensor((pending.targets,), {})
            self._samples.add_train(row["step"], pending.inputs, targets, pending.outputs)
        self._journal.add(row)

    def _graph(self, graph: dict[str, Any]) -> int | None:
        """The number of a structure; a new one is written."""
        key = hash((repr(graph["nodes"]), repr(graph["outputs"]), repr(graph["roots"])))
        if key not in self._graphs and len(self._graphs) < MOST_GRAPHS:
            self._graphs[key] = len(self._graphs)
            self._journal.add({**graph, "kind": "graph", "id": self._graphs[key]})
        return self._graphs.get(key)
