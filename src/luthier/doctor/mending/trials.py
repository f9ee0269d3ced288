"""Trainings within a budget of optimizer steps: each recipe and seed at most once, all of them with a record."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import LuthierError, NonFiniteLoss
from luthier.record import Record

if TYPE_CHECKING:
    from luthier.recipe import Recipe
    from luthier.task import Task


@dataclass(frozen=True)
class Trial:
    """One training of a mending.

    Attributes:
        recipe: how, with its seed.
        value: best validation value of the metric; None when there was no evaluation.
        steps: optimizer steps that it took.
        record: what it left; None when it could not be built at all.
        trouble: why it did not end well; "" when it did.
    """

    recipe: Recipe
    value: float | None
    steps: int
    record: Record | None
    trouble: str = ""


class Trials:
    """Trains recipes of one task and counts what they cost.

    Attributes:
        spent: optimizer steps so far, those of proofs and range tests counted too.
        limit: optimizer steps allowed.
    """

    def __init__(self, task: Task, folder: Path, limit: int, limit_s: float | None = None) -> None:
        self.task, self.folder, self.limit = task, folder, limit
        self.spent = 0
        self.until_s = None if limit_s is None else time.monotonic() + limit_s
        self._done: dict[tuple[str, int], Trial] = {}

    def affords(self, steps: int) -> bool:
        """Whether so many more steps fit into the budget, and there is time left."""
        in_time = self.until_s is None or time.monotonic() < self.until_s
        return in_time and self.spent + steps <= self.limit

    def cost(self, recipe: Recipe) -> int:
        """Optimizer steps of a whole training."""
        from luthier.fitting import total_steps

        return total_steps(self.task, recipe)

    def known(self, recipe: Recipe, seed: int) -> Trial | None:
        """The training of this recipe with this seed, if it was made."""
        return self._done.get((recipe.key(), seed))

    def train(self, recipe: Recipe, seed: int, watch: bool = True) -> Trial:
        """Train with this seed, or return the training that was made before; faults become part of the trial.

        Args:
            recipe: how.
            seed: of the training.
            watch: let the doctor watch a new training, so that its record can be diagnosed.
        """
        key = (recipe.key(), seed)
        if key not in self._done:
            self._done[key] = self._train(recipe.replace({"seed": seed}), watch)
        return self._done[key]

    def short(self, recipe: Recipe, seed: int, steps: int) -> float | None:
        """Validation loss after a few steps, infinite when it diverged or cannot be built; None beyond the budget."""
        from luthier.doctor.prove import branch

        if not self.affords(steps):
            return None
        self.spent += steps
        try:
            return branch(self.task, recipe.replace({"seed": seed}), steps).val_loss
        except LuthierError:
            return math.inf

    def _train(self, recipe: Recipe, watch: bool) -> Trial:
        from luthier.doctor.probe import Probe
        from luthier.fitting import fit

        path = self.folder / f"{len(self._done):03}-{recipe.key()[:6]}-{recipe.seed}"
        trouble, probes = "", [Probe(path)] if watch else []  # a diagnosis is made of few of them, by the rounds
        try:
            fit(self.task, recipe, folder=path, hooks=probes, console=False, tensorboard=False, watch=False)
        except NonFiniteLoss as error:
            trouble = f"diverged at step {error.step}"
        except LuthierError as error:
            trouble = str(error)
        if not Record.exists(path):
            return Trial(recipe, None, 0, None, trouble)
        record = Record(path)
        record.remember(self.task)
        steps = int(record.status.get("step", 0))
        self.spent += steps
        return Trial(recipe, None if trouble else record.best, steps, record, trouble)

    def forget_weights(self, keep: frozenset[str]) -> None:
        """Remove the checkpoints of all recipes but those with these keys; their numbers stay."""
        for (key, _), trial in self._done.items():
            if key not in keep and trial.record is not None:
                shutil.rmtree(trial.record.checkpoints, ignore_errors=True)
