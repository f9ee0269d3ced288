"""Trials that need more memory than there is: told from other failures, so that they are not tried again."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path

OUT_OF_MEMORY = "out of memory"

_REFUSALS = ("can't allocate memory", "not enough memory", OUT_OF_MEMORY, "alloc_failed")
_AMOUNT = re.compile(r"(?:tried to|unable to|failed to) allocate ([\d.]+ ?\w+)", re.IGNORECASE)


def shortage(error: BaseException) -> str | None:
    """What an error says about memory that there was not, in words; None for an error of another kind.

    Python and numpy raise MemoryError, torch its OutOfMemoryError on accelerators and a RuntimeError of its
    allocator on the CPU, the operating system ENOMEM; any of them may stand behind the error that it led to.

    >>> shortage(MemoryError("Unable to allocate 7.45 GiB for an array")), shortage(KeyError("x"))
    ('out of memory: 7.45 GiB could not be had', None)
    """
    for each in _chain(error):
        if _is_shortage(each):
            amount = _AMOUNT.search(str(each))
            return OUT_OF_MEMORY + (f": {amount[1]} could not be had" if amount else "")
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_shortage(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _REFUSALS)


def oom_kills(root: Path = Path("/")) -> int | None:
    """How many processes the kernel has killed for want of memory so far, in this control group where it counts them.

    Linux only; None elsewhere: there such a death is a crash like another.
    """
    for path in _counters(root):
        try:
            numbers = dict(line.split()[:2] for line in path.read_text().splitlines())
            return int(numbers["oom_kill"])
        except (OSError, ValueError, KeyError):
            continue
    return None


def _counters(root: Path) -> Iterator[Path]:
    """Files with a line `oom_kill N`: control groups of version 2 and 1, then the whole machine."""
    try:
        groups = [line.split(":", 2)[1:] for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        groups = []
    base = root / "sys/fs/cgroup"
    for names, group in groups:
        inner = group.lstrip("/")
        if names == "":
            yield from (base / inner / "memory.events", base / "memory.events")
        elif "memory" in names.split(","):
            yield from (base / "memory" / inner / "memory.oom_control", base / "memory" / "memory.oom_control")
    yield root / "proc/vmstat"
