"""The terminal that results are written to, and how often a live line may be redrawn."""

from __future__ import annotations

import io
import os
import sys
import time

from rich.console import Console

_INTERVAL_S = 0.1
_SHARE = 1 / 400  # of the time may go into redrawing


class _Terminal(Console):
    """A console whose reader may leave (`luthier tune mnist | head`): what is at work goes on without it."""

    def on_broken_pipe(self) -> None:
        """Write nothing more, to standard output as a whole."""
        self.quiet = True
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)


def open_console() -> Console:
    """Standard output; plain text without control codes, 120 columns wide, when it is a file, a pipe, or in CI."""
    plain = bool(os.environ.get("CI"))
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # a sign that an encoding lacks must not end a study
    console = _Terminal(
        force_terminal=False if plain else None, no_color=plain or None, markup=False, emoji=False, highlight=False
    )
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 120
    return console


def is_live(console: Console) -> bool:
    """Whether lines can be redrawn in place."""
    return console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI")


def symbol(console: Console, sign: str, plain: str) -> str:
    """A sign where the console's encoding has it, plain characters elsewhere."""
    try:
        sign.encode(console.encoding)
    except UnicodeEncodeError:
        return plain
    return sign


def bar(share: float, full: str = "#", empty: str = ".", width: int = 24) -> str:
    """A progress bar.

    >>> bar(0.5, width=8)
    '####....'
    """
    n = round(min(max(share, 0.0), 1.0) * width)
    return full * n + empty * (width - n)


class Throttle:
    """Lets something happen at most ten times a second and never for more than 1/400 of the time.

    A slow terminal (1 ms for a line is usual) is thus redrawn less often instead of slowing the training down.
    """

    def __init__(self) -> None:
        self.next_s = 0.0
        self.began_s = 0.0

    def due(self) -> bool:
        """Whether it is time; call `done` afterwards."""
        now = time.perf_counter()
        if now < self.next_s:
            return False
        self.began_s = now
        return True

    def done(self) -> None:
        """Note what it cost, and from that when the next time comes."""
        now = time.perf_counter()
        self.next_s = now + max(_INTERVAL_S, (now - self.began_s) / _SHARE)
