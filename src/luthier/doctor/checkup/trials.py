"""The short trainings of a check-up, each within its share of the time."""

from __future__ import annotations

import copy
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.data.batches import in_memory
from luthier.data.splits import take
from luthier.data.trees import named_leaves
from luthier.doctor.diagnosing import diagnose
from luthier.doctor.findings import Diagnosis
from luthier.doctor.logs import read_logs
from luthier.doctor.probe import Probe
from luthier.doctor.vitals import Vitals
from luthier.errors import LuthierError
from luthier.fitting import fit, total_steps
from luthier.recipe import Recipe
from luthier.task import Task
from luthier.training.finders import LrRange, find_lr

FIRST_STEPS = 60
EXAMPLES = 32
FEWEST_STEPS = 20


class TooSlow(LuthierError):
    """A trial would not fit into the time."""


@dataclass(frozen=True)
class Outcome:
    """Losses of one short training: at its start and end on its own data, and at its end on the validation part."""

    start: float
    end: float
    val_loss: float
    val_metric: float
    steps: int


class Trials:
    """Short trainings of one task; each runs once, when it is first asked for.

    Args:
        task, recipe: what is examined.
        limit_s: seconds for all of it.
    """

    def __init__(self, task: Task, recipe: Recipe, limit_s: float) -> None:
        self.task, self.recipe, self.limit_s = task, recipe, limit_s
        self.began = time.monotonic()

    @property
    def left_s(self) -> float:
        """Seconds that remain."""
        return self.limit_s - (time.monotonic() - self.began)

    @cached_property
    def first(self) -> tuple[Vitals, float]:
        """Vitals of the first steps under the recipe, and the seconds of one step."""
        vitals, took_s, steps = self._train(
            self.task, self.recipe, min(FIRST_STEPS, total_steps(self.task, self.recipe))
        )
        plain = [w + b for w, b in zip(vitals.steps.wait_s, vitals.steps.busy_s, strict=True) if b > 0]
        return vitals, sorted(plain)[len(plain) // 2] if plain else took_s / max(1, steps)

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """What the rules say of the first steps."""
        return diagnose(self.first[0])

    @cached_property
    def lr_range(self) -> LrRange:
        """Learning-rate range test."""
        return find_lr(self.task, self.recipe, steps=self.affordable(0.25, 100))

    @cached_property
    def one_batch(self) -> Outcome:
        """The recipe without anything that regularises, on a single batch."""
        examples = _rows(self.task.train, torch.arange(min(EXAMPLES, _size(self.task.train))))
        task = copy.copy(self.task)
        task.train = task.val = examples
        steps = self.affordable(0.3, 300)
        n = _size(examples)
        recipe = plain(self.recipe).replace({"batch_size": n, "epochs": steps, "lr": self.safe_lr})
        return self._outcome(task, recipe, steps)

    def learning(self, shuffled: bool) -> Outcome:
        """The first steps with true or shuffled labels, measured on the validation part."""
        task = self.task
        if shuffled:
            inputs, targets = _pair(self.task.train)
            order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(self.recipe.seed))
            task = copy.copy(self.task)
            task.train = (inputs, targets[order])
        steps = min(self.affordable(0.2, 400), total_steps(self.task, self.recipe))
        return self._outcome(task, plain(self.recipe).replace({"lr": self.safe_lr}), steps)

    @cached_property
    def safe_lr(self) -> float:
        """The recipe's lr, or the suggested one where the recipe's diverges."""
        found = self.lr_range
        if found.suggestion is None:
            return self.recipe.lr
        return (
            found.suggestion
            if found.diverges_at is not None and self.recipe.lr > found.diverges_at / 2
            else self.recipe.lr
        )

    def affordable(self, share: float, most: int) -> int:
        """Steps that fit into a share of the whole time (and what is left of it).

        Raises:
            TooSlow: fewer than 20.
        """
        step_s = max(self.first[1], 1e-6)
        steps = int(min(share * self.limit_s, self.left_s) / step_s)
        if steps < FEWEST_STEPS:
            raise TooSlow(
                f"a step takes {step_s:.2g} s, so {FEWEST_STEPS} steps do not fit into the time: raise limit_s"
            )
        return min(steps, most)

    def _outcome(self, task: Task, recipe: Recipe, steps: int) -> Outcome:
        vitals, _, _ = self._train(task, recipe, steps)
        losses = [loss for loss in vitals.steps.loss if loss == loss]
        if not losses or not vitals.metrics:
            raise LuthierError("the short training left no losses")
        edge = max(1, len(losses) // 10)
        values = vitals.metrics[-1].values
        return Outcome(
            sum(losses[:1]),
            sum(losses[-edge:]) / edge,
            values["val_loss"],
            values.get(f"val_{self.task.metric.name}", float("nan")),
            len(losses),
        )

    def _train(self, task: Task, recipe: Recipe, steps: int) -> tuple[Vitals, float, int]:
        with tempfile.TemporaryDirectory(prefix="luthier-check-") as folder:
            began = time.monotonic()
            path = Path(folder) / "run"
            quiet = {"console": False, "tensorboard": False, "signals": False, "watch": False}
            record = fit(task, recipe, folder=path, until=steps, hooks=[Probe(path)], **quiet)
            return read_logs(record.path), time.monotonic() - began, steps


def plain(recipe: Recipe) -> Recipe:
    """The recipe without what regularises or ends early: it must be able to learn by heart."""
    return recipe.replace(
        {
            "weight_decay": 0.0,
            "l1": 0.0,
            "label_smoothing": 0.0,
            "mixup": 0.0,
            "cutmix": 0.0,
            "augment": (),
            "early_stopping": None,
            "averaging": None,
            "schedule": "constant",
            "warmup_frac": 0.0,
            "batch_growth": None,
            "accumulate": 1,
            **({} if recipe.dropout is None else {"dropout": 0.0}),
        }
    )


def _rows(data: Any, chosen: Tensor) -> Any:
    tree = in_memory(data)
    if tree is None:
        raise LuthierError(f"the data are a {type(data).__name__}, and only tensors and arrays can be taken apart")
    return take(tree, chosen)


def _size(data: Any) -> int:
    tree = in_memory(data)
    if tree is None:
        raise LuthierError(f"the data are a {type(data).__name__}, and only tensors and arrays can be taken apart")
    return len(next(leaf for _, leaf in named_leaves(tree, "")))


def _pair(data: Any) -> tuple[Any, Tensor]:
    tree = in_memory(data)
    if not isinstance(tree, (tuple, list)) or len(tree) != 2 or not isinstance(tree[1], Tensor):
        raise LuthierError("labels can be shuffled only in data that are a pair (inputs, targets) in memory")
    return tree[0], tree[1]
