"""Batches of whatever a user trains on: arrays, a `Dataset`, an `IterableDataset`, a `DataLoader`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from luthier.data.adapters import DatasetBatches, LoaderBatches, StreamBatches
from luthier.data.checks import check_tensors
from luthier.data.memory import Batches, BatchSource
from luthier.data.trees import Tree
from luthier.errors import DataError

__all__ = ["BatchSource", "Batches", "as_batches", "check_data", "in_memory", "is_stream"]

ACCEPTED = (
    "tensors or NumPy arrays (also nested in tuples, lists and dicts), a torch Dataset, "
    "an IterableDataset with steps_per_epoch, or a DataLoader"
)


def as_batches(
    data: Any,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int,
    steps_per_epoch: int | None = None,
    name: str = "train",
    drop_last: bool = False,
) -> BatchSource:
    """Read data of any accepted kind as batches.

    Args:
        data: arrays, a `Dataset`, an `IterableDataset`, a `DataLoader`, or a `BatchSource` (returned as it is).
        batch_size: examples in a batch; a `DataLoader` keeps its own.
        shuffle: a new order every epoch; streams and `DataLoader`s keep theirs.
        seed: of the order.
        steps_per_epoch: batches that make an epoch, for data without a length, and only for them.
        name: what messages call the data.
        drop_last: leave out a last batch that would be smaller; a `DataLoader` keeps its own setting.

    Raises:
        DataError: the data are of another kind, empty, or `steps_per_epoch` is missing or out of place.
    """
    if is_stream(data):
        return StreamBatches(
            data, batch_size, _needed(steps_per_epoch, name), seed=seed, drop_last=drop_last, name=name
        )
    if steps_per_epoch is not None:
        raise DataError(f"steps_per_epoch is for data without a length, and {name} has one: leave it out")
    if isinstance(data, BatchSource):
        return data
    if isinstance(data, DataLoader):
        return LoaderBatches(data, batch_size, seed=seed, name=name)
    tensors = in_memory(data)
    if tensors is not None:
        return Batches(tensors, batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last, name=name)
    if isinstance(data, Dataset) and hasattr(data, "__len__"):
        return DatasetBatches(data, batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last, name=name)
    raise DataError(f"{name} must be {ACCEPTED}; got {type(data).__name__}")


def is_stream(data: Any) -> bool:
    """Whether the data have no length of their own: an `IterableDataset`, bare or in a `DataLoader`."""
    return isinstance(data.dataset if isinstance(data, DataLoader) else data, IterableDataset)


def in_memory(data: Any) -> Tree | None:
    """The arrays that the data consist of when they are in memory, else None.

    A `TensorDataset`, also as a `Subset` (what `random_split` gives), is taken apart: batches of it need no
    per-sample work.
    """
    if isinstance(data, Batches):
        return data.data
    if type(data) is TensorDataset:
        return data.tensors
    if type(data) is Subset and type(data.dataset) is TensorDataset:
        chosen = torch.as_tensor(data.indices, dtype=torch.int64)
        return tuple(tensor.index_select(0, chosen) for tensor in data.dataset.tensors)
    return data if isinstance(data, (Tensor, np.ndarray, tuple, list, dict)) else None


def _needed(steps_per_epoch: int | None, name: str) -> int:
    if steps_per_epoch is None:
        raise DataError(f"{name} is a stream without a length: give steps_per_epoch, the batches that make an epoch")
    if steps_per_epoch < 1:
        raise DataError(f"steps_per_epoch must be at least 1, got {steps_per_epoch}")
    return steps_per_epoch


def check_data(data: Any, name: str = "train") -> bool:
    """Refuse data in memory that cannot be trained on.

    Args:
        data: anything that `as_batches` accepts.
        name: what messages call it.

    Returns:
        True when every example was looked at; False when the data are not in memory, so that none was.

    Raises:
        DataError: no examples, lengths that differ, or a number that is NaN or infinite (with its index).

    >>> check_data(torch.tensor([[1.0], [float("nan")]]))
    Traceback (most recent call last):
    luthier.errors.DataError: train[1] holds nan (in 1 of 2 examples): remove or replace what is not finite
    """
    tree = in_memory(data)
    if tree is None:
        return False
    check_tensors(tree, name)
    return True
