"""Studies that share a database, a SQLite file or a PostgreSQL server's: the ledger's promises hold in both."""

import contextlib
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import psycopg
import pytest
from tests.tuning.ledgers import kinds, written

from luthier.tuning import store_sqlite
from luthier.tuning.ledger import Ledger, StudyError, read_events
from luthier.tuning.locating import locate, own_file
from luthier.tuning.optuna_store import url
from luthier.tuning.store_sqlite import SqliteDatabase
from luthier.tuning.study import Study

DEAD = 4194305  # above the highest process id of Linux


@pytest.fixture(params=["sqlite", "postgres"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of a fresh database, as a user gives it to `storage`."""
    if request.param == "postgres":
        return request.getfixturevalue("postgres")
    return f"sqlite:///{tmp_path / 'all.db'}"


def jobs(address: str, change: str) -> None:
    """Change the claims in a database."""
    if address.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(address.removeprefix("sqlite:///"))) as file, file:
            file.execute(f"UPDATE luthier_jobs SET {change}")
    else:
        with psycopg.connect(address, autocommit=True) as server:
            server.execute(f"UPDATE luthier_jobs SET {change}")


def test_events_are_kept_in_order_and_the_folder_knows_where_they_are(tmp_path: Path, shared: str) -> None:
    ledger = Ledger(tmp_path, storage=shared)
    ledger.append("a", 0, {})
    assert read_events(tmp_path) == []
    written(ledger, "b", "c")
    assert not own_file(tmp_path).exists()
    assert [(event.id, event.kind) for event in read_events(tmp_path, after=1)] == [(2, "b"), (3, "c")]
    assert read_events(tmp_path)[1].payload["name"] == "\u0000 ü"
    ledger.close()
    again = Ledger(tmp_path)
    written(again, "d")
    again.close()
    assert kinds(tmp_path) == ["a", "b", "c", "d"]


def test_several_studies_share_a_database_also_when_they_begin_at_once(tmp_path: Path, shared: str) -> None:
    code = (
        "import sys; from pathlib import Path; from luthier.tuning.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]), storage=sys.argv[2])\n"
        "for number in range(100): ledger.append(sys.argv[1][-1], 0, {}); ledger.flush()\n"
        "ledger.close()"
    )
    folders = [tmp_path / name for name in "xyz"]
    running = [subprocess.Popen([sys.executable, "-c", code, folder, shared]) for folder in folders]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert [kinds(folder) for folder in folders] == [[name] * 100 for name in "xyz"]


def test_a_second_parent_is_refused_and_takes_over_a_dead_one(tmp_path: Path, shared: str) -> None:
    first = Ledger(tmp_path, storage=shared)
    with pytest.raises(StudyError, match="at work on the study"):
        Ledger(tmp_path, storage=shared)
    written(first, "a")
    first.abandon()
    machine, _, rest = first.owner.rsplit(":", 2)
    jobs(shared, f"owner = '{machine}:{DEAD}:{rest}'")
    second = Ledger(tmp_path, storage=shared)
    written(second, "b")
    second.close()
    assert kinds(tmp_path) == ["a", "b"]


def test_a_lapsed_lease_is_taken_over_and_the_old_parent_writes_no_more(tmp_path: Path, shared: str) -> None:
    beside = Ledger(tmp_path / "beside", storage=shared)
    old = Ledger(tmp_path, lease_s=0.01, storage=shared)
    time.sleep(0.02)
    new = Ledger(tmp_path, storage=shared)
    with pytest.raises(StudyError, match="taken over"):
        written(old, "late")
    old.abandon()
    written(beside, "theirs")
    written(new, "mine")
    new.close()
    beside.close()
    assert (kinds(tmp_path), kinds(tmp_path / "beside")) == (["mine"], ["theirs"])


def test_of_two_who_take_a_study_over_at_once_one_wins(tmp_path: Path, shared: str) -> None:
    Ledger(tmp_path, storage=shared).close()
    won: list[bool] = []
    ready = threading.Barrier(4)

    def take(name: str) -> None:
        with contextlib.closing(locate(tmp_path).open()) as store:
            ready.wait()
            won.append(store.claim(name, 60, None, False))

    threads = [threading.Thread(target=take, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False, False, False, True]
    with contextlib.closing(locate(tmp_path).open()) as store:
        holder, left_s = store.holder()
        assert left_s > 50
        assert not store.claim("late", 60, holder, dead=False)
        assert store.claim("late", 60, holder, dead=True)


def test_another_folder_of_the_same_name_is_refused(tmp_path: Path, shared: str) -> None:
    ledger = Ledger(tmp_path / "mine" / "study", storage=shared)
    written(ledger, "a")
    ledger.close()
    with pytest.raises(StudyError, match="its files are not in"):
        Ledger(tmp_path / "yours" / "study", storage=shared)
    with pytest.raises(StudyError, match="leave storage out"):
        Ledger(tmp_path / "mine" / "study", storage=f"sqlite:///{tmp_path / 'another.db'}")
    with pytest.raises(StudyError, match="leave storage out"):
        Ledger(tmp_path / "mine" / "study", storage="sqlite")
    Ledger(tmp_path / "file").close()
    with pytest.raises(StudyError, match=r"is in its file study\.db"):
        Ledger(tmp_path / "file", storage=shared)


_SEARCH = """
import sys
from luthier import tune, uniform
def train(trial):
    for step in range(1, 4):
        trial.report(step * trial.params["slope"], step=step)
tune(train, space={"slope": uniform(0, 1)}, steps=3, trials=int(sys.argv[3]), workers=1, sampler="random",
     folder=sys.argv[1], storage=sys.argv[2])
"""


def test_two_searches_at_once_in_one_database_and_optuna_opens_both(tmp_path: Path, shared: str) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    running = [subprocess.Popen([sys.executable, "-c", _SEARCH, folder, shared, "5"]) for folder in folders]
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
    assert subprocess.run([sys.executable, "-c", _SEARCH, folders[0], shared, "7"], check=False).returncode == 0
    assert len(Study.open(folders[0]).trials) == 7


def test_a_file_that_moved_is_found_by_its_new_address(tmp_path: Path) -> None:
    folder, old, new = tmp_path / "study", tmp_path / "old.db", tmp_path / "new.db"
    ledger = Ledger(folder, storage=f"sqlite:///{old}")
    written(ledger, "a")
    ledger.close()
    old.rename(new)
    for read in (read_events, Ledger):
        with pytest.raises(StudyError, match=r"old\.db, which is gone: restore that file, or give its new place"):
            read(folder)
    assert not old.exists()
    ledger = Ledger(folder, storage=f"sqlite:///{new}")
    written(ledger, "b")
    ledger.close()
    assert kinds(folder) == ["a", "b"]


def test_a_file_is_found_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Ledger(Path("study"), storage="sqlite:///all.db").close()
    monkeypatch.chdir("/")
    assert read_events(tmp_path / "study") == []
    assert url(tmp_path / "study") == f"sqlite:///{tmp_path / 'all.db'}"


def test_a_file_is_one_study_s_own_or_shared(tmp_path: Path) -> None:
    own, shared = tmp_path / "own", tmp_path / "shared"
    Ledger(own, storage=f"sqlite:///{own_file(own)}").close()  # its own, by another word
    assert not (own / "storage.json").exists()
    Ledger(own).close()
    with pytest.raises(StudyError, match=r"own/study\.db is the file of the study in that folder alone"):
        Ledger(tmp_path / "two", storage=f"sqlite:///{own_file(own)}")
    shared.mkdir()
    Ledger(tmp_path / "two", storage=f"sqlite:///{own_file(shared)}").close()
    with pytest.raises(StudyError, match=r"shared/study\.db holds the studies of other folders"):
        Ledger(shared)
    with pytest.raises(StudyError, match=r"shared/study\.db holds the studies of other folders"):
        read_events(shared)
    with pytest.raises(StudyError, match="holds no study 'three'"):
        read_events(tmp_path / "three", storage=f"sqlite:///{own_file(shared)}")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("sqlite://", "must name a file"),
        ("sqlite:///", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        ("sqlite://all.db", "must name a file"),
        ("sqlite:///{}/all.db?timeout=3", r"must name a file, no folder on its path with one of % \? #"),
        ("sqlite:///~nobody-here/all.db", "cannot be made: there is no folder .*~nobody-here"),
        ("sqlite:///{}", "is a folder: give another file"),
        ("sqlite:///{}/missing/all.db", "cannot be made: there is no folder .*missing"),
        ("all.db", "storage must be .*sqlite:///studies.db"),
    ],
)
def test_an_address_of_no_file_is_said(tmp_path: Path, address: str, said: str) -> None:
    with pytest.raises(StudyError, match=said):
        Ledger(tmp_path / "study", storage=address.format(tmp_path))
    assert not (tmp_path / "study").exists()


def test_an_address_that_could_not_be_found_again_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "50%").mkdir()
    monkeypatch.chdir(tmp_path / "50%")
    with pytest.raises(StudyError, match=r"one of % \? #.* got 'sqlite:///all.db' in .*50%"):
        Ledger(tmp_path / "study", storage="sqlite:///all.db")
    with pytest.raises(StudyError, match=r"storage must be 'sqlite' or an address .* got 'all.db'"):
        Ledger(tmp_path / "study", storage=Path("all.db"))  # type: ignore[arg-type]
    assert not (tmp_path / "study").exists()


def test_a_file_that_is_being_set_up_for_long_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_sqlite, "SETUP_S", 0.1)
    database = SqliteDatabase(tmp_path / "all.db")
    with database.setting_up(), pytest.raises(StudyError, match=r"all\.db is being set up by another process"):
        Ledger(tmp_path / "study", storage=database.address)
    Ledger(tmp_path / "study", storage=database.address).close()


def test_somebody_s_file_of_optuna_studies_can_be_shared(tmp_path: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    address = f"sqlite:///{tmp_path / 'optuna.db'}"
    theirs = optuna.create_study(storage=address, study_name="theirs")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    command = [sys.executable, "-c", _SEARCH, tmp_path / "ours", address, "3"]
    assert subprocess.run(command, check=False).returncode == 0
    assert sorted(optuna.get_all_study_names(address)) == ["ours", "theirs"]
    assert len(optuna.load_study(study_name="theirs", storage=address).trials) == 2
    assert len(optuna.load_study(study_name="ours", storage=address).trials) == 3
