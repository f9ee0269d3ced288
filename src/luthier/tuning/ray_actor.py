"""The actor of a study on Ray, and what it does on its node. Imported where Ray is needed, and only then."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from luthier.tuning.carrying import carried
from luthier.tuning.depot import Depot, insist
from luthier.tuning.ledger import StudyError
from luthier.tuning.messages import encode
from luthier.tuning.worker import Channel, Train, prepare, serve

VISIBLE_S = 5.0
"""How long a node may take to see a new file: file systems over the network do."""
THREADS = {"fetching": 1, "taking": 1}
"""Ray's name of a group of methods -> threads that answer them, beside that of the trainings."""
_BEAT_S = 2.0  # how long a request for messages waits for one
_ORPHANED_S = 20.0  # without such a request an actor takes its parent for dead


class Line(Channel):
    """What a training in an actor tells and hears."""

    def __init__(self) -> None:
        super().__init__()
        self._outbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def say(self, event: str, **details: Any) -> None:
        """Leave a message for the parent to fetch."""
        self._outbox.put(encode({"event": event, **details}))

    def fetch(self) -> bytes:
        """All messages left, encoded; waits a little when there is none."""
        pieces = []
        with contextlib.suppress(queue.Empty):
            pieces.append(self._outbox.get(timeout=_BEAT_S))
            while True:
                pieces.append(self._outbox.get_nowait())
        return b"".join(pieces)


@dataclass(frozen=True)
class Posting:
    """What an actor is told of its study.

    Attributes:
        folder: of the study; without a depot on storage that all nodes share.
        call: names this call of the study; also the text of `workers/call` in the folder, or of `call` in the depot.
        files: what was shipped: file name -> reference in the object store.
        path: where the parent finds its modules.
        depot: address through which the folders of trials go; None: they are in the study's folder.
    """

    folder: Path
    call: str
    files: dict[str, Any]
    path: list[str]
    depot: str | None = None


class Trainer:
    """The actor. Trainings have a thread of their own."""

    def __init__(self, posting: Posting, log: str) -> None:
        self.posting, self.line, self.fetched = posting, Line(), time.monotonic()
        sys.path.extend(entry for entry in posting.path if entry not in sys.path)
        threading.Thread(target=serve, args=(self.line, partial(self.prepare, log)), daemon=True).start()
        threading.Thread(target=watch_parent, args=(self,), daemon=True).start()

    def prepare(self, log: str) -> Train:
        """Get what is to be trained."""
        if self.posting.depot is not None:
            return self.prepare_apart(self.posting.depot)
        check_visible(self.posting)
        with Path(log).open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        return prepare(unpack(self.posting), None)

    def prepare_apart(self, address: str) -> Train:
        """Get what is to be trained where the study's folder is not seen; what is printed goes to Ray's own logs."""
        depot = insist(partial(Depot, address))
        check_reached(depot, self.posting.call)
        home = unpack(self.posting)
        return carried(prepare(home, None), depot, home / "trials")

    @ray.method(concurrency_group="fetching")  # type: ignore[untyped-decorator]
    def fetch(self) -> bytes:
        """Messages for the parent; asked for all the time."""
        self.fetched = time.monotonic()
        return self.line.fetch()

    @ray.method(concurrency_group="taking")  # type: ignore[untyped-decorator]
    def take(self, order: dict[str, Any]) -> None:
        """An order from the parent."""
        self.line.take(order)

    @ray.method(concurrency_group="taking")  # type: ignore[untyped-decorator]
    def leave(self) -> None:
        """Remove what was unpacked; what is mapped stays readable."""
        shutil.rmtree(local_folder(self.posting), ignore_errors=True)


def watch_parent(trainer: Trainer) -> None:
    """End the process when nobody fetches: its trial may go on elsewhere by then.

    Quiet looks are counted, not seconds: what keeps all threads of this process waiting is nobody's silence.
    """
    quiet = 0
    while quiet < _ORPHANED_S:
        seen = trainer.fetched
        time.sleep(1)
        quiet = 0 if trainer.fetched != seen else quiet + 1
    os._exit(0)


def check_visible(posting: Posting) -> None:
    """Whether this node sees the study's folder.

    Raises:
        StudyError: it does not.
    """
    note = posting.folder / "workers" / "call"
    deadline = time.monotonic() + VISIBLE_S
    while not (note.exists() and note.read_text() == posting.call):
        if time.monotonic() > deadline:
            raise StudyError(
                f"node {os.uname().nodename} does not see the study's folder {posting.folder}: "
                "choose a folder on storage that all nodes share under the same path, or have checkpoints= carry "
                "what the trials save through storage that all nodes reach"
            )
        time.sleep(0.1)


def check_reached(depot: Depot, call: str) -> None:
    """Whether this node reads and writes the same storage as the parent.

    Raises:
        StudyError: it does not.
    """
    deadline = time.monotonic() + VISIBLE_S
    while insist(depot.read_call) != call:
        if time.monotonic() > deadline:
            raise StudyError(
                f"node {os.uname().nodename} does not find in {depot.address} what the parent has put there: "
                "checkpoints must be an address of storage that all nodes share"
            )
        time.sleep(0.1)
    insist(depot.probe)


def local_folder(posting: Posting) -> Path:
    """Where this node keeps what was shipped; it bears the study's name, so that a later call removes leftovers."""
    study = hashlib.sha256(f"{posting.folder} {posting.depot}".encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"luthier-{os.getuid()}" / f"{study}-{posting.call}"


def unpack(posting: Posting) -> Path:
    """Write what was shipped to this node's disk, for all its workers to map; the first of them does it.

    Raises:
        StudyError: the temporary folder belongs to somebody else.
    """
    from filelock import FileLock

    home = local_folder(posting)
    home.parent.mkdir(mode=0o700, exist_ok=True)
    status = home.parent.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise StudyError(f"{home.parent} must belong to the user of the Ray workers alone: remove it")
    with FileLock(home.parent / "lock"):
        if not home.exists():
            for leftover in home.parent.glob(f"{home.name.split('-')[0]}-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            unfinished = home.with_name(f"{home.name}.part")
            unfinished.mkdir()
            for name, reference in posting.files.items():
                (unfinished / name).write_bytes(memoryview(ray.get(reference)))
            unfinished.rename(home)
    return home
