"""luthier.check: the organs in order, within the time."""

from __future__ import annotations

import time

from luthier.doctor.checkup.card import HealthCard, Organ
from luthier.doctor.checkup.organs import ORGANS
from luthier.doctor.checkup.trials import Trials
from luthier.errors import LuthierError, NonFiniteLoss
from luthier.recipe import Recipe
from luthier.task import Task


def check(task: Task, recipe: Recipe | None = None, *, limit_s: float = 60.0) -> HealthCard:
    """Examine a task before a long training: model, loss, gradients, data, labels, learning rate, speed.

    Runs a few short trainings in a temporary folder; test data stays sealed.

    Args:
        task: what will be trained.
        recipe: how; the default recipe when None.
        limit_s: seconds for all of it, above 0; what does not fit "could not look".

    Returns:
        The health card: for each organ green, amber, red or "could not look", with reason and remedy.

    Raises:
        LuthierError: the task does not train at all (a batch that the model refuses, for example), or wrong arguments.
    """
    if not isinstance(task, Task):
        raise LuthierError(f"expected a luthier.Task, got {task!r}; built-in ones: luthier.tasks.load('mnist').task")
    if not limit_s > 0:
        raise LuthierError(f"expected limit_s above 0 (seconds), got {limit_s!r}")
    began = time.monotonic()
    trials = Trials(task, Recipe() if recipe is None else recipe, limit_s)
    broken = _broken(trials)
    organs = (broken,) if broken else tuple(_look(name, trials) for name in ORGANS)
    return HealthCard(task.name, organs, _suggested(trials, broken), time.monotonic() - began)


def _broken(trials: Trials) -> Organ | None:
    """A training that breaks off in its first steps ends the examination."""
    try:
        _ = trials.first
    except NonFiniteLoss as error:
        return Organ("first steps", "red", str(error), "lower the lr, clip gradients, check inputs for extreme values")
    return None


def _look(name: str, trials: Trials) -> Organ:
    try:
        return ORGANS[name](trials)
    except NonFiniteLoss as error:
        return Organ(name, "red", str(error), "lower the lr, clip gradients, check inputs for extreme values")
    except LuthierError as error:
        return Organ(name, "could not look", str(error))


def _suggested(trials: Trials, broken: Organ | None) -> dict[str, float]:
    if broken or "lr_range" not in vars(trials) or trials.lr_range.suggestion is None:
        return {}
    return {"lr": trials.lr_range.suggestion}
