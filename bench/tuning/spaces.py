"""The shared space, and how each library is told of it."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuning.tasks import Task


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; whole ones or real ones, on a log scale or not."""

    low: float
    high: float
    log: bool = False
    whole: bool = False


Space = dict[str, Range | tuple[Any, ...]]
"""Name -> range, or the options of a choice."""


def space_of(task: Task) -> Space:
    """The space that all engines search; a schedule is not in it."""
    return {
        "optimizer": ("adamw", "rmsprop", "sgd"),
        "lr": Range(1e-5, 1e-1, log=True),
        "weight_decay": Range(1e-6, 1e-2, log=True),
        "batch_size": (32, 64, 128, 256),
        "dropout": Range(0.0, 0.5),
        "width": Range(*task.widths, log=True, whole=True),
        "depth": Range(*task.depths, whole=True),
    }


def draw(space: Space, chance: random.Random) -> dict[str, Any]:
    """A configuration by chance."""
    return {name: _draw(item, chance) for name, item in space.items()}


def _draw(item: Range | tuple[Any, ...], chance: random.Random) -> Any:
    if isinstance(item, tuple):
        return chance.choice(item)
    if item.whole and not item.log:
        return chance.randint(int(item.low), int(item.high))
    if not item.log:
        return chance.uniform(item.low, item.high)
    value = math.exp(chance.uniform(math.log(item.low), math.log(item.high)))
    return round(value) if item.whole else value


def suggest(space: Space, trial: Any) -> dict[str, Any]:
    """A configuration from an Optuna trial."""
    values = {}
    for name, item in space.items():
        if isinstance(item, tuple):
            values[name] = trial.suggest_categorical(name, item)
        elif item.whole:
            values[name] = trial.suggest_int(name, int(item.low), int(item.high), log=item.log)
        else:
            values[name] = trial.suggest_float(name, item.low, item.high, log=item.log)
    return values


def for_ray(space: Space) -> dict[str, Any]:
    """The space in Ray Tune's words, whose upper ends are excluded for whole numbers."""
    from ray import tune

    def word(item: Range | tuple[Any, ...]) -> Any:
        if isinstance(item, tuple):
            return tune.choice(list(item))
        if item.whole:
            return (tune.lograndint if item.log else tune.randint)(int(item.low), int(item.high) + 1)
        return (tune.loguniform if item.log else tune.uniform)(item.low, item.high)

    return {name: word(item) for name, item in space.items()}


def for_luthier(space: Space) -> dict[str, Any]:
    """The space in Luthier's words."""
    from luthier import choice, integers, loguniform, uniform

    def word(item: Range | tuple[Any, ...]) -> Any:
        if isinstance(item, tuple):
            return choice(*item)
        if item.whole:
            return integers(int(item.low), int(item.high), log=item.log)
        return (loguniform if item.log else uniform)(item.low, item.high)

    return {name: word(item) for name, item in space.items()}
