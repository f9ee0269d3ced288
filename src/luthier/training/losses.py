"""Losses by name: scalar means over a batch, with what is needed to check targets against outputs.

Shapes: B batch, K classes, ... further dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.errors import DataError, LuthierError, unknown

Kind = Literal["classes", "labels", "numbers", "own"]


@dataclass(frozen=True)
class Loss:
    """A loss with the kind of targets that it expects.

    Attributes:
        name: as in `LOSSES`, or the callable's own name.
        call: (outputs, targets) -> scalar mean.
        kind: "classes" (integer targets against logits [B, K, ...]), "labels" (targets in [0, 1] of the logits'
            shape), "numbers" (float targets of the outputs' shape), "own" (a callable: not checked).
        metric: name of the metric that people read beside this loss.
    """

    name: str
    call: Callable[..., Tensor]
    kind: Kind
    metric: str

    def __call__(self, outputs: Any, targets: Any, label_smoothing: float = 0.0) -> Tensor:
        """The scalar loss; label smoothing (Szegedy et al. 2016) is for `cross_entropy` only.

        Raises:
            LuthierError: label smoothing with another loss.
        """
        if not label_smoothing:
            return self.call(outputs, targets)
        if self.kind != "classes":
            raise LuthierError(
                f"label_smoothing={label_smoothing} needs the loss 'cross_entropy', got {self.name!r}: "
                "set label_smoothing=0 or smooth inside your own loss"
            )
        return self.call(outputs, targets, label_smoothing=label_smoothing)

    def check(self, outputs: Any, targets: Any) -> None:
        """Whether model outputs and targets of one batch fit this loss.

        Raises:
            DataError: wrong type, shape or range; the message says what was expected.
        """
        if self.kind == "own" or not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
            return
        if self.kind == "classes":
            _check_classes(outputs, targets)
        else:
            _check_same_shape(self.name, outputs, targets)
        if self.kind == "labels" and targets.numel() and (targets.min() < 0 or targets.max() > 1):
            raise DataError(f"{self.name} expects targets between 0 and 1, got {targets.min():g} to {targets.max():g}")


def _check_classes(outputs: Tensor, targets: Tensor) -> None:
    if targets.is_floating_point() and targets.shape == outputs.shape:
        return  # class probabilities
    if targets.dtype != torch.int64:
        raise DataError(
            f"cross_entropy expects class labels as int64 (or probabilities of the logits' shape), got {targets.dtype} "
            f"of shape {tuple(targets.shape)}: convert with .long(), or choose loss='mse' for regression"
        )
    expected = (outputs.shape[0], *outputs.shape[2:])
    if outputs.ndim < 2 or tuple(targets.shape) != expected:
        raise DataError(
            f"cross_entropy expects logits [B, K, ...] and labels [B, ...], got logits {tuple(outputs.shape)} and "
            f"labels {tuple(targets.shape)}: the model needs one output per class"
        )
    check_labels(targets, outputs.shape[1])


def check_labels(targets: Tensor, n_classes: int) -> None:
    """Whether all class labels lie in 0 .. n_classes - 1 (the ignored label -100 is allowed).

    Raises:
        DataError: names the first label out of range and where it stands.
    """
    wrong = ((targets < 0) | (targets >= n_classes)) & (targets != -100)
    if wrong.any():
        index = int(wrong.reshape(-1).nonzero()[0])
        raise DataError(
            f"class labels must lie in 0..{n_classes - 1} for a model with {n_classes} outputs, got "
            f"{int(targets.reshape(-1)[index])} at position {index}: count labels from 0 and give the model one "
            "output per class"
        )


def _check_same_shape(name: str, outputs: Tensor, targets: Tensor) -> None:
    if not targets.is_floating_point():
        raise DataError(f"{name} expects float targets, got {targets.dtype}: convert with .float()")
    if outputs.shape != targets.shape:
        raise DataError(
            f"{name} expects outputs and targets of one shape, got {tuple(outputs.shape)} and {tuple(targets.shape)}, "
            "which would broadcast silently: add .squeeze(1) to the model or targets[:, None] to the data"
        )


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss("cross_entropy", F.cross_entropy, "classes", "accuracy"),
    "binary_cross_entropy": Loss(
        "binary_cross_entropy", F.binary_cross_entropy_with_logits, "labels", "binary_accuracy"
    ),
    "mse": Loss("mse", F.mse_loss, "numbers", "rmse"),
    "mae": Loss("mae", F.l1_loss, "numbers", "mae"),
    "huber": Loss("huber", F.huber_loss, "numbers", "mae"),
}


def loss_named(loss: str | Callable[..., Tensor]) -> Loss:
    """A loss by its name, or a callable (function or loss module) as one.

    Raises:
        LuthierError: an unknown name, or something that cannot be called.
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise unknown("loss", loss, LOSSES)
        return LOSSES[loss]
    if not callable(loss):
        raise LuthierError(f"loss must be a name or a callable (outputs, targets) -> scalar, got {loss!r}")
    return Loss(getattr(loss, "__name__", type(loss).__name__), loss, "own", "loss")
