"""Optimizers: parts with the settings of torch's namesakes, and one function that builds them.

`build_optimizer` sorts parameters into a decayed and an exempt group, applies weight decay the way that is asked for,
and takes the kernel that is fastest on the CPU (fused where torch has it, foreach elsewhere).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, model_validator

from luthier.errors import LuthierError
from luthier.parts import Function, Part, resolve

if TYPE_CHECKING:
    import torch
    from torch import nn

Beta = Annotated[float, Field(ge=0, lt=1)]
Group = dict[str, Any]


class OptimizerPart(Part):
    """An optimizer's name and settings; `build_optimizer` makes the optimizer.

    Attributes:
        decouples: whether its own weight decay is decoupled (else L2); None when that is unknown.
        has_fused: whether torch has a fused CPU kernel for it.
    """

    decouples: ClassVar[bool | None] = False
    has_fused: ClassVar[bool] = False

    @abstractmethod
    def build(self, groups: list[Group], lr: float, kernel: dict[str, bool]) -> torch.optim.Optimizer:
        """The torch optimizer.

        Args:
            groups: parameter groups, each with `params`, `weight_decay` and `lr_factor`.
            lr: learning rate.
            kernel: torch's choice of kernel, `{"fused": True}`, `{"foreach": True}` or empty.
        """


class _Torch(OptimizerPart):
    """A part whose fields are the keywords of one class in `torch.optim`."""

    torch_name: ClassVar[str]

    def build(self, groups: list[Group], lr: float, kernel: dict[str, bool]) -> torch.optim.Optimizer:
        """torch's own optimizer with these settings."""
        import torch

        make = getattr(torch.optim, self.torch_name)
        made: torch.optim.Optimizer = make(groups, lr=lr, **self.model_dump(exclude={"name"}), **kernel)
        return made


class SGD(_Torch):
    """Stochastic gradient descent with momentum.

    Momentum is 0.9 unless said otherwise (torch: 0), as in nearly every published recipe.

    Source: Sutskever et al. 2013, On the importance of initialization and momentum in deep learning.
    """

    torch_name = "SGD"
    has_fused = True
    name: Literal["sgd"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1, description="Part of the last update that is kept.")
    nesterov: bool = Field(False, description="Look ahead along the momentum.")
    dampening: float = Field(0.0, ge=0, le=1, description="Part of the gradient that momentum leaves out.")

    @model_validator(mode="after")
    def _nesterov_possible(self) -> SGD:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise LuthierError(
                "nesterov needs momentum > 0 and dampening 0, "
                f"got momentum={self.momentum}, dampening={self.dampening}: set them, or nesterov=False"
            )
        return self


class Adam(_Torch):
    """Adaptive moments. Source: Kingma & Ba 2015, Algorithm 1; amsgrad: Reddi et al. 2018."""

    torch_name = "Adam"
    has_fused = True
    name: Literal["adam"] = "adam"
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="Decay rates of the first and second moment.")
    eps: float = Field(1e-8, gt=0, description="Added to the denominator.")
    amsgrad: bool = Field(False, description="Keep the largest second moment.")


class AdamW(_Torch):
    """Adam with decoupled weight decay. Source: Loshchilov & Hutter 2019, Algorithm 2."""

    torch_name = "AdamW"
    decouples = True
    has_fused = True
    name: Literal["adamw"] = "adamw"
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="Decay rates of the first and second moment.")
    eps: float = Field(1e-8, gt=0, description="Added to the denominator.")
    amsgrad: bool = Field(False, description="Keep the largest second moment.")


class RMSprop(_Torch):
    """Gradients over a running root mean square. Source: Tieleman & Hinton 2012, lecture 6.5."""

    torch_name = "RMSprop"
    name: Literal["rmsprop"] = "rmsprop"
    alpha: float = Field(0.99, ge=0, lt=1, description="Decay rate of the mean square.")
    eps: float = Field(1e-8, gt=0, description="Added to the denominator.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Part of the last update that is kept.")
    centered: bool = Field(False, description="Divide by the variance instead of the mean square.")


class Adadelta(_Torch):
    """Updates scaled by their own past size; lr is usually 1. Source: Zeiler 2012, Algorithm 1."""

    torch_name = "Adadelta"
    name: Literal["adadelta"] = "adadelta"
    rho: float = Field(0.9, ge=0, lt=1, description="Decay rate of the mean squares.")
    eps: float = Field(1e-6, gt=0, description="Added inside both roots.")


class Adagrad(_Torch):
    """Gradients over the root of the sum of all past squares. Source: Duchi et al. 2011."""

    torch_name = "Adagrad"
    has_fused = True
    name: Literal["adagrad"] = "adagrad"
    lr_decay: float = Field(0.0, ge=0, description="lr is divided by 1 + step * lr_decay.")
    initial_accumulator_value: float = Field(0.0, ge=0, description="Start of the sum of squares.")
    eps: float = Field(1e-10, gt=0, description="Added to the denominator.")


class NAdam(_Torch):
    """Adam with Nesterov momentum. Source: Dozat 2016."""

    torch_name = "NAdam"
    name: Literal["nadam"] = "nadam"
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="Decay rates of the first and second moment.")
    eps: float = Field(1e-8, gt=0, description="Added to the denominator.")
    momentum_decay: float = Field(4e-3, ge=0, description="How fast momentum warms up.")


class RAdam(_Torch):
    """Adam whose adaptive rate is rectified in the first steps. Source: Liu et al. 2020, Algorithm 2."""

    torch_name = "RAdam"
    name: Literal["radam"] = "radam"
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="Decay rates of the first and second moment.")
    eps: float = Field(1e-8, gt=0, description="Added to the denominator.")


class Muon(OptimizerPart):
    """Orthogonalised momentum for hidden matrices, AdamW for all else.

    Muon takes the 2-D weights except embeddings and the output layer (the last matrix in the model); biases, norms,
    convolution kernels, embeddings and the output layer go to AdamW. With `adjust_lr="match_rms_adamw"` (the default
    here) Muon's updates have the size of AdamW's, so one lr serves both; with "original" Muon's lr is usually
    some 50 times that of AdamW: then set `adamw_lr_factor=0.02`.

    Source: Jordan et al. 2024, Muon; Liu et al. 2025, Muon is Scalable for LLM Training (2502.16982), section 2.2.
    """

    decouples = True
    has_fused = True
    name: Literal["muon"] = "muon"
    momentum: float = Field(0.95, ge=0, lt=1, description="Decay rate of Muon's momentum.")
    nesterov: bool = Field(True, description="Look ahead along the momentum.")
    ns_steps: int = Field(5, ge=1, lt=100, description="Newton-Schulz iterations.")
    adjust_lr: Literal["match_rms_adamw", "original"] = Field("match_rms_adamw", description="Scale of Muon's updates.")
    adamw_lr_factor: float = Field(1.0, gt=0, description="AdamW's lr as a multiple of the recipe's lr.")
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="AdamW's decay rates.")
    eps: float = Field(1e-8, gt=0, description="AdamW's addition to the denominator.")

    def build(self, groups: list[Group], lr: float, kernel: dict[str, bool]) -> torch.optim.Optimizer:
        """One optimizer over groups of both kinds."""
        from luthier.training.muon import MuonWithAdamW

        return MuonWithAdamW([group | self._settings(group["kind"], lr) for group in groups], lr, kernel.get("fused"))

    def _settings(self, kind: str, lr: float) -> Group:
        if kind == "adamw":
            factor = self.adamw_lr_factor
            return {"lr": lr * factor, "lr_factor": factor, "betas": self.betas, "eps": self.eps}
        return {
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "ns_steps": self.ns_steps,
            "ns_coefficients": (3.4445, -4.7750, 2.0315),
            "ns_eps": 1e-7,
            "adjust_lr_fn": self.adjust_lr,
        }


class CustomOptimizer(OptimizerPart):
    """A caller's function `(groups, lr) -> torch.optim.Optimizer`.

    The groups hold `params`, `weight_decay` and `lr_factor` and are to be handed on to the optimizer as they are.
    """

    decouples = None
    name: Literal["custom"] = "custom"
    call: Function

    def build(self, groups: list[Group], lr: float, kernel: dict[str, bool]) -> torch.optim.Optimizer:
        """What the function makes, checked to be an optimizer that keeps the weight decay."""
        import torch

        made = self.call(groups, lr)
        if not isinstance(made, torch.optim.Optimizer):
            raise LuthierError(
                f"the optimizer function {self.call.function!r} must return a torch.optim.Optimizer, "
                f"got {type(made).__name__}: return one made from the groups that it is given"
            )
        decays = any(group["weight_decay"] or group["hooked_decay"] for group in groups)
        if decays and not all("hooked_decay" in group for group in made.param_groups):
            raise LuthierError(
                f"the optimizer function {self.call.function!r} must hand on the groups that it is given, "
                "or weight decay is lost: pass them as they are, or set weight_decay=0"
            )
        return made


OPTIMIZERS: dict[str, type[OptimizerPart]] = {
    "sgd": SGD,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
    "adadelta": Adadelta,
    "adagrad": Adagrad,
    "nadam": NAdam,
    "radam": RAdam,
    "muon": Muon,
}

OptimizerChoice = Annotated[SerializeAsAny[OptimizerPart], resolve(OPTIMIZERS, "optimizer", CustomOptimizer)]


def build_optimizer(
    model: nn.Module,
    part: OptimizerPart,
    *,
    lr: float,
    weight_decay: float = 0.0,
    decoupled: bool | None = None,
    decay_norms_and_biases: bool = False,
) -> torch.optim.Optimizer:
    """Make a part's optimizer for a model.

    Weight decay is either L2 (`grad += weight_decay * p`, so that it passes through momentum and adaptive scaling) or
    decoupled (`p *= 1 - lr * weight_decay` before the step). An optimizer's own way is used when it is the one asked
    for; the other way is done by a step hook that reads each group's `hooked_decay`, and so survives loading a state.

    Args:
        model: its trainable parameters are taken, shared ones once.
        part: name and settings of the optimizer.
        lr: learning rate, finite, at least 0.
        weight_decay: strength of the decay, at least 0.
        decoupled: True or False asks for one way; None for the optimizer's own (AdamW, Muon: decoupled; others: L2).
        decay_norms_and_biases: decay all parameters. Otherwise biases, the parameters of normalisation layers and
            those of fewer than 2 dimensions are exempt; embeddings are decayed, as in the recipes of BERT and GPT-2.

    Returns:
        The optimizer, its groups marked `decayed` or not (Muon's also by `kind`), the same whatever the decay.

    Raises:
        LuthierError: nothing to train, settings out of range, or a custom function that returns something else.

    Source: Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization.
    """
    from luthier.training import parameter_groups, step_hooks

    for what, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not 0 <= value < math.inf:
            raise LuthierError(f"{what} must be finite and >= 0, got {value}: choose another")
    hooked = weight_decay > 0 and decoupled is not None and decoupled is not part.decouples
    groups = parameter_groups.parameter_groups(
        model, weight_decay, hooked=hooked, everything=decay_norms_and_biases, muon=isinstance(part, Muon)
    )
    kernel = step_hooks.fastest_kernel(model, part.has_fused)
    optimizer = part.build(groups, float(lr), kernel)
    if weight_decay and not hooked and "weight_decay" not in optimizer.defaults:  # a custom one that knows no decay
        hooked, decoupled = True, False
        for group in optimizer.param_groups:
            group["weight_decay"], group["hooked_decay"] = 0.0, group["weight_decay"]
    if hooked:
        optimizer.register_step_pre_hook(step_hooks.decay_decoupled if decoupled else step_hooks.decay_l2)
    if kernel.get("fused") and any(parameter.ndim > 2 for parameter in model.parameters()):  # memory formats differ
        optimizer.register_step_pre_hook(step_hooks.align_gradients)
        optimizer.register_load_state_dict_post_hook(step_hooks.align_state)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float, momentum: float | None = None) -> None:
    """Write lr, and momentum if given, into every group.

    Args:
        optimizer: any torch optimizer.
        lr: learning rate; each group gets it times its own `lr_factor` (1 without one).
        momentum: written to beta1 where a group has `betas`, else to `momentum` where that is in use (not 0).
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
        if momentum is None:
            continue
        if "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        elif group.get("momentum"):
            group["momentum"] = momentum
