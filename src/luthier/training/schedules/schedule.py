"""What a schedule is: a function of progress."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.errors import LuthierError
from luthier.parts import Function, Part

Unit = Literal["step", "epoch"]
UNIT_TEXT = "Whether the schedule moves at every optimizer step or once an epoch."


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training stands.

    Attributes:
        step: optimizer step about to be taken, from 0.
        total_steps: optimizer steps of the whole training.
        epoch: current epoch, from 0.
        epochs: epochs of the whole training.
        history: the monitored validation value after each evaluation so far.
        minimise: whether a lower monitored value is better.
    """

    step: int
    total_steps: int
    epoch: int
    epochs: int
    history: Sequence[float] = ()
    minimise: bool = True

    def clock(self, unit: Unit) -> tuple[int, int]:
        """Time and its end, in steps or epochs."""
        return (self.step, self.total_steps) if unit == "step" else (self.epoch, self.epochs)


class Schedule(Part):
    """A learning-rate schedule: `lr = recipe.lr * factor(progress)`."""

    @abstractmethod
    def factor(self, progress: Progress) -> float:
        """The multiple of `recipe.lr` for the step about to be taken: finite, at least 0."""

    def momentum(self, progress: Progress) -> float | None:
        """The momentum (or beta1) for the step about to be taken; None leaves the optimizer's own."""
        return None


class CustomSchedule(Schedule):
    """A caller's function from `Progress` to the factor."""

    name: Literal["custom"] = "custom"
    call: Function

    def factor(self, progress: Progress) -> float:
        """What the function says; must be finite and at least 0."""
        value = float(self.call(progress))
        if not 0 <= value < math.inf:
            raise LuthierError(
                f"the schedule {self.call.function!r} must return a finite factor >= 0, "
                f"got {value} at step {progress.step}: mend the function"
            )
        return value


def half_cosine(start: float, end: float, done: float) -> float:
    """From start to end along half a cosine."""
    return end + (start - end) / 2 * (math.cos(math.pi * done) + 1)
