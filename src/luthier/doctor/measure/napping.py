"""Naps: of most steps only the loss is heard, as it is told, and no hook is there at all.

A module with any hook takes torch's slower way through its forward, and every call of ours comes from cold caches. So
in the middle of a stretch everything rests but `watch.step`. What goes on meanwhile shows in two counters that torch
keeps anyway: each step adds as many nodes to the autograd graph, and writes the weights as often, as the one before.
They tell afterwards whether there was a forward or a step that nobody heard, and then this loop has no more naps. Where
gradients are switched off, an evaluation begins, and ends the nap.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.doctor.measure.attaching import Ears

Row = tuple[int, float, float, float]
_NODES: Any = getattr(torch.autograd, "_get_sequence_nr", None)


class Nap:
    """Counts by the losses alone.

    Args:
        ears: what rests.

    Attributes:
        allowed: False once something went unheard.
        losses, lrs: as told of the steps of this nap. group: where the learning rate is read.
    """

    def __init__(self, ears: Ears) -> None:
        self._ears = ears
        self.allowed = _NODES is not None
        self.losses: list[Tensor] = []
        self.lrs: list[Any] = []
        self.group: dict[str, Any] = {}
        self._counters = self._each = (0, 0)
        self._first_lr: Any = None  # only where the rate that is told is that of the next step

    @property
    def alarmed(self) -> bool:
        """Whether gradients were switched off since the last step."""
        return self._ears.alarmed

    def evaluated(self) -> None:
        """A forward without gradients; one that no alarm announced would not be heard in a nap."""
        self.allowed = self.allowed and self._ears.alarmed

    def drowse(self, optimizer: torch.optim.Optimizer) -> None:
        """The step after this one shows by how much the counters grow."""
        self.group = optimizer.param_groups[0]
        self._counters = self._count()

    def begin(self, lr: float) -> bool:
        """Fall asleep a step later; False when its counters tell nothing, or a rate that may change in place.

        Args:
            lr: of that step; one that has changed since shows a schedule that moves on before the loss is told.
        """
        counters = self._count()
        self._each = (counters[0] - self._counters[0], counters[1] - self._counters[1])
        self._counters = counters
        if min(self._each) < 1 or isinstance(self.group["lr"], Tensor):
            return False
        self._first_lr = self.group["lr"] if self.group["lr"] != lr else None
        self.losses, self.lrs = [], []
        self._ears.nap()
        return True

    def on(self) -> None:
        """What switched gradients off was no evaluation: sleep on."""
        self._ears.doze()

    def end(self, step: int) -> tuple[list[Row], int, int]:
        """Wake up.

        Args:
            step: optimizer steps made before the nap.

        Returns:
            A row for each step that was told; how many further steps were made, and how many forwards after these.
        """
        self._ears.wake()
        rates = self.lrs if self._first_lr is None else [self._first_lr, *self.lrs][: len(self.lrs)]
        rows = [(step + n, float(lr), 0.0, 0.0) for n, lr in enumerate(rates)]
        grown = zip(self._count(), self._counters, self._each, strict=True)
        forwards, steps = ((now - before) / each - len(rows) for now, before, each in grown)
        if not (forwards.is_integer() and steps.is_integer() and 0 <= steps <= forwards <= steps + 1):
            self.allowed = False
            return rows, 0, 0
        return rows, int(steps), int(forwards - steps)

    def _count(self) -> tuple[int, int]:
        """Nodes made in this thread, and how often the first of the weights was written."""
        weights = self.group["params"]
        return _NODES(), weights[0]._version if weights else 0
