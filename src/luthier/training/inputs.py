"""What happens to a batch between the data and the model: device, floats in [0, 1], augmentation, scale, mixing.

Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.data.augmentation import build_augmentation
from luthier.data.trees import tree_map
from luthier.errors import LuthierError

if TYPE_CHECKING:
    from luthier.recipe import Recipe
    from luthier.task import Task


class InputPipeline:
    """Prepares batches for one training.

    Images stored as bytes become floats in [0, 1]; augmentation acts on those; then the inputs are centred and
    scaled; then mixup or cutmix. Batches other than (tensor, targets) only move to the device.
    """

    def __init__(self, task: Task, recipe: Recipe, device: torch.device) -> None:
        self.device = device
        self.channels_last = recipe.memory_format == "channels_last"
        self.augment: Callable[[Tensor], Tensor] | None = build_augmentation(recipe.augment) if recipe.augment else None
        self.scale = normalisation(task, device)
        self.mixup, self.cutmix = recipe.mixup, recipe.cutmix
        self.mixes = recipe.mixup > 0 or recipe.cutmix > 0
        self.n_classes: int | None = None  # learnt from the first forward pass
        self.changes_training = self.augment is not None or self.mixes
        self.plain = not self.changes_training and self.scale is None and not self.channels_last

    def for_training(self, batch: Any) -> Any:
        """A training batch on its device, augmented, scaled and mixed."""
        batch = to_device(batch, self.device)
        if self.plain and not (_is_pair(batch) and batch[0].dtype == torch.uint8):
            return batch
        if not _is_pair(batch):
            self._refuse_changes(batch)
            return batch
        inputs, targets = batch
        inputs = as_unit_floats(inputs)
        if self.augment is not None:
            inputs = self.augment(inputs)
        inputs = self._finish(inputs)
        if self.mixes:
            inputs, targets = self._mix(inputs, targets)
        return inputs, targets

    def for_evaluation(self, batch: Any) -> Any:
        """A validation or test batch on its device, scaled like the training ones."""
        batch = to_device(batch, self.device)
        if not _is_pair(batch):
            return batch
        return self._finish(as_unit_floats(batch[0])), batch[1]

    def _finish(self, inputs: Tensor) -> Tensor:
        if self.scale is not None and inputs.is_floating_point():
            mean, std = self.scale
            inputs = (inputs - mean) / std
        if self.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def _mix(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        from luthier.data.mixing import mix

        return mix(inputs, targets, mixup_alpha=self.mixup, cutmix_alpha=self.cutmix, n_classes=self.n_classes)

    def _refuse_changes(self, batch: Any) -> None:
        if self.changes_training:
            raise LuthierError(
                "augmentation, mixup and cutmix need batches of (input tensor, targets), got "
                f"{type(batch).__name__}: remove them from the recipe, or augment inside the task's data"
            )


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], Tensor)


def to_device(tree: Any, device: torch.device) -> Any:
    """All tensors of a nested batch on the device."""

    def move(leaf: Any) -> Any:
        there = not isinstance(leaf, Tensor) or leaf.device == device
        return leaf if there else leaf.to(device, non_blocking=True)

    return tree_map(move, tree)


def as_unit_floats(inputs: Tensor) -> Tensor:
    """Bytes 0..255 as floats 0..1; everything else unchanged."""
    return inputs.float().div_(255) if inputs.dtype == torch.uint8 else inputs


def normalisation(task: Task, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation of the training inputs, shaped to broadcast; None when not asked for.

    Images [B, C, H, W] are scaled per channel, everything else per feature (column).

    Raises:
        LuthierError: asked for data that is not a pair with a tensor of inputs.
    """
    if task.normalize is False:
        return None
    if task.normalize is not True:
        mean, std = (torch.as_tensor(value, dtype=torch.float32) for value in task.normalize)
        shape = (-1, 1, 1) if mean.ndim == 1 and _inputs(task).ndim == 4 else mean.shape
        return mean.reshape(shape).to(device), std.reshape(shape).to(device)
    inputs = _inputs(task)
    sample = as_unit_floats(inputs[:: max(1, len(inputs) // 20_000)]).float()
    dims = (0, 2, 3) if sample.ndim == 4 else (0,)
    mean, std = sample.mean(dims, keepdim=True)[0], sample.std(dims, keepdim=True, correction=0)[0]
    return mean.to(device), torch.where(std > 1e-6, std, torch.ones_like(std)).to(device)


def _inputs(task: Task) -> Tensor:
    if isinstance(task.train, (tuple, list)) and not isinstance(task.train[0], (tuple, list, dict)):
        return torch.as_tensor(task.train[0])
    raise LuthierError(
        f"normalize needs training data as a pair (inputs, targets) of arrays, got {type(task.train).__name__}: "
        "pass normalize=False and scale the data yourself"
    )
