"""The network of a run as source code: its classes, and a function `initial_model`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from keyword import iskeyword
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from luthier.ejecting.architectures import ARCHITECTURES, only
from luthier.ejecting.initial import write_initialise
from luthier.ejecting.modules import chain, expression, literal, one_or_sequential, sequential
from luthier.ejecting.sources import EjectError, Sources
from luthier.nets import MLP
from luthier.training.building import build_model, operates
from luthier.training.randomness import Stream, derive, seed_global
from luthier.training.surgery.tree import attachments

if TYPE_CHECKING:
    from luthier.recipe import Recipe
    from luthier.task import Task


@dataclass
class Network:
    """A network as source code.

    Attributes:
        blocks: functions and classes in order, `initial_model` the last.
        call: the expression that makes the network.
        edits: statements of surgery on it.
        imports: what a user's code needs beside torch.
        draws: whether a forward pass in training may draw random numbers.
        own: whether it is a user's code, of which nothing is known.
        refused: why a user's code was not taken, and its layers were written instead.
    """

    blocks: list[str]
    call: str
    edits: list[str] = field(default_factory=list)
    imports: set[str] = field(default_factory=set)
    draws: bool = True
    own: bool = False
    refused: str = ""


def write_network(task: Task, recipe: Recipe, example: Any) -> Network:
    """The network of a recipe as source code: plain layers where it consists of them, else the user's own code.

    Args:
        task: its builder makes the network.
        recipe: what surgery does to it.
        example: inputs of one batch.

    Raises:
        EjectError: neither can be written.
    """
    model, _ = build_model(task, recipe, lambda: example)
    home = getattr(task.model, "__module__", "") or ""
    if isinstance(model, (MLP, *ARCHITECTURES)) or home.startswith("luthier."):
        network = _plain(model, example)
    else:
        network = _users(task, recipe, model, example)
    network.blocks.append(_build(recipe, model, network, example))
    return network


def _plain(model: nn.Module, example: Any) -> Network:
    """A network of torch's layers, or one of Luthier's reference networks."""
    if isinstance(model, MLP):
        only(model, {"hidden", "head"})
        layers = [nn.Flatten()] if example.ndim > 2 else []
        blocks = [sequential([*layers, *chain(model.hidden), *chain(model.head)], "    ")]
    elif type(model) in ARCHITECTURES:
        blocks = ARCHITECTURES[type(model)](model)
    else:
        blocks = [sequential(chain(model), "    ")]
    return Network(blocks[:-1], blocks[-1], draws=_draws(model))


def _draws(model: nn.Module) -> bool:
    """Whether a pass through torch's layers draws random numbers in training."""
    kinds = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
    rates = (getattr(m, "dropout", 0.0) for m in model.modules())
    return any(isinstance(m, kinds) and getattr(m, "p", 1) for m in model.modules()) or any(
        isinstance(rate, float) and rate > 0 for rate in rates
    )


def _users(task: Task, recipe: Recipe, model: nn.Module, example: Any) -> Network:
    """A user's network: their source code and the edits of surgery, or its layers where there is no such source."""
    sources, target = Sources(), task.model
    what = f"the model builder {getattr(target, '__name__', type(target).__name__)!r}"
    try:
        if not isinstance(target, (type, FunctionType)):
            raise EjectError(f"{what} is no class or function: make it one")
        name = sources.add(target, what)
        call = f"{name}({', '.join(f'{key}={literal(value)}' for key, value in recipe.model.items())})"
        edits = _edits(task, recipe, model) if operates(recipe) else []
    except EjectError as refused:
        try:
            return replace(_plain(model, example), refused=str(refused))
        except EjectError:
            raise refused from None
    return Network(list(sources.blocks.values()), call, edits, sources.imports, own=True)


def _edits(task: Task, recipe: Recipe, model: nn.Module) -> list[str]:
    """What surgery did to a user's network, as statements."""
    seed_global(derive(recipe.seed, Stream.WEIGHTS), torch.device("cpu"))
    before = dict(task.build(recipe.model).named_modules())
    if "forward" in vars(model):
        raise EjectError(
            "recipe fields dropout and activation replace functions that the model's forward calls (F.relu, F.dropout),"
            " which a script cannot: make these functions modules (nn.ReLU, nn.Dropout), or leave the fields out"
        )
    edits, new = [], set[str]()
    for path, module in model.named_modules():
        if any(path.startswith(f"{done}.") for done in new):
            continue
        if path not in before:
            new.add(path)
            edits += _attached(model, path, module)
        elif type(module) is not type(before[path]):
            new.add(path)
            edits.append(f"    {_place(path, model)} = {one_or_sequential(module, '    ')}")
        else:
            edits += _settings(_place(path, model), before[path], module)
    return edits


def _attached(model: nn.Module, path: str, module: nn.Module) -> list[str]:
    parent, _, name = path.rpartition(".")
    if name not in [hook.name for hook in attachments(model.get_submodule(parent))]:
        raise EjectError(f"surgery added {path}, which a script cannot hold")
    place = _place(parent, model)
    return [
        f"    {place}.{name} = {expression(module)}",
        f"    {place}.register_forward_hook(lambda module, _, output: module.{name}(output))",
    ]


def _settings(place: str, before: nn.Module, after: nn.Module) -> list[str]:
    changed = {
        key: value for key, value in vars(after).items() if not key.startswith("_") and vars(before).get(key) != value
    }
    if any(not isinstance(value, (bool, int, float, str)) for value in changed.values()):
        raise EjectError(f"surgery changed {', '.join(changed)} of {place}, which a script cannot hold")
    return [f"    {place}.{key} = {literal(value)}" for key, value in changed.items()]


def _zero_last(model: nn.Module) -> list[str]:
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    lines = ["    last = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]"]
    lines += ["    nn.init.zeros_(last.weight)"]
    return [*lines, "    nn.init.zeros_(last.bias)"] if layers and layers[-1].bias is not None else lines


def _place(path: str, model: nn.Module) -> str:
    """The expression for a module's path.

    >>> _place("layers.0", nn.ModuleDict({"layers": nn.Sequential(nn.ReLU())}))
    "model['layers'][0]"

    Raises:
        EjectError: a name that Python does not take.
    """
    place, parent = "model", model
    for part in filter(None, path.split(".")):
        if isinstance(parent, nn.ModuleDict):
            place += f"[{part!r}]"
        elif isinstance(parent, (nn.Sequential, nn.ModuleList)) and part.isdigit():
            place += f"[{part}]"
        elif part.isidentifier() and not iskeyword(part):
            place += f".{part}"
        else:
            raise EjectError(f"the module {path!r} has a name that a script cannot write: rename it")
        parent = parent.get_submodule(part)
    return place


def _build(recipe: Recipe, model: nn.Module, network: Network, example: Any) -> str:
    """The function `initial_model`."""
    lines = list(network.edits)
    if recipe.init is not None:
        network.blocks.append(write_initialise(recipe, model, example))
        lines.append("    initialise(model)")
    if recipe.zero_last:
        lines += _zero_last(model)
    if recipe.memory_format == "channels_last":
        lines.append("    model = model.to(memory_format=torch.channels_last)")
    body = [f"    return {network.call}"] if not lines else [f"    model = {network.call}", *lines, "    return model"]
    return "\n".join(["def initial_model():", "    torch.manual_seed(derived_seed(WEIGHTS))", *body])
