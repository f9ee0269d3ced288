import os
import random
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from luthier.tuning import store_sqlite
from luthier.tuning.ledger import Ledger, StudyError, read_events
from luthier.tuning.locating import own_file


def test_events_are_kept_in_order_and_read_while_the_writer_is_at_work(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for number in range(5):
        ledger.append("proposed", number / 2, {"number": number, "value": float("nan")})
    assert read_events(tmp_path) == []
    assert len(ledger.events()) == 5
    ledger.flush()
    read = read_events(tmp_path)
    assert [(event.id, event.clock, event.payload["number"]) for event in read] == [
        (number + 1, number / 2, number) for number in range(5)
    ]
    assert [event.id for event in read_events(tmp_path, after=3)] == [4, 5]
    ledger.close()


def test_a_second_process_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    code = f"from pathlib import Path; from luthier.tuning.ledger import Ledger; Ledger(Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "is at work on the study" in done.stderr
    ledger.close()
    Ledger(tmp_path).close()


def test_after_an_interrupt_what_was_not_committed_is_dropped_and_the_claim_given_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append("whole", 0, {})
    ledger.flush()
    ledger.append("half", 0, {})
    ledger.close(commit=False)
    ledger = Ledger(tmp_path)
    assert [event.kind for event in ledger.events()] == ["whole"]
    ledger.close()


def test_a_dead_process_on_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    code = (
        f"import os; from pathlib import Path; from luthier.tuning.ledger import Ledger; "
        f"l = Ledger(Path({str(tmp_path)!r}), lease_s=1e6); l.append('a', 0, {{}}); l.flush(); "
        "l.append('b', 0, {}); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    ledger = Ledger(tmp_path)
    assert [event.kind for event in ledger.events()] == ["a"]
    ledger.close()


def test_a_stale_lease_is_taken_over_and_the_old_owner_can_write_no_more(tmp_path: Path) -> None:
    old = Ledger(tmp_path, lease_s=0.01)
    time.sleep(0.02)
    new = Ledger(tmp_path)
    old.append("late", 0, {})
    with pytest.raises(StudyError, match="taken over"):
        old.flush()
    new.append("mine", 0, {})
    new.close()
    assert [event.kind for event in read_events(tmp_path)] == ["mine"]


def test_a_lease_is_renewed_without_events(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, lease_s=0.2)
    time.sleep(0.1)
    ledger.flush()
    connection = sqlite3.connect(own_file(tmp_path))
    assert connection.execute("SELECT lease FROM luthier_jobs").fetchone()[0] > time.time() + 0.1
    connection.close()
    ledger.close()


def test_no_study_is_said(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="holds no study"):
        read_events(tmp_path)


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    own_file(tmp_path).write_bytes(b"no database at all" * 100)
    with pytest.raises(StudyError, match="is damaged"):
        Ledger(tmp_path)
    with pytest.raises(StudyError, match="is damaged"):
        read_events(tmp_path)


def test_a_locked_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ledger(tmp_path).close()
    monkeypatch.setattr(store_sqlite, "WAIT_S", 0.05)
    other = sqlite3.connect(own_file(tmp_path), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StudyError, match="locked by another program"):
        Ledger(tmp_path)
    other.execute("ROLLBACK")
    other.close()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot be made"):
        Ledger(tmp_path / "file" / "study")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("attempt to write a readonly database", "cannot be written"),
        ("unable to open database file", "cannot be written"),
        ("database or disk is full", "disk is full"),
        ("disk I/O error", "disk is full or failing"),
        ("something else", "cannot be used: something else"),
    ],
)
def test_errors_of_the_disk_are_said_once_and_clearly(tmp_path: Path, message: str, said: str) -> None:
    with pytest.raises(StudyError, match=said), store_sqlite.clear_errors(tmp_path):
        raise sqlite3.OperationalError(message)


@pytest.mark.skipif(sys.platform != "linux", reason="the size limit of files is a POSIX one")
def test_a_full_disk_loses_nothing_that_was_stored(tmp_path: Path) -> None:
    """A limit on the file's size stands in for the full disk: the write fails in the middle of a transaction."""
    code = f"""
import resource, signal
from pathlib import Path
from luthier.tuning.ledger import Ledger, StudyError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger = Ledger(Path({str(tmp_path)!r}))
ledger.append("kept", 0, {{}})
ledger.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    for _ in range(100):
        ledger.append("much", 0, {{"text": "x" * 10_000}})
        ledger.flush()
except StudyError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "the disk is full or failing" in done.stdout
    kinds = [event.kind for event in read_events(tmp_path)]
    assert kinds[0] == "kept"
    assert set(kinds[1:]) == {"much"}


def test_the_owner_on_another_machine_is_judged_by_its_lease_only(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.close()
    connection = sqlite3.connect(own_file(tmp_path))
    claim: Any = ("elsewhere:1:x", time.time() + 60)
    connection.execute("UPDATE luthier_jobs SET owner = ?, lease = ?", claim)
    connection.commit()
    with pytest.raises(StudyError, match="elsewhere"):
        Ledger(tmp_path)
    connection.execute("UPDATE luthier_jobs SET lease = ?", (time.time() - 1,))
    connection.commit()
    connection.close()
    Ledger(tmp_path).close()
    assert os.path.exists(own_file(tmp_path))  # noqa: PTH110


_WRITER = """
import sys
from pathlib import Path
from luthier.tuning.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), storage=sys.argv[2])
while True:
    for part in range(3):
        last = ledger.append("fact", 0, {"part": part})
    ledger.flush()
    print(last.id, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_killed_writer_loses_nothing_that_it_was_told_is_stored(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    storage = "sqlite" if kind == "sqlite" else request.getfixturevalue("postgres")
    moments, told = random.Random(0), 0
    for _ in range(20):
        command = [sys.executable, "-c", _WRITER, str(tmp_path), storage]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            told = int(writer.stdout.readline())
            time.sleep(moments.uniform(0, 0.03))
            writer.kill()
            told = max([told, *map(int, re.findall(r"^(\d+)\n", writer.stdout.read(), re.M))])
        events = read_events(tmp_path)
        assert len(events) >= told
        assert [(event.id, event.payload["part"]) for event in events] == [(n + 1, n % 3) for n in range(len(events))]
    assert told > 60


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_commit_that_was_interrupted_too_late_is_repeated_without_harm(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    ledger = Ledger(tmp_path, storage="sqlite" if kind == "sqlite" else request.getfixturevalue("postgres"))
    ledger.append("a", 0, {})
    assert ledger.store.commit([(1, 0.0, "a", "{}")], ledger.owner, 20)
    ledger.append("b", 0, {})
    ledger.close()
    assert [(event.id, event.kind) for event in read_events(tmp_path)] == [(1, "a"), (2, "b")]
