"""One look at the data before training: no examples, lengths that differ, numbers that are not finite."""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.data.trees import Tree, as_tensors, named_leaves
from luthier.errors import DataError

CHUNK_ELEMENTS = 1 << 24


def check_tensors(data: Tree, name: str) -> None:
    """Refuse arrays that are empty, of different lengths, or hold a number that is NaN or infinite.

    Args:
        data: tensors or arrays, nested in tuples, lists and dicts.
        name: what messages call them.

    Raises:
        DataError: naming the array and the first example that is not finite.
    """
    tensors, n = as_tensors(data, name)
    for path, leaf in named_leaves(tensors, name):
        if leaf.is_floating_point():
            _check_finite(leaf, path, n)


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
