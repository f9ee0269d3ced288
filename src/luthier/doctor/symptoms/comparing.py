"""How the loss compares and weighs: shapes that broadcast silently, sums and factors that set its size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms.curves import never_stepped
from luthier.doctor.symptoms.facts import known, middle, progress
from luthier.doctor.symptoms.harm import FITTED, harm
from luthier.doctor.symptoms.layers import layers
from luthier.doctor.symptoms.objectives import LOSSES, REGRESSION, Term, terms
from luthier.doctor.symptoms.paths import Graph, graphs, gravest, unseen
from luthier.doctor.vitals import Argument, Node, Vitals

_ELEMENTWISE = REGRESSION | {"add", "sub", "mul", "div", "pow", "maximum", "minimum", "where"}
_FAR = 16.0
"""A factor of the only loss beyond this either way is no matter of taste (0.5, 2 or 10 are)."""
_HEAVY = 8.0
"""A sum that weighs less than this many means may be meant so (sparsity and other penalties have small factors)."""
_CUSTOMARY = 100.0
"""Up to this one term is weighted on purpose against others (Isola et al., pix2pix, 2017)."""


def shape_broadcast(vitals: Vitals) -> list[Finding] | NotSeen:
    """Prediction and target shapes differ and broadcast: every example is compared with every other."""
    if (missing := unseen(vitals)) is not None:
        return missing
    found = [item for graph in graphs(vitals) for item in [*_outside(graph), *_between_layers(graph)]]
    return gravest(found)


def _outside(graph: Graph) -> list[Finding]:
    """Between what the model answered and a tensor from outside."""
    found = []
    for index in sorted(graph.learning):
        node = graph.nodes[index]
        outside = index not in graph.inside or node.op in REGRESSION
        if node.op not in _ELEMENTWISE or len(node.arguments) < 2 or not outside:
            continue
        ours = [item for item in node.arguments[:2] if graph.is_prediction(item)]
        theirs = [item for item in node.arguments[:2] if not graph.is_prediction(item)]
        if len(ours) == len(theirs) == 1 and not theirs[0].source.startswith(("param", "buffer", "leaf")):
            found.extend(_compared(graph, node, ours[0], theirs[0]))
    return found


def _compared(graph: Graph, node: Node, ours: Argument, theirs: Argument) -> list[Finding]:
    if ours.shape == theirs.shape or not ours.shape or not theirs.shape:
        return []
    result = broadcast(ours.shape, theirs.shape)
    if result is None:
        return []
    sizes = [math.prod(shape) for shape in (ours.shape, theirs.shape, result)]
    if sizes[2] > max(sizes[:2]) and not _on_purpose(graph, node, ours, theirs):
        return [_broadcast(graph, node, (ours.shape, theirs.shape, result), "critical", 1.0)]
    if node.op in REGRESSION and sizes[0] != sizes[1]:
        return [_broadcast(graph, node, (ours.shape, theirs.shape, result), "warning", 0.9)]
    return []


def broadcast(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that two shapes broadcast to; None when they cannot.

    >>> broadcast((32, 1), (32,))
    (32, 32)
    """
    length = max(len(first), len(second))
    pairs = zip((1,) * (length - len(first)) + first, (1,) * (length - len(second)) + second, strict=True)
    result = []
    for one, other in pairs:
        if one != other and 1 not in (one, other):
            return None
        result.append(max(one, other) if min(one, other) != 0 else 0)
    return tuple(result)


def _on_purpose(graph: Graph, node: Node, ours: Argument, theirs: Argument) -> bool:
    """All pairs were asked for: both sides have the same number of dimensions, and not by a loss function."""
    if node.op in REGRESSION:
        return False
    if len(ours.shape) == len(theirs.shape):
        made = [graph.at(item.source) for item in (ours, theirs)]
        return any(item is not None and item.op in ("unsqueeze", "getitem") for item in made)
    return len(ours.shape) >= 3 and _asked_for(graph, ours)


def _asked_for(graph: Graph, argument: Argument) -> bool:
    node = graph.at(argument.source)
    return node is not None and node.op in ("unsqueeze", "getitem") and node.index not in graph.inside


def _broadcast(graph: Graph, node: Node, shapes: Sequence[tuple[int, ...]], severity: str, certainty: float) -> Finding:
    ours, theirs, result = (f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})" for shape in shapes)
    return Finding(
        symptom="shape_broadcast",
        severity="critical" if severity == "critical" else "warning",
        cause=f"the model's output has shape {ours} but the target {theirs}: {node.op} broadcasts them to {result}, so "
        "examples are compared with the targets of others.",
        evidence=(f"step {graph.onset}: {node.op} of {ours} and {theirs} gives {result}.",),
        onset=0,
        certainty=certainty,
        numbers={"prediction": shapes[0], "target": shapes[1], "result": shapes[2]},
        source="numpy broadcasting rules; torch.nn.functional.mse_loss warns of it",
    )


def _between_layers(graph: Graph) -> list[Finding]:
    """Inside the model: (B, D) with (B, 1, D) gives (B, B, D), which mixes the examples."""
    size = graph.batch_size
    for index in sorted(graph.learning & graph.inside):
        node = graph.nodes[index]
        if node.op not in ("add", "sub", "mul", "div") or len(node.arguments) != 2 or size is None or size < 2:
            continue
        one, other = sorted(node.arguments, key=lambda item: len(item.shape))
        nodes = all(graph.at(item.source) is not None for item in (one, other))
        if not nodes or len(one.shape) == len(other.shape) or len(one.shape) < 2:
            continue
        grown = math.prod(node.shape) > max(math.prod(one.shape), math.prod(other.shape))
        if grown and one.shape[0] == other.shape[0] == size and node.shape[:2] == (size, size):
            shapes = (one.shape, other.shape, node.shape)
            return [_mixed(graph, node, shapes)]
    return []


def _mixed(graph: Graph, node: Node, shapes: tuple[tuple[int, ...], ...]) -> Finding:
    one, other, result = shapes
    return Finding(
        symptom="shape_broadcast",
        severity="warning",
        cause=f"{node.op} in {node.module or 'the model'} broadcasts {one} and {other} to {result}: every example is "
        "combined with every other one of the batch.",
        evidence=(f"step {graph.onset}: {node.op} of {one} and {other} gives {result}.",),
        where=(node.module,) if node.module else (),
        onset=0,
        certainty=0.8,
    )


def loss_scale(vitals: Vitals) -> list[Finding] | NotSeen:
    """The size of the loss depends on the batch size or on a wrong factor, and with it that of every gradient."""
    if (missing := unseen(vitals, loss=True)) is not None:
        return missing
    found: list[Finding] = []
    idle = never_stepped(vitals)  # how many batches a step was meant to add up is not known
    for graph in graphs(vitals):
        for root in () if idle else graph.roots:
            parts = terms(graph, root)
            found.extend(_summed(graph, parts) or _factored(graph, parts) or _unheard(vitals, graph, parts))
            found.extend(_diluted(graph, parts))
            found.extend(_unequal(vitals, graph, parts))
            found.extend(_drowning(vitals, graph, parts))
        found.extend(_accumulated(vitals, graph))
    return gravest(found)


def _scale(graph: Graph, cause: str, evidence: str, severity: str, certainty: float, factor: float) -> list[Finding]:
    return [
        Finding(
            symptom="loss_scale",
            severity="warning" if severity == "warning" else "info",
            cause=cause,
            evidence=(f"step {graph.onset}: {evidence}",),
            onset=0,
            certainty=certainty,
            numbers={"factor": factor},
        )
    ]


def _summed(graph: Graph, parts: Sequence[Term]) -> list[Finding]:
    """A sum over the examples that nothing divides."""
    bare = [part for part in parts if part.summed is not None and not part.divided_after]
    size = graph.batch_size
    if not bare or len(bare) < len(parts) or size is None or size < 2:
        return []
    joint = len(parts) > 1  # an ELBO is usually written as two sums
    cause = f"the loss is summed over the {size} examples of the batch, not averaged: gradient and step size grow with "
    cause += "the batch size."
    node = bare[0].summed
    text = 'reduction="sum"' if node is not None and node.op in LOSSES else "a sum over the examples"
    return _scale(graph, cause, f"backward() is called on {text}.", "info" if joint else "warning", 0.95, float(size))


def _diluted(graph: Graph, parts: Sequence[Term]) -> list[Finding]:
    """A sum over the examples of a batch, divided by far more than were summed: by the size of the data set, say."""
    if len(parts) != 1 or parts[0].summed is None or not parts[0].divided_after or parts[0].weighted:
        return []
    node = parts[0].summed
    n = math.prod(node.arguments[1 if node.op in LOSSES and len(node.arguments) > 1 else 0].shape)
    share = n * abs(parts[0].factor)
    if not 0 < share <= 1 / _FAR or _accumulates(graph, share):
        return []
    cause = f"the loss is a sum over {n} values, divided by {1 / abs(parts[0].factor):.4g}: every gradient is "
    cause += f"{share:.2g} times that of the mean over the batch."
    return _scale(graph, cause, f"factor {parts[0].factor:.3g} between the sum and backward().", "warning", 0.9, share)


def _unequal(vitals: Vitals, graph: Graph, parts: Sequence[Term]) -> list[Finding]:
    """One term is summed over the examples, another one averaged: the batch size weighs them against each other."""
    size, learnt = graph.batch_size, progress(vitals)
    means = [part for part in parts if part.summed is None and part.node.op in LOSSES and _is_mean(part.node)]
    sums = [part for part in parts if part.summed is not None and not part.weighted and _of_examples(graph, part)]
    if not means or not sums or size is None or any(part.weighted for part in means):
        return []
    weight = size * max(abs(part.factor) for part in sums) / max(abs(part.factor) for part in means)
    if weight < _HEAVY or (learnt is not None and learnt > FITTED):
        return []
    cause = f"one term of the loss is summed over the {size} examples of the batch, {means[0].node.op} beside it is "
    cause += f"averaged: the sum weighs {weight:.3g} times as much as its mean would, and drowns the other."
    return _scale(graph, cause, f"sum and mean under one backward(), factor {weight:.3g}.", "warning", 0.9, weight)


def _of_examples(graph: Graph, part: Term) -> bool:
    """What is summed depends on the batch; a sum over weights (a penalty) does not."""
    behind = graph.upstream([part.node.index])
    sources = {item.source.partition(":")[0] for index in behind for item in graph.nodes[index].arguments}
    return bool(sources & {"input", "inputs", "target"})


def _factored(graph: Graph, parts: Sequence[Term]) -> list[Finding]:
    """The only loss is multiplied by a number far from 1."""
    if len(parts) != 1 or parts[0].weighted or parts[0].summed is not None:
        return []
    factor = abs(parts[0].factor)
    if factor == 0 or 0.25 <= factor <= 4 or _accumulates(graph, factor):
        return []
    size = graph.batch_size
    twice = size is not None and size >= 4 and abs(factor * size - 1) < 1e-6 and _is_mean(parts[0].node)
    grave = twice or factor >= _FAR or factor <= 1 / _FAR
    cause = f"the loss is multiplied by {factor:.4g} before backward(), which changes every gradient by this factor."
    if twice:
        cause = f"the loss is a mean already, but is divided by the batch size {size} once more."
    text = f"factor {factor:.4g} between {parts[0].node.op} and backward()."
    return _scale(graph, cause, text, "warning" if grave else "info", 0.95, factor)


def _unheard(vitals: Vitals, graph: Graph, parts: Sequence[Term]) -> list[Finding]:
    """One of several losses is multiplied by so little that the layers which only it trains stand still."""
    reached = [_trained(graph, part) for part in parts]
    for part, mine in zip(parts, reached, strict=True):
        others = frozenset().union(*(found for found in reached if found is not mine))
        alone, rest = _pace(vitals, graph, mine - others), _pace(vitals, graph, others)
        if part.weighted or not 0 < abs(part.factor) <= 1 / _FAR or alone is None or rest is None:
            continue
        if alone < 1e-5 and alone < 1e-2 * rest:
            cause = f"{part.node.op} enters the loss times {part.factor:.3g}: what it alone trains hardly moves."
            name = ", ".join(sorted(mine - others)[:3])
            text = f"a step changes {name} by {alone:.1g} of its size, the others by {rest:.1g}."
            return _scale(graph, cause, text, "warning", 0.85, abs(part.factor))
    return []


def _drowning(vitals: Vitals, graph: Graph, parts: Sequence[Term]) -> list[Finding]:
    """One of several losses is multiplied by so much that the training breaks; weights up to 100 are customary."""
    factor, part = max(((abs(part.factor), part) for part in parts), key=lambda pair: pair[0], default=(0.0, None))
    hurt = harm(vitals)
    if len(parts) < 2 or part is None or part.weighted or factor <= _CUSTOMARY or not hurt or "never got" in hurt:
        return []
    cause = f"{part.node.op} enters the loss times {factor:.4g}, and with it every gradient that it sends: {hurt}."
    return _scale(graph, cause, f"factor {factor:.4g} beside {len(parts) - 1} other terms.", "warning", 0.9, factor)


def _trained(graph: Graph, part: Term) -> frozenset[str]:
    """Names of the parameters that a term of the loss depends on."""
    behind = graph.upstream([part.node.index], differentiable=True)
    sources = (item.source for index in behind for item in graph.nodes[index].arguments)
    return frozenset(source.removeprefix("param:") for source in sources if source.startswith("param:"))


def _pace(vitals: Vitals, graph: Graph, names: frozenset[str]) -> float | None:
    """Median size of an update of some weights relative to them."""
    looks = [look for look in graph.looks if look.step > 0]
    pairs = [(look, layer) for look in looks for layer in layers(vitals, look) if layer.name in names]
    found = known([layer.ratio(look, "update") for look, layer in pairs])
    return middle(found) if found else None


def _accumulates(graph: Graph, factor: float) -> bool:
    """Division by the number of backward calls of a step: gradient accumulation as it should be."""
    most = max((look.n_backward for look in graph.looks), default=1)
    return most >= 2 and 0.4 / most <= factor <= 1


def _is_mean(node: Node) -> bool:
    return node.op not in LOSSES or node.attrs.get("reduction", "mean") == "mean"


def _accumulated(vitals: Vitals, graph: Graph) -> list[Finding]:
    """Gradients of several batches are added but the loss is not divided."""
    counts = [look.n_backward for look in graph.looks]
    several = len(counts) >= 2 and min(counts) == max(counts) >= 4
    closures = any("LBFGS" in row.type for row in vitals.optimizers)
    if not several or closures or (vitals.anatomy is not None and len(vitals.anatomy.model_types) > 1):
        return []
    parts = [part for root in graph.roots[:1] for part in terms(graph, root)]
    if not parts or any(part.weighted or abs(part.factor) < 0.9 or part.summed is not None for part in parts):
        return []
    cause = f"every optimizer step adds the gradients of {counts[0]} backward calls, but the loss is not divided by "
    cause += "their number: the step is that much larger."
    return _scale(graph, cause, f"{counts[0]} backward calls a step, factor 1.", "warning", 0.7, float(counts[0]))
