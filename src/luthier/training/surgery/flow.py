"""Following tensors from layer to layer: every tensor carries tags that tell where it comes from.

The tags are the layers that a tensor comes from (with no other layer between), those of them with no activation
between, and the activations since the last layer. When a layer takes a tensor, the activations in its tags are
hidden; those still in the tags of the model's output, and in no layer's input, make the output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from luthier.training.surgery.activations import SATURATING
from luthier.training.surgery.trace import LayerFacts, Role, Site, Trace

Key = str | Site
"""An activation: the path of a module, or the place in code that calls a function."""

_PRODUCTS = frozenset({"mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__", "__imul__"})
_SHAPERS = frozenset(
    [
        "__getitem__",
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "expand",
        "expand_as",
        "repeat",
        "chunk",
        "split",
        "tensor_split",
        "unbind",
        "permute",
        "transpose",
        "movedim",
        "contiguous",
        "clone",
        "to",
        "float",
        "type_as",
        "rsub",
        "__rsub__",
        "neg",
        "dropout",
    ]
)


@dataclass(frozen=True)
class Tags:
    """Where a tensor comes from."""

    layers: frozenset[str] = frozenset()
    raw: frozenset[str] = frozenset()
    activations: frozenset[tuple[Key, int]] = frozenset()

    def __or__(self, other: Tags) -> Tags:
        return Tags(self.layers | other.layers, self.raw | other.raw, self.activations | other.activations)


@dataclass
class Seen:
    """What happened to one activation in the whole pass; its calls are numbered."""

    name: str
    calls: int = 0
    consumed: set[int] = field(default_factory=set)
    output: set[int] = field(default_factory=set)
    gate: bool = False

    @property
    def role(self) -> Role:
        """Its place: a call that a layer takes is hidden, also when the model returns it besides."""
        if self.gate:
            return Role.GATE
        if self.output - self.consumed:
            return Role.MIXED if self.consumed else Role.OUTPUT
        return Role.HIDDEN if self.consumed else Role.UNUSED


@dataclass
class Flow:
    """Tags of all tensors so far, and what they tell."""

    trace: Trace
    seen: dict[Key, Seen] = field(default_factory=dict)
    followers: dict[str, set[Key]] = field(default_factory=dict)
    tags: dict[int, Tags] = field(default_factory=dict)
    fresh: dict[int, Key] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)

    def of(self, values: Any) -> Tags:
        """The tags of all tensors in a structure together."""
        together = Tags()
        for tensor in tensors_in(values):
            together |= self.tags.get(id(tensor), Tags())
        return together

    def mark(self, values: Any, tags: Tags, fresh: Key | None = None) -> None:
        """Tag all tensors in a structure; they are kept alive, so that an id stands for one tensor."""
        for tensor in tensors_in(values):
            self.alive.append(tensor)
            self.tags[id(tensor)] = tags
            self.fresh.pop(id(tensor), None)
            if fresh is not None:
                self.fresh[id(tensor)] = fresh

    def layer(self, path: str | None, inputs: Any, outputs: Any) -> None:
        """A layer ran: the activations of its inputs are hidden, and its outputs start anew."""
        for key, call in self.of(inputs).activations:
            self.seen[key].consumed.add(call)
        own = frozenset() if path is None else frozenset({path})
        self.mark(outputs, Tags(layers=own, raw=own))
        if path is not None:
            facts = self.trace.layers.setdefault(path, LayerFacts(set(), 0))
            facts.calls = (facts.calls or 0) + 1
            facts.ndim = max((tensor.dim() for tensor in tensors_in(outputs)), default=None)

    def activation(self, key: Key, name: str, inputs: Any, outputs: Any) -> None:
        """An activation ran: it follows the layers that its input comes from."""
        tags = self.of(inputs)
        seen = self.seen.setdefault(key, Seen(name))
        seen.calls += 1
        for path in tags.raw:
            self.followers.setdefault(path, set()).add(key)
        after = Tags(tags.layers, frozenset(), tags.activations | {(key, seen.calls)})
        self.mark(outputs, after, fresh=key if name in SATURATING else None)

    def other(self, name: str, inputs: Any, outputs: Any) -> None:
        """Anything else ran: its outputs carry the tags of its inputs."""
        if name in _PRODUCTS:
            self._product(inputs)
        fresh = next((self.fresh[id(t)] for t in tensors_in(inputs) if id(t) in self.fresh), None)
        target = inputs if name == "__setitem__" else outputs
        self.mark(target, self.of(inputs), fresh if name in _SHAPERS else None)

    def _product(self, inputs: Any) -> None:
        """A saturating activation times another tensor that varies with the input is a gate."""
        factors = [t for t in tensors_in(inputs) if t.dim() > 0 and not isinstance(t, nn.Parameter)]
        for tensor in factors if len(factors) > 1 else ():
            if id(tensor) in self.fresh:
                self.seen[self.fresh[id(tensor)]].gate = True

    def output(self, values: Any) -> None:
        """The model returned."""
        tags = self.of(values)
        for key, call in tags.activations:
            self.seen[key].output.add(call)
        self.trace.last = tuple(dict.fromkeys((*self.trace.last, *sorted(tags.layers))))

    def conclude(self) -> Trace:
        """The roles, now that all is seen."""
        for key, seen in self.seen.items():
            if isinstance(key, str):
                self.trace.activations[key] = seen.role
            else:
                self.trace.functions[key] = (seen.name, seen.role)
        for path, keys in self.followers.items():
            hidden = {self.seen[key].name for key in keys if self.seen[key].role is Role.HIDDEN}
            self.trace.layers[path].following = hidden
        return self.trace


def tensors_in(values: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, mappings and dataclasses.

    >>> import torch
    >>> len(list(tensors_in((torch.zeros(1), {"a": [torch.ones(1)]}))))
    2
    """
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from tensors_in(list(values.values()))
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors_in(value)
    elif is_dataclass(values) and not isinstance(values, type):
        yield from tensors_in([getattr(values, part.name) for part in fields(values)])
