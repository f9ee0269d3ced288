"""The parent's side of the worker processes: start them, order trainings, hear what happens, notice deaths.

Liveness is that of the process: its pipe ends when it dies, however it dies. Workers have a session of their own, so
that Ctrl-C reaches the parent only, which asks them to pause; when the parent dies their input ends and they leave.
"""

from __future__ import annotations

import math
import os
import selectors
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.files import to_stored
from luthier.tuning.jobs import Continue, Start
from luthier.tuning.ledger import StudyError
from luthier.tuning.memory import OUT_OF_MEMORY
from luthier.tuning.messages import LEAVE_S
from luthier.tuning.places import Worker
from luthier.tuning.recruits import Recruit
from luthier.tuning.state import trial_folder

if TYPE_CHECKING:
    from luthier.tuning.depot import Depot

_STANDSTILL_S = 2.0  # between two looks at the workers there are tenths of a second
_TRIES = 3  # worker processes that may die in a row before one gets ready


class Workers:
    """A fixed number of worker processes; one that dies is replaced.

    Args:
        folder: of the study; the task has been shipped to `workers/task` in it.
        count: processes.
        reference: of the task, or None when it was shipped itself.
        recruits: processes that have begun already; those that are taken leave the list.
        recipes: whether further ones are to train recipes.
        timeout_s: how long a training may be silent before its worker is killed; None: for ever.
        grace_s: how long one that was asked to pause may take before its worker is killed, what it takes to put its
            folder into a depot not counted.
        depot: where the folders of trials come from and go to, if they do.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        reference: str | None = None,
        recruits: list[Recruit] | None = None,
        recipes: bool = False,
        timeout_s: float | None = None,
        grace_s: float = math.inf,
        depot: Depot | None = None,
    ) -> None:
        self.folder, self.reference, self.recipes = folder, reference, recipes
        self._recruits = [] if recruits is None else recruits
        self.timeout_s, self.grace_s, self.depot = timeout_s, grace_s, depot
        self._selector = selectors.DefaultSelector()
        self._deaths, self._looked = 0, time.monotonic()
        self.all = [self._begin(index) for index in range(count)]

    @property
    def idle(self) -> list[Worker]:
        """Workers without a trial, those that are still starting included: an order waits for them in the pipe."""
        return [worker for worker in self.all if worker.trial is None]

    @property
    def busy(self) -> list[Worker]:
        """Workers with a trial."""
        return [worker for worker in self.all if worker.trial is not None]

    def train(self, worker: Worker, job: Start | Continue, values: dict[str, Any], seed: int, **more: Any) -> None:
        """Order a training; `more` is for what is trained to know."""
        worker.take(job.number)
        folder = str(trial_folder(self.folder, job.number).absolute())
        order = {"number": job.number, "folder": folder, "seed": seed, "until": job.until_step}
        if self.depot is not None:
            order["turn"] = next(self.depot.turns)
        worker.order(order="train", values=to_stored(values), **order, **more)

    def answer(self, number: int, **answer: Any) -> None:
        """Answer the worker that asked about a trial."""
        for worker in self.busy:
            if worker.trial == number:
                worker.order(**answer)

    def pause_all(self) -> None:
        """Ask every busy worker to save and pause after its current step; one that is still starting is recalled."""
        for worker in self.busy:
            worker.pause_by = time.monotonic() + self.grace_s
            worker.recalled = not worker.ready
            if worker.recalled:
                worker.kill()
            else:
                worker.order(order="pause", number=worker.trial)

    def wait(self, timeout_s: float) -> Iterator[dict[str, Any]]:
        """Messages that arrive within a time; returns as soon as there was one.

        A death of a worker is a message too: {"event": "crashed", number, reason}; the worker has been replaced.
        One that was silent for too long is killed: {"event": "failed", number, reason}.

        Raises:
            StudyError: workers cannot start (the log's end is in the message).
        """
        told = self._selector.select(max(0.0, timeout_s))
        self._forgive(timeout_s)
        for key, _ in told:
            worker: Worker = key.data
            if not (piece := os.read(worker.messages.fileno(), 1 << 16)):
                yield from self._bury(worker)
                continue
            worker.heard = time.monotonic()
            for message in worker.inbox.feed(piece):
                yield from self._understand(worker, message)
        for worker in list(self.all):
            if worker.gone and not self._has_more(worker):
                yield from self._bury(worker)  # a process that it forked may keep its pipe open
            elif self._is_hanging(worker) and not self._has_more(worker):
                yield from self._bury(worker, f"silent for {self.timeout_s:g} s: its worker was killed")
            elif worker.trial is not None and time.monotonic() > worker.pause_by:
                worker.recalled = True
                yield from self._bury(worker)

    def _forgive(self, waited_s: float) -> None:
        """Add to all deadlines what this process itself stood still for (Ctrl-Z, a suspended machine)."""
        now = time.monotonic()
        if (missed := now - self._looked - waited_s) > _STANDSTILL_S:
            for worker in self.all:
                worker.heard += missed
                worker.pause_by += missed
        self._looked = now

    def _has_more(self, worker: Worker) -> bool:
        return any(key.data is worker for key, _ in self._selector.select(0))

    def _is_hanging(self, worker: Worker) -> bool:
        at_work = worker.ready and worker.trial is not None
        return at_work and self.timeout_s is not None and time.monotonic() - worker.heard > self.timeout_s

    def close(self, at_once: bool = False) -> None:
        """End all processes and wait for them; once more is harmless: an interrupt may come in between."""
        for worker in self.all:
            if at_once:
                worker.kill()
            worker.dismiss()
        deadline = time.monotonic() + LEAVE_S
        for worker in self.all:
            while not worker.gone and time.monotonic() < deadline:
                time.sleep(0.005)
            worker.close(at_once=not worker.gone)
        self._selector.close()

    def _begin(self, index: int) -> Worker:
        recruits = self._recruits or [Recruit(self.recipes)]
        address = None if self.depot is None else self.depot.address
        worker = Worker(self.folder, index, self.reference, recruits[-1], address)
        recruits.pop()
        self._selector.register(worker.messages, selectors.EVENT_READ, worker)
        return worker

    def _understand(self, worker: Worker, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
        event = message["event"]
        if event == "ready":
            worker.ready, self._deaths = True, 0
        elif event == "broken":
            worker.note_words()
            raise StudyError(f"a worker process cannot get the task: {message['reason']}; see {worker.words}")
        elif event == "stranded":
            raise StudyError(f"{message['reason']}: the study stops; the same call goes on with it")
        elif event == "carrying":
            worker.pause_by = max(worker.pause_by, time.monotonic() + self.grace_s)
        else:
            if event in ("paused", "finished", "stopped", "failed"):
                worker.trial = None
            if message.pop("leaves", False):
                yield from self._bury(worker)
            yield {**message, "worker": worker.index}

    def _bury(self, worker: Worker, failed: str = "") -> Iterator[dict[str, Any]]:
        """Replace a dead worker, or one that is to die, and tell which trial died with it."""
        self._selector.unregister(worker.messages)
        worker.kill()
        reason, number = worker.why_dead(), worker.trial
        at_work = number is not None and worker.ready and not worker.recalled
        if at_work and worker.starved:
            failed = failed or f"{OUT_OF_MEMORY}: the operating system killed its worker process"
        if not worker.ready:
            worker.note_words()
        worker.close(at_once=True)
        self._deaths += not worker.ready and not worker.recalled
        if self._deaths >= _TRIES:
            self.all.remove(worker)
            raise StudyError(
                f"worker processes die before they are ready: {reason}. Its last words: {worker.last_words}"
            )
        if failed:
            yield {"event": "failed", "number": number, "reason": f"{failed}; see {worker.words}"}
        elif at_work:
            yield {"event": "crashed", "number": number, "reason": reason}
        elif number is not None:
            why = "recalled" if worker.recalled else "its worker died before the training began"
            yield {"event": "paused", "number": number, "reason": why}
        self.all[self.all.index(worker)] = self._begin(worker.index)
