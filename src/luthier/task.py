"""A task: what is trained. Model builder, data, loss, metric, and one seam, `step`.

Shapes: B batch, K classes, L labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from luthier.data import BatchSource, as_batches, check_data
from luthier.data.batches import in_memory
from luthier.data.sealed import Sealed
from luthier.data.splits import split
from luthier.data.trees import as_tensors, named_leaves
from luthier.errors import DataError, LuthierError
from luthier.hashing import bound, source_hash
from luthier.training.losses import Loss, loss_named
from luthier.training.metrics import Metric, default_metric, metric_named


class Step(NamedTuple):
    """What one forward pass over a batch gives.

    Attributes:
        loss: scalar, mean over the batch; backward starts here.
        outputs: what the metric reads, such as logits [B, K].
        targets: what the metric compares with, such as labels [B].
        n: how many examples (or tokens) the mean was over; weighs losses and metrics of unequal batches.
    """

    loss: Tensor
    outputs: Any
    targets: Any
    n: int


StepFunction = Callable[[nn.Module, Any], Step]


class Task:
    """What is trained.

    Args:
        model: builder of the network: a class or function called with the recipe's `model` keywords, so that
            every trial starts from fresh weights.
        train: training data: a pair (inputs, targets) of tensors or arrays, a dict or nested tuples of them,
            a Dataset, an IterableDataset (with `steps_per_epoch`) or a DataLoader.
        val: validation data likewise, or the fraction of `train` to hold out (stratified for class labels).
        test: test data; sealed, and read once at the end of all choices.
        loss: a name of `luthier.training.losses.LOSSES` or a callable (outputs, targets) -> scalar mean.
        metric: a name of `luthier.training.metrics.METRICS` or a callable (outputs, targets) -> float over the
            whole validation part; None takes the loss's natural metric.
        direction: "max" or "min"; only for a metric of your own.
        step: a function (model, batch) -> Step, for models with several inputs, dict batches, losses of their own.
        steps_per_epoch: batches that make an epoch of an IterableDataset.
        normalize: True to centre and scale float or image inputs by the training part's statistics
            (per channel for images, per column for tables), or a pair (mean, std).
        name: used for folders and reports.
        split_seed: seed of the split when `val` is a fraction.

    Raises:
        LuthierError: a model instance instead of a builder, an unknown loss or metric.
        DataError: empty, mismatched or non-finite data.
    """

    def __init__(
        self,
        model: Callable[..., nn.Module],
        train: Any,
        val: Any = 0.1,
        test: Any = None,
        loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
        metric: str | Callable[[Tensor, Tensor], float] | None = None,
        direction: str | None = None,
        step: StepFunction | None = None,
        steps_per_epoch: int | None = None,
        normalize: bool | tuple[Any, Any] = False,
        name: str = "task",
        split_seed: int = 0,
    ) -> None:
        self.model = _builder(model)
        self.loss: Loss = loss_named(loss)
        self.metric: Metric = default_metric(self.loss) if metric is None else metric_named(metric, direction)
        self.steps_per_epoch = steps_per_epoch
        self.name = name
        check_data(train, "train")
        if isinstance(val, float):
            train, val = _hold_out(train, val, split_seed)
        check_data(val, "val")
        self.train, self.val = _read(train), _read(val)
        self.test = None if test is None else test if isinstance(test, Sealed) else Sealed(test)
        self.normalize = normalize
        self.own_step = step

    def batches(self, batch_size: int, seed: int) -> BatchSource:
        """The training part in shuffled batches, their order a function of (seed, epoch)."""
        return as_batches(
            self.train, batch_size, shuffle=True, seed=seed, steps_per_epoch=self.steps_per_epoch, name="train"
        )

    def build(self, keywords: dict[str, Any]) -> nn.Module:
        """A fresh network from the builder.

        Raises:
            LuthierError: the builder refuses the keywords or returns something else than a module.
        """
        try:
            model = self.model(**keywords)
        except TypeError as error:
            raise LuthierError(
                f"the model builder {_name(self.model)} refused the keywords {keywords} (recipe.model): {error}"
            ) from error
        if not isinstance(model, nn.Module):
            raise LuthierError(f"the model builder must return an nn.Module, got {type(model).__name__}")
        return model

    def step(self, model: nn.Module, batch: Any, label_smoothing: float = 0.0) -> Step:
        """Forward pass and loss of one batch; `label_smoothing` acts in training where the loss knows it."""
        if self.own_step is not None:
            return self.own_step(model, batch)
        inputs, targets = batch
        outputs = call_model(model, inputs)
        return Step(self.loss(outputs, targets, label_smoothing), outputs, targets, len(targets))

    def describe(self) -> dict[str, Any]:
        """What identifies this task in a Record: names, metric and hashes of data and model source."""
        return {
            "name": self.name,
            "loss": self.loss.name,
            "metric": self.metric.name,
            "direction": self.metric.direction,
            "model": _name(self.model),
            "model_source": source_hash(self.model),
            "model_arguments": bound(self.model),
            "train": fingerprint(self.train),
            "val": fingerprint(self.val),
        }

    def __repr__(self) -> str:
        return f"Task({self.name!r}, model={_name(self.model)}, loss={self.loss.name!r}, metric={self.metric.name!r})"


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call the model the way its inputs are packed: a tuple as arguments, a dict as keywords."""
    if isinstance(inputs, dict):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def fingerprint(data: Any, rows: int = 1024) -> str:
    """Sixteen hex digits over types, shapes and up to `rows` evenly spaced rows of in-memory data.

    A Dataset or loader is identified by its type and length only.
    """
    digest = hashlib.sha256()
    tree = in_memory(data)
    if tree is None:
        digest.update(f"{type(data).__qualname__}{len(data) if hasattr(data, '__len__') else None}".encode())
        return digest.hexdigest()[:16]
    for path, tensor in named_leaves(as_tensors(tree)[0], ""):
        digest.update(f"{path}{tensor.dtype}{tuple(tensor.shape)}".encode())
        chosen = tensor[:: max(1, len(tensor) // rows)].detach().cpu().contiguous()
        flat = chosen.as_strided((chosen.numel(),), (1,))  # a dimension of size 1 may have any stride
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _hold_out(train: Any, fraction: float, seed: int) -> tuple[Any, Any]:
    """Split validation data off in-memory training data."""
    if not 0 < fraction < 1:
        raise DataError(f"val as a fraction must lie between 0 and 1, got {fraction}")
    tree = in_memory(train)
    if tree is None:
        raise DataError(
            f"a fraction val={fraction} can only be held out of tensors or arrays, got {type(train).__name__}: "
            "pass val= as data of its own"
        )
    held_in, held_out = split(tree, [1 - fraction, fraction], seed=seed)
    return held_in, held_out


def _read(data: Any) -> Any:
    """In-memory data as tensors, once; other data as they are."""
    tree = in_memory(data)
    return data if tree is None else as_tensors(tree)[0]


def _builder(model: Any) -> Callable[..., nn.Module]:
    if isinstance(model, nn.Module):
        name = type(model).__name__
        raise LuthierError(
            f"model must be a builder such as {name} or `lambda: {name}(...)`, got an instance: an instance carries "
            "one set of weights, so a second training would start from the first one's result"
        )
    if not callable(model):
        raise LuthierError(f"model must be a class or function that returns an nn.Module, got {model!r}")
    return model  # type: ignore[no-any-return]


def _name(call: object) -> str:
    return getattr(call, "__name__", type(call).__name__)
