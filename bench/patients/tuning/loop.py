"""The plain loop that most programs of the tuning half share, with the places at which people go wrong in it.

Shapes: n examples, f features, c channels, h x w pixels, t time steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from patients.case import Case, Family, Spelling, Watch, Watching


class Split(NamedTuple):
    """Inputs and targets of training and validation."""

    x: Tensor
    y: Tensor
    x_val: Tensor
    y_val: Tensor


Score = Literal["classes", "binary", "labels", "none"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training program; the defaults are the healthy loop, and every field is a place for a fault.

    Attributes:
        data: seed -> data. model, loss, optimizer: as a program names them; `optimizer` gets parameters.
        score: how accuracy is counted: largest of the classes, sign of one score, every label of many, or not at all.
        schedule, schedule_each: a scheduler of the optimizer, and when it steps.
        trainable: parameters given to the optimizer. after_optimizer: what happens to the model once it is built.
        before_step: between backward and step (clipping). after_step: after it (and before watch.step).
        renew: a new optimizer, at the start of every step or epoch.
        tells: what the program tells the watch.
        loader: batches from a DataLoader, or by hand from a permutation.
    """

    data: Callable[[int], Split]
    model: Callable[[], nn.Module]
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    loss: Callable[..., Tensor]
    epochs: int
    batch_size: int
    score: Score = "classes"
    shuffle: bool = True
    zero_grad: Literal["before", "never", "after_backward", "start"] = "before"
    backward: bool = True
    step: bool = True
    accumulate: int = 1
    schedule: Callable[[Optimizer], Any] | None = None
    schedule_each: Literal["epoch", "batch"] = "epoch"
    trainable: Callable[[nn.Module], Iterable[nn.Parameter]] = nn.Module.parameters
    after_optimizer: Callable[[nn.Module], None] | None = None
    before_step: Callable[[nn.Module], Any] | None = None
    after_step: Callable[[nn.Module], Any] | None = None
    renew: Literal["never", "step", "epoch"] = "never"
    train_mode: Literal["epoch", "once", "never"] = "epoch"
    eval_mode: bool = True
    drop_last: bool = False
    loader: Literal["loader", "indices"] = "loader"
    prepare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    tells: tuple[str, ...] = ("inputs", "targets", "metrics", "loss_fn")
    dataset: Callable[[Tensor, Tensor], Any] | None = None


def run(plan: Plan, watch: Watch, seed: int) -> None:
    """Train as the plan says."""
    torch.manual_seed(seed)
    split = plan.data(seed)
    model = plan.model()
    optimizer = plan.optimizer(plan.trainable(model))
    schedule = plan.schedule(optimizer) if plan.schedule else None
    if plan.after_optimizer:
        plan.after_optimizer(model)
    w = watch(model, optimizer, plan.loss) if "loss_fn" in plan.tells else watch(model, optimizer)
    if plan.train_mode == "once":
        model.train()
    for _epoch in range(plan.epochs):
        if plan.train_mode == "epoch":
            model.train()
        elif plan.train_mode == "never":
            model.eval()
        if plan.renew == "epoch":
            optimizer = plan.optimizer(plan.trainable(model))
        total = 0.0
        for i, (x, y) in enumerate(batches(plan, split)):
            if plan.renew == "step":
                optimizer = plan.optimizer(plan.trainable(model))
            loss, stepped = one_step(plan, model, optimizer, x, y, i)
            total += loss.item()
            if not stepped:
                continue
            if schedule is not None and plan.schedule_each == "batch":
                schedule.step()
            tell_step(plan, w, loss, x, y)
        if schedule is not None and plan.schedule_each == "epoch":
            schedule.step()
        evaluate(plan, w, model, split, total / (i + 1))
    w.close()


def batches(plan: Plan, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of one epoch."""
    if plan.loader == "loader":
        dataset = plan.dataset(split.x, split.y) if plan.dataset else TensorDataset(split.x, split.y)
        yield from DataLoader(dataset, plan.batch_size, shuffle=plan.shuffle, drop_last=plan.drop_last)
        return
    n = len(split.x)
    order = torch.randperm(n) if plan.shuffle else torch.arange(n)
    for start in range(0, n - plan.batch_size + 1, plan.batch_size):
        index = order[start : start + plan.batch_size]
        yield split.x[index], split.y[index]


def one_step(plan: Plan, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, i: int) -> tuple[Tensor, bool]:
    """Forward, backward, and (on every `accumulate`-th batch) the optimizer's step."""
    first, last = i % plan.accumulate == 0, (i + 1) % plan.accumulate == 0
    if plan.zero_grad == "before" and first:
        optimizer.zero_grad()
    if plan.prepare:
        x, y = plan.prepare(x, y)
    loss = plan.loss(model(x), y)
    if plan.backward:
        (loss / plan.accumulate if plan.accumulate > 1 else loss).backward()
    if plan.zero_grad == "after_backward":
        optimizer.zero_grad()
    if not last:
        return loss, False
    if plan.before_step:
        plan.before_step(model)
    if plan.step:
        optimizer.step()
    if plan.after_step:
        plan.after_step(model)
    return loss, True


def tell_step(plan: Plan, w: Watching, loss: Tensor, x: Tensor, y: Tensor) -> None:
    """`watch.step` with what this program tells."""
    told = {}
    if "inputs" in plan.tells:
        told["inputs"] = x
    if "targets" in plan.tells:
        told["targets"] = y
    w.step(loss, **told)


@torch.no_grad()
def evaluate(plan: Plan, w: Watching, model: nn.Module, split: Split, train_loss: float) -> None:
    """One pass over the validation part, and `watch.metrics`."""
    if plan.eval_mode:
        model.eval()
    total, right, n = 0.0, 0, 0
    for start in range(0, len(split.x_val), 128):
        x, y = split.x_val[start : start + 128], split.y_val[start : start + 128]
        if plan.prepare:
            x, y = plan.prepare(x, y)
        out = model(x)
        total += plan.loss(out, y).item() * len(x)
        n += len(x)
        right += count_right(plan.score, out, y)
    told = {"train_loss": train_loss, "val_loss": total / n}
    if plan.score != "none":
        told["val_accuracy"] = right / n
    if "metrics" in plan.tells:
        w.metrics(**told)
    elif hasattr(w, "outcome"):
        w.outcome(told)


def count_right(score: Score, out: Any, y: Tensor) -> int:
    """Right answers of a batch."""
    if score == "classes":
        return int((out.argmax(1) == y).sum())
    if score == "binary":
        return int(((out.flatten() > 0) == (y.flatten() > 0.5)).sum())
    if score == "labels":
        return int(((out > 0) == (y > 0.5)).all(1).sum())
    return 0


@dataclass(frozen=True)
class Host:
    """A healthy program, from which patients are made by replacing parts."""

    name: str
    plan: Plan
    family: Family
    spelling: Spelling = "modules"

    def healthy(self) -> Case:
        return Case(self.name, self.name, None, self._program(self.plan), self.family, self.spelling)

    def sick(self, symptom: str, what: str, *, accepts: tuple[str, ...] = (), **changes: Any) -> Case:
        """A patient: the plan with `changes`."""
        name = f"{self.name}-{what}"
        return Case(
            name, self.name, symptom, self._program(replace(self.plan, **changes)), self.family, self.spelling, accepts
        )

    def tricky(self, what: str, **changes: Any) -> Case:
        """Another healthy program, which looks like something it is not."""
        program = self._program(replace(self.plan, **changes))
        return Case(f"{self.name}-{what}", self.name, None, program, self.family, self.spelling)

    def own(
        self,
        symptom: str | None,
        what: str,
        program: Callable[[Watch, int], None],
        accepts: tuple[str, ...] = (),
    ) -> Case:
        """A case with a loop of its own."""
        return Case(f"{self.name}-{what}", self.name, symptom, program, self.family, self.spelling, accepts)

    @staticmethod
    def _program(plan: Plan) -> Callable[[Watch, int], None]:
        def program(watch: Watch, seed: int) -> None:
            run(plan, watch, seed)

        return program
