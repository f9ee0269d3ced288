"""The Pareto front: what cannot be had better in one objective without losing in another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from luthier.errors import LuthierError


def pareto_front(values: Sequence[Sequence[float]], directions: Sequence[str]) -> list[int]:
    """Indices of the points that no other point dominates, in their order; equal points are all kept.

    A point dominates another that it is nowhere worse than and somewhere better. A point with NaN is never on the
    front.

    Args:
        values: n points of k objectives, (n, k).
        directions: "max" or "min" for each of the k.

    >>> pareto_front([(0.9, 5.0), (0.8, 1.0), (0.7, 2.0)], ["max", "min"])
    [0, 1]

    Raises:
        LuthierError: an unknown direction, or a point with another number of objectives.
    """
    check_directions(directions)
    if wrong := next((point for point in values if len(point) != len(directions)), None):
        raise LuthierError(f"expected {len(directions)} objectives in every point, got {tuple(wrong)}")
    signs = [-1.0 if direction == "max" else 1.0 for direction in directions]
    losses = [tuple(s * value for s, value in zip(signs, point, strict=True)) for point in values]
    known = [index for index, loss in enumerate(losses) if not any(map(math.isnan, loss))]
    front: list[int] = []
    for index in sorted(known, key=losses.__getitem__):  # what dominates a point sorts before it
        if not any(dominates(losses[other], losses[index]) for other in front):
            front.append(index)
    return sorted(front)


def by_front(losses: Sequence[Sequence[float]]) -> Iterator[int]:
    """Indices of all points, front after front; within a front the least crowded first, its ends before all.

    A front is looked for when it is asked for, so that the first few of many points come soon.

    Source: Deb et al. 2002, NSGA-II: non-dominated sorting and crowding distance.
    """
    for front in _fronts(losses):
        crowding = _crowding([losses[index] for index in front])
        yield from (index for _, index in sorted(zip([-each for each in crowding], front, strict=True)))


def _fronts(losses: Sequence[Sequence[float]]) -> Iterator[list[int]]:
    """Indices front by front, each in order: none in a front dominates another there."""
    points_NK, left_N = np.array(losses, dtype=float), np.arange(len(losses))
    while left_N.size:
        front, done = left_N, 0
        while done < front.size:  # each of them in turn sends away what it dominates
            one_K, points_FK = points_NK[front[done]], points_NK[front]
            stays_F = ~((points_FK >= one_K).all(axis=1) & (points_FK > one_K).any(axis=1))
            done = int(np.count_nonzero(stays_F[: done + 1]))
            front = front[stays_F]
        yield front.tolist()
        left_N = np.setdiff1d(left_N, front, assume_unique=True)


def _crowding(losses: Sequence[Sequence[float]]) -> list[float]:
    """For each point the sum over objectives of the distance between its two neighbours, as a part of the span."""
    total = [0.0] * len(losses)
    for column in zip(*losses, strict=True):
        order = sorted(range(len(column)), key=column.__getitem__)
        span = (column[order[-1]] - column[order[0]]) or 1.0
        total[order[0]] = total[order[-1]] = math.inf
        for before, index, after in zip(order, order[1:], order[2:], strict=False):
            total[index] += (column[after] - column[before]) / span
    return total


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether losses `one` are nowhere above `other` and somewhere below."""
    return tuple(one) != tuple(other) and all(a <= b for a, b in zip(one, other, strict=True))


def check_directions(directions: Sequence[str]) -> None:
    """Whether every objective has its direction.

    Raises:
        LuthierError: none at all, or one that is neither "max" nor "min".
    """
    if isinstance(directions, str) or not directions or any(each not in ("max", "min") for each in directions):
        raise LuthierError(f"expected a direction, 'max' or 'min', for each objective, got {directions!r}")
