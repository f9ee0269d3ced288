"""The parent's side of a depot: the study's place in it, and the folders of ended trials on their way home."""

from __future__ import annotations

import queue
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from luthier.errors import LuthierError
from luthier.tuning.depot import Depot, DepotError, checked_address, insist, version_of
from luthier.tuning.ledger import StudyError
from luthier.tuning.state import State, Trial


def depot_of(state: State, name: str, asked: str | None) -> Depot | None:
    """Where the folders of a study's trials are kept between turns; None: in the study's own folder.

    A study that has been at work without a depot gets one: what it may go on with is put there.

    Args:
        state: of the study; its settings note the depot.
        name: of what is tuned.
        asked: the address that this call names, if any.

    Raises:
        StudyError: the study is kept at another address, or the address cannot be reached or written.
    """
    noted: str | None = state.settings.get("checkpoints")
    if asked is None and noted is None:
        return None
    if asked is not None and noted is not None and checked_address(asked) != noted.rpartition("/")[0]:
        raise StudyError(
            f"the checkpoints of the study {state.folder} are in {noted}: leave checkpoints out, or choose another "
            f"folder, got {asked!r}"
        )
    own = f"{re.sub(r'[^A-Za-z0-9_]+', '-', name)}-{uuid.uuid4().hex[:8]}"
    depot = Depot(noted or f"{checked_address(asked or '')}/{own}", state.settings.get("calls", 0) + 1)
    depot.probe()
    _sweep(state.folder / "trials")
    return depot


@contextmanager
def lodged(state: State, name: str, asked: str | None) -> Iterator[Depot | None]:
    """What `depot_of` gives; when the call ends before the study has noted a new depot, nothing stays there.

    Raises:
        StudyError: see `depot_of`.
    """
    depot = depot_of(state, name, asked)
    try:
        if depot is not None and "checkpoints" not in state.settings:
            for trial in state.trials:
                if not trial.ended or trial.may_return:
                    insist(partial(depot.put, trial.folder.name, trial.folder, depot.before))
        yield depot
    except BaseException:
        if depot is not None and "checkpoints" not in state.settings:
            with suppress(DepotError):
                depot.clear()
        raise


class Homing:
    """Brings the folders of ended trials into the study's folder, beside the search; without a depot they are there.

    What a depot keeps of a trial that is never trained again is removed when it has come.
    """

    def __init__(self, depot: Depot | None) -> None:
        self.depot = depot
        self._jobs: queue.Queue[Callable[[], None]] = queue.Queue()
        self._arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._away: set[int] = set()
        self._trouble: DepotError | None = None
        self._begun = self._over = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Homing:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let arrive what is under way, unless the user cannot wait."""
        try:
            if kind is None or issubclass(kind, LuthierError):
                self._jobs.join()
        finally:
            self._over = True
            self._jobs.put(lambda: None)  # wakes the thread

    @property
    def away(self) -> set[int]:
        """Numbers of the trials that have ended and not come yet."""
        while not self._arrived.empty():
            self._away.discard(self._arrived.get())
        return self._away

    def bring(self, trials: Iterable[Trial]) -> None:
        """Begin to bring the folders of ended trials; at first they are those of earlier calls, most long here.

        Raises:
            StudyError: the depot cannot be reached, or could not the last time.
        """
        if self.depot is None:
            return
        self._check()
        if not self._begun:
            self._begun, left = True, insist(self.depot.names)
            trials = [trial for trial in trials if trial.folder.name in left]
        for trial in trials:
            self._away.add(trial.number)
            self._send(partial(self._fetch, self.depot, trial))

    def drop(self, trials: Iterable[Trial]) -> None:
        """Keep no longer what stopped trials could have gone on with."""
        if self.depot is not None:
            for trial in trials:
                if trial.may_return:
                    self._send(partial(insist, partial(self.depot.remove, trial.folder.name)))

    def wait(self) -> None:
        """Until all have come.

        Raises:
            StudyError: the depot cannot be reached.
        """
        self._jobs.join()
        self._check()

    def _check(self) -> None:
        if self._trouble is not None:
            raise StudyError(f"{self._trouble}: what has ended is not all here; the same call goes on with the study")

    def _fetch(self, depot: Depot, trial: Trial) -> None:
        name = trial.folder.name
        insist(partial(depot.fetch, name, trial.folder))
        self._arrived.put(trial.number)
        if not trial.may_return:
            insist(partial(depot.remove, name, upto=version_of(trial.folder)))

    def _send(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _work(self) -> None:
        while not self._over:
            job = self._jobs.get()
            try:
                if self._trouble is None and not self._over:
                    job()
            except DepotError as error:
                self._trouble = error
            finally:
                self._jobs.task_done()


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed while they put or fetched have left beside trials."""
    for leftover in folder.glob(".[0-9]*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
