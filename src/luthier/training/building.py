"""From task and recipe to a network on its device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from luthier.errors import LuthierError
from luthier.training.randomness import Stream, derive, seed_global
from luthier.training.surgery import Report, operate

if TYPE_CHECKING:
    from luthier.recipe import Recipe
    from luthier.task import Task


def build_model(task: Task, recipe: Recipe, example: Callable[[], Any] | None = None) -> tuple[nn.Module, Report]:
    """The network of a recipe on the CPU, its weights a function of recipe and seed, and what surgery did.

    Args:
        task: its builder is called with the keywords of `recipe.model`.
        recipe: dropout, norm, activation and init are applied by surgery.
        example: gives one batch's inputs, asked for only when there is surgery to do; places are traced with it.
    """
    seed_global(derive(recipe.seed, Stream.WEIGHTS), torch.device("cpu"))
    model = task.build(recipe.model)
    report = operate(
        model,
        dropout=recipe.dropout,
        norm=recipe.norm,
        activation=recipe.activation,
        init=recipe.init,
        zero_last=recipe.zero_last,
        example=example() if example is not None and operates(recipe) else None,
    )
    if recipe.memory_format == "channels_last":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, report


def operates(recipe: Recipe) -> bool:
    """Whether a recipe asks for surgery on the model."""
    return bool(recipe.dropout is not None or recipe.norm or recipe.activation or recipe.init or recipe.zero_last)


def choose_device(name: str) -> torch.device:
    """The device of a recipe; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        LuthierError: no such device, or it is not available here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise LuthierError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}") from None
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.type, False) or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise LuthierError(f"device {name!r} is not available on this machine: use --device auto or cpu")
    return device


def check_precision(precision: str, device: torch.device) -> None:
    """Whether the device can train in this precision.

    Raises:
        LuthierError: float16 elsewhere than on CUDA (it needs loss scaling and fast half kernels).
    """
    if precision == "float16" and device.type != "cuda":
        raise LuthierError(f"precision 'float16' needs a CUDA device, got {device.type}: use 'bfloat16' or 'float32'")
