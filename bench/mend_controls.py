"""The controls of bench/mend.py: random search by one who does not know what is wrong, and by one with experience."""

from __future__ import annotations

import math
import random
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.data.batches import in_memory
from luthier.data.trees import as_tensors
from luthier.doctor.mending.book import builder_choices, choices_of
from luthier.errors import LuthierError
from luthier.fitting import fit, total_steps
from luthier.recipe import Recipe
from luthier.record import Record
from luthier.task import Task
from luthier.training.choices import ActivationName, InitName, NormName
from luthier.training.schedules import SCHEDULES

DRAWS = 1000
AFFINE = {"name": "affine", "degrees": 10.0, "translate": 0.1, "scale": 0.1}

Drawn = Callable[[Task, Recipe, random.Random], Recipe]


def search(task: Task, start: Recipe, limit: int, seed: int, folder: Path, drawn: Drawn) -> tuple[Recipe, int]:
    """Random search: the starting recipe, then draws until the steps are used up.

    Args:
        task: what is trained.
        start: the recipe to begin with.
        limit: optimizer steps allowed; a draw that would go beyond them is left out.
        seed: of the draws.
        folder: where the trainings go.
        drawn: makes a recipe from the start and random numbers.

    Returns:
        The recipe with the best validation value, and the steps spent.
    """
    draw, least = random.Random(seed), total_steps(task, start)
    best, best_value, spent = start, None, 0
    for number in range(DRAWS):
        recipe = drawn(task, start, draw) if number else start
        if spent + least > limit:
            break
        if spent + total_steps(task, recipe) > limit:
            continue
        value, steps = value_of(task, recipe.replace({"seed": seed}), folder / str(number))
        spent += steps
        if value is not None and task.metric.better(value, best_value):
            best, best_value = recipe, value
    return best, spent


def value_of(task: Task, recipe: Recipe, folder: Path) -> tuple[float | None, int]:
    """Best validation value and the steps that it took; none for a training that fails."""
    try:
        record = fit(task, recipe, folder=folder, console=False, tensorboard=False, watch=False)
    except LuthierError:
        return None, int(Record(folder).status.get("step", 0)) if Record.exists(folder) else 0
    return record.best, int(record.status["step"])


def anything(task: Task, start: Recipe, draw: random.Random) -> Recipe:
    """A draw from all the fields that mending changes, by one who does not know what is wrong.

    Named choices come from the whole room; numbers from the usual bounds, widened to hold the recipe's own value, as
    `luthier.tuning.derived` does. What makes a training longer is bounded so that a draw is never over twice as long.
    """
    n, classes = _examples(task), task.loss.kind == "classes"

    def log(low: float, high: float, own: float | None) -> float:
        low, high = (min(low, own), max(high, own)) if own else (low, high)
        return 10 ** draw.uniform(math.log10(low), math.log10(high))

    values: dict[str, Any] = {
        "optimizer": draw.choice(["adamw", "adam", "rmsprop", {"name": "sgd", "momentum": 0.9}, start.optimizer]),
        "lr": log(1e-4, 1.0, start.lr),
        "weight_decay": draw.choice([0.0, log(1e-5, 1e-1, start.weight_decay)]),
        "schedule": draw.choice([*SCHEDULES, start.schedule]),
        "warmup_frac": draw.choice([0.0, 0.1]),
        "dropout": draw.choice([0.0, draw.uniform(0.05, max(0.6, start.dropout or 0.0))]),
        "label_smoothing": draw.choice([0.0, draw.uniform(0.0, 0.2)]) if classes else 0.0,
        "mixup": draw.choice([0.0, 0.2]) if classes else 0.0,
        "clip_norm": draw.choice([None, log(0.1, 10.0, start.clip_norm)]),
        "averaging": draw.choice([None, "ema"]),
        "norm": draw.choice([None, *typing.get_args(NormName)]),
        "activation": draw.choice([None, *typing.get_args(ActivationName)]),
        "init": draw.choice([None, *typing.get_args(InitName)]),
        "batch_size": draw.choice([size for size in (16, 32, 64, 128, 256) if size <= n] + [start.batch_size]),
        "epochs": round(start.epochs * draw.choice([1, 2])),
    }
    return _with_shape(task, start, values, draw)


def what_experts_try(task: Task, start: Recipe, draw: random.Random) -> Recipe:
    """A draw from what somebody with experience would try at any patient, whatever is wrong with it."""
    n, classes = _examples(task), task.loss.kind == "classes"
    optimizer, rates = draw.choice([("adamw", (3e-4, 1e-2)), ({"name": "sgd", "momentum": 0.9}, (1e-2, 3e-1))])
    values: dict[str, Any] = {
        "optimizer": optimizer,
        "lr": 10 ** draw.uniform(math.log10(rates[0]), math.log10(rates[1])),
        "weight_decay": draw.choice([0.0, 1e-4, 1e-2]),
        "schedule": draw.choice(["cosine", "one-cycle"]),
        "warmup_frac": 0.1,
        "dropout": draw.choice([0.0, 0.2, 0.5]),
        "label_smoothing": draw.choice([0.0, 0.1]) if classes else 0.0,
        "mixup": draw.choice([0.0, 0.2]) if classes else 0.0,
        "clip_norm": draw.choice([None, 1.0]),
        "averaging": None,
        "norm": draw.choice([None, "batch"]),
        "activation": draw.choice([None, "relu"]),
        "init": draw.choice([None, "kaiming"]),
        "batch_size": draw.choice([size for size in (32, 64, 128) if size <= n] or [start.batch_size]),
        "epochs": round(start.epochs * draw.choice([1, 2])),
    }
    return _with_shape(task, start, values, draw)


def _with_shape(task: Task, start: Recipe, values: dict[str, Any], draw: random.Random) -> Recipe:
    """The recipe with these values and a draw of augmentation (images), architecture and sizes."""
    if task.train[0].ndim == 4:
        values["augment"] = draw.choice([(), (AFFINE,)])
    recipe = start.replace(values)
    choices = {name: draw.choice(options) for name, options in builder_choices(task).items()}
    if not set(choices.items()) <= choices_of(task, start):
        return recipe.replace({"model": choices})  # sizes mean something else in another architecture
    sizes = {name: size for name, size in start.model.items() if isinstance(size, int)}
    factors = {"width": [0.5, 1, 2, 4], "depth": [0.5, 1, 2]}
    return recipe.replace(
        {f"model.{name}": max(1, round(size * draw.choice(factors[name]))) for name, size in sizes.items()}
    )


def _examples(task: Task) -> int:
    tree = in_memory(task.train)
    return 1024 if tree is None else as_tensors(tree)[1]
