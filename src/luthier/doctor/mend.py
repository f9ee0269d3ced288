"""mend: diagnose, try the prescribed patches, keep what is shown to help, diagnose again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from luthier.doctor.findings import Diagnosis
from luthier.doctor.mending.book import builder_defaults
from luthier.doctor.mending.result import Ending, Mended, Step
from luthier.doctor.mending.rounds import Rounds
from luthier.doctor.mending.trials import Trials
from luthier.errors import LuthierError
from luthier.recipe import Recipe
from luthier.tasks import as_subject

if TYPE_CHECKING:
    from luthier.record import Record
    from luthier.task import Task
    from luthier.tasks import Subject

DEFAULT_TRIALS = 40


class Listener(Protocol):
    """Told how a mending goes."""

    def began(self, task: str, recipe: Recipe, limit: int, folder: Path) -> None:
        """Before the first training."""

    def diagnosed(self, round_number: int, diagnosis: Diagnosis, metric: str, value: float | None) -> None:
        """The recipe so far was trained and diagnosed."""

    def tried(self, step: Step, metric: str) -> None:
        """A patch was tried, and kept or dropped."""

    def ended(self, mended: Mended) -> None:
        """The result, with the test reading if there was one."""


class Silent:
    """A listener that says nothing."""

    def began(self, task: str, recipe: Recipe, limit: int, folder: Path) -> None:
        """Nothing."""

    def diagnosed(self, round_number: int, diagnosis: Diagnosis, metric: str, value: float | None) -> None:
        """Nothing."""

    def tried(self, step: Step, metric: str) -> None:
        """Nothing."""

    def ended(self, mended: Mended) -> None:
        """Nothing."""


def mend(
    task: Task | Subject | str,
    recipe: Recipe | None = None,
    *,
    trials: int = DEFAULT_TRIALS,
    budget: str | float | None = None,
    seeds: int = 2,
    folder: str | Path | None = None,
    console: bool | Listener = True,
    until_healthy: bool = False,
    patience: int = 10,
    test: bool = False,
    diagnose: Callable[[Record], Diagnosis] | None = None,
) -> Mended:
    """Cure a training: diagnose it, try what the findings prescribe, keep what helps beyond noise, diagnose again.

    Candidates are trained with one seed each, on validation data only. What looks good is trained with further seeds,
    those of the recipe so far paired with its own; it is kept when the mean gain is beyond noise. Settings that work
    for most networks are tried early, after the root's first remedy; what else the book recommends comes when the
    remedies are used up.

    Args:
        task: a Task, a Subject, or a reference: a built-in name or `path/to/file.py:function`.
        recipe: what to mend; that of the subject, else the default recipe, when None.
        trials: budget in optimizer steps, as so many trainings of the starting recipe; diagnosis, repeats and proofs
            count.
        budget: time in all as well: seconds, or text such as "90s", "5min". A training that has begun is ended.
        seeds: trainings (with the recipe's seed and those after it) that a kept patch rests on; at least 2.
        folder: where everything goes; None makes a new one under `runs`.
        console: True prints the steps on the terminal; or a listener of your own.
        until_healthy: stop at the first healthy diagnosis; False goes on with what the book recommends.
        patience: patches that are tried on a healthy training, none of them helping, before it is left as it is.
        test: measure the recipe before and after on the test data at the end; test data can be opened once only.
        diagnose: a doctor of your own; None is Luthier's.

    Returns:
        The mended recipe, its record, and every step with its effect.

    Raises:
        LuthierError: task, recipe or settings do not fit, or the starting recipe cannot be built.
    """
    began = time.monotonic()
    _check(trials=(trials, 2), seeds=(seeds, 2), patience=(patience, 1))
    subject = as_subject(task, "expected a Task, a Subject or a reference such as 'mnist-overfit'")
    if test and subject.task.test is None:
        raise LuthierError("test=True needs a task with test data: pass Task(test=...) or leave test out")
    start = explicit(subject.task, recipe or subject.recipe)
    path = _new_folder(folder, subject.task)
    room = Trials(subject.task, path / "trials", 0, _seconds(budget))
    room.limit = trials * room.cost(start)
    listener = _listener(console)
    listener.began(subject.task.name, start, room.limit, path)
    rounds = Rounds(room, start, seeds, diagnose or diagnose_record, listener, 0 if until_healthy else patience)
    ended = rounds.run()
    mended = _result(rounds, path, ended, began, test)
    mended.save()
    listener.ended(mended)
    return mended


def _result(rounds: Rounds, path: Path, ended: Ending, began: float, test: bool) -> Mended:
    trials, metric, seed = rounds.trials, rounds.metric, rounds.seeds[0]
    before, after = (rounds.values(recipe, ended != "interrupted") for recipe in (rounds.start, rounds.recipe))
    trials.forget_weights(frozenset({rounds.start.key(), rounds.recipe.key()}))
    first, record = (_record(trials, recipe, seed) for recipe in (rounds.start, rounds.recipe))
    return Mended(
        task=trials.task.name,
        metric=metric.name,
        direction=metric.direction,
        folder=path,
        start=rounds.start,
        recipe=rounds.recipe,
        first=first,
        record=record,
        steps=tuple(rounds.steps),
        before=rounds.before,
        after=rounds.after,
        values_before=before,
        values_after=after,
        spent=trials.spent,
        limit=trials.limit,
        ended=ended,
        test=_read_test(trials.task, first, record) if test and ended != "interrupted" else None,
        elapsed_s=time.monotonic() - began,
    )


def _record(trials: Trials, recipe: Recipe, seed: int) -> Record:
    trial = trials.known(recipe, seed)
    if trial is None or trial.record is None:
        raise LuthierError("the mending was interrupted before its first training had ended: nothing was found yet")
    return trial.record


def _read_test(task: Task, first: Record, record: Record) -> dict[str, dict[str, float]]:
    """Open the test data once, for the recipe before (when it left weights) and after."""
    from luthier.fitting import evaluate_test

    sides = {"before": first, "after": record}
    weighed = {side: item for side, item in sides.items() if (item.checkpoints / "best.safetensors").exists()}
    distinct = {item.path: item for item in weighed.values()}
    readings = dict(zip(distinct, evaluate_test(task, list(distinct.values())), strict=True))
    return {side: readings[item.path] for side, item in weighed.items()}


def diagnose_record(record: Record) -> Diagnosis:
    """Luthier's own diagnosis of a record, which keeps it."""
    diagnosis = record.diagnose()
    record.write_findings(diagnosis)
    return diagnosis


def explicit(task: Task, recipe: Recipe) -> Recipe:
    """The recipe with the model builder's default numbers written out, so that patches can scale them."""
    numbers = {name: value for name, value in builder_defaults(task).items() if not isinstance(value, str)}
    missing = {name: value for name, value in numbers.items() if name not in recipe.model}
    return recipe.replace({"model": {**missing, **recipe.model}}) if missing else recipe


def _check(**settings: tuple[int, int]) -> None:
    for name, (value, least) in settings.items():
        if value < least:
            raise LuthierError(f"{name} must be at least {least}, got {value}")


def _new_folder(folder: str | Path | None, task: Task) -> Path:
    from luthier.fitting import new_folder

    path = Path(folder).expanduser() if folder is not None else new_folder(f"mend-{task.name}")
    if (path / "mend.json").exists() or (path / "trials").exists():
        raise LuthierError(f"{path} already holds a mending: choose another folder")
    return path


def _seconds(budget: str | float | None) -> float | None:
    if budget is None:
        return None
    from luthier.tuning.budgets import seconds

    return seconds(budget)


def _listener(console: bool | Listener) -> Listener:
    if console is False:
        return Silent()
    if console is not True:
        return console
    from luthier.show.mend_terminal import MendConsole

    return MendConsole()
