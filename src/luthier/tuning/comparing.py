"""Is the winner better than the baseline? The same seeds for both, and a paired t interval over their differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from luthier.tuning.state import State, Trial


@dataclass(frozen=True)
class Comparison:
    """Winner against baseline, seed by seed.

    Attributes:
        metric, direction: what is compared, and which way is better.
        baseline, winner: best validation value per seed, the same seeds in the same order.
        difference: mean paired gain; positive is better whatever the direction.
        low, high: its 95 % t interval; infinite with a single seed.
        winner_number: the search trial that won.
        test: {"baseline": {"loss", metric}, "winner": {...}}, or None.
    """

    metric: str
    direction: str
    baseline: list[float]
    winner: list[float]
    difference: float
    low: float
    high: float
    winner_number: int
    test: dict[str, dict[str, float]] | None

    @property
    def better(self) -> bool:
        """Whether the gain is shown: the whole interval lies above zero."""
        return self.low > 0


def paired_interval(gains: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean and t interval of paired differences: mean ± t(n - 1) s / sqrt(n).

    Args:
        gains: one difference per seed, at least one.
        level: of confidence.

    Returns:
        Mean, lower and upper end; infinite ends with a single gain.

    >>> [round(value, 4) for value in paired_interval([0.1, 0.2, 0.3])]
    [0.2, -0.0484, 0.4484]

    Source: Student 1908; any textbook's paired t test.
    """
    middle = mean(gains)
    if len(gains) < 2:
        return middle, -math.inf, math.inf
    from scipy.special import stdtrit  # scipy.stats takes two seconds to import

    half = float(stdtrit(len(gains) - 1, (1 + level) / 2)) * stdev(gains) / math.sqrt(len(gains))
    return middle, middle - half, middle + half


def compare(state: State) -> Comparison | None:
    """The comparison that a study's trials allow; None without a finished baseline and a finished other trial."""
    winner, first = state.winner, state.baseline
    if winner is None or first is None or first.state != "finished":
        return None
    baseline, best = by_seed(state, first), by_seed(state, winner)
    seeds = [seed for seed in baseline if seed in best]
    if not seeds:  # nothing was retrained: the search's own readings, from which no interval follows
        seeds, baseline, best = [winner.seed], _own(first, winner.seed), _own(winner, winner.seed)
    sign = 1.0 if state.direction == "max" else -1.0
    difference, low, high = paired_interval([sign * (best[seed] - baseline[seed]) for seed in seeds])
    tests = {"baseline": state.tests.get(0), "winner": state.tests.get(winner.number)}
    return Comparison(
        metric=state.metric,
        direction=state.direction,
        baseline=[baseline[seed] for seed in seeds],
        winner=[best[seed] for seed in seeds],
        difference=difference,
        low=low,
        high=high,
        winner_number=winner.number,
        test={name: values for name, values in tests.items() if values} if all(tests.values()) else None,
    )


def by_seed(state: State, trial: Trial) -> dict[int, float]:
    """Best validation value of a recipe for each further seed that it was retrained with.

    The search's own seed is left out: the winner was chosen for its reading with it, which flatters it.
    """
    retrained = (repeat for repeat in state.repeats(trial.number) if repeat.state == "finished")
    return {repeat.seed: repeat.value for repeat in retrained if repeat.value is not None}


def _own(trial: Trial, seed: int) -> dict[int, float]:
    return {seed: math.nan if trial.value is None else trial.value}
