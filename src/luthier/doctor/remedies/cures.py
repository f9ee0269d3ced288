"""The cures that several symptoms share, each with the patch of a Recipe and the lines for a loop of one's own.

In `code` a line begins with "- " when it goes, "+ " when it comes, two blanks when it stays.
"""

from __future__ import annotations

import math
from typing import Any

from luthier.doctor.findings import Finding, Remedy
from luthier.patch import Patch, Scale, Set

GOOD_UPDATE_RATIO = 3e-3  # an update of about a thousandth of the weight's norm per step is the usual rule of thumb
STEP_LINES = "  loss.backward()\n{}  optimizer.step()"


def patched(text: str, *operations: Set | Scale, code: str = "") -> Remedy:
    """A remedy that a Recipe can carry out."""
    return Remedy(text, Patch(reason=text, operations=operations), code)


def written(text: str, code: str = "") -> Remedy:
    """A remedy for the user's own program."""
    return Remedy(text, None, code)


def number(finding: Finding, *names: str) -> float | None:
    """The first finite number that the finding has under one of these names."""
    for name in names:
        value = finding.numbers.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return None


def word(finding: Finding, *names: str) -> str | None:
    """The first text that the finding has under one of these names."""
    values = (finding.numbers.get(name) for name in names)
    return next((value for value in values if isinstance(value, str) and value), None)


def places(finding: Finding, otherwise: str, limit: int = 3) -> str:
    """The layers of a finding as part of a sentence.

    >>> places(Finding("dead_relu", "warning", "", where=("a", "b", "c", "d", "e")), "the network")
    'a, b, c and 2 more'
    """
    names = finding.where[:limit]
    more = len(finding.where) - len(names)
    return (", ".join(names) + (f" and {more} more" if more else "")) if names else otherwise


def first_module(finding: Finding, otherwise: str) -> str:
    """The first place of a finding as Python writes it below `self`.

    >>> first_module(Finding("dead_relu", "warning", "", where=("blocks.0.fc",)), "hidden"), first_module(
    ...     Finding("dead_relu", "warning", ""), "hidden"
    ... )
    ('blocks[0].fc', 'hidden')
    """
    return as_python(finding.where[0]) if finding.where and as_python(finding.where[0]) else otherwise


def as_python(name: str) -> str:
    """A dotted module name as an expression: `layers.0.fc` becomes `layers[0].fc`; "" when it is no such name."""
    parts = name.removesuffix(".weight").removesuffix(".bias").split(".")
    if not all(part.isidentifier() or part.isdigit() for part in parts):
        return ""
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts).removeprefix(".")


def rounded(value: float) -> float:
    """To the nearest of ..., 0.1, 0.3, 1, 3, 10, ...: a factor that people would try.

    >>> rounded(0.0123), rounded(0.024)
    (0.01, 0.03)
    """
    decade = math.floor(math.log10(value))
    steps = [m * 10.0**e for e in (decade, decade + 1) for m in (1, 3)]
    return float(f"{min(steps, key=lambda step: abs(math.log(value / step))):.6g}")


def lr_factor(finding: Finding) -> float:
    """The factor that brings the measured update-to-weight ratio to 3e-3; 0.1 or 10 when it was not measured."""
    suggested, lr = number(finding, "suggested_lr"), number(finding, "lr")
    if suggested and lr and suggested > 0 and lr > 0:
        return min(max(suggested / lr, 1e-3), 1e4)  # ratios of a diverging training are no measure
    ratio = number(finding, "update_ratio", "ratio")
    upwards = finding.symptom in _WANT_MORE
    if ratio is None or ratio <= 0:
        return 10.0 if upwards else 0.1
    factor = rounded(GOOD_UPDATE_RATIO / ratio)
    return min(max(factor, 3.0), 1000.0) if upwards else max(min(factor, 0.3), 1e-3)


_WANT_MORE = {"lr_too_low", "underfitting", "no_learning", "plateau", "too_few_epochs", "batch_too_large"}


def scale_lr(finding: Finding, factor: float, why: str) -> Remedy:
    """Multiply the learning rate."""
    lr = number(finding, "lr")
    verb = "Lower" if factor < 1 else "Raise"
    size = f"{1 / factor:.3g}" if factor < 1 else f"{factor:.3g}"
    new = f"from {lr:.3g} to {lr * factor:.3g}" if lr else f"by a factor of {size}"
    value = f"{lr * factor:.3g}" if lr else f"lr {'/' if factor < 1 else '*'} {size}"
    code = f"+ optimizer = ...(model.parameters(), lr={value})" + (f"  # was {lr:.3g}" if lr else "")
    return patched(f"{verb} the learning rate {new}: {why}.", Scale(field="lr", factor=factor), code=code)


def lower_lr(finding: Finding, why: str = "steps must stay small against the weights") -> Remedy:
    """The learning rate, lower by as much as the measured updates ask for."""
    return scale_lr(finding, min(lr_factor(finding), 0.5), why)


def raise_lr(finding: Finding, why: str = "the weights hardly move") -> Remedy:
    """The learning rate, higher by as much as the measured updates ask for."""
    return scale_lr(finding, max(lr_factor(finding), 2.0), why)


def clip(finding: Finding) -> Remedy:
    """Clip the global gradient norm at 1, or at the usual norm where it was measured."""
    usual = number(finding, "grad_norm_early")
    norm = float(f"{usual:.2g}") if usual and 1e-3 < usual < 1e3 else 1.0
    return patched(
        f"Clip the gradient norm at {norm:g}, so that one steep batch cannot throw the weights away.",
        Set(field="clip_norm", value=norm),
        code=STEP_LINES.format(f"+ torch.nn.utils.clip_grad_norm_(model.parameters(), {norm:g})\n"),
    )


def warm_up() -> Remedy:
    """Ramp the learning rate up over the first tenth of the steps."""
    return patched(
        "Warm the learning rate up over the first 10% of the steps, while gradients are still large and rough.",
        Set(field="warmup_frac", value=0.1),
        code="+ warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=total_steps // 10)\n"
        "  optimizer.step()\n+ warmup.step()",
    )


def schedule(name: str, why: str) -> Remedy:
    """Another learning-rate schedule."""
    code = "+ scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total_steps)\n"
    code += "  optimizer.step()\n+ scheduler.step()"
    return patched(
        f"Use the schedule {name}: {why}.", Set(field="schedule", value=name), code=code if name == "cosine" else ""
    )


def activation(finding: Finding, name: str, why: str) -> Remedy:
    """Another activation in the hidden layers."""
    module = {"relu": "ReLU", "leaky_relu": "LeakyReLU", "gelu": "GELU", "elu": "ELU", "silu": "SiLU"}[name]
    return patched(
        f"Use {module} in {places(finding, 'the hidden layers')}: {why}.",
        Set(field="activation", value=name),
        code=f"+ nn.{module}()",
    )


def initialise(name: str, why: str) -> Remedy:
    """Another initialisation of the weights."""
    function = {"kaiming": "kaiming_normal_", "xavier": "xavier_uniform_", "orthogonal": "orthogonal_"}[name]
    title = {"kaiming": "Kaiming", "xavier": "Xavier", "orthogonal": "orthogonal"}[name]
    code = (
        "+ for module in model.modules():\n"
        "+     if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):\n"
        f"+         nn.init.{function}(module.weight)\n"
        "+         nn.init.zeros_(module.bias)"
    )
    return patched(f"Initialise with {title}: {why}.", Set(field="init", value=name), code=code)


def orthogonal_state() -> Remedy:
    """Recurrent weights that keep the norm of what they carry."""
    return patched(
        "Initialise the recurrent weights as an orthogonal matrix: it neither stretches nor shrinks what it carries.",
        Set(field="init", value="orthogonal"),
        code="+ nn.init.orthogonal_(rnn.weight_hh_l0)",
    )


def gated() -> Remedy:
    """A recurrent layer with gates; no Recipe field can exchange one for another."""
    return written(
        "Use a GRU or an LSTM: gates carry the state past the weights, so it is not multiplied by them at every step.",
        "- nn.RNN(features, hidden, batch_first=True)\n+ nn.GRU(features, hidden, batch_first=True)",
    )


def torch_initialisation() -> Remedy:
    """Every module's own initialisation."""
    return patched(
        "Leave the weights as torch initialises them: its own scale fits fan-in.",
        Set(field="init", value="torch"),
        code="+ module.reset_parameters()  # instead of an initialisation by hand",
    )


def normalise_layers(name: str, why: str) -> Remedy:
    """Normalisation in the hidden layers."""
    module = {"batch": "BatchNorm1d(width)", "layer": "LayerNorm(width)", "group": "GroupNorm(groups, channels)"}[name]
    return patched(
        f"Put {name} normalisation between each hidden layer and its activation: {why}.",
        Set(field="norm", value=name),
        code=f"  nn.Linear(features, width),\n+ nn.{module},\n  nn.ReLU(),",
    )


def residual() -> Remedy:
    """Skip connections; no Recipe field can add them to a network."""
    return written(
        "Add skip connections around the blocks, so that gradients reach the first layers without passing all others.",
        "- x = self.block(x)\n+ x = x + self.block(x)",
    )


def adaptive(why: str) -> Remedy:
    """AdamW at its usual learning rate."""
    return patched(
        f"Use AdamW with lr 0.001: {why}.",
        Set(field="optimizer", value="adamw"),
        Set(field="lr", value=1e-3),
        code="+ optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)",
    )


def longer(factor: float, why: str) -> Remedy:
    """More epochs."""
    return patched(f"Train {factor:g} times as long: {why}.", Scale(field="epochs", factor=factor))


def wider(why: str) -> Remedy:
    """More units in each layer."""
    return patched(f"Double the width of the network: {why}.", Scale(field="model.width", factor=2.0))


def deeper(why: str) -> Remedy:
    """More layers."""
    return patched(f"Double the depth of the network: {why}.", Scale(field="model.depth", factor=2.0))


def bigger_batch(factor: float, why: str) -> Remedy:
    """More examples per step."""
    return patched(
        f"Use batches {factor:g} times as large: {why}.",
        Scale(field="batch_size", factor=factor, high=1024),
        code=f"+ loader = DataLoader(data, batch_size={factor:g} * batch_size, shuffle=True)",
    )


def smaller_batch(factor: float, why: str) -> Remedy:
    """Fewer examples per step."""
    return patched(
        f"Use batches of {_part(factor)} the size: {why}.",
        Scale(field="batch_size", factor=1 / factor, low=16),
        code=f"+ loader = DataLoader(data, batch_size=batch_size // {factor:g}, shuffle=True)",
    )


def _part(factor: float) -> str:
    return {2: "half", 4: "a quarter of", 8: "an eighth of"}.get(int(factor), f"1/{factor:g} of")


def less_regularisation() -> Remedy:
    """All regularisation off."""
    off: dict[str, Any] = {
        "dropout": 0.0,
        "weight_decay": 0.0,
        "l1": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "label_smoothing": 0.0,
    }
    return patched(
        "Switch dropout, weight decay and the other regularisers off until the training data are fitted.",
        *(Set(field=name, value=value) for name, value in off.items()),
        code="+ nn.Dropout(p=0.0)\n+ optimizer = ...(model.parameters(), lr=lr, weight_decay=0.0)",
    )


def average_weights() -> Remedy:
    """Exponential moving average of the weights."""
    return patched(
        "Evaluate an exponential moving average of the weights: it smooths the steps' noise away.",
        Set(field="averaging", value="ema"),
        code="+ average = torch.optim.swa_utils.AveragedModel(\n"
        "+     model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)\n+ )\n"
        "  optimizer.step()\n+ average.update_parameters(model)",
    )


def mix(finding: Finding, alpha: float) -> tuple[Remedy, ...]:
    """Mixup, but not of tokens: there is nothing between two words."""
    if finding.numbers.get("tokens"):
        return ()
    return (patched(f"Mix pairs of examples (mixup, alpha {alpha:g}).", Set(field="mixup", value=alpha)),)
