"""The arguments of an operation: its tensors in order, and what matters of the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from luthier.doctor.measure.operations import RECURRENT, Operation, names

_DEPTH = 5
_PACKED = ("input", "batch_sizes", "hx", "weights", "bias", "num_layers", "p", "training", "bidirectional")
_KEPT = {
    name: name
    for name in names("""
        dim p training inplace reduction label_smoothing negative_slope groups stride padding dilation momentum eps
        keepdim exponent min max ignore_index beta delta alpha margin num_layers bidirectional batch_first threshold
        value num_heads num_groups padding_idx start_dim rounding_mode log_input log_target equation
    """)
} | {
    "train": "training",
    "other": "scalar",
    "min_val": "min",
    "max_val": "max",
    "kernel_size": "kernel",
    "is_causal": "causal",
    "dropout_p": "p",
}
_WEIGHTS_OF_CLASSES = ("weight", "pos_weight")
_MASKS = ("attn_mask", "key_padding_mask")
_HIDES = frozenset({"masked_fill", "multi_head_attention"})
"""True in a mask of theirs hides; scaled_dot_product_attention shows where it is True."""


def tensors(value: Any) -> list[Tensor]:
    """All tensors of a nested value (tuples, lists, dictionaries, dataclasses such as model outputs)."""
    if isinstance(value, Tensor):
        return [value]
    found: list[Tensor] = []
    _gather((value,), found, _DEPTH)
    return found


def arguments(known: Operation, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors given to an operation, in the order of its signature; lists and tuples are looked into."""
    found: list[Tensor] = []
    _gather(args, found, 2)
    if kwargs:
        ordered = [name for name in known.signature if name in kwargs]
        ordered += [name for name in kwargs if name != "out" and name not in ordered]
        _gather([kwargs[name] for name in ordered], found, 2)
    return found


def _gather(values: Any, found: list[Tensor], depth: int) -> None:
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif depth and isinstance(value, (tuple, list)):
            _gather(value, found, depth - 1)
        elif depth and isinstance(value, Mapping):
            _gather(value.values(), found, depth - 1)
        elif depth and hasattr(value, "__dataclass_fields__") and hasattr(value, "__dict__"):
            _gather(vars(value).values(), found, depth - 1)


def attributes(known: Operation, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> dict[str, Any]:
    """What matters of the other arguments: `Node.attrs`."""
    signature = known.signature
    if known.name in RECURRENT and len(args) > 3 and isinstance(args[3], (list, tuple)):
        signature = _PACKED
    attrs: dict[str, Any] = {}
    for name, value in zip(signature, args, strict=False):
        _keep(attrs, name, value)
    for name, value in kwargs.items():
        _keep(attrs, name, value)
    if known.is_loss and any(isinstance(_given(known, args, kwargs, name), Tensor) for name in _WEIGHTS_OF_CLASSES):
        attrs["weighted"] = True
    if known.inplace:
        attrs["inplace"] = True
    if known.reversed:
        attrs["reversed"] = True
    special = _SPECIAL.get(known.name)
    if special is not None:
        attrs |= special(known, args, kwargs, result)
    return attrs


def _keep(attrs: dict[str, Any], name: str, value: Any) -> None:
    kept = _KEPT.get(name)
    if kept is None:
        if name in _MASKS and value is not None:
            attrs["masked"] = True
    elif isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        attrs[kept] = value
    elif isinstance(value, float):
        attrs[kept] = str(value)
    elif isinstance(value, (tuple, list)) and all(isinstance(item, int) for item in value):
        attrs[kept] = list(value)


def _given(known: Operation, args: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> Any:
    """An argument by its name."""
    if name in kwargs:
        return kwargs[name]
    place = known.signature.index(name) if name in known.signature else len(args)
    return args[place] if place < len(args) else None


def _number(_: Operation, args: Sequence[Any], *__: Any) -> dict[str, Any]:
    """`torch.sub(1, x)`, `2 ** x`: the number comes first."""
    if args and isinstance(args[0], (int, float)):
        return {"scalar": args[0], "reversed": True}
    return {}


def _kernel(known: Operation, args: Sequence[Any], kwargs: Mapping[str, Any], _: Any) -> dict[str, Any]:
    weight = _given(known, args, kwargs, "weight")
    return {"kernel": list(weight.shape[2:])} if isinstance(weight, Tensor) else {}


def _dims(_: Operation, args: Sequence[Any], kwargs: Mapping[str, Any], __: Any) -> dict[str, Any]:
    """`permute(0, 2, 1)`, `transpose(1, 2)`: all whole numbers are dimensions."""
    found = args[1] if len(args) > 1 and isinstance(args[1], (tuple, list)) else (*args[1:], *kwargs.values())
    dims = [item for item in found if isinstance(item, int)]
    return {"dim": dims} if dims else {}


def _recurrent(known: Operation, _: Any, __: Any, result: Any) -> dict[str, Any]:
    states = tensors(result)
    return {
        "hidden_size": states[1].shape[-1] if len(states) > 1 else states[0].shape[-1],
        "nonlinearity": "relu" if known.raw == "rnn_relu" else "tanh",
    }


def _ahead(known: Operation, args: Sequence[Any], kwargs: Mapping[str, Any], _: Any) -> dict[str, Any]:
    """Whether a mask lets places see later ones; not asked of masks on an accelerator, which would have to wait."""
    mask = _given(known, args, kwargs, "mask" if known.name == "masked_fill" else "attn_mask")
    padding = _given(known, args, kwargs, "key_padding_mask")
    if mask is None and padding is not None:
        return {"ahead": True}
    if not isinstance(mask, Tensor) or mask.ndim < 2 or mask.device.type != "cpu" or mask.shape[-1] < 2:
        return {}
    if mask.shape[-2] not in (1, mask.shape[-1]):
        return {}
    hides = known.name in _HIDES
    shown = mask > -1e4 if mask.is_floating_point() else mask == 0 if hides else mask != 0
    return {"ahead": bool(shown.triu(1).any())}


_SPECIAL: Mapping[str, Callable[..., dict[str, Any]]] = {
    **dict.fromkeys(("add", "sub", "mul", "div", "pow"), _number),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _kernel),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _kernel),
    **dict.fromkeys(("permute", "transpose"), _dims),
    **dict.fromkeys(RECURRENT, _recurrent),
    **dict.fromkeys(("multi_head_attention", "scaled_dot_product_attention", "masked_fill"), _ahead),
}
