"""Trees of states taken apart into named tensors and a JSON structure, and put together again bit for bit.

Strides (channels_last) and aliases (tied weights) are part of a state and come back; nothing in it is code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from luthier.errors import CheckpointError
from luthier.files import to_json

Tensors: TypeAlias = dict[str, Tensor]

CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The types that can be stored, and their names in a safetensors file."""


def pack(tree: Any) -> tuple[Tensors, Any]:
    """Take a tree of states apart into named tensors and a JSON structure.

    The tensors are not copied. Tensors that are the same view of the same memory (tied weights) are named once.

    Args:
        tree: any nesting of dicts (keys str or int), lists, tuples, sets, None, bool, int, float, str, bytes (a
            bytearray comes back as bytes), tensors and NumPy's numbers and arrays (in C order).

    Returns:
        Contiguous tensors by name, and the structure that `unpack` needs besides them.

    Raises:
        CheckpointError: something in the tree is none of these; the message names its place.

    >>> tensors, structure = pack({"weight": torch.ones(2), "step": 3})
    >>> sorted(tensors), structure["dict"][1]
    (['weight'], ['step', 3])
    """
    packing = _Packing()
    structure = packing.node(tree, ())
    return packing.tensors, structure


def unpack(tensors: Mapping[str, Tensor], structure: Any) -> Any:
    """The inverse of `pack`: the tree again, its tensors with their strides and in memory of their own.

    Args:
        tensors: contiguous tensors by name.
        structure: as it came from `pack`, directly or through JSON.

    Raises:
        CheckpointError: a tensor that the structure names is missing, or the structure is not one of ours.

    >>> unpack(*pack({0: (1.5, None, "NaN")}))
    {0: (1.5, None, 'NaN')}
    """
    restored: Tensors = {}
    try:
        return _restore(structure, tensors, restored)
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the structure and the tensors of a checkpoint do not fit: {error!r}") from error


class _Packing:
    """The tensors found so far while a tree is taken apart."""

    def __init__(self) -> None:
        self.tensors: Tensors = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._views: list[Tensor] = []  # kept alive, for an address tells views apart only while they live

    def node(self, value: Any, place: tuple[Any, ...]) -> Any:
        """The JSON that stands for a value at its place (keys and indices from the root)."""
        if isinstance(value, Tensor):
            return self._tensor(value, place)
        if isinstance(value, dict):
            return {"dict": [[_key(key, place), self.node(item, (*place, key))] for key, item in value.items()]}
        if isinstance(value, (list, tuple)):
            items = [self.node(item, (*place, index)) for index, item in enumerate(value)]
            return items if isinstance(value, list) else {"tuple": items}
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if type(value) in (np.ndarray, np.memmap) or isinstance(value, np.generic):  # np.float64 is a float, too
            return {"array": self._array(np.asarray(value), place), "scalar": isinstance(value, np.generic)}
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": json.loads(to_json(value))}
        if isinstance(value, (set, frozenset)):
            items = [self.node(item, (*place, index)) for index, item in enumerate(sorted(value, key=repr))]
            return {"set": items, "frozen": isinstance(value, frozenset)}
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": self._array(np.frombuffer(value, np.uint8), place)}
        raise _unsupported(f"{type(value).__name__}", place)

    def _tensor(self, tensor: Tensor, place: tuple[Any, ...]) -> dict[str, Any]:
        if tensor.layout != torch.strided or tensor.device.type == "meta" or tensor.dtype not in CODES:
            raise _unsupported(f"a tensor of {tensor.dtype}, {tensor.layout}, on {tensor.device}", place)
        tensor = tensor.detach().resolve_conj().resolve_neg()
        shape, stride = tuple(tensor.shape), tensor.stride()
        # Empty tensors have no memory to share, so each is its own.
        memory = tensor.data_ptr() if tensor.numel() else ("empty", len(self.tensors))
        view = (memory, shape, stride, tensor.dtype, tensor.device)
        if view not in self._names:
            self._names[view] = name = self._free_name(place)
            self._views.append(tensor)
            self.tensors[name] = _contiguous(tensor)
        return {"tensor": self._names[view], "shape": list(shape), "stride": list(stride)}

    def _array(self, array: np.ndarray[Any, Any], place: tuple[Any, ...]) -> dict[str, Any]:
        try:
            tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))  # a copy
        except TypeError:
            raise _unsupported(f"an array of {array.dtype}", place) from None
        return self._tensor(tensor, place)

    def _free_name(self, place: tuple[Any, ...]) -> str:
        name = "/".join(str(key) for key in place).encode(errors="replace").decode() or "tensor"
        taken = {*self.tensors, "__metadata__"}
        return name if name not in taken else next(f"{name}#{n}" for n in range(2, 10**9) if f"{name}#{n}" not in taken)


def _key(key: Any, place: tuple[Any, ...]) -> str | int:
    if isinstance(key, bool) or not isinstance(key, (str, int)):
        raise _unsupported(f"the key {key!r} of type {type(key).__name__}", place)
    return key


def _unsupported(what: str, place: tuple[Any, ...]) -> CheckpointError:
    where = "".join(f"[{key!r}]" for key in place) or "its root"
    return CheckpointError(
        "a checkpoint holds dicts with str or int keys, lists, tuples, sets, None, bool, int, float, str, bytes, dense "
        f"tensors and NumPy's numbers and arrays; the state has {what} at {where}: turn it into these (as `state_dict` "
        "methods do) before saving"
    )


def _extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements of memory from a view's first to its last."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def _overlaps(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether two indices of a view may mean the same memory (as after `expand`)."""
    reach = 1
    for step, size in sorted((step, size) for step, size in zip(stride, shape, strict=True) if size > 1):
        if step < reach:
            return True
        reach += (size - 1) * step
    return False


def _contiguous(tensor: Tensor) -> Tensor:
    """What is stored of a view: itself, the memory under it, or (a view with gaps) a copy of its values."""
    if tensor.is_contiguous():
        return tensor
    shape, stride = tuple(tensor.shape), tensor.stride()
    extent = _extent(shape, stride)
    if extent <= tensor.numel() or _overlaps(shape, stride):
        return tensor.as_strided((extent,), (1,))
    return tensor.contiguous()


def _strided(stored: Tensor, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """The inverse of `_contiguous`, in new memory."""
    extent = _extent(shape, stride)
    if stored.numel() == extent:
        return stored.reshape(-1).clone().as_strided(shape, stride)
    view = torch.zeros(extent, dtype=stored.dtype, device=stored.device).as_strided(shape, stride)
    return view.copy_(stored)


def _restore(node: Any, tensors: Mapping[str, Tensor], restored: Tensors) -> Any:
    if isinstance(node, list):
        return [_restore(item, tensors, restored) for item in node]
    if not isinstance(node, dict):
        return node
    if "dict" in node:
        return {key: _restore(item, tensors, restored) for key, item in node["dict"]}
    if "tuple" in node:
        return tuple(_restore(item, tensors, restored) for item in node["tuple"])
    if "float" in node:
        return float(node["float"])
    if "array" in node:
        array = _restore(node["array"], tensors, restored).numpy()
        return array[()] if node["scalar"] else array
    if "set" in node:
        items = (_restore(item, tensors, restored) for item in node["set"])
        return frozenset(items) if node["frozen"] else set(items)
    if "bytes" in node:
        return _restore(node["bytes"], tensors, restored).numpy().tobytes()
    name = node["tensor"]
    if name not in restored:
        restored[name] = _strided(tensors[name], tuple(node["shape"]), tuple(node["stride"]))
    return restored[name]
