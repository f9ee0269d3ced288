"""Schedules that only fall: by the clock, or by what validation says."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from luthier.errors import LuthierError
from luthier.training.schedules.schedule import UNIT_TEXT, Progress, Schedule, Unit, half_cosine


class Constant(Schedule):
    """The same lr throughout."""

    name: Literal["constant"] = "constant"

    def factor(self, progress: Progress) -> float:
        """Always 1."""
        return 1.0


class Step(Schedule):
    """Times `gamma` every `step_size`: `gamma ** (t // step_size)`; torch's StepLR.

    >>> Step(step_size=30).factor(Progress(step=0, total_steps=900, epoch=60, epochs=90))
    0.010000000000000002
    """

    name: Literal["step"] = "step"
    step_size: int | None = Field(None, ge=1, description="Units between two drops; None: a third of the training.")
    gamma: float = Field(0.1, gt=0, le=1, description="Multiplier at each drop.")
    unit: Unit = Field("epoch", description=UNIT_TEXT)

    def factor(self, progress: Progress) -> float:
        """`gamma ** (t // step_size)`."""
        t, total = progress.clock(self.unit)
        drops: int = t // (self.step_size or max(1, math.ceil(total / 3)))
        return float(self.gamma**drops)


class MultiStep(Schedule):
    """Times `gamma` at each milestone; torch's MultiStepLR.

    Without milestones: at a half and at three quarters of the training (He et al. 2016, section 4.2).
    """

    name: Literal["multi-step"] = "multi-step"
    milestones: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None,
        min_length=1,
        description="Units at which lr drops, ascending; None: 1/2 and 3/4 of the training.",
    )
    gamma: float = Field(0.1, gt=0, le=1, description="Multiplier at each milestone.")
    unit: Unit = Field("epoch", description=UNIT_TEXT)

    @model_validator(mode="after")
    def _ascending(self) -> MultiStep:
        given = self.milestones or ()
        if any(later <= earlier for earlier, later in pairwise(given)):
            raise LuthierError(f"milestones must ascend, got {given}: sort them and name each once")
        return self

    def factor(self, progress: Progress) -> float:
        """`gamma` to the number of milestones reached."""
        t, total = progress.clock(self.unit)
        milestones = self.milestones or (total / 2, total * 3 / 4)
        return float(self.gamma ** sum(t >= milestone for milestone in milestones))


class Exponential(Schedule):
    """Times `gamma` at every unit: `gamma ** t`; torch's ExponentialLR."""

    name: Literal["exponential"] = "exponential"
    gamma: float = Field(0.95, gt=0, le=1, description="Multiplier per unit.")
    unit: Unit = Field("epoch", description=UNIT_TEXT)

    def factor(self, progress: Progress) -> float:
        """`gamma ** t`."""
        return float(self.gamma ** progress.clock(self.unit)[0])


class Polynomial(Schedule):
    """Down to 0 at the end as `(1 - t / total) ** power`; torch's PolynomialLR. Power 1 is linear decay."""

    name: Literal["polynomial"] = "polynomial"
    power: float = Field(1.0, gt=0, description="Exponent; 1 is linear decay.")
    unit: Unit = Field("step", description=UNIT_TEXT)

    def factor(self, progress: Progress) -> float:
        """`(1 - t / total) ** power`."""
        t, total = progress.clock(self.unit)
        return float((1 - min(t, total) / total) ** self.power)


class Cosine(Schedule):
    """Half a cosine down to `min_factor` at the end; torch's CosineAnnealingLR.

    Source: Loshchilov & Hutter 2017, SGDR, equation 5 (one period).
    """

    name: Literal["cosine"] = "cosine"
    min_factor: float = Field(0.0, ge=0, le=1, description="Factor at the end of the training.")
    unit: Unit = Field("step", description=UNIT_TEXT)

    def factor(self, progress: Progress) -> float:
        """`min + (1 - min) * (1 + cos(pi * t / total)) / 2`."""
        t, total = progress.clock(self.unit)
        return half_cosine(1.0, self.min_factor, min(t, total) / total)


class Plateau(Schedule):
    """Times `gamma` when the monitored value has not improved for more than `patience` evaluations.

    A fold over `progress.history`, equal to torch's ReduceLROnPlateau with eps=0. A NaN is never an improvement.
    """

    name: Literal["plateau"] = "plateau"
    gamma: float = Field(0.5, gt=0, lt=1, description="Multiplier at each reduction (torch calls it factor).")
    patience: int = Field(3, ge=0, description="Evaluations without improvement that are still allowed.")
    threshold: float = Field(1e-4, ge=0, description="Smallest change that counts as an improvement.")
    threshold_mode: Literal["rel", "abs"] = Field("rel", description="Whether the threshold is relative to the best.")
    cooldown: int = Field(0, ge=0, description="Evaluations to wait after a reduction before counting again.")
    min_factor: float = Field(0.0, ge=0, le=1, description="The factor never falls below this.")

    def factor(self, progress: Progress) -> float:
        """`gamma` to the number of reductions so far, by the history of the monitored value."""
        factor, bad, cooling, bar = 1.0, 0, 0, math.inf
        for value in progress.history:
            cost = value if progress.minimise else -value
            if cost < bar:
                bar, bad = self._bar(cost, progress.minimise), 0
            else:
                bad += 1
            if cooling:
                cooling, bad = cooling - 1, 0
            if bad > self.patience:
                factor, cooling, bad = max(factor * self.gamma, self.min_factor), self.cooldown, 0
        return factor

    def _bar(self, best_cost: float, minimise: bool) -> float:
        """What the next cost must be below to count as an improvement on the best (costs are minimised)."""
        if self.threshold_mode == "abs":
            return best_cost - self.threshold
        return best_cost * (1 - self.threshold if minimise else 1 + self.threshold)
