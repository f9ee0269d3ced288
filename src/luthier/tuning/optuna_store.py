"""Ended trials as Optuna trials in the study's own database, so that Optuna's dashboard and plots open it.

A trial is written when it has ended, never before: nothing is left RUNNING there. The trial's number in the
study is a user attribute, which makes writing idempotent: what a crash left out is added when the study is opened. One
that a later call went on with is written anew, in its place, when it has ended again, for another reason.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from luthier.files import to_json
from luthier.tuning.locating import locate
from luthier.tuning.objectives import RESULT, Objective
from luthier.tuning.optuna_view import DIRECTIONS, frozen_trial, quiet
from luthier.tuning.ranges import Choice, Range
from luthier.tuning.space import Space
from luthier.tuning.state import Trial
from luthier.tuning.store import Database, Store, StudyError

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from sqlalchemy import Connection

NUMBER = "luthier_number"
_BELONGING = ("TrialValueModel", "TrialParamModel", "TrialIntermediateValueModel", "TrialUserAttributeModel")
_PATIENCE_S = 60.0
_FIRST_S = 3.0

_Ended: TypeAlias = "tuple[Trial, datetime]"


class OptunaStore:
    """The Optuna study inside a study's database, written by a thread of its own.

    Opening it (importing SQLAlchemy, making Optuna's tables) takes over a second and a trial some milliseconds, which
    would leave workers idle. It begins some seconds after the first trial has ended: a short study is written at once
    when it is over, and not slowed down before.

    Args:
        store: of the study.
        name: of the Optuna study where the study is alone; in a shared database it has the study's own name.
        objectives: of the study.
        space: ranges by path.
    """

    def __init__(self, store: Store, name: str, objectives: Sequence[Objective], space: Space) -> None:
        self.database, self.where, self.name = store.database, store.where, store.study or name
        self.objectives, self.space = objectives, space
        self._waiting: queue.SimpleQueue[_Ended | None] = queue.SimpleQueue()
        self._told: set[int] = set()
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._closing, self._left = threading.Event(), False

    def add(self, trials: Iterable[Trial]) -> None:
        """Store the ended search trials among these that are not there yet; returns at once.

        Raises:
            StudyError: an earlier one could not be stored.
        """
        self._complain()
        for trial in trials:
            if trial.ended and trial.kind == "search" and trial.number not in self._told:
                self._told.add(trial.number)
                self._waiting.put((trial, datetime.now()))  # the writer comes later
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
            self._closing.set()
            self._join(self._thread)
            self._thread = None
        self._complain()

    def __enter__(self) -> OptunaStore:
        return self

    def __exit__(self, *_: object) -> None:
        """Store nothing more: after an error or an interrupt the next call stores what is missing."""
        self._left = True
        self._closing.set()
        self._waiting.put(None)

    def _join(self, thread: threading.Thread) -> None:
        """Wait as long as trials are being stored."""
        while thread.is_alive():
            waiting = self._waiting.qsize()
            thread.join(_PATIENCE_S)
            if thread.is_alive() and self._waiting.qsize() == waiting:
                raise StudyError(f"Optuna's trials cannot be stored in {self.where}: no answer for {_PATIENCE_S:.0f} s")

    def _complain(self) -> None:
        if self._error is not None:
            raise StudyError(f"Optuna's trials cannot be stored in {self.where}: {self._error}") from self._error

    def _write(self) -> None:
        self._closing.wait(_FIRST_S)
        if self._left:
            return
        try:
            with contextlib.closing(Opened(self.database, self.name, self.objectives)) as optuna:
                while (fresh := self._next_batch()) and not self._left:
                    ended = [each for each in fresh if each is not None]
                    optuna.add(
                        [
                            as_optuna(trial, self.space, self.objectives, when)
                            for trial, when in ended
                            if optuna.reasons.get(trial.number) != trial.reason
                        ]
                    )
                    if fresh[-1] is None:
                        break
        except Exception as error:  # told by the next `add` or `close`
            self._error = error

    def _next_batch(self) -> list[_Ended | None]:
        """All that waits, at least one; None at the end: nothing more will come."""
        batch = [self._waiting.get()]
        while batch[-1] is not None and not self._waiting.empty():
            batch.append(self._waiting.get())
        return batch


def forget(store: Store, name: str) -> None:
    """Remove a study from Optuna's tables, if it is there; arguments as for `OptunaStore`."""
    import optuna

    with contextlib.suppress(KeyError), quiet():
        optuna.delete_study(study_name=store.study or name, storage=store.database.optuna_url)


class Opened:
    """Optuna's study in a database, made when missing.

    Args:
        database: with or without Optuna's tables.
        name: of the study.
        objectives: several are named there too.

    Attributes:
        keys: of our trials there, by number.
        reasons: why those ended that were there when it was opened.
    """

    def __init__(self, database: Database, name: str, objectives: Sequence[Objective]) -> None:
        import optuna

        directions = [DIRECTIONS[objective.direction] for objective in objectives]
        options = {"connect_args": database.patience}
        with database.setting_up(), quiet():
            self.storage = optuna.storages.RDBStorage(database.optuna_url, engine_kwargs=options)
            self.study = optuna.create_study(
                storage=self.storage, study_name=name, directions=directions, load_if_exists=True
            )
        if len(objectives) > 1:  # as `Study.set_metric_names`, which warns that it is experimental
            names = [objective.name for objective in objectives]
            self.storage.set_study_system_attr(self.study._study_id, "study:metric_names", names)
        self._check_own(directions)
        noted = self._noted("reason")
        self.keys: dict[int, int] = {number: key for key, number in self._noted(NUMBER).items()}
        self.reasons: dict[int, str] = {number: noted[key] for number, key in self.keys.items()}

    def _check_own(self, directions: list[str]) -> None:
        """Whether the study is one of ours: in a shared database somebody may have begun one of this name with Optuna.

        Raises:
            StudyError: it is not.
        """
        known = [direction.name.lower() for direction in self.study.directions]
        others = [] if self._noted(NUMBER) else self.study.get_trials(deepcopy=False)
        if known != directions or others:
            raise StudyError(
                f"the database has another study of Optuna's with the name {self.study.study_name!r} "
                f"({', '.join(known)}; {len(others)} trials): choose another name for the study's folder"
            )

    def _noted(self, name: str) -> dict[int, Any]:
        """A user attribute of all trials, by their keys."""
        from sqlalchemy import text

        query = (
            "SELECT trial_id, value_json FROM trial_user_attributes JOIN trials USING (trial_id) "
            "WHERE key = :key AND study_id = :study"
        )
        with self.storage.engine.connect() as connection:
            rows = connection.execute(text(query), {"key": name, "study": self.study._study_id})
            return {key: json.loads(value) for key, value in rows}

    def add(self, trials: Sequence[FrozenTrial]) -> None:
        """Store ended trials in one transaction: a hundredth of what as many `Study.add_trial` cost.

        The rows are those that it writes, in Optuna's own tables; a trial that is there already keeps its place.
        """
        from optuna.storages._rdb.models import TrialModel
        from sqlalchemy import func, insert, select

        rows: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
        with self.storage.engine.begin() as connection:
            there = select(func.count()).select_from(TrialModel).where(TrialModel.study_id == self.study._study_id)
            fresh = itertools.count(connection.execute(there).scalar_one())
            for trial in trials:
                key = self._place(connection, trial, fresh)
                for table, content in rows_of(trial):
                    rows[table].append({"trial_id": key, **content})
            for table, contents in rows.items():
                connection.execute(insert(table), contents)

    def _place(self, connection: Connection, trial: FrozenTrial, fresh: Iterator[int]) -> int:
        """Write a trial's own row, without those that belong to it; returns its key."""
        from optuna.storages._rdb import models
        from sqlalchemy import delete, insert, update

        table, number = models.TrialModel, trial.user_attrs[NUMBER]
        row = {
            "state": trial.state,
            "datetime_start": trial.datetime_start,
            "datetime_complete": trial.datetime_complete,
        }
        if (known := self.keys.get(number)) is not None:
            connection.execute(update(table).where(table.trial_id == known).values(**row))
            for name in _BELONGING:
                part = getattr(models, name)
                connection.execute(delete(part).where(part.trial_id == known))
            return known
        row |= {"number": next(fresh), "study_id": self.study._study_id}
        made: Any = connection.execute(insert(table).values(**row)).inserted_primary_key
        return self.keys.setdefault(number, made[0])

    def close(self) -> None:
        """Leave the database."""
        self.storage.remove_session()
        self.storage.engine.dispose()


def rows_of(trial: FrozenTrial) -> Iterator[tuple[Any, dict[str, Any]]]:
    """What Optuna's tables hold of a trial besides its state: (table, row)."""
    from optuna.distributions import distribution_to_json
    from optuna.storages._rdb import models

    for objective, value in enumerate(trial.values or ()):
        stored, kind = models.TrialValueModel.value_to_stored_repr(value)
        yield models.TrialValueModel, {"objective": objective, "value": stored, "value_type": kind}
    for name, value in trial.params.items():
        range_ = trial.distributions[name]
        held = {"param_value": range_.to_internal_repr(value), "distribution_json": distribution_to_json(range_)}
        yield models.TrialParamModel, {"param_name": name, **held}
    for step, value in trial.intermediate_values.items():
        stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
        held = {"intermediate_value": stored, "intermediate_value_type": kind}
        yield models.TrialIntermediateValueModel, {"step": step, **held}
    for name, value in trial.user_attrs.items():
        yield models.TrialUserAttributeModel, {"key": name, "value_json": json.dumps(value)}


def url(folder: Path, storage: str | None = None) -> str:
    """The storage address for `optuna.load_study(study_name=..., storage=...)`; arguments as for `locate`."""
    return locate(folder, storage).database.optuna_url


def as_optuna(trial: Trial, space: Space, objectives: Sequence[Objective], ended: datetime) -> Any:
    """A finished trial as COMPLETE, an outranked one as PRUNED, a failed one as FAIL.

    Its intermediate values are the readings of the first objective by optimizer step; it ended when it is said to, and
    trained all the time before, as far as Optuna knows.
    """
    from optuna.trial import TrialState

    kinds = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
    column = objectives[0].column
    readings = {row["step"]: row[column] for row in trial.rows if column in row and row["kind"] != RESULT}
    notes = {NUMBER: trial.number, "arm": trial.arm, "reason": trial.reason, "time_s": trial.time_s}
    scores = (tuple(trial.scores.values()) or None) if trial.state in ("finished", "stopped") else None
    held = {path: stretched(space[path], value) for path, value in trial.values.items() if path in space}
    values = {path: trial.values[path] for path, range_ in held.items() if range_ is not None}
    if others := {path: value for path, value in trial.values.items() if path not in values}:
        notes["also"] = to_json(others)  # what the doctor asked for beyond the space
    ranges = {path: range_ for path, range_ in held.items() if range_ is not None}
    stored = frozen_trial(ranges, values, kinds[trial.state], scores, readings, notes)
    stored.datetime_complete, stored.datetime_start = ended, ended - timedelta(seconds=trial.time_s)
    return stored


def stretched(range_: Range, value: Any) -> Range | None:
    """The range, wide enough for a number that lies outside; None for what no range of its kind holds."""
    if range_.contains(value):
        return range_
    if isinstance(range_, Choice) or isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if range_.log and value <= 0:
        return None
    wider: Range = replace(range_, low=min(range_.low, value), high=max(range_.high, value))  # type: ignore[arg-type]
    return wider if wider.contains(value) else None
