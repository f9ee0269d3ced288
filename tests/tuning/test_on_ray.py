"""Studies whose workers are actors on a Ray cluster of this machine."""

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from torch import nn

from luthier.errors import LuthierError
from luthier.recipe import Recipe
from luthier.task import Task
from luthier.tuning import on_ray, ray_actor, ray_cluster
from luthier.tuning.jobs import Start
from luthier.tuning.ledger import StudyError
from luthier.tuning.on_ray import RayWorkers
from luthier.tuning.ray_actor import Posting, check_visible, local_folder, watch_parent
from luthier.tuning.ray_cluster import ray_workers
from luthier.tuning.shipping import ship
from luthier.tuning.space import loguniform, uniform
from luthier.tuning.tune import tune
from luthier.tuning.workers import Workers

SPACE: Any = {"slope": uniform(0, 1)}
TASK_FILE = """
import torch
from torch import nn
from luthier.recipe import Recipe
from luthier.task import Task

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x)

def task():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    data = (x, x[:, :3].argmax(1))
    return Task(Net, data, val=data, test=data, name="filed"), Recipe(optimizer="sgd", epochs=1, batch_size=20)
"""


def test_trials_pause_and_go_on_in_any_actor(ray_here: None, tmp_path: Path) -> None:
    table = torch.ones(1 << 15)  # large enough for a file of its own, unpacked on the node

    def train(trial: Any) -> None:
        state = trial.restore() or {"epoch": 0}
        for epoch in range(state["epoch"], 9):
            print("epoch", epoch)
            trial.save({"epoch": epoch + 1})
            trial.report(epoch * trial.params["slope"] * float(table[0]), step=epoch + 1)

    study = tune(train, space=SPACE, steps=9, trials=9, on="ray", strategy="halving", sampler="random", folder=tmp_path)
    assert ray.is_initialized()  # it was there before
    assert study.settings["workers"] == 2
    assert {trial.state for trial in study.trials} == {"finished", "stopped"}
    for trial in study.trials:
        steps = [row["step"] for row in trial.rows]
        assert steps == list(range(1, trial.step + 1))  # nothing was trained twice
    assert study.best.value == pytest.approx(8 * study.best.values["slope"])
    assert "epoch 8" in "".join(path.read_text() for path in (tmp_path / "workers").glob("*.log"))
    unpacked = local_folder(Posting(tmp_path, "", {}, []))
    assert not list(unpacked.parent.glob(f"{unpacked.name}*"))


def test_a_killed_actor_costs_the_time_since_the_last_checkpoint(ray_here: None, tmp_path: Path) -> None:
    def train(trial: Any) -> None:
        state = trial.restore() or {"epoch": 0}
        note = trial.folder / "pid"
        for epoch in range(state["epoch"], 4):
            if epoch == 2 and trial.number == 0 and not note.exists():
                note.write_text(str(os.getpid()))
                time.sleep(600)
            trial.save({"epoch": epoch + 1})
            trial.report(epoch * trial.params["slope"], step=epoch + 1)

    def kill() -> None:
        note = tmp_path / "trials" / "0000" / "pid"
        while not (note.exists() and note.read_text()):
            time.sleep(0.05)
        os.kill(int(note.read_text()), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    study = tune(train, space=SPACE, steps=4, trials=3, on="ray", strategy="full", folder=tmp_path, workers=2)
    assert [trial.state for trial in study.trials] == ["finished"] * 3
    assert [trial.crashes for trial in study.trials] == [1, 0, 0]
    assert sorted({row["step"] for row in study.trials[0].rows}) == [1, 2, 3, 4]


def test_a_task_of_a_file_travels_with_its_data_and_classes(ray_here: None, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(TASK_FILE)
    folder = tmp_path / "study"
    reference = f"{tmp_path / 'own.py'}:task"
    study = tune(
        reference, space={"lr": loguniform(1e-3, 0.1)}, trials=2, repeats=1, on="ray", folder=folder, sampler="random"
    )
    assert study.ended == "finished"
    assert study.settings["reference"] == reference
    assert all(trial.state == "finished" for trial in study.trials)


def test_what_the_cluster_cannot_hold_is_said(ray_here: None, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(StudyError, match="needs 1 CPU, 1 GPU, the 1 nodes have 2 CPU, 0 GPU in all"):
        tune(lambda trial: 1.0, space=SPACE, trials=2, on="ray", resources={"num_gpus": 1}, folder=tmp_path)
    monkeypatch.setattr(on_ray, "PATIENCE_S", 0.5)
    with pytest.raises(StudyError, match=r"place within 0.5 s: each of 1 needs 8 CPU, the cluster has 2 CPU, of which"):
        tune(lambda trial: 1.0, space=SPACE, trials=2, on="ray", resources={"num_cpus": 8}, workers=1, folder=tmp_path)


def test_a_trial_without_a_place_moves_to_the_first_worker_that_has_one(ray_here: None, tmp_path: Path) -> None:
    ship(tmp_path / "workers" / "task", function=lambda trial: 1.0, metric="value")
    pool = RayWorkers(tmp_path, 3, {"num_cpus": 1}, disconnect=False)  # one more than there is room for
    try:
        pool.train(pool.all[2], Start(0, "all", {}, 1, 1), {}, 0, steps=1, reported={"value": "val_value"})
        told: list[Any] = []
        deadline = time.monotonic() + 60
        while not any(message["event"] == "finished" for message in told) and time.monotonic() < deadline:
            told += pool.wait(0.1)
        assert [message["event"] for message in told] == ["row", "finished"]
        assert sum(worker.ready for worker in pool.all) <= 2
    finally:
        pool.close(at_once=True)


def test_an_actor_counts_quiet_looks_and_not_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Left(BaseException):
        pass

    def leave(_: int) -> None:
        raise Left

    class Watched:
        fetched, looks = 0.0, 0

    def sleep(_: float) -> None:
        watched.looks += 1
        clock[0] += 1000  # all threads of the process had to wait
        if watched.looks in (5, 19, 30):
            watched.fetched += 1

    watched, clock = Watched(), [0.0]
    monkeypatch.setattr(ray_actor.time, "sleep", sleep)
    monkeypatch.setattr(ray_actor.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(ray_actor.os, "_exit", leave)
    with pytest.raises(Left):
        watch_parent(watched)
    assert watched.looks == 50


def test_parts_of_a_gpu_are_counted_whole() -> None:
    for amount, places in ((0.1, 10), (0.2, 5), (0.3, 3), (1, 1), (2, 0)):
        assert ray_cluster._places({"CPU": 16.0, "GPU": 1.0}, {"CPU": 1, "GPU": amount}) == places


@pytest.mark.parametrize("placed", [True, False])
def test_patience_is_for_places_only(monkeypatch: pytest.MonkeyPatch, placed: bool) -> None:
    class Actor:
        ready = gone = False

    monkeypatch.setattr(Workers, "wait", lambda self, timeout_s: iter(()))
    pool = object.__new__(RayWorkers)
    actor: Any = Actor()
    actor.placed, pool.all, pool._needs = placed, [actor], {"CPU": 1}
    pool._served = time.monotonic() - 2 * on_ray.PATIENCE_S
    monkeypatch.setattr(on_ray, "plea", lambda *_: "no place")
    if placed:
        assert list(pool.wait(0.0)) == []
    else:
        with pytest.raises(StudyError, match="no place"):
            list(pool.wait(0.0))


def test_a_recalled_trial_is_not_given_to_the_next_actor() -> None:
    class Actor:
        def __init__(self, trial: int | None, recalled: bool) -> None:
            self.index, self.trial, self.ready, self.recalled = 0, trial, False, recalled

        def begin(self, other: Any) -> None:
            began.append(other)

    began: list[Any] = []
    pool = object.__new__(RayWorkers)
    for recalled in (True, False):
        holder, free = Actor(0, recalled), Actor(None, False)
        pool.all = [holder, free]
        assert list(pool._understand(free, {"event": "ready"})) == []
        assert began.pop() is (None if recalled else holder)


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(ray_actor, "VISIBLE_S", 0.0)
    with pytest.raises(StudyError, match="storage that all nodes share"):
        check_visible(Posting(tmp_path, "a-call", {}, []))


@pytest.mark.parametrize("on", ["spark", "ray:head"])
def test_other_places_are_refused(on: str) -> None:
    with pytest.raises(LuthierError, match="'ray' or 'ray://host:10001'"):
        ray_workers(Path("nowhere"), 1, on, None)


def test_resources_are_checked(tmp_path: Path) -> None:
    with pytest.raises(LuthierError, match="did you mean 'num_gpus'"):
        ray_cluster.checked({"num_gpu": 1})
    with pytest.raises(LuthierError, match="at least 0, got -1"):
        ray_cluster.checked({"resources": {"disk": -1}})
    with pytest.raises(LuthierError, match="add on='ray'"):
        tune(lambda trial: 1.0, space=SPACE, resources={"num_gpus": 1}, folder=tmp_path)


def test_a_head_out_of_reach_is_said_at_once(monkeypatch: Any) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as bound:  # bound, but nobody listens
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with pytest.raises(StudyError, match=f"no Ray cluster can be reached at ray://127.0.0.1:{port}"):
            ray_cluster.connect(f"ray://127.0.0.1:{port}")
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        with pytest.raises(StudyError, match="ray start --head"):
            ray_cluster.connect("ray")
    with pytest.raises(LuthierError, match="host:port"):
        ray_cluster.connect("ray://head")


def test_ray_is_begun_and_ended_only_where_it_was_not_there(tmp_path: Path, monkeypatch: Any) -> None:
    calls: list[Any] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda address, **settings: calls.append((address, settings)))
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(ray, "nodes", lambda: [])
    monkeypatch.setattr(ray, "cluster_resources", dict)
    with pytest.raises(StudyError, match="no node"):
        ray_workers(tmp_path, None, "ray", None)
    assert calls[0] == (None, {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"})
    assert calls[1:] == ["shutdown"]


def test_without_ray_the_command_to_install_it_is_said(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LuthierError, match=r"pip install luthier\[ray\]"):
        ray_cluster.connect("ray")


def test_a_task_made_here_is_sent_whole(ray_here: None, tmp_path: Path) -> None:
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    task = Task(lambda: nn.Linear(4, 3), (x, x[:, :3].argmax(1)), val=(x, x[:, :3].argmax(1)), name="here")
    recipe = Recipe(optimizer="sgd", epochs=2, batch_size=20)
    space = {"lr": loguniform(1e-3, 0.1)}
    study = tune(task, recipe, space, trials=2, repeats=1, on="ray", folder=tmp_path, workers=1, strategy="full")
    assert study.ended == "finished"
