"""The search space of a recipe when none is given: few dimensions, the usual bounds, always around the baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.tuning.ranges import Choice, Range, Uniform
from luthier.tuning.space import choice, loguniform, powers_of_two, uniform

if TYPE_CHECKING:
    from luthier.recipe import Recipe

_LR = {
    "sgd": (1e-3, 1.0),
    "adam": (1e-4, 1e-2),
    "adamw": (1e-4, 1e-2),
    "nadam": (1e-4, 1e-2),
    "radam": (1e-4, 3e-2),
    "rmsprop": (3e-5, 1e-2),
    "adagrad": (1e-3, 1.0),
    "adadelta": (1e-2, 10.0),
    "muon": (1e-3, 1e-1),
}
"""Learning rates at which an optimiser is worth trying."""

_SCHEDULES = ("constant", "cosine", "one-cycle")
_STEPS_PER_EPOCH = 20  # fewer updates than this in an epoch teach little, whatever the learning rate


def derive_space(recipe: Recipe, n_train: int | None = None, loss: str = "cross_entropy") -> dict[str, Range]:
    """A small space around a recipe: learning rate, batch size, schedule, regularisation.

    `epochs` is never in it: a trial's length is its budget. Every range contains the recipe's own value
    (but for a weight decay of 0, which has no place on a log scale).

    Args:
        recipe: the baseline.
        n_train: training examples, if known; bounds the batch size so that an epoch keeps at least 20 steps.
        loss: name of the task's loss; label smoothing is for "cross_entropy".

    >>> from luthier.recipe import Recipe
    >>> {path: str(range_) for path, range_ in derive_space(Recipe(), n_train=1000).items()}["batch_size"]
    '16,32,128'
    """
    space: dict[str, Range] = {
        "lr": _log_around(recipe.lr, *_LR.get(recipe.optimizer.name, (recipe.lr / 30, recipe.lr * 30))),
        "batch_size": _batch_sizes(recipe.batch_size, n_train),
        "schedule": choice(*dict.fromkeys([*_SCHEDULES, recipe.schedule.name])),
        "weight_decay": _log_around(recipe.weight_decay or 1e-4, 1e-6, 1e-1),
        "dropout": uniform(0.0, max(0.6, recipe.dropout or 0.0)),
    }
    if recipe.warmup_frac:
        space["warmup_frac"] = uniform(0.0, max(0.2, recipe.warmup_frac))
    if recipe.optimizer.name == "sgd" and not recipe.value("optimizer.nesterov"):
        space["optimizer.momentum"] = uniform(0.0, max(0.98, recipe.value("optimizer.momentum")))
    if loss == "cross_entropy":
        space["label_smoothing"] = uniform(0.0, max(0.2, recipe.label_smoothing))
    return space


def _log_around(value: float, low: float, high: float) -> Uniform:
    return loguniform(min(low, value), max(high, value))


def _batch_sizes(baseline: int, n_train: int | None) -> Choice:
    """Powers of two, and the baseline's own size among them."""
    highest = 512 if n_train is None else max(16, min(512, n_train // _STEPS_PER_EPOCH))
    lowest = min(16, highest) if n_train is None or n_train < 10_000 else 32
    return choice(*sorted({*powers_of_two(lowest, highest).options, baseline}))
