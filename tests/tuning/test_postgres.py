"""A study in a PostgreSQL database: the ledger's promises, tried on a real server."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import psycopg
import pytest

from luthier.tuning import store_postgres
from luthier.tuning.ledger import Ledger, StudyError, database, read_events
from luthier.tuning.optuna_store import url
from luthier.tuning.study import Study

OTHERS = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"


def query(url: str, text: str, *values: object) -> list[tuple]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(text, values)
        return cursor.fetchall() if cursor.description else []


def written(ledger: Ledger, *kinds: str) -> None:
    for kind in kinds:
        ledger.append(kind, 0.25, {"value": float("nan"), "name": "\u0000 ü"})
    ledger.flush()


def kinds(folder: Path) -> list[str]:
    return [event.kind for event in read_events(folder)]


def test_events_are_kept_in_order_and_the_folder_knows_where_they_are(tmp_path: Path, postgres: str) -> None:
    ledger = Ledger(tmp_path, storage=postgres)
    ledger.append("a", 0, {})
    assert read_events(tmp_path) == []
    written(ledger, "b", "c")
    assert not database(tmp_path).exists()
    assert [(event.id, event.kind) for event in read_events(tmp_path, after=1)] == [(2, "b"), (3, "c")]
    assert read_events(tmp_path)[1].payload["name"] == "\u0000 ü"
    ledger.close()
    again = Ledger(tmp_path)
    written(again, "d")
    again.close()
    assert kinds(tmp_path) == ["a", "b", "c", "d"]


def test_several_studies_share_a_database_also_when_they_begin_at_once(tmp_path: Path, postgres: str) -> None:
    code = (
        "import sys; from pathlib import Path; from luthier.tuning.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]), storage=sys.argv[2])\n"
        "for number in range(100): ledger.append(sys.argv[1][-1], 0, {}); ledger.flush()\n"
        "ledger.close()"
    )
    folders = [tmp_path / name for name in "xyz"]
    running = [subprocess.Popen([sys.executable, "-c", code, folder, postgres]) for folder in folders]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert [kinds(folder) for folder in folders] == [[name] * 100 for name in "xyz"]


def test_a_second_parent_is_refused_and_takes_over_a_dead_one(tmp_path: Path, postgres: str) -> None:
    first = Ledger(tmp_path, storage=postgres)
    with pytest.raises(StudyError, match="at work on the study"):
        Ledger(tmp_path, storage=postgres)
    written(first, "a")
    first.abandon()
    query(postgres, "UPDATE luthier_jobs SET owner = regexp_replace(owner, ':[0-9]+:', ':4194305:')")
    second = Ledger(tmp_path, storage=postgres)
    written(second, "b")
    second.close()
    assert kinds(tmp_path) == ["a", "b"]


def test_a_lapsed_lease_is_taken_over_and_the_old_parent_writes_no_more(tmp_path: Path, postgres: str) -> None:
    old = Ledger(tmp_path, lease_s=0.01, storage=postgres)
    time.sleep(0.02)
    new = Ledger(tmp_path, storage=postgres)
    with pytest.raises(StudyError, match="taken over"):
        written(old, "late")
    old.abandon()
    written(new, "mine")
    new.close()
    assert kinds(tmp_path) == ["mine"]


def test_of_two_who_take_a_study_over_at_once_one_wins(tmp_path: Path, postgres: str) -> None:
    Ledger(tmp_path, storage=postgres).close()
    stores = [store_postgres.PostgresStore(postgres, tmp_path.name) for _ in range(4)]
    won: list[bool] = []
    threads = [
        threading.Thread(target=lambda store=store, name=str(i): won.append(store.claim(name, 60, None, False)))
        for i, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in stores:
        store.close()
    assert sorted(won) == [False, False, False, True]


def test_another_folder_of_the_same_name_is_refused(tmp_path: Path, postgres: str) -> None:
    ledger = Ledger(tmp_path / "mine" / "study", storage=postgres)
    written(ledger, "a")
    ledger.close()
    with pytest.raises(StudyError, match="its files are not in"):
        Ledger(tmp_path / "yours" / "study", storage=postgres)
    with pytest.raises(StudyError, match="leave storage out"):
        Ledger(tmp_path / "mine" / "study", storage=re.sub("/test_[^?]*", "/postgres", postgres))
    with pytest.raises(StudyError, match="leave storage out"):
        Ledger(tmp_path / "mine" / "study", storage="sqlite")
    Ledger(tmp_path / "file").close()
    with pytest.raises(StudyError, match=r"is in its file study\.db"):
        Ledger(tmp_path / "file", storage=postgres)


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


_SEARCH = """
import sys
from luthier import tune, uniform
def train(trial):
    for step in range(1, 4):
        trial.report(step * trial.params["slope"], step=step)
tune(train, space={"slope": uniform(0, 1)}, steps=3, trials=int(sys.argv[3]), workers=1, sampler="random",
     folder=sys.argv[1], storage=sys.argv[2])
"""


def test_two_searches_at_once_in_one_database_and_optuna_opens_both(tmp_path: Path, postgres: str) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    running = [subprocess.Popen([sys.executable, "-c", _SEARCH, folder, postgres, "5"]) for folder in folders]
    assert [process.wait() for process in running] == [0, 0]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for folder in folders:
        study = Study.open(folder)
        loaded = optuna.load_study(study_name=folder.name, storage=url(folder))
        assert study.best is not None
        assert loaded.best_value == pytest.approx(study.best.value)
        assert {trial.state.is_finished() for trial in loaded.trials} == {True}
        assert len(loaded.trials) == len(study.trials) == 5
        loaded._storage._backend.engine.dispose()
    assert subprocess.run([sys.executable, "-c", _SEARCH, folders[0], postgres, "7"], check=False).returncode == 0
    assert len(Study.open(folders[0]).trials) == 7
