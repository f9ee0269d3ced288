"""The patient: watched models and the optimizers that step them, followed while both change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.doctor.measure import anatomy
from luthier.doctor.measure.slots import Slot, Slots
from luthier.doctor.measure.tracing import has_fast_path

IDENTICAL = 1e-3


class Patient:
    """What is watched.

    Attributes:
        models, loss_fn: as given.
        parameters: all of them, in the order of the anatomy.
        suspects: positions of those whose units began identical.
        slots: the optimizers.
        several: more than one model, as in a GAN.
        compiled: operations cannot be heard.
        in_parts: the models are mere containers (ModuleDict, ModuleList): their parts are called by hand.
        traceable_evaluation: listening to an evaluation would not switch off a fused inference path.
    """

    def __init__(self, models: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer], loss_fn: Any) -> None:
        self.models, self.loss_fn = tuple(models), loss_fn
        self.several = len(self.models) > 1
        self.compiled = anatomy.is_compiled(models)
        self.in_parts = all(_has_no_forward(model) for model in models)
        self.traceable_evaluation = not (self.compiled or self.several or any(map(has_fast_path, models)))
        self.parameters: list[Tensor] = []
        self.suspects: frozenset[int] = frozenset()
        self._collect()
        self.slots = Slots(self.parameters)
        self._given = list(optimizers)

    def describe(self, step: int) -> Iterator[dict[str, Any]]:
        """The first rows: anatomy, and the optimizers given."""
        for optimizer in self._given:
            slot = self.slots.add(optimizer)
            if slot is not None:
                yield self.optimizer_row(step, slot, optimizer, given=True)
        yield self._anatomy(step)

    def changes(self, step: int) -> Iterator[dict[str, Any]]:
        """A new anatomy when parameters were added, replaced, frozen or thawed."""
        if anatomy.signature(self.models) != self._signature:
            self._collect()
            self.slots.follow(self.parameters)
            yield self._anatomy(step)

    def optimizer_row(self, step: int, slot: Slot, optimizer: torch.optim.Optimizer, given: bool) -> dict[str, Any]:
        """The row of one optimizer."""
        return anatomy.optimizer_row(step, slot.number, optimizer, given, slot.replaces)

    def _collect(self) -> None:
        self.parameters = [p for _, p in anatomy.named_parameters(self.models)]
        self._signature = anatomy.signature(self.models)

    def _anatomy(self, step: int) -> dict[str, Any]:
        row = anatomy.anatomy_row(step, self.models, self._optimizers(), self.loss_fn)
        spreads = [p["row_spread"] for p in row["parameters"]]
        self.suspects = frozenset(i for i, spread in enumerate(spreads) if spread is not None and spread < IDENTICAL)
        return row

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Those in use, and those given that step nothing that is watched (stale ones)."""
        living = self.slots.living()
        return living + [each for each in self._given if not any(each is other for other in living)]


def _has_no_forward(model: nn.Module) -> bool:
    return type(model).forward is nn.Module.forward and "forward" not in vars(model)
