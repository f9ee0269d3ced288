"""Faults of the inputs: numbers that are not finite, and scales that the first layer cannot work with."""

from __future__ import annotations

import math

from luthier.doctor.findings import Finding, NotSeen, Severity
from luthier.doctor.symptoms import facts
from luthier.doctor.symptoms.modes import lost_in_evaluation
from luthier.doctor.symptoms.outcomes import read, series
from luthier.doctor.vitals import Argument, Look, Node, Stats, Vitals

FIRST = {"linear", "addmm", "matmul", "mm", "bmm", "einsum", "lstm", "gru", "rnn", "rnn_tanh", "rnn_relu", "bilinear"}
NORMS = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"}
LARGE, TINY, UNEVEN = 10.0, 0.01, 30.0


def nan_input(vitals: Vitals) -> list[Finding] | NotSeen:
    """NaN or infinity in inputs or targets: one such example makes every weight NaN."""
    if not vitals.looks and not vitals.data and not vitals.targets:
        return NotSeen("no inputs were seen: pass inputs= and targets= to watch.step")
    places = {look.step: look.inputs.stats.nonfinite for look in vitals.looks if look.inputs and look.inputs.stats}
    broken = [(step, value) for step, value in places.items() if value]
    in_targets = _broken_targets(vitals)
    evidence = []
    if broken:
        evidence.append(
            f"{broken[0][1]:.2%} of the input values at step {broken[0][0]} are NaN or infinite "
            f"({len(broken)} of {len(places)} batches looked at hold some)"
        )
    for part, name in (("inputs", "inputs of the training examples"), ("eval", "inputs of the evaluation examples")):
        found = read(vitals.data, "nonfinite", part)
        if found:
            evidence.append(f"{found:.2%} of the {name} that were sampled hold NaN or infinity")
    columns = [int(column) for column in series(vitals.data, "nonfinite", "columns")]
    if columns:
        evidence.append(f"columns with such values: {', '.join(map(str, columns))}")
    sampled = read(vitals.data, "nonfinite", "targets")
    if in_targets is not None or sampled:
        evidence.append(
            f"targets hold NaN or infinity (first seen at step {in_targets})"
            if in_targets is not None
            else f"{sampled:.2%} of the targets hold NaN or infinity"
        )
    if not evidence:
        return []
    onset = min([step for step, _ in broken[:1]] + ([in_targets] if in_targets is not None else []), default=0)
    spoilt = _spoilt(vitals)
    what = "inputs" if broken or read(vitals.data, "nonfinite", "inputs") else "targets"
    if what == "targets" and in_targets is None and not sampled:
        what = "evaluation inputs"
    harm = "and the loss is not finite either" if spoilt else "though the loss stayed finite: something catches them"
    return [
        Finding(
            symptom="nan_input",
            severity="critical" if spoilt else "info",
            cause=f"The {what} hold NaN or infinity, {harm}.",
            evidence=tuple(evidence),
            onset=onset,
            certainty=1.0 if spoilt else 0.7,
            numbers={"columns": columns},
            source="IEEE 754: every sum with a NaN is NaN",
        )
    ]


def _broken_targets(vitals: Vitals) -> int | None:
    """First step whose targets are not finite."""
    for row in vitals.targets:
        if any(value is not None and not math.isfinite(value) for value in (row.mean, row.std)):
            return row.step
    for look in vitals.looks:
        if look.targets is not None and look.targets.stats is not None and look.targets.stats.nonfinite:
            return look.step
    return None


def _spoilt(vitals: Vitals) -> bool:
    """Losses or metrics that are not finite."""
    losses = [value for value in vitals.steps.loss if value is not None]
    metrics = [value for row in vitals.metrics for value in row.values.values() if isinstance(value, int | float)]
    return any(not math.isfinite(value) for value in [*losses, *metrics])


def unnormalised_input(vitals: Vitals) -> list[Finding] | NotSeen:
    """Inputs far from zero mean and unit scale as the first layer with weights receives them.

    The curvature along the first layer's weights grows with the mean square of its inputs, so that no one learning
    rate suits features of very different scale, or inputs far from zero.
    """
    seen = _first_scale(vitals)
    if seen is None:
        return NotSeen("no floating-point inputs of a layer with weights were seen: pass inputs= to watch.step")
    stats, where, raw, healed = seen
    rms = math.hypot(stats.mean or 0.0, stats.std or 0.0)
    found = _judged(vitals, stats, rms, raw)
    if found is None:
        return []
    what, severity, certainty = found
    if healed and severity != "info" and lost_in_evaluation(vitals) is None:
        severity, certainty = "info", 0.3
    return [
        Finding(
            symptom="unnormalised_input",
            severity=severity,
            cause=f"{what}: the first layer's gradients and curvature follow the scale of its inputs.",
            evidence=tuple(_evidence(vitals, stats, rms, raw, healed)),
            where=(where,) if where else (),
            onset=0,
            certainty=certainty,
            numbers={"mean": stats.mean, "std": stats.std, "rms": rms},
            source="LeCun et al. 1998, Efficient BackProp, section 4.3",
        )
    ]


def _judged(vitals: Vitals, stats: Stats, rms: float, raw: bool) -> tuple[str, Severity, float] | None:
    """What is wrong with the scale, severity and certainty."""
    span = f"mean {stats.mean or 0:.4g}, spread {stats.std or 0:.4g}"
    if rms >= LARGE:
        return f"The inputs are large ({span})", "critical" if rms >= 100 else "warning", 0.8 if rms >= 30 else 0.7
    sizes = series(vitals.data, "inputs", "feature_rms") if raw else []
    if len(sizes) == 5 and sizes[4] >= LARGE and sizes[4] >= UNEVEN * max(sizes[2], 1e-12):
        return f"The features are on very different scales (from {sizes[0]:.3g} to {sizes[4]:.3g})", "warning", 0.75
    zero = stats.zero or 0.0
    if 0 < rms <= TINY and zero < 0.5:
        return f"The inputs are tiny ({span})", "warning", 0.7
    if rms >= 4 and _starts_high(vitals):
        return f"The inputs are large ({span}) and so is the loss at the start", "warning", 0.6
    return (f"The inputs are rather large ({span})", "info", 0.3) if rms >= 4 else None


def _starts_high(vitals: Vitals) -> bool:
    """The first loss is far above that of a constant answer: the initial network is sure of random answers."""
    base = facts.baseline(vitals)
    first = next((value for value in vitals.steps.loss if value is not None and math.isfinite(value)), None)
    if base is None or base.assumed or first is None or not facts.is_classification(vitals):
        return False
    return first > 2 * base.value


def _evidence(vitals: Vitals, stats: Stats, rms: float, raw: bool, healed: bool) -> list[str]:
    lines = [
        f"what the first layer receives: mean {stats.mean or 0:.4g}, spread {stats.std or 0:.4g}, "
        f"from {stats.min if stats.min is not None else math.nan:.4g} to "
        f"{stats.max if stats.max is not None else math.nan:.4g}; root mean square {rms:.4g} where about 1 works best"
    ]
    sizes = series(vitals.data, "inputs", "feature_rms")
    if raw and len(sizes) == 5:
        lines.append(f"scale of single features: least {sizes[0]:.3g}, median {sizes[2]:.3g}, largest {sizes[4]:.3g}")
    if healed:
        lines.append("a normalisation follows the first layer and undoes the scale")
    if _starts_high(vitals):
        lines.append("the loss at the start is more than twice that of a constant answer")
    return lines


def _first_scale(vitals: Vitals) -> tuple[Stats, str, bool, bool] | None:
    """Statistics of what the first layer receives, its name, whether it is the raw input, whether a norm follows."""
    for look in vitals.looks[:3]:
        if not look.nodes:
            continue
        found = [item for item in (_consumed(look, node) for node in _first_consumers(look)) if item is not None]
        if found:
            stats, node, raw = max(found, key=lambda item: abs(math.log(max(_rms(item[0]), 1e-30))))
            return stats, node.module or "", raw, _norm_follows(look, node)
    for look in vitals.looks[:3]:
        inputs = look.inputs
        given = inputs.stats if inputs is not None and "float" in inputs.dtype else None
        if not look.nodes and given is not None and given.mean is not None:
            return given, "", True, False
    return None


def _rms(stats: Stats) -> float:
    return math.hypot(stats.mean or 0.0, stats.std or 0.0)


def _is_layer(node: Node) -> bool:
    return node.op in FIRST or node.op.startswith("conv")


def _first_consumers(look: Look) -> list[Node]:
    """Layers with weights whose input comes from the model's input with no other such layer on any way between."""
    open_sources = {
        argument.source for node in look.nodes for argument in node.arguments if argument.source.startswith("input:")
    }
    found: list[Node] = []
    behind: set[str] = set()
    for node in look.nodes:
        name, given = f"n{node.index}", {argument.source for argument in node.arguments}
        from_input = any(argument.source in open_sources for argument in node.arguments[:1])
        if _is_layer(node) or given & behind:
            behind.add(name)  # a residual sum depends on a layer too: it is no input
            if _is_layer(node) and from_input:
                found.append(node)
        elif from_input and node.op not in ("embedding", "one_hot", "shape", "detach"):
            open_sources.add(name)
    return found


def _consumed(look: Look, node: Node) -> tuple[Stats, Node, bool] | None:
    """The statistics of a layer's input; raw when only views lie between it and the model's input."""
    argument: Argument | None = node.arguments[0]
    raw = True
    while argument is not None:
        if argument.stats is not None and argument.stats.mean is not None:
            return argument.stats, node, raw and _from_input(look, argument)
        source = facts.node_of(look, argument.source)
        if source is None:
            break
        if source.op not in facts.VIEWS:
            raw = False
        if source.stats is not None and source.stats.mean is not None:
            return source.stats, node, raw
        if source.op not in facts.VIEWS:
            return None
        argument = source.arguments[0] if source.arguments else None
    if raw and look.inputs is not None and look.inputs.stats is not None and look.inputs.stats.mean is not None:
        return look.inputs.stats, node, True
    return None


def _from_input(look: Look, argument: Argument) -> bool:
    """Only views lie between the model's input and this argument."""
    source = argument.source
    while not source.startswith("input:"):
        node = facts.node_of(look, source)
        if node is None or node.op not in facts.VIEWS or not node.arguments:
            return False
        source = node.arguments[0].source
    return True


def _norm_follows(look: Look, node: Node) -> bool:
    """The next operation on the layer's output is a normalisation (which undoes any scale of the inputs)."""
    source = f"n{node.index}"
    for later in look.nodes:
        if later.index > node.index and any(argument.source == source for argument in later.arguments):
            if later.op in NORMS:
                return True
            if later.op not in facts.VIEWS:
                return False
            source = f"n{later.index}"
    return False
