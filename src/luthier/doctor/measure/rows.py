"""Numbers of tensors as arrays on the host: the rows of `vitals.Stats`."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Row = dict[str, Any]

DISTINCT = 64
LOOKS = 4


class Flat(NamedTuple):
    """Where an activation is flat: beyond `low` and `high`, or rows along `dim` whose largest is above `high`."""

    low: float = -math.inf
    high: float = math.inf
    dim: int | None = None


class DeadUnits:
    """Remembers over looks which units of each activation gave anything but 0.

    A unit counts as dead when it was 0 for every example of the last four looks, so before the fourth look of a place
    there is no answer. Held by the watch and given to every `Trace`.

    Attributes:
        batch_dim: dimension of the model's input that counts examples, as targets have told so far.
    """

    def __init__(self) -> None:
        self.batch_dim = 0
        self._alive: dict[Hashable, deque[Array]] = {}

    def update(self, place: Hashable, alive: Array) -> float | None:
        """Add what one look saw.

        Args:
            place: operation, module and occurrence.
            alive: (units,), whether some example was not 0.

        Returns:
            Fraction of dead units, in 0-1; None before the fourth look.
        """
        seen = self._alive.setdefault(place, deque(maxlen=LOOKS))
        if seen and len(seen[0]) != len(alive):
            seen.clear()
        seen.append(alive)
        return float(1 - np.any(seen, axis=0).mean()) if len(seen) == LOOKS else None


class Units(NamedTuple):
    """The units of an activation whose smallest value is 0: where they are remembered, and their dimension."""

    memory: DeadUnits
    place: Hashable
    dim: int


def float_row(
    arrays: list[Array],
    count: int,
    whole: bool,
    batch_dim: int,
    flat: Flat | None,
    units: Units | None,
    detailed: bool,
) -> Row:
    """The row of `vitals.Stats` of the copy of a float tensor."""
    values = arrays[0]
    low, high = (float(end) for end in (values.min(), values.max()))
    if math.isfinite(low) and math.isfinite(high):
        row = {"n": count, **_moments(values, batch_dim), "min": low, "max": high, "nonfinite": 0.0}
    else:
        row = {"n": count, **_of_finite(values)}
    row["zero"] = 1 - float(np.count_nonzero(values)) / values.size
    if not whole:
        _widen(row, arrays[1], count)
    if flat is not None:
        row["flat"] = _flat(values, flat)
    if units is not None:
        row["dead"] = units.memory.update(units.place, arrays[-1] != 0)
    if detailed:
        row |= _details(values)
    return row


def _moments(values: Array, batch_dim: int) -> Row:
    """Mean, std and spread over the examples of finite values.

    The variance is that around the mean example plus that of the mean example (law of total variance).
    """
    if values.ndim == 0 or values.size == 1:
        return {"mean": float(values.reshape(-1)[0]), "std": 0.0, "across": None}
    examples = values.shape[batch_dim]
    centre = np.add.reduce(values, batch_dim, keepdims=True) / examples
    mean = float(np.add.reduce(centre, None)) / centre.size
    apart, between = _square_sum(values - centre), _square_sum(centre - mean) * examples
    if not (math.isfinite(apart) and math.isfinite(between)):
        return _moments(values.astype(np.float64), batch_dim) if values.dtype != np.float64 else _hopeless(mean)
    square = (apart + between) / values.size + mean**2
    across = math.sqrt(apart / values.size / square) if square > 0 else 0.0
    return {"mean": mean, "std": math.sqrt((apart + between) / values.size), "across": across if examples > 1 else None}


def _square_sum(values: Array) -> float:
    flat = values.reshape(-1)
    return float(np.dot(flat, flat))


def _hopeless(mean: float) -> Row:
    """Values whose squares are beyond float64."""
    return {"mean": mean, "std": math.inf, "across": None}


def _of_finite(values: Array) -> Row:
    """Numbers of the finite part."""
    finite = values[np.isfinite(values)].astype(np.float64)
    row: Row = {"nonfinite": 1 - finite.size / values.size}
    if finite.size:
        ends = {"min": float(finite.min()), "max": float(finite.max())}
        row |= {"mean": float(finite.mean()), "std": float(finite.std()), **ends}
    return row


def _widen(row: Row, ends: Array, count: int) -> None:
    """Minimum, maximum and non-finite of the whole tensor that a sample stands for.

    Args:
        ends: minimum and maximum, or the largest of every unit of a ReLU.
    """
    if np.isfinite(ends).all():
        row["min"], row["max"] = min(row["min"], float(ends.min())), float(ends.max())
    else:
        row["nonfinite"] = max(row["nonfinite"], 1 / count)


def _flat(values: Array, flat: Flat) -> float:
    """Fraction of elements (rows) on the flat part."""
    if flat.dim is not None:
        values = values.max(flat.dim)
    beyond = np.count_nonzero(values >= flat.high)
    if flat.low > -math.inf:
        beyond += np.count_nonzero(values <= flat.low)
    return float(beyond / values.size)


def _details(values: Array) -> Row:
    """Whole numbers, distinct values and sums of rows (over the last dimension; for tensors of two or more)."""
    flat = values.reshape(-1)
    few = flat[:16]
    integral = bool((few == np.round(few)).all()) and bool((flat == np.round(flat)).all())
    row: Row = {"integral": integral, "distinct": distinct(flat)}
    if values.ndim > 1:
        rows = values.reshape(-1, values.shape[-1])
        sums = np.add.reduce(rows, -1)
        row["row_sum_min"], row["row_sum_max"] = float(sums.min()), float(sums.max())
        hot = integral and (((rows == 1).sum(-1) == 1) & ((rows != 0).sum(-1) == 1)).mean()
        row["rows_one_hot"] = float(hot)
    return row


def distinct(values: Array) -> int:
    """Number of distinct values, at most 64; the first few often tell."""
    few = len(set(values[: 2 * DISTINCT].tolist()))
    return min(DISTINCT, few if few >= DISTINCT or len(values) <= 2 * DISTINCT else len(np.unique(values)))
