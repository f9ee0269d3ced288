"""Numbers of tensors: a small copy is taken on the device at once, read a step later with one transfer.

Nothing here waits for the device, keeps a tensor alive or draws a random number. Small tensors are copied whole; big
ones are represented by evenly spaced examples, at most 64, and evenly spaced features of these, about 8,000 elements in
all. Minimum, maximum, whether anything is non-finite, and which units are alive always come from the whole tensor.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Kind = Literal["plain", "detail"]
Array = NDArray[Any]
Row = dict[str, Any]
Finish = Callable[[list[Array], bool], Row]

EXAMPLES = 64
FEWEST_EXAMPLES = 8
ELEMENTS = 8_192
DISTINCT = 64
LOOKS = 4


class Pending:
    """Copies that still lie on the device, and what makes a row of them.

    Args:
        tensors: own copies. finish: makes the row of the arrays; told whether details are wanted.
        whole_rows: the last dimension is complete, so that `detail` may be set later.

    Attributes:
        detail: whether values are whole, how many are distinct, and sums of rows are wanted too.
    """

    __slots__ = ("detail", "finish", "tensors", "whole_rows")

    def __init__(self, tensors: list[Tensor], finish: Finish, whole_rows: bool = True, detail: bool = False) -> None:
        self.tensors = tensors
        self.finish = finish
        self.whole_rows = whole_rows
        self.detail = detail


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


def measure(
    tensor: Tensor, kind: Kind = "plain", *, batch_dim: int = 0, flat: Flat | None = None, units: Units | None = None
) -> Pending:
    """Measure a tensor: copy what `read` needs.

    Args:
        tensor: any tensor; what cannot be measured (sparse, meta, complex, transformed) gives only its size.
        kind: "detail" adds whether values are whole, how many are distinct, and sums of rows.
        batch_dim: dimension of the examples.
        flat: counts the elements (rows) on the flat part of an activation.
        units: tells dead units.

    Returns:
        What `read` makes a row of `vitals.Stats` of.
    """
    count = tensor.numel()
    if count == 0 or not measurable(tensor):
        return Pending([], lambda *_: {"n": count})
    tensor = plain(tensor)
    detail = kind == "detail"
    if not tensor.is_floating_point():
        return _whole_numbers(tensor, count)
    whole = count <= ELEMENTS
    if batch_dim >= tensor.dim():
        batch_dim = 0
    protected = -1 if flat is None or flat.dim is None else flat.dim
    sample = tensor if whole else thinned(tensor, batch_dim, protected, detail or protected != -1)
    tensors = [_copied(sample)]
    if units is not None:
        tensors.append(_largest(tensor, units.dim))
    elif not whole:
        tensors.append(torch.stack(torch.aminmax(tensor)).float())

    def finish(arrays: list[Array], detailed: bool) -> Row:
        return _float_row(arrays, count, whole, batch_dim, flat, units, detailed)

    return Pending(tensors, finish, sample.dim() == 0 or sample.shape[-1] == tensor.shape[-1], detail)


def read(pending: Sequence[Pending]) -> list[Row]:
    """The rows of what was measured, in order; one transfer from each device."""
    arrays = iter(_transfer([tensor for item in pending for tensor in item.tensors]))
    with np.errstate(all="ignore"):
        return [item.finish([next(arrays) for _ in item.tensors], item.detail) for item in pending]


def measurable(tensor: Tensor) -> bool:
    """Whether its numbers can be had: a dense real tensor of no transformation in progress (vmap, grad, compile)."""
    return (
        tensor.layout is torch.strided
        and not tensor.is_complex()
        and tensor.device.type != "meta"
        and not tensor.is_quantized
        and type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def plain(tensor: Tensor) -> Tensor:
    """The tensor without history, and as a plain one where it is of a class of its own (image, mask)."""
    if type(tensor) is Tensor or type(tensor) is torch.nn.Parameter:
        return tensor.detach()
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.detach().as_subclass(Tensor)


def thinned(tensor: Tensor, batch_dim: int = 0, protected: int = -1, protect: bool = True) -> Tensor:
    """Evenly spaced examples and features of a big tensor (a view), about 8,000 elements.

    Args:
        tensor: more elements than that. batch_dim: dimension of the examples; at least 8 of them stay if possible.
        protected: dimension that stays complete, if `protect`.
    """
    each = max(1, tensor.numel() // tensor.shape[batch_dim])
    tensor = _every(tensor, batch_dim, max(FEWEST_EXAMPLES, min(EXAMPLES, ELEMENTS // each)))
    free = [
        dim for dim in range(tensor.dim()) if dim != batch_dim and not (protect and dim == protected % tensor.dim())
    ]
    for dim in sorted(free, key=lambda dim: -tensor.shape[dim]):
        excess = tensor.numel() / ELEMENTS
        if excess > 1:
            tensor = _every(tensor, dim, max(4, int(tensor.shape[dim] / excess)))
    if tensor.numel() > 2 * ELEMENTS:
        tensor = _every(tensor, batch_dim, 2)
    return tensor


def _every(tensor: Tensor, dim: int, most: int) -> Tensor:
    size = tensor.shape[dim]
    if size <= most:
        return tensor
    return tensor[(slice(None),) * dim + (slice(None, None, -(-size // most)),)]


def _copied(values: Tensor) -> Tensor:
    if values.dtype not in (torch.float32, torch.float64):
        return values.float().contiguous()
    return values.clone(memory_format=torch.contiguous_format)


def _largest(tensor: Tensor, dim: int) -> Tensor:
    """The largest value of every unit."""
    others = [other for other in range(tensor.dim()) if other != dim]
    return tensor.amax(others).float()


def _whole_numbers(tensor: Tensor, count: int) -> Pending:
    """Whole numbers and booleans."""
    if tensor.dtype == torch.bool:
        tensor = tensor.to(torch.uint8)
    flat = tensor.reshape(-1)
    sample = flat[:: -(-count // ELEMENTS)].clone()
    ends = [sample] if len(sample) == count else [sample, torch.stack(torch.aminmax(tensor))]

    def finish(arrays: list[Array], _: bool) -> Row:
        low, high = (float(end) for end in (arrays[-1].min(), arrays[-1].max()))
        return {"n": count, "min": low, "max": high, "distinct": _distinct(arrays[0])}

    return Pending(ends, finish)


def _float_row(
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
    row: Row = {"integral": integral, "distinct": _distinct(flat)}
    if values.ndim > 1:
        rows = values.reshape(-1, values.shape[-1])
        sums = np.add.reduce(rows, -1)
        row["row_sum_min"], row["row_sum_max"] = float(sums.min()), float(sums.max())
        hot = integral and (((rows == 1).sum(-1) == 1) & ((rows != 0).sum(-1) == 1)).mean()
        row["rows_one_hot"] = float(hot)
    return row


def _distinct(values: Array) -> int:
    """Number of distinct values, at most 64; the first few often tell."""
    few = len(set(values[: 2 * DISTINCT].tolist()))
    return min(DISTINCT, few if few >= DISTINCT or len(values) <= 2 * DISTINCT else len(np.unique(values)))


def _transfer(tensors: Sequence[Tensor]) -> list[Array]:
    """Our copies as arrays: those on the host as they are, others joined by type and brought over together."""
    found: list[Any] = [None] * len(tensors)
    groups: dict[Any, list[int]] = {}
    for position, tensor in enumerate(tensors):
        if tensor.device.type == "cpu":
            found[position] = tensor.numpy()
        else:
            groups.setdefault((tensor.device, tensor.dtype), []).append(position)
    for positions in groups.values():
        joined = torch.cat([tensors[position].reshape(-1) for position in positions]).cpu()
        begin = 0
        for position in positions:
            size = tensors[position].numel()
            found[position] = joined[begin : begin + size].view(tensors[position].shape).numpy()
            begin += size
    return found
