"""The loops that are compared: what each does in one epoch of training and one evaluation.

Every contender gets the same tensors, network, batch size, optimizer (AdamW at its ordinary settings), and evaluates
the validation part once an epoch, in batches of 512 without gradients. Shapes: B batch, C channels, H, W image.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import luthier
from luthier.nets import CNN, MLP
from luthier.training.hooks import Hook

Pair = tuple[Tensor, Tensor]
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP 784-128-10": partial(MLP, (1, 28, 28), 10),
    "CNN": partial(CNN, (1, 28, 28), 10, depth=2),
}
LR, EVALUATION_BATCH = 1e-3, 512


@dataclass(frozen=True)
class Setting:
    """One comparison: network, batch size, data, epochs per turn."""

    network: str
    batch_size: int
    train: Pair
    val: Pair
    epochs: int

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.network}, batch {self.batch_size}, {len(self.train[0]):,} images"


def memory_batches(data: Pair, batch_size: int) -> Iterator[Pair]:
    """The usual fast idiom: a permutation, and whole batches selected by it."""
    x, y = data
    for chosen in torch.randperm(len(x)).split(batch_size):
        yield x.index_select(0, chosen), y.index_select(0, chosen)


def evaluate(model: nn.Module, data: Pair) -> tuple[float, float]:
    """Mean loss and accuracy, both read once."""
    model.eval()
    loss_sum, correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    with torch.inference_mode():
        for x, y in zip(data[0].split(EVALUATION_BATCH), data[1].split(EVALUATION_BATCH), strict=True):
            logits = model(x)
            loss_sum += F.cross_entropy(logits, y, reduction="sum")
            correct += (logits.argmax(1) == y).sum()
    model.train()
    return float(loss_sum) / len(data[1]), int(correct) / len(data[1])


def by_hand(setting: Setting, batches: Callable[[], Iterable[Pair]], fused: bool | None) -> float:
    """The loop that one writes by hand: nothing is logged, nothing saved; the training loss is kept."""
    model = NETWORKS[setting.network]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=fused)
    started = time.perf_counter()
    for _ in range(setting.epochs):
        loss_sum = 0.0
        for x, y in batches():
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(y)
        loss, _ = evaluate(model, setting.val)
        if not math.isfinite(loss):
            raise RuntimeError(f"the hand-written loop diverged: {loss=}")
    return (time.perf_counter() - started) / setting.epochs


def hand_written(setting: Setting, fused: bool | None = True) -> float:
    """Seconds per epoch from tensors in memory."""
    return by_hand(setting, lambda: memory_batches(setting.train, setting.batch_size), fused)


def data_loader(setting: Setting, fused: bool | None = True) -> float:
    """Seconds per epoch through the usual DataLoader."""
    loader = DataLoader(TensorDataset(*setting.train), setting.batch_size, shuffle=True)
    return by_hand(setting, lambda: loader, fused)


class Stopwatch(Hook):
    """Notes when the first step begins and when the last epoch is done: evaluated, recorded and told."""

    started = ended = 0.0

    def epoch_start(self, run: Any) -> None:
        """Start with the first epoch."""
        self.started = self.started or time.perf_counter()

    def evaluated(self, run: Any, row: dict[str, Any]) -> None:
        """Called last of all listeners, so that whatever they do counts."""
        self.ended = time.perf_counter()


@contextlib.contextmanager
def unseen_terminal() -> Iterator[None]:
    """What is told goes nowhere, yet is drawn as for a terminal: a live line costs more than lines in a file."""
    before = dict(os.environ)
    os.environ.pop("CI", None)
    os.environ |= {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "120"}
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Ours:
    """luthier.fit as a user gets it: record, TensorBoard and live console on.

    Attributes:
        fixed_s: seconds of each training outside its epochs: checks before the first step, the checkpoint at the end.
    """

    def __init__(self) -> None:
        self.fixed_s: list[float] = []

    def __call__(self, setting: Setting) -> float:
        """Seconds per epoch."""
        task = luthier.Task(NETWORKS[setting.network], setting.train, val=setting.val, name="bench")
        recipe = luthier.Recipe(batch_size=setting.batch_size, epochs=setting.epochs, lr=LR)
        watch = Stopwatch()
        with tempfile.TemporaryDirectory(prefix="luthier-bench-") as folder, unseen_terminal():
            began = time.perf_counter()
            luthier.fit(task, recipe, folder=Path(folder) / "run", hooks=[watch])
            total = time.perf_counter() - began
        self.fixed_s.append(total - (watch.ended - watch.started))
        return (watch.ended - watch.started) / setting.epochs
