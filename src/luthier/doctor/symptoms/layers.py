"""Weight matrices in the order of depth, with their gradients and updates relative to their own size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.doctor.symptoms.facts import VIEWS, known, middle, node_of, remembered
from luthier.doctor.vitals import Anatomy, Look, Node, Parameter, Vitals

MULTIPLYING = (
    {"linear", "addmm", "bilinear", "multi_head_attention", "lstm", "gru", "rnn", "rnn_tanh", "rnn_relu"}
    | {f"{kind}_cell" for kind in ("lstm", "gru", "rnn", "rnn_tanh", "rnn_relu")}
    | {f"conv{transposed}{n}d" for transposed in ("", "_transpose") for n in (1, 2, 3)}
)
PRODUCTS = {"matmul", "mm", "bmm", "einsum"}
NORMS = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm"}
RECTIFIERS = {"relu", "relu6", "threshold"}
ACTIVATIONS = {
    "gelu",
    "silu",
    "elu",
    "selu",
    "celu",
    "leaky_relu",
    "prelu",
    "softplus",
    "mish",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "softsign",
    "tanh",
    "sigmoid",
    "glu",
    "logsigmoid",
} | RECTIFIERS
SQUASHING = {"sigmoid", "tanh", "hardtanh", "hardsigmoid", "softsign"}
GATED = {"lstm", "gru", "lstm_cell", "gru_cell"}
RECURRENT = {"rnn", "rnn_cell"} | GATED


@dataclass(frozen=True)
class Layer:
    """A trainable weight matrix at one look.

    Attributes:
        parameter: its anatomy; position: its place in `Anatomy.parameters`. node: the operation that used it first.
    """

    parameter: Parameter
    position: int
    node: Node | None = None

    @property
    def name(self) -> str:
        """Name of the parameter."""
        return self.parameter.name

    @property
    def place(self) -> str:
        """Name of its layer, or of the parameter where it has none."""
        return self.parameter.layer or self.parameter.name

    def at(self, numbers: Sequence[float | None]) -> float | None:
        """Its entry of a list per parameter; None when absent or not finite."""
        value = numbers[self.position] if self.position < len(numbers) else None
        return float(value) if value is not None and math.isfinite(value) else None

    def ratio(self, look: Look, of: str = "grad") -> float | None:
        """Norm of its gradient ("grad", "grad_before_clip") or "update" relative to the norm of the weight."""
        weight, other = self.at(look.weight), self.at(getattr(look, of))
        return other / weight if weight and other is not None else None


def anatomy_at(vitals: Vitals, step: int) -> Anatomy | None:
    """The anatomy in force at a step."""
    earlier = [anatomy for anatomy in vitals.anatomies if anatomy.step <= step]
    return earlier[-1] if earlier else (vitals.anatomies[0] if vitals.anatomies else None)


def source_of(look: Look, source: str) -> str:
    """The source behind views and casts: of `weight.t()` the parameter itself."""
    for _ in range(20):
        node = node_of(look, source)
        if node is None or node.op not in VIEWS or not node.arguments:
            return source
        source = node.arguments[0].source
    return source


def layers(vitals: Vitals, look: Look) -> list[Layer]:
    """Trainable weight matrices (no embeddings, no norm layers) in the order in which the forward pass uses them.

    Without a recorded graph the order of registration stands in.
    """
    return remembered(vitals, f"layers at {look.step}", lambda _: _layers(vitals, look))


def _layers(vitals: Vitals, look: Look) -> list[Layer]:
    anatomy = anatomy_at(vitals, look.step)
    if anatomy is None:
        return []
    matrices = {
        parameter.name: (position, parameter)
        for position, parameter in enumerate(anatomy.parameters)
        if is_matrix(parameter) and position < len(look.weight)
    }
    used: dict[str, Node] = {}
    for node in look.nodes:
        if node.op not in MULTIPLYING and node.op not in PRODUCTS:
            continue
        for argument in node.arguments[node.op in MULTIPLYING :]:  # the first one is what the weight multiplies
            name = source_of(look, argument.source).removeprefix("param:")
            if name in matrices:
                used.setdefault(name, node)
    names = list(used) or list(matrices)
    return [Layer(matrices[name][1], matrices[name][0], used.get(name)) for name in names]


def is_matrix(parameter: Parameter) -> bool:
    """A trainable weight of 2 or more dimensions that multiplies activations."""
    return len(parameter.shape) >= 2 and parameter.requires_grad and "embedding" not in parameter.layer_type.lower()


def biases(vitals: Vitals, look: Look) -> dict[str, tuple[int, Parameter]]:
    """Layer name -> position and anatomy of its bias."""
    anatomy = anatomy_at(vitals, look.step)
    found = {}
    for position, parameter in enumerate(anatomy.parameters if anatomy else ()):
        if len(parameter.shape) == 1 and parameter.name.rsplit(".", 1)[-1].startswith("bias") and parameter.layer:
            found[parameter.layer] = (position, parameter)
    return found


def consumers(look: Look, index: int) -> list[Node]:
    """The operations that read a node, seen through views."""
    found: list[Node] = []
    open_ends = {index}
    for node in look.nodes[index + 1 :]:
        if any(node_of_index(argument.source) in open_ends for argument in node.arguments):
            if node.op in VIEWS or node.op == "dropout":
                open_ends.add(node.index)
            else:
                found.append(node)
    return found


def node_of_index(source: str) -> int:
    """12 of "n12"; -1 for other sources."""
    return int(source[1:]) if source[:1] == "n" and source[1:].isdigit() else -1


def normalised(look: Look, layer: Layer) -> bool:
    """A norm layer follows at once (perhaps behind an addition), so that the scale of the weights does no harm."""
    if layer.node is None:
        return False
    after = consumers(look, layer.node.index)
    beyond = list(itertools.chain(after, *(consumers(look, node.index) for node in after if node.op == "add")))
    return any(node.op in NORMS for node in beyond)


def output_indices(look: Look) -> set[int]:
    """Indices of the model's outputs and of the views and final softmax or sigmoid layers they came through."""
    found = set(look.outputs)
    for node in reversed(look.nodes):
        if node.index in found and (node.op in VIEWS or node.op in ("softmax", "log_softmax", "sigmoid", "logsigmoid")):
            found |= {node_of_index(argument.source) for argument in node.arguments[:1]}
    return found


def total(numbers: Sequence[float | None]) -> float | None:
    """Norm over all parameters, from norms per parameter; None when none is known or one is not finite."""
    given = [value for value in numbers if value is not None]
    if not given or not all(math.isfinite(value) for value in given):
        return None
    return math.sqrt(sum(value**2 for value in given))


def ratios(vitals: Vitals, look: Look, of: str = "update") -> list[float]:
    """`Layer.ratio` of all weight matrices of a look."""
    return known([layer.ratio(look, of) for layer in layers(vitals, look)])


def update_ratio(vitals: Vitals, look: Look) -> float | None:
    """Median over weight matrices of the norm of the update relative to the norm of the weight.

    Source: Karpathy, CS231n notes, "Ratio of weights:updates": about 1e-3 is usual.
    """
    found = ratios(vitals, look)
    return middle(found) if found else None


def first_look(vitals: Vitals) -> Look | None:
    """The look at step 0, before any weight moved; None when watching began later or kept none."""
    return next((look for look in vitals.looks if look.step == 0), None)


def names(places: Sequence[str], limit: int = 4) -> str:
    """A short list of names for a sentence.

    >>> names(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    unique = list(dict.fromkeys(places))
    more = f" and {len(unique) - limit} more" if len(unique) > limit else ""
    return ", ".join(unique[:limit]) + more
