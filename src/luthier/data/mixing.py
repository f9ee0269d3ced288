"""Mixup and cutmix: training on blends of pairs of samples, with targets blended alike.

Shapes: B samples, K classes, C channels, H rows, W columns. All draws come from torch's global generators.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.data.image_ops import box
from luthier.errors import DataError


def mix(
    x: Tensor, targets: Tensor, *, mixup_alpha: float, cutmix_alpha: float, n_classes: int | None
) -> tuple[Tensor, Tensor]:
    """Mixup, cutmix, or (when both are on) one of the two for the batch, with equal chance.

    Args:
        x: float samples [B, ...]; cutmix needs images [B, C, H, W].
        targets: see `mixup`.
        mixup_alpha: alpha of mixup; 0 turns it off.
        cutmix_alpha: alpha of cutmix; 0 turns it off.
        n_classes: see `mixup`.

    Returns:
        Mixed samples and targets. With both off, the samples unchanged and the targets as `soft_targets` has them.
    """
    if mixup_alpha == 0 and cutmix_alpha == 0:
        return x, soft_targets(targets, n_classes)
    both = mixup_alpha > 0 and cutmix_alpha > 0
    if cutmix_alpha > 0 and (not both or float(torch.rand(())) < 0.5):
        return cutmix(x, targets, cutmix_alpha, n_classes)
    return mixup(x, targets, mixup_alpha, n_classes)


def mixup(x: Tensor, targets: Tensor, alpha: float, n_classes: int | None) -> tuple[Tensor, Tensor]:
    """Blend each sample with another of the batch: lambda x_i + (1 - lambda) x_j, and their targets alike.

    lambda ~ Beta(alpha, alpha), drawn for each sample; j is a random permutation of the batch.

    Args:
        x: float samples [B, ...].
        targets: integer classes [B] (with n_classes) or [B, ...] floats: regression, many labels, soft classes.
        alpha: above 0; 0.1 to 0.4 blends little, 1 uniformly.
        n_classes: K, for integer targets; None otherwise.

    Returns:
        Mixed samples like x, and float targets: [B, K] rows that sum to one, or the shape of the float targets.

    Raises:
        DataError: samples are not float, or samples and targets do not fit.

    Source: Zhang et al. 2018, mixup: beyond empirical risk minimization, equation 1 (with a lambda for each sample).

    >>> x, y = mixup(torch.zeros(4, 2), torch.tensor([0, 1, 2, 1]), 0.2, 3)
    >>> x.shape, y.shape
    (torch.Size([4, 2]), torch.Size([4, 3]))
    """
    soft = _checked(x, targets, alpha, n_classes)
    share_B, partner_B = beta(x, alpha), torch.randperm(len(x), device=x.device)
    return _blend(x, partner_B, share_B), _blend(soft, partner_B, share_B)


def cutmix(x_BCHW: Tensor, targets: Tensor, alpha: float, n_classes: int | None) -> tuple[Tensor, Tensor]:
    """Paste into each image a box from another of the batch; targets are mixed by the pasted area.

    lambda ~ Beta(alpha, alpha) for each sample; the box has sides H sqrt(1 - lambda) and W sqrt(1 - lambda), rounded
    down, its centre is uniform over the pixels, and what lies outside is cut off; targets take the area that is left.

    Args:
        x_BCHW: float images.
        targets: see `mixup`.
        alpha: above 0; 1 in the paper.
        n_classes: see `mixup`.

    Returns:
        Mixed images, and float targets as in `mixup`.

    Raises:
        DataError: x is no batch of images, or images and targets do not fit.

    Source: Yun et al. 2019, CutMix, equations 1 and 2 (with a box for each sample).
    """
    if x_BCHW.ndim != 4:
        raise DataError(
            f"cutmix pastes boxes of images [B, C, H, W], got samples of shape {list(x_BCHW.shape)}: "
            "take mixup, which mixes any float samples"
        )
    soft = _checked(x_BCHW, targets, alpha, n_classes)
    partner_B = torch.randperm(len(x_BCHW), device=x_BCHW.device)
    inside_BHW = random_boxes(x_BCHW, beta(x_BCHW, alpha))
    mixed = torch.where(inside_BHW[:, None], x_BCHW[partner_B], x_BCHW)
    share_B = 1 - inside_BHW.flatten(1).sum(1) / (x_BCHW.shape[2] * x_BCHW.shape[3])
    return mixed, _blend(soft, partner_B, share_B)


def random_boxes(x_BCHW: Tensor, share_B: Tensor) -> Tensor:
    """For each image which pixels lie in a box of about 1 - share of its area, placed at random [B, H, W]."""
    n, _, height, width = x_BCHW.shape
    side_B = (1 - share_B).sqrt()
    rows, columns = (side_B * height).long(), (side_B * width).long()
    top = torch.randint(height, (n,), device=x_BCHW.device) - rows // 2
    left = torch.randint(width, (n,), device=x_BCHW.device) - columns // 2
    return box(top, rows, height)[:, :, None] & box(left, columns, width)[:, None, :]


def beta(x: Tensor, alpha: float) -> Tensor:
    """One draw from Beta(alpha, alpha) for each sample, float32, on the samples' device.

    Drawn on the CPU: not every device can, and so the draws of a seed are the same on all.
    """
    concentration = torch.full((len(x), 2), alpha)
    return torch.distributions.Dirichlet(concentration, validate_args=False).sample()[:, 0].to(x.device)


def soft_targets(targets: Tensor, n_classes: int | None) -> Tensor:
    """Integer classes [B] as one-hot float rows [B, K]; float targets as they are.

    Raises:
        DataError: integer targets without n_classes, of another shape than [B], or out of range.
    """
    if targets.is_floating_point():
        return targets
    if n_classes is None or targets.ndim != 1:
        raise DataError(
            f"mixing needs classes [B] with n_classes, or float targets, got {targets.dtype} of shape "
            f"{list(targets.shape)} and {n_classes=}: give n_classes, or targets as floats"
        )
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < n_classes:
        raise DataError(
            f"classes must lie in 0 to {n_classes - 1}, got {int(targets.min())} to {int(targets.max())}: "
            "check the labels, or n_classes"
        )
    return F.one_hot(targets.long(), n_classes).float()


def _checked(x: Tensor, targets: Tensor, alpha: float, n_classes: int | None) -> Tensor:
    """The targets as floats, once everything fits."""
    if not (alpha > 0 and math.isfinite(alpha)):
        raise DataError(f"the alpha of mixup and cutmix must be a number above 0, got {alpha}: turn mixing off instead")
    if not x.is_floating_point():
        raise DataError(f"mixing needs float samples, got {x.dtype}: mix embeddings or images, not token ids or bytes")
    if targets.ndim == 0 or len(targets) != len(x):
        raise DataError(
            f"mixing needs one target for each sample, got samples {list(x.shape)} and targets {list(targets.shape)}: "
            "look at the data"
        )
    return soft_targets(targets, n_classes)


def _blend(values: Tensor, partner_B: Tensor, share_B: Tensor) -> Tensor:
    """share * values + (1 - share) * those of the partners, for each sample."""
    share = share_B.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
    return torch.lerp(values[partner_B], values, share)
