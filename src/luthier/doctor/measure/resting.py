"""When a watch may rest: between looks of a loop that tells the loss of every step, most hooks have nothing to hear."""

from __future__ import annotations

from torch import Tensor

from luthier.doctor.measure.attaching import Ears
from luthier.doctor.measure.pace import DENSE


class Resting:
    """Lets the ears rest at steps that only count, as long as the loop tells its losses.

    A loss that was not told after all is taken from the backward pass, so that nothing is lost.

    Args:
        ears: what rests.
        allowed: False where a step is more than one forward, one backward pass and a call of `step` (several models).

    Attributes:
        now: whether they rest.
    """

    def __init__(self, ears: Ears, allowed: bool) -> None:
        self._ears, self._allowed = ears, allowed
        self._told = 0
        self.now = False

    def plan(self, counts: bool) -> None:
        """A step begins; `counts`: it is not looked at."""
        rests = counts and self._allowed and self._told >= DENSE
        if rests != self.now:
            self.now = rests
            self._ears.rest(rests)

    def told(self, loss: bool) -> None:
        """A step was told, with its loss or without."""
        self._told = self._told + 1 if loss else 0
        if loss:
            self._ears.forget_latest()

    def untold(self) -> Tensor | None:
        """A step was not told: stop resting; returns its loss when it came while resting."""
        self._told = 0
        loss = self._ears.take_latest()
        self.plan(counts=False)
        return loss

    def never(self) -> None:
        """This loop does what can only be heard awake: passes within passes, scaled losses."""
        self._allowed = False
        self.plan(counts=False)
