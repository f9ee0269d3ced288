"""Studies in a SQLite file: one alone in its own, or several that share one under their names.

Write-ahead logging with `synchronous=NORMAL`: readers never wait, and what was committed survives a kill -9 of the
process. The disk is told to store it at checkpoints only, so a power cut may take the last commits; the file is
whole all the same (https://sqlite.org/pragma.html#pragma_synchronous). Writers of a shared file wait for each other's
commits, a millisecond each.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from filelock import FileLock, Timeout

from luthier.tuning.store import SETUP_S, WAIT_S, Database, Row, Store, StudyError

SCHEME = "sqlite"
_SPECIAL = set("%?#{}")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS luthier_jobs (name TEXT PRIMARY KEY, owner TEXT, lease REAL NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS luthier_events (
    study TEXT NOT NULL, id INTEGER NOT NULL, clock REAL NOT NULL, kind TEXT NOT NULL, payload TEXT NOT NULL,
    PRIMARY KEY (study, id));
"""


class SqliteDatabase(Database):
    """A file of one or of several studies.

    Args:
        path: the file; made when missing, its folder is there.
        shared: whether several studies are there, under their names; else one, under the name "".
    """

    patience: ClassVar = {"timeout": 30}

    def __init__(self, path: Path, shared: bool = True) -> None:
        self.path, self.shared = Path(os.path.abspath(path)), shared  # noqa: PTH100
        self.address = f"{SCHEME}:///{self.path}"

    @property
    def optuna_url(self) -> str:
        """The address as Optuna takes it: SQLAlchemy decodes it, and Optuna fills in what is in braces.

        Raises:
            StudyError: the path has a character that this SQLAlchemy cannot be told of.
        """
        plain = str(self.path)
        if not _SPECIAL & set(plain):
            return self.address
        from sqlalchemy import URL, make_url  # a third of a second

        url = URL.create(SCHEME, database=plain).render_as_string().replace("{", "{{").replace("}", "}}")
        if make_url(url.format()).database != plain:
            raise StudyError(
                f"a study's path cannot have one of % ? # in it, got {self.path.parent}: rename that folder"
            )
        return url

    def check(self) -> None:
        """Refuse a path at which no file can be.

        Raises:
            StudyError: it is a folder, or in none.
        """
        if self.path.is_dir() or not self.path.parent.is_dir():
            wrong = "is a folder" if self.path.is_dir() else f"cannot be made: there is no folder {self.path.parent}"
            raise StudyError(f"the file of studies {self.path} {wrong}: give another file as storage")

    def open(self, study: str) -> SqliteStore:
        """A study, for writing; made when missing."""
        return SqliteStore(self, study)

    def read(self, study: str, after: int) -> list[Row]:
        """The committed events of a study, also while another process writes it, or where the file is read-only.

        Raises:
            StudyError: there is no such file or study, or it is damaged.
        """
        path = self.path
        if not path.is_file():
            raise StudyError(f"{path.parent} holds no study (no {path.name} in it): give the folder of a study")
        with clear_errors(path):
            for mode in ("mode=ro", "mode=ro&immutable=1"):  # the second needs no shared-memory file beside it
                connection = sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True, timeout=WAIT_S)
                try:
                    return _read(connection, path, study, after)
                except StudyError:
                    if mode.endswith("immutable=1") or os.access(path.parent, os.W_OK):
                        raise
                finally:
                    connection.close()
        raise StudyError(f"the study database {path} cannot be read")

    @contextmanager
    def setting_up(self) -> Iterator[None]:
        """One process at a time, by a lock file beside it: for making tables."""
        if not self.shared:  # it has one parent
            yield
            return
        lock = FileLock(f"{self.path}.lock")
        try:
            lock.acquire(SETUP_S)
        except Timeout:
            raise StudyError(
                f"{self.path} is being set up by another process (waited {SETUP_S:.0f} s): stop that one, try again"
            ) from None
        except OSError as error:
            raise StudyError(_explain(self.path, f"unable to open: {error.strerror or error}")) from None
        try:
            yield
        finally:
            lock.release()


class SqliteStore(Store):
    """A study in a file, open for writing.

    Args:
        database: the file.
        study: its name there.

    Raises:
        StudyError: the file cannot be written, or is another study's own.
    """

    database: SqliteDatabase

    def __init__(self, database: SqliteDatabase, study: str) -> None:
        self.database, self.study, self.path = database, study, database.path
        self.where = f"{study!r} in {self.path}" if database.shared else str(self.path.parent)
        with clear_errors(self.path):
            self._connection = sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None)
        try:
            with database.setting_up(), clear_errors(self.path):
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute("PRAGMA synchronous=NORMAL")
                self._connection.executescript(_SCHEMA)
                self._refuse_others()
                known = "INSERT INTO luthier_jobs (name) VALUES (?) ON CONFLICT DO NOTHING"
                self._connection.execute(known, (self.study,))
        except BaseException:
            self.close()
            raise

    def _refuse_others(self) -> None:
        """A study that is alone shares nothing: in Optuna's tables it has the name of what is tuned."""
        query = "SELECT 1 FROM luthier_jobs WHERE (name <> '') <> ?"
        if self._connection.execute(query, (self.database.shared,)).fetchone() is None:
            return
        if self.database.shared:
            raise StudyError(f"{self.path} is the file of the study in that folder alone: give another one as storage")
        raise StudyError(f"{self.path} holds the studies of other folders: choose another folder")

    def read(self, after: int) -> list[Row]:
        """Committed events with a higher id, in order."""
        return _read(self._connection, self.path, self.study, after)

    def last_id(self) -> int:
        """The id of the last event; 0: there is none."""
        query = "SELECT COALESCE(MAX(id), 0) FROM luthier_events WHERE study = ?"
        with clear_errors(self.path):
            return int(self._connection.execute(query, (self.study,)).fetchone()[0])

    def holder(self) -> tuple[str | None, float]:
        """Who holds the claim, and for how many seconds more."""
        query = "SELECT owner, lease FROM luthier_jobs WHERE name = ?"
        with clear_errors(self.path):
            owner, lease = self._connection.execute(query, (self.study,)).fetchone()
        return owner, lease - time.time()

    def claim(self, owner: str, lease_s: float, before: str | None, dead: bool) -> bool:
        """Take the claim over from `before` if its lease has ended or it is dead; False: somebody was faster."""
        query = "UPDATE luthier_jobs SET owner = ?, lease = ? WHERE name = ? AND owner IS ? AND (lease <= ? OR ?)"
        now = time.time()
        with clear_errors(self.path):
            values = (owner, now + lease_s, self.study, before, now, dead)
            return self._connection.execute(query, values).rowcount == 1

    def commit(self, rows: Sequence[Row], owner: str, lease_s: float) -> bool:
        """Renew the claim and add events, all or nothing; False: the owner has lost the claim, nothing was added."""
        add = "INSERT INTO luthier_events VALUES (?, ?, ?, ?, ?) ON CONFLICT (study, id) DO NOTHING"
        renew = "UPDATE luthier_jobs SET lease = ? WHERE name = ? AND owner = ?"
        with clear_errors(self.path), self._transaction():
            if self._connection.execute(renew, (time.time() + lease_s, self.study, owner)).rowcount == 0:
                return False
            self._connection.executemany(add, [(self.study, *row) for row in rows])
        return True

    def release(self, owner: str) -> None:
        """Give the claim back."""
        with clear_errors(self.path):
            query = "UPDATE luthier_jobs SET owner = NULL, lease = 0 WHERE name = ? AND owner = ?"
            self._connection.execute(query, (self.study, owner))

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


def path_of(address: str) -> Path:
    """The file of an address such as `sqlite:///studies.db` (from the working directory) or `sqlite:////tmp/studies.db`.

    Raises:
        StudyError: it names no file.
    """
    named = address.removeprefix(f"{SCHEME}:///")
    path = os.path.abspath(os.path.expanduser(named))  # noqa: PTH100, PTH111 - pathlib's fails for an unknown user
    if named in ("", address, ":memory:") or set("%?#") & set(path):
        raise StudyError(
            "storage must name a file, no folder on its path with one of % ? #, such as sqlite:///studies.db or "
            f"sqlite:////tmp/studies.db, got {address!r}" + (f" in {Path.cwd()}" if named != path else "")
        )
    return Path(path)


def _read(connection: sqlite3.Connection, path: Path, study: str, after: int) -> list[Row]:
    query = "SELECT id, clock, kind, payload FROM luthier_events WHERE study = ? AND id > ? ORDER BY id"
    known = "SELECT 1 FROM luthier_jobs WHERE name = ?"
    with clear_errors(path):
        rows = connection.execute(query, (study, after)).fetchall()
        if not rows and connection.execute(known, (study,)).fetchone() is None:
            held = f"no study {study!r}: its name is that of its folder" if study else "the studies of other folders"
            raise StudyError(f"{path} holds {held}")
    return rows


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
