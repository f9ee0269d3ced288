"""Workers on a Ray cluster: actors that take the orders and tell the messages of the worker processes.

The parent and its scheduler stay as they are: a thread for each actor passes on what it tells through a pipe, which
ends when the actor dies, however it dies. What is tuned goes through the object store once and is unpacked once on
each node; records and checkpoints go to the study's folder, which all nodes must see under the same path.
"""

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
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from luthier.errors import LuthierError
from luthier.files import write_atomic
from luthier.tuning.ledger import StudyError
from luthier.tuning.messages import encode
from luthier.tuning.ray_cluster import checked, connect, n_places, needs_of, plea
from luthier.tuning.worker import Channel, prepare, serve
from luthier.tuning.workers import Place, Workers

PATIENCE_S = 60.0
"""How long a study waits for a place in the cluster while it has no worker at all."""
VISIBLE_S = 5.0
"""How long a node may take to see a new file: file systems over the network do."""
_BEAT_S = 2.0  # how long a request for messages waits for one
_ORPHANED_S = 20.0  # without such a request an actor takes its parent for dead
_LEAVE_S = 2.0
_FETCHING, _TAKING = "fetching", "taking"  # each has a thread of its own in the actor


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
        folder: of the study, on storage that all nodes share.
        call: names this call of the study; also the text of `workers/call` in the folder.
        files: what was shipped: file name -> reference in the object store.
        path: where the parent finds its modules.
    """

    folder: Path
    call: str
    files: dict[str, Any]
    path: list[str]


class Trainer:
    """The actor. Trainings have a thread of their own."""

    def __init__(self, posting: Posting, log: str) -> None:
        self.posting, self.line, self.fetched = posting, Line(), time.monotonic()
        sys.path.extend(entry for entry in posting.path if entry not in sys.path)
        threading.Thread(target=serve, args=(self.line, partial(self.prepare, log)), daemon=True).start()
        threading.Thread(target=self.watch_parent, daemon=True).start()

    def prepare(self, log: str) -> Any:
        """Get what is to be trained."""
        check_visible(self.posting)
        with Path(log).open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        return prepare(unpack(self.posting), None)

    def fetch(self) -> bytes:
        """Messages for the parent; asked for all the time."""
        self.fetched = time.monotonic()
        return self.line.fetch()

    def take(self, order: dict[str, Any]) -> None:
        """An order from the parent."""
        self.line.take(order)

    def leave(self) -> None:
        """Remove what was unpacked; what is mapped stays readable."""
        shutil.rmtree(local_folder(self.posting), ignore_errors=True)

    def watch_parent(self) -> None:
        """End the process when nobody fetches: its trial may go on elsewhere by then."""
        while time.monotonic() - self.fetched < _ORPHANED_S:
            time.sleep(1)
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
                "choose a folder on storage that all nodes share under the same path"
            )
        time.sleep(0.1)


def local_folder(posting: Posting) -> Path:
    """Where this node keeps what was shipped; it bears the study's name, so that a later call removes leftovers."""
    study = hashlib.sha256(str(posting.folder).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"luthier-{os.getuid()}" / f"{study}-{posting.call}"


def unpack(posting: Posting) -> Path:
    """Write what was shipped to this node's disk, for all its workers to map; the first of them does it.

    Raises:
        StudyError: the temporary folder belongs to somebody else.
    """
    import ray
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


class RayWorker(Place):
    """One actor, and the trial that it trains; see `workers.Worker`.

    Args:
        folder: of the study.
        index: tells it from the others.
        actors: the class `Trainer`, as Ray has it.
        posting: what the actor is told.
    """

    def __init__(self, folder: Path, index: int, actors: Any, posting: Posting) -> None:
        super().__init__(folder, index)
        self.log.touch()
        self.actor = actors.remote(posting, str(self.log))
        self._waiting: list[dict[str, Any]] = []
        self._cause = ""
        end, beginning = os.pipe()
        self.messages = os.fdopen(end, "rb", buffering=0)
        self._passing_on = threading.Thread(target=self._pass_on, args=(beginning,), daemon=True)
        self._passing_on.start()

    @property
    def gone(self) -> bool:
        """Whether the actor is dead, or out of reach."""
        return not self._passing_on.is_alive()

    def order(self, **order: Any) -> None:
        """Send an order, or keep it until the actor is ready: nobody knows whether it finds a place."""
        self.heard = time.monotonic()
        if not self.ready:
            self._waiting.append(order)
            return
        with contextlib.suppress(ConnectionError):  # noticed soon
            self.actor.take.options(concurrency_group=_TAKING).remote(order)

    def begin(self, holder: RayWorker | None) -> None:
        """Be ready; take over the trial of another that is still without a place."""
        self.ready = True
        if holder is not None:
            self.trial, holder.trial = holder.trial, None
            self._waiting, holder._waiting = holder._waiting, []
        for order in self._waiting:
            self.order(**order)

    def kill(self) -> None:
        """End the actor."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError, ConnectionError, ValueError):
            ray.kill(self.actor)

    def why_dead(self) -> str:
        """How the actor ended, in words."""
        self._passing_on.join(_LEAVE_S)
        return f"the Ray worker died ({self._cause or 'it does not answer'}); see {self.log}"

    def dismiss(self) -> None:
        """Let a ready actor tidy up, then end it."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError, ConnectionError):
            if self.ready and not self.gone:
                ray.wait([self.actor.leave.options(concurrency_group=_TAKING).remote()], timeout=_LEAVE_S)
        self.kill()

    def close(self, at_once: bool) -> None:
        """End the actor, and the thread that listens to it."""
        self.kill()
        self._passing_on.join(_LEAVE_S)
        self.messages.close()

    def _pass_on(self, pipe: int) -> None:
        import ray

        try:
            with os.fdopen(pipe, "wb") as messages:
                fetch = self.actor.fetch.options(concurrency_group=_FETCHING)
                while True:
                    messages.write(ray.get(fetch.remote()))
                    messages.flush()
        except (ray.exceptions.RayError, ConnectionError, OSError) as error:
            self._cause = _shortly(error)


class RayWorkers(Workers):
    """Actors as workers; one that dies is replaced as soon as the cluster has a place for it.

    Args:
        folder: of the study, on shared storage; what is tuned has been shipped to `workers/task` in it.
        count: actors.
        resources: of each: options of Ray's actors, see `ray_cluster.checked`.
        timeout_s, grace_s: see `Workers`.
        disconnect: whether Ray is shut down at the end.

    Raises:
        StudyError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        resources: Mapping[str, Any],
        disconnect: bool,
        **times: Any,
    ) -> None:
        import ray

        self._disconnect, self._needs = disconnect, needs_of(resources)
        self._served = time.monotonic()
        threads = {_FETCHING: 1, _TAKING: 1}
        self._actors = ray.remote(**resources, concurrency_groups=threads)(Trainer)
        self._posting = posted(folder.absolute())
        super().__init__(folder.absolute(), count, **times)

    @property
    def idle(self) -> list[Any]:
        """Ready workers without a trial; while there is nobody, one trial may wait for the first."""
        free = [worker for worker in self.all if worker.trial is None]
        return [worker for worker in free if worker.ready] or ([] if self.busy else free[:1])

    def wait(self, timeout_s: float) -> Iterator[dict[str, Any]]:
        """See `Workers.wait`.

        Raises:
            StudyError: also when no worker finds a place for too long.
        """
        yield from super().wait(timeout_s)
        if any(worker.ready for worker in self.all):
            self._served = time.monotonic()
        elif time.monotonic() - self._served > PATIENCE_S:
            raise StudyError(plea(PATIENCE_S, self._needs, len(self.all)))

    def close(self, at_once: bool = False) -> None:
        """End all actors, and Ray if it was begun for them."""
        super().close(at_once)
        if self._disconnect:
            import ray

            ray.shutdown()

    def _begin(self, index: int) -> Any:
        worker = RayWorker(self.folder, index, self._actors, self._posting)
        self._selector.register(worker.messages, 1, worker)
        return worker

    def _understand(self, worker: Any, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if message["event"] == "ready":
            homeless = [other for other in self.all if other.trial is not None and not other.ready]
            worker.begin(None if worker.trial is not None or not homeless else homeless[0])
        yield from super()._understand(worker, message)


def ray_workers(
    folder: Path, count: int | None, on: str, resources: Mapping[str, Any] | None, **times: Any
) -> RayWorkers:
    """Connect to Ray and begin actors there.

    Args:
        folder: see `RayWorkers`.
        count: actors; as many as the cluster holds when None.
        on: see `ray_cluster.connect`.
        resources: see `ray_cluster.checked`.
        times: see `Workers`.

    Raises:
        LuthierError: arguments do not fit, or Ray is missing.
        StudyError: the cluster cannot be reached, or can hold no worker.
    """
    options = checked(resources)
    ours = connect(on)
    try:
        return RayWorkers(folder, count or n_places(options), options, disconnect=ours, **times)
    except BaseException:
        if ours:
            import ray

            ray.shutdown()
        raise


def send_task_files() -> None:
    """Have the modules of task files sent whole: other nodes could not import them by their names."""
    import cloudpickle

    for name, module in list(sys.modules.items()):
        if name.startswith("luthier_task_"):
            cloudpickle.register_pickle_by_value(module)


def posted(folder: Path) -> Posting:
    """Put what was shipped into the object store.

    Raises:
        LuthierError: the object store cannot take it.
        StudyError: the folder cannot be written.
    """
    import numpy as np
    import ray

    call = uuid.uuid4().hex[:8]
    try:
        write_atomic(folder / "workers" / "call", call)
        shipped = {path.name: np.fromfile(path, np.uint8) for path in (folder / "workers" / "task").iterdir()}
        files = {name: ray.put(content) for name, content in shipped.items()}
    except OSError as error:
        raise StudyError(f"the study folder {folder} cannot be written: {error.strerror or error}") from None
    except ray.exceptions.RayError as error:
        raise LuthierError(f"Ray's object store cannot take what is tuned: {_shortly(error)}") from error
    return Posting(folder, call, files, [str(Path(entry).absolute()) for entry in sys.path if entry])


def _shortly(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 300 else f"{text[:300]}..."
