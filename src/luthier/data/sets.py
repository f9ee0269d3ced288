"""The data sets that Luthier knows by name, and `load`."""

from __future__ import annotations

from pathlib import Path

from luthier.data.cache import cache_folder
from luthier.data.cifar import CIFAR10
from luthier.data.dataset import PARTS, DataSet, DataSetSource
from luthier.data.digits import DIGITS
from luthier.data.linear import LINEAR
from luthier.data.mnist import FASHION_MNIST, MNIST
from luthier.data.reviews import MOVIE_REVIEWS
from luthier.errors import unknown

DATA_SETS: dict[str, DataSetSource] = {
    "mnist": MNIST,
    "fashion-mnist": FASHION_MNIST,
    "cifar10": CIFAR10,
    "digits": DIGITS,
    "movie-reviews": MOVIE_REVIEWS,
    "linear": LINEAR,
}


def load(name: str | DataSetSource, cache: str | Path | None = None) -> DataSet:
    """Load a data set: from the cache, else fetched, verified and kept there.

    Args:
        name: one of `DATA_SETS`, or a source of your own.
        cache: folder for data; default the environment's LUTHIER_DATA, else the user's cache directory.

    Returns:
        Memory-mapped tensors: processes share their pages, and writing to them changes no file.

    Raises:
        LuthierError: the name is unknown.
        DownloadError: no source could be reached or verified; the message tells how to place files by hand.

    >>> load("digits")
    DataSet('digits', train=1438, test=359, inputs=1x8x8, 10 classes)
    """
    import torch

    if isinstance(name, str) and name not in DATA_SETS:
        raise unknown("data set", name, DATA_SETS)
    source = DATA_SETS[name] if isinstance(name, str) else name
    arrays = source.arrays(cache_folder(cache))
    inputs, targets, test_inputs, test_targets = (torch.from_numpy(arrays[part]) for part in PARTS)
    tokens = arrays.get("vocabulary")
    vocabulary = None if tokens is None else tuple(tokens.tobytes().decode().split("\n"))
    return DataSet(source.name, (inputs, targets), (test_inputs, test_targets), source.classes, vocabulary)
