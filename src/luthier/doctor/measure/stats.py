"""Numbers of tensors, measured on their device at once and read a step later with one transfer.

Nothing here waits for the device, keeps a tensor alive or draws a random number: `measure` leaves scalars (and small
copies) on the device, `read` brings all of them over together.

Big tensors are represented by evenly spaced whole examples: at most 64, and at most about 1e5 elements; only minimum,
maximum and whether anything is non-finite are then taken from all of it. Where a tensor holds non-finite elements,
minimum and maximum count these as 0.
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
Arrays = list[NDArray[np.float64]]
Row = dict[str, Any]

EXAMPLES = 64
ELEMENTS = 100_000
SNAPSHOT = 8192
DISTINCT = 64
LOOKS = 4


class Pending(NamedTuple):
    """Numbers that still lie on the device, and what makes a row of them."""

    tensors: list[Tensor]
    finish: Callable[[Arrays], Row]


class Flat(NamedTuple):
    """Where an activation is flat: beyond `low` and `high`, or rows along `dim` whose largest is above `high`."""

    low: float = -math.inf
    high: float = math.inf
    dim: int | None = None
    inclusive: bool = False


class DeadUnits:
    """Remembers over looks which units of each activation gave anything but 0.

    A unit counts as dead when it was 0 for every example of the last four looks, so before the fourth look of a place
    there is no answer. Held by the watch and given to every `Trace`.

    Attributes:
        batch_dim: dimension of the model's input that counts examples, as targets have told so far.
    """

    def __init__(self) -> None:
        self.batch_dim = 0
        self._alive: dict[Hashable, deque[NDArray[np.bool_]]] = {}

    def update(self, place: Hashable, alive: NDArray[np.float64]) -> float | None:
        """Add what one look saw.

        Args:
            place: operation, module and occurrence.
            alive: (units,), 1 where some example was not 0.

        Returns:
            Fraction of dead units, in 0-1; None before the fourth look.
        """
        seen = self._alive.setdefault(place, deque(maxlen=LOOKS))
        if seen and len(seen[0]) != len(alive):
            seen.clear()
        seen.append(alive > 0)
        return float(1 - np.any(seen, axis=0).mean()) if len(seen) == LOOKS else None


def measure(
    tensor: Tensor,
    kind: Kind = "plain",
    *,
    batch_dim: int = 0,
    flat: Flat | None = None,
    units: tuple[DeadUnits, Hashable, int] | None = None,
) -> Pending:
    """Measure a tensor on its device.

    Args:
        tensor: any tensor; what cannot be measured (sparse, meta, complex, transformed) gives only its size.
        kind: "detail" adds whether values are whole, how many are distinct, and sums of rows.
        batch_dim: dimension of the examples.
        flat: counts the elements (rows) on the flat part of an activation.
        units: memory, place and dimension of an activation's units.

    Returns:
        What `read` makes a row of `vitals.Stats` of.
    """
    tensor = tensor.detach()
    count = tensor.numel()
    if count == 0 or not measurable(tensor):
        return Pending([], lambda _: {"n": count})
    if not tensor.is_floating_point():
        return _whole(tensor, count)
    if count == 1:
        return Pending([tensor.reshape(()).clone()], _single)
    return _Float(tensor, kind, batch_dim, flat, units).pending()


def details(tensor: Tensor) -> Pending:
    """Only what "detail" adds to the plain numbers of a tensor."""
    tensor = tensor.detach()
    if tensor.numel() < 2 or not measurable(tensor) or not tensor.is_floating_point():
        return measure(tensor)
    sample = examples(tensor)
    shape = tuple(sample.shape)
    return Pending([_snapshot(sample)], lambda arrays: _details(arrays[0], shape))


def read(pending: Sequence[Pending]) -> list[Row]:
    """The rows of what was measured, in order; one transfer from each device."""
    arrays = iter(_transfer([tensor for item in pending for tensor in item.tensors]))
    return [item.finish([next(arrays) for _ in item.tensors]) for item in pending]


def measurable(tensor: Tensor) -> bool:
    """Whether its numbers can be had: a dense real tensor of no transformation in progress (vmap, grad, compile)."""
    return (
        tensor.layout is torch.strided
        and not tensor.is_complex()
        and tensor.device.type != "meta"
        and not tensor.is_quantized
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and type(tensor) in (Tensor, torch.nn.Parameter)
    )


def examples(tensor: Tensor, dim: int = 0) -> Tensor:
    """Evenly spaced whole examples, at most 64 and about 1e5 elements (a view; at least 8 of them)."""
    size = tensor.shape[dim] if tensor.dim() else 1
    each = max(1, tensor.numel() // max(1, size))
    most = max(8, min(EXAMPLES, ELEMENTS // each))
    if size <= most or tensor.numel() <= 8 * EXAMPLES:
        return tensor
    every = -(-size // most)
    if dim == 0:
        return tensor[::every]
    return tensor.movedim(dim, 0)[::every].movedim(0, dim)


class _Float:
    """Numbers of one float tensor of two or more elements."""

    def __init__(
        self,
        tensor: Tensor,
        kind: Kind,
        batch_dim: int,
        flat: Flat | None,
        units: tuple[DeadUnits, Hashable, int] | None,
    ) -> None:
        self.count = tensor.numel()
        self.batch_dim = batch_dim if tensor.dim() > batch_dim else 0
        sample = examples(tensor, self.batch_dim) if tensor.dim() else tensor
        self.partial = sample.numel() < self.count
        self.size = sample.numel()
        values = sample if sample.dtype in (torch.float32, torch.float64) else sample.float()
        self.clean = torch.nan_to_num(values, 0.0, 0.0, 0.0)
        var, mean = torch.var_mean(self.clean, correction=0)
        low, high = torch.aminmax(self.clean)
        self.tensors = [mean, var, low, high, torch.count_nonzero(values), torch.count_nonzero(values - self.clean)]
        self.names = ["mean", "var", "min", "max", "nonzero", "nonfinite"]
        if self.partial:
            self._add(("all_min", "all_max"), torch.aminmax(tensor))
        if self.clean.shape[self.batch_dim] == self.size:
            self._add(("across",), (var,))
        elif self.clean.shape[self.batch_dim] > 1:
            self._add(("across",), (torch.var(self.clean, self.batch_dim, correction=0).mean(),))
        if flat is not None:
            self._add(("flat",), (_flat(self.clean, flat),))
        self.units = units
        if units is not None:
            self._add(("alive",), (_alive(values, units[2]),))
        self.shape = tuple(sample.shape)
        if kind == "detail":
            self._add(("snapshot",), (_snapshot(values),))

    def _add(self, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
        self.names.extend(names)
        self.tensors.extend(tensors)

    def pending(self) -> Pending:
        """The numbers, without any hold on the tensor."""
        names, count, size, units, shape = self.names, self.count, self.size, self.units, self.shape
        return Pending(self.tensors, lambda arrays: _float_row(names, arrays, count, size, units, shape))


def _float_row(
    names: Sequence[str],
    arrays: Arrays,
    count: int,
    size: int,
    units: tuple[DeadUnits, Hashable, int] | None,
    shape: tuple[int, ...],
) -> Row:
    found = dict(zip(names, arrays, strict=True))
    number = {name: float(array) for name, array in found.items() if array.ndim == 0}
    nonfinite = number["nonfinite"] / size
    finite = max(1.0, size - number["nonfinite"])
    mean, square = number["mean"] * size / finite, (number["var"] + number["mean"] ** 2) * size / finite
    low, high = number["min"], number["max"]
    if "all_min" in number:
        if math.isfinite(number["all_min"]) and math.isfinite(number["all_max"]):
            low, high = number["all_min"], number["all_max"]
        else:
            nonfinite = max(nonfinite, 1 / count)
    std = math.sqrt(max(0.0, square - mean**2)) if nonfinite else math.sqrt(number["var"])
    row: Row = {
        "n": count,
        "mean": mean,
        "std": std if math.isfinite(std) else max(abs(low), abs(high)),
        "min": low,
        "max": high,
        "zero": 1 - number["nonzero"] / size,
        "nonfinite": nonfinite,
    }
    if "across" in number:
        rms = math.sqrt(number["var"] + number["mean"] ** 2)
        row["across"] = math.sqrt(number["across"]) / rms if rms > 0 and math.isfinite(rms) else 0.0
    if "flat" in number:
        row["flat"] = number["flat"]
    if units is not None:
        memory, place, _ = units
        row["dead"] = memory.update(place, found["alive"])
    if "snapshot" in found:
        row |= _details(found["snapshot"], shape)
    return row


def _single(arrays: Arrays) -> Row:
    value = float(arrays[0])
    if not math.isfinite(value):
        return {"n": 1, "nonfinite": 1.0, "zero": 0.0}
    return {"n": 1, "mean": value, "std": 0.0, "min": value, "max": value, "zero": float(value == 0), "nonfinite": 0.0}


def _whole(tensor: Tensor, count: int) -> Pending:
    """Whole numbers and booleans."""
    if tensor.dtype == torch.bool:
        tensor = tensor.to(torch.uint8)
    low, high = torch.aminmax(tensor)
    flat = tensor.reshape(-1)
    sample = flat[:: max(1, -(-count // SNAPSHOT))].clone()

    def finish(arrays: Arrays) -> Row:
        distinct = min(DISTINCT, len(np.unique(arrays[2])))
        return {"n": count, "min": float(arrays[0]), "max": float(arrays[1]), "distinct": distinct}

    return Pending([low, high, sample], finish)


def _flat(values: Tensor, flat: Flat) -> Tensor:
    """Fraction of elements (rows) on the flat part."""
    if flat.dim is not None:
        values = values.amax(flat.dim)
    if flat.inclusive:
        outside = (values <= flat.low) | (values >= flat.high)
    elif math.isinf(flat.low):
        outside = values > flat.high
    else:
        middle, reach = (flat.low + flat.high) / 2, (flat.high - flat.low) / 2
        outside = (values - middle if middle else values).abs() > reach
    return outside.mean(dtype=torch.float32)


def _alive(values: Tensor, dim: int) -> Tensor:
    """1 for every unit that gave anything but 0."""
    others = [other for other in range(values.dim()) if other != dim % values.dim()]
    return torch.any(values, dim=others).to(torch.float32)


def _snapshot(values: Tensor) -> Tensor:
    """A copy of whole rows, at most 8192 elements."""
    rows = values.reshape(-1, values.shape[-1]) if values.dim() > 1 else values.reshape(-1, 1)
    every = -(-rows.numel() // SNAPSHOT)
    return rows[::every].reshape(-1).clone()


def _details(flat: NDArray[np.float64], shape: tuple[int, ...]) -> Row:
    """Whole numbers, distinct values and sums of rows (over the last dimension; for tensors of two or more)."""
    finite = flat[np.isfinite(flat)]
    row: Row = {
        "integral": bool(len(finite)) and bool((finite == np.round(finite)).all()),
        "distinct": min(DISTINCT, len(np.unique(finite))),
    }
    if len(shape) > 1:
        rows = flat.reshape(-1, shape[-1])
        sums = rows.sum(-1)
        row["row_sum_min"], row["row_sum_max"] = float(sums.min()), float(sums.max())
        row["rows_one_hot"] = float((((rows == 1).sum(-1) == 1) & ((rows == 0).sum(-1) == shape[-1] - 1)).mean())
    return row


def _transfer(tensors: Sequence[Tensor]) -> Arrays:
    """Tensors of no or one dimension as arrays: joined on their device by type, then brought over together."""
    groups: dict[tuple[torch.device, torch.dtype, int], list[int]] = {}
    for position, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype, tensor.dim()), []).append(position)
    joined: dict[torch.device, list[Tensor]] = {}
    for (device, _, dims), positions in groups.items():
        parts = [tensors[position] for position in positions]
        wide = torch.float32 if device.type == "mps" else torch.float64
        joined.setdefault(device, []).append((torch.cat(parts) if dims else torch.stack(parts)).to(wide))
    flat = {device: torch.cat(parts).cpu().numpy().astype(np.float64) for device, parts in joined.items()}
    begin = dict.fromkeys(flat, 0)
    arrays: Arrays = [np.empty(0)] * len(tensors)
    for (device, _, dims), positions in groups.items():
        for position in positions:
            size = tensors[position].numel()
            part = flat[device][begin[device] : begin[device] + size]
            arrays[position] = part if dims else part.reshape(())
            begin[device] += size
    return arrays
