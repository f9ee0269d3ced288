"""Is a change better, or is it noise? Paired differences over seeds, with a spread that starts from what is known.

Two or three seeds tell little about a spread. So it starts from what a validation part of this size must show by
chance, worth two observations, and every pair of trainings of this mending sharpens it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import Literal

PRIOR_WEIGHT = 2.0
CONFIDENCE = 1.645  # one-sided 95 %
CLEAR = 4.0

Verdict = Literal["better", "worse", "open"]


@dataclass(frozen=True)
class Effect:
    """What a change did to the validation metric.

    Attributes:
        gains: paired differences, one per seed; positive is better whatever the metric's direction.
        spread: standard deviation of one such difference.
    """

    gains: tuple[float, ...]
    spread: float

    @property
    def mean(self) -> float:
        """Mean gain; minus infinity when a training with the change failed, infinite when only one without it did."""
        if -math.inf in self.gains:
            return -math.inf
        return fmean(self.gains)

    @property
    def error(self) -> float:
        """Standard error of the mean gain."""
        return self.spread / math.sqrt(len(self.gains))

    @property
    def verdict(self) -> Verdict:
        """Whether it is better or worse beyond noise; else the question is open."""
        if abs(self.mean) <= CONFIDENCE * self.error:
            return "open"
        return "better" if self.mean > 0 else "worse"

    @property
    def is_clear(self) -> bool:
        """So large that noise is out of the question, even with one seed."""
        return self.mean > CLEAR * self.error


@dataclass
class Noise:
    """The spread of a paired difference, pooled over all comparisons of one mending.

    Attributes:
        prior: standard deviation to start from, counted as `PRIOR_WEIGHT` observations.
        squares, freedom: sum of squared deviations from each comparison's own mean, and their degrees of freedom.
    """

    prior: float
    squares: float = 0.0
    freedom: int = 0
    seen: dict[object, tuple[float, int]] = field(default_factory=dict)

    @property
    def spread(self) -> float:
        """Posterior mean of the variance, as a standard deviation."""
        return math.sqrt((PRIOR_WEIGHT * self.prior**2 + self.squares) / (PRIOR_WEIGHT + self.freedom))

    def learn(self, key: object, gains: Sequence[float]) -> None:
        """Take in the differences of one comparison; those of the same key replace its earlier ones."""
        if len(gains) < 2 or not all(math.isfinite(gain) for gain in gains):
            return
        middle = fmean(gains)
        new = (sum((gain - middle) ** 2 for gain in gains), len(gains) - 1)
        old = self.seen.get(key, (0.0, 0))
        self.seen[key] = new
        self.squares += new[0] - old[0]
        self.freedom += new[1] - old[1]

    def effect(self, gains: Sequence[float]) -> Effect:
        """The effect that these differences show."""
        return Effect(tuple(gains), self.spread)


def chance_spread(value: float | None, n: int) -> float:
    """Spread of a share measured on n examples: sqrt(p (1 - p) / n), never below one example.

    Two recipes read on the same examples differ by less than two independent readings would, so this one binomial
    standard error stands for their difference.

    Args:
        value: the share, such as an accuracy; None counts as one half.
        n: validation examples.

    >>> round(chance_spread(0.9, 900), 4)
    0.01
    """
    p = 0.5 if value is None else min(max(value, 0.0), 1.0)
    return max(math.sqrt(p * (1 - p) / n), 1 / n)


def curve_spread(values: Sequence[float], share: float = 0.02) -> float:
    """Spread of a metric without a known scale: how it jumps over the last quarter of its evaluations.

    Args:
        values: the metric after each evaluation.
        share: of the last value, the least that is taken for noise.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0
    last = finite[-max(3, len(finite) // 4) :]
    jumps = [after - before for before, after in pairwise(last)]
    middle = fmean(jumps) if jumps else 0.0
    jump = math.sqrt(fmean([(item - middle) ** 2 for item in jumps]) / 2) if jumps else 0.0
    return max(jump, share * abs(finite[-1]))
