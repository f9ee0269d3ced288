"""What a full look sees: tensors, the operations that made them, gradients and updates of every parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from luthier.doctor.vitals.rows import Row


@dataclass(frozen=True)
class Stats(Row):
    """Numbers of one tensor at one look; those of tensors that are not float have only n, min, max, distinct.

    Attributes:
        n: elements.
        mean, std, min, max: over all finite elements.
        zero: fraction that is exactly 0.
        nonfinite: fraction that is NaN or infinite.
        across: spread over the batch: root mean square over features of the standard deviation over examples, divided
            by the root mean square of all elements; 0 means the same for every example. None below 2 examples.
        dead: of an activation's output: fraction of units (features, channels) that were 0 for every example of the
            last four looks.
        flat: of sigmoid, tanh, softmax, hardtanh and the like: fraction of elements on the flat part (sigmoid
            outside 0.02-0.98, tanh beyond 0.96, softmax rows whose largest is above 0.99).
        integral: every element is a whole number. distinct: number of distinct values, counted up to 64.
        row_sum_min, row_sum_max: sums over the last dimension. rows_one_hot: fraction of rows with a single 1, else 0.
    """

    n: int = 0
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    zero: float | None = None
    nonfinite: float | None = None
    across: float | None = None
    dead: float | None = None
    flat: float | None = None
    integral: bool | None = None
    distinct: int | None = None
    row_sum_min: float | None = None
    row_sum_max: float | None = None
    rows_one_hot: float | None = None


@dataclass(frozen=True)
class Argument(Row):
    """A tensor that an operation was given.

    Attributes:
        source: where it comes from: "n12" (node 12), "input:0" (an argument of the watched model), "param:fc.weight",
            "buffer:mean", "leaf:0" (requires a gradient, but is no parameter of the model), "target" (what was passed
            as targets to watch.step, or integer/float second argument of a loss call), "extern:3" (any other tensor).
        stats: measured for the arguments of losses and of arithmetic between model output and outside tensors, for
            "input:..." arguments, for the arguments of log, sqrt, div, exp, pow, norm; else None.
    """

    nested: ClassVar[Mapping[str, type[Row]]] = {"stats": Stats}
    source: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    requires_grad: bool = False
    stats: Stats | None = None


@dataclass(frozen=True)
class Node(Row):
    """One tensor operation of the forward pass or of the loss, in the order of execution.

    Attributes:
        index: position in `Look.nodes`.
        op: plain lower-case name without trailing underscore: linear, conv2d, relu, softmax, dropout, batch_norm,
            layer_norm, lstm, gru, embedding, multi_head_attention, matmul, add, sub, mul, div, neg, pow, exp, log,
            sqrt, mean, sum, view, reshape, flatten, squeeze, unsqueeze, permute, transpose, getitem, to, detach, cat,
            cross_entropy, nll_loss, mse_loss, l1_loss, binary_cross_entropy, binary_cross_entropy_with_logits, ...
        module: dotted name of the innermost module of the watched model in whose forward it ran; "" for the model
            itself; None outside the model (loss, data preparation).
        arguments: the tensors given, in order.
        attrs: what matters of the other arguments: dim, p, training, inplace, reduction, label_smoothing, weighted,
            negative_slope, groups, kernel, stride, momentum, eps, hidden_size, scalar (the number that a tensor is
            multiplied or divided by, or added), keepdim, exponent, min, max, causal, masked, ahead (a mask lets
            places see later ones).
        shape, dtype, requires_grad: of the (first) output.
        stats: of the (first) output if it is float; for all nodes but views.
    """

    nested: ClassVar[Mapping[str, type[Row]]] = {"arguments": Argument, "stats": Stats}
    index: int
    op: str
    module: str | None = None
    arguments: tuple[Argument, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    dtype: str = ""
    requires_grad: bool = False
    stats: Stats | None = None


@dataclass(frozen=True)
class Predictions(Row):
    """What a classifier answered to one batch (outputs of shape (n, classes), or one score of two classes).

    Attributes:
        n, correct: examples and right answers. confident_wrong: wrong with a probability above 0.9.
        loss: cross entropy of every example at the quantiles 0, .1, .25, .5, .75, .9, 1.
        by_class: class -> (examples, answered, right).
    """

    n: int
    correct: int
    confident_wrong: int
    loss: tuple[float, ...] = ()
    by_class: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Look(Row):
    """One full look at a training step. Lists named per parameter follow `Anatomy.parameters`; None = no gradient.

    Attributes:
        step: optimizer steps made before this one. training: mode of the model in the (first) training forward.
        nodes, outputs, roots: the operations; indices of the model's outputs; indices of what backward() was called on.
        eval_modules: dropout and norm modules that are in eval mode while the model trains.
        n_forward, n_backward: forwards with gradient and backward calls since the last optimizer step.
        cleared: whether gradients were gone (None or 0) before some backward of this step; None without backward seen.
        entry_grad: gradient norm found before the first backward of this step.
        grad_before_clip, grad: L2 norms per parameter after the last backward; when the optimizer steps.
        grad_zero, grad_nonfinite: fractions per parameter.
        weight, update: L2 norms per parameter of the weight before and of the change made by the step; None for
            parameters that no optimizer stepped.
        unmoved: per parameter: fraction of the elements with gradient that the step did not change.
        row_spread: per parameter of 2 or more dimensions: spread of its rows (units) around their mean row, relative
            to its norm; 0 = identical units.
        lr: per group. state_step: the optimizer's own count of steps (Adam), None when it keeps none.
        inputs, targets: of the batch. predictions: None unless it classifies.
        batch_size: examples of the batch.
        took_s: time the look cost.
    """

    nested: ClassVar[Mapping[str, type[Row]]] = {
        "nodes": Node,
        "inputs": Argument,
        "targets": Argument,
        "predictions": Predictions,
    }
    step: int
    training: bool | None = None
    nodes: tuple[Node, ...] = ()
    outputs: tuple[int, ...] = ()
    roots: tuple[int, ...] = ()
    eval_modules: tuple[str, ...] = ()
    n_forward: int = 0
    n_backward: int = 0
    cleared: bool | None = None
    entry_grad: float | None = None
    grad_before_clip: tuple[float | None, ...] = ()
    grad: tuple[float | None, ...] = ()
    grad_zero: tuple[float | None, ...] = ()
    grad_nonfinite: tuple[float | None, ...] = ()
    weight: tuple[float | None, ...] = ()
    update: tuple[float | None, ...] = ()
    unmoved: tuple[float | None, ...] = ()
    row_spread: tuple[float | None, ...] = ()
    lr: tuple[float, ...] = ()
    state_step: int | None = None
    inputs: Argument | None = None
    targets: Argument | None = None
    predictions: Predictions | None = None
    batch_size: int | None = None
    took_s: float = 0.0
