"""One iteration of a training as it happens, and what a look of it leaves to be read a step later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.doctor.measure.attaching import first_tensor
from luthier.doctor.measure.looking import ParameterLook
from luthier.doctor.measure.pace import Kind
from luthier.doctor.measure.slots import plain_number, state_step
from luthier.doctor.measure.stats import measure, read
from luthier.doctor.measure.tracing import Trace


@dataclass(slots=True)
class Iteration:
    """From the end of one optimizer step to the end of the next.

    Attributes:
        step: optimizer steps made before.
        kind: what is measured.
        look: the parameters' side, for looks and norms. trace: the operations' side, for looks.
        forwards: of watched models, with gradients. traced: those since the trace began. backwards: calls seen.
        training: mode at the first of these forwards. forward_at: when it began.
        inputs, outputs: of that forward, on looks. loss: what backward was called on last, without the
            scale that a GradScaler put on it.
        without_gradients: optimizers that stepped with no gradient at all.
        interrupted: an evaluation came between, so times say nothing.
    """

    step: int
    kind: Kind
    look: ParameterLook | None = None
    trace: Trace | None = None
    forwards: int = 0
    traced: int = 0
    backwards: int = 0
    training: bool | None = None
    forward_at: float | None = None
    inputs: Tensor | None = None
    outputs: Tensor | None = None
    loss: Tensor | None = None
    scale: Tensor | None = None
    without_gradients: int = 0
    interrupted: bool = False

    def end_trace(self) -> None:
        """Stop listening to operations; what was heard stays."""
        if self.trace is not None:
            self.trace.stop()

    def drop_trace(self) -> None:
        """Forget what was heard: it was no training."""
        self.end_trace()
        self.trace = None

    def pending(self, look: ParameterLook, optimizer: torch.optim.Optimizer | None, took_s: float) -> Pending:
        """What is left to read of this iteration's look."""
        row: dict[str, Any] = {"kind": "look" if look.full else "norms", "step": self.step}
        if look.full:
            row |= {
                "training": self.training,
                "n_forward": self.forwards,
                "n_backward": self.backwards,
                "lr": [] if optimizer is None else [plain_number(group["lr"]) for group in optimizer.param_groups],
                "state_step": None if optimizer is None else state_step(optimizer),
                "took_s": took_s,
            }
        return Pending(row, look, self.trace, self.inputs, self.outputs)


@dataclass
class Pending:
    """A finished look that still lies on the device."""

    row: dict[str, Any]
    look: ParameterLook
    trace: Trace | None = None
    inputs: Tensor | None = None
    outputs: Tensor | None = None
    targets: Any = None

    def tell(self, inputs: Any, targets: Any) -> None:
        """What the user says of this step.

        Inputs and targets must belong together: with gradient accumulation the traced forward and the user's last
        micro-batch are different examples, so the user's own pair comes before what was traced.
        """
        given = first_tensor((inputs,), {})
        if given is not None:
            self.inputs = given
        elif self.row.get("n_forward", 1) != 1:
            self.inputs = None
        self.targets = targets

    def read(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The row, and the structure of its operations when these were traced."""
        row, graph = {**self.row, **self.look.read()}, None
        if row["kind"] == "norms":
            return row, None
        if self.trace is not None:
            self._take_compared(self.trace.compared)
            graph, numbers, extras = self.trace.read(self.inputs, self.targets)
            row = {**extras, **row, "numbers": numbers}
        return row | self._batch(), graph

    def _take_compared(self, compared: Tensor | None) -> None:
        """Targets that nobody told are what the loss compared with, if they belong to the inputs one by one."""
        if self.targets is not None or compared is None or self.inputs is None or self.row.get("n_forward", 1) != 1:
            return
        if compared.dim() and len(compared) == len(self.inputs):
            self.targets = compared

    def _batch(self) -> dict[str, Any]:
        """Numbers of inputs and targets, and how many examples there are."""
        targets = first_tensor((self.targets,), {})
        given = [(name, each) for name, each in (("inputs", self.inputs), ("targets", targets)) if each is not None]
        rows = read([measure(tensor, "detail") for _, tensor in given])
        found: dict[str, Any] = {
            name: {"source": name, "shape": list(each.shape), "dtype": plain_dtype(each), "stats": stats}
            for (name, each), stats in zip(given, rows, strict=True)
        }
        sized = targets if targets is not None else self.inputs
        return found | {"batch_size": None if sized is None else len(sized)}


def plain_dtype(tensor: Tensor) -> str:
    """float32, int64, ..."""
    return str(tensor.dtype).removeprefix("torch.")
