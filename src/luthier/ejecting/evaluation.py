"""Loss, metric and evaluation as source code."""

from __future__ import annotations

from types import FunctionType

import torch

from luthier.ejecting.facts import Facts
from luthier.ejecting.sources import EjectError
from luthier.training.metrics import METRICS, OwnMetric

_LOSSES = {
    "cross_entropy": "F.cross_entropy",
    "binary_cross_entropy": "F.binary_cross_entropy_with_logits",
    "mse": "F.mse_loss",
    "mae": "F.l1_loss",
    "huber": "F.huber_loss",
}
_ERRORS = {
    "mse": "error.square().sum() / len(error)",
    "rmse": "(error.square().sum() / len(error)).sqrt()",
    "mae": "error.abs().sum() / len(error)",
}
_TORCHMETRICS = {
    "f1": 'classification.multiclass_f1_score(outputs, targets, num_classes=outputs.shape[1], average="macro")',
    "multilabel_f1": (
        'classification.multilabel_f1_score(outputs, targets.int(), num_labels=outputs.shape[1], average="macro")'
    ),
    "average_precision": (
        "classification.multilabel_average_precision(outputs, targets.int(), num_labels=outputs.shape[1])"
    ),
    "r2": "regression.r2_score(outputs.reshape(-1), targets.reshape(-1))",
}


def write_loss(facts: Facts, training: bool) -> str:
    """The loss of `outputs` and `targets`."""
    loss, smoothing = facts.task.loss, facts.recipe.label_smoothing
    if loss.name in _LOSSES and loss.kind != "own":
        name = _LOSSES[loss.name]
    elif isinstance(loss.call, FunctionType):
        name = facts.sources.add(loss.call, f"the task's loss {loss.name!r}")
    else:
        raise EjectError(
            f"the task's loss is an object ({loss.name}), whose state a script cannot hold: give a function"
        )
    smooth = f", label_smoothing={smoothing!r}" if smoothing and training else ""
    return f"{name}(outputs, targets{smooth})"


def metric_name(facts: Facts) -> str | None:
    """The metric beside the loss, None when it is the loss."""
    return None if facts.task.metric.start is None else facts.task.metric.name


def write_evaluate(facts: Facts, prepared: str) -> str:
    """The function `evaluate(model, x, y, ...)`: mean loss, and the metric where there is one.

    Args:
        facts: of the run.
        prepared: arguments of `prepare` after the inputs, or "" when nothing is prepared.
    """
    metric = metric_name(facts)
    size = max(facts.recipe.batch_size, 512)
    begin, each, end = _metric(facts)
    inputs = f"prepare(inputs{prepared})" if facts.prepares else "inputs"
    seeded = ["torch.manual_seed(derived_seed(EVALUATION, step))"] if facts.own else []
    loop = [
        f"for inputs, targets in zip(x.split({size}), y.split({size}), strict=True):",
        f"    outputs = model({inputs})",
        f"    loss += {write_loss(facts, training=False)} * len(targets)",
        *each,
    ]
    if facts.bfloat16:
        loop = ['with torch.autocast("cpu", torch.bfloat16):', *(f"    {line}" for line in loop)]
    body = [*seeded, "model.eval()", "loss = torch.zeros(())", *begin, *loop, "model.train()", *end]
    arguments = f"model, x, y{prepared}" + (", step" if facts.own else "")
    said = f"Mean loss and {_words(metric)}" if metric else "Mean loss"
    return "\n".join(
        [
            "@torch.inference_mode()",
            f"def evaluate({arguments}):",
            f'    """{said} over the validation data."""',
            *(f"    {line}" for line in body),
        ]
    )


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _metric(facts: Facts) -> tuple[list[str], list[str], list[str]]:
    """Statements before the loop, in it, and after it, for the metric."""
    metric = facts.task.metric
    if metric.start is None:
        return [], [], ["return loss.item() / len(x)"]
    if metric is METRICS.get("accuracy"):
        return _accuracy(facts.parts["val_targets"])
    if metric is METRICS.get("binary_accuracy"):
        total = "y.numel()"
        return (
            ["correct = 0"],
            ["    correct += int(((outputs > 0) == (targets > 0.5)).sum())"],
            [f"return loss.item() / len(x), correct / {total}"],
        )
    collect = ["    collected.append((outputs, targets))"]
    joined = "outputs, targets = (torch.cat(parts) for parts in zip(*collected, strict=True))"
    return ["collected = []"], collect, [joined, *_whole(facts), "return loss.item() / len(x), float(value)"]


def _accuracy(targets: torch.Tensor) -> tuple[list[str], list[str], list[str]]:
    truth = "targets.argmax(1)" if targets.is_floating_point() else "targets"
    total = "len(x)" if targets.ndim == 1 else "n"
    if targets.is_floating_point():
        total = "(y.argmax(1) != -100).sum().item()" if targets.ndim != 2 else "len(x)"
    elif targets.ndim != 1:
        total = "(y != -100).sum().item()"
    return (
        ["correct = 0"],
        [f"    correct += int((outputs.argmax(1) == {truth}).sum())"],
        [f"return loss.item() / len(x), correct / {total}"],
    )


def _whole(facts: Facts) -> list[str]:
    """The metric over all outputs and targets."""
    metric = facts.task.metric
    if metric in METRICS.values() and metric.name in _ERRORS:
        return ["error = (outputs.float() - targets).reshape(-1)", f"value = {_ERRORS[metric.name]}"]
    if metric in METRICS.values() and metric.name in _TORCHMETRICS:
        module, _, call = _TORCHMETRICS[metric.name].partition(".")
        facts.sources.imports.add(f"from torchmetrics.functional import {module}")
        return ["outputs = outputs.float()", f"value = {module}.{call}"]
    if metric in METRICS.values() and metric.name == "auroc":
        facts.sources.imports.add("from torchmetrics.functional import classification")
        if facts.parts["val_targets"].is_floating_point():
            call = "binary_auroc(outputs.float().reshape(-1), targets.reshape(-1).int())"
        else:
            call = "multiclass_auroc(outputs.float(), targets, num_classes=outputs.shape[1])"
        return [f"value = classification.{call}"]
    own = metric.start() if metric.start is not None else None
    if isinstance(own, OwnMetric) and isinstance(own.call, FunctionType):
        return [f"value = {facts.sources.add(own.call, f'the metric {metric.name!r}')}(outputs, targets)"]
    raise EjectError(f"the task's metric {metric.name!r} is an object, which a script cannot hold: give a function")
