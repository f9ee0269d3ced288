"""What a task's network costs, measured where it is trained: its size and its latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from luthier.data import as_batches
from luthier.task import call_model
from luthier.training.run import Run

_WARM_UP = 3
_PASSES = 30
_LEAST_S, _MOST_S = 0.1, 1.0


def measured(run: Run, names: Sequence[str]) -> dict[str, float]:
    """Costs of the network in training, by name; see `COSTS`."""
    return {name: COSTS[name](run) for name in names}


def n_trainable(run: Run) -> float:
    """Count of trainable parameters."""
    return float(sum(each.numel() for each in run.model.parameters() if each.requires_grad))


def latency_ms(run: Run) -> float:
    """Milliseconds of a forward pass over one validation example, in evaluation mode; the training is left as it was.

    The median of the passes of a tenth of a second, of at least 30 if these take no more than a second, as the recipe
    trains (device, precision, threads of a worker). A data loader gives a batch of its own size; a task with a step of
    its own is timed with it. Other workers train at the same time, so the same network may read twice as slow.
    """
    source = as_batches(run.task.val, 1, shuffle=False, seed=0, name="val")
    batch = run.inputs.for_evaluation(next(iter(source.epoch(0))))
    model = run.evaluated_model
    forward = (lambda: run.task.step(model, batch)) if run.task.own_step else (lambda: call_model(model, batch[0]))
    model.eval()
    try:
        with torch.inference_mode(), run.autocast():
            return 1000 * median(_timed(forward, run.device))
    finally:
        model.train()


COSTS: dict[str, Callable[[Run], float]] = {"parameters": n_trainable, "latency_ms": latency_ms}


def _timed(forward: Callable[[], Any], device: torch.device) -> list[float]:
    """Seconds of each pass, after some to warm up."""
    times: list[float] = []
    first = time.perf_counter()
    while (spent := time.perf_counter() - first) < _LEAST_S or (len(times) < _PASSES and spent < _MOST_S):
        began = time.perf_counter()
        forward()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - began)
    return times[_WARM_UP:] or times
