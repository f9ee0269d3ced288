"""Nonlinearities of hidden layers: as module, as function, and their gain.

The gain of f keeps the second moment of the signal from layer to layer, gain^2 * E[f(z)^2] = 1 with
z ~ N(0, 1): the condition of He et al. (2015, equation 9) with f in place of the ReLU, for which it is sqrt(2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.errors import unknown


@dataclass(frozen=True)
class Activation:
    """A nonlinearity in its two spellings.

    Attributes:
        module: the class, called without arguments.
        function: the same on a tensor.
        gain: 1 / sqrt(E[f(z)^2]), z ~ N(0, 1); scales the initial weights of the layer before it.
    """

    module: Callable[[], nn.Module]
    function: Callable[[Tensor], Tensor]
    gain: float


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(nn.ReLU, F.relu, 1.414214),
    "leaky_relu": Activation(nn.LeakyReLU, F.leaky_relu, 1.414143),
    "relu6": Activation(nn.ReLU6, F.relu6, 1.414214),
    "elu": Activation(nn.ELU, F.elu, 1.245198),
    "selu": Activation(nn.SELU, F.selu, 1.0),
    "gelu": Activation(nn.GELU, F.gelu, 1.533530),
    "silu": Activation(nn.SiLU, F.silu, 1.676532),
    "mish": Activation(nn.Mish, F.mish, 1.486848),
    "hardswish": Activation(nn.Hardswish, F.hardswish, 1.736657),
    "tanh": Activation(nn.Tanh, torch.tanh, 1.592537),
    "sigmoid": Activation(nn.Sigmoid, torch.sigmoid, 1.846229),
    "softplus": Activation(nn.Softplus, F.softplus, 1.041867),
}

MODULE_NAMES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "prelu",
    nn.RReLU: "rrelu",
    nn.ReLU6: "relu6",
    nn.ELU: "elu",
    nn.CELU: "celu",
    nn.SELU: "selu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Mish: "mish",
    nn.Hardswish: "hardswish",
    nn.Hardtanh: "hardtanh",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.LogSigmoid: "log_sigmoid",
    nn.Softplus: "softplus",
    nn.Softsign: "softsign",
}
"""What counts as an activation in a model; softmax, GLU and thresholds do not: they mean something else."""

FUNCTION_NAMES: dict[str, str] = {
    **{name: name for name in MODULE_NAMES.values()},
    **{f"{name}_": name for name in ("relu", "leaky_relu", "rrelu", "elu", "celu", "selu", "hardtanh")},
    **{"sigmoid_": "sigmoid", "tanh_": "tanh", "special_expit": "sigmoid", "relu6_": "relu6"},
}
"""`__name__` of torch's functions and tensor methods -> the activation that they compute."""

SATURATING = frozenset({"sigmoid", "hardsigmoid", "log_sigmoid", "tanh", "hardtanh", "softplus", "softsign"})
"""Activations that also serve as outputs and gates: without knowledge of their place they are left alone."""


def name_of(module: nn.Module) -> str | None:
    """The activation that a module is, None when it is something else (also for subclasses of a user's own).

    >>> name_of(nn.ReLU()), name_of(nn.Linear(1, 1))
    ('relu', None)
    """
    return MODULE_NAMES.get(type(module))


def activation(name: str) -> nn.Module:
    """A new activation module by name.

    Args:
        name: a key of `ACTIVATIONS`.

    Returns:
        The module, without parameters.

    Raises:
        LuthierError: the name is unknown; close matches are listed.

    >>> activation("gelu")
    GELU(approximate='none')
    """
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name].module()
