"""A study in a SQLite file of its own.

Write-ahead logging with `synchronous=NORMAL`: readers never wait, and what was committed survives a kill -9 of the
process. The disk is told to store it at checkpoints only, so a power cut may take the last commits; the file is
whole all the same (https://sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from luthier.tuning.store import WAIT_S, Row, Store, StudyError

_SPECIAL = set("%?#{}")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, clock REAL NOT NULL, kind TEXT NOT NULL, payload TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (name TEXT PRIMARY KEY, owner TEXT, lease REAL NOT NULL);
INSERT OR IGNORE INTO jobs (name, owner, lease) VALUES ('study', NULL, 0);
"""


class SqliteStore(Store):
    """A study's file, open for writing.

    Args:
        path: the file; made when missing, its folder is there.
    """

    study = None

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path.parent)
        self.optuna_url = optuna_url(path)
        with clear_errors(path):
            self._connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.executescript(_SCHEMA)

    def read(self, after: int) -> list[Row]:
        """Committed events with a higher id, in order."""
        return _read(self._connection, self.path, after)

    def last_id(self) -> int:
        """The id of the last event; 0: there is none."""
        with clear_errors(self.path):
            return int(self._connection.execute("SELECT COALESCE(MAX(id), 0) FROM events").fetchone()[0])

    def holder(self) -> tuple[str | None, float]:
        """Who holds the claim, and for how many seconds more."""
        with clear_errors(self.path):
            owner, lease = self._connection.execute("SELECT owner, lease FROM jobs WHERE name = 'study'").fetchone()
        return owner, lease - time.time()

    def claim(self, owner: str, lease_s: float, before: str | None, dead: bool) -> bool:
        """Take the claim over from `before` if its lease has ended or it is dead; False: somebody was faster."""
        query = "UPDATE jobs SET owner = ?, lease = ? WHERE name = 'study' AND owner IS ? AND (lease <= ? OR ?)"
        now = time.time()
        with clear_errors(self.path):
            return self._connection.execute(query, (owner, now + lease_s, before, now, dead)).rowcount == 1

    def commit(self, rows: Sequence[Row], owner: str, lease_s: float) -> bool:
        """Renew the claim and add events, all or nothing; False: the owner has lost the claim, nothing was added."""
        add = "INSERT INTO events (id, clock, kind, payload) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
        renew = "UPDATE jobs SET lease = ? WHERE name = 'study' AND owner = ?"
        with clear_errors(self.path), self._transaction():
            if self._connection.execute(renew, (time.time() + lease_s, owner)).rowcount == 0:
                return False
            self._connection.executemany(add, rows)
        return True

    def release(self, owner: str) -> None:
        """Give the claim back."""
        with clear_errors(self.path):
            self._connection.execute(
                "UPDATE jobs SET owner = NULL, lease = 0 WHERE name = 'study' AND owner = ?", (owner,)
            )

    def close(self) -> None:
        """Leave the file; nothing more is written."""
        self._connection.close()

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


def optuna_url(path: Path) -> str:
    """The address of a study's file as Optuna takes it: SQLAlchemy decodes it, and Optuna fills in what is in braces.

    Raises:
        StudyError: the path has a character that this SQLAlchemy cannot be told of.
    """
    plain = str(path.absolute())
    if not _SPECIAL & set(plain):
        return f"sqlite:///{plain}"
    from sqlalchemy import URL, make_url  # a third of a second

    url = URL.create("sqlite", database=plain).render_as_string().replace("{", "{{").replace("}", "}}")
    if make_url(url.format()).database != plain:
        raise StudyError(f"a study's folder cannot have one of % ? # in its path, got {path.parent}: rename it")
    return url


def read_file(path: Path, after: int) -> list[Row]:
    """The committed events of a study's file, also while another process writes it, or where it is read-only.

    Raises:
        StudyError: there is no such file, or it is damaged.
    """
    if not path.is_file():
        raise StudyError(f"{path.parent} holds no study (no {path.name} in it): give the folder of a study")
    with clear_errors(path):
        for mode in ("mode=ro", "mode=ro&immutable=1"):  # the second needs no shared-memory file beside it
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=WAIT_S)
            try:
                return _read(connection, path, after)
            except StudyError:
                if mode.endswith("immutable=1") or os.access(path.parent, os.W_OK):
                    raise
            finally:
                connection.close()
    raise StudyError(f"the study database {path} cannot be read")


def _read(connection: sqlite3.Connection, path: Path, after: int) -> list[Row]:
    with clear_errors(path):
        return connection.execute(
            "SELECT id, clock, kind, payload FROM events WHERE id > ? ORDER BY id", (after,)
        ).fetchall()


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
        return f"the study database {path} is locked by another program (waited {WAIT_S:.0f} s): close it, try again"
    if "readonly" in text or "read-only" in text or "unable to open" in text:
        return f"the study database {path} cannot be written ({message}): check the folder's permissions"
    if "full" in text or "disk i/o" in text:
        return f"the disk is full or failing at {path} ({message}): free some space; what was stored is intact"
    return f"the study database {path} cannot be used: {message}"
