"""One look before the first step: does the model's output fit the targets?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.errors import DataError, LuthierError
from luthier.training.losses import check_labels
from luthier.training.randomness import Stream, derive, seed_global

if TYPE_CHECKING:
    from luthier.training.run import Run


def preflight(run: Run) -> None:
    """Pass the first batch through the model, without gradients, and check what comes out.

    Also learns the number of classes, which mixup and cutmix need.

    Raises:
        DataError: outputs and targets do not fit the loss, labels out of range, no batch at all.
        LuthierError: the model or the loss cannot take the batch, or the loss is not a scalar.
    """
    batch = next(iter(run.train.epoch(0)), None)
    if batch is None:
        raise DataError("the training data gave no batch: it is empty, or its loader drops the only incomplete one")
    batch = run.inputs.for_evaluation(batch)
    outputs, targets = _outputs(run, batch)
    if run.task.own_step is None:
        run.task.loss.check(outputs, targets)
    if run.task.loss.kind == "classes" and isinstance(outputs, Tensor) and outputs.ndim >= 2:
        run.inputs.n_classes = outputs.shape[1]
        for part, data in (("train", run.task.train), ("val", run.task.val)):
            _check_all_labels(data, outputs.shape[1], part)


def _outputs(run: Run, batch: Any) -> tuple[Any, Any]:
    """Outputs and targets of the first batch; in evaluation mode, so that batch statistics stay untouched."""
    seed_global(derive(run.recipe.seed, Stream.EVALUATION), run.device)
    shapes = _shapes(batch)
    run.model.eval()
    try:
        with torch.no_grad(), run.autocast():
            if run.task.own_step is not None:
                step = run.task.own_step(run.model, batch)
                _check_scalar(step.loss)
                return step.outputs, step.targets
            inputs, targets = _pair(batch)
            from luthier.task import call_model

            outputs = call_model(run.model, inputs)
            run.task.loss.check(outputs, targets)
            _check_scalar(run.task.loss(outputs, targets, run.recipe.label_smoothing))
            return outputs, targets
    except LuthierError:
        raise
    except (RuntimeError, TypeError, LookupError, ValueError, AttributeError) as error:
        raise LuthierError(
            f"the model {type(run.model).__name__} or the loss {run.task.loss.name!r} cannot take the first batch "
            f"({shapes}): {type(error).__name__}: {error}"
        ) from error
    finally:
        run.model.train()


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise DataError(
        f"batches must be pairs (inputs, targets), got {_shapes(batch)}: "
        "for other batches give the task a step=(model, batch) -> luthier.Step(loss, outputs, targets, n)"
    )


def _check_scalar(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.ndim:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise LuthierError(f"the loss must be a scalar tensor (the mean over the batch), got {got}: add .mean()")


def _check_all_labels(data: Any, n_classes: int, part: str) -> None:
    """Labels of a whole in-memory part; a wrong one deep in the data would only show after minutes."""
    if not (isinstance(data, (tuple, list)) and len(data) == 2):
        return
    labels = torch.as_tensor(data[1]) if hasattr(data[1], "__array__") or isinstance(data[1], Tensor) else None
    if labels is not None and labels.dtype == torch.int64:
        try:
            check_labels(labels, n_classes)
        except DataError as error:
            raise DataError(f"{part} data: {error}") from None


def _shapes(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')}{list(batch.shape)}"
    if isinstance(batch, dict):
        return "{" + ", ".join(f"{key}: {_shapes(item)}" for key, item in batch.items()) + "}"
    if isinstance(batch, (tuple, list)):
        return "(" + ", ".join(_shapes(item) for item in batch) + ")"
    return type(batch).__name__
