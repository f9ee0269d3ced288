"""Plain convolutional network."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from luthier.errors import LuthierError, unknown
from luthier.nets.parts import at_least, image_shape, norm_or_none, rate, stack
from luthier.training.surgery.activations import activation as make_activation

PoolName = Literal["max", "avg", "stride"]


class CNN(nn.Module):
    """Convolutional network: `depth` blocks that halve the image and double the channels, mean over positions, Linear.

    A block is Conv2d, norm, activation, pooling, dropout; with pool="stride" the convolution itself steps by 2.

    Args:
        inputs: (channels, height, width); height and width of at least 2^depth.
        outputs: logits per example.
        width: channels of the first block.
        depth: blocks, at least 1.
        kernel_size: odd side of the convolutions' kernel.
        activation: name, see `luthier.training.choices.ActivationName`.
        norm: name, see `luthier.training.choices.NormName`.
        dropout: rate in [0, 1) after each block.
        pool: "max", "avg" or "stride".

    Raises:
        LuthierError: an unknown name or a value out of range.

    >>> import torch
    >>> CNN((1, 28, 28), 10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        inputs: tuple[int, int, int],
        outputs: int,
        width: int = 32,
        depth: int = 3,
        kernel_size: int = 3,
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        pool: PoolName = "max",
    ) -> None:
        super().__init__()
        at_least(1, outputs=outputs, width=width, depth=depth, kernel_size=kernel_size)
        channels, height, wide = image_shape(inputs)
        if kernel_size % 2 == 0:
            raise LuthierError(f"kernel_size must be odd, so that blocks keep the image's size, got {kernel_size}")
        if min(height, wide) < 2**depth:
            raise LuthierError(f"depth={depth} halves the image {depth} times, too often for {height} x {wide} pixels")
        sizes = [channels] + [width * 2**block for block in range(depth)]
        self.blocks = nn.Sequential(
            *(
                stack(
                    nn.Conv2d(before, after, kernel_size, 2 if pool == "stride" else 1, kernel_size // 2),
                    norm_or_none(norm, after, dims=2),
                    make_activation(activation),
                    _pool(pool),
                    nn.Dropout(rate(dropout)),
                )
                for before, after in pairwise(sizes)
            )
        )
        self.head = nn.Linear(sizes[-1], outputs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits [B, outputs] of images [B, C, H, W]."""
        logits: Tensor = self.head(self.blocks(x_BCHW).mean((2, 3)))
        return logits


def _pool(name: str) -> nn.Module | None:
    if name == "stride":
        return None
    pools: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}
    if name not in pools:
        raise unknown("pool", name, [*pools, "stride"])
    return pools[name](2)
