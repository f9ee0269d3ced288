"""Digits: 1,797 grey images of 8x8, bundled with scikit-learn.

Inputs are float32 [N, 1, 8, 8] in 0..1 (the sixteen grey levels divided by 16, which is exact), so that code which
divides bytes by 255 need not know of them. One fifth of each class is for testing.
Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from luthier.data.dataset import Arrays, held_out
from luthier.data.fetching import Generated

SPLIT_SEED = 0
_TABLE = ("datasets", "data", "digits.csv.gz")

Array: TypeAlias = "np.ndarray[Any, Any]"


def make() -> Arrays:
    """The bundled images, split for training and testing by a hash of each image."""
    images, labels = bundled()
    inputs = (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    targets = labels.astype(np.int64)
    test = held_out([image.tobytes() for image in images], targets, fraction=0.2, seed=SPLIT_SEED)
    return {
        "train_inputs": inputs[~test],
        "train_targets": targets[~test],
        "test_inputs": inputs[test],
        "test_targets": targets[test],
    }


def bundled() -> tuple[Array, Array]:
    """Pixels [N, 64] in 0..16 and labels [N], from the table in scikit-learn's folder: importing it takes seconds."""
    found = find_spec("sklearn")
    folders = [] if found is None else found.submodule_search_locations or []
    table = next((path for folder in folders if (path := Path(folder, *_TABLE)).is_file()), None)
    if table is None:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        return images, labels
    with gzip.open(table, "rt") as lines:
        rows = np.loadtxt(lines, delimiter=",")
    return rows[:, :-1], rows[:, -1]


DIGITS = Generated(
    name="digits",
    classes=tuple("0123456789"),
    make=make,
    checksum="a4a818b8a1e4cb3c253b1b63af3ce07d87630e647471a92922e22efec547f4a4",
)
