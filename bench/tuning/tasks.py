"""The four tasks: what is trained, and its tensors as .npy files that every contender maps into memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.data import DataSet

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: as on the command line.
        data: name of the data set.
        net: a name of `nets.NETS`.
        inputs: numbers per example, or words.
        outputs: classes.
        epochs: of a whole training.
        train, val: examples; test data are those of the set itself.
        widths, depths: ranges of the shared space, both ends included.
    """

    name: str
    data: str
    net: str
    inputs: int
    outputs: int
    epochs: int
    train: int
    val: int
    widths: tuple[int, int]
    depths: tuple[int, int]

    @property
    def folder(self) -> Path:
        """Where its arrays lie; the sizes are in the name, so that changed tasks get new arrays."""
        from luthier.data.cache import cache_folder

        return cache_folder(None) / "bench-tune" / f"{self.name}-{self.train}-{self.val}"


TASKS = {
    task.name: task
    for task in (
        Task("fashion-mlp", "fashion-mnist", "mlp", 784, 10, 10, 20_000, 10_000, (32, 256), (1, 3)),
        Task("mnist-cnn", "mnist", "cnn", 784, 10, 10, 10_000, 10_000, (8, 24), (2, 3)),
        Task("digits-mlp", "digits", "mlp", 64, 10, 10, 1_150, 288, (32, 256), (1, 3)),
        Task("review-gru", "movie-reviews", "gru", 8819, 2, 10, 6_763, 1_690, (16, 64), (1, 2)),
    )
}


def prepare(task: Task) -> Path:
    """Write the arrays of a task unless they are there; returns the folder.

    Images are standardised by mean and deviation of the training part (one of each, over all pixels).
    """
    folder = task.folder
    if folder.is_dir():
        return folder
    from luthier.data import load
    from luthier.data.splits import split

    data = load(task.data)
    n = len(data.train[1])
    rest = n - task.train - task.val
    parts = split(data.train, [size / n for size in (task.train, task.val, rest) if size], seed=0)
    _write(folder, dict(zip(PARTS, [parts[0], parts[1], data.test], strict=True)), data)
    return folder


def _write(folder: Path, parts: dict[str, Any], data: DataSet) -> None:
    making = folder.with_name(f"{folder.name}.making")
    making.mkdir(parents=True, exist_ok=True)
    mean, deviation = 0.0, 1.0
    if data.vocabulary is None:
        train = parts["train"][0].float()
        mean, deviation = float(train.mean()), float(train.std())
    for part, (x, y) in parts.items():
        inputs = x if data.vocabulary is not None else (x.float() - mean) / deviation
        np.save(making / f"{part}_x.npy", inputs.numpy())
        np.save(making / f"{part}_y.npy", y.numpy())
    making.rename(folder)


def arrays(task: Task, part: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Inputs and labels of "train", "val" or "test", mapped into memory."""
    x, y = (np.load(task.folder / f"{part}_{name}.npy", mmap_mode="c") for name in "xy")
    return x, y


def tensors(task: Task, part: str) -> tuple[Tensor, Tensor]:
    """The same as tensors."""
    import torch

    x, y = arrays(task, part)
    return torch.from_numpy(x), torch.from_numpy(y)
