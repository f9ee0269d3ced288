"""Modules of torch as the expressions that make them: `nn.Conv2d(1, 32, 3, padding=1)`."""

from __future__ import annotations

import inspect
import json
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from luthier.ejecting.sources import EjectError
from luthier.training.surgery.tree import attachments, has_own_hooks

_PLAIN = (bool, int, float, str, tuple, type(None))
_SAME_SIDES = ("Conv", "Pool")  # classes whose tuples of equal numbers may be written as one
_RECURRENT = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
_RECURRENT_DEFAULTS = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}


def chain(module: nn.Module, path: str = "model") -> list[nn.Module]:
    """The layers of nested Sequentials in the order in which they run, with what surgery attached to them.

    What does nothing (`Identity`, dropout of rate 0) is left out.

    Raises:
        EjectError: a module in it is something else than a Sequential or a layer of torch's own.
    """
    if "forward" in vars(module) or has_own_hooks(module):
        raise EjectError(f"{path} has a hook or a forward of its own instance, which a script would lose")
    attached = [hook.name for hook in attachments(module)]
    if type(module) is nn.Sequential:
        inner = {name: child for name, child in module.named_children() if name not in attached}
        layers = [layer for name, child in inner.items() for layer in chain(child, f"{path}.{name}")]
    elif set(dict(module.named_children())) - set(attached):
        raise EjectError(f"{path} is a {type(module).__name__}, which is not a Sequential of torch's layers")
    else:
        layers = [module]
    return [
        layer
        for layer in [*layers, *(each for name in attached for each in chain(module.get_submodule(name), path))]
        if not isinstance(layer, nn.Identity) and not (isinstance(layer, _DropoutNd) and layer.p == 0)
    ]


def sequential(layers: list[nn.Module], indent: str) -> str:
    """A Sequential of layers, one on a line; `indent` is that of the line on which it begins."""
    if not layers:
        return "nn.Identity()"
    return "\n".join(["nn.Sequential(", *(f"{indent}    {expression(layer)}," for layer in layers), f"{indent})"])


def one_or_sequential(module: nn.Module, indent: str) -> str:
    """A single layer as it is, several (or none) as a Sequential."""
    layers = chain(module)
    return expression(layers[0]) if len(layers) == 1 else sequential(layers, indent)


def expression(module: nn.Module) -> str:
    """The call that makes a layer of torch's own, without arguments that are at their default.

    Raises:
        EjectError: not one of `torch.nn`'s layers, or its arguments cannot be told from it.
    """
    kind = type(module)
    if getattr(nn, kind.__name__, None) is not kind:
        raise EjectError(f"a script cannot hold the layer {kind.__module__}.{kind.__name__}: it is not one of torch.nn")
    text = f"nn.{kind.__name__}({', '.join(_arguments(module))})"
    with torch.random.fork_rng(devices=[]):
        try:
            again = eval(text, {"nn": nn})
        except Exception as error:
            raise EjectError(f"the layer {kind.__name__} cannot be written as a call: {text} fails: {error}") from None
    if _facts(again) != _facts(module):
        raise EjectError(f"the layer {module} cannot be written as a call: {text} makes another one")
    return text


def _arguments(module: nn.Module) -> list[str]:
    if isinstance(module, nn.RNNBase):
        return _recurrent_arguments(module)
    written: list[str] = []
    first = True
    for name, parameter in inspect.signature(type(module)).parameters.items():
        if name in ("device", "dtype") or name.startswith("_") or not hasattr(module, name):
            first = False
            continue
        value = _value(module, name)
        if parameter.default is inspect.Parameter.empty or (
            first and type(value) in (int, float) and value != parameter.default
        ):
            written.append(literal(value))
        elif value != parameter.default and not (name == "stride" and value == _value(module, "kernel_size")):
            written.append(f"{name}={literal(value)}")
        first = False
    return written


def literal(value: Any) -> str:
    """A plain value as source code, texts in double quotes.

    >>> literal(("same", 1e-3))
    '("same", 0.001)'
    """
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def _value(module: nn.Module, name: str) -> Any:
    value = getattr(module, name)
    if name == "bias":
        return value is not None and value is not False
    short = any(word in type(module).__name__ for word in _SAME_SIDES) or isinstance(module, nn.LayerNorm)
    if short and isinstance(value, tuple) and len(set(value)) == 1 and (len(value) == 1 or _has_sides(module)):
        return value[0]
    return value


def _has_sides(module: nn.Module) -> bool:
    return not isinstance(module, nn.LayerNorm)


def _recurrent_arguments(module: nn.RNNBase) -> list[str]:
    sizes = [repr(getattr(module, name)) for name in _RECURRENT[:2]]
    others = {name: getattr(module, name) for name in _RECURRENT[2:]}
    if isinstance(module, nn.RNN):
        others["nonlinearity"] = module.nonlinearity
    defaults = {**_RECURRENT_DEFAULTS, "nonlinearity": "tanh"}
    return sizes + [f"{name}={literal(value)}" for name, value in others.items() if value != defaults[name]]


def _facts(module: nn.Module) -> dict[str, Any]:
    """All that is plain about a layer: its settings, and what its tensors are like."""
    own = {key: value for key, value in vars(module).items() if isinstance(value, _PLAIN) and not key.startswith("_")}
    tensors = {**module._parameters, **module._buffers}
    like = {name: None if t is None else (t.shape, t.dtype) for name, t in tensors.items() if _is_tensor(t)}
    return {**own, **like, "training": None}


def _is_tensor(value: Any) -> bool:
    return value is None or isinstance(value, Tensor)
