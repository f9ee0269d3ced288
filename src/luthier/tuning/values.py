"""Single values of a space: how they are kept, compared and written."""

from __future__ import annotations

import math
from typing import Any

from luthier.errors import LuthierError

GRAIN = 1e-9
"""Numbers that differ by a smaller part are one."""

_NUMBERS = ("NaN", "Infinity", "-Infinity")


def plain(option: Any) -> Any:
    """An option as it is compared: lists as tuples.

    Raises:
        LuthierError: as `checked`.
    """
    option = checked(option)
    return tuple(plain(item) for item in option) if isinstance(option, (list, tuple)) else option


def checked(option: Any) -> Any:
    """An option as it was given, but for numbers of NumPy or torch.

    Raises:
        LuthierError: something that files cannot hold.
    """
    option = unwrapped(option)
    if isinstance(option, (list, tuple)):
        return (list if isinstance(option, list) else tuple)(checked(item) for item in option)
    if isinstance(option, str) and option in _NUMBERS:
        raise LuthierError(f"an option cannot be the text {option!r}, which files keep for a number: call it otherwise")
    if isinstance(option, float) and not math.isfinite(option):
        raise LuthierError(f"an option must be finite, got {option}")
    if option is None or isinstance(option, (bool, int, float, str)):
        return option
    raise LuthierError(
        f"an option must be a name, a number, a boolean, None, or a list or tuple of these, got {option!r}"
    )


def unwrapped(value: Any) -> Any:
    """A single number of NumPy or torch as one of Python; anything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are one: numbers to nine digits, since a step may be written in several ways."""
    if is_number(one) and is_number(other):
        return math.isclose(one, other, rel_tol=GRAIN, abs_tol=1e-12)
    return bool(one == other)


def is_number(value: Any) -> bool:
    """Whether it is an int or a float, and no boolean."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def word(option: Any) -> str:
    """As it is written on a command line."""
    return "none" if option is None else str(option)
