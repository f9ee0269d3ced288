"""What a training function saves: written when its trial pauses or ends, and once a second on the way.

Beside the latest state, from which a trial goes on, stands the one that read best: what a winner is wanted for.
"""

from __future__ import annotations

import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.errors import RecordError
from luthier.files import disk_error, from_json, to_json, write_atomic

_EVERY_S = 1.0
_SMALL_BYTES = 1 << 26
_LATER = "later.json"
_LAST, _BEST = "last", "best"


class Saves:
    """The latest state of a trial and its best one, held in memory as copies until they must be on the disk.

    Writing takes milliseconds, as long as a short epoch; a killed worker loses a second of training instead. States
    of more than 64 MB are written at once; what is told of them afterwards goes to a small file beside them.

    Args:
        folder: where they go; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: tuple[Any, dict[str, Any]] | None = None
        self._best: tuple[Any] | None = None  # what was best so far, while it is not on the disk
        self._large: str | None = None  # name of the state on the disk that was too large to be held
        self._written_at = time.monotonic()

    def keep(self, state: Any, note: dict[str, Any]) -> None:
        """Take a state; later changes to it do not count."""
        large = _is_large(state)
        self._large = uuid.uuid4().hex if large else None
        self._held = (state if large else _copied(state), {**note, "name": self._large})
        if large:
            self.write()

    def settle(self, note: dict[str, Any], best: bool = False) -> None:
        """Note what has been told since of the state taken last; time to write it, once a second.

        Args:
            note: in place of the former.
            best: whether that state is the best one so far; the note, which comes to the disk first, should say so.
        """
        if self._held is not None:
            self._held = (self._held[0], note)
            if best:
                self._best = (self._held[0],)
            if time.monotonic() - self._written_at > _EVERY_S:
                self.write()
            return
        with _on_disk(self.folder):
            if self._large is not None:
                write_atomic(self.folder / _LATER, to_json({**note, "name": self._large}))
            if best:
                _link(self.folder)

    def write(self) -> None:
        """Put the latest state and the best one on the disk, if they are not there.

        Raises:
            RecordError: there is no room for them.
        """
        if self._held is None:
            return
        state, note = self._held
        with _on_disk(self.folder):
            if self._best is not None and self._best[0] is not state:
                write_state(self.folder, self._best[0], {}, _BEST)
                self._best = None
            write_state(self.folder, state, note)
            if self._best is not None:
                _link(self.folder)
        self._held, self._best, self._written_at = None, None, time.monotonic()

    def read(self) -> tuple[Any, dict[str, Any]] | None:
        """The state last written, and what was last noted of it; None when there is none."""
        found, later = read_state(self.folder), self.folder / _LATER
        if (
            found is not None
            and later.exists()
            and (note := from_json(later.read_text()))["name"] == found[1].get("name")
        ):
            return found[0], note
        return found


@contextmanager
def _on_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if disk_error(error) is None:
            raise
        raise RecordError(f"{folder} cannot be written ({error.strerror}): make room") from error


def _link(folder: Path) -> None:
    """Call what is on the disk as the latest state the best one, too."""
    last = _newest(folder, _LAST)
    if last is None or ((best := last.with_stem(_BEST)).exists() and best.samefile(last)):
        return
    spare = last.with_name(f".{_BEST}.{uuid.uuid4().hex}")
    try:
        spare.hardlink_to(last)
    except OSError:  # a file system without hard links
        shutil.copy2(last, spare)
    spare.replace(best)


def write_state(folder: Path, state: Any, note: dict[str, Any], name: str = _LAST) -> None:
    """Write a state: as JSON when that gives it back as it is, else as a checkpoint with tensors.

    Raises:
        CheckpointError: it holds something else than `packing.pack` takes; says where.
    """
    if "torch" not in sys.modules and _is_plain(state):
        write_atomic(folder / f"{name}.json", to_json({"state": state, "note": note}))
        return
    from luthier.training.checkpoints import save

    save(folder / f"{name}.safetensors", state, note)


def read_best(folder: Path) -> tuple[Any, dict[str, Any]] | None:
    """The state that read best; the latest where nothing was read with one, None when there is none at all."""
    return read_state(folder, _BEST) or read_state(folder)


def read_state(folder: Path, name: str = _LAST) -> tuple[Any, dict[str, Any]] | None:
    """What `write_state` last wrote, with its note; None when it never did."""
    if (path := _newest(folder, name)) is None:
        return None
    if path.suffix == ".json":
        content = from_json(path.read_text())
        return content["state"], content["note"]
    from luthier.training.checkpoints import load

    return load(path)


def _newest(folder: Path, name: str) -> Path | None:
    """The file that a state was last written to."""
    paths = [path for path in (folder / f"{name}.safetensors", folder / f"{name}.json") if path.exists()]
    return max(paths, key=lambda path: path.stat().st_mtime_ns, default=None)


def _is_plain(state: Any) -> bool:
    try:
        return bool(from_json(to_json(state)) == state)
    except (TypeError, ValueError):
        return False


def _is_large(state: Any) -> bool:
    if "torch" not in sys.modules:
        return not _is_plain(state)  # only a checkpoint can tell what is wrong with it
    from luthier.training.packing import pack

    return sum(tensor.nbytes for tensor in pack(state)[0].values()) > _SMALL_BYTES


def _copied(state: Any) -> Any:
    if "torch" not in sys.modules:
        return from_json(to_json(state))
    from luthier.training.packing import pack, unpack

    return unpack(*pack(state))
