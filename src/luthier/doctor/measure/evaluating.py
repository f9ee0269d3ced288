"""Evaluation as the watch sees it: forwards that no training step follows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

TRACED_EVALUATIONS = 4
PROBED_FORWARDS = 2


class Evaluating:
    """Gathers the forwards between two training steps into one row `evaluation`.

    Whether dropout is at work shows in the random generator, whether batch norm learns in the version of its counters:
    both are read on the host, without a wait for the device.
    """

    def __init__(self) -> None:
        self.number = 0
        self.forwards = 0
        self._row: dict[str, Any] = {}
        self._generator: Tensor | None = None
        self._versions: int | None = None

    def begin_forward(self, model: nn.Module, step: int, inputs: Tensor | None, grad: bool) -> None:
        """A forward of an evaluation begins."""
        if not self.forwards:
            self._row = {"step": step, "training": model.training, "grad": grad, "n": 0, "stochastic": set()}
        self.forwards += 1
        self._row["n"] += 0 if inputs is None else len(inputs)
        if self.forwards <= PROBED_FORWARDS:
            self._generator = torch.default_generator.get_state()
            self._versions = _counter_versions(model)

    def end_forward(self, model: nn.Module) -> None:
        """It ended."""
        if self._generator is not None:
            drew = not torch.equal(self._generator, torch.default_generator.get_state())
            moved = self._versions != _counter_versions(model)
            self._row["random"] = bool(self._row.get("random")) or drew
            self._row["norm_statistics_moved"] = bool(self._row.get("norm_statistics_moved")) or moved
            self._generator = None

    def saw(self, graph: dict[str, Any], predictions: dict[str, Any] | None) -> None:
        """What a trace of the first forward showed: operations in training mode, predictions."""
        for node in graph["nodes"]:
            if node["op"] in ("dropout", "batch_norm") and node.get("attrs", {}).get("training"):
                if node["op"] == "batch_norm" or node["attrs"].get("p", 0) > 0:
                    self._row["stochastic"].add(node["op"])
        self._row["predictions"] = predictions

    def unseen(self, model_training: bool, step: int, forwards: int) -> dict[str, Any]:
        """The row of forwards with gradients that turned out to belong to no training step."""
        return {
            "kind": "evaluation",
            "step": step,
            "training": model_training,
            "grad": True,
            "forwards": forwards,
        }

    def end(self) -> dict[str, Any] | None:
        """The row, when there was an evaluation."""
        if not self.forwards:
            return None
        row = {"kind": "evaluation", **self._row, "forwards": self.forwards}
        row["stochastic"] = sorted(row["stochastic"])
        self.forwards = 0
        self.number += 1
        return row


def _counter_versions(model: nn.Module) -> int:
    return sum(b._version for name, b in model.named_buffers() if name.endswith("num_batches_tracked"))
