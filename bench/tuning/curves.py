"""What the runs of a folder show: anytime curves, times to a value, means over seeds."""

from __future__ import annotations

import bisect
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TUTORIAL = "optuna-tutorial"
Curve = list[tuple[float, float]]
"""(seconds, best validation accuracy so far), only where it rises."""


def curve(readings: list[dict[str, Any]], seconds: float) -> Curve:
    """The best so far over time.

    >>> curve([{"t": 1.0, "value": 0.5}, {"t": 2.0, "value": 0.4}, {"t": 3.0, "value": 0.6}], 10.0)
    [(1.0, 0.5), (3.0, 0.6)]
    """
    points: Curve = []
    for reading in readings:
        if reading["t"] <= seconds and (not points or reading["value"] > points[-1][1]):
            points.append((round(reading["t"], 3), reading["value"]))
    return points


def reached_s(points: Curve, value: float) -> float:
    """When a curve first came to a value; infinite when never."""
    return next((t for t, best in points if best >= value), math.inf)


def at(points: Curve, t: float) -> float:
    """The best at a time; NaN before the first reading."""
    index = bisect.bisect_right([point[0] for point in points], t)
    return points[index - 1][1] if index else math.nan


@dataclass(frozen=True)
class Figures:
    """One contender on one task, over its search seeds; pairs are (mean, deviation).

    Attributes:
        seeds: how many.
        val, test: of the retrained winners: mean over the fresh seeds, then over the search seeds.
        best: best reading of the search.
        epochs, trials: how much was trained.
        first_s: time to the first reading, median.
        to_best_s, to_retrained_s: time until the tutorial's best reading, and until its retrained winner's validation:
            median over all pairs of this contender's and the tutorial's seeds.
        to_best, to_retrained: the same as shares of the time that the tutorial itself took for that value.
    """

    seeds: int
    val: tuple[float, float]
    test: tuple[float, float]
    best: tuple[float, float]
    epochs: float
    trials: float
    first_s: float
    to_best_s: float
    to_best: float
    to_retrained_s: float
    to_retrained: float


def load(folder: Path) -> dict[tuple[str, float], dict[str, list[dict[str, Any]]]]:
    """Results by (task, seconds) and contender, in the order of their seeds."""
    runs: dict[tuple[str, float], dict[str, list[dict[str, Any]]]] = {}
    for path in sorted((folder / "runs").glob("*.json")):
        run = json.loads(path.read_text())
        runs.setdefault((run["task"], run["seconds"]), {}).setdefault(run["contender"], []).append(run)
    return runs


def figures(runs: list[dict[str, Any]], tutorial: list[dict[str, Any]]) -> Figures:
    """The figures of one contender beside the tutorial's."""
    best, retrained = targets(tutorial, _best), targets(tutorial, _retrained)
    to_best, to_retrained = times(runs, best), times(runs, retrained)
    return Figures(
        seeds=len(runs),
        val=spread([_retrained(run) for run in runs]),
        test=spread([statistics.fmean(run["retrained"]["test"]) for run in runs]),
        best=spread([_best(run) for run in runs]),
        epochs=statistics.fmean(run["epochs"] for run in runs),
        trials=statistics.fmean(run["trials"] for run in runs),
        first_s=statistics.median(run["first_s"] for run in runs),
        to_best_s=to_best[0],
        to_best=to_best[1],
        to_retrained_s=to_retrained[0],
        to_retrained=to_retrained[1],
    )


@dataclass(frozen=True)
class Pair:
    """A run beside the tutorial's with the same search seed.

    Attributes:
        val: of the retrained winner, mean over the fresh seeds.
        to_best, to_retrained: seconds to the tutorial's best reading and to its retrained winner's validation, and both
            as shares of its own seconds (NaN where it never came there itself).
    """

    val: float
    to_best: tuple[float, float]
    to_retrained: tuple[float, float]


def pairs(runs: list[dict[str, Any]], tutorial: list[dict[str, Any]]) -> dict[int, Pair]:
    """By search seed, the runs that have a tutorial's beside them."""
    beside, found = {run["seed"]: run for run in tutorial}, {}
    for run in runs:
        if (other := beside.get(run["seed"])) is not None:
            best, own_best_s = targets([other], _best)[0]
            retrained, own_retrained_s = targets([other], _retrained)[0]
            reached = [reached_s(run["curve"], value) for value in (best, retrained)]
            shares = [
                t / own if own < math.inf else math.nan
                for t, own in zip(reached, (own_best_s, own_retrained_s), strict=True)
            ]
            found[run["seed"]] = Pair(_retrained(run), (reached[0], shares[0]), (reached[1], shares[1]))
    return found


def _best(run: dict[str, Any]) -> float:
    best: float = run["curve"][-1][1]
    return best


def _retrained(run: dict[str, Any]) -> float:
    return statistics.fmean(run["retrained"]["val"])


def targets(tutorial: list[dict[str, Any]], value: Any) -> list[tuple[float, float]]:
    """For each seed of the tutorial a value, and the seconds that it took itself to come to it."""
    return [(target := value(run), reached_s(run["curve"], target)) for run in tutorial]


def times(runs: list[dict[str, Any]], goals: list[tuple[float, float]]) -> tuple[float, float]:
    """Medians over all pairs of run and goal: seconds to the goal, and their share of the tutorial's own.

    The share is NaN when no seed of the tutorial came to its own goal: retrained, a winner may be better than it was.
    """
    reached = [(reached_s(run["curve"], value), own_s) for run in runs for value, own_s in goals]
    shares = [t / own_s for t, own_s in reached if own_s < math.inf]
    seconds = statistics.median(t for t, _ in reached) if reached else math.nan
    return seconds, statistics.median(shares) if shares else math.nan


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation (0 of a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
