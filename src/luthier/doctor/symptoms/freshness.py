"""Whether parameters are as an initialiser left them, or trained."""

from __future__ import annotations

import math

from luthier.doctor.vitals import Parameter


def is_trained_norm(item: Parameter) -> bool:
    """Scales of a norm layer begin at 1 and offsets at 0."""
    return "Norm" in item.layer_type and item.initial != "constant"


def is_fresh(item: Parameter) -> bool:
    """Whether values are as an initialiser leaves them: uniform with sharp ends, or normal with a usual scale.

    Training pushes some values beyond the ends of a uniform distribution, and changes the scale of a normal one. The
    root mean square of n normal values is known to 1 / sqrt(2 n).
    """
    if item.rms is None or item.absmax is None or not item.rms:
        return False
    if item.initial == "uniform":
        return item.absmax <= 1.78 * item.rms
    if item.initial != "normal":
        return False
    inputs = item.fan_in or item.shape[-1]
    outputs = item.shape[0] * (inputs // max(item.shape[1], 1) if len(item.shape) > 2 else 1)
    squares = (2 / inputs, 1 / inputs, 2 / outputs, 2 / (inputs + outputs), 1.0, 4e-4, 1e-4)
    error = 3 / math.sqrt(2 * item.numel) + 0.002
    return any(abs(item.rms / math.sqrt(square) - 1) < error for square in squares)
