"""What a curve of readings is worth: its level, of which the best single reading is an upper end.

The best of hundreds of readings is a lucky one: of trials that are equally good, the one whose curve jumps most wins,
and retrained it falls. Neighbouring readings of one training share its quality and not its luck, so their mean tells
more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import fsum

_WINDOWS = 10


def level(readings: Sequence[tuple[int, float]], total_steps: int, direction: str) -> float | None:
    """The best of a curve smoothed over neighbouring readings: means over a tenth of the training to both sides.

    Of ten epochs these are three readings, at the ends two. A curve of fewer than ten readings still moves from one to
    the next, so it is not smoothed. Chosen on recorded curves by what winners read with other seeds (see LOG.md).

    Args:
        readings: (step, finite reading) in the order of their steps.
        total_steps: of the whole training, at least 1.
        direction: which way readings improve, "max" or "min".

    Returns:
        None without readings.

    >>> level([(1, 0.5), (2, 0.9), (3, 0.7), (4, 0.8), (5, 0.8)], 10, "max")
    0.8
    >>> level([(1, 0.5), (2, 0.9)], 4, "max")
    0.9
    """
    means = list(_means(readings, total_steps))
    return (max if direction == "max" else min)(means) if means else None


def _means(readings: Sequence[tuple[int, float]], total_steps: int) -> Iterator[float]:
    """Around each reading the mean of those within a tenth of the training."""
    first = end = 0
    for step, _ in readings:
        while _WINDOWS * (step - readings[first][0]) > total_steps:
            first += 1
        while end < len(readings) and _WINDOWS * (readings[end][0] - step) <= total_steps:
            end += 1
        yield fsum(value / (end - first) for _, value in readings[first:end])  # no sum of finite ones overflows so
