"""Trees of arrays: a tensor or array, or nested tuples, lists and dicts of them with one length in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.errors import DataError

Tree = Any
"""A tensor or NumPy array, or a nested tuple, list or dict of them."""


def named_leaves(tree: Tree, name: str) -> Iterator[tuple[str, Any]]:
    """Every leaf with the expression that reaches it.

    >>> [path for path, _ in named_leaves(({"a": 1, "b": 2}, 3), "train")]
    ["train[0]['a']", "train[0]['b']", 'train[1]']
    """
    if isinstance(tree, dict):
        for key, item in tree.items():
            yield from named_leaves(item, f"{name}[{key!r}]")
    elif isinstance(tree, (tuple, list)):
        for place, item in enumerate(tree):
            yield from named_leaves(item, f"{name}[{place}]")
    else:
        yield name, tree


def tree_map(change: Callable[[Any], Any], tree: Tree) -> Tree:
    """The same tree with every leaf changed; named tuples stay what they are.

    >>> tree_map(lambda x: x + 1, (1, {"a": [2]}))
    (2, {'a': [3]})
    """
    if isinstance(tree, dict):
        return {key: tree_map(change, item) for key, item in tree.items()}
    if isinstance(tree, (tuple, list)):
        items = [tree_map(change, item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return change(tree)


def unflatten(skeleton: Tree, leaves: list[Any]) -> Tree:
    """Put leaves, in the order of `named_leaves`, into a tree of this shape."""
    rest = iter(leaves)
    return tree_map(lambda _: next(rest), skeleton)


def as_tensors(tree: Tree, name: str = "data") -> tuple[Tree, int]:
    """The tree with tensors for leaves, and their common length.

    Arrays share memory with their tensors, except read-only ones and those that run backwards, which are copied.

    Args:
        tree: tensors or arrays, nested in tuples, lists and dicts.
        name: what messages call it.

    Raises:
        DataError: no leaf, a leaf of another type, no examples, or lengths that differ.
    """
    tensors = unflatten(tree, [_tensor(leaf, path) for path, leaf in named_leaves(tree, name)])
    sizes = {path: len(leaf) for path, leaf in named_leaves(tensors, name)}
    if not sizes:
        raise DataError(f"{name} holds no arrays: give inputs and targets, for instance ({name}_x, {name}_y)")
    if len(set(sizes.values())) > 1:
        named = ", ".join(f"{path}: {size}" for path, size in sizes.items())
        raise DataError(f"{name} must hold as many examples in every array, got {named}")
    n = next(iter(sizes.values()))
    if n == 0:
        raise DataError(f"{name} is empty: give at least one example")
    return tensors, n


def _tensor(leaf: Any, path: str) -> Tensor:
    if isinstance(leaf, np.ndarray) and leaf.ndim:
        try:
            usable = leaf.flags.writeable and all(stride >= 0 for stride in leaf.strides)
            return torch.from_numpy(leaf if usable else leaf.copy())
        except TypeError as error:
            raise DataError(f"{path} must be an array of numbers, got {leaf.dtype=}: convert it first") from error
    if isinstance(leaf, Tensor) and leaf.ndim:
        return leaf.detach()
    got = f"a single number {leaf!r}" if isinstance(leaf, (int, float, Tensor, np.ndarray)) else type(leaf).__name__
    raise DataError(f"{path} must be a tensor or NumPy array with examples along its first dimension, got {got}")
