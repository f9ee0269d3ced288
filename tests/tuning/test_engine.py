"""The study's loop with workers that follow a script: interrupts, deadlines, failures."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luthier.recipe import Recipe
from luthier.task import Task
from luthier.tasks import Subject
from luthier.tuning.budgets import Time
from luthier.tuning.engine import Engine
from luthier.tuning.folding import fold
from luthier.tuning.jobs import Plan
from luthier.tuning.journal import Journal
from luthier.tuning.ledger import Ledger, StudyError, read_events
from luthier.tuning.objectives import Objective
from luthier.tuning.searched import RecipeSearch
from luthier.tuning.space import loguniform, space_to_json
from luthier.tuning.study import Study

SPACE: Any = {"lr": loguniform(1e-4, 1.0)}
RECIPE = Recipe(epochs=9, batch_size=10, optimizer="sgd")
TOTAL = 90


class Scripted:
    """One worker that trains at once: a trial's value is its lr; `fate` may say otherwise."""

    index = 0

    def __init__(self, fate: Any = None) -> None:
        self.fate = fate or (lambda order: None)
        self.trial: int | None = None
        self.order: Any = None
        self.orders: list[tuple[int, int]] = []
        self.pauses = 0

    @property
    def idle(self) -> list[Any]:
        return [self] if self.trial is None else []

    @property
    def busy(self) -> list[Any]:
        return [self] if self.trial is not None else []

    def train(self, worker: Any, job: Any, values: Any, seed: int, **_: Any) -> None:
        self.trial, self.order = job.number, (job, values)
        self.orders.append((job.number, job.until_step))

    def pause_all(self) -> None:
        self.pauses += 1

    def wait(self, timeout_s: float) -> Any:
        job, values = self.order
        fate = self.fate(job)
        if fate == "hang" and not self.pauses:
            time.sleep(0.001)
            return
        number, self.trial = job.number, None
        if fate == "hang":
            yield {"event": "paused", "number": number, "step": 5, "time_s": 0.5, "reason": "interrupted"}
        elif fate is not None:
            yield {"event": fate, "number": number, "reason": f"scripted: {fate}"}
        else:
            kind = "epoch" if job.until_step == TOTAL else "rung"
            row = {"kind": kind, "step": job.until_step, "time_s": 0.01, "val_accuracy": values.get("lr", 0.0)}
            yield {"event": "row", "number": number, "row": row}
            yield {"event": "finished" if kind == "epoch" else "paused", "number": number, "step": job.until_step}


def task() -> Task:
    data = (torch.randn(100, 4), torch.arange(100) % 3)
    return Task(lambda: nn.Linear(4, 3), data, val=data, name="scripted")


def call(folder: Path, worker: Any, before: Any = None, **plan: Any) -> tuple[Engine, str]:
    """One call of a study; returns the engine and why it ended."""
    ledger = Ledger(folder)
    settings = Plan(**{"arms": {"all": ["lr"]}, "trials": 5, **plan})
    what = task()
    searched = RecipeSearch(Subject(what), RECIPE, SPACE, None, (Objective("accuracy", "max"),))
    engine = Engine(Journal(ledger, folder, None, time.monotonic()), searched, settings, "random", worker)
    described = {"recipe": RECIPE.to_json(), "space": space_to_json(SPACE), "groups": None, "seed": 0}
    if before is not None:
        before(engine)
    try:
        engine.open({"name": "scripted", "task": what.describe(), **described}, {})
        reason = engine.run()
        engine.finish(reason, test=True)
    finally:
        ledger.close()
    return engine, reason


def test_a_whole_study(tmp_path: Path) -> None:
    engine, reason = call(tmp_path, Scripted())
    assert reason == "finished"
    assert engine.state.trials[0].state == "finished"
    assert all(trial.ended for trial in engine.state.trials)
    study = Study.open(tmp_path)
    assert study.comparison is not None
    assert len(study.comparison.winner) == 3
    assert study.ended == "finished"
    assert study.state == fold(read_events(tmp_path), tmp_path)


def test_an_interrupt_pauses_and_the_next_call_goes_on_where_it_was(tmp_path: Path) -> None:
    worker: Any = Scripted()

    def fate(job: Any) -> str | None:
        if job.number == 2:
            engines[0].interrupts = 1
            return "hang"
        return None

    engines: list[Engine] = []
    worker.fate = fate
    engine, reason = call(tmp_path, worker, before=engines.append)
    assert reason == "interrupted"
    assert worker.pauses == 1
    assert [trial.state for trial in engine.state.trials] == ["finished", "paused", "paused"]
    assert engine.state.trials[2].step == 5
    second = Scripted()
    engine, reason = call(tmp_path, second)
    assert reason == "finished"
    assert second.orders[0] == (2, 10)
    assert len(engine.state.search) == 5


def test_a_budget_too_small_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"budget of 0.2 s was too small for one whole training"):
        call(tmp_path, Scripted(lambda job: "hang"), trials=None, budget=Time(0.2))
    for_later = Study.open(tmp_path).trials
    engine, reason = call(tmp_path, Scripted(), trials=3, budget=None)
    assert reason == "finished"
    assert engine.state.trials[0].state == "finished"
    assert [trial.number for trial in for_later] in ([], [0])


def test_a_crash_is_tried_again_once_and_then_fails_alone(tmp_path: Path) -> None:
    worker = Scripted(lambda job: "crashed" if job.number == 1 else None)
    engine, reason = call(tmp_path, worker)
    assert worker.orders.count((1, 10)) == 2
    assert (engine.state.trials[1].state, engine.state.trials[1].reason) == ("failed", "scripted: crashed")
    assert reason == "finished"


def test_the_first_failures_stop_the_study_later_ones_do_not(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="first 3 trials all failed"):
        call(tmp_path / "a", Scripted(lambda job: "failed"))
    engine, reason = call(tmp_path / "b", Scripted(lambda job: "failed" if job.number in (1, 2, 3) else None))
    assert reason == "finished"
    assert [trial.state for trial in engine.state.search].count("failed") == 3


def test_a_study_of_only_failures_says_so(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="all 2 trials failed"):
        call(tmp_path, Scripted(lambda job: "failed"), trials=2)


def test_trials_that_a_killed_parent_left_running_go_on(tmp_path: Path) -> None:
    call(tmp_path, Scripted())
    ledger = Ledger(tmp_path)
    number = len(Study.open(tmp_path).trials)
    values = {"number": number, "kind": "search", "arm": "all", "values": {"lr": 0.5}, "seed": 0, "of": None}
    ledger.append("proposed", 9.0, {**values, "total_steps": TOTAL, "until": 10})
    ledger.append("assigned", 9.0, {"number": number, "until": 10, "worker": 0})
    ledger.close()
    worker = Scripted()
    engine, _ = call(tmp_path, worker, trials=6)
    assert worker.orders[0] == (number, 10)
    assert len(engine.state.search) == 6


def test_checkpoints_of_all_but_the_best_are_removed(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / "trials" / f"{number:04d}" / "checkpoints").mkdir(parents=True)
    engine, _ = call(tmp_path, Scripted(), trials=8, strategy="full")
    best = engine.state.rank(trial for trial in engine.state.search if trial.number)[:3]
    kept = {trial.number for trial in engine.state.trials if (trial.folder / "checkpoints").exists()}
    assert kept == {0, *(trial.number for trial in best)}
