"""The baseline: thresholds of published tools over the same vitals, as their papers and code state them.

- AutoTrainer (Zhang et al., ICSE 2021; `AutoTrainer/utils/monitor.py` of its repository, default parameters).
- DeepDiagnosis (Wardat et al., ICSE 2022; `callback/callbacks.py` of its repository).
- UMLAUT (Schoop et al., CHI 2021; table 1 of the paper, `umlaut/heuristics.py`).

Where a tool needs what a watched loop does not say (accuracy in a regression), its rule looks without that condition.
Their names of problems are given the id of ours that says the same. All together: the answers one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from luthier.doctor.vitals import Look, Vitals

Answers = list[str]


def autotrainer(vitals: Vitals) -> Answers:
    """Vanishing and exploding gradients, dying ReLU, slow convergence, oscillating loss; in its order of priority."""
    losses = np.array(vitals.steps.loss)
    if not np.isfinite(losses).all() or any(has_nonfinite(look) for look in vitals.looks):
        return ["exploding_gradient"]  # it calls every NaN an explosion
    accuracies = [value for _, value in accuracy(vitals)]
    poor = not accuracies or max(accuracies) < 0.7 or gain(accuracies) < 0.01  # Theta, delta
    if poor:
        for answer, seen in (
            ("dead_relu", any(share_zero(look) >= 0.7 for look in vitals.looks)),  # gamma
            ("exploding_gradient", any(ratio > 70 for ratio, _ in ratios(vitals))),  # beta_3
            ("vanishing_gradient", any(ratio < 1e-3 and first < 1e-4 for ratio, first in ratios(vitals))),  # beta_1, 2
        ):
            if seen:
                return [answer]
        if accuracies and gain(accuracies) < 0.01:
            return ["lr_too_low"]  # slow convergence
    elif oscillates(accuracies, least=0.03, share=0.2):  # zeta, eta
        return ["oscillating_loss"]
    return []


def deep_diagnosis(vitals: Vitals) -> Answers:
    """Its eight symptoms: the first that shows is reported with the layer, and training stops there."""
    answers: Answers = []
    for look in vitals.looks:
        for node in look.nodes:
            if node.stats is None:
                continue
            if node.op == "relu" and (node.stats.zero or 0) >= 0.7:
                answers.append("dead_relu")
            if node.op in ("sigmoid", "tanh") and (node.stats.flat or 0) > 0.5:
                answers.append("saturated_activation")
            if node.stats.nonfinite:
                answers.append("nan_inf")
        answers += out_of_range(look)
        for grad, zero in zip(look.grad, look.grad_zero, strict=False):
            if grad is not None and zero is not None and grad < 1e-7:
                answers.append("vanishing_gradient")
        if look.step > 0 and any(update == 0 for update in look.update):
            answers.append("no_learning")  # unchanged weight
    if vitals.steps.loss and not math.isfinite(vitals.steps.loss[-1]):
        answers.insert(0, "nan_inf")
    elif not falls(vitals):
        answers.append("lr_too_high")  # loss not decreasing: change the lr
    values = [value for _, value in accuracy(vitals)]
    if values and gain(values) <= 0:
        answers.append("underfitting")  # accuracy not increasing
    return unique(answers)


def umlaut(vitals: Vitals) -> Answers:
    """Ten heuristics on inputs, loss, lr, activations and curves."""
    answers: Answers = []
    if any(not math.isfinite(loss) for loss in vitals.steps.loss):
        answers.append("nan_inf")
    stats = [look.inputs.stats for look in vitals.looks if look.inputs is not None and look.inputs.stats is not None]
    if any(item.nonfinite for item in stats):
        answers.append("nan_input")
    reals = [item for item in stats if item.std is not None]
    if any((item.min or 0) < -1 or (item.max or 0) > 1 for item in reals):
        answers.append("unnormalised_input")
    if softmax_twice(vitals):
        answers.append("softmax_before_ce")
    if linear_after_linear(vitals):
        answers.append("missing_nonlinearity")
    lr = max((max(look.lr) for look in vitals.looks if look.lr), default=0)
    if lr > 0.01:
        answers.append("lr_too_high")
    if 0 < lr < 1e-7:
        answers.append("lr_too_low")
    train, val = loss_curves(vitals)
    if any(val[i + 1] > val[i] and train[i + 1] < train[i] for i in range(min(len(train), len(val)) - 1)):
        answers.append("overfitting")
    if any((settings.get("p") or 0) > 0.5 for a in vitals.anatomies for settings in a.module_settings.values()):
        answers.append("too_much_regularisation")
    early = [value for name, value in accuracy(vitals)[:3]]
    if early and max(early) >= 0.95:
        answers.append("data_leakage")  # too good too early: check that validation is not in training
    return unique(answers)


def together(vitals: Vitals) -> Answers:
    """All of them."""
    return unique(autotrainer(vitals) + deep_diagnosis(vitals) + umlaut(vitals))


BASELINES: dict[str, Callable[[Vitals], Answers]] = {
    "AutoTrainer": autotrainer,
    "DeepDiagnosis": deep_diagnosis,
    "UMLAUT": umlaut,
    "all three together": together,
}


# ---------------------------------------------------------------- what they look at


def unique(answers: Answers) -> Answers:
    return list(dict.fromkeys(answers))


def accuracy(vitals: Vitals) -> list[tuple[int, float]]:
    """Accuracy as it was told, else as it was seen on training batches."""
    for names in (("val_accuracy", "val_acc"), ("train_accuracy", "accuracy", "acc")):
        for name in names:
            if told := vitals.named(name):
                return told
    seen = [(look.step, look.predictions) for look in vitals.looks]
    return [(step, item.correct / item.n) for step, item in seen if item is not None and item.n]


def gain(values: list[float]) -> float:
    """Largest rise from one value to the next."""
    return max((b - a for a, b in pairwise(values)), default=0.0)


def oscillates(values: list[float], least: float, share: float) -> bool:
    """AutoTrainer's count of neighbouring extremes that are `least` apart."""
    inner = range(1, len(values) - 1)
    high = [values[i] for i in inner if values[i] >= values[i - 1] and values[i] >= values[i + 1]]
    low = [values[i] for i in inner if values[i] <= values[i - 1] and values[i] <= values[i + 1]]
    count = sum(a - b >= least for a, b in zip(high, low, strict=False))
    return bool(values) and count > 0 and count >= share * len(values)


def kernels(vitals: Vitals) -> list[int]:
    """Positions of the weights (not biases)."""
    return (
        [i for i, item in enumerate(vitals.anatomies[0].parameters) if len(item.shape) > 1] if vitals.anatomies else []
    )


def ratios(vitals: Vitals) -> Iterator[tuple[float, float]]:
    """Gradient norm of the first weight over that of the last, and of the first."""
    positions = kernels(vitals)
    for row in (*vitals.looks, *vitals.norms):
        norms = [row.grad[i] for i in positions if i < len(row.grad)]
        if len(norms) > 1 and norms[0] is not None and norms[-1]:
            yield norms[0] / norms[-1], norms[0]


def share_zero(look: Look) -> float:
    """Fraction of zero gradients."""
    known = [zero for zero in look.grad_zero if zero is not None]
    return sum(known) / len(known) if known else 0.0


def has_nonfinite(look: Look) -> bool:
    return any(share for share in look.grad_nonfinite if share)


def out_of_range(look: Look) -> Answers:
    """The output spans less than the targets can need, or ten times more."""
    if not look.outputs or look.targets is None or look.targets.stats is None:
        return []
    node, target = look.nodes[look.outputs[0]], look.targets.stats
    if target.min is None or target.max is None or target.integral:
        return []
    low, high = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "relu": (0.0, math.inf)}.get(
        node.op, (-math.inf, math.inf)
    )
    span = (node.stats.max or 0) - (node.stats.min or 0) if node.stats else 0
    if target.min < low or target.max > high or span > 10 * (target.max - target.min):
        return ["output_range_mismatch"]
    return []


def falls(vitals: Vitals) -> bool:
    """The loss of the last tenth is below that of the first."""
    losses = [loss for loss in vitals.steps.loss if math.isfinite(loss)]
    tenth = max(1, len(losses) // 10)
    return len(losses) < 2 or float(np.mean(losses[-tenth:])) < float(np.mean(losses[:tenth]))


def loss_curves(vitals: Vitals) -> tuple[list[float], list[float]]:
    return [v for _, v in vitals.named("train_loss")], [v for _, v in vitals.named("val_loss")]


def softmax_twice(vitals: Vitals) -> bool:
    """The output is a softmax (in PyTorch: the loss applies it again)."""
    look = vitals.looks[0] if vitals.looks else None
    return look is not None and any(look.nodes[i].op == "softmax" for i in look.outputs)


def linear_after_linear(vitals: Vitals) -> bool:
    """A layer's input is another layer's output."""
    look = vitals.looks[0] if vitals.looks else None
    if look is None:
        return False
    layers = {f"n{node.index}" for node in look.nodes if node.op in ("linear", "conv2d")}
    return any(
        node.op in ("linear", "conv2d") and node.arguments and node.arguments[0].source in layers for node in look.nodes
    )
