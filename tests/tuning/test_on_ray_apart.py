"""Studies on Ray whose nodes have no folder in common.

Each actor has a temporary folder of its own, as on a node of its own, and the study's folder has a path that leads
nowhere but in this process: what trials save can only come through the depot.
"""

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luthier.recipe import Recipe
from luthier.record import Record
from luthier.task import Task
from luthier.tuning import on_ray, ray_actor
from luthier.tuning.depot import Depot
from luthier.tuning.jobs import Continue, Start
from luthier.tuning.ledger import StudyError
from luthier.tuning.on_ray import RayWorkers
from luthier.tuning.ray_actor import check_reached
from luthier.tuning.saves import read_state
from luthier.tuning.shipping import ship
from luthier.tuning.space import loguniform, uniform
from luthier.tuning.study import Study
from luthier.tuning.tune import tune

SPACE: Any = {"slope": uniform(0, 1)}


@pytest.fixture
def apart(ray_here: None, tmp_path: Path, monkeypatch: Any) -> Iterator[Path]:
    """The study's folder as only this process sees it; it is `study` in the temporary folder."""
    nodes = str(tmp_path / "nodes")
    Path(nodes).mkdir()

    class Lonely(on_ray.Trainer):
        def __init__(self, *told: Any) -> None:
            tempfile.tempdir = tempfile.mkdtemp(dir=nodes)
            super().__init__(*told)

    monkeypatch.setattr(on_ray, "Trainer", Lonely)
    (tmp_path / "study").mkdir()
    here = os.open(tmp_path, os.O_RDONLY)
    yield Path(f"/proc/self/fd/{here}/study")
    os.close(here)


def climb(trial: Any) -> None:
    state = trial.restore() or {"epoch": 0, "seen": []}
    seen = [*state["seen"], os.getpid()]
    for epoch in range(state["epoch"], 9):
        trial.save({"epoch": epoch + 1, "seen": seen})
        trial.report(epoch * trial.params["slope"], step=epoch + 1)
    (trial.folder / "notes" / "own").mkdir(parents=True)
    (trial.folder / "notes" / "own" / "end.txt").write_text("the end")


def seen_by(trial: Any) -> list[int]:
    """Processes that trained a trial, from what it saved last."""
    state, _ = read_state(trial.folder / "checkpoints") or ({"seen": []}, {})
    seen: list[int] = state["seen"]
    return seen


def soon(is_so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_trials_pause_and_go_on_on_other_nodes(apart: Path, tmp_path: Path) -> None:
    keywords: Any = {"space": SPACE, "steps": 9, "strategy": "halving", "sampler": "random", "folder": apart}
    study = tune(climb, trials=6, on="ray", checkpoints=f"file://{tmp_path}/depot", **keywords)
    study = tune(climb, trials=9, on="ray", **keywords)  # knows its depot
    assert {trial.state for trial in study.trials} == {"finished", "stopped"}
    assert any(trial.may_return for trial in study.trials)
    crossed = 0
    for trial in study.trials:
        assert [row["step"] for row in trial.rows] == list(range(1, trial.step + 1))  # nothing was trained twice
        if trial.state == "finished":
            assert (trial.folder / "notes" / "own" / "end.txt").read_text() == "the end"
        crossed += len(set(seen_by(trial))) > 1
    assert crossed
    assert Depot(study.settings["checkpoints"]).names() <= {t.folder.name for t in study.trials if t.may_return}
    assert not list((tmp_path / "study" / "workers").glob("*.log"))
    assert not list((tmp_path / "nodes").glob("**/trials/*"))  # nodes have tidied up


def test_what_a_stopped_training_leaves_at_its_end_comes_too(apart: Path, tmp_path: Path) -> None:
    def stubborn(trial: Any) -> None:
        try:
            for epoch in range(9):
                trial.report(epoch * trial.params["slope"], step=epoch + 1)
        finally:
            time.sleep(0.3)  # the study knows by then that it is stopped
            trial.folder.mkdir(parents=True, exist_ok=True)
            (trial.folder / "words.txt").write_text("the end")

    keywords: Any = {"space": SPACE, "steps": 9, "trials": 6, "strategy": "halving", "sampler": "random"}
    study = tune(stubborn, on="ray", checkpoints=f"file://{tmp_path}/depot", folder=apart, **keywords)
    assert {trial.state for trial in study.trials} == {"finished", "stopped"}
    assert all((trial.folder / "words.txt").exists() for trial in study.trials)


def test_a_paused_trial_goes_on_in_another_actor(apart: Path, tmp_path: Path) -> None:
    """The same on a pool, where it is told which actor trains."""
    depot = Depot(f"file://{tmp_path}/depot/own", call=1)
    depot.probe()
    ship(apart / "workers" / "task", function=climb)
    pool = RayWorkers(apart, 2, {"num_cpus": 1}, disconnect=False, depot=depot)
    more = {"steps": 9, "reported": {"value": "val_value"}, "known": 0, "total_steps": 9}
    told: list[dict[str, Any]] = []

    def hear(event: str) -> bool:
        told.extend(pool.wait(0.05))
        return any(message["event"] == event for message in told)

    try:
        soon(lambda: not hear("none") and all(worker.ready for worker in pool.all))
        for index, until in ((0, 3), (1, 6), (0, 9)):
            job = Start(0, "all", {}, until, 9) if until == 3 else Continue(0, until)
            pool.train(pool.all[index], job, {"slope": 1.0}, 0, **{**more, "known": until - 3})
            soon(lambda until=until: hear("paused" if until < 9 else "finished"))  # type: ignore[misc]
            told[:] = [message for message in told if message["event"] == "row"]
        assert [message["row"]["step"] for message in told] == list(range(1, 10))
        depot.fetch("0000", tmp_path / "0000")
        first, second, third = read_state(tmp_path / "0000" / "checkpoints")[0]["seen"]  # type: ignore[index]
        assert first == third != second
    finally:
        pool.close(at_once=True)


def test_a_killed_actor_costs_what_was_not_put_yet(apart: Path, tmp_path: Path) -> None:
    note = str(tmp_path / "pid")

    def train(trial: Any) -> None:
        state = trial.restore() or {"epoch": 0, "seen": []}
        for epoch in range(state["epoch"], 5):
            if epoch == 3 and trial.number == 0 and not Path(note).exists():
                Path(note).write_text(str(os.getpid()))
                time.sleep(600)
            trial.save({"epoch": epoch + 1, "seen": [*state["seen"], os.getpid()]})
            trial.report(epoch * trial.params["slope"], step=epoch + 1)
            time.sleep(0.6)  # what is saved is on the disk within about a second

    def kill() -> None:
        soon(lambda: bool(list((tmp_path / "depot").glob("train-*/0000/*.tar"))) and Path(note).exists())
        os.kill(int(Path(note).read_text()), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    address = f"file://{tmp_path}/depot"
    keywords: Any = {"space": SPACE, "steps": 5, "trials": 2, "strategy": "full", "folder": apart}
    study = tune(train, on="ray", checkpoints=address, workers=1, **keywords)
    assert [trial.state for trial in study.trials] == ["finished"] * 2
    assert [trial.crashes for trial in study.trials] == [1, 0]
    assert sorted({row["step"] for row in study.trials[0].rows}) == [1, 2, 3, 4, 5]
    assert len(seen_by(study.trials[0])) == 2  # the second actor went on from what the first had put
    assert len(set(seen_by(study.trials[0]))) == 2


def test_an_interrupted_study_goes_on_without_the_cluster(apart: Path, tmp_path: Path) -> None:
    slow = str(tmp_path / "slow")
    Path(slow).touch()

    def train(trial: Any) -> None:
        state = trial.restore() or {"epoch": 0, "seen": []}
        for epoch in range(state["epoch"], 200):
            trial.save({"epoch": epoch + 1, "seen": [*state["seen"], os.getpid()]})
            trial.report(epoch * trial.params["slope"], step=epoch + 1)
            time.sleep(0.1 if Path(slow).exists() else 0)

    def interrupt() -> None:
        def under_way() -> bool:
            if not (tmp_path / "study" / "study.db").exists():
                return False
            try:
                trials = Study.open(tmp_path / "study").trials
            except StudyError:
                return False
            return len(trials) == 2 and all(trial.rows for trial in trials)

        soon(under_way)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    keywords: Any = {"space": SPACE, "steps": 200, "trials": 2, "strategy": "full", "workers": 2}
    study = tune(train, on="ray", checkpoints=f"file://{tmp_path}/depot", folder=apart, **keywords)
    assert study.ended == "interrupted"
    assert [trial.state for trial in study.trials] == ["paused"] * 2
    assert not list((tmp_path / "study" / "trials").glob("*"))  # it is in the depot alone
    paused = [trial.step for trial in study.trials]
    Path(slow).unlink()
    study = tune(train, folder=tmp_path / "study", **keywords)
    assert [trial.state for trial in study.trials] == ["finished"] * 2
    for trial, before in zip(study.trials, paused, strict=True):
        assert 0 < before < 200
        assert [row["step"] for row in trial.rows] == list(range(1, 201))
        assert len(seen_by(trial)) == 2
    assert not Depot(study.settings["checkpoints"]).names()


def test_records_come_home_and_test_data_is_read(apart: Path, tmp_path: Path) -> None:
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    data = (x, x[:, :3].argmax(1))
    task = Task(lambda: nn.Linear(4, 3), data, val=data, test=data, name="here")
    recipe = Recipe(optimizer="sgd", epochs=9, batch_size=20)
    space = {"lr": loguniform(1e-3, 0.1)}
    keywords: Any = {"sampler": "random", "strategy": "halving", "folder": apart}
    address = f"file://{tmp_path}/depot"
    study = tune(task, recipe, space, trials=5, repeats=1, on="ray", checkpoints=address, **keywords)
    assert study.ended == "finished"
    assert len(study.state.tests) == 2
    for trial in study.trials:
        record = Record(trial.folder)
        assert [row["step"] for row in record.rows] == [row["step"] for row in trial.rows]
        assert record.rows[-1]["step"] == trial.step
        assert record.status["state"] in ("finished", "paused")
    assert study.best is not None
    Record(study.best.folder).load_best(task)


def test_a_node_that_fails_says_why(apart: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def train(trial: Any) -> None:
        raise RuntimeError(f"no fast disk on trial {trial.number}")

    with pytest.raises(StudyError, match="RuntimeError: no fast disk on trial"):
        tune(train, space=SPACE, trials=4, on="ray", folder=apart, checkpoints=f"file://{tmp_path}/depot")

    def die(trial: Any) -> None:
        os._exit(3)

    with pytest.raises(StudyError, match=r"the Ray worker died \(.*\); see `ray logs actor --id [0-9a-f]+`"):
        tune(die, space=SPACE, trials=1, on="ray", folder=tmp_path / "b", checkpoints=f"file://{tmp_path}/depot")


def test_storage_that_nodes_do_not_share_is_said(apart: Path) -> None:
    with pytest.raises(StudyError, match=r"node .* does not find in memory://depot/climb-.* what the parent has put"):
        tune(climb, space=SPACE, trials=2, on="ray", folder=apart, checkpoints="memory://depot")


def test_a_node_that_cannot_write_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    depot = Depot(f"file://{tmp_path}/depot")
    depot.probe()
    depot.write_call("a-call")
    check_reached(depot, "a-call")
    assert [path.name for path in (tmp_path / "depot").iterdir()] == ["call"]  # nothing is left of a probe
    monkeypatch.setattr(ray_actor, "VISIBLE_S", 0.0)
    with pytest.raises(StudyError, match="storage that all nodes share"):
        check_reached(depot, "another-call")
    monkeypatch.setattr(type(depot._files), "pipe_file", lambda *_: shutil.rmtree("/nowhere"))
    monkeypatch.setattr("luthier.tuning.depot.WAITS_S", ())
    with pytest.raises(StudyError, match="cannot be written from"):
        check_reached(depot, "a-call")
