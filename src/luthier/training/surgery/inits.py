"""Initial weights by name, applied to a whole model.

Legend: n_in, n_out are a layer's fan-in and fan-out, g the gain of the activation that follows it (1 when none does).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.nn.modules.batchnorm import _NormBase

from luthier.training.surgery.activations import ACTIVATIONS
from luthier.training.surgery.norms import NORM_TYPES
from luthier.training.surgery.report import Notes
from luthier.training.surgery.trace import Trace
from luthier.training.surgery.tree import inside_composite, is_convolution


@dataclass(frozen=True)
class Fans:
    """What an initialisation may know of a weight: fan-in, fan-out, and the gain of what follows."""

    n_in: int
    n_out: int
    gain: float = 1.0


def _kaiming(weight: Tensor, fans: Fans) -> None:
    weight.normal_(0.0, fans.gain / math.sqrt(fans.n_in))


def _xavier(weight: Tensor, fans: Fans) -> None:
    bound = math.sqrt(6.0 / (fans.n_in + fans.n_out))
    weight.uniform_(-bound, bound)


def _orthogonal(weight: Tensor, fans: Fans) -> None:
    drawn = torch.empty(weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)
    weight.copy_(init.orthogonal_(drawn, fans.gain))


def _uniform(weight: Tensor, fans: Fans) -> None:
    bound = 1.0 / math.sqrt(fans.n_in)
    weight.uniform_(-bound, bound)


def _normal(weight: Tensor, fans: Fans) -> None:
    weight.normal_(0.0, 1.0 / math.sqrt(fans.n_in))


INITS: dict[str, Callable[[Tensor, Fans], None] | None] = {
    "kaiming": _kaiming,
    "xavier": _xavier,
    "orthogonal": _orthogonal,
    "uniform": _uniform,
    "normal": _normal,
    "torch": None,
}
"""Name -> how a weight matrix or kernel is drawn; None: by each module's own `reset_parameters`.

kaiming: N(0, g^2 / n_in), He et al. (2015), equation 10.
xavier: U(-a, a), a = sqrt(6 / (n_in + n_out)), Glorot and Bengio (2010), equation 16.
orthogonal: g times a random orthogonal matrix, Saxe et al. (2014).
uniform: U(-a, a), a = 1 / sqrt(n_in), the "standard" of Glorot and Bengio (2010), equation 1.
normal: N(0, 1 / n_in), LeCun et al. (1998), equation 16.
"""


class Initialiser:
    """One initialisation of a whole model; every tensor is drawn once, also when several modules share it.

    Biases become 0, norms 1 and 0, embeddings N(0, 1) with a zero row for padding. Recurrent layers get, gate by gate,
    Xavier for the input, an orthogonal matrix for the state, and 1 for the forget gate of an LSTM (Jozefowicz et al.
    2015); "uniform" and "normal" hold for them too. Attention's projections count as separate matrices.

    Args:
        model: the model.
        trace: tells which activation follows a layer.
        name: a key of `INITS`.
        activation: the activation to reckon with where the trace does not know what follows.
        notes: what was done and left is noted here.
    """

    def __init__(self, model: nn.Module, trace: Trace, name: str, activation: str | None, notes: Notes) -> None:
        self.model, self.trace, self.notes, self.name = model, trace, notes, name
        self.draw = INITS[name]
        self.replaced = activation
        self.done: set[int] = set()
        self.touched: set[str] = set()
        self.composite = inside_composite(model)

    @torch.no_grad()
    def run(self) -> None:
        """Initialise everything and note what could not be."""
        if self.draw is None:
            self._reset_all()
        else:
            # Embeddings go last: a matrix that one shares with a Linear is scaled for the Linear.
            tables = (nn.Embedding, nn.EmbeddingBag)
            for path, module in sorted(self.model.named_modules(), key=lambda item: isinstance(item[1], tables)):
                self._initialise(path, module)
        self.notes.change("", f"{self.name} initialisation of {len(self.touched)} modules")
        self._note_left()

    def _reset_all(self) -> None:
        for path, module in reversed(list(self.model.named_modules())):
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            own = list(module.parameters(recurse=False))
            fresh = not own or any(id(parameter) not in self.done for parameter in own)
            if callable(reset) and fresh and all(parameter.requires_grad for parameter in module.parameters()):
                reset()
                self.touched.add(path)
                self.done.update(map(id, module.parameters()))

    def _initialise(self, path: str, module: nn.Module) -> None:
        before = len(self.done)
        if isinstance(module, NORM_TYPES):
            self._fill(module, "weight", 1.0)
            self._fill(module, "bias", 0.0)
            if isinstance(module, _NormBase) and module.track_running_stats:
                module.reset_running_stats()
        elif isinstance(module, (nn.Linear, nn.Bilinear)) or is_convolution(module):
            self._weight(module, "weight", self._fans(path, module))
            self._fill(module, "bias", 0.0)
        elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            self._embedding(module)
        elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            self._recurrent(module)
        elif isinstance(module, nn.MultiheadAttention):
            self._attention(module)
        if len(self.done) > before:
            self.touched.add(path)

    def _fans(self, path: str, module: nn.Module) -> Fans:
        gain = self._gain(path)
        if isinstance(module, nn.modules.conv._ConvNd):
            size = math.prod(module.kernel_size)
            ins, outs = module.in_channels // module.groups * size, module.out_channels // module.groups * size
            return Fans(ins, outs, gain)
        if isinstance(module, nn.Bilinear):
            return Fans(module.in1_features * module.in2_features, module.out_features, gain)
        n_out, n_in = module.weight.shape  # type: ignore[misc]
        return Fans(int(n_in), int(n_out), gain)

    def _gain(self, path: str) -> float:
        """The gain of the activation that follows a layer; of ReLU when that cannot be known; 1 when none follows."""
        parent, _, child = path.rpartition(".")
        if path in self.composite:
            layer = self.model.get_submodule(parent)
            activation = getattr(layer, "activation", None) if child == "linear1" else None
            name = getattr(activation, "__name__", "linear") if child == "linear1" else "linear"
            return ACTIVATIONS[name].gain if name in ACTIVATIONS else 1.0
        facts = self.trace.layers.get(path)
        if path in self.trace.last or (facts is not None and facts.following == set()):
            return 1.0
        if self.replaced is not None:
            return ACTIVATIONS[self.replaced].gain
        followers = facts.following if facts is not None and facts.following is not None else {"relu"}
        gains = [ACTIVATIONS[name].gain for name in sorted(followers) if name in ACTIVATIONS]
        return gains[0] if gains else ACTIVATIONS["relu"].gain

    def _recurrent(self, module: nn.RNNBase | nn.RNNCellBase) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            if name.startswith("bias"):
                self._fill(module, name, 0.0)
                if (
                    isinstance(module, (nn.LSTM, nn.LSTMCell))
                    and name.startswith("bias_ih")
                    and parameter.requires_grad
                ):
                    parameter[module.hidden_size : 2 * module.hidden_size].fill_(1.0)
            elif self._claim(parameter):
                for gate in torch.split(parameter, module.hidden_size) if "_hr_" not in name else [parameter]:
                    n_out, n_in = gate.shape
                    self._gate(name)(gate, Fans(n_in, n_out))

    def _gate(self, name: str) -> Callable[[Tensor, Fans], None]:
        if self.name in ("uniform", "normal") and self.draw is not None:
            return self.draw
        return _orthogonal if name.startswith("weight_hh") else _xavier

    def _attention(self, module: nn.MultiheadAttention) -> None:
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            parameter = module._parameters.get(name)
            if parameter is not None and self._claim(parameter) and self.draw is not None:
                for matrix in parameter.chunk(3) if name == "in_proj_weight" else [parameter]:
                    self.draw(matrix, Fans(matrix.shape[1], matrix.shape[0]))
        self._fill(module, "in_proj_bias", 0.0)
        for name in ("bias_k", "bias_v"):
            parameter = module._parameters.get(name)
            if parameter is not None and self._claim(parameter):
                init.xavier_normal_(parameter)

    def _embedding(self, module: nn.Embedding | nn.EmbeddingBag) -> None:
        weight = module._parameters.get("weight")
        if weight is not None and self._claim(weight):
            weight.normal_()
        if weight is not None and module.padding_idx is not None and weight.requires_grad:
            weight[module.padding_idx].fill_(0.0)

    def _weight(self, module: nn.Module, name: str, fans: Fans) -> None:
        parameter = module._parameters.get(name)
        if parameter is not None and self._claim(parameter) and self.draw is not None:
            self.draw(parameter, fans)

    def _fill(self, module: nn.Module, name: str, value: float) -> None:
        parameter = module._parameters.get(name)
        if parameter is not None and self._claim(parameter):
            parameter.fill_(value)

    def _claim(self, parameter: Tensor) -> bool:
        """Whether to initialise this tensor now: it is trained, and no other module had it before."""
        if id(parameter) in self.done or not parameter.requires_grad:
            return False
        self.done.add(id(parameter))
        return True

    def _note_left(self) -> None:
        for path, module in self.model.named_modules():
            names = [name for name, p in module.named_parameters(recurse=False) if id(p) not in self.done]
            frozen = [name for name in names if not module._parameters[name].requires_grad]
            if frozen:
                self.notes.refuse(path, f"{', '.join(frozen)} keeps its values: requires_grad is False")
            if others := [name for name in names if name not in frozen]:
                self.notes.refuse(path, f"{', '.join(others)} keeps its values: {_why(module)}")


def _why(module: nn.Module) -> str:
    kind = type(module).__name__
    if "Parametri" in kind or hasattr(module, "original0") or hasattr(module, "weight_v"):
        return "its weight is computed from other tensors (parametrised)"
    return f"no rule for a {kind} (give it the initialisation in its own constructor)"


@torch.no_grad()
def zero_last(model: nn.Module, trace: Trace, notes: Notes) -> None:
    """Zero weights and biases of the layers that the output comes from: the first outputs are all alike."""
    for path in trace.last:
        module = model.get_submodule(path)
        tensors = [module._parameters.get(name) for name in ("weight", "bias")]
        present = [tensor for tensor in tensors if tensor is not None]
        if not present or not (isinstance(module, (nn.Linear, nn.Bilinear)) or is_convolution(module)):
            notes.refuse(path, f"zero_last: the output comes from a {type(module).__name__} without a plain weight")
        elif not all(tensor.requires_grad for tensor in present):
            notes.refuse(path, "zero_last: its weight is frozen, requires_grad is False")
        elif shared := _users(model, present) - {path}:
            notes.refuse(path, f"zero_last: its weight is shared with {', '.join(sorted(shared))}")
        else:
            for tensor in present:
                tensor.zero_()
            notes.change(path, "weight and bias of the last layer zero" if len(present) > 1 else "last weight zero")
    if not trace.last:
        notes.refuse("", "zero_last: no Linear or convolution makes the output")


def _users(model: nn.Module, tensors: list[nn.Parameter]) -> set[str]:
    wanted = {id(tensor) for tensor in tensors}
    return {path for path, module in model.named_modules() for p in module.parameters(recurse=False) if id(p) in wanted}
