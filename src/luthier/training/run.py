"""The state of one running training: everything that moves, and what a checkpoint holds of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from luthier.data import BatchSource, as_batches
from luthier.data.batches import in_memory
from luthier.data.trees import as_tensors
from luthier.errors import DataError
from luthier.training.averaging import build_averaging
from luthier.training.building import build_model, check_precision, choose_device
from luthier.training.hooks import Hook, Hooks
from luthier.training.inputs import InputPipeline
from luthier.training.optimizers import build_optimizer, set_lr
from luthier.training.randomness import Stream, derive
from luthier.training.schedules import Constant, Progress, lr_factor, momentum_at
from luthier.training.totals import Totals

if TYPE_CHECKING:
    from luthier.recipe import Recipe
    from luthier.task import Task

_EVALUATION_BATCH = 512


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer."""
    decays = recipe.weight_decay > 0 or recipe.l1 > 0  # if not, one group of parameters does, and steps faster
    return build_optimizer(
        model,
        recipe.optimizer,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        decoupled=recipe.decoupled,
        decay_norms_and_biases=recipe.decay_norms_and_biases or not decays,
    )


class Evaluator:
    """What it takes to evaluate networks of a task: device, precision, and the way of a batch to the network.

    Attributes:
        step: optimizer steps taken before; random numbers follow from it.
    """

    def __init__(self, task: Task, recipe: Recipe) -> None:
        self.task, self.recipe, self.step = task, recipe, 0
        self.device = choose_device(recipe.device)
        check_precision(recipe.precision, self.device)
        self.inputs = InputPipeline(task, recipe, self.device)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Forward passes in the recipe's precision."""
        if self.recipe.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.recipe.precision))


class Run(Evaluator):
    """A training in progress.

    Args:
        task, recipe, hooks: what is trained, how, and who listens.

    Attributes:
        step: optimizer steps taken; epoch: epochs completed; batch: batches taken of the current epoch.
        examples: training examples seen.
        history: the validation metric after each epoch.
        factor: the schedule's factor on the learning rate in the last step.
        best_value, best_step: the best of these, and the step that it was read at.
        interrupted: set by a signal; the loop saves and leaves after the current step.
        kept: what hooks keep in the checkpoint, by name.
    """

    def __init__(self, task: Task, recipe: Recipe, hooks: Sequence[Hook] = ()) -> None:
        super().__init__(task, recipe)
        self.train: BatchSource = task.batches(recipe.batch_size, derive(recipe.seed, Stream.DATA))
        self.val = evaluation_batches(task.val, recipe, "val")
        model, self.surgery = build_model(task, recipe, lambda: example_of(task, recipe, self.train))
        self.model: nn.Module = model.to(self.device)
        self.forward: nn.Module = torch.compile(self.model) if recipe.compile else self.model  # type: ignore[assignment]
        self.optimizer = optimizer_of(self.model, recipe)
        self.averaging = None if recipe.averaging is None else build_averaging(recipe.averaging, self.model)
        self.scaler = torch.amp.GradScaler() if recipe.precision == "float16" else None
        self.hooks = Hooks(hooks)
        self.totals = Totals(task.metric, self.device)
        self.steps_by_epoch = [self.train.steps(self.batch_size(epoch)) for epoch in range(recipe.epochs)]
        self.total_steps = sum(self.steps_by_epoch)
        self.epoch = self.batch = self.examples = 0
        self.spent_s, self.began = 0.0, time.perf_counter()
        self.history: list[float] = []
        self.best_value: float | None = None
        self.best_step = 0
        self.best_weights: dict[str, Tensor] | None = None  # not yet on disk
        self.interrupted = False
        self.kept: dict[str, Any] = {}
        self.factor: float | None = None
        self.lr_moves = recipe.warmup_frac > 0 or not isinstance(recipe.schedule, Constant)

    def batch_size(self, epoch: int) -> int:
        """Examples per step in an epoch; the recipe may let it grow."""
        growth = self.recipe.batch_growth
        return self.recipe.batch_size if growth is None else growth.batch_size(self.recipe.batch_size, epoch)

    def batches(self) -> Iterator[Any]:
        """The batches that are left of the current epoch, as the data gives them."""
        return self.train.epoch(self.epoch, self.batch, self.batch_size(self.epoch))

    @property
    def epoch_over(self) -> bool:
        """Whether the current epoch's last step is taken; its evaluation is still to come."""
        return self.batch == self.steps_by_epoch[self.epoch]

    @property
    def time_s(self) -> float:
        """Seconds spent on this training, also before a resume."""
        return self.spent_s + time.perf_counter() - self.began

    @property
    def progress(self) -> Progress:
        """Where the training stands, for schedules."""
        return Progress(
            self.step, self.total_steps, self.epoch, self.recipe.epochs, self.history, self.task.metric.minimise
        )

    @property
    def lr(self) -> float:
        """The learning rate of the coming step."""
        return self.recipe.lr * lr_factor(self.recipe.schedule, self.progress, self.recipe.warmup_frac)

    def set_lr(self) -> None:
        """Write learning rate (and the momentum that some schedules cycle) into the optimizer, when they changed."""
        progress = self.progress
        factor = lr_factor(self.recipe.schedule, progress, self.recipe.warmup_frac)
        momentum = momentum_at(self.recipe.schedule, progress, self.recipe.warmup_frac)
        if factor != self.factor or momentum is not None:
            set_lr(self.optimizer, self.recipe.lr * factor, momentum)
            self.factor = factor

    @property
    def evaluated_model(self) -> nn.Module:
        """The network to evaluate: the averaged one once there is one."""
        averaged = None if self.averaging is None else self.averaging.model
        return self.forward if averaged is None else averaged

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs to go on bitwise equally (on the CPU)."""
        self.totals.read()
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaging": None if self.averaging is None else self.averaging.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "totals": self.totals.state_dict(),
            "kept": self.kept,
            "position": {name: getattr(self, name) for name in _POSITION} | {"spent_s": self.time_s},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint of the same task and recipe."""
        from luthier.training.checkpoints import load_into

        load_into(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.averaging is not None:
            self.averaging.load_state_dict(state["averaging"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.totals.load_state_dict(state["totals"])
        self.kept = state.get("kept", {})
        for name in _POSITION:
            setattr(self, name, state["position"][name])
        self.spent_s, self.began = state["position"]["spent_s"], time.perf_counter()
        self.factor = None


_POSITION = ("step", "epoch", "batch", "examples", "history", "best_value", "best_step")


def evaluation_batches(data: Any, recipe: Recipe, name: str) -> BatchSource:
    """Validation or test data in order, in batches of at least 512 where there are so many: no activations are kept."""
    size = max(recipe.batch_size, _EVALUATION_BATCH)
    tree = in_memory(data)
    if tree is not None:
        size = min(size, as_tensors(tree, name)[1])
    elif isinstance(data, Dataset) and hasattr(data, "__len__"):
        size = max(1, min(size, len(data)))
    return as_batches(data, size, shuffle=False, seed=0, name=name)


def example_of(task: Task, recipe: Recipe, source: BatchSource) -> Any:
    """One batch as surgery traces it: the model's inputs, or a call where the task has a step of its own.

    Raises:
        DataError: the data gives no batch.
    """
    batch = next(iter(source.epoch(0)), None)
    if batch is None:
        raise DataError("the training data gave no batch: it is empty, or its loader drops the only incomplete one")
    batch = InputPipeline(task, recipe, torch.device("cpu")).for_evaluation(batch)
    own = task.own_step
    if own is not None:
        return lambda model: own(model, batch).outputs
    return batch[0] if isinstance(batch, (tuple, list)) else batch
