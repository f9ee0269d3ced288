"""What surgery must know of a network: which activations are hidden, what follows a layer, which layers are last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from torch import nn

from luthier.training.surgery.activations import SATURATING, name_of
from luthier.training.surgery.tree import COMPOSITE, LAYERS


class Role(Enum):
    """The place of an activation in the network."""

    HIDDEN = "hidden"
    OUTPUT = "it makes the model's output"
    GATE = "it is a gate: its result multiplies another tensor"
    MIXED = "it is used in several places, some of them gates or outputs"
    UNKNOWN = "it may be a gate or make the output; pass example= to let the model show it"
    UNUSED = "its result was not seen in any layer or output"


@dataclass(frozen=True)
class Site:
    """A place in source code where `forward` calls a function: function's qualified name, file, instruction."""

    function: str
    file: str
    instruction: int

    def __str__(self) -> str:
        return f"{self.function} (instruction {self.instruction})"


@dataclass
class LayerFacts:
    """What is known of one layer.

    Attributes:
        following: names of the hidden activations that take its output before any other layer does; None: unknown.
        calls: how often one forward pass runs it; None: unknown.
        ndim: dimensions of its output; None: unknown.
    """

    following: set[str] | None = None
    calls: int | None = None
    ndim: int | None = None


@dataclass
class Trace:
    """What is known of a network.

    Attributes:
        observed: whether the model was run, so that nothing is guessed.
        layers: path -> facts, for layers outside torch's composite ones, in order of use (or of registration).
        activations: path -> place, for activation modules.
        functions: code site -> (name of activation, place), for functions called in `forward`.
        ndims: path -> dimensions of the input, for normalisations.
        last: paths of the layers that the output comes from.
        functional: names of normalisation, dropout and attention functions that `forward` calls.
        recomputed: whether `forward` runs under activation checkpointing.
    """

    observed: bool = False
    layers: dict[str, LayerFacts] = field(default_factory=dict)
    activations: dict[str, Role] = field(default_factory=dict)
    functions: dict[Site, tuple[str, Role]] = field(default_factory=dict)
    ndims: dict[str, int] = field(default_factory=dict)
    last: tuple[str, ...] = ()
    functional: set[str] = field(default_factory=set)
    recomputed: bool = False


def read_chains(model: nn.Module) -> Trace:
    """The trace as far as Sequentials tell it, without running the model.

    An activation with a layer behind it in its chain is hidden. At the end of the model's own chain it makes
    the output. Elsewhere the order is known to `forward` alone: a ReLU and its like are then taken for hidden,
    what saturates is left unknown. The last Linear or convolution in order of registration is taken for the last.
    """
    trace = Trace()
    for is_root, chain in _chains(model):
        for place, (path, module) in enumerate(chain):
            behind = [other for _, other in chain[place + 1 :]]
            if (name := name_of(module)) is not None:
                trace.activations[path] = _place(name, behind, is_root)
            elif isinstance(module, LAYERS):
                trace.layers[path] = LayerFacts(following=_following(behind, is_root))
    trace.last = _guess_last(model, trace)
    return trace


def is_custom(module: nn.Module) -> bool:
    """Whether the module's forward is a user's own, so that functions may be called in it."""
    return not type(module).__module__.startswith("torch.nn.")


def _is_head(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd))


def _guess_last(model: nn.Module, trace: Trace) -> tuple[str, ...]:
    """The last layer of a Sequential, elsewhere the Linear or convolution that was registered last."""
    paths = [path for path, _ in model.named_modules() if path in trace.layers]
    if type(model) is nn.Sequential:
        paths = paths[-1:]
    return tuple([path for path in paths if _is_head(model.get_submodule(path))][-1:])


def _chains(model: nn.Module) -> Iterator[tuple[bool, list[tuple[str, nn.Module]]]]:
    """Runs of modules that are known to follow one another, each with whether it is the model's own."""
    if type(model) is nn.Sequential:
        yield True, list(_flat("", model))
    seen: set[nn.Module] = {model}
    stack = [("", model)]
    while stack:
        path, module = stack.pop()
        if isinstance(module, COMPOSITE) or name_of(module) or isinstance(module, LAYERS):
            continue
        for name, child in module.named_children():
            below = f"{path}.{name}" if path else name
            if child not in seen and not isinstance(module, nn.Sequential):
                yield False, list(_flat(below, child))
            seen.add(child)
            stack.append((below, child))


def _flat(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if type(module) is not nn.Sequential:
        yield path, module
        return
    for name, child in module._modules.items():
        if child is not None:
            yield from _flat(f"{path}.{name}" if path else name, child)


def _weighs(module: nn.Module) -> bool:
    """Whether a module certainly or probably holds a layer."""
    return isinstance(module, LAYERS) or any(isinstance(part, LAYERS) for part in module.modules())


def _place(name: str, behind: list[nn.Module], is_root: bool) -> Role:
    if any(_weighs(module) for module in behind):
        return Role.HIDDEN
    if is_root:
        return Role.OUTPUT
    return Role.UNKNOWN if name in SATURATING else Role.HIDDEN


def _following(behind: list[nn.Module], is_root: bool) -> set[str] | None:
    for place, module in enumerate(behind):
        if (name := name_of(module)) is not None:
            role = _place(name, behind[place + 1 :], is_root)
            return None if role is Role.UNKNOWN else {name} if role is Role.HIDDEN else set()
        if isinstance(module, LAYERS):
            return set()
        if _weighs(module):
            return None
    return set() if is_root else None
