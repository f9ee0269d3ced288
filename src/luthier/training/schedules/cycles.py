"""Schedules that rise as well: restarts, one cycle, triangles; momentum moves against the last two."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from luthier.errors import LuthierError
from luthier.training.schedules.schedule import UNIT_TEXT, Progress, Schedule, Unit, half_cosine


class CosineRestarts(Schedule):
    """Cosines that restart, each period `growth` times the last; torch's CosineAnnealingWarmRestarts.

    Without a period the training holds three whole ones: `period = total / (1 + growth + growth^2)`.

    Source: Loshchilov & Hutter 2017, SGDR, equation 5.
    """

    name: Literal["cosine-restarts"] = "cosine-restarts"
    period: int | None = Field(None, ge=1, description="Units to the first restart (T_0); None: three whole periods.")
    growth: int = Field(2, ge=1, le=100, description="Each period is this many times the one before (T_mult).")
    min_factor: float = Field(0.0, ge=0, le=1, description="Factor at the end of each period.")
    unit: Unit = Field("epoch", description=UNIT_TEXT)

    def factor(self, progress: Progress) -> float:
        """`min + (1 - min) * (1 + cos(pi * t_cur / T_i)) / 2`."""
        t, total = progress.clock(self.unit)
        period: float = self.period or total / (1 + self.growth + self.growth**2)
        since = t % period if self.growth == 1 else float(t)
        while since >= period:
            since, period = since - period, period * self.growth
        return half_cosine(1.0, self.min_factor, since / period)


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
                shape = half_cosine if self.anneal == "cos" else _line
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
    unit: Unit = Field("step", description=UNIT_TEXT)
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
        t, total = progress.clock(self.unit)
        up: float = self.up or total / (2 * self.cycles)
        size = up + (self.down or up)
        cycle, since = divmod(t, size)
        height = since / up if since <= up else (size - since) / (size - up)
        if self.mode == "triangular":
            return height
        return float(height * (0.5**cycle if self.mode == "triangular2" else self.gamma**t))


def _line(start: float, end: float, done: float) -> float:
    return (end - start) * done + start


def _check_momenta(base: float, maximum: float) -> None:
    if base > maximum:
        raise LuthierError(f"base_momentum must not exceed max_momentum, got {base} > {maximum}: exchange them")
