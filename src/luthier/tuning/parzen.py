"""The tree-structured Parzen estimator, in numpy: one density of the good trials, one of the others.

All dimensions are modelled jointly: a trial is one kernel, the product of a truncated normal for each number (on its
range's own scale, [0, 1]) and a smoothed point for each choice. A field that was absent from a trial is flat in its
kernel, so conditional spaces need no groups. Optuna's own estimator gives the same answers in kind at ten times the
cost; it can be passed as an object.

Shapes: m candidates, n kernels (the last one the prior).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.tuning.conditions import active
from luthier.tuning.drawing import uniform_random
from luthier.tuning.ranges import Choice, Range, Uniform
from luthier.tuning.views import Seen, View

RANDOM_SHARE = 0.1
"""Share of the answers that are drawn at random instead."""

STARTUP = 8
"""Trials with a reading before the estimator is asked; until then answers are random."""

GOOD_SHARE = 0.15
"""Share of the trials that counts as good."""

LEAST_WIDTH = 0.1
"""Least standard deviation of a kernel, as a part of its range: narrower ones settle too early."""

CANDIDATES = 24
MOST_GOOD = 25
MOST_OTHERS = 400

Floats = NDArray[np.float64]


def tpe(view: View) -> dict[str, Any]:
    """The candidate, drawn from the density of the good trials, where that most exceeds the density of the others.

    Good are the best 15%, at most 25; how trials rank says `View.ranked`. Running trials count as others (constant
    liar), failed ones too (a constraint that they violate). A tenth of the answers is drawn at random: without them the
    estimator can settle on the first options of the choices that did well.

    Source: Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization; Watanabe 2023, Tree-Structured Parzen
    Estimator: Understanding Its Algorithm Components; the random share: Falkner et al. 2018, BOHB (there a third).
    """
    return uniform_random(view) if view.rng("share").random() < RANDOM_SHARE else pure_tpe(view)


def pure_tpe(view: View) -> dict[str, Any]:
    """`tpe` without the random share."""
    if sum(map(_has_worked, view.seen)) < STARTUP:
        return uniform_random(view)
    good, others = split(view)
    rng = np.random.default_rng(view.seed)
    density = Density(view, good)
    columns = density.draw(rng, CANDIDATES)
    candidates = [
        active(view.space, {path: view.space[path].at(float(column[row])) for path, column in columns.items()})
        for row in range(CANDIDATES)
    ]
    gains = density.log(candidates) - Density(view, others).log(candidates)
    return candidates[int(np.argmax(gains))]


def split(view: View) -> tuple[list[Seen], list[Seen]]:
    """The good trials and the most recent of the others, both in the order of their numbers.

    A trial that violated a constraint (out of memory, a crash, divergence) is never good, however few others there are.
    """
    n_read = sum(not seen.open for seen in view.seen)
    n_good = min(math.ceil(GOOD_SHARE * n_read), MOST_GOOD, sum(map(_has_worked, view.seen)))
    good = set(view.ranked(n_good))
    others = [seen for index, seen in enumerate(view.seen) if index not in good]
    return [view.seen[index] for index in sorted(good)], others[-MOST_OTHERS:]


def _has_worked(seen: Seen) -> bool:
    return seen.scores is not None and not seen.open and not seen.violated


class Density:
    """A mixture of one kernel for each trial, and one flat kernel, the prior.

    Args:
        view: the space.
        trials: the kernels' centres, in the order of their numbers; the last 25 weigh 1, earlier ones less.
    """

    def __init__(self, view: View, trials: Sequence[Seen]) -> None:
        self.space = view.space
        weights = np.append(recency(len(trials)), 1.0)
        self.weights = weights / weights.sum()
        self.centres = {
            path: positions(range_, path, [t.values for t in trials]) for path, range_ in view.space.items()
        }
        self.widths = {
            path: widths(self.centres[path], range_)
            for path, range_ in view.space.items()
            if not isinstance(range_, Choice)
        }

    def draw(self, rng: np.random.Generator, count: int) -> dict[str, Floats]:
        """Positions of `count` draws, a column for each field."""
        kernels = rng.choice(len(self.weights), size=count, p=self.weights)
        columns = {}
        for path, range_ in self.space.items():
            centres = np.append(self.centres[path], np.nan)[kernels]
            if isinstance(range_, Choice):
                moved = rng.random(count) < moving(range_.size, len(self.weights))
                columns[path] = np.where(moved | np.isnan(centres), rng.random(count), centres)
            else:
                spread = np.append(self.widths[path], 1.0)[kernels]
                drawn = truncated(rng.random(count), np.nan_to_num(centres, nan=0.5), spread)
                columns[path] = np.where(np.isnan(centres), rng.random(count), drawn)
        return columns

    def log(self, candidates: list[dict[str, Any]]) -> Floats:
        """Log density of each candidate, (m,)."""
        total = np.zeros((len(candidates), len(self.weights)))
        for path, range_ in self.space.items():
            at_m = positions(range_, path, candidates)[:, None]
            centres_n = self.centres[path][None, :]
            if isinstance(range_, Choice):
                part = choice_kernel(at_m, centres_n, range_.size, len(self.weights))
            else:
                part = normal_kernel(at_m, centres_n, self.widths[path][None, :])
            total[:, :-1] += np.where(np.isnan(part), 0.0, part)  # absent from one of the two: flat
        total += np.log(self.weights)
        top = total.max(axis=1, keepdims=True)
        return np.asarray(np.log(np.exp(total - top).sum(axis=1)) + top[:, 0])


def positions(range_: Range, path: str, values: Sequence[dict[str, Any]]) -> Floats:
    """Where the values of a field lie on its scale; NaN where it is absent."""
    return np.array([range_.position(each[path]) if path in each else math.nan for each in values])


def widths(centres: Floats, range_: Range) -> Floats:
    """Standard deviations of the kernels: the larger distance to a neighbour, within bounds.

    At least a tenth of the range, more while kernels are few, and half of a discrete range's step.
    """
    order = np.argsort(centres)  # NaN last
    known = centres[order][: int((~np.isnan(centres)).sum())]
    edges = np.concatenate([[0.0], known, [1.0]])
    gaps = np.diff(edges)
    sides = np.maximum(gaps[:-1], gaps[1:]) if len(known) else gaps[:0]
    if len(known) > 1:  # the outermost know their neighbour only
        sides[0], sides[-1] = gaps[1], gaps[-2]
    continuous = isinstance(range_, Uniform) and range_.step is None
    floor = max(LEAST_WIDTH, 1 / (2 + len(known)), 0.0 if continuous else 0.5 / (range_.size or 1))
    result = np.ones(len(centres))
    result[order[: len(known)]] = np.clip(sides, floor, 1.0)
    return result


def truncated(uniform: Floats, centres: Floats, spread: Floats) -> Floats:
    """Draws of normals truncated to [0, 1], by their inverse distribution function."""
    from scipy.special import ndtr, ndtri  # a third of a second: workers start meanwhile

    low, high = ndtr(-centres / spread), ndtr((1 - centres) / spread)
    return np.asarray(np.clip(centres + spread * ndtri(low + uniform * (high - low)), 0.0, 1.0))


def normal_kernel(at_m: Floats, centres_n: Floats, widths_n: Floats) -> Floats:
    """Log densities of normals truncated to [0, 1], (m, n)."""
    from scipy.special import ndtr

    mass = ndtr((1 - centres_n) / widths_n) - ndtr(-centres_n / widths_n)
    return np.asarray(
        -0.5 * ((at_m - centres_n) / widths_n) ** 2 - np.log(widths_n * mass) - 0.5 * math.log(2 * math.pi)
    )


def moving(size: int, n: int) -> float:
    """Chance that a kernel draws its option anew: 1 in n of its weight is spread over all options.

    The kernel has 1 for its own option and 1/n for every one, as in Optuna.
    """
    return size / (size + n)


def choice_kernel(at_m: Floats, centres_n: Floats, size: int, n: int) -> Floats:
    """Log probabilities of the options times their number, so that the flat kernel is 0, (m, n)."""
    same = np.where(np.isnan(at_m + centres_n), np.nan, np.abs(at_m - centres_n) < 0.5 / size)
    spread = moving(size, n)
    return np.asarray(np.log(same * (1 - spread) * size + spread))


def recency(count: int) -> Floats:
    """Weights of trials in the order of their numbers: the last 25 weigh 1, earlier ones linearly less."""
    return np.concatenate([np.linspace(1 / max(count, 1), 1.0, max(count - 25, 0)), np.ones(min(count, 25))])
