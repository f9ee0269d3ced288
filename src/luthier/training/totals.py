"""Sums over the epoch so far: loss and correct counts, kept on the device and read rarely."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor

from luthier.training.metrics import Counter, Metric

LATEST = 64


class Totals:
    """Loss and metric of the running epoch, and the latest losses.

    On the CPU a loss is read at once, which costs a microsecond and lets a non-finite one be refused before it
    reaches the weights; elsewhere losses stay on the device and are read together, once in 50 steps.

    Attributes:
        latest: (step, loss) of the last 64 (micro-)batches that were read, over the ends of epochs.
    """

    def __init__(self, metric: Metric, device: torch.device) -> None:
        self.metric = metric
        self.every = 1 if device.type == "cpu" else 50
        self.latest: deque[tuple[int, float]] = deque(maxlen=LATEST)
        self.reset()

    def reset(self) -> None:
        """Begin an epoch."""
        self.loss_sum, self.n = 0.0, 0
        self.counter = _counter(self.metric)
        self.pending: list[tuple[int, Tensor, int]] = []

    def add(self, step: int, loss: Tensor, n: int) -> int | None:
        """Take in one loss; returns the step of the first non-finite loss when one came to light."""
        if self.every == 1:
            return self._sum(step, loss.item(), n)
        self.pending.append((step, loss.detach(), n))
        return self.read() if len(self.pending) >= self.every else None

    def read(self) -> int | None:
        """Read the pending losses; returns the step of the first non-finite one."""
        if not self.pending:
            return None
        values = torch.stack([loss for _, loss, _ in self.pending]).tolist()
        faults = [self._sum(step, value, n) for (step, _, n), value in zip(self.pending, values, strict=True)]
        self.pending = []
        return next((step for step in faults if step is not None), None)

    def _sum(self, step: int, value: float, n: int) -> int | None:
        self.loss_sum += value * n
        self.n += n
        self.latest.append((step, value))
        return None if math.isfinite(value) else step

    def values(self) -> dict[str, float]:
        """Mean loss, and the metric where it is a count."""
        values = {"train_loss": self.loss_sum / self.n if self.n else math.nan}
        if self.counter is not None:
            values[f"train_{self.metric.name}"] = self.counter.compute()
        return values

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint in the middle of an epoch needs; call `read` first."""
        counts = [0, 0] if self.counter is None else [int(self.counter.correct), int(self.counter.n)]
        return {"loss_sum": self.loss_sum, "n": self.n, "counts": counts, "latest": list(self.latest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the sums of a checkpoint."""
        self.reset()
        self.loss_sum, self.n = state["loss_sum"], state["n"]
        self.latest = deque(state.get("latest", ()), LATEST)
        if self.counter is not None:
            self.counter.correct, self.counter.n = state["counts"]


def _counter(metric: Metric) -> Counter | None:
    accumulator = metric.start() if metric.start is not None else None
    return accumulator if isinstance(accumulator, Counter) else None
