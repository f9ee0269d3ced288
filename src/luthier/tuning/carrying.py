"""The worker's side of a depot: a trial's folder is fetched before its turn, and put on the way and after it."""

from __future__ import annotations

import shutil
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.tuning.depot import Depot, DepotError, insist

if TYPE_CHECKING:
    from luthier.tuning.worker import Channel, Train

EVERY_S = 10.0
"""How often a folder is put on the way, at most; rarer where this would take more than a fifth of the time."""
_SHARE = 5
_TELL_S = 1.0
_RUNNING = ("metrics.jsonl", "vitals.jsonl", "status.json")  # worth nothing to who goes on without a new checkpoint


def carried(train: Train, depot: Depot, home: Path | None = None) -> Train:
    """Training in a folder that comes through a depot.

    What is told of a turn is told when its folder has been put. When the depot cannot be reached for a minute, the
    turn ends as "stranded", with the reason.

    Args:
        train: see `worker.Train`.
        depot: where folders come from and go to.
        home: of this node's folders; None: where the order says.
    """

    def turn(order: dict[str, Any], channel: Channel) -> tuple[str, dict[str, Any]]:
        told = Path(order["folder"])
        folder = told if home is None else home / told.name
        try:
            with carriage(depot, folder, order, channel):
                ended = train({**order, "folder": str(folder)}, channel)
        except DepotError as error:
            traceback.print_exc()
            return "stranded", {"reason": str(error)}
        except BaseException:
            forget(folder)
            raise
        if ended[0] != "paused":
            forget(folder)
        return ended

    def forget(folder: Path) -> None:
        """What has been put is not needed on the node any more."""
        if home is not None:
            shutil.rmtree(folder, ignore_errors=True)

    return turn


@contextmanager
def carriage(depot: Depot, folder: Path, order: dict[str, Any], channel: Channel) -> Iterator[None]:
    """Fetch a trial's folder, put it on the way when something was saved, and in any case at the end.

    Raises:
        DepotError: the depot cannot be reached.
    """
    number = order["number"]
    with beating(channel, number):
        insist(lambda: depot.fetch(folder.name, folder))
    putter = Putter(depot, folder, order["turn"])
    try:
        yield
    finally:
        with beating(channel, number):
            putter.close()


@contextmanager
def beating(channel: Channel, number: int) -> Iterator[None]:
    """Tell the parent once a second that a folder is on its way, so that it does not take this for a standstill."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(_TELL_S):
            channel.say("carrying", number=number)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Putter:
    """Puts a folder when something was saved in it; a thread does it, beside the training."""

    def __init__(self, depot: Depot, folder: Path, turn: int) -> None:
        self.depot, self.folder, self.turn = depot, folder, turn
        self._nth, self._saved = 0, saved(folder)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def put(self) -> None:
        """Put the folder as it is."""
        self._nth += 1
        self.depot.put(self.folder.name, self.folder, self.turn, self._nth)

    def look(self) -> None:
        """Put the folder if something was saved since then; what does not succeed does so the next time."""
        try:
            if (now := saved(self.folder)) != self._saved:
                self.put()
                self._saved = now
        except (DepotError, OSError):  # the latter of a folder that was removed while it was looked at
            traceback.print_exc()

    def close(self) -> None:
        """Put the folder for the last time.

        Raises:
            DepotError: the depot cannot be reached.
        """
        self._over.set()
        self._thread.join()
        insist(self.put)

    def _watch(self) -> None:
        pause_s = EVERY_S
        while not self._over.wait(pause_s):
            began_s = time.monotonic()
            self.look()
            pause_s = max(EVERY_S, _SHARE * (time.monotonic() - began_s))


def saved(folder: Path) -> set[tuple[str, int, int]]:
    """What of a folder is worth being put: path, time and size of each file, but for those that grow all the time."""
    found = set()
    for path in folder.rglob("*"):
        if path.name.startswith(".") or path.name in _RUNNING:
            continue
        try:
            status = path.stat()
        except FileNotFoundError:  # replaced at this moment
            continue
        if path.is_file():
            found.add((str(path), status.st_mtime_ns, status.st_size))
    return found
