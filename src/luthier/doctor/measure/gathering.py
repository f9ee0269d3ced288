"""Kept blocks of examples put together, with a key for every example that tells equal ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Block:
    """Consecutive examples of one batch, inputs flattened to at most 1,024 features.

    Attributes:
        step, forward: optimizer step; number of the forward within its evaluation (0 in training).
        inputs: (n, d). targets: (n, ...) or None. shape: of one example as given. tokens: inputs are whole numbers.
        stride: every stride-th feature was kept.
    """

    step: int
    forward: int
    inputs: Tensor
    targets: Tensor | None
    shape: tuple[int, ...]
    tokens: bool
    stride: int = 1


@dataclass
class Sample:
    """Blocks of one shape put together.

    Attributes:
        inputs: (n, d), what is not finite replaced by 0. targets: (n, ...) or None when some block has none.
        block, place: (n,) number of the block, and the row within it. keys: (n,) equal for equal inputs.
        nonfinite: (n,) whether the inputs held NaN or infinity. tokens: inputs are names, not quantities.
    """

    inputs: Tensor
    targets: Tensor | None
    block: Tensor
    place: Tensor
    keys: Tensor
    nonfinite: Tensor
    tokens: bool

    @property
    def first(self) -> Tensor:
        """Rows of distinct inputs, each where it came first."""
        _, inverse = torch.unique(self.keys, return_inverse=True)
        n = len(self.keys)
        first = torch.full((int(inverse.max()) + 1,), n).scatter_reduce(0, inverse, torch.arange(n), "amin")
        return first.sort().values


def of_common_shape(blocks: Sequence[Block]) -> list[Block]:
    """The blocks of the most frequent shape."""
    if not blocks:
        return []
    common = Counter((block.shape, block.tokens) for block in blocks).most_common(1)[0][0]
    return [block for block in blocks if (block.shape, block.tokens) == common]


def gather(blocks: Sequence[Block]) -> Sample:
    """Put blocks of one shape together."""
    inputs = torch.cat([block.inputs for block in blocks])
    nonfinite = torch.zeros(len(inputs), dtype=torch.bool)
    if inputs.is_floating_point() and not bool(inputs.sum().isfinite()):
        finite = inputs.isfinite()
        nonfinite = ~finite.all(1)
        inputs = torch.where(finite, inputs, 0.0)
    sizes = torch.tensor([len(block.inputs) for block in blocks])
    given = [block.targets for block in blocks]
    known = [t for t in given if t is not None]
    whole = len(known) == len(given) and len({(t.shape[1:], t.dtype) for t in known}) == 1
    return Sample(
        inputs=inputs,
        targets=torch.cat(known) if whole else None,
        block=torch.arange(len(blocks)).repeat_interleave(sizes),
        place=torch.cat([torch.arange(int(size)) for size in sizes]),
        keys=_keys(inputs),
        nonfinite=nonfinite,
        tokens=blocks[0].tokens,
    )


def _keys(inputs: Tensor) -> Tensor:
    """(n,) a 64-bit hash of every row: equal rows have equal keys, others practically never."""
    bits = inputs if inputs.dtype == torch.int64 else (inputs + 0.0).view(torch.int32).long()
    generator = torch.Generator().manual_seed(2)
    odd = torch.randint(1 << 61, (inputs.shape[1],), generator=generator) * 2 + 1
    return ((bits ^ (bits >> 15)) * odd).sum(1)
