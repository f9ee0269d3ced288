"""The Pareto front: what cannot be had better in one objective without losing in another."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    return _first_front(losses, [index for index, loss in enumerate(losses) if not any(map(math.isnan, loss))])


def by_front(losses: Sequence[Sequence[float]]) -> list[int]:
    """Indices of all points, front after front; within a front the least crowded first, its ends before all.

    Source: Deb et al. 2002, NSGA-II: non-dominated sorting and crowding distance.
    """
    order: list[int] = []
    left = list(range(len(losses)))
    while left:
        front = _first_front(losses, left)
        crowding = _crowding([losses[index] for index in front])
        order += [index for _, index in sorted(zip([-each for each in crowding], front, strict=True))]
        left = [index for index in left if index not in set(front)]
    return order


def _first_front(losses: Sequence[Sequence[float]], among: Sequence[int]) -> list[int]:
    front: list[int] = []
    for index in sorted(among, key=lambda index: tuple(losses[index])):  # what dominates a point sorts before it
        if not any(dominates(losses[other], losses[index]) for other in front):
            front.append(index)
    return sorted(front)


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
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def check_directions(directions: Sequence[str]) -> None:
    """Whether every objective has its direction.

    Raises:
        LuthierError: none at all, or one that is neither "max" nor "min".
    """
    if isinstance(directions, str) or not directions or any(each not in ("max", "min") for each in directions):
        raise LuthierError(f"expected a direction, 'max' or 'min', for each objective, got {directions!r}")
