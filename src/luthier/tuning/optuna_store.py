"""Ended trials as Optuna trials in the study's own file, so that Optuna's dashboard and plots open it.

One `add_trial` when a search trial has ended, never before: nothing is left RUNNING there. The trial's number in the
study is a user attribute, which makes writing idempotent: what a crash left out is added when the study is opened.
"""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from luthier.tuning.ledger import StudyError, clear_errors, database
from luthier.tuning.samplers import frozen_trial, quiet
from luthier.tuning.space import Space
from luthier.tuning.state import State, Trial

NUMBER = "luthier_number"


class OptunaStore:
    """The Optuna study inside a study's database.

    Args:
        folder: of the study.
        name: of the Optuna study.
        direction: "max" or "min".
    """

    def __init__(self, folder: Path, name: str, direction: str) -> None:
        import optuna
        import sqlalchemy

        self.path = database(folder)
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self._storage = optuna.storages.RDBStorage(url(folder), engine_kwargs={"connect_args": {"timeout": 10}})
                self._study = optuna.create_study(
                    storage=self._storage,
                    study_name=name,
                    direction="maximize" if direction == "max" else "minimize",
                    load_if_exists=True,
                )
            except sqlalchemy.exc.SQLAlchemyError as error:
                raise StudyError(f"Optuna cannot store its trials in {self.path}: {error}") from None
        self._there = self._stored()

    def add(self, trials: Iterable[Trial], state: State, space: Space) -> None:
        """Store the ended search trials among these that are not there yet."""
        for trial in trials:
            if trial.ended and trial.kind == "search" and trial.number not in self._there:
                with quiet():
                    self._study.add_trial(as_optuna(trial, state, space))
                self._there.add(trial.number)

    def close(self) -> None:
        """Give the connections back."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _stored(self) -> set[int]:
        query = (
            "SELECT value_json FROM trial_user_attributes JOIN trials USING (trial_id) WHERE key = ? AND study_id = ?"
        )
        with clear_errors(self.path):
            connection = sqlite3.connect(self.path)
            try:
                rows = connection.execute(query, (NUMBER, self._study._study_id)).fetchall()
            finally:
                connection.close()
        return {int(value) for (value,) in rows}


def url(folder: Path) -> str:
    """The storage address for `optuna.load_study(study_name=..., storage=...)`."""
    return f"sqlite:///{database(folder).absolute()}"


def as_optuna(trial: Trial, state: State, space: Space) -> Any:
    """A finished trial as COMPLETE, an outranked one as PRUNED, a failed one as FAIL; readings by optimizer step."""
    from optuna.trial import TrialState

    kinds = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
    readings = {row["step"]: row[f"val_{state.metric}"] for row in trial.rows if f"val_{state.metric}" in row}
    notes = {NUMBER: trial.number, "arm": trial.arm, "reason": trial.reason, "time_s": trial.time_s}
    value = trial.value if trial.state in ("finished", "stopped") else None
    return frozen_trial(space, trial.values, kinds[trial.state], value, readings, notes)
