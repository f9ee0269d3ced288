"""Vitals: the numbers that a watched training leaves, and the only thing that the rules of `symptoms` read.

`measure` writes rows (plain dicts, one JSON object a line in `vitals.jsonl`); this file gives them types.
Whoever adds a number adds it here first. Absent numbers are None or empty: a rule that needs one returns `NotSeen`.

Kinds of rows: anatomy, optimizer, graph, look, norms, steps, targets, evaluation, metrics, event, data, spent.
Steps count optimizer steps from 0: step 0 is the first one, measured before any weight has moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from luthier.files import from_json


class Row:
    """A row with types: unknown keys are ignored, so that newer files stay readable."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """The typed row of a plain one."""
        known = {item.name for item in fields(cls)}  # type: ignore[arg-type]
        return cls(**{key: _frozen(value) for key, value in row.items() if key in known})


def _frozen(value: Any) -> Any:
    """JSON has lists only; rows hold tuples."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


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


@dataclass(frozen=True)
class Parameter(Row):
    """A parameter when watching began.

    Attributes:
        layer, layer_type: module that holds it. in_optimizer: some watched optimizer steps it.
        fan_in: inputs of one unit (None below 2 dimensions). mean, rms, absmax: of its values.
        row_spread: as in `Look`. duplicate: name of the parameter that it shares its storage with.
        initial: what its values look like: "uniform" or "normal" (as fresh from an initialiser), "constant", "other".
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    numel: int = 0
    requires_grad: bool = True
    in_optimizer: bool = True
    layer: str = ""
    layer_type: str = ""
    fan_in: int | None = None
    mean: float | None = None
    rms: float | None = None
    absmax: float | None = None
    row_spread: float | None = None
    duplicate: str | None = None
    initial: str = "other"


@dataclass(frozen=True)
class Anatomy(Row):
    """What is watched; a further row follows when the parameters change (a layer replaced, frozen, added).

    Attributes:
        model_types: class of each watched model. modules: dotted name -> class, of all modules.
        module_settings: dotted name -> {p, eps, momentum, affine, ...} of dropout and norm modules.
        unregistered: places like "blocks[0] (Linear)" where modules or parameters hide from nn.Module.
        foreign: shapes of tensors in the optimizers that belong to no watched model.
        loss_fn: class or function name of the loss given to watch; loss_settings: reduction and the like.
        compiled: activations cannot be looked at. distributed: class of a wrapper such as DistributedDataParallel.
    """

    step: int = 0
    model_types: tuple[str, ...] = ()
    modules: Mapping[str, str] = field(default_factory=dict)
    module_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()
    unregistered: tuple[str, ...] = ()
    foreign: tuple[tuple[int, ...], ...] = ()
    loss_fn: str | None = None
    loss_settings: Mapping[str, Any] = field(default_factory=dict)
    compiled: bool = False
    distributed: str | None = None


@dataclass(frozen=True)
class Optimizer(Row):
    """An optimizer that steps parameters of the model: those given to watch, and any other at its first step.

    Attributes:
        id: 0, 1, ...; a new object has a new id. given: passed to watch. replaces: id of the earlier optimizer that
            held (some of) the same parameters.
        groups: lr, weight_decay, momentum, betas, eps, maximize, n_parameters of each group.
    """

    step: int
    id: int
    type: str
    given: bool = True
    replaces: int | None = None
    groups: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Norms(Row):
    """Gradient (as stepped) and weight L2 norms per parameter, without a full look."""

    step: int
    grad: tuple[float | None, ...] = ()
    weight: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Steps(Row):
    """One entry per optimizer step (thinned evenly in very long trainings).

    Attributes:
        step: numbers. loss: NaN when unknown. lr: of the first group.
        wait_s: from the end of the last step to the start of the next forward. busy_s: from there to the step's end;
            both 0 where a look distorted them.
    """

    step: tuple[int, ...] = ()
    loss: tuple[float, ...] = ()
    lr: tuple[float, ...] = ()
    wait_s: tuple[float, ...] = ()
    busy_s: tuple[float, ...] = ()


@dataclass(frozen=True)
class BatchTargets(Row):
    """The targets of one batch: class counts (whole numbers, at most 256 distinct) or mean and std of each."""

    step: int
    n: int
    counts: Mapping[str, int] | None = None
    mean: float | None = None
    std: float | None = None


@dataclass(frozen=True)
class Evaluation(Row):
    """Forwards without a training step that belong together (from one training step to the next).

    Attributes:
        training: mode of the model. grad: gradients were enabled. forwards: number of them.
        random: the forwards drew random numbers on the CPU (dropout at work). n: examples.
        stochastic: operations that ran in training mode although the model was in eval mode ("dropout", "batch_norm").
        norm_statistics_moved: running statistics of batch norm changed.
        inputs: of the first batch. predictions: summed over the batches whose targets were seen.
    """

    step: int
    training: bool
    grad: bool
    forwards: int
    n: int = 0
    random: bool | None = None
    stochastic: tuple[str, ...] = ()
    norm_statistics_moved: bool | None = None
    inputs: Argument | None = None
    predictions: Predictions | None = None


@dataclass(frozen=True)
class Metrics(Row):
    """What was passed to watch.metrics (or a row of a Record): name -> value, and name -> "min" or "max"."""

    step: int
    values: Mapping[str, float]
    directions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Event(Row):
    """Something that happened: step_skipped (GradScaler), no_gradients (the optimizer stepped with none), exception,
    step_without_backward, steps_without_optimizer, model_never_called, ...; `details` says more."""

    step: int
    name: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Spent(Row):
    """Steps seen, seconds between first and last, seconds spent watching (all, and after the first 20 steps)."""

    steps: int
    elapsed_s: float
    spent_s: float
    spent_later_s: float = 0.0
    looks: int = 0
    norms: int = 0


@dataclass
class Vitals:
    """All rows of one training in order of time. `data` is the last examination of sampled examples (see samples)."""

    anatomies: list[Anatomy] = field(default_factory=list)
    optimizers: list[Optimizer] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    norms: list[Norms] = field(default_factory=list)
    steps: Steps = field(default_factory=Steps)
    targets: list[BatchTargets] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    metrics: list[Metrics] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    spent: Spent | None = None
    source: str = "watch"

    @property
    def anatomy(self) -> Anatomy | None:
        """The latest."""
        return self.anatomies[-1] if self.anatomies else None

    @property
    def n_steps(self) -> int:
        """Optimizer steps made."""
        return self.steps.step[-1] + 1 if self.steps.step else 0

    def named(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of one metric."""
        return [(row.step, row.values[name]) for row in self.metrics if name in row.values]

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Vitals:
        """Read plain rows; a graph row gives the structure for the looks that name it, which hold numbers only."""
        vitals = cls()
        graphs: dict[int, Mapping[str, Any]] = {}
        columns: dict[str, list[Any]] = {item.name: [] for item in fields(Steps)}
        for row in rows:
            kind = row["kind"]
            if kind == "graph":
                graphs[row["id"]] = row
            elif kind == "look":
                vitals.looks.append(_look(row, graphs.get(row.get("graph", -1))))
            elif kind == "steps":
                for name, column in columns.items():
                    column.extend(row.get(name, ()))
            elif kind in _LISTS:
                getattr(vitals, _LISTS[kind][0]).append(_LISTS[kind][1](row))
            elif kind == "data":
                vitals.data = dict(row)
            elif kind == "spent":
                vitals.spent = Spent.of(row)
        vitals.steps = Steps(**{name: tuple(column) for name, column in columns.items()})
        return vitals

    @classmethod
    def load(cls, path: str | Path) -> Vitals:
        """Read `vitals.jsonl`; a torn last line is left out."""
        lines = Path(path).read_bytes().split(b"\n")
        return cls.from_rows(from_json(line) for line in lines[:-1] if line)


def _stats(row: Mapping[str, Any] | None) -> Stats | None:
    return None if row is None else Stats.of(row)


def _argument(row: Mapping[str, Any] | None) -> Argument | None:
    if row is None:
        return None
    return Argument.of({**row, "shape": tuple(row.get("shape", ())), "stats": _stats(row.get("stats"))})


def _node(row: Mapping[str, Any], numbers: Mapping[str, Any]) -> Node:
    """A node of a graph row with the numbers of one look: {"stats": ..., "arguments": {position: stats}}."""
    of_arguments = numbers.get("arguments", {})
    arguments = tuple(
        _argument({**argument, "stats": of_arguments.get(str(position))})
        for position, argument in enumerate(row.get("arguments", ()))
    )
    return Node.of(
        {**row, "shape": tuple(row.get("shape", ())), "arguments": arguments, "stats": _stats(numbers.get("stats"))}
    )


def _look(row: Mapping[str, Any], graph: Mapping[str, Any] | None) -> Look:
    """A look; row["numbers"] maps the index of a node (as text) to its numbers."""
    numbers = row.get("numbers", {})
    structure: dict[str, Any] = {}
    if graph is not None:
        nodes = tuple(_node(node, numbers.get(str(node["index"]), {})) for node in graph["nodes"])
        structure = {"nodes": nodes, "outputs": tuple(graph["outputs"]), "roots": tuple(graph["roots"])}
    return Look.of(
        {
            **row,
            **structure,
            "inputs": _argument(row.get("inputs")),
            "targets": _argument(row.get("targets")),
            "predictions": _predictions(row.get("predictions")),
        }
    )


def _predictions(row: Mapping[str, Any] | None) -> Predictions | None:
    return None if row is None else Predictions.of(row)


def _anatomy(row: Mapping[str, Any]) -> Anatomy:
    return Anatomy.of({**row, "parameters": tuple(Parameter.of(item) for item in row.get("parameters", ()))})


def _evaluation(row: Mapping[str, Any]) -> Evaluation:
    return Evaluation.of(
        {**row, "inputs": _argument(row.get("inputs")), "predictions": _predictions(row.get("predictions"))}
    )


_LISTS: dict[str, tuple[str, Any]] = {
    "anatomy": ("anatomies", _anatomy),
    "optimizer": ("optimizers", Optimizer.of),
    "norms": ("norms", Norms.of),
    "targets": ("targets", BatchTargets.of),
    "evaluation": ("evaluations", _evaluation),
    "metrics": ("metrics", Metrics.of),
    "event": ("events", Event.of),
}
