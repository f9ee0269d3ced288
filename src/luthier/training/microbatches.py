"""Gradient accumulation: splitting a batch and putting its gradients together again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import DataError


def split_batch(batch: Any, parts: int) -> list[Any]:
    """Split a nested batch along its first dimension into at most `parts` pieces of (nearly) equal size.

    Raises:
        DataError: the batch holds something other than tensors.
    """
    if isinstance(batch, Tensor):
        return list(torch.tensor_split(batch, min(parts, len(batch))))
    if isinstance(batch, dict):
        pieces = {key: split_batch(item, parts) for key, item in batch.items()}
        return [dict(zip(pieces, row, strict=True)) for row in zip(*pieces.values(), strict=True)]
    if isinstance(batch, (tuple, list)):
        return [type(batch)(row) for row in zip(*(split_batch(item, parts) for item in batch), strict=True)]
    raise DataError(
        f"gradient accumulation splits batches of tensors, got {type(batch).__name__} in the batch: set accumulate=1"
    )


def divide_gradients(model: nn.Module, divisor: float) -> None:
    """Divide all gradients by a number."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if gradients:
        torch._foreach_div_(gradients, divisor)
