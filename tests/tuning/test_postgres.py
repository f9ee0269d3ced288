"""A study in a PostgreSQL database: the ledger's promises, tried on a real server."""

import os
import re
import signal
import socket
import sys
from pathlib import Path

import psycopg
import pytest
from tests.tuning.ledgers import kinds, written

from luthier.tuning import store_postgres
from luthier.tuning.ledger import Ledger, StudyError, read_events

OTHERS = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"


def query(url: str, text: str, *values: object) -> list[tuple]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(text, values)
        return cursor.fetchall() if cursor.description else []


def test_a_study_of_another_database_is_refused(tmp_path: Path, postgres: str) -> None:
    ledger = Ledger(tmp_path, storage=postgres)
    written(ledger, "a")
    ledger.close()
    with pytest.raises(StudyError, match="leave storage out"):
        Ledger(tmp_path, storage=re.sub("/test_[^?]*", "/postgres", postgres))


def test_a_password_is_used_and_told_nobody(tmp_path: Path, postgres: str) -> None:
    query(postgres, "DO $$ BEGIN CREATE ROLE guarded LOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
    query(postgres, "ALTER ROLE guarded PASSWORD 'right' ")
    query(postgres, "GRANT ALL ON SCHEMA public TO guarded")
    right = postgres.replace("postgres@", "guarded:right@")
    Ledger(tmp_path, storage=right).close()
    assert "right" not in (tmp_path / "storage.json").read_text()
    for wrong in (postgres.replace("postgres@", "guarded:wrong@"), None):
        with pytest.raises(StudyError, match="does not let this user in") as error:
            read_events(tmp_path, storage=wrong)
        assert "wrong" not in str(error.value)
    query(postgres, "REVOKE ALL ON SCHEMA public FROM guarded")


def test_addresses_that_lead_nowhere_are_said(tmp_path: Path, postgres: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for storage, said in (
        ("mysql://me:secret@host/db", "storage must be .* got 'mysql://me@host/db'"),
        ("studies.db", "storage must be"),
        (postgres.replace("/test_", "/absent_"), "does not exist: make it"),
        (postgres.replace("postgres@", "nobody_here@"), "does not let this user in"),
        (f"postgresql://me@127.0.0.1:{port}/db", "cannot be reached"),
        ("postgresql://me@127.0.0.1:port/db", "is no address"),
        ("postgresql:///db?host=/no/such/folder", "cannot be reached"),
    ):
        with pytest.raises(StudyError, match=said) as error:
            Ledger(tmp_path / "study", storage=storage)
        assert "secret" not in str(error.value)
    with pytest.raises(StudyError, match="holds no study"):
        read_events(tmp_path / "study", storage=postgres)


def test_a_host_that_never_answers_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_postgres, "WAIT_S", 2)  # the least that the driver takes
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(StudyError, match="does not answer within 2"):
        Ledger(tmp_path, storage=f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/db")


def test_a_locked_study_is_left(tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_postgres, "WAIT_S", 2)
    ledger = Ledger(tmp_path, storage=postgres)
    with psycopg.connect(postgres) as other:
        other.execute("SELECT * FROM luthier_jobs FOR UPDATE")
        with pytest.raises(StudyError, match="is locked or overloaded"):
            written(ledger, "a")
    ledger.close()
    assert kinds(tmp_path) == ["a"]


def test_a_frozen_server_is_left(tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path, storage=postgres)
    monkeypatch.setattr(store_postgres, "WAIT_S", 0.2)
    ((pid,),) = query(postgres, f"SELECT pid {OTHERS}")
    os.kill(pid, signal.SIGSTOP)
    written(ledger, "a")  # over another connection
    os.kill(pid, signal.SIGCONT)
    ledger.close()
    assert kinds(tmp_path) == ["a"]


def test_a_lost_connection_is_made_anew_and_a_server_that_is_gone_is_said(tmp_path: Path, postgres: str) -> None:
    name = re.search("test_[^?]*", postgres)[0]
    elsewhere = postgres.replace(name, "postgres")
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    ledger = Ledger(tmp_path, storage=postgres)
    written(ledger, "kept")
    query(elsewhere, end)
    written(ledger, "too")
    query(elsewhere, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    query(elsewhere, end)
    with pytest.raises(StudyError, match=r"is gone .*the same call goes on"):
        written(ledger, "lost")
    ledger.abandon()
    query(elsewhere, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert kinds(tmp_path) == ["kept", "too"]


def test_a_missing_driver_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StudyError, match=r"pip install 'luthier\[postgres\]'"):
        Ledger(tmp_path, storage="postgresql://me@host/db")
