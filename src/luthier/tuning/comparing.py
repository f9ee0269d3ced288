"""Is the winner better than the baseline? The same seeds for both, and a paired t interval over their differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev

from luthier.tuning.state import State, Trial

_ENOUGH = 2


@dataclass(frozen=True)
class Comparison:
    """Winner against baseline, seed by seed.

    Attributes:
        metric, direction: what is compared, and which way is better; of several objectives the first.
        baseline, winner: best validation value per seed, the same seeds in the same order.
        difference: mean paired gain; positive is better whatever the direction.
        low, high: its 95 % t interval; infinite with a single seed.
        winner_number: the search trial that won.
        test: {"baseline": {"loss", metric}, "winner": {...}}, or None.
        others: means of the other objectives over the same seeds, by name: (baseline's, winner's).
        retrained: whether these are retrainings; else the search's own readings, of one seed.
        decides: whether they say who is better: retrainings over two seeds at least, or over all that were asked for.
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
    others: dict[str, tuple[float, float]] = field(default_factory=dict)
    retrained: bool = True
    decides: bool = True

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
    retrained = bool(seeds)
    if not retrained:  # the search's own readings, from which no interval follows
        seeds, baseline, best = [winner.seed], {winner.seed: first}, {winner.seed: winner}
    scores = {
        each.name: [[side[seed].scores[each.name] for seed in seeds] for side in (baseline, best)]
        for each in state.objectives
    }
    before, after = scores.pop(state.metric)
    difference, low, high = paired_interval([state.sign * (old - new) for old, new in zip(before, after, strict=True)])
    tests = {"baseline": state.tests.get(0), "winner": state.tests.get(winner.number)}
    return Comparison(
        metric=state.metric,
        direction=state.direction,
        baseline=before,
        winner=after,
        difference=difference,
        low=low,
        high=high,
        winner_number=winner.number,
        test={name: values for name, values in tests.items() if values} if all(tests.values()) else None,
        others={name: (mean(old), mean(new)) for name, (old, new) in scores.items()},
        retrained=retrained,
        decides=retrained and len(seeds) >= min(_ENOUGH, state.settings.get("repeats", _ENOUGH)),
    )


def by_seed(state: State, trial: Trial) -> dict[int, Trial]:
    """The finished retrainings of a trial, by their seeds.

    The search's own seed is left out: the winner was chosen for its reading with it, which flatters it.
    """
    return {repeat.seed: repeat for repeat in state.repeats(trial.number) if repeat.state == "finished"}
