"""Data: sets fetched and verified, batches from memory, splits, and test data kept sealed.

Names are imported when first used, so that importing a neighbour (augmentation settings) stays free of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.data.batches import Batches, BatchSource, as_batches, check_data
    from luthier.data.dataset import DataSet, DataSetSource
    from luthier.data.sealed import Sealed
    from luthier.data.sets import DATA_SETS, load
    from luthier.data.splits import split

_HOMES = {
    "DATA_SETS": "sets",
    "BatchSource": "batches",
    "Batches": "batches",
    "DataSet": "dataset",
    "DataSetSource": "dataset",
    "Sealed": "sealed",
    "as_batches": "batches",
    "check_data": "batches",
    "load": "sets",
    "split": "splits",
}

__all__ = [
    "DATA_SETS",
    "BatchSource",
    "Batches",
    "DataSet",
    "DataSetSource",
    "Sealed",
    "as_batches",
    "check_data",
    "load",
    "split",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
