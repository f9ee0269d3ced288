"""The optimizer, and everything that acts between backward and the next step, as source code."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from luthier.ejecting.facts import Facts
from luthier.ejecting.modules import literal
from luthier.ejecting.sources import EjectError
from luthier.training.optimizers import OptimizerPart, _Torch
from luthier.training.parameter_groups import parameter_groups
from luthier.training.step_hooks import fastest_kernel


def write_optimizer(facts: Facts) -> list[str]:
    """The statements that make `optimizer`, and the lists `decayed` and `exempt` where they differ.

    Raises:
        EjectError: muon, or a caller's own optimizer.
    """
    part, recipe = facts.recipe.optimizer, facts.recipe
    if not isinstance(part, _Torch):
        raise EjectError(f"recipe field optimizer={part.name!r} is not written by eject: use another one by name")
    decay, groups = "0.0" if hooked(facts) else repr(recipe.weight_decay), splits(facts)
    lines = _groups(facts.run.model) if groups else []
    if groups:
        target = f'[{{"params": decayed, "weight_decay": {decay}}}, {{"params": exempt, "weight_decay": 0.0}}]'
        settings = _settings(part, {})
    else:
        target, settings = "model.parameters()", _settings(part, {"weight_decay": float(decay)})
    kernel = [f"{name}=True" for name in fastest_kernel(facts.run.model, part.has_fused)]
    arguments = ["groups" if groups else target, "lr=LR", *settings, *kernel]
    if groups:
        lines += ["groups = [", f'    {{"params": decayed, "weight_decay": {decay}}},']
        lines += ['    {"params": exempt, "weight_decay": 0.0},', "]"]
    return [*lines, f"optimizer = torch.optim.{part.torch_name}({', '.join(arguments)})"]


def splits(facts: Facts) -> bool:
    """Whether decay (or the L1 penalty) acts on some parameters and not on others."""
    recipe = facts.recipe
    acts = recipe.weight_decay > 0 or recipe.l1 > 0
    return acts and not recipe.decay_norms_and_biases and bool(_exempt(facts.run.model))


def hooked(facts: Facts) -> bool:
    """Whether weight decay is done in the other way than the optimizer's own."""
    recipe = facts.recipe
    return (
        recipe.weight_decay > 0 and recipe.decoupled is not None and recipe.decoupled is not recipe.optimizer.decouples
    )


def _settings(part: OptimizerPart, others: dict[str, Any]) -> list[str]:
    """Keywords of torch's class that are not at torch's default."""
    defaults = inspect.signature(getattr(torch.optim, part.torch_name)).parameters  # type: ignore[attr-defined]
    settings = {**part.settings(), **others}
    return [f"{key}={literal(value)}" for key, value in settings.items() if value != defaults[key].default]


def _exempt(model: nn.Module) -> set[str]:
    """Names of the parameters that are not decayed."""
    groups = parameter_groups(model, 1.0, hooked=False, everything=False, muon=False)
    left = {id(p) for group in groups if not group["decayed"] for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in left}


def _groups(model: nn.Module) -> list[str]:
    names = _exempt(model)
    if names == {name for name, p in model.named_parameters() if p.ndim < 2}:
        return [
            "decayed = [p for p in model.parameters() if p.ndim > 1]",
            "exempt = [p for p in model.parameters() if p.ndim < 2]  # biases and norms",
        ]
    places = [place for place, (name, _) in enumerate(model.named_parameters()) if name in names]
    return [
        f"places = {{{', '.join(map(str, places))}}}  # of biases and norms",
        "decayed = [p for place, p in enumerate(model.parameters()) if place not in places]",
        "exempt = [p for place, p in enumerate(model.parameters()) if place in places]",
    ]


def write_update(facts: Facts) -> list[str]:
    """The statements from the gradients to the updated weights."""
    recipe = facts.recipe
    decayed = "decayed" if splits(facts) else "model.parameters()"
    lines = []
    if recipe.l1:
        lines += [
            f"for p in {decayed}:",
            "    if p.grad is not None:",
            f"        p.grad.add_(p.detach().sign(), alpha={recipe.l1!r})",
        ]
    if recipe.clip_value is not None:
        lines.append(f"nn.utils.clip_grad_value_(model.parameters(), {recipe.clip_value!r})")
    if recipe.clip_norm is not None:
        lines.append(f"nn.utils.clip_grad_norm_(model.parameters(), {recipe.clip_norm!r})")
    if hooked(facts):
        lines += [*_hooked(facts, decayed)]
    if fastest_kernel(facts.run.model, recipe.optimizer.has_fused).get("fused") and _has_kernels(facts.run.model):
        lines.append("align_gradients(model)")
    return [*lines, "optimizer.step()"]


def _has_kernels(model: nn.Module) -> bool:
    return any(p.ndim > 2 for p in model.parameters())


def _hooked(facts: Facts, decayed: str) -> list[str]:
    strength = repr(facts.recipe.weight_decay)
    change = f"p.mul_(1 - lr * {strength})" if facts.recipe.decoupled else f"p.grad.add_(p, alpha={strength})"
    kind = "decoupled weight decay" if facts.recipe.decoupled else "L2 weight decay"
    lines = ['lr = optimizer.param_groups[0]["lr"]'] if facts.recipe.decoupled else []
    return [
        *lines,
        f"with torch.no_grad():  # {kind}",
        f"    for p in {decayed}:",
        "        if p.grad is not None:",
        f"            {change}",
    ]


ALIGN = '''def align_gradients(model):
    """Give gradients the strides of their parameters: torch's fused optimizers walk both in memory order."""
    for p in model.parameters():
        if p.grad is not None and p.grad.stride() != p.stride():
            p.grad = torch.empty_like(p, memory_format=torch.preserve_format).copy_(p.grad).detach()'''


def write_functions(facts: Facts) -> list[str]:
    """The functions that the update and the averaging call."""
    blocks = [ALIGN] if "align_gradients(model)" in write_update(facts) else []
    part = facts.recipe.averaging
    if part is not None:
        blocks.append(_average(facts, part.averages_buffers))
        if not part.averages_buffers and _norms(facts.run.model):
            blocks.append(_REFRESH)
    return blocks


def refreshes(facts: Facts) -> bool:
    """Whether averaged weights get batch-norm statistics of their own before an evaluation."""
    part = facts.recipe.averaging
    return part is not None and not part.averages_buffers and _norms(facts.run.model)


def _norms(model: nn.Module) -> bool:
    from torch.nn.modules.batchnorm import _BatchNorm

    return any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in model.modules())


def _average(facts: Facts, buffers: bool) -> str:
    lines = [
        "@torch.no_grad()",
        "def update_average(average, model, weight):",
        '    """average += weight * (model - average)."""',
    ]
    lines += [
        "    for kept, new in zip(average.parameters(), model.parameters(), strict=True):",
        "        if weight < 1:",
        "            kept.lerp_(new, weight)",
        "        else:",
        "            kept.copy_(new)",
    ]
    if any(True for _ in facts.run.model.buffers()):
        lines.append("    for kept, new in zip(average.buffers(), model.buffers(), strict=True):")
        if buffers:
            lines += ["        if weight < 1 and kept.is_floating_point():", "            kept.lerp_(new, weight)"]
            lines += ["        else:", "            kept.copy_(new)"]
        else:
            lines.append("        kept.copy_(new)")
    return "\n".join(lines)


_REFRESH = '''@torch.no_grad()
def refresh_batch_norm(model, batches):
    """Set batch-norm statistics to their means over these batches (Izmailov et al. 2018)."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [m for m in norms if m.running_mean is not None]
    momenta = [m.momentum for m in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for batch in batches:
        model(batch)
    model.train()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum'''
