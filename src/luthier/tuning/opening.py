"""Opening a study's folder: claim it, refuse another study's, put there what the workers need."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.files import from_json, to_json
from luthier.tuning.folding import fold
from luthier.tuning.ledger import Ledger, StudyError
from luthier.tuning.recruits import Recruit
from luthier.tuning.workers import Workers

if TYPE_CHECKING:
    from luthier.tuning.searched import Searched
    from luthier.tuning.state import State


_CODE = {
    "function": "the code of the function has changed",
    "arguments": "the arguments of the function, or what it closes over, have changed",
    "model_source": "the code of the model's builder has changed",
    "model_arguments": "the arguments of the model's builder, or what it closes over, have changed",
}
"""What is said of hashes in a study's description."""


def open_ledger(folder: Path, description: dict[str, Any], resume: bool, storage: str | None = None) -> Ledger:
    """The study's ledger, claimed, and checked to be of this very study.

    One of something else in which nothing was ever read, since all trials failed, begins anew as this one: whoever
    mends a mistake calls again.

    Raises:
        StudyError: the folder holds a study of something else (says what differs), or one that is not to be resumed.
    """
    ledger = Ledger(folder, storage=storage)
    try:
        state = fold(ledger.events(), folder)
        known = state.description
        if known and not resume:
            raise StudyError(f"{folder} already holds a study: choose another folder, or go on with it (resume=True)")
        if not known and any((folder / "trials").glob("*")):
            raise StudyError(
                f"{folder / 'trials'} holds trials whose study is gone: remove that folder, or choose another one for "
                "the study"
            )
        if known and (changes := differences(known, asked := from_json(to_json(description)))):
            if not _is_worthless(state):
                raise StudyError(
                    f"{folder} holds a study of something else ({'; '.join(changes)}): "
                    "choose another folder, remove this one, or go back to what it was begun with"
                )
            from luthier.tuning.optuna_store import forget

            forget(ledger.store, known["name"])
            shutil.rmtree(folder / "trials", ignore_errors=True)
            ledger.append("created", state.clock, asked)
    except BaseException:
        ledger.close()
        raise
    return ledger


def _is_worthless(state: State) -> bool:
    """Whether no trial has a reading, or anything saved that could go on."""
    saved = (path for trial in state.trials for path in (trial.folder / "checkpoints").glob("*"))
    return "checkpoints" not in state.settings and not any(trial.rows for trial in state.trials) and not any(saved)


def differences(known: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two descriptions of studies, in words."""
    changes = []
    if known["recipe"] is not None and now["recipe"] is not None:
        from luthier.recipe import Recipe

        old, new = Recipe.from_json(known["recipe"]), Recipe.from_json(now["recipe"])
        for path, (before, after) in old.differences(new).items():
            changes.append(f"recipe {path}: {before!r} there, {after!r} now")
    for part in ("task", "space"):
        for name in dict.fromkeys([*known[part], *now[part]]):
            before, after = known[part].get(name), now[part].get(name)
            if before != after:
                told = f"{part} {name}: {_short(before)} there, {_short(after)} now"
                changes.append(_CODE.get(name, told) if part == "task" and None not in (before, after) else told)
    for part in ("groups", "seed", "start", "virtual", "objectives"):
        if known.get(part) != now.get(part) and not any(change.startswith(f"recipe {part}") for change in changes):
            changes.append(f"{part}: {known.get(part)!r} there, {now.get(part)!r} now")
    return changes


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(str(item) for item in value.values()) or "none"
    return "absent" if value is None else repr(value)


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
