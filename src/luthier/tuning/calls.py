"""One call of `tune` from its first event to its last: ledger, workers, engine, signals, and a clean end of each."""

from __future__ import annotations

import atexit
import contextlib
import gc
import math
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import FrameType

from luthier.tuning.asking import Asked, description
from luthier.tuning.depot import Depot
from luthier.tuning.engine import Engine
from luthier.tuning.function_search import FunctionSearch
from luthier.tuning.homing import lodged
from luthier.tuning.journal import Console, Journal
from luthier.tuning.ledger import Ledger, StudyError
from luthier.tuning.opening import hired, hired_on_ray, open_ledger
from luthier.tuning.recruits import Recruit
from luthier.tuning.searched import RecipeSearch, Searched
from luthier.tuning.study import Study
from luthier.tuning.workers import Workers

_GRACE_S = 10.0


@dataclass(frozen=True)
class Call:
    """A call of `tune` whose arguments fit; see there for `folder`, `storage`, `resume`, `console` and `test`.

    Attributes:
        asked: how to search.
        searched: what is searched over.
        origin: `time.monotonic()` when the call began.
        recruits: processes that have begun already.
    """

    asked: Asked
    searched: Searched
    folder: Path
    storage: str | None
    resume: bool | str
    console: Console | None
    test: bool
    origin: float
    recruits: list[Recruit]

    def run(self) -> Study:
        """Search, retrain, compare and test; see `tune` for what is raised."""
        described = description(self.searched, self.asked.plan(self.searched))
        ledger = open_ledger(self.folder, described, self.resume, self.storage)
        pool: Workers | None = None
        try:
            journal = Journal(ledger, self.folder, self.console, self.origin)
            order = journal.state.description.get("space", self.searched.space)  # which draws and decisions follow
            self.searched.space = {name: self.searched.space[name] for name in order}
            plan = self.asked.plan(self.searched)
            with lodged(journal.state, self.searched.name, self.asked.checkpoints) as depot:
                pool = self.hire(plan.workers, depot)
                plan = replace(plan, workers=len(pool.all))
                threading.Thread(target=import_module, args=("scipy.special",), daemon=True).start()  # as workers start
                engine = Engine(journal, self.searched, plan, self.asked.sampler, pool, self.asked.constraints, depot)
                with engine.optuna, engine.homing, signals(engine) as received:
                    engine.open(described, self.asked.settings(self.searched, plan, depot))
                    study = engine.finish(engine.run(), self.test)
            if isinstance(self.searched, RecipeSearch):  # with its callables, which no ledger can hold
                study.baseline = study.start = self.searched.start
            pool.close()
            ledger.close()
        except BaseException as error:
            leave(ledger, pool, commit=not isinstance(error, KeyboardInterrupt))
            raise
        finally:
            shutil.rmtree(self.folder / "workers" / "task", ignore_errors=True)
        if signal.SIGTERM in received:
            raise SystemExit(143)
        return study

    def hire(self, count: int, depot: Depot | None) -> Workers:
        """The workers, on this machine or on Ray, with what they need."""
        grace_s = _GRACE_S if isinstance(self.searched, FunctionSearch) else math.inf  # a recipe's hears at each step
        asked, more = self.asked, {"timeout_s": self.asked.timeout_s, "grace_s": grace_s, "depot": depot}
        if asked.on is None:
            return hired(self.folder, self.searched, count, self.recruits, **more)
        return hired_on_ray(self.folder, self.searched, asked.workers, asked.on, asked.resources, **more)


def leave(ledger: Ledger, pool: Workers | None, commit: bool) -> None:
    """End the workers at once, and store what is known; the error that led here goes on to the caller."""
    if pool is not None:
        pool.close(at_once=True)
    with contextlib.suppress(StudyError):
        ledger.close(commit)


@contextmanager
def signals(engine: Engine) -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM asks the engine to finish, a second one interrupts it; yields those received."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def take(number: int, _: FrameType | None) -> None:
        atexit.register(gc.freeze)  # else the interpreter takes a second at its end to look through all of torch
        received.append(number)
        engine.interrupts += 1
        if len(received) > 1:
            raise KeyboardInterrupt(f"interrupted twice; the same call goes on with {engine.state.folder}")

    before = {number: signal.signal(number, take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
