"""Who hears every backward pass: the one place where the loss of a loop that tells nothing shows at every step.

torch has no hook for it, so `torch.autograd.backward`, which `Tensor.backward` calls too, is wrapped while anybody
listens; with the last listener the wrapper goes.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from threading import get_ident
from typing import Any, Protocol

import torch
from torch import Tensor

from luthier.doctor.measure.home import Home


class Hearer(Protocol):
    """Who is told."""

    def backward_begins(self, loss: Tensor) -> None:
        """A backward pass begins; not told of those inside another one."""

    def backward_ends(self, loss: Tensor) -> None:
        """It ended, also by an exception."""


class Listening:
    """One listener's place; `remove` ends it, and so does the listener's own end.

    A listener that rests is told nothing, and only the latest loss is kept for it: that costs a twentieth.

    Args:
        hearer: held weakly; told of backward passes of this process and thread.

    Attributes:
        latest: what the latest backward pass was called on, while resting; None when it was taken.
    """

    _all: tuple[Listening, ...] = ()
    _resting: Listening | None = None  # the only listener of all, while it rests
    _wrapper: Any = None
    _original: Any = None

    def __init__(self, hearer: Hearer) -> None:
        self._hearer = weakref.ref(hearer)
        self._home, self._thread = Home(), get_ident()
        self._depth = 0
        self._rests = False
        self.latest: Any = None
        self.listen()
        weakref.finalize(hearer, self.remove).atexit = False

    def listen(self) -> None:
        """Hear from now on (again, after `remove`)."""
        Listening._all += (self,)
        Listening._count()
        if Listening._wrapper is None:
            Listening._original = torch.autograd.backward
            Listening._wrapper = torch.autograd.backward = _wrapped(torch.autograd.backward)

    @classmethod
    def _count(cls) -> None:
        cls._resting = cls._all[0] if len(cls._all) == 1 and cls._all[0]._rests else None

    def rest(self, rests: bool) -> None:
        """Hear no more than the latest loss from the next backward pass on, or everything again."""
        self._rests = rests
        Listening._count()

    def take_latest(self) -> Tensor | None:
        """The loss of the latest backward pass while resting, once; None when there was none, or it is no scalar."""
        latest, self.latest = self.latest, None
        loss = latest[0] if isinstance(latest, (list, tuple)) and latest else latest
        return loss.detach() if isinstance(loss, Tensor) and loss.numel() == 1 else None

    def begins(self, loss: Tensor) -> None:
        """Tell that a backward pass begins."""
        self._depth += 1
        hearer = self._hearer()
        if hearer is not None and self._depth == 1:
            hearer.backward_begins(loss)

    def ends(self, loss: Tensor) -> None:
        """Tell that it ended."""
        self._depth -= 1
        hearer = self._hearer()
        if hearer is not None and self._depth == 0:
            hearer.backward_ends(loss)

    def remove(self) -> None:
        """Hear nothing more; a wrapper that somebody else has wrapped meanwhile stays, and tells nobody."""
        Listening._all = tuple(each for each in Listening._all if each is not self)
        Listening._count()
        wrapper = Listening._wrapper
        if not Listening._all and wrapper is torch.autograd.backward:
            Listening._wrapper = None
            torch.autograd.backward = Listening._original


def _wrapped(backward: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(backward)
    def told(tensors: Any, *args: Any, **kwargs: Any) -> None:
        resting = Listening._resting
        if resting is not None:
            if get_ident() == resting._thread:
                resting.latest = tensors
            backward(tensors, *args, **kwargs)
            return
        loss = tensors[0] if isinstance(tensors, (list, tuple)) and tensors else tensors
        if torch.compiler.is_compiling() or not isinstance(loss, Tensor):
            backward(tensors, *args, **kwargs)
            return
        listening = [each for each in Listening._all if each._home.is_here()]
        for each in listening:
            each.begins(loss)
        try:
            backward(tensors, *args, **kwargs)
        finally:
            for each in listening:
                each.ends(loss)

    return told


def scale_of(loss: Tensor) -> Tensor | None:
    """The factor that a GradScaler put on a loss: a constant float32 tensor of one element (numbers come as float64).

    Returns:
        it, at least 1; None when there is none.
    """
    made_by: Any = loss.grad_fn
    if made_by is None or made_by.name() != "MulBackward0" or made_by.next_functions[1][0] is not None:
        return None
    scale = made_by._saved_other
    if not isinstance(scale, Tensor) or scale.numel() != 1 or scale.dtype != torch.float32:
        return None
    return scale.detach().clamp_min(1)
