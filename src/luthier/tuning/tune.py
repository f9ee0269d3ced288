"""tune: search for a better recipe, prove it with more seeds, measure it once on test data."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from luthier.errors import LuthierError, unknown
from luthier.recipe import Recipe
from luthier.tuning.derived import derive_space
from luthier.tuning.engine import Console, Engine
from luthier.tuning.jobs import Plan
from luthier.tuning.ledger import Ledger, StudyError
from luthier.tuning.opening import open_ledger, ship_task
from luthier.tuning.samplers import SAMPLERS
from luthier.tuning.space import Space, check_space, space_to_json
from luthier.tuning.strategies import STRATEGIES
from luthier.tuning.study import Study, arms
from luthier.tuning.workers import Workers

if TYPE_CHECKING:
    from luthier.task import Task
    from luthier.tasks import Subject

DEFAULT_TRIALS = 30


def tune(
    task: Task | Subject | str,
    recipe: Recipe | None = None,
    space: Space | None = None,
    *,
    trials: int | None = None,
    budget: str | float | None = None,
    sampler: str = "tpe",
    strategy: str = "halving",
    workers: int | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    repeats: int = 3,
    resume: bool = True,
    groups: Mapping[str, Any] | None = None,
    console: Console | None = None,
    test: bool = True,
) -> Study:
    """Search for a better recipe than the given one.

    Trial 0 is the given recipe, over its full budget. At the end the best other trial and the baseline are trained
    with the same further seeds and compared, then the test data are read once for both.

    Args:
        task: a Task, a Subject (task with recipe, space and groups), or a reference: a built-in name or
            `path/to/file.py:function`.
        recipe: the baseline; that of the subject, else the default recipe, when None.
        space: ranges by dotted recipe path; that of the subject, else derived from recipe and task, when None.
        trials: trials of the search in all, the baseline and those of earlier calls included; 30 when there is no
            budget either.
        budget: time in all, earlier calls included: seconds, or text such as "90s", "5min", "1h".
        sampler: "tpe", "gp", "random" or "grid".
        strategy: "halving" (most trials see a part of their training only) or "full".
        workers: processes; one per core when None.
        folder: of the study; `studies/<name of the task>` when None. A second call goes on where the first ended.
        seed: of the search trials; repeats take the seeds after it.
        repeats: further seeds that winner and baseline are trained with. The search's own seed does not count: the
            winner's reading with it is the best of many, and so too good.
        resume: False refuses a folder that holds a study.
        groups: name -> fields that are tuned together, the others kept at the baseline; trials go to each in turn.
        console: told how it goes (`luthier.show.terminal.TuneConsole`); None is silent.
        test: read the test data at the end, if the task has any.

    Returns:
        The study. After Ctrl-C it holds what was found so far, and the same call goes on.

    Raises:
        LuthierError: task, recipe, space or settings do not fit.
        StudyError: the folder holds another study, is in use, damaged or not writable; nothing succeeded at all.
        KeyboardInterrupt: on a second Ctrl-C; SystemExit(143) after SIGTERM. Both leave a study to go on with.
    """
    origin = time.monotonic()
    check_numbers(trials, workers, repeats, seed)
    budget_s = None if budget is None else seconds(budget)
    for kind, name, known in (("sampler", sampler, SAMPLERS), ("strategy", strategy, STRATEGIES)):
        if name not in known:
            raise unknown(kind, name, known)
    if trials is None and budget_s is None:
        trials = DEFAULT_TRIALS
    subject = as_subject(task)
    baseline = (recipe or subject.recipe).replace({"seed": seed})
    chosen = chosen_space(subject, baseline, space)
    groups = groups if groups is not None or space is not None else subject.groups
    plan = Plan(
        arms=arms(groups, chosen),
        trials=trials,
        budget_s=budget_s,
        workers=workers or n_cores(),
        seed=seed,
        repeats=repeats,
        strategy=strategy,
    )
    description = {
        "name": subject.task.name,
        "task": subject.task.describe(),
        "recipe": baseline.to_json(),
        "space": space_to_json(chosen),
        "groups": None if groups is None else plan.arms,
        "seed": seed,
    }
    settings = {
        "sampler": sampler,
        "strategy": strategy,
        "trials": trials,
        "budget_s": budget_s,
        "workers": plan.workers,
        "seed": seed,
        "repeats": repeats,
        "reference": subject.reference,
    }
    path = Path(folder) if folder is not None else Path("studies") / subject.task.name
    ledger = open_ledger(path, description, resume)
    pool: Workers | None = None
    try:
        ship_task(path, subject, baseline)
        pool = Workers(path, plan.workers, subject.reference)
        engine = Engine(ledger, path, subject.task, baseline, chosen, plan, sampler, pool, console, origin)
        with signals(engine) as received:
            engine.open(description, settings)
            study = engine.finish(engine.run(), test)
        pool.close()
        ledger.close()
    except BaseException:
        leave(ledger, pool)
        raise
    finally:
        shutil.rmtree(path / "workers" / "task", ignore_errors=True)
    if signal.SIGTERM in received:
        raise SystemExit(143)
    return study


def as_subject(task: Task | Subject | str) -> Subject:
    """What may be passed as `task`, as a subject."""
    from luthier.task import Task
    from luthier.tasks import Subject, load

    if isinstance(task, str):
        return load(task)
    if isinstance(task, Task):
        return Subject(task)
    if isinstance(task, Subject):
        return task
    raise LuthierError(f"task must be a Task, a Subject or a reference ('mnist', 'file.py:function'), got {task!r}")


def chosen_space(subject: Subject, baseline: Recipe, space: Space | None) -> dict[str, Any]:
    """The given space, else the subject's own, else one derived from recipe and task; checked against the recipe."""
    chosen = space if space is not None else subject.space
    if chosen is None:
        chosen = derived_for(subject.task, baseline)

    check_space(chosen, baseline)
    return dict(chosen)


def derived_for(task: Task, baseline: Recipe) -> dict[str, Any]:
    """The derived space without what this task would not feel: a DataLoader keeps its batches, a step its loss."""
    from torch.utils.data import DataLoader

    loss = task.loss.name if task.own_step is None else "own"
    space = derive_space(baseline, n_examples(task), loss)
    if isinstance(task.train, DataLoader):
        del space["batch_size"]
    return space


def n_examples(task: Task) -> int | None:
    """Training examples, where the data know it."""
    source = task.batches(1, 0)
    return None if task.steps_per_epoch is not None else int(source.steps(1))


def check_numbers(trials: int | None, workers: int | None, repeats: int, seed: int) -> None:
    """Whether the counts make sense.

    Raises:
        LuthierError: one is not a whole number, or too small.
    """
    for name, value, low in (
        ("trials", trials, 1),
        ("workers", workers, 1),
        ("repeats", repeats, 1),
        ("seed", seed, 0),
    ):
        if value is None and name in ("trials", "workers"):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise LuthierError(f"{name} must be a whole number of at least {low}, got {value!r}")


_UNITS = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(budget: str | float) -> float:
    """A time in seconds.

    >>> seconds("5min"), seconds("1.5h"), seconds(90)
    (300.0, 5400.0, 90.0)

    Raises:
        LuthierError: not a time, or not above zero.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-z]*)\s*", str(budget).lower())
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise LuthierError(f"a budget is a time above zero such as 90s, 5min or 1h, got {budget!r}")
    return float(match[1]) * _UNITS[match[2]]


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def leave(ledger: Ledger, pool: Workers | None) -> None:
    """End the workers at once, and store what is known; the error that led here goes on to the caller."""
    if pool is not None:
        pool.close(at_once=True)
    with contextlib.suppress(StudyError):
        ledger.close()


@contextmanager
def signals(engine: Engine) -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM asks the engine to finish, a second one interrupts it; yields those received."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def take(number: int, _: FrameType | None) -> None:
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
