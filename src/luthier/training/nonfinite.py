"""Where a NaN or infinity came from: the first module whose output is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def first_nonfinite_layer(model: nn.Module, forward: Callable[[nn.Module], Any]) -> str | None:
    """Run a forward pass again and name the first module with a non-finite output.

    Args:
        model: the network, its weights as they were when the loss was computed.
        forward: runs the pass, such as `lambda model: task.step(model, batch)`.

    Returns:
        "the input", "weights of <module>", a module's dotted name with its type, or None when all is finite.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the weights {name} are not finite already"
    found: list[str] = []

    def inspect(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not _finite(output):
                source = "" if _finite(inputs) else ", whose input is not finite already"
                found.append(f"{name or 'the model'} ({type(module).__name__}){source}")

        return hook

    leaves = [(name, module) for name, module in model.named_modules()]
    handles = [module.register_forward_hook(inspect(name, module)) for name, module in leaves]
    try:
        forward(model)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _finite(value: Any) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in _floats(value))


def _floats(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _floats(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _floats(item)
