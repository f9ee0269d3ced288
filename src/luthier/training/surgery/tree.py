"""Editing a module tree: replacing a module wherever it is registered, attaching one after another.

Attaching leaves every module where it is: the new one becomes a child of the old (`fc1.norm` under `fc1`)
and a forward hook passes the output through it. So no name in the state dict changes, `model.fc1.weight`,
`model.net[2]` and tied weights keep working, and a layer's class stays what it was. The hook holds no reference to
the model, hence copies and pickles go with their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

COMPOSITE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""Modules of torch that use their children's weights without calling the children: nothing is attached inside."""

LAYERS = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    *COMPOSITE,
)
"""Modules that mix their inputs with weights; an activation before one of them is hidden."""


def is_convolution(module: nn.Module) -> bool:
    """Whether the module is one of torch's convolutions, transposed ones included."""
    return isinstance(module, nn.modules.conv._ConvNd)


def inside_composite(model: nn.Module) -> set[str]:
    """Paths of all modules inside torch's attention and Transformer layers.

    >>> sorted(inside_composite(nn.Sequential(nn.MultiheadAttention(4, 2))))
    ['0.out_proj']
    """
    tops = [path for path, module in model.named_modules() if isinstance(module, COMPOSITE)]
    return {path for path, _ in model.named_modules() for top in tops if _is_below(path, top)}


def _is_below(path: str, top: str) -> bool:
    return path != top and (not top or path.startswith(f"{top}."))


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` is registered; it takes over training mode, device, dtype and what was attached."""
    follow(new, old, model)
    for hook in attachments(old):
        new.add_module(hook.name, old.get_submodule(hook.name))
        new.register_forward_hook(hook)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def follow(new: nn.Module, old: nn.Module, model: nn.Module) -> None:
    """Give a new module the training mode, device and dtype of the one whose place or output it takes."""
    like = _first_float(old) if _first_float(old) is not None else _first_float(model)
    if like is not None:
        new.to(device=like.device, dtype=like.dtype)
    new.train(old.training)


def _first_float(module: nn.Module) -> Tensor | None:
    return next((parameter for parameter in module.parameters() if parameter.is_floating_point()), None)


@dataclass(frozen=True)
class Attached:
    """The forward hook that passes a module's output through its child `name`."""

    name: str

    def __call__(self, module: nn.Module, _inputs: Any, output: Any) -> Any:
        """The output after the child."""
        return module.get_submodule(self.name)(output)


def attach(model: nn.Module, module: nn.Module, name: str, new: nn.Module) -> str:
    """Pass the output of `module` through `new` from now on.

    Args:
        model: the whole model; where `module` has no parameters, device and dtype are the model's.
        module: the module whose output is changed.
        name: name of the new child; with a number when the module has something of that name.
        new: the new child.

    Returns:
        The child's name.
    """
    follow(new, module, model)
    for attached in attachments(module):
        if isinstance(module._modules.get(attached.name), nn.Identity) and attached.name.startswith(name):
            module._modules[attached.name] = new
            return attached.name
    free = next(option for option in _options(name) if not hasattr(module, option))
    module.add_module(free, new)
    module.register_forward_hook(Attached(free))
    return free


def attachments(module: nn.Module) -> list[Attached]:
    """The hooks that `attach` left on a module."""
    return [hook for hook in module._forward_hooks.values() if isinstance(hook, Attached)]


def has_own_hooks(module: nn.Module) -> bool:
    """Whether someone else hooked into the module, whose hooks a replacement would lose."""
    others = len(module._forward_hooks) - len(attachments(module))
    return bool(others or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def _options(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}{number}"
        number += 1


def untouchable(model: nn.Module) -> dict[str, str]:
    """Modules that nothing can be done to before something else happens: path -> why."""
    reasons = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            reasons[path] = "it is a TorchScript module: operate before scripting"
        elif hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            reasons[path] = "it is compiled: operate before torch.compile"
        elif any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters(recurse=False)):
            reasons[path] = "it is lazy and has no shape yet: run the model once before operating"
    return reasons
