"""Normalisation layers by name, for every layout of channels that a network may have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from luthier.errors import unknown


@dataclass(frozen=True)
class Layout:
    """Where the channels of a tensor are.

    Attributes:
        channels: their number C.
        dims: spatial dimensions after [B, C]; 0 for [B, C] itself, None when not known.
        last: channels are the last dimension of any number, as in [B, T, C].
    """

    channels: int
    dims: int | None = None
    last: bool = False


class BatchNorm(_BatchNorm):
    """Batch normalisation of [B, C, ...] with any number of spatial dimensions."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        if input.dim() < 2:
            raise ValueError(f"expected an input [B, C, ...], got shape {tuple(input.shape)}")


class LastBatchNorm(BatchNorm):
    """Batch normalisation of [B, ..., C]: every channel over all other dimensions."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Normalise; the shape stays."""
        return super().forward(input.movedim(-1, 1)).movedim(1, -1)


class LastGroupNorm(nn.GroupNorm):
    """Group normalisation of [..., C]: every position by itself, its channels in groups."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Normalise; the shape stays."""
        return super().forward(input.reshape(-1, input.shape[-1])).view(input.shape)


def groups_for(channels: int) -> int:
    """Number of groups: the largest divisor of `channels` that is at most 32 and leaves 2 channels to a group.

    One channel to a group would be instance normalisation, and zero for [B, C] tensors. Wu and He (2018) use 32.

    >>> groups_for(64), groups_for(48), groups_for(16), groups_for(7)
    (32, 24, 8, 1)
    """
    return max(n for n in range(1, min(32, max(channels // 2, 1)) + 1) if channels % n == 0)


_BATCH = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def _batch(layout: Layout) -> nn.Module:
    if layout.last:
        return LastBatchNorm(layout.channels)
    return BatchNorm(layout.channels) if layout.dims is None else _BATCH[layout.dims](layout.channels)


def _layer(layout: Layout) -> nn.Module:
    if layout.last or layout.dims == 0:
        return nn.LayerNorm(layout.channels)
    return nn.GroupNorm(1, layout.channels)


def _group(layout: Layout) -> nn.Module:
    kind = LastGroupNorm if layout.last else nn.GroupNorm
    return kind(groups_for(layout.channels), layout.channels)


def _none(_: Layout) -> nn.Module:
    return nn.Identity()


NORMS: dict[str, Callable[[Layout], nn.Module]] = {"batch": _batch, "layer": _layer, "group": _group, "none": _none}
"""Name -> maker. For convolutions "layer" is GroupNorm(1, C): over channels and positions of one example."""


def norm(name: str, channels: int, dims: int | None = None, last: bool = False) -> nn.Module:
    """A new normalisation layer by name.

    Args:
        name: a key of `NORMS`.
        channels: number of channels C.
        dims: spatial dimensions after [B, C]: 0 to 3; None when not known.
        last: the channels are the last dimension, as in [B, T, C].

    Returns:
        The layer; `nn.Identity` for "none".

    Raises:
        LuthierError: the name is unknown; close matches are listed.

    >>> norm("layer", 64, last=True).normalized_shape
    (64,)
    """
    if name not in NORMS:
        raise unknown("norm", name, NORMS)
    return NORMS[name](Layout(channels, dims, last))


NORM_TYPES = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, _InstanceNorm, nn.RMSNorm)


def kind_of(module: nn.Module) -> str | None:
    """The kind of normalisation that a module is: a key of `NORMS`, "instance", "rms", or None.

    >>> kind_of(nn.GroupNorm(1, 4)), kind_of(nn.GroupNorm(2, 4)), kind_of(nn.Linear(1, 1))
    ('layer', 'group', None)
    """
    if isinstance(module, nn.GroupNorm):
        return "layer" if module.num_groups == 1 else "group"
    for kind, types in (
        ("batch", _BatchNorm),
        ("layer", nn.LayerNorm),
        ("instance", _InstanceNorm),
        ("rms", nn.RMSNorm),
    ):
        if isinstance(module, types):
            return kind
    return None
