"""Whether the loss fits the task: what it is given, what it is compared with, which way it is driven."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms.driven import maximised, misfit, without_targets
from luthier.doctor.symptoms.objectives import REGRESSION, LossCall, loss_calls
from luthier.doctor.symptoms.paths import (
    DROPOUTS,
    SAME_VALUES,
    SOFTMAXES,
    Graph,
    graphs,
    gravest,
    is_dense,
    unseen,
)
from luthier.doctor.vitals import Argument, Stats, Vitals

_PASSED = SAME_VALUES | DROPOUTS
_MOST_CLASSES = 30
_SIGNED = {"soft_margin_loss", "hinge_embedding_loss", "cosine_embedding_loss", "margin_ranking_loss"}
_NOT_LOG = SOFTMAXES | {"sigmoid", "relu", "tanh", "gelu", "leaky_relu", "softplus"}


def wrong_loss(vitals: Vitals) -> list[Finding] | NotSeen:
    """The loss does not fit the task: it asks for something else than what is wanted."""
    if (missing := unseen(vitals, loss=True)) is not None:
        return missing
    found: list[Finding] = []
    for graph in graphs(vitals):
        for call in loss_calls(graph):
            for check in _CHECKS:
                found.extend(check(vitals, graph, call))
        if _single(vitals):
            found.extend(maximised(vitals, graph))
            found.extend(without_targets(graph))
    return gravest(found)


def _single(vitals: Vitals) -> bool:
    """One model is trained: of adversarial pairs one may well drive a loss up."""
    return vitals.anatomy is None or len(vitals.anatomy.model_types) <= 1


def _shape(argument: Argument) -> str:
    return f"({', '.join(str(size) for size in argument.shape)})"


def _low(numbers: Sequence[Stats]) -> float | None:
    return min((item.min for item in numbers if item.min is not None), default=None)


def _high(numbers: Sequence[Stats]) -> float | None:
    return max((item.max for item in numbers if item.max is not None), default=None)


def _single_score(_: Vitals, graph: Graph, call: LossCall) -> list[Finding]:
    """Cross entropy of one class is always 0; of scores without a class dimension it compares examples."""
    shape = call.prediction.shape
    if call.kind != "cross_entropy" or not shape:
        return []
    if len(shape) >= 2 and shape[1] == 1:
        cause = "cross_entropy is given a single score per example: with one class it is always 0 and teaches nothing."
        return [misfit(graph, cause, f"the scores have shape {_shape(call.prediction)}.")]
    if len(shape) == 1 and shape[0] > 1 and shape[0] == graph.batch_size:
        cause = "cross_entropy is given one score per example, without a dimension for classes: it takes the batch."
        return [misfit(graph, cause, f"the scores have shape {_shape(call.prediction)}.")]
    return []


def _not_log(_: Vitals, graph: Graph, call: LossCall) -> list[Finding]:
    """nll_loss and kl_div of something that is not log-probabilities."""
    if call.kind not in ("nll_loss", "kl_div"):
        return []
    origin = graph.origin(call.prediction.source, _PASSED)
    op = origin.op if origin is not None else "?"
    highest = _high(graph.numbers_of(call.prediction))
    seen = origin is not None and (op in _NOT_LOG or is_dense(origin))
    if not seen and (highest is None or highest <= 1e-3):
        return []
    cause = f"{call.kind} expects log-probabilities, but is given the output of {op}: it can be driven down without "
    cause += "bound or limit, whatever the classes are."
    text = f"the largest value given is {highest:.3g}." if highest is not None else f"the values come from {op}."
    return [misfit(graph, cause, text, certainty=1.0 if seen else 0.85)]


def _unit_targets(_: Vitals, graph: Graph, call: LossCall) -> list[Finding]:
    """Targets of a binary cross entropy outside of 0 to 1."""
    if not call.kind.startswith("binary_cross_entropy") or call.target is None:
        return []
    numbers = graph.numbers_of(call.target)
    low, high = _low(numbers), _high(numbers)
    if low is None or high is None or (low >= -1e-3 and high <= 1 + 1e-3):
        return []
    cause = f"{call.kind} expects targets between 0 and 1; beyond these the loss has no lower bound."
    return [misfit(graph, cause, f"the targets reach from {low:.3g} to {high:.3g}.")]


def _signed_targets(_: Vitals, graph: Graph, call: LossCall) -> list[Finding]:
    """Targets 0 and 1 for a loss that tells the sides by their sign: zeros teach nothing."""
    if call.kind not in _SIGNED or call.target is None:
        return []
    numbers = graph.numbers_of(call.target)
    low, high = _low(numbers), _high(numbers)
    if low != 0 or high != 1:
        return []
    cause = f"{call.kind} expects targets -1 and 1; with 0 for -1 one side is not learnt."
    return [misfit(graph, cause, "the targets reach from 0 to 1.", certainty=0.95)]


def _multi_label(_: Vitals, graph: Graph, call: LossCall) -> list[Finding]:
    """Targets with several or no classes per example into a loss that shares one probability among the classes."""
    if call.target is None or call.kind not in ("cross_entropy", "binary_cross_entropy", "nll_loss"):
        return []
    if call.kind == "binary_cross_entropy":
        origin = graph.origin(call.prediction.source, _PASSED)
        if origin is None or origin.op not in SOFTMAXES:
            return []
    labels = _labels(graph, call)
    if labels is None:
        return []
    how = "softmax with binary_cross_entropy" if call.kind == "binary_cross_entropy" else call.kind
    how = "softmax" if call.by_hand else how
    cause = f"the targets name several or no classes per example, but {how} shares a single 100% among the classes: "
    cause += "such labels need a sigmoid for each class (binary_cross_entropy_with_logits)."
    text = f"rows of the targets hold {labels.row_sum_min:g} to {labels.row_sum_max:g} ones."
    return [misfit(graph, cause, text, certainty=0.95)]


def _labels(graph: Graph, call: LossCall) -> Stats | None:
    """Numbers of the 0/1 table with several or no ones a row behind the targets, also before an argmax."""
    candidates = [call.target] if call.target is not None else []
    node = graph.origin(candidates[0].source, SAME_VALUES) if candidates else None
    if node is not None and node.op in ("argmax", "max") and node.arguments:
        candidates.append(node.arguments[0])
    for argument in candidates:
        if len(argument.shape) != 2 or argument.shape[1] < 2:
            continue
        for item in graph.numbers_of(argument):
            if _is_multi_hot(item):
                return item
    return None


def _is_multi_hot(item: Stats) -> bool:
    low, high = item.row_sum_min, item.row_sum_max
    zero_one = item.min == 0 and item.max == 1 and item.distinct == 2
    return zero_one and low is not None and high is not None and (high > 1.5 or low < 0.5)


def _distance_to_classes(vitals: Vitals, graph: Graph, call: LossCall) -> list[Finding]:
    """A squared or absolute error of class labels."""
    if call.kind not in REGRESSION or call.target is None or not _single(vitals):
        return []
    if graph.back(call.target.source, SAME_VALUES)[1].startswith("input") or _is_reconstruction(graph, call.target):
        return []
    what = _looked_up(graph, call.target) or _class_kind(vitals, graph, call, graph.numbers_of(call.target))
    if what is None:
        return []
    text, severity, certainty = what
    cause = f"{call.name} measures distances, but the targets are {text}: cross entropy is the loss of classes, its "
    return [misfit(graph, cause + "gradient does not fade for confident mistakes.", f"{text}.", severity, certainty)]


def _is_reconstruction(graph: Graph, target: Argument) -> bool:
    """The targets have the shape of the model's inputs: an autoencoder, whatever values they take."""
    given = [item.shape for node in graph.nodes.values() for item in node.arguments if item.source.startswith("input")]
    return len(target.shape) >= 2 and math.prod(target.shape[1:]) >= 4 and target.shape in given


def _looked_up(graph: Graph, target: Argument) -> tuple[str, str, float] | None:
    """One-hot rows made in the loop: by one_hot, or picked by whole numbers from a square table."""
    node = graph.origin(target.source, SAME_VALUES - {"getitem"})
    if node is not None and node.op == "one_hot":
        return f"one-hot rows of {node.shape[-1] if node.shape else 'the'} classes", "critical", 0.95
    if node is None or node.op != "getitem" or len(node.arguments) != 2:
        return None
    table, labels = node.arguments
    square = len(table.shape) == 2 and table.shape[0] == table.shape[1] >= 2
    if not square or not labels.dtype.startswith("int") or not table.source.startswith(("extern", "buffer")):
        return None
    return f"rows of a table of {table.shape[0]} classes, picked by label", "critical", 0.9


def _class_kind(
    vitals: Vitals, graph: Graph, call: LossCall, numbers: Sequence[Stats]
) -> tuple[str, str, float] | None:
    """What makes the targets classes, how grave, how sure; None when they are quantities."""
    target = call.target
    if target is None or not numbers or not all(item.integral in (True, None) for item in numbers):
        return None
    if any(item.integral is None for item in numbers) and not _dtype_of(graph, call).startswith(
        ("int", "uint", "bool")
    ):
        return None
    rows = [item.rows_one_hot for item in numbers if item.rows_one_hot is not None]
    wide = len(target.shape) == 2 and target.shape[1] >= 2
    if wide and rows and min(rows) >= 0.99:
        return f"one-hot rows of {target.shape[1]} classes", "critical", 0.95
    low, high = _low(numbers), _high(numbers)
    distinct = max((item.distinct or 0) for item in numbers)
    if low is None or high is None or low != 0 or distinct < 2 or high > _MOST_CLASSES:
        return None
    if high == 1:
        return "two classes, 0 and 1", "warning", 0.9
    if wide or (distinct < high + 1 and distinct <= 3):
        return None
    return _whole_numbers(vitals, graph, call, int(high) + 1)


def _whole_numbers(vitals: Vitals, graph: Graph, call: LossCall, n_classes: int) -> tuple[str, str, float] | None:
    """Whole numbers 0..K-1 are classes when they are stored as integers or judged by accuracy, and evenly spread."""
    target = call.target
    dtypes = {target.dtype if target is not None else ""} | {_dtype_of(graph, call)}
    as_integers = any(dtype.startswith(("int", "uint", "long")) for dtype in dtypes)
    judged = any("acc" in name.lower() for row in vitals.metrics for name in row.values)
    if not judged and not (as_integers and _even(vitals)):
        return None
    return f"whole numbers 0 to {n_classes - 1}, the names of classes", "critical" if judged else "warning", 0.9


def _dtype_of(graph: Graph, call: LossCall) -> str:
    """The type that the targets had before they were converted."""
    given = graph.looks[0].targets
    if call.target is None:
        return ""
    passed, source = graph.back(call.target.source, SAME_VALUES)
    if passed and passed[-1].arguments:
        return passed[-1].arguments[0].dtype
    return given.dtype if given is not None and (source == given.source or source == "target") else ""


def _even(vitals: Vitals) -> bool:
    """Whether the whole numbers come about equally often, as classes do and counts do not."""
    totals: dict[str, int] = {}
    for row in vitals.targets:
        for name, count in (row.counts or {}).items():
            totals[name] = totals.get(name, 0) + count
    return len(totals) >= 2 and min(totals.values()) >= 0.3 * max(totals.values())


def _sigmoids_for_one_class(_: Vitals, graph: Graph, call: LossCall) -> list[Finding]:
    """Binary cross entropies for classes that exclude each other: it works, cross entropy works better."""
    if not call.kind.startswith("binary_cross_entropy") or call.target is None:
        return []
    shape = call.target.shape
    rows = [item.rows_one_hot for item in graph.numbers_of(call.target) if item.rows_one_hot is not None]
    if len(shape) != 2 or shape[1] < 3 or not rows or min(rows) < 0.999:
        return []
    cause = f"every example has exactly one of {shape[1]} classes, but {call.kind} learns each class by itself: "
    return [misfit(graph, cause + "cross_entropy fits better.", "the targets are one-hot rows.", "info", 0.9)]


_CHECKS: tuple[Callable[[Vitals, Graph, LossCall], list[Finding]], ...] = (
    _single_score,
    _not_log,
    _unit_targets,
    _signed_targets,
    _multi_label,
    _distance_to_classes,
    _sigmoids_for_one_class,
)
