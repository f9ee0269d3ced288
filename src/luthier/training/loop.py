"""The training loop, top to bottom: epochs, steps, evaluation, reasons to stop."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import DataError, NonFiniteLoss
from luthier.task import Step
from luthier.training.microbatches import divide_gradients, split_batch
from luthier.training.nonfinite import first_nonfinite_layer
from luthier.training.penalties import add_l1, clip_gradients
from luthier.training.randomness import Stream, derive, seed_global
from luthier.training.run import Evaluator, Run


def train(run: Run, until: int | None = None) -> tuple[str, str]:
    """Train until the end of the recipe, step `until`, or the first reason to stop.

    Args:
        run: a new run, or one with a checkpoint loaded.
        until: pause once this many steps are taken (within an epoch too).

    Returns:
        State ("finished", "paused" or "interrupted") and the reason in words.
    """
    while run.epoch < run.recipe.epochs:
        if until is not None and run.step >= until:
            return "paused", f"paused at step {run.step} of {run.total_steps}"
        run.hooks.epoch_start(run)
        for batch in run.batches():
            take_step(run, batch)
            run.hooks.step_end(run)
            if run.epoch_over:
                continue  # even when interrupted: the reading belongs to the step
            if run.interrupted:
                return "interrupted", f"interrupted at step {run.step}"
            if run.step == until:
                run.hooks.evaluated(run, row_of(run, "rung"))
                return "paused", f"paused at step {run.step} of {run.total_steps}"
        end_epoch(run)
        if (stopping := run.recipe.early_stopping) and stopping.stops(run.history, run.task.metric.minimise):
            return "finished", f"early stopping: no gain in {stopping.patience} evaluations"
        if run.interrupted and run.epoch < run.recipe.epochs:
            return "interrupted", f"interrupted at step {run.step}"
    return "finished", f"all {run.recipe.epochs} epochs trained"


def take_step(run: Run, batch: Any) -> None:
    """One optimizer step: forward, backward, penalties, clipping, update, averaging."""
    recipe = run.recipe
    seed_global(derive(recipe.seed, Stream.STEP, run.step), run.device)
    if run.lr_moves or run.factor is None:
        run.set_lr()
    batch = run.inputs.for_training(batch)
    run.hooks.step_start(run, batch)
    loss, n = backward(run, batch)
    if run.scaler is not None:
        run.scaler.unscale_(run.optimizer)
    run.hooks.after_backward(run, loss)
    if recipe.l1:
        add_l1(run.optimizer, recipe.l1)
    if recipe.clip_norm or recipe.clip_value:
        clip_gradients(run.model.parameters(), recipe.clip_norm, recipe.clip_value)
    if run.scaler is None:
        run.optimizer.step()
    else:
        run.scaler.step(run.optimizer)
        run.scaler.update()
    run.step, run.batch, run.examples = run.step + 1, run.batch + 1, run.examples + n
    if run.averaging is not None:
        run.averaging.update(run.model, run.progress)


def backward(run: Run, batch: Any) -> tuple[Tensor, int]:
    """Gradients of the mean loss over a batch; returns the loss and what it was the mean over."""
    if run.recipe.accumulate > 1:
        return accumulate(run, split_batch(batch, run.recipe.accumulate))
    step = forward(run, batch)
    clear_gradients(run.optimizer)  # only now, so that the new gradients come to lie where the old ones did
    scaled(run, step.loss).backward()  # type: ignore[no-untyped-call]
    return step.loss.detach(), step.n


def accumulate(run: Run, parts: list[Any]) -> tuple[Tensor, int]:
    """The same from micro-batches.

    Each part's loss is weighted by its size against what all would have if they were like the first, and the
    gradients are set right at the end, when all sizes are known: so the gradient is that of the whole batch whatever
    the number of parts (but for batch norm, which sees the parts).
    """
    clear_gradients(run.optimizer)
    total, expected, loss_sum = 0, 0, torch.zeros((), device=run.device)
    for part in parts:
        step = forward(run, part)
        expected = expected or max(1, step.n) * len(parts)
        scaled(run, step.loss * (step.n / expected)).backward()  # type: ignore[no-untyped-call]
        total, loss_sum = total + step.n, loss_sum + step.loss.detach() * step.n
    divide_gradients(run.model, total / expected)
    return loss_sum / total, total


def scaled(run: Run, loss: Tensor) -> Tensor:
    """The loss as backward takes it: scaled up in float16, so that small gradients do not vanish."""
    return loss if run.scaler is None else run.scaler.scale(loss)


def forward(run: Run, part: Any) -> Step:
    """Loss and outputs of one (micro-)batch, counted into the totals.

    Raises:
        NonFiniteLoss: with the step and the first layer whose output was not finite.
    """
    with run.autocast():
        step = run.task.step(run.forward, part, run.recipe.label_smoothing)
    fault = run.totals.add(run.step, step.loss, step.n)
    if fault is not None:
        raise nonfinite(run, part, fault)
    if run.totals.counter is not None:
        run.totals.counter.update(step.outputs.detach(), step.targets)
    return step


def clear_gradients(optimizer: torch.optim.Optimizer) -> None:
    """What `optimizer.zero_grad()` does, without its entry in torch's profiler, which costs about 8 us."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def nonfinite(run: Run, part: Any, step: int) -> NonFiniteLoss:
    """The error for a loss that is NaN or infinite, with the layer that it came from."""
    seed_global(derive(run.recipe.seed, Stream.STEP, step), run.device)
    with run.autocast():
        layer = first_nonfinite_layer(run.model, lambda model: run.task.step(model, part, run.recipe.label_smoothing))
    where = f"first non-finite output: {layer}" if layer else "every layer's output is finite: the loss itself is not"
    return NonFiniteLoss(
        f"the loss became NaN or infinite at step {step} (epoch {run.epoch + 1}), lr {run.lr:.3g}; {where}. "
        "Try a lower lr, gradient clipping (clip_norm=1), and check the inputs for extreme values",
        step,
        layer,
    )


def end_epoch(run: Run) -> None:
    """Evaluate, note the best weights, tell the hooks; the epoch is complete."""
    if run.batch == 0:
        raise DataError("the training data gave no batch: it is empty, or its loader drops the only incomplete one")
    if (fault := run.totals.read()) is not None:
        raise nonfinite(run, run.inputs.for_training(next(run.batches())), fault)
    row = row_of(run, "epoch")
    value = row[f"val_{run.task.metric.name}"]
    run.epoch, run.batch = run.epoch + 1, 0
    run.history.append(value)
    if run.task.metric.better(value, run.best_value):
        run.best_value, run.best_step = value, run.step
        run.best_weights = {name: tensor.detach().clone() for name, tensor in evaluated_state(run).items()}
    run.totals.reset()
    run.hooks.evaluated(run, row)


def evaluated_state(run: Run) -> dict[str, Tensor]:
    """Weights of the network that was evaluated, under the plain model's names."""
    averaged = None if run.averaging is None else run.averaging.model
    return dict((run.model if averaged is None else averaged).state_dict())


def row_of(run: Run, kind: str) -> dict[str, Any]:
    """Evaluate on the validation part and put everything known at this step into one row of metrics."""
    refresh_batch_norm(run)
    values = evaluate(run, run.evaluated_model, run.val)
    return {
        "kind": kind,
        "step": run.step,
        "epoch": run.epoch + run.batch / run.steps_by_epoch[run.epoch],
        "examples": run.examples,
        "time_s": round(run.time_s, 3),
        "lr": run.recipe.lr * (run.factor or 0.0),
        **run.totals.values(),
        **{f"val_{name}": value for name, value in values.items()},
    }


def refresh_batch_norm(run: Run, batches: int = 50) -> None:
    """Give averaged weights batch-norm statistics of their own, over the first training batches of this epoch."""
    if run.averaging is None:
        return
    seed_global(derive(run.recipe.seed, Stream.EVALUATION, run.step), run.device)
    first = itertools.islice(run.train.epoch(run.epoch, 0, run.batch_size(run.epoch)), batches)
    with run.autocast():
        run.averaging.refresh_batch_norm(
            (run.inputs.for_training(batch) for batch in first), lambda model, batch: run.task.step(model, batch)
        )


@torch.inference_mode()
def evaluate(run: Evaluator, model: nn.Module, source: Any) -> dict[str, float]:
    """Mean loss and metric over a part of the data, in evaluation mode; the training is left as it was."""
    metric = run.task.metric
    accumulator = metric.start() if metric.start is not None else None
    loss_sum, n = torch.zeros((), device=run.device, dtype=torch.float32), 0
    seed_global(derive(run.recipe.seed, Stream.EVALUATION, run.step), run.device)
    model.eval()
    try:
        with run.autocast():
            for batch in source.epoch(0):
                step = run.task.step(model, run.inputs.for_evaluation(batch))
                loss_sum += step.loss * step.n
                n += step.n
                if accumulator is not None:
                    accumulator.update(step.outputs, step.targets)
    finally:
        model.train()
    loss = float(loss_sum) / n if n else float("nan")
    return {"loss": loss} if accumulator is None else {"loss": loss, metric.name: accumulator.compute()}
