"""Muon for hidden matrices and AdamW for the rest, as one optimizer.

A module of its own since the class needs torch, and the parts in `optimizers` must be importable without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from luthier.errors import LuthierError

try:
    from torch.optim._muon import muon
except ImportError as error:
    raise LuthierError(
        f"muon needs a torch with torch.optim.Muon (2.9 or later), got {torch.__version__}: update torch, or use adamw"
    ) from error


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on the groups of kind "muon", AdamW on those of kind "adamw"; one list of groups, one state dict.

    Args:
        groups: parameter groups, each with `params`, `kind` ("muon": only 2-D) and the settings of its kind.
        lr: learning rate, used where a group has none of its own.
        fused: whether AdamW uses torch's fused kernel; None leaves it to torch.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, fused: bool | None = None) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self._fused = fused

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads: list[Tensor] = [p.grad for p in params]
            if group["kind"] == "muon":
                self._muon(group, params, grads)
            else:
                self._adamw(group, params, grads)
        return loss

    def _muon(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        muon(
            params,
            grads,
            self._buffers(params, "momentum_buffer"),
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            ns_coefficients=tuple(group["ns_coefficients"]),
            ns_steps=group["ns_steps"],
            eps=group["ns_eps"],
            adjust_lr_fn=group["adjust_lr_fn"],
            has_complex=False,
        )

    def _adamw(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        for p in params:
            if "step" not in self.state[p]:
                # The fused kernel wants its counter beside the parameter; elsewhere torch keeps it on the CPU.
                self.state[p]["step"] = torch.zeros((), device=p.device if self._fused else "cpu")
        adamw(
            params,
            grads,
            self._buffers(params, "exp_avg"),
            self._buffers(params, "exp_avg_sq"),
            [],
            [self.state[p]["step"] for p in params],
            fused=self._fused,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _buffers(self, params: list[Tensor], name: str) -> list[Tensor]:
        for p in params:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return [self.state[p][name] for p in params]
