"""The ledger of a study: append-only events with one writer, in a database (`locating`).

Events have an id, a clock, a kind and a payload as JSON. Who holds the claim may append; taking it is one conditional
UPDATE, and every commit renews and checks it in the same transaction, so a parent that was taken over can write
nothing more. A kill at any moment loses at most what was not committed.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

from luthier.files import from_json, to_json
from luthier.tuning.locating import locate
from luthier.tuning.state import Event
from luthier.tuning.store import Row, Store, StudyError

__all__ = ["Ledger", "StudyError", "read_events"]

LEASE_S = 20.0


class Ledger:
    """The writer's side of a study's database.

    Args:
        folder: of the study; made when missing.
        lease_s: how long the claim lives without a commit.
        storage: as for `locate`.

    Raises:
        StudyError: the folder cannot be written, the database is damaged or out of reach, or another process is at
            work on the study.
    """

    def __init__(self, folder: Path, lease_s: float = LEASE_S, storage: str | None = None) -> None:
        self.owner = f"{_machine()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.lease_s = lease_s
        self._pending: list[Event] = []
        place = locate(folder, storage)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(f"the study folder {folder} cannot be made: {error.strerror or error}") from None
        self.store: Store = place.open()
        try:
            self._claim()
            place.note()
            self._last = self.store.last_id()
        except BaseException:
            self.store.close()
            raise
        self._renewed = time.monotonic()

    def events(self) -> list[Event]:
        """All events, those not yet committed included."""
        return [*_parse(self.store.read(0), self.store.where), *self._pending]

    def append(self, kind: str, clock: float, payload: dict[str, Any]) -> Event:
        """Add an event; it is durable after the next `flush`."""
        self._last += 1
        event = Event(self._last, round(float(clock), 4), kind, payload)
        self._pending.append(event)
        return event

    def flush(self) -> None:
        """Commit the pending events in one transaction, and renew the claim.

        Raises:
            StudyError: another process has taken the study over, or the database cannot be written (disk full).
        """
        due = time.monotonic() - self._renewed > self.lease_s / 4
        if not self._pending and not due:
            return
        rows = [(event.id, event.clock, event.kind, to_json(event.payload)) for event in self._pending]
        if not self.store.commit(rows, self.owner, self.lease_s):
            raise StudyError(
                f"another process has taken over the study {self.store.where} while this one was not responding: "
                "this one stops, and nothing that it stored is lost"
            )
        self._pending.clear()
        self._renewed = time.monotonic()

    def close(self, commit: bool = True) -> None:
        """Commit, give the claim back and leave the database.

        Args:
            commit: False after an interrupt: what was not committed may be half of what follows from one message.
        """
        try:
            if commit:
                self.flush()
            self.store.release(self.owner)
        finally:
            self.store.close()

    def abandon(self) -> None:
        """Leave the database and commit nothing more: after an error of the ledger itself."""
        self.store.close()

    def _claim(self) -> None:
        holder, left_s = self.store.holder()
        dead = holder is not None and not _alive(holder)
        if holder is not None and left_s > 0 and not dead:
            raise StudyError(
                f"another process ({holder}) is at work on the study {self.store.where}: "
                "wait for it, stop it, or choose another folder"
            )
        if not self.store.claim(self.owner, self.lease_s, holder, dead):
            raise StudyError(f"another process has just begun to work on the study {self.store.where}")


def read_events(folder: Path, after: int = 0, storage: str | None = None) -> list[Event]:
    """The committed events of a study, without claiming it: also while another process is at work.

    Args:
        folder: of the study.
        after: only events with a higher id.
        storage: as for `locate`; a folder knows where its study is, but no password.

    Raises:
        StudyError: there is no study, or its database is damaged or out of reach.
    """
    return _parse(locate(folder, storage).read(after), str(folder))


def _parse(rows: list[Row], where: str) -> list[Event]:
    try:
        return [Event(id_, clock, kind, from_json(payload)) for id_, clock, kind, payload in rows]
    except ValueError as error:
        raise StudyError(f"the study {where} is damaged: an event is not JSON ({error})") from None


def _machine() -> str:
    """This machine since it was started, and on Linux this container: where a process id means one process."""
    host = socket.gethostname()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text() + str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return host
    return f"{host}-{hashlib.sha256(boot.encode()).hexdigest()[:6]}"


def _alive(owner: str) -> bool:
    """Whether the owner may still be at work: on another machine only its lease tells."""
    machine, pid, _ = owner.rsplit(":", 2)
    if machine != _machine():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
