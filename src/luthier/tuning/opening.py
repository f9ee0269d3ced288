"""Opening a study's folder: claim it, refuse another study's, put there what the workers need."""

from __future__ import annotations

import copy
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.files import from_json, to_json
from luthier.tuning.folding import fold
from luthier.tuning.identity import EDITED, READS, changed_reads, differences, edits
from luthier.tuning.ledger import Ledger, StudyError
from luthier.tuning.recruits import Recruit
from luthier.tuning.workers import Workers

if TYPE_CHECKING:
    from luthier.tuning.searched import Searched
    from luthier.tuning.state import State


_CALLER = 5  # of `tune`, above `Call.run` and `open_ledger`


class StudyWarning(UserWarning):
    """A study goes on although something that it depends on has changed."""


def open_ledger(folder: Path, description: dict[str, Any], resume: bool | str, storage: str | None = None) -> Ledger:
    """The study's ledger, claimed, and checked to be of this very study.

    One of something else in which nothing was ever read, since all trials failed, begins anew as this one: whoever
    mends a mistake calls again.

    Args:
        folder: of the study.
        description: of the study that is asked for.
        resume: as for `tune`.
        storage: as for `tune`.

    Raises:
        StudyError: the folder holds a study of something else (says what differs), or one that is not to be resumed.

    Warns:
        StudyWarning: what the function reads beside its own code has changed.
    """
    ledger = Ledger(folder, storage=storage)
    try:
        state = fold(ledger.events(), folder)
        known, asked = state.description, from_json(to_json(description))
        if known and not resume:
            raise StudyError(f"{folder} already holds a study: choose another folder, or go on with it (resume=True)")
        if not known and any((folder / "trials").glob("*")):
            raise StudyError(
                f"{folder / 'trials'} holds trials whose study is gone: remove that folder, or choose another one for "
                "the study"
            )
        if known:
            _check_same(ledger, state, asked, resume == EDITED)
    except BaseException:
        ledger.close()
        raise
    return ledger


def _check_same(ledger: Ledger, state: State, asked: dict[str, Any], may_be_edited: bool) -> None:
    """Refuse another study's ledger, begin a worthless one anew, and note what has changed in the same one."""
    known, folder = state.description, state.folder
    changes, code, reads = differences(known, asked), edits(known, asked), changed_reads(known, asked)
    if (changes or (code and not may_be_edited)) and not _is_worthless(state):
        ways = "choose another folder, remove this one, or go back to what it was begun with"
        if not changes:
            ways += f"; or go on with resume={EDITED!r} (--edited), if trials before and after can be compared"
        raise StudyError(f"{folder} holds a study of something else ({'; '.join([*changes, *code])}): {ways}")
    if changes or (code and not may_be_edited):
        from luthier.tuning.optuna_store import forget

        forget(ledger.store, known["name"])
        shutil.rmtree(folder / "trials", ignore_errors=True)
        ledger.append("created", state.clock, asked)
    elif code or known["task"].get(READS) != asked["task"].get(READS):
        if reads:  # first: it may be made an error, and is to come again then
            warnings.warn(
                f"{', '.join(reads)}, which the function reads, changed since the last call of the study in {folder}: "
                "compare trials before and after with care",
                StudyWarning,
                stacklevel=_CALLER,
            )
        ledger.append("edited", state.clock, {"task": asked["task"]})


def _is_worthless(state: State) -> bool:
    """Whether no trial has a reading, or anything saved that could go on."""
    saved = (path for trial in state.trials for path in (trial.folder / "checkpoints").glob("*"))
    return "checkpoints" not in state.settings and not any(trial.rows for trial in state.trials) and not any(saved)


def hired(folder: Path, searched: Searched, count: int, recruits: list[Recruit], **more: Any) -> Workers:
    """Processes on this machine, and what they need."""
    ship_to_workers(folder, searched)
    return Workers(folder, count, searched.reference, recruits, searched.recipes, **more)


def hired_on_ray(
    folder: Path, searched: Searched, count: int | None, on: str, resources: Mapping[str, Any] | None, **more: Any
) -> Workers:
    """Actors on a Ray cluster, as many as it holds when no count is given. They get data with the task."""
    from luthier.tuning.ray_cluster import ray_workers

    _send_task_files()
    ship_to_workers(folder, searched, by_reference=False)
    return ray_workers(folder, count, on, resources, **more)


def _send_task_files() -> None:
    """Have the modules of task files sent whole: other nodes could not import them by their names."""
    import cloudpickle

    for name, module in list(sys.modules.items()):
        if name.startswith("luthier_task_"):
            cloudpickle.register_pickle_by_value(module)


def ship_to_workers(folder: Path, searched: Searched, by_reference: bool = True) -> None:
    """Put what the workers need into the study's folder."""
    from luthier.tuning.shipping import ship

    sent = copy.copy(searched)
    sent.reference = searched.reference if by_reference else None
    try:
        ship(folder / "workers" / "task", **sent.things())
    except OSError as error:
        raise StudyError(f"the study folder {folder} cannot be written: {error.strerror or error}") from None
