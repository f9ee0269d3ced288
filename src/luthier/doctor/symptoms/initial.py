"""Weights as they were before any of them moved: scale against depth, and units that are copies of each other."""

from __future__ import annotations

import math

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms.facts import baseline, known, middle, progress
from luthier.doctor.symptoms.gradients import vanishing_gradient
from luthier.doctor.symptoms.harm import FITTED, harm
from luthier.doctor.symptoms.layers import (
    ACTIVATIONS,
    GATED,
    MULTIPLYING,
    Layer,
    biases,
    first_look,
    layers,
    names,
    normalised,
)
from luthier.doctor.symptoms.starting import dead_at_start, gates_at_start, stuck_at_start
from luthier.doctor.vitals import Look, Parameter, Vitals

_DEFAULT = 0.5
"""Gains above it are at least PyTorch's own (0.58)."""
_HE = "He et al., Delving deep into rectifiers, 2015, section 2.2"


def _gain(layer: Layer) -> float | None:
    """Root mean square of the weights times sqrt(fan_in): 1 keeps variance, 1.41 is Kaiming, 0.58 PyTorch's default."""
    rms, fan_in = layer.parameter.rms, layer.parameter.fan_in
    return None if rms is None or not fan_in else rms * math.sqrt(fan_in)


def bad_init(vitals: Vitals) -> list[Finding] | NotSeen:
    """The scale of the initial weights makes activations grow or shrink from layer to layer, and the loss suffers."""
    look = first_look(vitals)
    if look is None:
        return NotSeen("the first training step was not seen: attach the watch before training starts")
    found = _too_large(vitals, look) or _compounding(vitals, look) or _shifted(vitals, look) or _too_small(vitals, look)
    return [found] if found is not None else []


def free_gains(vitals: Vitals, look: Look) -> list[tuple[Layer, float]]:
    """Layers whose scale matters (no norm layer follows), with their gain."""
    found = [(layer, _gain(layer)) for layer in layers(vitals, look) if not normalised(look, layer)]
    return [(layer, gain) for layer, gain in found if gain is not None]


def _too_large(vitals: Vitals, look: Look) -> Finding | None:
    large = [(layer, gain) for layer, gain in free_gains(vitals, look) if gain > 4]
    if not large:
        return None
    effects = [loss_above(vitals), growth_at_start(look), stuck_at_start(vitals), gates_at_start(vitals, look)]
    effects = [told for told in effects if told]
    if not effects:
        return None
    worst = max(gain for _, gain in large)
    learnt = progress(vitals)
    fine = learnt is not None and learnt > 0.9 and not loss_above(vitals, 10.0) and not stuck_at_start(vitals)
    return Finding(
        "bad_init",
        "info" if fine else "critical" if worst > 30 else "warning",
        f"The initial weights of {names([layer.place for layer, _ in large])} are too large: their rms times "
        f"sqrt(fan_in) is {worst:.3g} where about 1 keeps the scale.",
        (*effects, f"{len(large)} layers with a gain above 4 (PyTorch's default 0.58, Kaiming 1.4)"),
        tuple(layer.place for layer, _ in large),
        0,
        0.9 if worst > 8 or len(effects) > 1 else 0.75,
        {"gain": worst, "direction": "large"},
        source=_HE,
    )


def loss_above(vitals: Vitals, factor: float = 2.5) -> str:
    """The first loss is far above that of a constant answer."""
    first, base = next(iter(known(vitals.steps.loss[:3])), None), baseline(vitals)
    if first is None or base is None or base.assumed or first < factor * base.value:
        return ""
    return f"the first loss is {first:.3g}, that of a constant answer {base.value:.3g}"


def _compounding(vitals: Vitals, look: Look) -> Finding | None:
    """Each layer is a little too large, and their product over the depth (or over time) far too large."""
    above, growth = loss_above(vitals, 5.0), growth_at_start(look, 100.0)
    learnt = progress(vitals)
    if not above or not growth or (learnt is not None and learnt > FITTED):
        return None
    gains = [gain for _, gain in free_gains(vitals, look)]
    if middle(gains, 1.0) <= 2.0:
        return None  # the weights are of ordinary size: see exploding_activation
    return Finding(
        "bad_init",
        "critical",
        "The initial weights let activations grow with every layer or branch (or time step), until the first answers "
        "are far too large.",
        (above, growth, f"rms of the weights times sqrt(fan_in): {middle(gains, 1.0):.2g} in the median"),
        (),
        0,
        0.75,
        {"gain": middle(gains, 1.0), "direction": "large"},
        source="Zhang, Dauphin and Ma, Fixup initialization, 2019",
    )


def _signals(look: Look) -> list[float]:
    """Size of what differs between examples, after every weight layer: across * rms."""
    found = []
    for node in look.nodes:
        stats = node.stats
        if node.module is None or node.op not in MULTIPLYING or stats is None or stats.std is None:
            continue
        size = math.hypot(stats.mean or 0.0, stats.std)
        found.append(size if stats.across is None else size * stats.across)
    return found


def growth_at_start(look: Look, factor: float = 30.0) -> str:
    """Activations grow by such a factor against the inputs."""
    signals = [size for size in _signals(look) if size > 0]
    scale = look.inputs.stats.std if look.inputs is not None and look.inputs.stats is not None else None
    if len(signals) >= 2 and max(signals) > factor * max(scale or 1.0, 1e-3):
        return f"step 0: activations grow to {max(signals):.3g} from inputs of {scale or 1.0:.3g}"
    return ""


def _gradient_fades(vitals: Vitals) -> bool:
    answer = vanishing_gradient(vitals)
    return isinstance(answer, list) and any(found.severity != "info" for found in answer)


def _too_small(vitals: Vitals, look: Look) -> Finding | None:
    """The part of the signal that differs between examples fades with depth, and the loss does not move."""
    learnt, signals = progress(vitals), _signals(look)
    hidden = signals[:-1] if len(signals) > 1 else signals
    free = free_gains(vitals, look)
    inner = free[:-1]
    if learnt is None or learnt > 0.5 or not inner or len(hidden) < 2 or hidden[0] <= 0:
        return None
    shrink = hidden[-1] / hidden[0]
    small = [(layer, gain) for layer, gain in inner if gain < 0.1]
    squashed = any(node.op in ("sigmoid", "hardsigmoid") for node in look.nodes if node.module is not None)
    silent = any(node.op in ACTIVATIONS and node.stats and (node.stats.zero or 0.0) > 0.999 for node in look.nodes)
    fades = shrink < 1e-3 and not squashed and not silent  # what puts out zeros only is dead, whatever its weights
    tiny = len(small) >= max(len(inner) // 2, 1) and shrink < 0.1 and learnt < 0.3
    if not fades and not tiny:
        return None
    gains = [gain for _, gain in inner]
    if middle(gains) > _DEFAULT and _gradient_fades(vitals):
        return None  # nobody chose these weights: it is the depth that they are multiplied over
    blamed = small or inner
    return Finding(
        "bad_init",
        "critical" if learnt < 0.05 and shrink < 1e-4 else "warning",
        f"The initial weights are too small for this depth: rms times sqrt(fan_in) is {middle(gains):.2g}, and what "
        f"differs between examples shrinks to {shrink:.1e} over {len(hidden)} layers.",
        (
            f"step 0: what differs is {hidden[0]:.2g} after the first layer, {hidden[-1]:.2g} after the last hidden",
            f"the training loss came only {learnt:.0%} of the way from a constant answer to 0",
        ),
        tuple(layer.place for layer, _ in blamed)[:8],
        0,
        0.85 if small else 0.65,
        {"gain": middle(gains), "shrink": shrink, "direction": "small"},
        source=_HE,
    )


def _shifted(vitals: Vitals, look: Look) -> Finding | None:
    """Weights or hidden biases so far from zero on one side that units are dead or stuck from the start."""
    learnt = progress(vitals)
    if learnt is not None and learnt > FITTED:
        return None
    effects = [told for told in (dead_at_start(vitals), stuck_at_start(vitals), gates_at_start(vitals, look)) if told]
    if not effects:
        return None
    found = layers(vitals, look)
    held = biases(vitals, look)
    sick = [
        (layer.place, "weights", layer.parameter.mean or 0.0)
        for layer in found
        if layer.parameter.rms
        and abs(layer.parameter.mean or 0.0) > 0.6 * layer.parameter.rms
        and layer.parameter.fan_in != 1
    ]
    for layer in found[:-1]:
        bias = held.get(layer.place)
        if bias is not None and (bias[1].rms or 0.0) > 2:
            sick.append((layer.place, "biases", bias[1].mean or 0.0))
    if not sick:
        return None
    place, kind, mean = sick[0]
    return Finding(
        "bad_init",
        "critical" if (learnt or 0.0) < 0.3 else "warning",
        f"The initial {kind} of {place} lie on one side of zero (mean {mean:.2g}), which puts its units out of their "
        "working range before training begins.",
        (*effects, f"layers with such values: {names([item[0] for item in sick])}"),
        tuple(dict.fromkeys(item[0] for item in sick)),
        0,
        0.85,
        {"mean": mean, "direction": "shifted"},
        source=_HE,
    )


# --- identical units -------------------------------------------------------------------------------------------------


def symmetric_init(vitals: Vitals) -> list[Finding] | NotSeen:
    """Units of a hidden layer start identical and stay so, since they get the same gradient.

    A last layer or a residual branch that starts at zero is healthy: its rows part after the first steps.
    """
    look = first_look(vitals)
    if look is None:
        return NotSeen("the first training step was not seen: attach the watch before training starts")
    inner = [layer for layer in layers(vitals, look)[:-1] if layer.parameter.shape[0] > 1]
    same = [layer for layer in inner if _same(look, layer)]
    later = [other for other in vitals.looks if other.step >= 2]
    spreads = {layer.name: middle([_spread(other, layer) for other in later]) for layer in same}
    gated = [layer for layer in same if later and _alike_within_gates(vitals, look, layer)]
    stuck = [layer for layer in same if layer in gated or (later and spreads[layer.name] < 0.1)]
    if not stuck:
        return []
    zero = [layer for layer in stuck if (layer.parameter.absmax or 0.0) == 0.0]
    learnt = progress(vitals)
    what = "all zero" if zero else "identical to each other"
    base = baseline(vitals)
    fitted = base is not None and not base.assumed and (learnt or 0.0) > FITTED  # a fall from the start proves little
    severity = "info" if fitted and len(stuck) < len(inner) else "critical"
    return [
        Finding(
            "symmetric_init",
            severity,  # type: ignore[arg-type]
            f"The units of {names([layer.place for layer in stuck])} started {what} and stayed so: they get the same "
            "gradient, so each layer works as a single unit.",
            (
                "every weight of them and of the layer behind them started with one value: only their gates can part"
                if gated
                else f"spread of the units around their mean, relative to their size: 0 at step 0, "
                f"{max(spreads[layer.name] for layer in stuck):.1g} in the median of {len(later)} later looks",
                *([told] if (told := harm(vitals)) else []),
            ),
            tuple(layer.place for layer in stuck),
            0,
            0.95 if all(spreads[layer.name] < 1e-3 for layer in stuck) else 0.85,
            {"layers": len(stuck)},
            source="Goodfellow, Bengio and Courville, Deep learning, 2016, section 8.4",
        )
    ]


def _alike_within_gates(vitals: Vitals, look: Look, layer: Layer) -> bool:
    """The gates of a recurrent layer part, which hides that its units do not: nothing around tells units apart."""
    anatomy = vitals.anatomies[0]
    if layer.node is None or layer.node.op not in GATED:
        return False
    own = [item for item in anatomy.parameters if item.layer == layer.place]
    chain = layers(vitals, look)
    behind = [other.parameter for other in chain[chain.index(layer) :] if other.place != layer.place][:1]
    return bool(behind) and all(_one_value(item) for item in (*own, *behind))


def _one_value(item: Parameter) -> bool:
    """All its elements are the same number."""
    return item.absmax is not None and abs(abs(item.mean or 0.0) - item.absmax) <= 1e-4 * item.absmax


def _same(look: Look, layer: Layer) -> bool:
    """All rows of a weight are alike (or all zero) at this look."""
    return _spread(look, layer) < 1e-4


def _spread(look: Look, layer: Layer) -> float:
    """Spread of the units of a layer; 1 where it was not measured, since measuring stops when units part."""
    if layer.at(look.weight) == 0 and not layer.parameter.absmax:
        return 0.0
    spread = layer.at(look.row_spread)
    return 1.0 if spread is None else spread
