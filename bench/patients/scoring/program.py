"""What every program here shares: the loop that people write by hand, and the pieces that one may get wrong.

A host is a `Program` whose pieces are right; a patient is `replace(HOST, piece=wrong_piece)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, TensorDataset

from patients.case import Case, Family, Spelling, Watch

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Data:
    """Examples to train on and to validate with."""

    x: Tensor
    y: Tensor
    x_val: Tensor
    y_val: Tensor


def shuffled(data: Data, batch: int) -> Batches:
    """The usual loader."""
    return DataLoader(TensorDataset(data.x, data.y), batch_size=batch, shuffle=True, drop_last=True)


class Sampled:
    """As many random batches as an epoch has, drawn by hand with replacement."""

    def __init__(self, data: Data, batch: int) -> None:
        self.data, self.batch = data, batch

    def __iter__(self):
        for _ in range(len(self.data.x) // self.batch):
            rows = torch.randint(len(self.data.x), (self.batch,))
            yield self.data.x[rows], self.data.y[rows]


class Permuted:
    """Batches cut from a new permutation every epoch."""

    def __init__(self, data: Data, batch: int) -> None:
        self.data, self.batch = data, batch

    def __iter__(self):
        for rows in torch.randperm(len(self.data.x)).split(self.batch):
            yield self.data.x[rows], self.data.y[rows]


def zero_first(_model: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    """One update, cleared before."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def zero_last(_model: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    """One update, cleared after."""
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def clipped(model: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    """One update with a generous limit on the gradient's norm."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()


def same_optimizer(_model: nn.Module, optimizer: Optimizer) -> Optimizer:
    """What happens to the optimizer between epochs: nothing."""
    return optimizer


def same_input(x: Tensor) -> Tensor:
    """What happens to validation inputs: nothing."""
    return x


def multiclass(out: Tensor, y: Tensor) -> Tensor:
    """Which predictions are right: the largest score."""
    return out.argmax(1) == y


def binary(out: Tensor, y: Tensor) -> Tensor:
    """Which predictions are right: the logit's sign."""
    return (out > 0) == (y > 0.5)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A training program, called as `program(watch, seed)`.

    Attributes:
        data: examples for a seed.
        model: the net.
        setup: the optimizer for the net.
        loss: of outputs and targets.
        correct: which outputs are right, or None for regression.
        epochs: passes over the data.
        batch: examples a step.
        loader: batches of the data.
        update: from a loss to an optimizer step.
        schedule: scheduler of the optimizer, or None.
        per_batch: the scheduler moves at each batch instead of each epoch.
        start_epoch: what is done to the optimizer before each epoch.
        train_again: back to training mode after each evaluation.
        eval_mode: evaluation mode while evaluating.
        val_transform: of validation inputs.
    """

    data: Callable[[int], Data]
    model: Callable[[], nn.Module]
    setup: Callable[[nn.Module], Optimizer]
    loss: Callable[[Tensor, Tensor], Tensor]
    correct: Callable[[Tensor, Tensor], Tensor] | None = None
    epochs: int
    batch: int
    loader: Callable[[Data, int], Batches] = shuffled
    update: Callable[[nn.Module, Optimizer, Tensor], None] = zero_first
    schedule: Callable[[Optimizer], LRScheduler] | None = None
    per_batch: bool = False
    start_epoch: Callable[[nn.Module, Optimizer], Optimizer] = same_optimizer
    train_again: bool = True
    eval_mode: bool = True
    val_transform: Callable[[Tensor], Tensor] = same_input

    def __call__(self, watch: Watch, seed: int) -> None:
        torch.manual_seed(seed)
        data = self.data(seed)
        model = self.model()
        optimizer = self.setup(model)
        scheduler = self.schedule(optimizer) if self.schedule else None
        batches = self.loader(data, self.batch)
        model.train()
        with watch(model, optimizer, self.loss) as w:
            for _ in range(self.epochs):
                optimizer = self.start_epoch(model, optimizer)
                losses = []
                for x, y in batches:
                    loss = self.loss(model(x), y)
                    self.update(model, optimizer, loss)
                    w.step(loss, inputs=x, targets=y)
                    losses.append(loss.detach())
                    if scheduler and self.per_batch:
                        scheduler.step()
                if scheduler and not self.per_batch:
                    scheduler.step()
                w.metrics(train_loss=torch.stack(losses).mean().item(), **self.evaluate(model, data))

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: Data) -> dict[str, float]:
        """Loss, and accuracy of classes, on the validation examples."""
        if self.eval_mode:
            model.eval()
        out = model(self.val_transform(data.x_val))
        values = {"val_loss": self.loss(out, data.y_val).item()}
        if self.correct:
            values["val_accuracy"] = self.correct(out, data.y_val).float().mean().item()
        if self.train_again:
            model.train()
        return values


@dataclass(frozen=True)
class Host:
    """Names the cases of one healthy program."""

    name: str
    family: Family
    spelling: Spelling = "modules"

    def healthy(self, program: Program, variant: str = "healthy") -> Case:
        """The twin without fault."""
        return Case(f"{self.name}-{variant}", self.name, None, program, self.family, self.spelling)

    def sick(self, symptom: str, fault: str, program: Program, accepts: tuple[str, ...] = ()) -> Case:
        """The same program with one fault."""
        return Case(f"{self.name}-{fault}", self.name, symptom, program, self.family, self.spelling, accepts)
