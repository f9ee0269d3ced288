"""What acts on gradients between backward and step: the L1 penalty, and clipping."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from luthier.errors import LuthierError

if TYPE_CHECKING:
    import torch


def add_l1(optimizer: torch.optim.Optimizer, strength: float) -> None:
    """Add the subgradient of `strength * sum(|w|)` to the gradients: `grad += strength * sign(w)`, with sign(0) = 0.

    The loss that is reported stays the data loss. The subgradient is taken, not a proximal step (soft threshold),
    since it means the same under every optimizer: a proximal step with lr as its width would answer to another
    penalty in each coordinate under adaptive optimizers. The price is that weights come near 0, not to it.
    Call it before clipping, as if the penalty were part of the loss.

    Args:
        optimizer: from `build_optimizer`; its decayed groups are penalised, where they have gradients.
        strength: at least 0; 0 does nothing.

    Raises:
        LuthierError: the optimizer's groups do not say whether they are decayed.

    Source: Goodfellow et al. 2016, Deep Learning, equation 7.20.
    """
    import torch

    if not strength:
        return
    if not all("decayed" in group for group in optimizer.param_groups):
        raise LuthierError(
            "an L1 penalty needs parameter groups marked `decayed`, got others: "
            "let the optimizer function hand on the groups that it is given, or set l1=0"
        )
    penalised = [p for group in optimizer.param_groups if group["decayed"] for p in group["params"]]
    with_grad = [p for p in penalised if p.grad is not None]
    if with_grad:
        with torch.no_grad():
            torch._foreach_add_([p.grad for p in with_grad], torch._foreach_sign(with_grad), alpha=strength)


def clip_gradients(
    parameters: Iterable[torch.Tensor], max_norm: float | None = None, max_value: float | None = None
) -> torch.Tensor | None:
    """Clip gradients in place: first each entry to `[-max_value, max_value]`, then all together to `max_norm`.

    Args:
        parameters: the parameters whose gradients are clipped.
        max_norm: largest Euclidean norm of all gradients as one vector, > 0; None leaves the norm alone.
        max_value: largest absolute value of an entry, > 0; None leaves entries alone.

    Returns:
        The norm after clipping by value and before clipping by norm, as a scalar on the gradients' device
        (reading it would wait for the device); None without `max_norm`.

    Source: Pascanu et al. 2013, On the difficulty of training recurrent neural networks, Algorithm 1.
    """
    from torch.nn.utils import clip_grad_norm_, clip_grad_value_

    with_grad = [p for p in parameters if p.grad is not None]
    if max_value is not None:
        clip_grad_value_(with_grad, max_value)
    return None if max_norm is None else clip_grad_norm_(with_grad, max_norm)
