"""Whether a hook runs where its watch began: a thread or forked child that came later is somebody else's."""

from __future__ import annotations

import os
import threading

_generation = 0


def _one_more() -> None:
    global _generation
    _generation += 1


os.register_at_fork(after_in_child=_one_more)


class Home:
    """The process and thread that made it (a fork is counted, which costs a tenth of asking for the process id)."""

    __slots__ = ("_generation", "_thread")

    def __init__(self) -> None:
        self._thread, self._generation = threading.get_ident(), _generation

    def is_here(self) -> bool:
        """In the same process and thread."""
        return threading.get_ident() == self._thread and self._generation == _generation

    def is_this_process(self) -> bool:
        """In the same process, whichever the thread."""
        return self._generation == _generation
