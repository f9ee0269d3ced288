"""Who wants to know when gradients are switched off: that is how an evaluation begins.

torch has no hook for it, so `__enter__` of its context managers is wrapped while any alarm is armed; with the last one
the wrapper goes. (`torch.set_grad_enabled(False)` as a plain call, which optimizers make at each step, is not heard.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from threading import get_ident
from typing import Any

import torch

SWITCHES: tuple[Any, ...] = (torch.no_grad, torch.inference_mode, torch.set_grad_enabled)


class Alarm:
    """Calls somebody whenever this thread has switched gradients off.

    Args:
        sound: what is called.
    """

    _armed: tuple[Alarm, ...] = ()
    _wrapped: tuple[tuple[Any, Any, Any], ...] = ()

    def __init__(self, sound: Callable[[], None]) -> None:
        self._sound, self._thread = sound, get_ident()

    def arm(self) -> None:
        """Listen from now on."""
        if not Alarm._armed:
            pairs = [(switch, switch.__enter__) for switch in SWITCHES]
            Alarm._wrapped = tuple((switch, enter, _told(enter)) for switch, enter in pairs)
            for switch, _, wrapper in Alarm._wrapped:
                switch.__enter__ = wrapper
        Alarm._armed += (self,)

    def disarm(self) -> None:
        """Listen no more; a wrapper that somebody else has wrapped meanwhile stays, and calls nobody."""
        if self not in Alarm._armed:
            return
        Alarm._armed = tuple(alarm for alarm in Alarm._armed if alarm is not self)
        if not Alarm._armed:
            for switch, enter, wrapper in Alarm._wrapped:
                if switch.__enter__ is wrapper:
                    switch.__enter__ = enter
            Alarm._wrapped = ()


def _told(enter: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(enter)
    def entered(switch: Any) -> Any:
        result = enter(switch)
        if not torch.is_grad_enabled():
            for alarm in Alarm._armed:
                if get_ident() == alarm._thread:
                    alarm._sound()
        return result

    return entered
