"""Studies that keep what trials save in a depot; their workers are on this machine, and reach it as those on Ray do."""

import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from luthier.tuning import calls, depot
from luthier.tuning.depot import Depot, DepotError, version_of
from luthier.tuning.engine import Engine
from luthier.tuning.folding import apply
from luthier.tuning.homing import Homing, lodged
from luthier.tuning.opening import hired
from luthier.tuning.saves import read_state
from luthier.tuning.space import uniform
from luthier.tuning.state import Event, State
from luthier.tuning.store import StudyError
from luthier.tuning.tune import tune

SPACE: Any = {"slope": uniform(0, 1)}


@pytest.fixture
def local(monkeypatch: Any) -> None:
    """Studies on Ray have workers on this machine."""
    monkeypatch.setattr(
        calls, "hired_on_ray", lambda folder, searched, count, *_, **more: hired(folder, searched, count, [], **more)
    )


def climb(trial: Any) -> None:
    state = trial.restore() or {"epoch": 0}
    for epoch in range(state["epoch"], 9):
        trial.save({"epoch": epoch + 1})
        trial.report(epoch * trial.params["slope"], step=epoch + 1)


@pytest.fixture
def climbing(local: None, tmp_path: Path) -> Any:
    """tune with the function above and a depot, two workers, halving."""
    keywords: Any = {"space": SPACE, "steps": 9, "strategy": "halving", "sampler": "random", "workers": 2}
    return partial(tune, climb, folder=tmp_path / "study", **keywords)


def test_a_depot_keeps_only_what_may_go_on(climbing: Any, tmp_path: Path) -> None:
    study = climbing(trials=9, on="ray", checkpoints=f"file://{tmp_path}/depot")
    (own,) = (tmp_path / "depot").iterdir()
    assert study.settings["checkpoints"] == f"file://{own}"
    assert own.name.startswith("climb-")
    assert {trial.state for trial in study.trials} == {"finished", "stopped"}
    waiting = [trial.folder.name for trial in study.trials if trial.may_return]
    kept = Depot(study.settings["checkpoints"]).names()
    assert len(waiting) > 3
    assert len(kept) == 3
    assert kept < set(waiting)
    for name in kept:
        assert (study.folder / "trials" / name / "checkpoints").exists()
    more = climbing(trials=12)  # here, through the same depot
    assert more.settings["checkpoints"] == study.settings["checkpoints"]
    assert more.settings["calls"] == 2
    assert len(more.trials) == 12
    assert Depot(study.settings["checkpoints"]).names() <= {t.folder.name for t in more.trials if t.may_return}


def test_checkpoints_that_come_late_are_tidied_too(climbing: Any, tmp_path: Path, monkeypatch: Any) -> None:
    fetch = Depot.fetch

    def late(self: Depot, name: str, folder: Path) -> None:  # in this process: that of the workers is as it was
        time.sleep(0.1)
        shutil.rmtree(folder, ignore_errors=True)
        fetch(self, name, folder)

    monkeypatch.setattr(Depot, "fetch", late)
    study = climbing(trials=12, on="ray", checkpoints=f"file://{tmp_path}/depot")
    with_checkpoints = {path.parent.name for path in study.folder.glob("trials/*/checkpoints")}
    finished = [trial.folder.name for trial in study.state.rank(t for t in study.trials if t.state == "finished")]
    assert with_checkpoints == {*finished[:3], *Depot(study.settings["checkpoints"]).names()}


def test_a_study_keeps_to_its_address(climbing: Any, tmp_path: Path) -> None:
    climbing(trials=2, on="ray", checkpoints=f"file://{tmp_path}/depot")
    with pytest.raises(StudyError, match=f"are in file://{tmp_path}/depot/climb-.*leave checkpoints out"):
        climbing(trials=4, on="ray", checkpoints=f"file://{tmp_path}/another")
    assert len(climbing(trials=4, on="ray", checkpoints=f"file://{tmp_path}/depot/").trials) == 4


def test_a_study_may_get_a_depot_later(climbing: Any, tmp_path: Path, monkeypatch: Any) -> None:
    first = climbing(trials=4)
    waiting = {trial.folder.name for trial in first.trials if trial.may_return}
    seen: list[set[str]] = []
    monkeypatch.setattr(calls, "Engine", lambda *told: (seen.append(told[-1].names()), Engine(*told))[1])
    study = climbing(trials=5, on="ray", checkpoints=f"file://{tmp_path}/depot")
    assert seen == [waiting]
    assert waiting
    for trial in study.trials:
        if trial.state == "finished":
            assert [row["step"] for row in trial.rows] == list(range(1, 10))
            state, _ = read_state(trial.folder / "checkpoints") or ({}, {})
            assert state == {"epoch": 9}


def test_what_has_ended_must_come_home(climbing: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def lost(self: Depot, name: str, folder: Path) -> None:
        raise DepotError("out of reach")

    monkeypatch.setattr(depot, "WAITS_S", ())
    with monkeypatch.context() as broken:
        broken.setattr(Depot, "fetch", lost)  # in this process: the workers reach it
        with pytest.raises(StudyError, match="out of reach: what has ended is not all here"):
            climbing(trials=4, on="ray", checkpoints=f"file://{tmp_path}/depot")
    assert Depot(f"file://{next((tmp_path / 'depot').iterdir())}").names() == {"0000", "0001", "0002", "0003"}
    study = climbing(trials=4)
    finished = {trial.folder.name for trial in study.trials if trial.state == "finished"}
    assert finished
    assert not finished & Depot(study.settings["checkpoints"]).names()


def test_a_study_stops_when_what_has_ended_cannot_come(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(depot, "WAITS_S", ())
    with Homing(Depot(f"file://{tmp_path}/depot")) as homing:
        homing.bring([])
        homing._send(lost)
        homing._jobs.join()
        with pytest.raises(StudyError, match="not all here"):
            homing.bring([])


def lost() -> None:
    raise DepotError("out of reach")


def test_only_what_has_come_is_removed(tmp_path: Path) -> None:
    store, node = Depot(f"file://{tmp_path}/depot"), tmp_path / "node" / "0000"
    node.mkdir(parents=True)
    store.put("0000", node, 1)
    early = version_of(node)
    store.put("0000", node, 2)
    store.remove("0000", upto=early)
    assert store.names() == {"0000"}
    store.remove("0000", upto=version_of(node))
    assert store.names() == set()


def test_a_depot_that_cannot_be_written_is_said_before_any_training(local: None, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match=r"file/.*cannot be written from .*NotADirectory"):
        tune(lambda trial: 1.0, space=SPACE, on="ray", folder=tmp_path / "study", checkpoints=f"{tmp_path}/file/depot")
    assert not (tmp_path / "study" / "trials").exists()


def test_a_study_that_finds_no_workers_leaves_nothing_behind(climbing: Any, tmp_path: Path, monkeypatch: Any) -> None:
    places = [False, True, False]
    working = calls.hired_on_ray

    def hire(*arguments: Any, **more: Any) -> Any:
        if not places.pop(0):
            raise StudyError("no place on the cluster")
        return working(*arguments, **more)

    monkeypatch.setattr(calls, "hired_on_ray", hire)
    climbing(trials=4)
    with pytest.raises(StudyError, match="no place"):
        climbing(trials=9, on="ray", checkpoints=f"file://{tmp_path}/depot")
    assert list((tmp_path / "depot").iterdir()) == []
    study = climbing(trials=9, on="ray", checkpoints=f"file://{tmp_path}/depot")
    with pytest.raises(StudyError, match="no place"):
        climbing(trials=12, on="ray")
    assert Depot(study.settings["checkpoints"]).names()


def test_what_an_attempt_to_move_in_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = State(tmp_path / "s")
    for number in range(3):
        payload = {"number": number, "kind": "search", "arm": "all", "values": {}, "seed": 0, "of": None}
        apply(state, Event(number, 0.0, "proposed", {**payload, "total_steps": 9, "until": 9}))
        (state.trials[number].folder / "checkpoints").mkdir(parents=True)
        (state.trials[number].folder / "checkpoints" / "last.json").write_text("{}")
    attempts: list[str] = []

    def out_of_reach(self: Depot, name: str, folder: Path, turn: int, nth: int = 0) -> None:
        attempts.append(name)
        if name == "0001":
            raise DepotError("out of reach")
        put(self, name, folder, turn, nth)

    put = Depot.put
    monkeypatch.setattr(depot, "WAITS_S", (0.0,))
    monkeypatch.setattr(Depot, "put", out_of_reach)
    with pytest.raises(DepotError, match="out of reach"), lodged(state, "f", (tmp_path / "far").as_uri()):
        pass
    assert attempts == ["0000", "0001", "0001"]
    assert not [path for path in (tmp_path / "far").rglob("*") if path.is_file()]
