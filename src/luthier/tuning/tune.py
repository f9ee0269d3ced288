"""tune: search for a better recipe, prove it with more seeds, measure it once on test data; or tune any function."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from luthier.errors import LuthierError, unknown
from luthier.tuning.engine import Engine
from luthier.tuning.function_search import function_search, is_function
from luthier.tuning.jobs import Plan
from luthier.tuning.journal import Console, Journal
from luthier.tuning.ledger import Ledger, StudyError
from luthier.tuning.opening import hired, hired_on_ray, open_ledger
from luthier.tuning.proposing import AUTO
from luthier.tuning.samplers import SAMPLERS, sampler_label
from luthier.tuning.searched import Searched, recipe_search
from luthier.tuning.space import space_to_json
from luthier.tuning.strategies import STRATEGIES
from luthier.tuning.study import Study, arms
from luthier.tuning.virtual import VIRTUAL_WORKERS
from luthier.tuning.workers import Workers

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from luthier.recipe import Recipe
    from luthier.task import Task
    from luthier.tasks import Subject
    from luthier.tuning.ranges import Space
    from luthier.tuning.views import Sampler

DEFAULT_TRIALS = 30
_GRACE_S = 10.0


def tune(
    task: Task | Subject | str | Callable[[Any], Any],
    recipe: Recipe | None = None,
    space: Space | None = None,
    *,
    trials: int | None = None,
    budget: str | float | None = None,
    sampler: str | Sampler | BaseSampler = "auto",
    strategy: str = "auto",
    workers: int | None = None,
    folder: str | Path | None = None,
    storage: str | None = None,
    seed: int = 0,
    repeats: int | None = None,
    resume: bool = True,
    groups: Mapping[str, Any] | None = None,
    console: Console | None = None,
    test: bool = True,
    steps: int | None = None,
    direction: str | None = None,
    metric: str | None = None,
    start: Mapping[str, Any] | None = None,
    trial_timeout: float | None = None,
    deterministic: bool = False,
    constraints: Sequence[Callable[[dict[str, Any]], bool | float]] = (),
    on: str | None = None,
    resources: Mapping[str, Any] | None = None,
) -> Study:
    """Search for a better recipe than the given one, or for the best values of a training function.

    Trial 0 is the given recipe, over its full budget. At the end the best other trial and the baseline are trained
    with the same further seeds and compared, then the test data are read once for both.

    A training function is called in worker processes with one argument, the trial: `trial.params`, `trial.seed`,
    `trial.report(value, step)`, `trial.save(state)`, `trial.restore()`, `trial.watch(model, optimizer)`,
    `trial.folder`. It may be defined in a script, a notebook, another function or a module. One that restores and
    saves is paused at the strategy's rungs and goes on later, in any worker; of the others the unpromising ones end
    there.

    >>> def train(trial):
    ...     for epoch in range(4):
    ...         trial.report(epoch * trial.params["slope"], step=epoch + 1)
    >>> tune(train, space={"slope": uniform(0, 1)}, steps=4, budget="1min", workers=2)  # doctest: +SKIP

    Args:
        task: a Task, a Subject (task with recipe, space and groups), a reference (a built-in name or
            `path/to/file.py:function`), or a training function.
        recipe: the baseline; that of the subject, else the default recipe, when None.
        space: ranges by dotted recipe path; that of the subject, else derived from recipe and task, when None. For a
            function by any names.
        trials: trials of the search in all, the baseline and those of earlier calls included; 30 when there is no
            budget either.
        budget: time in all, earlier calls included: seconds, or text such as "90s", "5min", "1h".
        sampler: "auto" (known-good settings, what the doctor asks for, "tpe"), "tpe", "gp", "cmaes", "nsgaii", "prior"
            (around the baseline), "sobol", "halton", "random" or "grid"; one of Optuna's sampler objects; or a
            function from a `View` to values.
        strategy: "auto" (patient halving), "halving", "hyperband", "one-epoch-top-k" (most trials see a part of their
            training only) or "full".
        workers: processes; one per core when None.
        folder: of the study; `studies/<name of the task>` when None. A second call goes on where the first ended.
        storage: where the study is kept: a SQLite file in the folder when None or "sqlite", or a PostgreSQL database,
            `postgresql://user@host/database`, which several studies share under the names of their folders. A second
            call finds it by the folder.
        seed: of the search trials; repeats take the seeds after it.
        repeats: further seeds that winner and baseline are trained with. The search's own seed does not count: the
            winner's reading with it is the best of many, and so too good. 3 for a task, none for a function, when
            None.
        resume: False refuses a folder that holds a study.
        groups: name -> fields that are tuned together, the others kept at the baseline; trials go to each in turn.
        console: told how it goes (`luthier.show.terminal.TuneConsole`); None is silent.
        test: read the test data at the end, if the task has any.
        steps: for a function: the last step that it reports. When None, trials run whole until one has finished, which
            shows how long they are; only then can others be cut short.
        direction: for a function: "max" (when None) or "min".
        metric: for a function: name of what it reports; "value" when None.
        start: for a function: values for trial 0, which then runs over all steps as the baseline.
        trial_timeout: seconds that a trial may be silent (a function: without a report) before its worker is killed
            and the trial counts as failed.
        constraints: functions of a trial's values by path or name (fields that it leaves alone included): True, or a
            number of at most 0, where they may be trained. Checked before a trial begins.
        deterministic: the same trials and decisions with the same seed, on any number of workers of any speed and
            after any interruption: they follow a virtual clock, and faster workers wait for their turn. A budget only
            cuts the study off.
        on: "ray" or "ray://host:10001": workers are actors on a Ray cluster, as many as it holds when `workers` is
            None; all its nodes must see the folder. None: processes on this machine.
        resources: of each worker on Ray: num_cpus (1 unless told), num_gpus, memory, resources.

    Returns:
        The study. After Ctrl-C it holds what was found so far, and the same call goes on.

    Raises:
        LuthierError: task, recipe, function, space or settings do not fit; a function cannot be sent to workers.
        StudyError: the folder holds another study, is in use, damaged or not writable; nothing succeeded at all.
        KeyboardInterrupt: on a second Ctrl-C; SystemExit(143) after SIGTERM. Both leave a study to go on with.
    """
    origin = time.monotonic()
    check_numbers(trials, workers, repeats, seed)
    timeout_s = None if trial_timeout is None else seconds(trial_timeout)
    budget_s = None if budget is None else seconds(budget)
    if isinstance(sampler, str) and sampler not in (AUTO, *SAMPLERS):
        raise unknown("sampler", sampler, (AUTO, *SAMPLERS))
    if strategy not in STRATEGIES:
        raise unknown("strategy", strategy, STRATEGIES)
    if on is None and resources is not None:
        raise LuthierError("resources are for workers on Ray: add on='ray', or leave them out")
    if not isinstance(constraints, (list, tuple)) or not all(map(callable, constraints)):
        raise LuthierError(f"constraints must be a list of functions of a trial's values, got {constraints!r}")
    if trials is None and budget_s is None:
        trials = DEFAULT_TRIALS
    searched = searched_for(task, recipe, space, groups, seed, steps, metric, direction, start)
    repeats = searched.repeats if repeats is None else repeats
    plan = Plan(
        arms=arms(searched.groups, searched.space),
        trials=trials,
        budget_s=budget_s,
        workers=workers or n_cores(),
        seed=seed,
        repeats=repeats,
        strategy=strategy,
        epochs=searched.epochs,
        baseline=searched.start_values is not None,
        closing_s=searched.closing_s,
        virtual=VIRTUAL_WORKERS if deterministic else None,
    )
    description = {
        **searched.description,
        "name": searched.name,
        "space": space_to_json(searched.space),
        "groups": None if searched.groups is None else plan.arms,
        "seed": seed,
        "virtual": plan.virtual,
    }
    settings = {
        "sampler": sampler_label(sampler),
        "strategy": strategy,
        "trials": trials,
        "budget_s": budget_s,
        "workers": plan.workers,
        "seed": seed,
        "repeats": repeats,
        "reference": searched.reference,
        "constraints": [getattr(each, "__name__", repr(each)) for each in constraints],
    }
    path = Path(folder) if folder is not None else Path("studies") / searched.name
    ledger = open_ledger(path, description, resume, storage)
    pool: Workers | None = None
    try:
        grace_s = _GRACE_S if is_function(task) else math.inf  # a recipe's training hears after each step
        times = {"timeout_s": timeout_s, "grace_s": grace_s}
        if on is None:
            pool = hired(path, searched, plan.workers, **times)
        else:
            pool = hired_on_ray(path, searched, workers, on, resources, **times)
        plan = replace(plan, workers=len(pool.all))
        threading.Thread(target=import_module, args=("scipy.special",)).start()  # for samplers, while workers start
        engine = Engine(Journal(ledger, path, console, origin), searched, plan, sampler, pool, constraints)
        with signals(engine) as received:
            engine.open(description, {**settings, "workers": plan.workers})
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


def searched_for(
    task: Any,
    recipe: Recipe | None,
    space: Space | None,
    groups: Mapping[str, Any] | None,
    seed: int,
    steps: int | None,
    metric: str | None,
    direction: str | None,
    start: Mapping[str, Any] | None,
) -> Searched:
    """What is searched over: recipes for a task, or the parameters of a function; see `tune`."""
    if not is_function(task):
        of_function = {"steps": steps, "metric": metric, "direction": direction, "start": start}
        if given := [name for name, value in of_function.items() if value is not None]:
            raise LuthierError(f"{', '.join(given)}: for a training function only; task and recipe say this already")
        return recipe_search(task, recipe, space, groups, seed)
    if recipe is not None:
        raise LuthierError("a training function takes no recipe: name its parameters in space={...}")
    return function_search(task, space, groups, steps, metric, direction, start)


def check_numbers(trials: int | None, workers: int | None, repeats: int | None, seed: int) -> None:
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
        if value is None and name != "seed":
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
