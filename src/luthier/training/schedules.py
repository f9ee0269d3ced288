"""Learning-rate and batch-size schedules: pure functions of progress, without state.

A schedule answers "which multiple of `recipe.lr` at this point of the training", so a resumed run, a plot and a
simulation all ask the same function. Each part equals its namesake in `torch.optim.lr_scheduler`.
Lengths that are left open (None) follow the length of the training, so that a plain name fits any budget.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, SerializeAsAny, model_validator

from luthier.errors import LuthierError
from luthier.parts import Function, Part, resolve

Unit = Literal["step", "epoch"]
_UNIT = "Whether the schedule moves at every optimizer step or once an epoch."


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


class Schedule(Part):
    """A learning-rate schedule: `lr = recipe.lr * factor(progress)`."""

    @abstractmethod
    def factor(self, progress: Progress) -> float:
        """The multiple of `recipe.lr` for the step about to be taken: finite, at least 0."""

    def momentum(self, progress: Progress) -> float | None:
        """The momentum (or beta1) for the step about to be taken; None leaves the optimizer's own."""
        return None


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
    unit: Unit = Field("epoch", description=_UNIT)

    def factor(self, progress: Progress) -> float:
        """`gamma ** (t // step_size)`."""
        t, total = _clock(self.unit, progress)
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
    unit: Unit = Field("epoch", description=_UNIT)

    @model_validator(mode="after")
    def _ascending(self) -> MultiStep:
        given = self.milestones or ()
        if any(later <= earlier for earlier, later in pairwise(given)):
            raise LuthierError(f"milestones must ascend, got {given}: sort them and name each once")
        return self

    def factor(self, progress: Progress) -> float:
        """`gamma` to the number of milestones reached."""
        t, total = _clock(self.unit, progress)
        milestones = self.milestones or (total / 2, total * 3 / 4)
        return float(self.gamma ** sum(t >= milestone for milestone in milestones))


class Exponential(Schedule):
    """Times `gamma` at every unit: `gamma ** t`; torch's ExponentialLR."""

    name: Literal["exponential"] = "exponential"
    gamma: float = Field(0.95, gt=0, le=1, description="Multiplier per unit.")
    unit: Unit = Field("epoch", description=_UNIT)

    def factor(self, progress: Progress) -> float:
        """`gamma ** t`."""
        return float(self.gamma ** _clock(self.unit, progress)[0])


class Polynomial(Schedule):
    """Down to 0 at the end as `(1 - t / total) ** power`; torch's PolynomialLR. Power 1 is linear decay."""

    name: Literal["polynomial"] = "polynomial"
    power: float = Field(1.0, gt=0, description="Exponent; 1 is linear decay.")
    unit: Unit = Field("step", description=_UNIT)

    def factor(self, progress: Progress) -> float:
        """`(1 - t / total) ** power`."""
        t, total = _clock(self.unit, progress)
        return float((1 - min(t, total) / total) ** self.power)


class Cosine(Schedule):
    """Half a cosine down to `min_factor` at the end; torch's CosineAnnealingLR.

    Source: Loshchilov & Hutter 2017, SGDR, equation 5 (one period).
    """

    name: Literal["cosine"] = "cosine"
    min_factor: float = Field(0.0, ge=0, le=1, description="Factor at the end of the training.")
    unit: Unit = Field("step", description=_UNIT)

    def factor(self, progress: Progress) -> float:
        """`min + (1 - min) * (1 + cos(pi * t / total)) / 2`."""
        t, total = _clock(self.unit, progress)
        return _half_cosine(1.0, self.min_factor, min(t, total) / total)


class CosineRestarts(Schedule):
    """Cosines that restart, each period `growth` times the last; torch's CosineAnnealingWarmRestarts.

    Without a period the training holds three whole ones: `period = total / (1 + growth + growth^2)`.

    Source: Loshchilov & Hutter 2017, SGDR, equation 5.
    """

    name: Literal["cosine-restarts"] = "cosine-restarts"
    period: int | None = Field(None, ge=1, description="Units to the first restart (T_0); None: three whole periods.")
    growth: int = Field(2, ge=1, le=100, description="Each period is this many times the one before (T_mult).")
    min_factor: float = Field(0.0, ge=0, le=1, description="Factor at the end of each period.")
    unit: Unit = Field("epoch", description=_UNIT)

    def factor(self, progress: Progress) -> float:
        """`min + (1 - min) * (1 + cos(pi * t_cur / T_i)) / 2`."""
        t, total = _clock(self.unit, progress)
        period: float = self.period or total / (1 + self.growth + self.growth**2)
        since = t % period if self.growth == 1 else float(t)
        while since >= period:
            since, period = since - period, period * self.growth
        return _half_cosine(1.0, self.min_factor, since / period)


class OneCycle(Schedule):
    """Up to `recipe.lr` (the peak), then down far below the start; momentum moves against it; torch's OneCycleLR.

    It starts at `1 / div_factor` and ends at `1 / (div_factor * final_div_factor)`. With `three_phase` the descent
    mirrors the ascent, and a third phase goes from the start value to the end value.

    Source: Smith & Topin 2018, Super-Convergence (arXiv 1708.07120).
    """

    name: Literal["one-cycle"] = "one-cycle"
    pct_start: float = Field(0.3, gt=0, lt=1, description="Part of the training spent going up.")
    div_factor: float = Field(25.0, ge=1, description="Peak over start.")
    final_div_factor: float = Field(1e4, ge=1, description="Start over end.")
    anneal: Literal["cos", "linear"] = Field("cos", description="Shape of each phase.")
    three_phase: bool = Field(False, description="Mirror the ascent, then a third phase to the end value.")
    cycle_momentum: bool = Field(True, description="Whether momentum (or beta1) moves against lr.")
    base_momentum: float = Field(0.85, gt=0, lt=1, description="Momentum at the peak.")
    max_momentum: float = Field(0.95, gt=0, lt=1, description="Momentum at start and end.")

    @model_validator(mode="after")
    def _checked(self) -> OneCycle:
        if self.three_phase and self.pct_start > 0.5:
            raise LuthierError(f"three_phase needs pct_start <= 0.5, got {self.pct_start}: two phases have this length")
        _check_momenta(self.base_momentum, self.max_momentum)
        return self

    def factor(self, progress: Progress) -> float:
        """The annealed value between start, peak and end."""
        start, end = 1 / self.div_factor, 1 / (self.div_factor * self.final_div_factor)
        return self._anneal(progress, (start, 1.0, start, end) if self.three_phase else (start, 1.0, end))

    def momentum(self, progress: Progress) -> float | None:
        """The annealed momentum, or None unless `cycle_momentum`."""
        if not self.cycle_momentum:
            return None
        low, high = self.base_momentum, self.max_momentum
        return self._anneal(progress, (high, low, high, high) if self.three_phase else (high, low, high))

    def _anneal(self, progress: Progress, values: tuple[float, ...]) -> float:
        total = progress.total_steps
        up = self.pct_start * total
        ends = (up - 1, 2 * up - 2, total - 1) if self.three_phase else (up - 1, total - 1)
        begin, step = 0.0, min(progress.step, total - 1)
        for phase, end in enumerate(ends):
            if step <= end:
                done = (step - begin) / (end - begin) if end > begin else 1.0
                shape = _half_cosine if self.anneal == "cos" else _line
                return shape(values[phase], values[phase + 1], done)
            begin = end
        return values[-1]


class Cyclic(Schedule):
    """Triangles between `base_factor` and `recipe.lr` (the maximum); torch's CyclicLR.

    `triangular` keeps the height, `triangular2` halves it each cycle, `exp-range` shrinks it by `gamma` each unit.
    Without `up` the training holds `cycles` whole triangles and so ends at the bottom of one.

    Source: Smith 2017, Cyclical Learning Rates for Training Neural Networks (arXiv 1506.01186).
    """

    name: Literal["cyclic"] = "cyclic"
    mode: Literal["triangular", "triangular2", "exp-range"] = Field("triangular", description="How the height shrinks.")
    base_factor: float = Field(0.1, ge=0, le=1, description="Factor at the bottom of each triangle.")
    up: int | None = Field(None, ge=1, description="Units from bottom to top; None: so that `cycles` fit.")
    down: int | None = Field(None, ge=1, description="Units from top to bottom; None: as many as `up`.")
    cycles: int = Field(2, ge=1, description="Whole triangles in the training; only read without `up`.")
    gamma: float = Field(0.99994, gt=0, le=1, description="Shrinking per unit in exp-range (Smith's value).")
    unit: Unit = Field("step", description=_UNIT)
    cycle_momentum: bool = Field(True, description="Whether momentum (or beta1) moves against lr.")
    base_momentum: float = Field(0.8, gt=0, lt=1, description="Momentum at the top of a full triangle.")
    max_momentum: float = Field(0.9, gt=0, lt=1, description="Momentum at the bottom.")

    @model_validator(mode="after")
    def _checked(self) -> Cyclic:
        if self.down is not None and self.up is None:
            raise LuthierError(f"down={self.down} needs up: give both, or neither for {self.cycles} whole cycles")
        _check_momenta(self.base_momentum, self.max_momentum)
        return self

    def factor(self, progress: Progress) -> float:
        """`base + (1 - base) * height`."""
        return self.base_factor + (1 - self.base_factor) * self._height(progress)

    def momentum(self, progress: Progress) -> float | None:
        """`max - (max - base) * height`, or None unless `cycle_momentum`."""
        if not self.cycle_momentum:
            return None
        return self.max_momentum - (self.max_momentum - self.base_momentum) * self._height(progress)

    def _height(self, progress: Progress) -> float:
        t, total = _clock(self.unit, progress)
        up: float = self.up or total / (2 * self.cycles)
        size = up + (self.down or up)
        cycle, since = divmod(t, size)
        height = since / up if since <= up else (size - since) / (size - up)
        if self.mode == "triangular":
            return height
        return float(height * (0.5**cycle if self.mode == "triangular2" else self.gamma**t))


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


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "step": Step,
    "multi-step": MultiStep,
    "exponential": Exponential,
    "polynomial": Polynomial,
    "cosine": Cosine,
    "cosine-restarts": CosineRestarts,
    "one-cycle": OneCycle,
    "cyclic": Cyclic,
    "plateau": Plateau,
}

ScheduleChoice = Annotated[SerializeAsAny[Schedule], resolve(SCHEDULES, "schedule", CustomSchedule)]


def lr_factor(schedule: Schedule, progress: Progress, warmup_frac: float = 0.0) -> float:
    """The multiple of `recipe.lr` for the step about to be taken, warm-up included.

    The first `w = round(warmup_frac * total_steps)` steps go in a straight line from `1 / (w + 1)` of the schedule's
    first value up to it: `(step + 1) / (w + 1)`. Afterwards a schedule in steps sees step `step - w` of `total - w`
    (torch's `SequentialLR(LinearLR(start_factor=1 / (w + 1), total_iters=w), ...)`), while one in epochs counts the
    epochs of the whole training.

    Args:
        schedule: the schedule after warm-up.
        progress: where the training stands.
        warmup_frac: part of all steps spent warming up, in [0, 1].

    Returns:
        The factor, finite and at least 0.

    >>> lr_factor(Constant(), Progress(step=1, total_steps=10, epoch=0, epochs=1), warmup_frac=0.3)
    0.5
    """
    warmup = round(warmup_frac * progress.total_steps)
    if not warmup:
        return schedule.factor(progress)
    ramp = min(1.0, (progress.step + 1) / (warmup + 1))
    return ramp * schedule.factor(_after(progress, warmup))


def momentum_at(schedule: Schedule, progress: Progress, warmup_frac: float = 0.0) -> float | None:
    """The schedule's momentum for the step about to be taken, held at its first value during warm-up.

    Args:
        schedule: the schedule after warm-up.
        progress: where the training stands.
        warmup_frac: part of all steps spent warming up, in [0, 1].

    Returns:
        Momentum in (0, 1), or None when the schedule does not move it.
    """
    warmup = round(warmup_frac * progress.total_steps)
    return schedule.momentum(_after(progress, warmup) if warmup else progress)


class BatchGrowth(Part):
    """Batches that grow by `factor` every `every` epochs: where lr decay would have come, noise falls all the same.

    Source: Smith et al. 2018, Don't Decay the Learning Rate, Increase the Batch Size (arXiv 1711.00489).
    """

    name: Literal["grow"] = "grow"
    factor: float = Field(2.0, gt=1, description="Multiplier at each growth.")
    every: int = Field(5, ge=1, description="Epochs between two growths.")
    maximum: int = Field(1024, ge=1, description="Batches grow no further than this.")

    def batch_size(self, base: int, epoch: int) -> int:
        """The batch size in an epoch: `min(maximum, base * factor ** (epoch // every))`, never below `base`.

        >>> [BatchGrowth(every=2, maximum=200).batch_size(64, epoch) for epoch in range(6)]
        [64, 64, 128, 128, 200, 200]
        """
        growths = epoch // self.every
        room = max(1.0, self.maximum / base)
        if growths * math.log(self.factor) >= math.log(room):
            return base if growths == 0 else max(base, self.maximum)
        return int(base * self.factor**growths)


BATCH_SCHEDULES: dict[str, type[BatchGrowth]] = {"grow": BatchGrowth}

BatchGrowthChoice = Annotated[BatchGrowth, resolve(BATCH_SCHEDULES, "batch-size schedule")]


def _clock(unit: Unit, progress: Progress) -> tuple[int, int]:
    """Time and its end in a schedule's unit."""
    if unit == "step":
        return progress.step, progress.total_steps
    return progress.epoch, progress.epochs


def _after(progress: Progress, warmup: int) -> Progress:
    """The same point with steps counted from the end of warm-up."""
    step, total = max(0, progress.step - warmup), max(1, progress.total_steps - warmup)
    return Progress(step, total, progress.epoch, progress.epochs, progress.history, progress.minimise)


def _half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) / 2 * (math.cos(math.pi * done) + 1)


def _line(start: float, end: float, done: float) -> float:
    return (end - start) * done + start


def _check_momenta(base: float, maximum: float) -> None:
    if base > maximum:
        raise LuthierError(f"base_momentum must not exceed max_momentum, got {base} > {maximum}: exchange them")
