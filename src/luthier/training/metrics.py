"""Metrics by name: accumulated on the device over an evaluation, computed once at its end.

Shapes: B batch, K classes, ... further dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from luthier.errors import LuthierError, unknown
from luthier.training.losses import Loss

Direction = Literal["max", "min"]


class Accumulator(Protocol):
    """Collects batches of one evaluation."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Take one batch in, without waiting for the device."""

    def compute(self) -> float:
        """The metric over all batches taken in; NaN when there were none."""


@dataclass(frozen=True)
class Metric:
    """A metric: its name, which direction is better, and how it is accumulated.

    `start` is None for the metric "loss", which the loop has at hand anyway.
    """

    name: str
    direction: Direction
    start: Callable[[], Accumulator] | None

    @property
    def minimise(self) -> bool:
        """Whether smaller is better."""
        return self.direction == "min"

    def better(self, new: float, old: float | None) -> bool:
        """Whether `new` improves on `old`; anything finite improves on nothing, NaN on nothing at all."""
        if new != new:
            return False
        return old is None or (new < old if self.minimise else new > old)


class Counter:
    """Share of correct answers: two numbers, on the CPU read at once, elsewhere kept on the device and read at the end.

    On the CPU no small tensor should live from one step to the next: it lies in the memory that the next batch and
    gradients want back, and these wander (over hundreds of places instead of a dozen) and out of the cache.
    """

    def __init__(self, correct: Callable[[Tensor, Tensor], tuple[Tensor, int | Tensor]]) -> None:
        self.count_correct = correct
        self.correct: Tensor | int = 0
        self.n: Tensor | int = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count one batch."""
        correct, n = self.count_correct(outputs, targets)
        self.correct = self.correct + _on_device_or_read(correct)
        self.n = self.n + _on_device_or_read(n)

    def compute(self) -> float:
        """correct / n."""
        n = int(self.n)
        return float(self.correct) / n if n else float("nan")


def _on_device_or_read(count: Tensor | int) -> Tensor | int:
    return int(count) if isinstance(count, int) or count.device.type == "cpu" else count


def correct_classes(outputs: Tensor, targets: Tensor) -> tuple[Tensor, int | Tensor]:
    """Correct answers and their number, for logits [B, K, ...] against labels [B, ...] or class probabilities."""
    if targets.is_floating_point():
        targets = targets.argmax(1)
    correct = torch.count_nonzero(outputs.argmax(1) == targets)  # twice as fast as sum() on small batches
    return correct, targets.numel() if targets.ndim == 1 else (targets != -100).sum()


def correct_labels(outputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """Correct labels and their number, for logits against 0/1 targets of the same shape."""
    return ((outputs > 0) == (targets > 0.5)).sum(), targets.numel()


class Gathered(ABC):
    """A metric over the whole evaluation: batches are kept on the device and handed over once, at the end."""

    def __init__(self) -> None:
        self.batches: list[tuple[Tensor, Tensor]] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Keep one batch."""
        self.batches.append((outputs.detach(), targets))

    def compute(self) -> float:
        """The metric over all batches at once."""
        if not self.batches:
            return float("nan")
        outputs, targets = (torch.cat(list(parts)) for parts in zip(*self.batches, strict=True))
        return self.measure(outputs, targets)

    @abstractmethod
    def measure(self, outputs: Tensor, targets: Tensor) -> float:
        """The metric of all outputs and targets."""


class Torchmetric(Gathered):
    """A torchmetrics metric in its functional form, by name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def measure(self, outputs: Tensor, targets: Tensor) -> float:
        """What torchmetrics says."""
        return _TORCHMETRICS[self.name](outputs.float(), targets)


def _f1(outputs: Tensor, targets: Tensor) -> float:
    from torchmetrics.functional.classification import multiclass_f1_score

    return float(multiclass_f1_score(outputs, targets, num_classes=outputs.shape[1], average="macro"))


def _multilabel_f1(outputs: Tensor, targets: Tensor) -> float:
    from torchmetrics.functional.classification import multilabel_f1_score

    return float(multilabel_f1_score(outputs, targets.int(), num_labels=outputs.shape[1], average="macro"))


def _auroc(outputs: Tensor, targets: Tensor) -> float:
    from torchmetrics.functional.classification import binary_auroc, multiclass_auroc

    if targets.is_floating_point():
        return float(binary_auroc(outputs.reshape(-1), targets.reshape(-1).int()))
    return float(multiclass_auroc(outputs, targets, num_classes=outputs.shape[1]))


def _average_precision(outputs: Tensor, targets: Tensor) -> float:
    from torchmetrics.functional.classification import multilabel_average_precision

    return float(multilabel_average_precision(outputs, targets.int(), num_labels=outputs.shape[1]))


def _regression(name: str, outputs: Tensor, targets: Tensor) -> float:
    from torchmetrics.functional import regression

    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "mse": regression.mean_squared_error,
        "rmse": partial(regression.mean_squared_error, squared=False),
        "mae": regression.mean_absolute_error,
        "r2": regression.r2_score,
    }
    return float(functions[name](outputs.reshape(-1), targets.reshape(-1)))


_TORCHMETRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "f1": _f1,
    "multilabel_f1": _multilabel_f1,
    "auroc": _auroc,
    "average_precision": _average_precision,
    "mse": partial(_regression, "mse"),
    "rmse": partial(_regression, "rmse"),
    "mae": partial(_regression, "mae"),
    "r2": partial(_regression, "r2"),
}


class OwnMetric(Gathered):
    """A user's function (outputs, targets) -> float."""

    def __init__(self, call: Callable[[Tensor, Tensor], float]) -> None:
        super().__init__()
        self.call = call

    def measure(self, outputs: Tensor, targets: Tensor) -> float:
        """What the function says."""
        return float(self.call(outputs, targets))


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", "max", partial(Counter, correct_classes)),
    "binary_accuracy": Metric("binary_accuracy", "max", partial(Counter, correct_labels)),
    "f1": Metric("f1", "max", partial(Torchmetric, "f1")),
    "multilabel_f1": Metric("multilabel_f1", "max", partial(Torchmetric, "multilabel_f1")),
    "auroc": Metric("auroc", "max", partial(Torchmetric, "auroc")),
    "average_precision": Metric("average_precision", "max", partial(Torchmetric, "average_precision")),
    "mse": Metric("mse", "min", partial(Torchmetric, "mse")),
    "rmse": Metric("rmse", "min", partial(Torchmetric, "rmse")),
    "mae": Metric("mae", "min", partial(Torchmetric, "mae")),
    "r2": Metric("r2", "max", partial(Torchmetric, "r2")),
    "loss": Metric("loss", "min", None),
}


def metric_named(metric: str | Callable[[Tensor, Tensor], float], direction: str | None = None) -> Metric:
    """A metric by its name, or a callable as one.

    Raises:
        LuthierError: an unknown name, or a callable without a direction.
    """
    if isinstance(metric, str):
        if metric not in METRICS:
            raise unknown("metric", metric, METRICS)
        return METRICS[metric]
    if not callable(metric):
        raise LuthierError(f"metric must be a name or a callable (outputs, targets) -> float, got {metric!r}")
    if direction not in ("max", "min"):
        raise LuthierError(f"a metric of your own needs direction='max' or 'min', got {direction=}")
    name = getattr(metric, "__name__", type(metric).__name__)
    return Metric(name, "max" if direction == "max" else "min", partial(OwnMetric, metric))


def default_metric(loss: Loss) -> Metric:
    """The metric that people read beside a loss."""
    return METRICS[loss.metric]
