"""A study in a PostgreSQL database, which several studies share under their names.

A commit is one statement, so one round trip and one transaction: it renews the claim, and adds the events only where
that succeeded. The server decides by its own clock, so machines whose clocks differ agree about leases. Nothing waits
without end: connecting, locks and statements have limits in the server, and a server that falls silent is left.

With `synchronous_commit=off` what was committed survives a kill -9 of the process that wrote it, as in SQLite. Should
the server itself crash, it may lose the last commits, at most three times its wal_writer_delay (0.6 s); what is left
is whole, and a study goes on from there (https://www.postgresql.org/docs/current/wal-async-commit.html).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.tuning.store import SETUP_S, WAIT_S, Database, Row, Store, StudyError

if TYPE_CHECKING:
    import psycopg

SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
_SETUP_LOCK = (
    0x6C757468  # any number of ours: who makes the ledger's tables holds this advisory lock, Optuna's the next
)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS luthier_jobs (
    name TEXT PRIMARY KEY, owner TEXT, lease DOUBLE PRECISION NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS luthier_events (
    study TEXT NOT NULL REFERENCES luthier_jobs ON DELETE CASCADE, id BIGINT NOT NULL,
    clock DOUBLE PRECISION NOT NULL, kind TEXT NOT NULL, payload TEXT NOT NULL, PRIMARY KEY (study, id));
"""
_SESSION = "SET client_encoding = 'UTF8'; SET synchronous_commit = off; SET statement_timeout = {}"
_NOW = "extract(epoch FROM clock_timestamp())::float8"
_CLAIM = f"""
UPDATE luthier_jobs SET owner = %(owner)s, lease = {_NOW} + %(lease_s)s
WHERE name = %(study)s AND owner IS NOT DISTINCT FROM %(before)s::text AND (lease <= {_NOW} OR %(dead)s)
"""
_COMMIT = f"""
WITH renewed AS (
    UPDATE luthier_jobs SET lease = {_NOW} + %s WHERE name = %s AND owner = %s RETURNING name
), added AS (
    INSERT INTO luthier_events (study, id, clock, kind, payload)
    SELECT renewed.name, new.* FROM renewed, unnest(%b::bigint[], %b::float8[], %b::text[], %b::text[]) AS new
    ON CONFLICT (study, id) DO NOTHING
)
SELECT count(*) FROM renewed
"""


class PostgresDatabase(Database):
    """A database of several studies.

    Args:
        url: `postgresql://user:password@host:port/database`; what it leaves out comes from PostgreSQL's own
            environment variables and password file.
    """

    patience: ClassVar = {"connect_timeout": 5, "tcp_user_timeout": 10_000}

    def __init__(self, url: str) -> None:
        self.url, self.address = url, public(url)

    @property
    def optuna_url(self) -> str:
        """The address as Optuna takes it, with the driver's name."""
        return re.sub("^[a-z+]+:", "postgresql+psycopg:", self.url)

    def open(self, study: str) -> PostgresStore:
        """A study, for writing; made when missing."""
        return PostgresStore(self, study)

    def read(self, study: str, after: int) -> list[Row]:
        """The committed events of a study, also while another process writes it.

        Raises:
            StudyError: the database cannot be read, or has no such study.
        """
        from psycopg.errors import UndefinedTable

        with contextlib.closing(connect(self.url)) as connection, limits(connection, f"{study!r} in {self.address}"):
            try:
                rows = _read(connection, study, after)
                known = rows or connection.execute("SELECT 1 FROM luthier_jobs WHERE name = %s", [study]).fetchall()
            except UndefinedTable:
                known = []
        if not known:
            raise StudyError(f"{self.address} holds no study {study!r}: its name is that of its folder")
        return rows

    @contextmanager
    def setting_up(self) -> Iterator[None]:
        """One process at a time: for making Optuna's tables. Ledgers do not wait for it."""
        with contextlib.closing(connect(self.url)) as connection:
            with limits(connection, self.address, SETUP_S):
                connection.execute(f"SET statement_timeout = {int(1000 * SETUP_S)}")
                connection.execute("SELECT pg_advisory_lock(%s)", [_SETUP_LOCK + 1])
            yield


class PostgresStore(Store):
    """A study in a database, open for writing.

    Args:
        database: that holds it.
        study: its name there.
    """

    database: PostgresDatabase

    def __init__(self, database: PostgresDatabase, study: str) -> None:
        self.database, self.study, self.where = database, study, f"{study!r} in {database.address}"
        self._connection = connect(database.url)
        try:
            with limits(self._connection, self.where), self._connection.transaction():
                self._connection.execute("SELECT pg_advisory_xact_lock(%s)", [_SETUP_LOCK])
                self._connection.execute(_SCHEMA)
            self._ask("INSERT INTO luthier_jobs (name) VALUES (%s) ON CONFLICT DO NOTHING", [study])
        except BaseException:
            self.close()
            raise

    def read(self, after: int) -> list[Row]:
        """Committed events with a higher id, in order."""
        with limits(self._connection, self.where):
            return _read(self._connection, self.study, after)

    def last_id(self) -> int:
        """The id of the last event; 0: there is none."""
        query = "SELECT coalesce(max(id), 0) FROM luthier_events WHERE study = %s"
        return int(self._ask(query, [self.study]).fetchall()[0][0])

    def holder(self) -> tuple[str | None, float]:
        """Who holds the claim, and for how many seconds more."""
        query = f"SELECT owner, lease - {_NOW} FROM luthier_jobs WHERE name = %s"
        owner, left_s = self._ask(query, [self.study]).fetchall()[0]
        return owner, left_s

    def claim(self, owner: str, lease_s: float, before: str | None, dead: bool) -> bool:
        """Take the claim over from `before` if its lease has ended or it is dead; False: somebody was faster."""
        values = {"owner": owner, "lease_s": lease_s, "study": self.study, "before": before, "dead": dead}
        return self._ask(_CLAIM, values).rowcount == 1

    def commit(self, rows: Sequence[Row], owner: str, lease_s: float) -> bool:
        """Renew the claim and add events, all or nothing; False: the owner has lost the claim, nothing was added."""
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
        values = [lease_s, self.study, owner, *columns]
        try:
            renewed = self._ask(_COMMIT, values)
        except StudyError:
            if not self._connection.closed:
                raise
            self._connection = connect(self.database.url)  # the server was restarted, or the line cut: once more
            renewed = self._ask(_COMMIT, values)
        return bool(renewed.fetchall()[0][0])

    def release(self, owner: str) -> None:
        """Give the claim back."""
        self._ask("UPDATE luthier_jobs SET owner = NULL, lease = 0 WHERE name = %s AND owner = %s", [self.study, owner])

    def close(self) -> None:
        """Leave the database; nothing more is written."""
        self._connection.close()

    def _ask(self, query: Any, values: Any) -> psycopg.Cursor[tuple[Any, ...]]:
        with limits(self._connection, self.where):
            return self._connection.execute(query, values)


def connect(url: str) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection whose every statement is a transaction of its own, with limits of time.

    Raises:
        StudyError: the driver is missing, or the database cannot be reached or entered; says which.
    """
    try:
        import psycopg
    except ImportError:
        raise StudyError("a study in PostgreSQL needs its driver: pip install 'luthier[postgres]'") from None
    options: dict[str, Any] = {"connect_timeout": int(WAIT_S), "tcp_user_timeout": int(2000 * WAIT_S)}
    address = re.sub("^[a-z+]+:", "postgresql:", url)
    with clear_errors(public(url)):
        given = psycopg.conninfo.conninfo_to_dict(address)
        wanted = {name: value for name, value in options.items() if name not in given}
        connection = psycopg.connect(address, autocommit=True, prepare_threshold=None, **wanted)
    try:
        with limits(connection, public(url)):
            connection.execute(_SESSION.format(int(1000 * WAIT_S)))
    except BaseException:
        connection.close()
        raise
    return connection


def public(url: str) -> str:
    """The address without its password.

    >>> public("postgresql://me:secret@host/db?password=secret&port=1")
    'postgresql://me@host/db?port=1'
    """
    without = re.sub("^([^:]*://[^:/@]*):.*@", r"\1@", url)
    return re.sub("(?<=[?&])(ssl)?password=[^&]*&?", "", without).rstrip("?&")


def _read(connection: psycopg.Connection[tuple[Any, ...]], study: str, after: int) -> list[Row]:
    query = "SELECT id, clock, kind, payload FROM luthier_events WHERE study = %s AND id > %s ORDER BY id"
    return connection.execute(query, [study, after]).fetchall()


@contextmanager
def limits(connection: psycopg.Connection[tuple[Any, ...]], where: str, wait_s: float = 0) -> Iterator[None]:
    """Clear errors, and an end to waiting for a server that is frozen or out of reach and cannot limit itself."""
    timer = threading.Timer(1.5 * (wait_s or WAIT_S), _cut, [connection])
    timer.daemon = True
    timer.start()
    try:
        with clear_errors(where):
            yield
    finally:
        timer.cancel()


def _cut(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    with contextlib.suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


@contextmanager
def clear_errors(where: str) -> Iterator[None]:
    """Turn the driver's errors into one sentence that says what to do."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        raise StudyError(_explain(where, error)) from None


_BY_STATE = {
    "57014": "is locked or overloaded (no answer within {wait:.0f} s): find out by whom, try again",
    "53100": "has a full disk: free some space; what was stored is intact",
    "53300": "has no connection left: close some, or raise max_connections",
    "42501": "does not let this user in ({message}): grant it CONNECT and CREATE, or give another user",
    "25006": "is read-only: give the primary server's address",
    "42703": "has tables of this name that are not a study's ({message}): give another database",
}
_BY_TEXT = (
    (
        r"invalid uri|invalid connection|invalid port|missing .* in uri|invalid integer",
        "is no address ({message}): expected postgresql://user@host:port/database",
    ),
    (
        r"password|authentication|pg_hba|role .* does not exist",
        "does not let this user in ({message}): correct user and password in the address, or set PGPASSWORD",
    ),
    (r"database .* does not exist", "does not exist: make it (createdb), or correct its name in the address"),
    (r"timeout", "does not answer within {wait:.0f} s: correct host and port, or see whether the server runs"),
    (
        r"refused|resolve|translate|no such file|unreachable|no route",
        "cannot be reached ({message}): correct host and port, or see whether the server runs",
    ),
    (
        r"terminat|closed|lost|broken|reset|eof|accepting|starting up|shutting down",
        "is gone ({message}): what was stored is intact, and the same call goes on when the server is back",
    ),
)


def _explain(where: str, error: psycopg.Error) -> str:
    message = " ".join(str(error).split("\n")[0].split())
    if error.sqlstate in _BY_STATE:
        return f"the study database {where} " + _BY_STATE[error.sqlstate].format(wait=WAIT_S, message=message)
    for pattern, said in _BY_TEXT:
        if re.search(pattern, message.lower()):
            return f"the study database {where} " + said.format(wait=WAIT_S, message=message)
    return f"the study database {where} cannot be used: {message}"
