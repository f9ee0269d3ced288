"""What the best constant answer would cost: the level that a training must leave behind to have learnt anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from luthier.doctor.symptoms.losses import loss_curve
from luthier.doctor.symptoms.readings import middle, remembered
from luthier.doctor.vitals import Argument, Look, Node, Stats, Vitals

LOSSES = {
    "cross_entropy",
    "nll_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
}
_CLASSES = {
    "crossentropyloss": "cross_entropy",
    "nllloss": "nll_loss",
    "bceloss": "binary_cross_entropy",
    "bcewithlogitsloss": "binary_cross_entropy_with_logits",
    "mseloss": "mse_loss",
    "l1loss": "l1_loss",
    "smoothl1loss": "smooth_l1_loss",
    "huberloss": "huber_loss",
}
VIEWS = {
    "view",
    "reshape",
    "flatten",
    "squeeze",
    "unsqueeze",
    "permute",
    "transpose",
    "t",
    "contiguous",
    "getitem",
    "to",
    "float",
    "half",
    "expand",
    "clone",
    "type_as",
    "chunk",
    "split",
    "unbind",
    "select",
    "movedim",
    "swapaxes",
}
_CLASSIFYING = ("cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits")


@dataclass(frozen=True)
class Baseline:
    """What the best constant answer costs, in units of the loss that was reported.

    Attributes:
        value: that loss; floor: the least that the loss can be (above 0 with label smoothing; the
            least seen of losses that go below 0, such as log densities).
        loss: name of the loss operation. assumed: no targets were seen, so the loss at the start stands in.
    """

    value: float
    floor: float = 0.0
    loss: str = ""
    assumed: bool = False

    def progress(self, level: float) -> float:
        """How far a loss is on the way from the constant answer (0) to a perfect one (1); negative when worse."""
        span = self.value - self.floor
        return (self.value - level) / span if span > 0 else 0.0


def loss_node(look: Look) -> Node | None:
    """The only known loss operation of a look; None when there is none or several."""
    found = [node for node in look.nodes if node.op in LOSSES]
    return found[0] if len(found) == 1 else None


def added_to(look: Look, node: Node | None) -> bool:
    """Something is added to this loss on its way to backward(): a penalty, another loss."""
    return node is not None and any(
        later.op == "add" and len(later.arguments) > 1 and later.module is None
        for later in look.nodes[node.index + 1 :]
    )


def loss_name(vitals: Vitals) -> str:
    """Operation name of the loss ("cross_entropy", "mse_loss", ...); "" when unknown or several."""
    for look in vitals.looks:
        if any(node.op in LOSSES for node in look.nodes):
            node = loss_node(look)
            return node.op if node else ""
    for look in vitals.looks[:1]:
        if _squares(look):
            return "mse_loss"
    name = (vitals.anatomy.loss_fn if vitals.anatomy else None) or ""
    plain = name.lower().replace("_", "")
    return _CLASSES.get(plain, name if name in LOSSES else "")


def _squares(look: Look) -> bool:
    """A mean squared error written by hand: backward() on mean((a - b) ** 2)."""
    for root in look.roots:
        node = look.nodes[root] if root < len(look.nodes) else None
        if node is None or node.op != "mean" or not node.arguments:
            continue
        square = node_of(look, node.arguments[0].source)
        if square is not None and square.op in ("pow", "square", "mul") and square.arguments:
            inner = node_of(look, square.arguments[0].source)
            return inner is not None and inner.op == "sub" and square.attrs.get("exponent", 2) == 2
    return False


def node_of(look: Look, source: str) -> Node | None:
    """The node that a source such as "n12" names."""
    number = source[1:]
    if source[:1] != "n" or not number.isdigit() or int(number) >= len(look.nodes):
        return None
    return look.nodes[int(number)]


def is_classification(vitals: Vitals) -> bool:
    """The loss is one for classes."""
    return loss_name(vitals) in _CLASSIFYING


def baseline(vitals: Vitals) -> Baseline | None:
    """Loss of the best constant answer; from the targets, else from the number of classes, else from the start."""
    return remembered(vitals, "baseline", _baseline)


def _baseline(vitals: Vitals) -> Baseline | None:
    name = loss_name(vitals)
    unit = _unit_baseline(vitals, name)
    if unit is not None and unit.value > 0:
        factor = _reported_factor(vitals)
        return Baseline(unit.value * factor, unit.floor * factor, name)
    curve = loss_curve(vitals)
    if curve is None or curve.start <= 0:
        return None
    return Baseline(max(curve.start, curve.values[0]), min(curve.best, 0.0), name, assumed=True)


def _unit_baseline(vitals: Vitals, name: str) -> Baseline | None:
    """The baseline of a loss averaged over examples."""
    node = next((found for look in vitals.looks if (found := loss_node(look)) is not None), None)
    if name in ("cross_entropy", "nll_loss"):
        return _cross_entropy(vitals, node)
    if name.startswith("binary_cross_entropy"):
        share = target_mean(vitals)
        return None if share is None or not 0 < share < 1 else Baseline(_binary_entropy(share))
    spread = target_std(vitals)
    if spread is None:
        return None
    if name == "mse_loss":
        return Baseline(spread**2)
    if name in ("l1_loss", "smooth_l1_loss", "huber_loss"):
        absolute = spread * math.sqrt(2 / math.pi)  # mean absolute deviation of a normal distribution
        return Baseline(absolute if name == "l1_loss" else min(absolute, spread**2 / 2))
    return None


def _cross_entropy(vitals: Vitals, node: Node | None) -> Baseline | None:
    counts = class_counts(vitals)
    shape = node.arguments[0].shape if node and node.arguments else ()
    classes = shape[1] if len(shape) > 1 else len(counts)
    if classes < 2:
        return None
    attrs: Mapping[str, object] = node.attrs if node else {}
    smoothing = attrs.get("label_smoothing") or 0.0
    smoothing = float(smoothing) if isinstance(smoothing, int | float) else 0.0
    total = sum(counts.values())
    even = bool(attrs.get("weighted")) or len(counts) < 2 or len(counts) > classes
    shares = [1 / classes] * classes if even else [count / total for count in counts.values()]
    shares += [0.0] * (classes - len(shares))
    value = _entropy([(1 - smoothing) * share + smoothing / classes for share in shares])
    floor = _entropy([1 - smoothing + smoothing / classes] + [smoothing / classes] * (classes - 1))
    return Baseline(value, floor)


def _entropy(shares: Sequence[float]) -> float:
    return -sum(share * math.log(share) for share in shares if share > 0)


def _binary_entropy(share: float) -> float:
    return _entropy([share, 1 - share])


def _reported_factor(vitals: Vitals) -> float:
    """What the reported loss is multiplied by against the mean over examples: a sum, a division by the accumulation."""
    reported = dict(zip(vitals.steps.step, vitals.steps.loss, strict=False))
    ratios, elements = [], []
    for look in vitals.looks:
        node = loss_node(look)
        value = reported.get(look.step)
        if node is None:
            continue
        if node.attrs.get("reduction") == "sum" and node.arguments:
            shape = node.arguments[0].shape
            classes = shape[1] if node.op in ("cross_entropy", "nll_loss") and len(shape) > 1 else 1
            elements.append(math.prod(shape) / classes)
        plain = value is not None and math.isfinite(value) and not added_to(look, node)
        if plain and value is not None and node.stats is not None and node.stats.mean:
            ratios.append(value / node.stats.mean)
    factor = middle(elements, 1.0)
    if len(ratios) >= 2 and median(ratios) > 0 and max(ratios) - min(ratios) < 0.02 * median(ratios):
        factor *= median(ratios)
    return factor


def class_counts(vitals: Vitals) -> dict[str, int]:
    """How often every class was a target, summed over the batches seen; empty when targets are no classes.

    Where nobody told the targets, those count that the loss was given.
    """
    told = [row.counts or {} for row in vitals.targets]
    counts: dict[str, int] = {}
    for batch in told or [given_counts(look) for look in vitals.looks]:
        for label, count in batch.items():
            if not label.startswith("-"):  # ignore_index
                counts[label] = counts.get(label, 0) + count
    return counts


def given_counts(look: Look) -> dict[str, int]:
    """Targets of every class that the loss was given at a look."""
    answered = look.predictions.by_class if look.predictions is not None else {}
    return {label: row[0] for label, row in answered.items() if row[0]}


def target_mean(vitals: Vitals) -> float | None:
    """Mean of all targets seen."""
    moments = _moments(vitals)
    return moments[0] if moments else None


def target_std(vitals: Vitals) -> float | None:
    """Standard deviation of all targets seen, within and between batches."""
    moments = _moments(vitals)
    return math.sqrt(max(moments[1] - moments[0] ** 2, 0.0)) if moments else None


def _moments(vitals: Vitals) -> tuple[float, float] | None:
    """First and second moment of the targets."""
    n = first = second = 0.0
    for row in vitals.targets:
        if row.counts:
            numbers = [(float(label), count) for label, count in row.counts.items()]
        elif row.mean is not None and row.std is not None:
            n, first, second = n + row.n, first + row.n * row.mean, second + row.n * (row.std**2 + row.mean**2)
            continue
        else:
            continue
        n += sum(count for _, count in numbers)
        first += sum(value * count for value, count in numbers)
        second += sum(value**2 * count for value, count in numbers)
    return (first / n, second / n) if n else _moments_in_losses(vitals)


def _moments_in_losses(vitals: Vitals) -> tuple[float, float] | None:
    """The same of what the loss compared outputs with, where nobody told the targets."""
    rows = [
        (stats.mean, stats.std**2 + stats.mean**2)
        for stats in targets_in_losses(vitals)
        if stats.mean is not None and stats.std is not None
    ]
    finite = [row for row in rows if math.isfinite(row[1])]
    n = len(finite)
    return (sum(first for first, _ in finite) / n, sum(second for _, second in finite) / n) if n else None


def targets_in_losses(vitals: Vitals) -> list[Stats]:
    """Numbers of what the loss compared outputs with, at every look."""
    found = []
    for look in vitals.looks:
        node = loss_node(look)
        given = [item for item in node.arguments[:2] if _from_outside(look, item)] if node is not None else []
        if len(given) == 1 and given[0].stats is not None:
            found.append(given[0].stats)
    return found


def _from_outside(look: Look, item: Argument) -> bool:
    """No module of the watched model had a hand in it."""
    node = node_of(look, item.source)
    if node is None:
        return item.source.startswith(("target", "extern", "input")) and not item.requires_grad
    return node.module is None and all(_from_outside(look, given) for given in node.arguments)
