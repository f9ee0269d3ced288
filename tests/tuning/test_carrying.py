"""Turns of trials whose folders come through a depot, as a worker sees them."""

import time
from pathlib import Path
from typing import Any

import pytest
from tests.tuning.folders import read, write

from luthier.tuning import carrying, depot
from luthier.tuning.carrying import Putter, carried, saved
from luthier.tuning.depot import Depot, DepotError
from luthier.tuning.store import StudyError
from luthier.tuning.worker import Channel, obey
from luthier.tuning.workers import Workers


class Told(Channel):
    """What a training tells, in a list; each time `when` is called."""

    def __init__(self, when: Any = None) -> None:
        super().__init__()
        self.told: list[str] = []
        self.details: dict[str, Any] = {}
        self.when = when

    def say(self, event: str, **details: Any) -> None:
        self.told.append(event)
        self.details = details
        if self.when is not None:
            self.when(event)


@pytest.fixture
def store(tmp_path: Path) -> Depot:
    return Depot(f"file://{tmp_path}/depot")


def order(folder: Path, turn: int = 1) -> dict[str, Any]:
    return {"number": 7, "folder": str(folder), "turn": turn}


def test_a_turn_begins_with_what_was_put_and_is_told_when_it_is_put(store: Depot, made: Path, tmp_path: Path) -> None:
    homes = [tmp_path / "a", tmp_path / "b"]

    def train(told: dict[str, Any], channel: Any) -> tuple[str, dict[str, Any]]:
        folder = Path(told["folder"])
        before = read(folder) if folder.exists() else ""
        write(folder, before + "x")
        if before == "xx":
            raise SystemExit("enough")
        return "paused", {"reason": ""}

    kept: list[str] = []

    def look(event: str) -> None:
        there = tmp_path / "look" / "0007"
        store.fetch("0007", there)
        kept.append(f"{event} {read(there)}")

    channel = Told(look)
    for turn, home in enumerate([*homes, homes[0]]):
        obey(order(Path("/nowhere/0007"), turn + 1), carried(train, store, home), channel)
    assert kept == ["paused x", "paused xx", "failed xxx"]  # also what a training that failed has left


def test_a_node_keeps_what_is_paused_only(store: Depot, tmp_path: Path) -> None:
    def train(told: dict[str, Any], channel: Any) -> tuple[str, dict[str, Any]]:
        write(Path(told["folder"]), "x")
        return told["state"], {"reason": ""}

    for state, stays in (("paused", True), ("finished", False)):
        obey({**order(Path("/nowhere/0007")), "state": state}, carried(train, store, tmp_path), Told())
        assert (tmp_path / "0007").exists() == stays
    assert store.names() == {"0007"}


def test_a_node_keeps_nothing_of_a_training_that_raised(store: Depot, tmp_path: Path) -> None:
    def train(told: dict[str, Any], channel: Any) -> tuple[str, dict[str, Any]]:
        write(Path(told["folder"]), "x")
        raise ValueError("enough")

    obey(order(Path("/nowhere/0007")), carried(train, store, tmp_path), Told())
    assert not (tmp_path / "0007").exists()
    assert store.names() == {"0007"}


def test_a_folder_that_changes_while_it_is_looked_at_is_looked_at_again(
    made: Path, store: Depot, monkeypatch: Any
) -> None:
    putter = Putter(store, made, 1)

    def gone(folder: Path) -> set[Any]:
        raise FileNotFoundError(folder)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(carrying, "saved", gone)
        putter.look()
    assert not store.names()
    write(made, "longer")
    putter.look()
    assert store.names() == {"0007"}
    putter.close()


def test_what_was_saved_is_put_on_the_way(store: Depot, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(carrying, "EVERY_S", 0.01)

    def train(told: dict[str, Any], channel: Any) -> tuple[str, dict[str, Any]]:
        for text in ("one", "two"):
            write(Path(told["folder"]), text)
            there = tmp_path / text
            deadline = time.monotonic() + 60
            while (not there.exists() or read(there) != text) and time.monotonic() < deadline:
                store.fetch("0007", there)
            assert read(there) == text
        return "paused", {"reason": ""}

    channel = Told()
    obey(order(tmp_path / "node" / "0007"), carried(train, store), channel)
    assert channel.told == ["paused"]


def test_a_folder_is_put_once_for_what_was_saved(made: Path, capfd: Any) -> None:
    puts: list[int] = []

    class Late:
        def put(self, name: str, folder: Path, turn: int, nth: int) -> None:
            puts.append(nth)
            if nth == 1:
                raise DepotError("out of reach")

    putter = Putter(Late(), made, 1)  # type: ignore[arg-type]
    putter.look()
    assert puts == []
    write(made, "another text")
    for _ in range(4):
        putter.look()
    assert puts == [1, 2]  # once more what failed, which does not end the training
    putter.close()
    assert puts == [1, 2, 3]
    assert "out of reach" in capfd.readouterr().err


def test_rows_alone_are_not_worth_a_way(made: Path) -> None:
    before = saved(made)
    for name in ("metrics.jsonl", "vitals.jsonl", "status.json", ".hidden"):
        (made / name).write_text("row")
    assert saved(made) == before
    write(made, "another text")
    assert saved(made) != before


def test_a_way_that_takes_long_is_no_silence(made: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(carrying, "_TELL_S", 0.01)

    class Slow:
        def fetch(self, name: str, folder: Path) -> None:
            count = len(channel.told)
            deadline = time.monotonic() + 60
            while len(channel.told) < count + 2 and time.monotonic() < deadline:
                time.sleep(0.01)

        def put(self, name: str, folder: Path, turn: int, nth: int) -> None:
            self.fetch(name, folder)

    channel = Told()
    train = carried(lambda told, channel: (channel.told.append("train"), ("paused", {"reason": ""}))[1], Slow())  # type: ignore
    obey(order(made), train, channel)
    at = channel.told.index("train")
    assert set(channel.told[:at]) == {"carrying"}
    assert set(channel.told[at + 1 :]) == {"carrying", "paused"}


@pytest.mark.parametrize("broken", ["fetch", "put"])
def test_a_worker_that_cannot_reach_the_depot_says_so(
    store: Depot, made: Path, broken: str, monkeypatch: Any, capfd: Any
) -> None:
    def fail(*_: Any) -> None:
        raise DepotError("out of reach")

    monkeypatch.setattr(depot, "WAITS_S", ())
    monkeypatch.setattr(store, broken, fail)
    channel = Told()
    obey(order(made), carried(lambda told, channel: ("finished", {"reason": ""}), store), channel)
    assert channel.told == ["stranded"]
    assert channel.details == {"number": 7, "reason": "out of reach"}


def test_what_workers_say_of_the_way(tmp_path: Path) -> None:
    pool = Workers(tmp_path, 1, grace_s=60.0)
    try:
        worker = pool.all[0]
        worker.pause_by = 0.0
        assert list(pool._understand(worker, {"event": "carrying", "number": 7})) == []
        assert worker.pause_by > time.monotonic()  # it has come to pause, and what this takes is not held against it
        with pytest.raises(StudyError, match="out of reach: the study stops; the same call goes on with it"):
            list(pool._understand(worker, {"event": "stranded", "number": 7, "reason": "out of reach"}))
    finally:
        pool.close(at_once=True)
