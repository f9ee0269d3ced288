"""Ended trials as Optuna trials in the study's own file, so that Optuna's dashboard and plots open it.

One `add_trial` when a search trial has ended, never before: nothing is left RUNNING there. The trial's number in the
study is a user attribute, which makes writing idempotent: what a crash left out is added when the study is opened.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from luthier.tuning.ledger import StudyError, clear_errors, database
from luthier.tuning.optuna_view import frozen_trial, quiet
from luthier.tuning.space import Space
from luthier.tuning.state import Trial

NUMBER = "luthier_number"


class OptunaStore:
    """The Optuna study inside a study's database, written by a thread of its own.

    Opening it (importing SQLAlchemy, making Optuna's tables) takes over a second and a trial some milliseconds, which
    would leave workers idle.

    Args:
        folder: of the study.
        name: of the Optuna study.
        direction: "max" or "min".
        space: ranges by path.
        metric: name of the metric.
    """

    def __init__(self, folder: Path, name: str, direction: str, space: Space, metric: str) -> None:
        self.path, self.name, self.direction = database(folder), name, direction
        self.space, self.metric = space, metric
        self._waiting: queue.SimpleQueue[Trial | None] = queue.SimpleQueue()
        self._told: set[int] = set()
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def add(self, trials: Iterable[Trial]) -> None:
        """Store the ended search trials among these that are not there yet; returns at once.

        Raises:
            StudyError: an earlier one could not be stored.
        """
        self._complain()
        for trial in trials:
            if trial.ended and trial.kind == "search" and trial.number not in self._told:
                self._told.add(trial.number)
                self._waiting.put(trial)
        if self._told and self._thread is None:
            self._thread = threading.Thread(target=self._write, name="optuna", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Wait until everything is stored.

        Raises:
            StudyError: something could not be stored.
        """
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None
        self._complain()

    def _complain(self) -> None:
        if self._error is not None:
            raise StudyError(f"Optuna's trials cannot be stored in {self.path}: {self._error}") from self._error

    def _write(self) -> None:
        try:
            storage, study = open_optuna(self.path, self.name, self.direction)
            there = stored_numbers(self.path, study._study_id)
            while (trial := self._waiting.get()) is not None:
                if trial.number not in there:
                    study.add_trial(as_optuna(trial, self.space, self.metric))
            storage.remove_session()
            storage.engine.dispose()
        except Exception as error:  # told by the next `add` or `close`
            self._error = error


def open_optuna(path: Path, name: str, direction: str) -> tuple[Any, Any]:
    """Optuna's storage and study in a database, made when missing."""
    import optuna

    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = optuna.storages.RDBStorage(url(path.parent), engine_kwargs={"connect_args": {"timeout": 30}})
        direction = "maximize" if direction == "max" else "minimize"
        study = optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)
    return storage, study


def stored_numbers(path: Path, study_id: int) -> set[int]:
    """Numbers of the trials that Optuna has."""
    query = "SELECT value_json FROM trial_user_attributes JOIN trials USING (trial_id) WHERE key = ? AND study_id = ?"
    with clear_errors(path), contextlib.closing(sqlite3.connect(path)) as connection:
        return {int(value) for (value,) in connection.execute(query, (NUMBER, study_id))}


def url(folder: Path) -> str:
    """The storage address for `optuna.load_study(study_name=..., storage=...)`."""
    return f"sqlite:///{database(folder).absolute()}"


def as_optuna(trial: Trial, space: Space, metric: str) -> Any:
    """A finished trial as COMPLETE, an outranked one as PRUNED, a failed one as FAIL; readings by optimizer step."""
    from optuna.trial import TrialState

    kinds = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
    readings = {row["step"]: row[f"val_{metric}"] for row in trial.rows if f"val_{metric}" in row}
    notes = {NUMBER: trial.number, "arm": trial.arm, "reason": trial.reason, "time_s": trial.time_s}
    scores = (trial.value,) if trial.value is not None and trial.state in ("finished", "stopped") else None
    return frozen_trial(space, trial.values, kinds[trial.state], scores, readings, notes)
