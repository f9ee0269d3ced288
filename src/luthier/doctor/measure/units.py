"""Numbers about the units (rows) of a weight."""

from __future__ import annotations

import torch
from torch import Tensor


def row_spread(weight: Tensor) -> Tensor:
    """How much the units of a layer differ: ||W - mean row|| / ||W||; 0 = all units are the same.

    Args:
        weight: (units, ...), at least 2-dimensional.

    Returns:
        A scalar on the weight's device, 0 for all zeros.
    """
    rows = weight.detach().flatten(1).float()
    total = rows.square().sum()
    apart = (rows - rows.mean(0)).square().sum()
    return torch.where(total > 0, (apart / total.clamp_min(1e-38)).sqrt(), torch.zeros_like(total))
