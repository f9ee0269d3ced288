"""What stands between the last layer and the loss: an operation twice, or one that cannot reach the targets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms.objectives import BINARY, REGRESSION, LossCall, loss_calls
from luthier.doctor.symptoms.paths import (
    DROPOUTS,
    SAME_VALUES,
    SOFTMAXES,
    Graph,
    graphs,
    gravest,
    is_dense,
    place,
    unseen,
)
from luthier.doctor.vitals import Argument, Node, Stats, Vitals

_PASSED = SAME_VALUES | DROPOUTS
_CLAMPED = _PASSED | {"clamp"}
_SQUASHED = _CLAMPED | {"log", "softmax", "log_softmax", "sigmoid", "logsigmoid"}
_HALF_OPEN = {"relu", "softplus", "exp", "abs", "square", "sqrt"}
_LOGIT_LIMITS = {"relu", "relu6", "tanh", "hardtanh", "softplus", "clamp", "square", "abs", "softsign", "exp"}
_NEARLY_POSITIVE = {"gelu": -0.17, "silu": -0.28, "mish": -0.31, "elu": -1.0, "celu": -1.0}


def softmax_before_ce(vitals: Vitals) -> list[Finding] | NotSeen:
    """Softmax or sigmoid before a loss that applies it again: its gradient fades and the loss cannot reach 0."""
    if (missing := unseen(vitals, loss=True)) is not None:
        return missing
    found: list[Finding] = []
    for graph in graphs(vitals):
        for call in loss_calls(graph):
            found.extend(_twice(graph, call))
        found.extend(_log_of_softmax_twice(graph))
    return gravest(found)


def _twice(graph: Graph, call: LossCall) -> list[Finding]:
    if call.kind not in ("cross_entropy", "binary_cross_entropy_with_logits"):
        return []
    origin = graph.origin(call.prediction.source, _CLAMPED)
    op = origin.op if origin is not None else ""
    if op == "log" and origin is not None:
        inner = graph.origin(origin.arguments[0].source, _CLAMPED | {"add"})
        op = "log_softmax" if inner is not None and inner.op in SOFTMAXES else op
    if origin is not None and op in SOFTMAXES | {"sigmoid"}:
        return [_double(graph, call, origin, 1.0)]
    if op == "log_softmax" and call.kind == "cross_entropy":
        return [_harmless(graph, call)]
    if op not in ("log", "linear") and _looks_normalised(graph, call):
        return [_double(graph, call, origin, 0.85)]
    return []


def _looks_normalised(graph: Graph, call: LossCall) -> bool:
    """Every row of the scores is a distribution at every look (softmax by hand), or every score a probability."""
    numbers = graph.numbers_of(call.prediction)
    if not numbers or any(item.min is None or item.max is None for item in numbers):
        return False
    bounded = all(item.min >= 0 and item.max <= 1 for item in numbers if item.min is not None and item.max is not None)
    if call.kind != "cross_entropy":
        origin = graph.origin(call.prediction.source, _PASSED)
        return bounded and origin is not None and origin.op in ("div", "reciprocal")
    shape = call.prediction.shape
    if len(shape) != 2 or shape[1] < 2 or not bounded:
        return False
    return all(_near(item.row_sum_min, 1) and _near(item.row_sum_max, 1) for item in numbers)


def _near(value: float | None, wanted: float, tolerance: float = 1e-3) -> bool:
    return value is not None and abs(value - wanted) <= tolerance


def _double(graph: Graph, call: LossCall, origin: Node | None, certainty: float) -> Finding:
    op = "softmax" if origin is None or origin.op == "div" else origin.op
    again = "softmax" if call.kind == "cross_entropy" else "sigmoid"
    classes = call.prediction.shape[1] if len(call.prediction.shape) > 1 else 2
    floor = math.log(1 + (classes - 1) / math.e) if call.kind == "cross_entropy" else math.log(1 + 1 / math.e)
    where = place(origin) if origin is not None else ""
    return Finding(
        symptom="softmax_before_ce",
        severity="critical",
        cause=f"{op} is applied to the model's output before {call.kind}, which applies {again} itself: the scores "
        f"stay within 0 and 1, so the loss cannot fall below about {floor:.2f} and its gradient fades.",
        evidence=(
            f"step {graph.onset}: the scores given to {call.kind} {_range(graph, call.prediction)} come from {op}.",
        ),
        where=(where,) if where else (),
        onset=0,
        certainty=certainty,
        numbers={"op": op, "loss": call.kind, "floor": floor},
        source="torch.nn.CrossEntropyLoss: 'the input is expected to contain the unnormalized logits'.",
    )


def _range(graph: Graph, argument: Argument) -> str:
    numbers = [item for item in graph.numbers_of(argument) if item.min is not None and item.max is not None]
    shape = "x".join(str(size) for size in argument.shape)
    if not numbers:
        return f"({shape})"
    return f"({shape}, from {numbers[0].min:.3g} to {numbers[0].max:.3g})"


def _harmless(graph: Graph, call: LossCall) -> Finding:
    return Finding(
        symptom="softmax_before_ce",
        severity="info",
        cause="log_softmax is applied before cross_entropy, which applies it again: it changes nothing but costs time.",
        evidence=(f"step {graph.onset}: the scores given to cross_entropy come from log_softmax.",),
        onset=0,
        certainty=1.0,
        numbers={"op": "log_softmax", "loss": call.kind},
    )


def _log_of_softmax_twice(graph: Graph) -> list[Finding]:
    """log_softmax(softmax(x)) on the way to a loss written with nll_loss or by hand."""
    found = []
    for index in graph.learning:
        node = graph.nodes[index]
        if node.op != "log_softmax" or not node.arguments:
            continue
        origin = graph.origin(node.arguments[0].source, _CLAMPED)
        if origin is not None and origin.op in SOFTMAXES | {"sigmoid"}:
            call = LossCall(node, "cross_entropy", node.arguments[0])
            found.append(_double(graph, call, origin, 1.0))
    return found


def output_range_mismatch(vitals: Vitals) -> list[Finding] | NotSeen:
    """The last operation cannot produce what the loss asks for: ReLU or sigmoid before negative or large targets."""
    if (missing := unseen(vitals, loss=True)) is not None:
        return missing
    found: list[Finding] = []
    for graph in graphs(vitals):
        for call in loss_calls(graph):
            found.extend(_out_of_reach(graph, call) if call.kind in REGRESSION else _limited_logits(graph, call))
    return gravest(found)


def reach(node: Node) -> tuple[float, float] | None:
    """The range of an operation's output; None when it is not bounded on any side."""
    attrs = node.attrs
    if node.op in ("sigmoid", "hardsigmoid") or node.op in SOFTMAXES:
        return 0.0, 1.0
    if node.op in ("tanh", "softsign"):
        return -1.0, 1.0
    if node.op == "relu6":
        return 0.0, 6.0
    if node.op == "hardtanh":
        return _limit(attrs, "min", -1.0), _limit(attrs, "max", 1.0)
    if node.op in ("clamp", "clamp_min", "clamp_max"):
        return _limit(attrs, "min", -math.inf), _limit(attrs, "max", math.inf)
    if node.op in _HALF_OPEN:
        return 0.0, math.inf
    if node.op in ("log_softmax", "logsigmoid"):
        return -math.inf, 0.0
    return (_NEARLY_POSITIVE[node.op], math.inf) if node.op in _NEARLY_POSITIVE else None


def _limit(attrs: Mapping[str, Any], name: str, default: float) -> float:
    found = attrs.get(name)
    return float(found) if isinstance(found, (int, float)) else default


def _out_of_reach(graph: Graph, call: LossCall) -> list[Finding]:
    origin = graph.origin(call.prediction.source, _PASSED)
    limits = reach(origin) if origin is not None else None
    if origin is None or limits is None or call.target is None:
        return []
    targets = [item for item in graph.numbers_of(call.target) if item.min is not None and item.max is not None]
    outside = [share for item in targets if (share := _share_outside(item, limits)) > 0]
    if not targets or len(outside) * 2 <= len(targets):
        return []
    return [_unreachable(graph, call, origin, limits, targets, sorted(outside)[len(outside) // 2])]


def _share_outside(targets: Stats, limits: tuple[float, float]) -> float:
    """About which share of the targets lies clearly outside, were they normal; 0 for stray ones near the limit.

    Clearly: further from the limit than a quarter of their standard deviation.
    """
    known = (targets.min, targets.max, targets.mean, targets.std)
    if any(item is None for item in known):
        return 0.0
    low, high, mean, std = (float(item) for item in known if item is not None)
    std = max(std, 1e-6 * max(abs(mean), 1e-6))
    share = 0.0
    if limits[0] - low > 0.25 * std:
        share += max(_below((limits[0] - mean) / std), 1 / max(targets.n, 1))
    if high - limits[1] > 0.25 * std:
        share += max(_below((mean - limits[1]) / std), 1 / max(targets.n, 1))
    return min(share, 1.0)


def _below(z: float) -> float:
    """Probability that a standard normal number is below z."""
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def _unreachable(
    graph: Graph, call: LossCall, origin: Node, limits: tuple[float, float], targets: Sequence[Stats], share: float
) -> Finding:
    low = min(item.min for item in targets if item.min is not None)
    high = max(item.max for item in targets if item.max is not None)
    return Finding(
        symptom="output_range_mismatch",
        severity="critical" if share > 0.1 else "warning" if share > 0.01 else "info",
        cause=f"the model's output comes from {origin.op}, which gives {_interval(limits)}, but the targets reach from "
        f"{low:.3g} to {high:.3g}: what lies outside can never be predicted.",
        evidence=(f"about {share:.0%} of the targets lie outside, from step {graph.onset} on.",),
        where=(place(origin),),
        onset=0,
        certainty=1.0 if share > 0.05 else 0.8,
        numbers={"op": origin.op, "low": low, "high": high, "share": share, "loss": call.kind},
    )


def _interval(limits: tuple[float, float]) -> str:
    low, high = limits
    if math.isinf(high):
        return f"no value below {low:g}"
    return f"no value above {high:g}" if math.isinf(low) else f"values from {low:g} to {high:g}"


def _limited_logits(graph: Graph, call: LossCall) -> list[Finding]:
    """ReLU, tanh and the like on logits: right after the last layer, or under the softmax or sigmoid of the output."""
    if call.kind not in BINARY | {"cross_entropy", "nll_loss"}:
        return []
    passed, source = graph.back(call.prediction.source, _SQUASHED if call.kind != "cross_entropy" else _PASSED)
    origin = graph.at(source)
    clamps = [item for item in passed if item.op == "clamp"]
    if origin is None or clamps or origin.op not in _LOGIT_LIMITS | set(_NEARLY_POSITIVE):
        return []
    limits = reach(origin)
    if limits is None or limits[0] < -8 or limits[1] == 0 or not _after_layer(graph, origin):
        return []
    return [_clipped_logits(graph, call, origin, limits)]


def _after_layer(graph: Graph, node: Node) -> bool:
    """Whether it works on the output of a layer, so that it stands where plain logits belong."""
    layer = graph.origin(node.arguments[0].source, _PASSED | {"batch_norm", "layer_norm"}) if node.arguments else None
    return layer is not None and is_dense(layer)


def _clipped_logits(graph: Graph, call: LossCall, origin: Node, limits: tuple[float, float]) -> Finding:
    numbers = graph.numbers(f"n{origin.index}")
    zero = max((item.zero for item in numbers if item.zero is not None), default=0.0)
    evidence = [f"step {graph.onset}: the logits given to {call.kind} come from {origin.op}."]
    if origin.op == "relu" and zero > 0:
        evidence.append(f"up to {zero:.0%} of the logits are exactly 0 and pass no gradient.")
    return Finding(
        symptom="output_range_mismatch",
        severity="critical" if origin.op not in _NEARLY_POSITIVE else "warning",
        cause=f"{origin.op} stands between the last layer and {call.kind}: logits need both signs and any size, but it "
        f"gives {_interval(limits)}.",
        evidence=tuple(evidence),
        where=(place(origin),),
        onset=0,
        certainty=1.0,
        numbers={"op": origin.op, "loss": call.kind, "zero": zero},
    )
