"""The ledger of a study: one SQLite file with append-only events and one writer.

Tables: `events` (id, clock, kind, payload as JSON) and `jobs` (name, owner, lease). Who holds the job "study" may
append; claiming it is one conditional UPDATE, and every commit renews and checks it in the same transaction, so
a parent that was taken over can write nothing more. Write-ahead logging: readers never wait, and a kill at any
moment loses at most what was not committed.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.errors import LuthierError
from luthier.files import from_json, to_json
from luthier.tuning.state import Event

LEASE_S = 20.0
_WAIT_S = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, clock REAL NOT NULL, kind TEXT NOT NULL, payload TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (name TEXT PRIMARY KEY, owner TEXT, lease REAL NOT NULL);
INSERT OR IGNORE INTO jobs (name, owner, lease) VALUES ('study', NULL, 0);
"""


class StudyError(LuthierError):
    """A study that is missing, damaged, locked, unwritable, of another task, or in use by another process."""


class Ledger:
    """The writer's side of a study's database.

    Args:
        folder: of the study; made when missing.
        lease_s: how long the claim lives without a commit.

    Raises:
        StudyError: the folder cannot be written, the file is damaged, or another process is at work on the study.
    """

    def __init__(self, folder: Path, lease_s: float = LEASE_S) -> None:
        self.path = database(folder)
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.lease_s = lease_s
        self._pending: list[Event] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(f"the study folder {folder} cannot be made: {error.strerror or error}") from None
        with clear_errors(self.path):
            self._connection = sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.executescript(_SCHEMA)
        try:
            self._claim()
            self._last = self._last_id()
        except BaseException:
            self._connection.close()
            raise
        self._renewed = time.monotonic()

    def events(self) -> list[Event]:
        """All events, those not yet committed included."""
        return [*_read(self._connection, self.path), *self._pending]

    def append(self, kind: str, clock: float, payload: dict[str, Any]) -> Event:
        """Add an event; it is durable after the next `flush`."""
        self._last += 1
        event = Event(self._last, round(clock, 4), kind, payload)
        self._pending.append(event)
        return event

    def flush(self) -> None:
        """Commit the pending events in one transaction, and renew the claim.

        Raises:
            StudyError: another process has taken the study over, or the file cannot be written (disk full).
        """
        due = time.monotonic() - self._renewed > self.lease_s / 4
        if not self._pending and not due:
            return
        rows = [(event.id, event.clock, event.kind, to_json(event.payload)) for event in self._pending]
        with clear_errors(self.path), self._transaction():
            self._renew(time.time() + self.lease_s)
            self._connection.executemany("INSERT INTO events (id, clock, kind, payload) VALUES (?, ?, ?, ?)", rows)
        self._pending.clear()
        self._renewed = time.monotonic()

    def close(self) -> None:
        """Commit, give the claim back and close the file."""
        try:
            self.flush()
            with clear_errors(self.path):
                self._connection.execute(
                    "UPDATE jobs SET owner = NULL, lease = 0 WHERE name = 'study' AND owner = ?", (self.owner,)
                )
        finally:
            self._connection.close()

    def abandon(self) -> None:
        """Close the file and commit nothing more: for leaving after an error of the ledger itself."""
        self._connection.close()

    def _claim(self) -> None:
        with clear_errors(self.path):
            owner, lease = self._connection.execute("SELECT owner, lease FROM jobs WHERE name = 'study'").fetchone()
            if owner is not None and lease > time.time() and _alive(owner):
                raise StudyError(
                    f"another process ({owner}) is at work on the study {self.path.parent}: "
                    "wait for it, stop it, or choose another folder"
                )
            changed = self._connection.execute(
                "UPDATE jobs SET owner = ?, lease = ? WHERE name = 'study' AND owner IS ? AND lease = ?",
                (self.owner, time.time() + self.lease_s, owner, lease),
            ).rowcount
        if not changed:
            raise StudyError(f"another process has just begun to work on the study {self.path.parent}")

    def _renew(self, lease: float) -> None:
        changed = self._connection.execute(
            "UPDATE jobs SET lease = ? WHERE name = 'study' AND owner = ?", (lease, self.owner)
        ).rowcount
        if not changed:
            raise StudyError(
                f"another process has taken over the study {self.path.parent} while this one was not responding: "
                "this one stops, and nothing that it stored is lost"
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _last_id(self) -> int:
        with clear_errors(self.path):
            return int(self._connection.execute("SELECT COALESCE(MAX(id), 0) FROM events").fetchone()[0])


def database(folder: Path) -> Path:
    """The study's one file."""
    return folder / "study.db"


def read_events(folder: Path, after: int = 0) -> list[Event]:
    """The committed events of a study, without claiming it: also while another process is at work.

    Args:
        folder: of the study.
        after: only events with a higher id.

    Raises:
        StudyError: there is no study, or its file is damaged.
    """
    path = database(folder)
    if not path.is_file():
        raise StudyError(f"{folder} holds no study (no {path.name} in it): give the folder of a study")
    with clear_errors(path):
        for mode in ("mode=ro", "mode=ro&immutable=1"):  # the second needs no shared-memory file beside it
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=_WAIT_S)
            try:
                return _read(connection, path, after)
            except StudyError:
                if mode.endswith("immutable=1") or os.access(folder, os.W_OK):
                    raise
            finally:
                connection.close()
    raise StudyError(f"the study database {path} cannot be read")


def _read(connection: sqlite3.Connection, path: Path, after: int = 0) -> list[Event]:
    with clear_errors(path):
        rows = connection.execute(
            "SELECT id, clock, kind, payload FROM events WHERE id > ? ORDER BY id", (after,)
        ).fetchall()
    try:
        return [Event(id_, clock, kind, from_json(payload)) for id_, clock, kind, payload in rows]
    except ValueError as error:
        raise StudyError(f"the study database {path} is damaged: an event is not JSON ({error})") from None


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into one sentence that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise StudyError(_explain(path, str(error))) from error


def _explain(path: Path, message: str) -> str:
    text = message.lower()
    if "not a database" in text or "malformed" in text or "no such table" in text:
        return f"{path} is damaged or not the database of a study ({message}): restore it, or choose another folder"
    if "locked" in text:
        return f"the study database {path} is locked by another program (waited {_WAIT_S:.0f} s): close it, try again"
    if "readonly" in text or "read-only" in text or "unable to open" in text:
        return f"the study database {path} cannot be written ({message}): check the folder's permissions"
    if "full" in text or "disk i/o" in text:
        return f"the disk is full or failing at {path} ({message}): free some space; what was stored is intact"
    return f"the study database {path} cannot be used: {message}"


def _alive(owner: str) -> bool:
    """Whether the owner may still be at work: on another machine only its lease tells."""
    host, pid, _ = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
