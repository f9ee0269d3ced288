"""Remedies for signals and gradients that do not pass through the network."""

from __future__ import annotations

from luthier.doctor.findings import Finding, Remedy
from luthier.doctor.remedies import cures
from luthier.doctor.remedies.cures import patched, places, written
from luthier.patch import Scale, Set


def vanishing_gradient(finding: Finding) -> tuple[Remedy, ...]:
    """ReLU family, initialisation, normalisation, residual; over time an orthogonal matrix, gates."""
    if "times" in finding.numbers:
        return (cures.orthogonal_state(), cures.gated(), cures.normalise_layers("layer", "it suits sequences"))
    relu = cures.activation(finding, "relu", "its slope is 1 where it is open, a sigmoid's is at most 1/4")
    return (
        patched(
            "Use ReLU with Kaiming initialisation in the hidden layers: every layer then keeps the gradient's size.",
            Set(field="activation", value="relu"),
            Set(field="init", value="kaiming"),
            code=relu.code + "\n+ nn.init.kaiming_normal_(layer.weight)",
        ),
        cures.normalise_layers("batch", "it holds each layer's inputs where the activation has a slope"),
        cures.normalise_layers("layer", "the same for sequences and small batches"),
        relu,
        cures.initialise("xavier", "variance 2/(fan_in + fan_out) fits sigmoid and tanh"),
        cures.residual(),
        patched("Use fewer layers.", Scale(field="model.depth", factor=0.5, low=1)),
    )


def exploding_gradient(finding: Finding) -> tuple[Remedy, ...]:
    """Clipping, smaller lr, initialisation, normalisation; over time an orthogonal matrix first."""
    clip, lower = cures.clip(finding), cures.lower_lr(finding, "each step overshoots where gradients are this large")
    if "times" in finding.numbers:
        return (cures.orthogonal_state(), clip, cures.gated(), lower, cures.warm_up())
    return (
        clip,
        lower,
        cures.initialise("xavier", "products of too large weights multiply the gradient layer by layer"),
        cures.initialise("orthogonal", "it keeps norms over time steps and depth"),
        cures.normalise_layers("layer", "it bounds what a layer hands on"),
        cures.warm_up(),
    )


def exploding_activation(finding: Finding) -> tuple[Remedy, ...]:
    """Initialisation, normalisation, bounded activation, smaller lr."""
    return (
        cures.normalise_layers("batch", "it brings every layer's values back to unit scale"),
        cures.initialise("kaiming", "variance 2/fan_in keeps the scale from layer to layer"),
        cures.lower_lr(finding, "weights that grow with every step blow the activations up"),
        cures.clip(finding),
        patched(
            "Decay the weights a little, so that they cannot grow without end.",
            Set(field="weight_decay", value=1e-3),
            code="+ optimizer = ...(model.parameters(), lr=lr, weight_decay=1e-3)",
        ),
    )


def nan_inf(finding: Finding) -> tuple[Remedy, ...]:
    """The operation without a finite value when it was seen, else smaller steps first."""
    steps = (
        cures.lower_lr(finding, "a training that diverges ends in inf and NaN"),
        cures.clip(finding),
        patched(
            "Compute in float32: float16 ends at 65,504.",
            Set(field="precision", value="float32"),
            code="- with torch.autocast(device, dtype=torch.float16):\n"
            "+ with torch.autocast(device, dtype=torch.bfloat16):",
        ),
    )
    operation = cures.word(finding, "operation")
    known = operation in _GUARDS
    code = _GUARDS[operation or ""] if known else "\n".join(_GUARDS[name] for name in ("log", "sqrt", "div"))
    guard = written(
        f"Guard {operation if known else 'log, sqrt, division and exp'} in {places(finding, 'model and loss')}: at the "
        "edge of its domain the value, or its gradient, is not finite.",
        code,
    )
    logits = written(
        "Give the loss logits: cross_entropy and binary_cross_entropy_with_logits are safe where log(softmax) "
        "and log(sigmoid) are not.",
        "- loss = F.nll_loss(torch.log(torch.softmax(logits, dim=1)), y)\n+ loss = F.cross_entropy(logits, y)",
    )
    first = (guard, logits, *steps) if known and not finding.numbers.get("diverged") else (*steps, guard, logits)
    return (*first, cures.warm_up())


_GUARDS: dict[str, str] = {
    "log": "- torch.log(p)\n+ torch.log(p.clamp_min(1e-8))",
    "log2": "- torch.log2(p)\n+ torch.log2(p.clamp_min(1e-8))",
    "log10": "- torch.log10(p)\n+ torch.log10(p.clamp_min(1e-8))",
    "sqrt": "- torch.sqrt(v)\n+ torch.sqrt(v.clamp_min(0) + 1e-8)",
    "rsqrt": "- torch.rsqrt(v)\n+ torch.rsqrt(v.clamp_min(0) + 1e-8)",
    "div": "- a / b\n+ a / b.clamp_min(1e-8)  # for b >= 0; else a * b / (b**2 + 1e-8)",
    "true_divide": "- a / b\n+ a / b.clamp_min(1e-8)  # for b >= 0; else a * b / (b**2 + 1e-8)",
    "reciprocal": "- 1 / b\n+ 1 / b.clamp_min(1e-8)",
    "exp": "- torch.exp(x)\n+ torch.exp(x.clamp_max(30))",
    "pow": "- x**exponent\n+ x.clamp_min(1e-8) ** exponent",
    "norm": "- x / x.norm(dim=1, keepdim=True)\n+ F.normalize(x, dim=1, eps=1e-6)",
    "acos": "- torch.acos(c)\n+ torch.acos(c.clamp(-1 + 1e-6, 1 - 1e-6))",
    "asin": "- torch.asin(c)\n+ torch.asin(c.clamp(-1 + 1e-6, 1 - 1e-6))",
    "softmax": "- scores.masked_fill(mask, float('-inf')).softmax(-1)  # a row masked as a whole\n"
    "+ scores.masked_fill(mask, -1e9).softmax(-1)",
}


def dead_relu(finding: Finding) -> tuple[Remedy, ...]:
    """Lower lr, leaky activation, initialisation; units that were born dead need the latter first."""
    lower = cures.lower_lr(finding, "one large step can push a unit's bias so low that it never opens again")
    kaiming = cures.initialise("kaiming", "half of the units are then open at the start")
    leaky = cures.activation(finding, "leaky_relu", "a closed unit keeps a small gradient and can come back")
    norm = cures.normalise_layers("batch", "it centres what the activation sees")
    born_dead = (finding.numbers.get("at_start") or 0.0) >= 0.5
    return (
        *((kaiming, leaky, norm, lower) if born_dead else (lower, leaky, kaiming, norm)),
        patched(
            "Use leaky ReLU with a third of the learning rate.",
            Set(field="activation", value="leaky_relu"),
            Scale(field="lr", factor=0.3),
        ),
        cures.clip(finding),
        cures.activation(finding, "gelu", "it has no part that is flat for good near zero"),
    )


def saturated_activation(finding: Finding) -> tuple[Remedy, ...]:
    """Normalisation, initialisation, ReLU family, smaller lr."""
    return (
        cures.normalise_layers("batch", "it keeps the inputs of the activation near zero, where it has a slope"),
        cures.initialise("xavier", "weights of this scale keep sums of fan_in inputs inside the slope"),
        cures.activation(finding, "relu", "it does not saturate upwards"),
        cures.lower_lr(finding, "large steps drive the units onto their flat parts"),
        written(
            "Scale the inputs to zero mean and unit spread: large inputs saturate the first layer.",
            "+ x = (x - mean) / std  # of the training data",
        ),
    )


def bad_activation(finding: Finding) -> tuple[Remedy, ...]:
    """An activation that fits the place."""
    relu = cures.activation(finding, "relu", "it neither squashes nor explodes")
    leaky = cures.activation(finding, "leaky_relu", "it lets negative values through")
    first, second = (leaky, relu) if cures.word(finding, "op") in ("relu", "tanh") else (relu, leaky)
    return (
        first,
        cures.activation(finding, "gelu", "smooth, and open for large values"),
        second,
        cures.normalise_layers("batch", "with it even squashing activations work in their slope"),
    )


def missing_nonlinearity(finding: Finding) -> tuple[Remedy, ...]:
    """An activation between the layers."""
    layer = cures.first_module(finding, "fc1")
    following = (cures.as_python(finding.where[1]) if len(finding.where) > 1 else "") or "fc2"
    return (
        written(
            f"Put an activation after {layer}: linear layers in a row compute one linear map, whatever their number.",
            f"- x = self.{following}(self.{layer}(x))\n+ x = self.{following}(F.relu(self.{layer}(x)))",
        ),
    )


def constant_output(finding: Finding) -> tuple[Remedy, ...]:
    """Whatever shuts the input out: dead layers, scale, too strong regularisation."""
    return (
        cures.lower_lr(finding, "a too large step leaves only the output's bias alive"),
        cures.initialise("kaiming", "the input must survive to the output"),
        cures.normalise_layers("batch", "it keeps differences between examples visible in every layer"),
        cures.activation(finding, "leaky_relu", "closed units let nothing through"),
        cures.less_regularisation(),
        written(
            "Check that the input reaches the output: scale the inputs, and look for a softmax or mean over the "
            "wrong dimension.",
            "+ print(model(x[:8]))  # rows must differ",
        ),
    )


def bad_init(finding: Finding) -> tuple[Remedy, ...]:
    """The scale that fits depth and activation."""
    return (
        cures.initialise("kaiming", "variance 2/fan_in fits layers that ReLU follows"),
        cures.initialise("xavier", "variance 2/(fan_in + fan_out) fits tanh and sigmoid"),
        cures.torch_initialisation(),
        cures.normalise_layers("batch", "it makes the scale of the weights matter less"),
        cures.initialise("orthogonal", "it keeps the norm through many layers"),
        patched(
            "Start the last layer at zero: the first predictions are then neutral.",
            Set(field="zero_last", value=True),
            code=f"+ nn.init.zeros_(model.{cures.first_module(finding, 'head')}.weight)",
        ),
    )


def symmetric_init(finding: Finding) -> tuple[Remedy, ...]:
    """Random weights."""
    layer = cures.first_module(finding, "fc1")
    random = cures.initialise("kaiming", "units that start equal get equal gradients and stay equal for ever")
    return (
        Remedy(
            random.text,
            random.patch,
            f"- nn.init.constant_(self.{layer}.weight, value)\n+ nn.init.kaiming_normal_(self.{layer}.weight)",
        ),
        cures.torch_initialisation(),
        cures.initialise("xavier", "random weights tell units apart"),
    )


def precision_loss(_: Finding) -> tuple[Remedy, ...]:
    """Weights and updates in float32."""
    return (
        patched(
            "Keep weights and optimizer state in float32 and let autocast choose where less is enough: an update "
            "smaller than 1/256 of a bfloat16 weight (1/2048 of a float16 one) is rounded away.",
            Set(field="precision", value="float32"),
            code="- model = model.half()\n+ model = model.float()\n"
            "+ with torch.autocast(device, dtype=torch.bfloat16):\n      loss = loss_fn(model(x), y)",
        ),
        written(
            "With float16 autocast scale the loss, so that small gradients survive.",
            "+ scaler = torch.amp.GradScaler()\n- loss.backward(); optimizer.step()\n"
            "+ scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update()",
        ),
    )
