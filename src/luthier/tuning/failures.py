"""What a training failed of, and what follows for its worker."""

from __future__ import annotations

import gc
import sys
import sysconfig
import traceback
from pathlib import Path

from luthier.errors import RecordError
from luthier.files import disk_error, write_atomic
from luthier.tuning.memory import OUT_OF_MEMORY, shortage

_ROOM_BYTES = 1 << 20
_LIBRARIES = [str(Path(__file__).parents[1]), *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))]


def reason_of(error: BaseException) -> str:
    """An error in one line, with the line of the user's code that led to it."""
    from luthier.errors import LuthierError, NonFiniteLoss

    if (short := shortage(error)) is not None:
        return short
    text = " ".join(str(error).split())
    if isinstance(error, NonFiniteLoss):
        return f"diverged: {text}"
    if isinstance(error, LuthierError):
        return text
    return f"{type(error).__name__}: {text}".removesuffix(": ") + _where(error)


def _where(error: BaseException) -> str:
    """The last line of code that is no library's; nothing where all is."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((*_LIBRARIES, "<frozen")):
            return f" (line {frame.lineno} of {Path(frame.filename).name})"
    return ""


def is_stranded(error: BaseException, folder: Path) -> bool:
    """Whether a disk that cannot be written ended a training, which is not the training's fault."""
    if disk_error(error) is None:
        return False
    try:
        write_atomic(room := folder / ".room", bytes(_ROOM_BYTES))
        room.unlink()
    except OSError:
        return True
    return isinstance(error, RecordError)  # what was to be kept was larger


def leaves() -> dict[str, bool]:
    """What a worker tells beside a failure: that it must be replaced, where its accelerator answers no more.

    After a failed assertion on the device, such as an index out of range, a process has lost it for good.
    """
    cuda = sys.modules["torch"].cuda if "torch" in sys.modules else None
    if cuda is None or not cuda.is_initialized():
        return {}
    try:
        cuda.synchronize()
    except RuntimeError:
        return {"leaves": True}
    return {}


def make_room(reason: str) -> None:
    """Let go of what a training that ran out of memory held, before the next one begins."""
    if not reason.startswith(OUT_OF_MEMORY):
        return
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()  # nothing where no accelerator is in use
