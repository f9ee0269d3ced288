"""Residual network for small images (He et al. 2016, section 4.2)."""

from __future__ import annotations

from torch import Tensor, nn

from luthier.errors import LuthierError
from luthier.nets.parts import at_least, image_shape, norm_or_none, rate, stack
from luthier.training.surgery.activations import activation as make_activation


class Block(nn.Module):
    """Two convolutions around a shortcut: activation(shortcut(x) + conv(dropout(activation(conv(x))))).

    Args:
        before: channels that come in.
        after: channels that go out.
        stride: step of the first convolution; unless it is 1 and channels stay, the shortcut is a 1 x 1 convolution.
        kernel_size: odd side of the kernels.
        activation: name of the nonlinearity.
        norm: name of the normalisation after each convolution.
        dropout: rate between the two convolutions (Zagoruyko and Komodakis 2016).
    """

    def __init__(
        self, before: int, after: int, stride: int, kernel_size: int, activation: str, norm: str, dropout: float
    ) -> None:
        super().__init__()
        self.body = stack(
            _conv(before, after, kernel_size, stride, norm),
            norm_or_none(norm, after, dims=2),
            make_activation(activation),
            nn.Dropout(rate(dropout)),
            _conv(after, after, kernel_size, 1, norm),
            norm_or_none(norm, after, dims=2),
        )
        same = before == after and stride == 1
        self.shortcut = (
            nn.Identity() if same else stack(_conv(before, after, 1, stride, norm), norm_or_none(norm, after, dims=2))
        )
        self.activation = make_activation(activation)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Images [B, before, H, W] to [B, after, H / stride, W / stride]."""
        out: Tensor = self.activation(self.shortcut(x_BCHW) + self.body(x_BCHW))
        return out


class ResNet(nn.Module):
    """Residual network: a stem, `stages` of `depth` blocks that double channels and halve the image, mean, Linear.

    The defaults are for CIFAR-10 on a CPU: the stem steps by 2, so most work is done on 16 x 16 pixels.
    He et al.'s ResNet-20 is width=16, depth=3, stages=3, stem_stride=1.

    Args:
        inputs: (channels, height, width).
        outputs: logits per example.
        width: channels of stem and first stage.
        depth: blocks per stage.
        stages: stages; each but the first starts with a step of 2.
        kernel_size: odd side of the blocks' kernels.
        norm: name, see `luthier.training.choices.NormName`; convolutions have a bias only with "none".
        activation: name, see `luthier.training.choices.ActivationName`.
        dropout: rate in [0, 1) inside the blocks.
        stem_kernel: odd side of the stem's kernel.
        stem_stride: step of the stem, 1 or more.

    Raises:
        LuthierError: an unknown name or a value out of range.

    >>> import torch
    >>> ResNet((3, 32, 32), 10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        inputs: tuple[int, int, int],
        outputs: int,
        width: int = 32,
        depth: int = 2,
        stages: int = 3,
        kernel_size: int = 3,
        norm: str = "batch",
        activation: str = "relu",
        dropout: float = 0.0,
        stem_kernel: int = 3,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        at_least(1, outputs=outputs, width=width, depth=depth, stages=stages, stem_stride=stem_stride)
        channels, _, _ = image_shape(inputs)
        for name, side in (("kernel_size", kernel_size), ("stem_kernel", stem_kernel)):
            if side < 1 or side % 2 == 0:
                raise LuthierError(f"{name} must be odd and at least 1, got {side}")
        self.stem = stack(
            _conv(channels, width, stem_kernel, stem_stride, norm),
            norm_or_none(norm, width, dims=2),
            make_activation(activation),
        )
        sizes = [width] + [width * 2**stage for stage in range(stages) for _ in range(depth)]
        strides = [2 if stage > 0 and block == 0 else 1 for stage in range(stages) for block in range(depth)]
        self.blocks = nn.Sequential(
            *(
                Block(before, after, stride, kernel_size, activation, norm, dropout)
                for before, after, stride in zip(sizes, sizes[1:], strides, strict=False)
            )
        )
        self.head = nn.Linear(sizes[-1], outputs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits [B, outputs] of images [B, C, H, W]."""
        logits: Tensor = self.head(self.blocks(self.stem(x_BCHW)).mean((2, 3)))
        return logits


def _conv(before: int, after: int, kernel_size: int, stride: int, norm: str) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel_size, stride, kernel_size // 2, bias=norm == "none")
