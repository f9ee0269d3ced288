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
    ranked = sorted((i for i, loss in enumerate(losses) if not any(map(math.isnan, loss))), key=losses.__getitem__)
    front: list[int] = []
    for index in ranked:  # what dominates a point sorts before it, and is itself dominated by a point of the front
        if not any(dominates(losses[other], losses[index]) for other in front):
            front.append(index)
    return sorted(front)


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
