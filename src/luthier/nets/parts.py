"""What every reference network is made of: choices by name, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import nn

from luthier.errors import LuthierError
from luthier.training.surgery.norms import norm as make_norm


def size_of(inputs: int | Sequence[int]) -> int:
    """Numbers per example, of a size or a shape.

    >>> size_of(10), size_of((3, 4, 4))
    (10, 48)
    """
    return inputs if isinstance(inputs, int) else prod(inputs)


def image_shape(inputs: Sequence[int]) -> tuple[int, int, int]:
    """The three numbers (C, H, W) of an image network's input.

    Raises:
        LuthierError: not three positive whole numbers.
    """
    shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
    if len(shape) != 3 or min(shape) < 1:
        raise LuthierError(f"an image network needs inputs=(channels, height, width), got {inputs!r}")
    return shape[0], shape[1], shape[2]


def at_least(least: int, **sizes: int) -> None:
    """Refuse sizes below `least`.

    Raises:
        LuthierError: names the size, what came and the least that works.
    """
    for name, size in sizes.items():
        if size < least:
            raise LuthierError(f"{name} must be at least {least}, got {size}")


def rate(dropout: float) -> float:
    """A dropout rate, checked.

    Raises:
        LuthierError: outside [0, 1).
    """
    if not 0 <= dropout < 1:
        raise LuthierError(f"dropout must be at least 0 and below 1, got {dropout}")
    return dropout


def norm_or_none(name: str, channels: int, dims: int) -> nn.Module | None:
    """A normalisation layer; None for "none", so that a network without norms has no trace of them."""
    module = make_norm(name, channels, dims)
    return None if isinstance(module, nn.Identity) else module


def stack(*modules: nn.Module | None) -> nn.Sequential:
    """A Sequential of the modules that are there."""
    return nn.Sequential(*(module for module in modules if module is not None))
