"""One look at the data before training: no examples, lengths that differ, numbers that are not finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.data.adapters import in_memory
from luthier.data.trees import as_tensors, named_leaves
from luthier.errors import DataError

CHUNK_ELEMENTS = 1 << 24


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
    tensors, n = as_tensors(tree, name)
    for path, leaf in named_leaves(tensors, name):
        if leaf.is_floating_point():
            _check_finite(leaf, path, n)
    return True


def _check_finite(leaf: Tensor, path: str, n: int) -> None:
    rows = max(1, CHUNK_ELEMENTS // max(1, leaf[0].numel()))
    broken = [place for low in range(0, n, rows) for place in _not_finite(leaf[low : low + rows], low)]
    if broken:
        values = leaf[broken[0]].flatten()
        value = float(values[~values.isfinite()][0])
        raise DataError(
            f"{path}[{broken[0]}] holds {value} (in {len(broken)} of {n} examples): "
            "remove or replace what is not finite"
        )


def _not_finite(rows: Tensor, first: int) -> list[int]:
    """Indices of rows with a number that is not finite.

    The sum is not finite whenever a term is not, and is 100 times faster than looking at each; only when it is
    not finite (it may also overflow) every number is looked at.
    """
    if torch.isfinite(rows.sum(dtype=torch.float64 if rows.dtype == torch.float64 else torch.float32)):
        return []
    bad = ~rows.flatten(1).isfinite().all(1) if rows.ndim > 1 else ~rows.isfinite()
    return [first + place for place in bad.nonzero().flatten().tolist()]
