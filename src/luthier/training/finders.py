"""Finders: which learning rate to start with, and which batch size trains fastest. Nothing is saved."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.errors import LuthierError, NonFiniteLoss
from luthier.training.hooks import Hook
from luthier.training.loop import take_step
from luthier.training.preflight import preflight
from luthier.training.run import Run

if TYPE_CHECKING:
    from luthier.recipe import Recipe
    from luthier.task import Task
    from luthier.training.schedules import Progress

DIVERGED = 4.0


@dataclass(frozen=True)
class LrRange:
    """The result of a range test.

    Attributes:
        lrs: the learning rates tried, rising.
        losses: smoothed training loss at each.
        suggestion: where the loss falls fastest per factor of lr; None when it never fell.
        diverges_at: the lr at which the loss left for good; None when it did not within the range.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float | None
    diverges_at: float | None


def find_lr(task: Task, recipe: Recipe, *, low: float = 1e-6, high: float = 10.0, steps: int = 120) -> LrRange:
    """Learning-rate range test: train a few steps while the lr rises geometrically, and watch the loss.

    Args:
        task: what is trained.
        recipe: its optimiser, batch size and regularisation are used; its lr and schedule are not.
        low, high: range of learning rates.
        steps: optimizer steps at most; it ends early when the loss exceeds four times its minimum.

    Returns:
        The curve, a suggestion and the point of divergence.

    Raises:
        LuthierError: a range that is empty or too few steps.

    Source: Smith 2017, "Cyclical learning rates for training neural networks", section 3.3.
    """
    if not 0 < low < high or steps < 10:
        raise LuthierError(f"a range test needs 0 < low < high and at least 10 steps, got {low=}, {high=}, {steps=}")

    def rising(progress: Progress) -> float:
        return float((low / high) ** (1 - min(progress.step, steps - 1) / (steps - 1)))

    curve = _LossCurve(steps)
    rising_recipe = recipe.replace({"schedule": rising, "lr": high, "warmup_frac": 0.0, "early_stopping": None})
    with torch.random.fork_rng():
        run = Run(task, rising_recipe, [curve])
        preflight(run)
        diverged = _rise(run, curve, steps)
    lrs = tuple(low * (high / low) ** (step / (steps - 1)) for step in range(len(curve.smoothed)))
    return LrRange(lrs, tuple(curve.smoothed), _steepest(lrs, curve.smoothed), lrs[-1] if diverged and lrs else None)


class _LossCurve(Hook):
    """Training loss, smoothed by a bias-corrected exponential average over about a tenth of the steps."""

    def __init__(self, steps: int) -> None:
        self.smoothed: list[float] = []
        self.keep = 1 - 10 / steps
        self.average = 0.0

    def after_backward(self, run: Run, loss: Tensor) -> None:
        """Take one loss in."""
        self.average = self.keep * self.average + (1 - self.keep) * float(loss)
        self.smoothed.append(self.average / (1 - self.keep ** (len(self.smoothed) + 1)))


def _rise(run: Run, curve: _LossCurve, steps: int) -> bool:
    """Take the steps; returns whether the loss diverged."""
    try:
        for batch in itertools.islice(_endless(run), steps):
            take_step(run, batch)
            if curve.smoothed[-1] > DIVERGED * min(curve.smoothed):
                return True
    except NonFiniteLoss:
        return True
    return False


def _endless(run: Run) -> Iterator[Any]:
    for epoch in itertools.count():
        yield from run.train.epoch(epoch)


def _steepest(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """The lr of the steepest fall of loss per log lr, over windows of a tenth of the curve, left of its minimum."""
    if len(losses) < 3:
        return None
    lowest = min(range(len(losses)), key=losses.__getitem__)
    width = max(1, len(losses) // 10)
    falls = [(losses[end] - losses[end - width], end - width // 2) for end in range(width, lowest + 1)]
    if not falls or min(falls)[0] >= 0:
        return None
    return lrs[min(falls)[1]]


@dataclass(frozen=True)
class BatchSizes:
    """Speed of rising batch sizes.

    Attributes:
        sizes: batch sizes tried, doubling.
        examples_per_s: training speed of each.
        largest: the largest that fitted into memory (and into the data).
        suggestion: the smallest that reaches 90 % of the best speed.
        limit: why the search ended.
    """

    sizes: tuple[int, ...]
    examples_per_s: tuple[float, ...]
    largest: int
    suggestion: int
    limit: str


def find_batch_size(
    task: Task, recipe: Recipe, *, smallest: int = 16, largest: int = 8192, seconds: float = 0.5
) -> BatchSizes:
    """Double the batch size until memory or data end or speed falls, and measure training speed at each.

    Args:
        task: what is trained.
        recipe: everything but `batch_size` is used.
        smallest, largest: batch sizes to begin and end with.
        seconds: measuring time for each, after two steps of warm-up.

    Raises:
        LuthierError: not even the smallest batch can be trained.
    """
    sizes: list[int] = []
    speeds: list[float] = []
    limit = f"the largest size asked for, {largest}"
    size = smallest
    while size <= largest:
        try:
            speeds.append(_speed(task, recipe.replace({"batch_size": size, "accumulate": 1}), seconds))
            sizes.append(size)
        except (torch.OutOfMemoryError, MemoryError):
            limit = f"memory, at {size}"
            break
        except LuthierError as error:
            if not sizes:
                raise
            limit = str(error)
            break
        if speeds[-1] < 0.5 * max(speeds):
            limit = "speed fell to half"
            break
        size *= 2
    if not sizes:
        raise LuthierError(f"batches of {smallest} do not fit into memory: start from a smaller size")
    enough = next(size for size, speed in zip(sizes, speeds, strict=True) if speed >= 0.9 * max(speeds))
    return BatchSizes(tuple(sizes), tuple(speeds), sizes[-1], enough, limit)


def _speed(task: Task, recipe: Recipe, seconds: float) -> float:
    """Examples per second of whole training steps."""
    with torch.random.fork_rng():
        run = Run(task, recipe)
        preflight(run)
        batches = _endless(run)
        for batch in itertools.islice(batches, 2):
            take_step(run, batch)
        began, seen = time.perf_counter(), run.examples
        while time.perf_counter() - began < seconds:
            take_step(run, next(batches))
        return (run.examples - seen) / (time.perf_counter() - began)
