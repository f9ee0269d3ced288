"""What a data set is once it is here: tensors for training and testing, with names for classes and tokens."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Arrays = dict[str, "np.ndarray[Any, Any]"]
"""Decoded data: train_inputs, train_targets, test_inputs, test_targets, and vocabulary for text."""

PARTS = ("train_inputs", "train_targets", "test_inputs", "test_targets")


@dataclass(frozen=True, repr=False, eq=False)
class DataSet:
    """Inputs and targets for training and testing, as memory-mapped tensors that processes share.

    Attributes:
        name: its name in `DATA_SETS`.
        train: inputs [N, ...] and targets [N] to fit and validate with.
        test: inputs and targets to be read once, at the end.
        classes: names of the classes in the order of the labels, or None for regression.
        vocabulary: tokens in the order of their numbers for text (0 pads, 1 is any unknown token), else None.
    """

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: tuple[str, ...] | None = None
    vocabulary: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        inputs, targets = self.train
        shape = "x".join(str(size) for size in inputs.shape[1:])
        kind = f"{len(self.classes)} classes" if self.classes else f"{targets.dtype} targets"
        return f"DataSet({self.name!r}, train={len(inputs)}, test={len(self.test[0])}, inputs={shape}, {kind})"


@dataclass(frozen=True, kw_only=True)
class DataSetSource(ABC):
    """How to come by one data set.

    Attributes:
        name: its name in `DATA_SETS`; also that of its folder in the cache.
        classes: names of the classes in the order of the labels, or None.
    """

    name: str
    classes: tuple[str, ...] | None = None

    @abstractmethod
    def arrays(self, cache: Path) -> Arrays:
        """The verified arrays; `cache` is the folder that may keep them."""


def checksum(arrays: Arrays) -> str:
    """SHA-256 over names, types, shapes and bytes: the same whichever source served the data.

    >>> checksum({"x": np.zeros(2, np.uint8)})[:8]
    '3e8e2966'
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {little.dtype.str} {little.shape};".encode())
        digest.update(little.data)
    return digest.hexdigest()


def held_out(
    keys: Sequence[bytes], labels: np.ndarray[Any, np.dtype[np.int64]], fraction: float, seed: int
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Choose a fixed fraction of each class for testing, the same on every machine and for all time.

    Examples of a class are put in the order of SHA-256 over seed, place and key; the first ones are held out. (No
    generator's stream is promised to stay the same over versions, and the arrays' checksum needs that.)

    Args:
        keys: content of each example.
        labels: class of each example [N].
        fraction: share of each class, in 0..1, rounded to whole examples.
        seed: gives another choice.

    Returns:
        True [N] for the examples held out.
    """
    hashes = [hashlib.sha256(f"{seed}:{place}:".encode() + key).digest() for place, key in enumerate(keys)]
    chosen = np.zeros(len(keys), np.bool_)
    for label in np.unique(labels):
        members = sorted(np.flatnonzero(labels == label), key=hashes.__getitem__)
        chosen[members[: round(fraction * len(members))]] = True
    return chosen
