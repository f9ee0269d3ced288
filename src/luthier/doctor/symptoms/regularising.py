"""Regularisation so strong that training cannot fit: dropout, weight decay, penalties, smoothed labels."""

from __future__ import annotations

import math
from operator import itemgetter

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms.facts import (
    baseline,
    known,
    loss_curve,
    loss_node,
    middle,
    penalty_share,
    progress,
    steps_per_epoch,
)
from luthier.doctor.symptoms.layers import is_matrix, layers, names, total
from luthier.doctor.symptoms.objectives import terms
from luthier.doctor.symptoms.outcomes import (
    always_new,
    behind_learners,
    data_allow_more,
    data_allow_no_more,
    read,
    series,
    val_worse,
)
from luthier.doctor.symptoms.paths import graphs
from luthier.doctor.vitals import Argument, Look, Node, Vitals

_ALMOST = 0.8
_DECOUPLED = {"adamw", "nadamw", "lion"}
_DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}


def too_much_regularisation(vitals: Vitals) -> list[Finding] | NotSeen:
    """A regulariser of a strength that hinders, and a training loss that stays poor."""
    learnt = _learnt(vitals)
    if learnt is None or not vitals.looks:
        return NotSeen("no training loss was seen: pass the loss to watch.step")
    for look_for in (_dropout, _penalty, _weight_decay, _smoothing, _collapse, _augmentation):
        found = look_for(vitals, learnt)
        if found is not None:
            return [found]
    return []


def _learnt(vitals: Vitals) -> float | None:
    """Progress of the loss without penalty terms, where its operation was seen."""
    base = baseline(vitals)
    late = vitals.looks[-max(len(vitals.looks) // 4, 1) :]
    values = [node.stats.mean for look in late if (node := loss_node(look)) is not None and node.stats is not None]
    if base is None or base.assumed or not known(values) or penalty_share(vitals) < 0.1:
        return progress(vitals)
    return base.progress(middle(values))


def _finding(
    cause: str, evidence: tuple[str, ...], where: tuple[str, ...], certainty: float, **numbers: float
) -> Finding:
    return Finding("too_much_regularisation", "warning", cause, evidence, where, 0, certainty, numbers)


def _poor(learnt: float) -> str:
    return f"the training loss came only {max(learnt, 0):.0%} of the way from a constant answer to a perfect one"


def _dropout(vitals: Vitals, learnt: float) -> Finding | None:
    look = vitals.looks[-1]
    strong = [(node, p) for node in look.nodes if (p := _p(node)) >= 0.6]
    settings = vitals.anatomy.module_settings if vitals.anatomy is not None else {}
    places = [node.module or "a functional dropout" for node, _ in strong]
    highest = max((p for _, p in strong), default=0.0)
    if not look.nodes:
        found = [(name, float(given["p"])) for name, given in settings.items() if (given.get("p") or 0) >= 0.6]
        places, highest = [name for name, _ in found], max((p for _, p in found), default=0.0)
    if not places or learnt > (0.8 if highest >= 0.75 else 0.6):
        return None
    return _finding(
        f"Dropout with p = {highest:.2g} at {names(places)} leaves too little of the signal to fit the training data.",
        (_poor(learnt),),
        tuple(dict.fromkeys(places)),
        0.8 if highest >= 0.75 else 0.65,
        p=highest,
    )


def _p(node: Node) -> float:
    p = node.attrs.get("p")
    at_work = node.op in _DROPOUTS and node.attrs.get("training", True) is not False
    return float(p) if at_work and isinstance(p, int | float) else 0.0


def _penalty(vitals: Vitals, learnt: float) -> Finding | None:
    early, late, left = penalty_share(vitals, 0.0, 0.2), penalty_share(vitals), _left(vitals)
    crushed = early > 0.1 and left < 0.4  # as of weights that decay crushes
    at_end = penalty_share(vitals, 0.9)
    balanced = at_end >= 0.2 and _at_rest(vitals) and _of_weights(vitals)
    share = max(early, late, at_end) if balanced else max(early, late) if crushed else late
    behind = (crushed and late >= 0.5) or (balanced and behind_learners(vitals))
    if learnt > (0.9 if behind else 0.7) or (share < 0.5 and not crushed):
        return None
    if balanced and data_allow_no_more(vitals):
        return None
    size = f"makes up {share:.0%} of it"
    if share > max(late, at_end):
        size = f"made up {early:.0%} of it at first and {at_end:.0%} at the end"
    return _finding(
        f"A penalty added to the loss {size}, so training serves the penalty instead of the task.",
        (_poor(learnt), f"norm of the weights at the end: {left:.0%} of that at the start"),
        (),
        0.8,
        share=share,
    )


def _of_weights(vitals: Vitals) -> bool:
    """A term of the loss depends on weights alone, by no answer of the model: what it asks for is not in the data."""
    for graph in graphs(vitals):
        for part in (part for root in graph.roots for part in terms(graph, root)):
            before = graph.upstream([part.node.index])
            read = [argument for index in before for argument in graph.nodes[index].arguments]
            if not before & graph.predicted and any(_is_weight(argument) for argument in read):
                return True
    return False


def _is_weight(argument: Argument) -> bool:
    """A parameter, or what was computed from some before the model ran."""
    kind = argument.source.partition(":")[0]
    return kind in ("param", "leaf") or (kind == "extern" and argument.requires_grad)


def _weight_decay(vitals: Vitals, learnt: float) -> Finding | None:
    """Weight decay pulls as strongly as the gradient (L2) or the whole update (decoupled), or the weights collapse."""
    decay = max([float(group.get("weight_decay") or 0) for row in vitals.optimizers for group in row.groups] or [0.0])
    forgets = _forgets(vitals, decay)
    if decay <= 0 or learnt > _ALMOST or (data_allow_no_more(vitals) and not forgets):
        return None
    decoupled = any(row.type.lower() in _DECOUPLED for row in vitals.optimizers)
    pulls = [pull for look in vitals.looks[len(vitals.looks) // 3 :] if (pull := _pull(vitals, look, decay, decoupled))]
    pull, left = middle(pulls), _left(vitals)
    held = 1.0 if decoupled else 0.75  # decay apart from the gradient stops weights from growing
    crushed = (left < held and pull > 0.5) or (left < 0.4 and pull > 0.2)
    held_back = left < 0.9 and pull > 0.2 and data_allow_more(vitals)  # batch noise hides a part of the pull
    balanced = left < 0.75 and pull > 0.25 and _at_rest(vitals)
    if not ((learnt <= 0.7 or forgets) and (crushed or held_back)) and not balanced:
        return None
    return _finding(
        f"Weight decay of {decay:.3g} pulls the weights towards zero as strongly as the loss moves them "
        f"({pull:.0%} of it).",
        (f"norm of the weights at the end: {left:.0%} of that at the start", _poor(learnt)),
        (),
        0.8 if left < 0.5 else 0.65,
        weight_decay=decay,
        left=left,
    )


def _forgets(vitals: Vitals, decay: float) -> bool:
    """Decay wipes the weights out within one epoch (of 20 steps or more): they remember less than the data hold.

    Weights are a moving average of updates over 1 / (lr * decay) steps (Wang and Aitchison 2024, How to set AdamW's
    weight decay); Adam divides a decay in its gradient by the gradient's size, so that it has no such time.
    """
    rate = middle([lr for lr in known(list(vitals.steps.lr)) if lr > 0])
    plain = any(row.type.lower() in _DECOUPLED | {"sgd"} for row in vitals.optimizers)
    momentum = max([float(g.get("momentum") or 0) for row in vitals.optimizers for g in row.groups] or [0.0])
    epoch = steps_per_epoch(vitals) or 0.0
    return plain and epoch >= 20 and rate * decay / max(1 - momentum, 0.01) * epoch > 1


def _at_rest(vitals: Vitals) -> bool:
    """The loss stands still far from fitted: decay balances what its gradient still pulls."""
    curve = loss_curve(vitals)
    if curve is None or len(curve.values) < 60:
        return False
    before, end = curve.level(1 / 2, 3 / 4), curve.level(3 / 4, 1)
    return before - end < 0.03 * (curve.start - end)


def _pull(vitals: Vitals, look: Look, decay: float, decoupled: bool) -> float | None:
    """Size of the decay relative to the gradient, or to the update where it is decoupled from the gradient."""
    weight = total(_matrices(vitals, look, look.weight))
    other = total(_matrices(vitals, look, look.update if decoupled else look.grad))
    if not weight or not other or not total(_matrices(vitals, look, look.grad)):
        return None  # what the loss no longer reaches decays whatever its strength
    return decay * weight * (max(known(list(look.lr)), default=0.0) if decoupled else 1.0) / other


def _matrices(vitals: Vitals, look: Look, numbers: tuple[float | None, ...]) -> list[float | None]:
    return [numbers[layer.position] for layer in layers(vitals, look) if layer.position < len(numbers)]


def _left(vitals: Vitals) -> float:
    """Norm of the weight matrices at the last look relative to the first."""
    parameters = vitals.anatomies[-1].parameters if vitals.anatomies else ()
    rows = [(look.step, look.weight) for look in vitals.looks] + [(row.step, row.weight) for row in vitals.norms]
    positions = [i for i, item in enumerate(parameters) if is_matrix(item)]
    sizes = [
        (step, total([weight[i] for i in positions if i < len(weight)]))
        for step, weight in sorted(rows, key=itemgetter(0))
    ]
    finite = [size for _, size in sizes if size]
    return finite[-1] / finite[0] if len(finite) > 1 else 1.0


def _collapse(vitals: Vitals, learnt: float) -> Finding | None:
    """The weights of several layers shrink to a fraction though the data hold more than was learnt, whatever pulls."""
    left = _left(vitals)
    if left > 0.4 or learnt > 0.7 or not data_allow_more(vitals) or not _pulled_in_depth(vitals):
        return None
    return _finding(
        f"The weights shrank to {left:.0%} of their size at the start: a penalty or decay pulls harder than the loss.",
        (_poor(learnt), "small learners predict clearly better from the same data"),
        (),
        0.55,
        left=left,
    )


def _pulled_in_depth(vitals: Vitals) -> bool:
    """Several layers get a gradient at most looks: what the loss no longer reaches decays whatever its strength."""
    gradients = [_matrices(vitals, look, look.grad) for look in vitals.looks]
    reached = [len(row) >= 2 and all(row) for row in gradients]
    return sum(reached) > len(reached) / 2


def _augmentation(vitals: Vitals, learnt: float) -> Finding | None:
    """Training inputs are new in every epoch and far from those of validation, which fares no worse."""
    shift, spread = (read(vitals.data, "compare", name) for name in ("shift", "log_spread"))
    nulls = [series(vitals.data, "compare", name)[:1] for name in ("shift_null", "spread_null")]
    if shift is None or spread is None or not all(nulls) or learnt > 0.6:
        return None
    apart = math.hypot(math.sqrt(max(shift**2 - nulls[0][0] ** 2, 0.0)), spread - nulls[1][0])
    if apart < 0.4 or val_worse(vitals) is not False or not always_new(vitals):
        return None
    return _finding(
        "Augmentation or noise changes the training inputs so much that too little of them is left to fit.",
        (
            _poor(learnt),
            "no training input comes again unchanged, and validation is answered no worse than training",
            f"means of the features differ from those in validation by {shift:.2f} standard deviations, spreads by a "
            f"factor of {2**spread:.2f}",
        ),
        (),
        0.6,
        apart=apart,
    )


def _smoothing(vitals: Vitals, learnt: float) -> Finding | None:
    """Label smoothing that leaves the true class hardly above the others."""
    given = [
        float(node.attrs["label_smoothing"])
        for look in vitals.looks[-1:]
        for node in look.nodes
        if isinstance(node.attrs.get("label_smoothing"), int | float)
    ]
    smoothing = max(given, default=0.0)
    curve = loss_curve(vitals)
    if smoothing < 0.4 or curve is None:
        return None
    return _finding(
        f"Label smoothing of {smoothing:.2g} leaves only {1 - smoothing:.0%} of the weight to the true class.",
        (f"the loss cannot fall far: it is {curve.end:.3g} now", _poor(learnt)),
        (),
        0.75,
        label_smoothing=smoothing,
    )
