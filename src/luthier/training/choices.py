"""Names of what surgery can do to a network, importable without torch.

The parts themselves are the dicts `NORMS`, `ACTIVATIONS` and `INITS` in `luthier.training.surgery`;
a contract test keeps their keys equal to these names.
"""

from __future__ import annotations

from typing import Literal

NormName = Literal["batch", "layer", "group", "none"]
"""Normalisation of hidden layers."""

ActivationName = Literal[
    "relu",
    "leaky_relu",
    "relu6",
    "elu",
    "selu",
    "gelu",
    "silu",
    "mish",
    "hardswish",
    "tanh",
    "sigmoid",
    "softplus",
]
"""Nonlinearity of hidden layers; all without parameters, so that a swap keeps the optimizer's state valid."""

InitName = Literal["kaiming", "xavier", "orthogonal", "uniform", "normal", "torch"]
"""Initial weights; `torch` is every module's own `reset_parameters`."""
