"""Who hears every backward pass: the one place where the loss of a loop that tells nothing shows at every step.

torch has no hook for it, so `torch.autograd.backward`, which `Tensor.backward` calls too, is wrapped while anybody
listens; with the last listener the wrapper goes.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class Hearer(Protocol):
    """Who is told."""

    def heard(self, loss: Tensor) -> None:
        """backward() of a loss begins."""


class Listening:
    """One listener's place; `remove` ends it, and so does the listener's own end.

    Args:
        hearer: held weakly; told of backward passes of this process and thread.
    """

    _all: tuple[Listening, ...] = ()
    _wrapper: Any = None
    _original: Any = None

    def __init__(self, hearer: Hearer) -> None:
        self._hearer = weakref.ref(hearer)
        self._home = (os.getpid(), threading.get_ident())
        Listening._all += (self,)
        if Listening._wrapper is None:
            Listening._original = torch.autograd.backward
            Listening._wrapper = torch.autograd.backward = _wrapped(torch.autograd.backward)
        weakref.finalize(hearer, self.remove).atexit = False

    def tell(self, loss: Any) -> None:
        """Pass a loss on."""
        hearer = self._hearer()
        if hearer is not None and isinstance(loss, Tensor) and self._home == (os.getpid(), threading.get_ident()):
            hearer.heard(loss)

    def remove(self) -> None:
        """Hear nothing more; a wrapper that somebody else has wrapped meanwhile stays, and tells nobody."""
        Listening._all = tuple(each for each in Listening._all if each is not self)
        wrapper = Listening._wrapper
        if not Listening._all and wrapper is torch.autograd.backward:
            Listening._wrapper = None
            torch.autograd.backward = Listening._original


def _wrapped(backward: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(backward)
    def told(tensors: Any, *args: Any, **kwargs: Any) -> None:
        if not torch.compiler.is_compiling():
            for each in Listening._all:
                each.tell(tensors[0] if isinstance(tensors, (list, tuple)) and tensors else tensors)
        backward(tensors, *args, **kwargs)

    return told


def unscaled(loss: Tensor) -> Tensor:
    """The loss, detached, without the factor that a GradScaler put on it: a constant tensor of one element."""
    made_by: Any = loss.grad_fn
    if made_by is not None and made_by.name() == "MulBackward0" and made_by.next_functions[1][0] is None:
        scale = made_by._saved_other
        if isinstance(scale, Tensor) and scale.numel() == 1:
            return loss.detach() / scale.detach()
    return loss.detach()
