"""Splits into training, validation and test parts: seeded, disjoint, covering, stratified by class."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from luthier.data.trees import Tree, as_tensors, tree_map
from luthier.errors import DataError


def split(
    data: Tree, fractions: Sequence[float], seed: int, stratify: Tensor | Literal["auto"] | None = "auto"
) -> list[Tree]:
    """Split data into parts by chance, in every class alike.

    Each part has its fraction of all examples, rounded to whole ones, and of each class within one. In
    each part the examples keep their order. A class with fewer examples than parts is warned about: some
    part will have none of it.

    Args:
        data: tensors or arrays, nested in tuples, lists and dicts.
        fractions: of each part, above 0, with sum 1.
        seed: of the choice; the global generator is not touched.
        stratify: class labels [N]; "auto" takes the last item of a tuple or list when it is a vector of integers with
            (on average) at least as many examples a class as there are parts; None for a plain split.

    Returns:
        One tree of tensors (copies) for each fraction.

    Raises:
        DataError: fractions that do not sum to 1, a part that would be empty, labels of another length.

    >>> train, val = split((torch.arange(10), torch.arange(10) % 2), [0.8, 0.2], seed=0)
    >>> train[1].bincount().tolist(), val[1].bincount().tolist()
    ([4, 4], [1, 1])
    """
    tensors, n = as_tensors(data)
    sizes = part_sizes(n, fractions)
    labels = _labels(tensors, n, len(sizes), stratify)
    generator = torch.Generator().manual_seed(seed)
    parts = _assign(labels, sizes, fractions, generator)
    return [take(tensors, chosen) for chosen in parts]


def take(tensors: Tree, chosen: Tensor) -> Tree:
    """Copies of the chosen examples of every tensor in a tree."""

    def copy(leaf: Tensor) -> Tensor:
        return leaf.index_select(0, chosen.to(leaf.device))

    return tree_map(copy, tensors)


def part_sizes(n: int, fractions: Sequence[float]) -> list[int]:
    """Whole sizes with sum n, as near to the fractions as can be (largest remainders).

    >>> part_sizes(10, [0.75, 0.25])
    [8, 2]
    """
    if not fractions or any(not 0 < fraction <= 1 for fraction in fractions) or not math.isclose(sum(fractions), 1):
        raise DataError(f"fractions must be above 0 and have sum 1, got {list(fractions)} with sum {sum(fractions):g}")
    sizes = _largest_remainders(n, fractions)
    if 0 in sizes:
        raise DataError(
            f"{n} examples are too few for parts of {list(fractions)}: part {sizes.index(0)} would be empty"
        )
    return sizes


def _largest_remainders(n: int, fractions: Sequence[float]) -> list[int]:
    sizes = [_floor(n * fraction) for fraction in fractions]
    by_remainder = sorted(range(len(sizes)), key=lambda part: sizes[part] - n * fractions[part])
    for part in by_remainder[: n - sum(sizes)]:
        sizes[part] += 1
    return sizes


def _floor(value: float) -> int:
    """The whole part, forgiving rounding errors such as 0.29 * 100 = 28.999999999999996."""
    return math.floor(value + 1e-9)


def _labels(tensors: Tree, n: int, parts: int, stratify: Tensor | Literal["auto"] | None) -> Tensor:
    """Class numbers 0.. of all examples [N]; a plain split has one class."""
    plain = torch.zeros(n, dtype=torch.int64)
    if stratify is None:
        return plain
    if isinstance(stratify, str):
        last = tensors[-1] if isinstance(tensors, (tuple, list)) else None
        if not isinstance(last, Tensor) or last.ndim != 1 or last.is_floating_point() or last.is_complex():
            return plain
        numbers = _numbered(last)
        return numbers if (int(numbers.max()) + 1) * parts <= n else plain
    given = torch.as_tensor(stratify).cpu()
    if given.shape != (n,):
        raise DataError(f"stratify must hold one class label for each of {n} examples, got shape {tuple(given.shape)}")
    return _numbered(given)


def _numbered(labels: Tensor) -> Tensor:
    """Labels of any kind as class numbers 0.. in their order."""
    numbers: Tensor = labels.cpu().unique(return_inverse=True)[1]  # type: ignore[no-untyped-call]
    return numbers


def _assign(labels: Tensor, sizes: list[int], fractions: Sequence[float], generator: torch.Generator) -> list[Tensor]:
    """Indices of each part, sorted: a permutation of every class, cut by that class's counts."""
    order = torch.randperm(len(labels), generator=generator)
    by_class = order[labels[order].argsort(stable=True)]
    groups = torch.split(by_class, labels.bincount().tolist())
    counts = class_counts([len(group) for group in groups], sizes, fractions)
    pieces = [torch.split(group, row) for group, row in zip(groups, counts, strict=True)]
    _warn_rare(groups, len(sizes))
    return [torch.cat([piece[part] for piece in pieces]).sort().values for part in range(len(sizes))]


def class_counts(classes: Sequence[int], sizes: Sequence[int], fractions: Sequence[float]) -> list[list[int]]:
    """How many examples of each class go to each part: the fraction rounded down, or one more.

    The examples left over by rounding down go, class by class and the most left over first, to the parts that lack the
    most (Gale and Ryser's construction of a table from its sums), at most one to a part.

    >>> class_counts([5, 5], [5, 5], [0.5, 0.5])
    [[3, 2], [2, 3]]
    """
    counts = [[_floor(size * fraction) for fraction in fractions] for size in classes]
    lacking = [size - sum(row[part] for row in counts) for part, size in enumerate(sizes)]
    left = [size - sum(row) for size, row in zip(classes, counts, strict=True)]
    for place in sorted(range(len(classes)), key=lambda place: -left[place]):
        neediest = sorted(range(len(sizes)), key=lambda part: -lacking[part])
        for part in neediest[: left[place]]:
            counts[place][part] += 1
            lacking[part] -= 1
    return counts


def _warn_rare(groups: Sequence[Tensor], parts: int) -> None:
    rare = [label for label, group in enumerate(groups) if len(group) < parts]
    if rare:
        warnings.warn(
            f"{len(rare)} of {len(groups)} classes have fewer examples than the split has parts ({parts}): "
            "some part will have none of them",
            stacklevel=4,
        )
