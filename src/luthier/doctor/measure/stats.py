"""Numbers of tensors: a small copy is taken on the device at once, read a step later with one transfer.

Nothing here waits for the device, keeps a tensor alive or draws a random number. Small tensors are copied whole; big
ones are represented by evenly spaced examples, at most 64, and evenly spaced features of these, about 8,000 elements in
all. Minimum, maximum, whether anything is non-finite, and which units are alive always come from the whole tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from luthier.doctor.measure.rows import Array, Flat, Row, Units, distinct, float_row

Kind = Literal["plain", "detail"]
Finish = Callable[[list[Array], bool], Row]

EXAMPLES = 64
FEWEST_EXAMPLES = 8
ELEMENTS = 8_192


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
        return float_row(arrays, count, whole, batch_dim, flat, units, detailed)

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
        return {"n": count, "min": low, "max": high, "distinct": distinct(arrays[0])}

    return Pending(ends, finish)


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
