"""Evaluation as the watch sees it: forwards without gradients, gathered between two training steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from luthier.doctor.measure.attaching import first_tensor
from luthier.doctor.measure.iteration import Iteration
from luthier.doctor.measure.patient import Patient
from luthier.doctor.measure.rows import DeadUnits
from luthier.doctor.measure.samples import Samples
from luthier.doctor.measure.tracing import Trace

TRACED = 4
PROBED = 2
SAMPLED = 16


class Evaluating:
    """Gathers the forwards of one evaluation into a row.

    Whether dropout is at work shows in the random generator, whether batch norm learns in the version of its counters:
    both are read on the host, without a wait for the device. The operations of the first forward of the first few
    evaluations are traced.

    Args:
        patient: what is watched.
        samples: keeps some of the examples.

    Attributes:
        forwards: of the present evaluation. number: evaluations so far.
    """

    def __init__(self, patient: Patient, samples: Samples) -> None:
        self.patient, self.samples = patient, samples
        self.forwards = 0
        self.number = 0
        self._row: dict[str, Any] = {}
        self._closed: list[dict[str, Any]] = []
        self._trace: Trace | None = None
        self._generator: Tensor | None = None
        self._counters = 0
        self._inputs: Tensor | None = None

    def begin_forward(
        self, model: nn.Module, step: int, args: tuple[Any, ...], kwargs: dict[str, Any], free: bool
    ) -> None:
        """A forward without gradients begins; `free`: no training step is being traced."""
        self._finish_trace()
        inputs = first_tensor(args, kwargs)
        if self.forwards and self._row["training"] != model.training:
            self._close()
        if not self.forwards:
            self._row = {"step": step, "training": model.training, "grad": False, "n": 0, "stochastic": set()}
            if free and self.patient.traceable_evaluation and self.number < TRACED:
                self._trace = Trace(self.patient.models, _Deaf(), DeadUnits())
                self._trace.start()
                self._trace.enter(model, args, kwargs)
        self.forwards += 1
        self._row["n"] += 0 if inputs is None else len(inputs)
        self._inputs = inputs if self.forwards <= SAMPLED else None
        if self.forwards <= PROBED:
            self._generator = torch.default_generator.get_state()
            self._counters = _counted(model)

    def end_forward(self, model: nn.Module, step: int, output: Any) -> None:
        """It ended."""
        if self._generator is not None:
            drew = not torch.equal(self._generator, torch.default_generator.get_state())
            moved = self._counters != _counted(model)
            self._row["random"] = bool(self._row.get("random")) or drew
            self._row["norm_statistics_moved"] = bool(self._row.get("norm_statistics_moved")) or moved
            self._generator = None
        if self._inputs is not None:
            earlier = sum(row["forwards"] for row in self._closed)
            self.samples.add_eval(step, earlier + self.forwards - 1, self._inputs, first_tensor((output,), {}))
            self._inputs = None

    def end(self) -> list[dict[str, Any]]:
        """The rows since the last training step: one for each change of mode; none without an evaluation."""
        self._finish_trace()
        self._close()
        rows, self._closed = self._closed, []
        return rows

    def _close(self) -> None:
        if self.forwards:
            row = {"kind": "evaluation", **self._row, "forwards": self.forwards}
            row["stochastic"] = sorted(row["stochastic"])
            self._closed.append(row)
            self.forwards, self.number = 0, self.number + 1

    def _finish_trace(self) -> None:
        """What the traced forward (and the loss after it) showed: operations in training mode, predictions."""
        if self._trace is None:
            return
        trace, self._trace = self._trace, None
        trace.stop()
        graph, _, extras = trace.read()
        self._row["predictions"] = extras.get("predictions")
        for node in graph["nodes"]:
            attrs = node.get("attrs", {})
            at_work = node["op"] == "batch_norm" or (node["op"] == "dropout" and attrs.get("p", 0) > 0)
            if at_work and attrs.get("training"):
                self._row["stochastic"].add(node["op"])


class Usual:
    """How many forwards with gradients a step takes: more of them were somebody's evaluation without `no_grad`.

    Attributes:
        forwards: so many; None before the first step.
        exceeded: whether there have been more.
    """

    def __init__(self) -> None:
        self.forwards: int | None = None
        self.exceeded = False

    def beyond(self, now: Iteration) -> dict[str, Any] | None:
        """The row of those that an iteration made beyond the usual, if any."""
        if not now.forwards or now.forwards == self.forwards:
            return None
        usual = now.forwards if self.forwards is None else self.forwards
        self.forwards = min(usual, now.forwards)
        if now.forwards == self.forwards:
            return None
        now.interrupted = True
        return self.unseen(now, now.forwards - usual)

    def unseen(self, now: Iteration, forwards: int) -> dict[str, Any]:
        """The row of forwards with gradients that turned out to belong to no training step."""
        self.exceeded = True
        training = bool(now.training)
        return {"kind": "evaluation", "step": now.step, "training": training, "grad": True, "forwards": forwards}


def _counted(model: nn.Module) -> int:
    return sum(b._version for name, b in model.named_buffers() if name.endswith("num_batches_tracked"))


class _Deaf:
    """Listens to nothing: an evaluation has no backward."""

    def before_backward(self, loss: Tensor) -> None:
        """Never called."""
