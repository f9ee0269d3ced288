"""RandAugment on whole batches: each image draws its own operations.

General pipelines draw the operations once for a batch; the paper draws them for each image, and so does this.
Images that drew the same kind of operation are changed together. Shapes: B samples, C channels, H rows, W columns.

Source: Cubuk et al. 2020, RandAugment; ranges of the operations as in torchvision's reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.data.image_ops import adjust_colour, per_sample, uniform, warp

MAX_MAGNITUDE = 30

Drawn = dict[str, Tensor]
"""For each operation of a family, which images drew it: 1.0, others 0.0."""


def rand_augment(x_BCHW: Tensor, n: int, magnitude: float) -> Tensor:
    """Change each image by n operations, each drawn uniformly from `OPERATIONS`.

    Args:
        x_BCHW: images in [0, 1], C = 1 or 3.
        n: operations for each image, at least 1.
        magnitude: their strength, in [0, 30].
    """
    for _ in range(n):
        drawn_B = torch.randint(len(OPERATIONS), (len(x_BCHW),), device=x_BCHW.device)
        strength_B = uniform(x_BCHW, -1, 1).sign() * (magnitude / MAX_MAGNITUDE)
        changed = x_BCHW.clone()
        for names, change in FAMILIES.items():
            numbers = [OPERATIONS.index(name) for name in names]
            rows = ((drawn_B >= numbers[0]) & (drawn_B <= numbers[-1])).nonzero().flatten()
            if len(rows):
                masks = [(drawn_B[rows] == number).to(x_BCHW.dtype) for number in numbers]
                changed[rows] = change(x_BCHW[rows], strength_B[rows], dict(zip(names, masks, strict=True)))
        x_BCHW = changed
    return x_BCHW


def _move(x_BCHW: Tensor, s: Tensor, drawn: Drawn) -> Tensor:
    return warp(
        x_BCHW,
        angle=math.radians(30) * s * drawn["rotate"],
        shear_x=0.3 * s * drawn["shear-x"],
        shear_y=0.3 * s * drawn["shear-y"],
        shift_x=0.45 * x_BCHW.shape[3] * s * drawn["translate-x"],
        shift_y=0.45 * x_BCHW.shape[2] * s * drawn["translate-y"],
    )


def _colour(x_BCHW: Tensor, s: Tensor, drawn: Drawn) -> Tensor:
    return adjust_colour(
        x_BCHW,
        brightness=1 + 0.9 * s * drawn["brightness"],
        contrast=1 + 0.9 * s * drawn["contrast"],
        saturation=1 + 0.9 * s * drawn["colour"],
    )


def _sharpness(x_BCHW: Tensor, s: Tensor, _drawn: Drawn) -> Tensor:
    return sharpen(x_BCHW, 1 + 0.9 * s) if min(x_BCHW.shape[2:]) >= 3 else x_BCHW


def _posterize(x_BCHW: Tensor, s: Tensor, _drawn: Drawn) -> Tensor:
    return posterize(x_BCHW, 8 - (4 * s.abs()).round())


def _solarize(x_BCHW: Tensor, s: Tensor, _drawn: Drawn) -> Tensor:
    return solarize(x_BCHW, 1 - s.abs())


def auto_contrast(x_BCHW: Tensor) -> Tensor:
    """Stretch each channel to [0, 1]; a channel of one value stays."""
    low, high = x_BCHW.amin((2, 3), keepdim=True), x_BCHW.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x_BCHW - low) / (high - low).clamp(min=1e-6), x_BCHW)


def equalize(x_BCHW: Tensor) -> Tensor:
    """Make each channel's histogram (256 levels) as even as it can be.

    A level v becomes floor((step / 2 + below(v)) / step), with below(v) the number of darker pixels and
    step = (pixels - pixels of the brightest level) / 255, rounded down; for a step of zero the channel stays.
    """
    pixels = x_BCHW.shape[2] * x_BCHW.shape[3]
    levels = (x_BCHW * 255).round().long().flatten(2).flatten(0, 1)
    ones = torch.ones_like(levels)
    upto = torch.zeros(len(levels), 256, dtype=torch.long, device=x_BCHW.device).scatter_add_(1, levels, ones).cumsum(1)
    below = torch.cat((torch.zeros_like(upto[:, :1]), upto[:, :-1]), dim=1)
    # The brightest level's pixels do not count, and its share is the first to reach all of them.
    step = torch.where(upto < pixels, upto, 0).amax(dim=1, keepdim=True) // 255
    equal = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    kept = torch.where(step > 0, equal, -1).gather(1, levels).view(x_BCHW.shape)
    return torch.where(kept >= 0, kept.to(x_BCHW.dtype) / 255, x_BCHW)


def posterize(x_BCHW: Tensor, bits_B: Tensor) -> Tensor:
    """Keep the highest bits of each image's 256 levels."""
    step = per_sample(2 ** (8 - bits_B))
    return ((x_BCHW * 255).round() / step).floor() * step / 255


def solarize(x_BCHW: Tensor, threshold_B: Tensor) -> Tensor:
    """Invert the values from each image's threshold on."""
    return torch.where(x_BCHW >= per_sample(threshold_B), 1 - x_BCHW, x_BCHW)


def sharpen(x_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Blend each image with its smoothed self: factor 0 is smooth, 1 the image, above 1 sharper; the rim stays."""
    channels = x_BCHW.shape[1]
    kernel = torch.tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=x_BCHW.dtype, device=x_BCHW.device) / 13
    smooth = F.conv2d(x_BCHW, kernel.expand(channels, 1, 3, 3), groups=channels)
    inner = x_BCHW[:, :, 1:-1, 1:-1]
    blended = (smooth + per_sample(factor_B) * (inner - smooth)).clamp_(0, 1)
    return F.pad(blended, (1, 1, 1, 1)) + _rim(x_BCHW)


def _rim(x_BCHW: Tensor) -> Tensor:
    """The outermost pixels, zero inside."""
    rim = x_BCHW.clone()
    rim[:, :, 1:-1, 1:-1] = 0
    return rim


FAMILIES: dict[tuple[str, ...], Callable[[Tensor, Tensor, Drawn], Tensor]] = {
    ("rotate", "shear-x", "shear-y", "translate-x", "translate-y"): _move,
    ("brightness", "contrast", "colour"): _colour,
    ("sharpness",): _sharpness,
    ("posterize",): _posterize,
    ("solarize",): _solarize,
    ("auto-contrast",): lambda x, _s, _drawn: auto_contrast(x),
    ("equalize",): lambda x, _s, _drawn: equalize(x),
}
"""Operations done together, by (images, signed strength in [-1, 1], who drew what) -> images."""

OPERATIONS = ("identity", *(name for names in FAMILIES for name in names))
