"""The stack of torch function modes of this thread, and our place in it.

A user's mode is pushed on top when its block begins, and the topmost is taken off when it ends, whichever that is. So
ours goes below all of theirs: they come and go above it. Only a default device, which expects itself at the bottom when
it leaves, stays below ours.
"""

from __future__ import annotations

from typing import Any

from torch._C import (
    _get_function_stack_at,
    _len_torch_function_stack,
    _pop_torch_function_stack,
    _push_on_torch_function_stack,
)
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext


def is_listening(mode: TorchFunctionMode) -> bool:
    """Whether a mode is on the stack."""
    return any(_get_function_stack_at(place) is mode for place in range(_len_torch_function_stack()))


def put_lowest(mode: TorchFunctionMode) -> None:
    """Put a mode under all others, if it is not on the stack yet."""
    if is_listening(mode):
        return
    above = _take_all()
    if above and _is_default_device(above[-1]):
        _push_on_torch_function_stack(above.pop())
    for other in (mode, *reversed(above)):
        _push_on_torch_function_stack(other)


def take_off(mode: TorchFunctionMode) -> bool:
    """Remove a mode from wherever it is; False when it is not on the stack."""
    if not is_listening(mode):
        return False
    for other in reversed(_take_all()):
        if other is not mode:
            _push_on_torch_function_stack(other)
    return True


def _take_all() -> list[Any]:
    """All modes, topmost first; the stack is empty then."""
    return [_pop_torch_function_stack() for _ in range(_len_torch_function_stack())]


def _is_default_device(mode: Any) -> bool:
    """Whether torch.set_default_device put it there; `with torch.device(...)` pushes and pops like any mode."""
    return isinstance(mode, DeviceContext) and hasattr(mode, "old_device")
