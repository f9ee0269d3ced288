"""tune: search for a better recipe, prove it with more seeds, measure it once on test data; or tune any function."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import LuthierError
from luthier.tuning.asking import Asked, searched_for
from luthier.tuning.calls import Call
from luthier.tuning.function_search import is_function
from luthier.tuning.identity import EDITED
from luthier.tuning.journal import Console
from luthier.tuning.recruits import recruited
from luthier.tuning.study import Study

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from luthier.recipe import Recipe
    from luthier.task import Task
    from luthier.tasks import Subject
    from luthier.tuning.objectives import Objectives
    from luthier.tuning.ranges import Space
    from luthier.tuning.views import Sampler


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
    seed: int | None = None,
    repeats: int | None = None,
    resume: bool | str = True,
    groups: Mapping[str, Any] | None = None,
    console: bool | Console = True,
    test: bool = True,
    steps: int | None = None,
    direction: str | None = None,
    metric: str | None = None,
    objectives: Objectives | None = None,
    start: Mapping[str, Any] | None = None,
    trial_timeout: float | None = None,
    deterministic: bool = False,
    constraints: Sequence[Callable[[dict[str, Any]], bool | float]] = (),
    on: str | None = None,
    resources: Mapping[str, Any] | None = None,
    checkpoints: str | None = None,
    first: Sequence[Mapping[str, Any]] = (),
    target: float | None = None,
) -> Study:
    """Search for a better recipe than the given one, or for the best values of a training function.

    Trial 0 is the given recipe, over its full budget. At the end the best other trial and the baseline are trained
    with the same further seeds and compared, then the test data are read once for both.

    A training function is called in worker processes with one argument, the trial: `trial.params`, `trial.seed`,
    `trial.report(value, step)`, `trial.save(state)`, `trial.restore()`, `trial.watch(model, optimizer)`,
    `trial.folder`. It may be defined in a script, a notebook, another function or a module. One that restores and
    saves is paused at the strategy's rungs and goes on later, in any worker; of the others the unpromising ones end
    there. A trial counts by its best report, or by the number that the function returns, if it returns one.

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
        budget: in all, earlier calls and the repeats included: a time (seconds, or text such as "90s", "5min", "1h"),
            optimizer steps ("20000 steps"; for a function the steps that it reports) or, for a task, epochs ("300
            epochs": examples seen over training examples). When the time is over, what is under way pauses (a
            function at its next report, for which it has ten seconds), and a larger budget goes on with it; in steps or
            epochs nothing begins that does not fit.
        sampler: "auto" (known-good settings, for a function without `start` the middle of its space, without what may
            be 0, as it is and with the largest network; every third trial what the doctor asks for; then "tpe"), "tpe",
            "gp", "cmaes", "nsgaii", "prior" (around the baseline), "sobol", "halton", "random" or "grid"; one of
            Optuna's sampler objects; or a function from a `View` to values.
        strategy: "auto" (patient halving), "halving", "hyperband", "one-epoch-top-k" (most trials see a part of their
            training only) or "full".
        workers: processes; one per core when None.
        folder: of the study; `studies/<name of the task>` when None. A second call goes on where the first ended.
        storage: where the study is kept: a SQLite file in the folder when None or "sqlite"; or a database that several
            studies, and studies of Optuna's, share under the names of their folders: a file, `sqlite:///all.db`, or a
            PostgreSQL server's, `postgresql://user@host/database`. A second call finds it by the folder.
        seed: of the search trials; repeats take the seeds after it. That of the recipe, for a function 0, when None.
        repeats: further seeds that winner and baseline are trained with. The search's own seed does not count: the
            winner's reading with it is the best of many, and so too good. 0: none. 3 for a task and 0 for a function
            when None.
        resume: False refuses a folder that holds a study. "edited" goes on with one though the code of the function or
            of the model's builder has changed since, which else is refused: trials before and after are compared. (Of
            changed values of the function's module and changed code of other files that it names a warning tells.)
        groups: name -> fields that are tuned together, the others kept at the baseline; trials go to each in turn.
        console: show on the terminal how it goes; or a listener of your own, with the methods of `journal.Console`.
        test: read the test data at the end, if the task has any.
        steps: for a function: the last step that it reports. When None, trials run whole until one has finished, which
            shows how long they are; only then can others be cut short.
        direction: for a function: "max" (when None) or "min".
        metric: for a function: name of what it reports; "value" when None.
        objectives: several at once, the first of which leads: it decides which trial is the best, what winner and
            baseline are compared in, and which weights are kept. Early stops rank by all (front by front), and
            `study.front` holds the finished trials that no other one beats in all. For a task its metric first, then
            any of "loss", "parameters" (trainable ones), "latency_ms" (of one example) and "train_time_s":
            ["accuracy", "parameters"]. For a function with directions, {"accuracy": "max", "latency": "min"}, and it
            reports a dict of them; "train_time_s" is known without.
        start: for a function: values for trial 0, which then runs over all steps as the baseline.
        trial_timeout: seconds that a trial may be silent (a function: without a report) before its worker is killed
            and the trial counts as failed.
        constraints: functions of a trial's values by path or name (fields that it leaves alone included): True, or a
            number of at most 0, where they may be trained. Checked before a trial begins.
        deterministic: the same trials and decisions with the same seed, on any number of workers of any speed and
            after any interruption: they follow a virtual clock, and faster workers wait for their turn. A budget of
            steps or epochs decides the same each time; one of time cuts the study off wherever it stands then, and what
            a later call makes of that need not be what would have come without the cut. A function's random numbers
            (Python, NumPy, torch) are seeded with `trial.seed` at each call.
        on: "ray" or "ray://host:10001": workers are actors on a Ray cluster, as many as it holds when `workers` is
            None; all its nodes must see the folder, unless `checkpoints` is given. None: processes on this machine.
        resources: of each worker on Ray: num_cpus (1 unless told), num_gpus, memory, resources.
        checkpoints: for a cluster whose nodes do not share the folder: address of storage that all reach, such as
            "s3://bucket/mnist" (any that fsspec knows). What trials save is carried through it, and comes to the folder
            when they end. The study keeps to it, also in calls that do not name it.
        first: configurations to try before any other, whatever the sampler, such as [{"lr": 0.1}]: values of the space
            by path or name. What they leave out is as in the baseline (for a function: in `start`, else in the middle
            of its range). They count as trials; those that the study has are not tried again.
        target: a value of the metric (of several objectives the first) that is good enough: the search ends when a
            trial that trained to its end has read it. A later call with another target goes on.

    Returns:
        The study. After Ctrl-C it holds what was found so far, and the same call goes on.

    Raises:
        LuthierError: task, recipe, function, space or settings do not fit; a function cannot be sent to workers; a
            package for the address of `checkpoints` is missing.
        StudyError: the folder holds another study, is in use, damaged or not writable; `checkpoints` cannot be reached
            or written; nothing succeeded at all.
        KeyboardInterrupt: on a second Ctrl-C; SystemExit(143) after SIGTERM. Both leave a study to go on with.
    """
    origin = time.monotonic()
    if not isinstance(resume, bool) and resume != EDITED:
        raise LuthierError(f"resume must be True, False or {EDITED!r}, got {resume!r}")
    asked = Asked(
        trials=trials,
        budget=budget,
        sampler=sampler,
        strategy=strategy,
        workers=workers,
        seed=seed,
        repeats=repeats,
        trial_timeout=trial_timeout,
        deterministic=deterministic,
        constraints=constraints,
        on=on,
        resources=resources,
        checkpoints=checkpoints,
        first=first,
        target=target,
    )
    try:
        with recruited(asked.processes, recipes=not is_function(task)) as recruits:
            searched = searched_for(task, recipe, space, groups, seed, steps, metric, direction, start, objectives)
            path = Path(folder).expanduser() if folder is not None else Path("studies") / searched.name
            return Call(asked, searched, path, storage, resume, _listener(console), test, origin, recruits).run()
    except KeyboardInterrupt as interrupt:
        raise interrupt.with_traceback(None) from None  # where it struck in here tells nobody anything


def _listener(console: bool | Console) -> Console | None:
    if not console:
        return None
    if console is not True:
        if not isinstance(console, Console):
            raise LuthierError(f"console must be True, False or a listener as `journal.Console` is, got {console!r}")
        return console
    from luthier.show.tune_terminal import TuneConsole

    return TuneConsole()
