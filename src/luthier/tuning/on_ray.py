"""Workers on a Ray cluster: actors that take the orders and tell the messages of the worker processes.

The parent and its scheduler stay as they are: a thread for each actor passes on what it tells through a pipe, which
ends when the actor dies, however it dies. What is tuned goes through the object store once and is unpacked once on
each node; records and checkpoints go to the study's folder, which all nodes must see under the same path, or through
a depot.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray

from luthier.errors import LuthierError
from luthier.files import write_atomic
from luthier.tuning.depot import Depot
from luthier.tuning.ledger import StudyError
from luthier.tuning.messages import LEAVE_S
from luthier.tuning.places import Place
from luthier.tuning.ray_actor import THREADS, Posting, Trainer
from luthier.tuning.ray_cluster import needs_of, plea
from luthier.tuning.workers import Workers

PATIENCE_S = 60.0
"""How long a study waits for a place in the cluster while it has no worker at all."""
_TIDY_S = 1.0


class RayWorker(Place):
    """One actor, and the trial that it trains; see `places.Worker`.

    Args:
        folder: of the study.
        index: tells it from the others.
        actors: the class `Trainer`, as Ray has it.
        posting: what the actor is told.
    """

    def __init__(self, folder: Path, index: int, actors: Any, posting: Posting) -> None:
        super().__init__(folder, index)
        self._apart = posting.depot is not None
        if not self._apart:
            self.log.touch()
        self.actor = actors.remote(posting, str(self.log))
        self._waiting: list[dict[str, Any]] = []
        self._cause, self.starved, self.placed = "", False, False
        end, beginning = os.pipe()
        self.messages = os.fdopen(end, "rb", buffering=0)
        self._passing_on = threading.Thread(target=self._pass_on, args=(beginning,), daemon=True)
        self._passing_on.start()

    @property
    def words(self) -> str:
        """Where its trainings print to: its log, or what Ray keeps on the node."""
        return f"`ray logs actor --id {self.actor._actor_id.hex()}`" if self._apart else str(self.log)

    @property
    def last_words(self) -> str:
        """See `places.Place.last_words`."""
        return f"see {self.words}" if self._apart else super().last_words

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
            self.actor.take.remote(order)

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
        with contextlib.suppress(ray.exceptions.RayError, ConnectionError, ValueError):
            ray.kill(self.actor)

    def why_dead(self) -> str:
        """How the actor ended, in words."""
        self._passing_on.join(LEAVE_S)
        return f"the Ray worker died ({self._cause or 'it does not answer'}); see {self.words}"

    def dismiss(self) -> None:
        """End the actor."""
        self.kill()

    def close(self, at_once: bool) -> None:
        """End the actor, and the thread that listens to it."""
        self.kill()
        self._passing_on.join(LEAVE_S)
        self.messages.close()

    def _pass_on(self, pipe: int) -> None:
        try:
            with os.fdopen(pipe, "wb") as messages:
                while True:
                    messages.write(ray.get(self.actor.fetch.remote()))
                    self.placed = True
                    messages.flush()
        except Exception as error:  # whatever it is, this worker is lost
            self._cause = _shortly(error)
            self.starved = isinstance(error, ray.exceptions.OutOfMemoryError) or "OUT_OF_MEMORY" in str(error)


class RayWorkers(Workers):
    """Actors as workers; one that dies is replaced as soon as the cluster has a place for it.

    Args:
        folder: of the study, without a depot on shared storage; what is tuned has been shipped to `workers/task` in it.
        count: actors.
        resources: of each: options of Ray's actors, see `ray_cluster.checked`.
        timeout_s, grace_s, depot: see `Workers`.
        disconnect: whether Ray is shut down at the end.

    Raises:
        StudyError: the folder cannot be written.
    """

    all: list[Any]

    def __init__(
        self,
        folder: Path,
        count: int,
        resources: Mapping[str, Any],
        disconnect: bool,
        depot: Depot | None = None,
        **times: Any,
    ) -> None:
        self._disconnect, self._needs = disconnect, needs_of(resources)
        self._served = time.monotonic()
        self._actors = ray.remote(**resources, concurrency_groups=THREADS)(Trainer)
        self._posting = posted(folder.absolute(), depot)
        super().__init__(folder.absolute(), count, depot=depot, **times)

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
        if any(worker.ready or (worker.placed and not worker.gone) for worker in self.all):
            self._served = time.monotonic()
        elif time.monotonic() - self._served > PATIENCE_S:
            raise StudyError(plea(PATIENCE_S, self._needs, len(self.all)))

    def close(self, at_once: bool = False) -> None:
        """End all actors, and Ray if it was begun for them."""
        with contextlib.suppress(ray.exceptions.RayError, ConnectionError):
            carried = self.depot is not None and self.busy  # whose folders are on the nodes, to be put
            there = [] if carried else [worker for worker in self.all if worker.ready and not worker.gone]
            if leaving := [worker.actor.leave.remote() for worker in there]:
                ray.wait(leaving, num_returns=len(leaving), timeout=_TIDY_S)
        super().close(at_once)
        if self._disconnect:
            ray.shutdown()

    def _begin(self, index: int) -> Any:
        worker = RayWorker(self.folder, index, self._actors, self._posting)
        self._selector.register(worker.messages, 1, worker)
        return worker

    def _understand(self, worker: Any, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if message["event"] == "ready":
            homeless = [each for each in self.all if each.trial is not None and not (each.ready or each.recalled)]
            worker.begin(None if worker.trial is not None or not homeless else homeless[0])
        yield from super()._understand(worker, message)


def posted(folder: Path, depot: Depot | None = None) -> Posting:
    """Put what was shipped into the object store, and the name of the call to where nodes are to find it.

    Raises:
        LuthierError: the object store cannot take it.
        StudyError: the folder or the depot cannot be written.
    """
    call = uuid.uuid4().hex[:8]
    try:
        if depot is not None:
            depot.write_call(call)
        else:
            write_atomic(folder / "workers" / "call", call)
        shipped = {path.name: np.fromfile(path, np.uint8) for path in (folder / "workers" / "task").iterdir()}
        files = {name: ray.put(content) for name, content in shipped.items()}
    except OSError as error:
        raise StudyError(f"the study folder {folder} cannot be written: {error.strerror or error}") from None
    except ray.exceptions.RayError as error:
        raise LuthierError(f"Ray's object store cannot take what is tuned: {_shortly(error)}") from error
    path = [str(Path(entry).absolute()) for entry in sys.path if entry]
    return Posting(folder, call, files, path, None if depot is None else depot.address)


def _shortly(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 300 else f"{text[:300]}..."
