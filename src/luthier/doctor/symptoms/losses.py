"""The training loss as a curve: levels by medians, slopes by straight lines, noise from differences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from luthier.doctor.symptoms.readings import metric, remembered
from luthier.doctor.vitals import Vitals


@dataclass(frozen=True)
class LossCurve:
    """The training loss per step, finite values only.

    Attributes:
        steps, values: the points.
        smooth: running medians of `values` (window of a twentieth of them, 3-25).
        start: first value, or the median of the first 3 if that is less.
        end: trimmed mean of the last eighth (5-60 values).
        best, peak: smallest smoothed value; largest median of 3 successive values after the first.
        noise: standard deviation of the values around their trend, in the second half (from differences: robust).
        drop: fall of a straight line through the last third, over that third; negative when it rises.
        drop_error: standard error of `drop`, from `noise`.
        lost_at: step from which on the loss is not finite; None when it stays finite.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]
    smooth: tuple[float, ...]
    start: float
    end: float
    best: float
    peak: float
    noise: float
    drop: float
    drop_error: float
    lost_at: int | None

    def level(self, begin: float, end: float) -> float:
        """Median loss between two fractions (0-1) of the training."""
        n = len(self.values)
        return median(self.values[int(begin * n) : max(int(end * n), int(begin * n) + 1)] or self.values[-1:])

    @property
    def falls(self) -> bool:
        """The last third falls by more than its noise explains."""
        return self.drop > 3 * self.drop_error


def loss_curve(vitals: Vitals) -> LossCurve | None:
    """The training loss with its levels; None below 5 known values (2 if it was lost).

    Per-step losses come first; without them the metric of the training loss (one value an epoch).
    """
    return remembered(vitals, "loss_curve", _loss_curve)


def _loss_curve(vitals: Vitals) -> LossCurve | None:
    points, lost_at = _points(vitals)
    if len(points) < 5 and lost_at is None:
        points = metric(vitals, "train", "loss")
        points = [(step, value) for step, value in points if math.isfinite(value)]
    if len(points) < (5 if lost_at is None else 2):
        return None
    values = [value for _, value in points]
    smooth = _running_median(values)
    tail = min(max(len(values) // 8, 5), 60)
    noise = _noise(values[len(values) // 2 :])
    third = values[-max(len(values) // 3, 3) :]
    return LossCurve(
        steps=tuple(step for step, _ in points),
        values=tuple(values),
        smooth=tuple(smooth),
        start=min(values[0], median(values[:3])),
        end=_level(values[-tail:]),
        best=min(smooth),
        peak=max(median(values[i : i + 3]) for i in range(1, max(len(values) - 2, 2))),
        noise=noise,
        drop=-slope(third) * len(third),
        drop_error=noise * math.sqrt(12 / len(third)),
        lost_at=lost_at,
    )


def _points(vitals: Vitals) -> tuple[list[tuple[int, float]], int | None]:
    """Finite losses, and the step of the first loss of a run of NaN or infinity that reaches to the end."""
    pairs = list(zip(vitals.steps.step, vitals.steps.loss, strict=False))
    points = [(step, float(loss)) for step, loss in pairs if math.isfinite(loss)]
    infinite = next((step for step, loss in pairs if math.isinf(loss)), None)
    if not points:
        return points, infinite
    last = points[-1][0]
    gap = max([later - earlier for (earlier, _), (later, _) in itertools.pairwise(points)] or [1])
    behind = [step for step, loss in pairs if step > last]
    lost = behind[0] if len(behind) >= max(2, min(2 * gap, 20)) else None
    return points, min((step for step in (infinite, lost) if step is not None), default=None)


def _level(values: Sequence[float]) -> float:
    """Mean without the highest and lowest tenth: a median would miss the few large losses of tiny batches."""
    cut = len(values) // 10
    kept = sorted(values)[cut : len(values) - cut]
    return sum(kept) / len(kept)


def _running_median(values: Sequence[float]) -> list[float]:
    half = min(max(len(values) // 20, 3), 25) // 2
    return [median(values[max(i - half, 0) : i + half + 1]) for i in range(len(values))]


def _noise(values: Sequence[float]) -> float:
    """Standard deviation around the trend, from the median of differences of neighbours (0.954 = 1.349/sqrt(2)).

    What the trend itself puts between neighbours is taken off: it counts where steps are few.
    """
    trend = slope(values)
    differences = [abs(later - earlier - trend) for earlier, later in itertools.pairwise(values)]
    return 1.4826 * median(differences) / math.sqrt(2) if differences else 0.0


def slope(values: Sequence[float]) -> float:
    """Slope per position of the least-squares line.

    >>> slope([3.0, 2.0, 1.0])
    -1.0
    """
    n = len(values)
    if n < 2:
        return 0.0
    centre, mean = (n - 1) / 2, sum(values) / n
    above = sum((i - centre) * (value - mean) for i, value in enumerate(values))
    return above / sum((i - centre) ** 2 for i in range(n))
