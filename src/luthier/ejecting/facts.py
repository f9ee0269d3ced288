"""What the writers of a script must know of a run, read once and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.ejecting.sources import EjectError, Sources
from luthier.fitting import total_steps
from luthier.training.building import choose_device
from luthier.training.preflight import preflight
from luthier.training.run import Run

if TYPE_CHECKING:
    from luthier.recipe import Recipe
    from luthier.task import Task


@dataclass
class Facts:
    """One run.

    Attributes:
        task, recipe: what is trained, and how.
        run: a training that has taken no step, for comparison.
        parts: train_inputs, train_targets, val_inputs, val_targets.
        steps: optimizer steps of the whole training.
        classes: outputs of a classifier, None for others.
        sources: code of the user's own functions.
        own: whether the network is a user's code, of which nothing is known.
        refused: why a user's code was not taken, and the network's layers were written instead.
    """

    task: Task
    recipe: Recipe
    run: Run
    parts: dict[str, Tensor]
    steps: int
    classes: int | None
    sources: Sources
    own: bool = False
    refused: str = ""

    @property
    def bytes(self) -> bool:
        """Whether inputs are stored as bytes."""
        return self.parts["train_inputs"].dtype == torch.uint8

    @property
    def scales(self) -> bool:
        """Whether inputs are centred and scaled."""
        return self.run.inputs.scale is not None and (self.bytes or self.parts["train_inputs"].is_floating_point())

    @property
    def prepares(self) -> bool:
        """Whether anything is done to inputs before the network sees them."""
        last = self.recipe.memory_format == "channels_last" and self.parts["train_inputs"].ndim == 4
        return self.bytes or self.scales or last or bool(self.recipe.augment)

    @property
    def bfloat16(self) -> bool:
        """Whether forward passes run in bfloat16."""
        return self.recipe.precision == "bfloat16"


def read_facts(task: Task, recipe: Recipe) -> Facts:
    """Read what the writers need.

    Raises:
        EjectError: something about task or recipe that no script is written for.
    """
    _refuse(task, recipe)
    parts = _parts(task)
    run = Run(task, recipe)
    preflight(run)
    return Facts(task, recipe, run, parts, total_steps(task, recipe), run.inputs.n_classes, Sources())


def _refuse(task: Task, recipe: Recipe) -> None:
    faults = {
        "the task has a step of its own: eject writes tasks with a loss": task.own_step is not None,
        "recipe field device: eject writes scripts for the CPU; set device='cpu'": (
            choose_device(recipe.device).type != "cpu"
        ),
        "recipe field compile: eject writes networks as they are; set compile=False": recipe.compile,
        "recipe field precision='float16': set 'bfloat16' or 'float32'": recipe.precision == "float16",
    }
    for sentence, is_so in faults.items():
        if is_so:
            raise EjectError(sentence)


def _parts(task: Task) -> dict[str, Tensor]:
    parts: dict[str, Tensor] = {}
    for name, data in (("train", task.train), ("val", task.val)):
        if not (isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(t, Tensor) for t in data)):
            raise EjectError(
                f"the task's {name} data are {_kind(data)}: eject writes tasks whose data are a pair of arrays "
                "(inputs, targets) in memory"
            )
        parts |= {f"{name}_inputs": data[0], f"{name}_targets": data[1]}
    for name, tensor in parts.items():
        if not tensor.is_contiguous():
            raise EjectError(f"{name} of the task are not contiguous in memory: call .contiguous() on them in the task")
    return parts


def _kind(data: Any) -> str:
    return type(data).__name__ if not isinstance(data, (tuple, list)) else "a nested structure"
