"""Random changes of whole image batches, each sample with its own draw.

Shapes: B samples, C channels, H rows, W columns. All draws come from torch's global generator of the images' device.
Plain torch, for it is several times faster on the CPU than general pipelines: flips and crops are one gather,
affine maps one sampling, all colour changes one matrix product per sample.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.errors import DataError

GREY = (0.299, 0.587, 0.114)  # luma of red, green and blue: ITU-R BT.601


def uniform(x_BCHW: Tensor, low: float, high: float) -> Tensor:
    """One uniform number in [low, high) for each sample, of the images' type and device."""
    return torch.empty(len(x_BCHW), device=x_BCHW.device, dtype=x_BCHW.dtype).uniform_(low, high)


def chance(x_BCHW: Tensor, p: float) -> Tensor:
    """For each sample True with probability p."""
    return torch.rand(len(x_BCHW), device=x_BCHW.device) < p


def per_sample(values_B: Tensor) -> Tensor:
    """Numbers for samples, shaped to meet images."""
    return values_B.view(-1, 1, 1, 1)


def flip(x_BCHW: Tensor, p: float, dim: int) -> Tensor:
    """Mirror each image with probability p, along columns (dim 3) or rows (dim 2)."""
    size = x_BCHW.shape[dim]
    forward = torch.arange(size, device=x_BCHW.device)
    index = torch.where(chance(x_BCHW, p)[:, None], size - 1 - forward, forward)
    index_BCHW = index.view(-1, 1, 1, size) if dim == 3 else index.view(-1, 1, size, 1)
    return x_BCHW.gather(dim, index_BCHW.expand_as(x_BCHW))


def random_window(x_BCHW: Tensor, rows: int, columns: int, mode: str) -> Tensor:
    """Pad by rows and columns on each side, then cut each image's window of the old size at a random place.

    Args:
        x_BCHW: images.
        rows: padding above and below, and so the largest vertical shift, in pixels.
        columns: the same, left and right.
        mode: "zero" or "reflect".

    Raises:
        DataError: reflection needs a padding smaller than the image.
    """
    n, channels, height, width = x_BCHW.shape
    if mode == "reflect" and (rows >= height or columns >= width):
        raise DataError(
            f"a reflecting crop needs padding smaller than the image, got padding {max(rows, columns)} for images of "
            f"{height}x{width}: lower the padding, or take mode='zero'"
        )
    padded = F.pad(x_BCHW, (columns, columns, rows, rows), mode="constant" if mode == "zero" else "reflect")
    device = x_BCHW.device
    row_BH = torch.randint(2 * rows + 1, (n, 1), device=device) + torch.arange(height, device=device)
    column_BW = torch.randint(2 * columns + 1, (n, 1), device=device) + torch.arange(width, device=device)
    index = row_BH[:, :, None] * (width + 2 * columns) + column_BW[:, None, :]
    index_BCP = index.view(n, 1, height * width).expand(n, channels, height * width)
    return padded.flatten(2).gather(2, index_BCP).view(n, channels, height, width)


def warp(
    x_BCHW: Tensor,
    *,
    angle: Tensor | float = 0.0,
    scale: Tensor | float = 1.0,
    shear_x: Tensor | float = 0.0,
    shear_y: Tensor | float = 0.0,
    shift_x: Tensor | float = 0.0,
    shift_y: Tensor | float = 0.0,
) -> Tensor:
    """Map each image by shift + scale * rotation * shear_x * shear_y about its centre; bilinear, zero outside.

    With the matrix A = scale R(angle) [[1, shear_x], [0, 1]] [[1, 0], [shear_y, 1]] the pixel at q takes the value
    from p = A^-1 (q - shift), both measured in pixels from the centre (x to the right, y downwards).

    Args:
        x_BCHW: images.
        angle: radians, clockwise on the screen; numbers, or one for each sample (as all below).
        scale: factor above 0.
        shear_x: pixels to the right for each pixel downwards.
        shear_y: pixels downwards for each pixel to the right.
        shift_x: pixels to the right.
        shift_y: pixels downwards.
    """
    n, _, height, width = x_BCHW.shape
    given = (angle, scale, shear_x, shear_y, shift_x, shift_y)
    angle, scale, shear_x, shear_y, shift_x, shift_y = (
        torch.as_tensor(value, dtype=x_BCHW.dtype, device=x_BCHW.device).expand(n).view(n, 1, 1) for value in given
    )
    cos, sin = angle.cos() / scale, angle.sin() / scale
    xx, xy = cos + shear_x * sin, sin - shear_x * cos  # the rows of A^-1
    yx, yy = -sin - shear_y * xx, cos - shear_y * xy
    x_B1W = _centred(width, x_BCHW).view(1, 1, -1) - shift_x
    y_BH1 = _centred(height, x_BCHW).view(1, -1, 1) - shift_y
    grid_x = (xx * x_B1W + xy * y_BH1) * (2 / width)
    grid_y = (yx * x_B1W + yy * y_BH1) * (2 / height)
    grid_BHW2 = torch.stack((grid_x, grid_y), dim=-1)
    # grid_sample is three times faster on contiguous images than on channels_last ones.
    return F.grid_sample(x_BCHW.contiguous(), grid_BHW2, mode="bilinear", padding_mode="zeros", align_corners=False)


def _centred(size: int, like: Tensor) -> Tensor:
    """Positions of pixels, measured from the centre of the image."""
    return torch.arange(size, device=like.device, dtype=like.dtype) - (size - 1) / 2


def random_affine(x_BCHW: Tensor, degrees: float, translate: float, scale: float, shear: float) -> Tensor:
    """Rotate, shift, scale and shear each image by its own uniform draws within these bounds (see `warp`)."""
    height, width = x_BCHW.shape[2:]
    angle, slope = math.radians(degrees), math.radians(shear)
    return warp(
        x_BCHW,
        angle=uniform(x_BCHW, -angle, angle),
        scale=uniform(x_BCHW, 1 - scale, 1 + scale),
        shear_x=uniform(x_BCHW, -slope, slope).tan(),
        shift_x=uniform(x_BCHW, -translate * width, translate * width),
        shift_y=uniform(x_BCHW, -translate * height, translate * height),
    )


def erase_box(x_BCHW: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Zero in each image the box of whole pixels that starts at (top, left); what lies outside is ignored."""
    inside_BHW = box(top, height, x_BCHW.shape[2])[:, :, None] & box(left, width, x_BCHW.shape[3])[:, None, :]
    return x_BCHW.masked_fill(inside_BHW[:, None], 0.0)


def box(start: Tensor, length: Tensor, size: int) -> Tensor:
    """For each sample, which of `size` positions lie in [start, start + length)."""
    position = torch.arange(size, device=start.device)
    return (position >= start[:, None]) & (position < (start + length)[:, None])


def random_erase(x_BCHW: Tensor, p: float, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Erase a random box in each image with probability p (see `luthier.data.augmentation.Erase`)."""
    rows, columns = x_BCHW.shape[2:]
    area = uniform(x_BCHW, *scale) * (rows * columns)
    aspect = uniform(x_BCHW, math.log(ratio[0]), math.log(ratio[1])).exp()
    height = (area * aspect).sqrt().round().clamp(1, rows)
    width = (area / aspect).sqrt().round().clamp(1, columns)
    top = (uniform(x_BCHW, 0, 1) * (rows - height + 1)).floor()
    left = (uniform(x_BCHW, 0, 1) * (columns - width + 1)).floor()
    return erase_box(x_BCHW, top, left, torch.where(chance(x_BCHW, p), height, 0), width)


def cutout(x_BCHW: Tensor, height: int, width: int) -> Tensor:
    """Zero one box in each image, its centre uniform over all pixels, so that a part of it may lie outside."""
    n, _, rows, columns = x_BCHW.shape
    top = torch.randint(rows, (n,), device=x_BCHW.device) - height // 2
    left = torch.randint(columns, (n,), device=x_BCHW.device) - width // 2
    return erase_box(x_BCHW, top, left, torch.full_like(top, height), torch.full_like(left, width))


def adjust_colour(
    x_BCHW: Tensor,
    *,
    brightness: Tensor | float = 1.0,
    contrast: Tensor | float = 1.0,
    saturation: Tensor | float = 1.0,
    hue: Tensor | float = 0.0,
) -> Tensor:
    """Change brightness, then contrast, saturation and hue, by factors for each image.

    All four are linear in the colours, so they are one 3x3 matrix and one offset for each image; values are
    clamped to [0, 1] once, at the end. Brightness multiplies; contrast stretches about the image's mean grey;
    saturation stretches each pixel about its grey; hue turns the chrominance plane of YIQ, keeping the grey.

    Args:
        x_BCHW: images in [0, 1] with one channel (where saturation and hue mean nothing) or three (RGB).
        brightness: factor, at least 0; numbers, or one for each sample (as all below).
        contrast: factor, at least 0.
        saturation: factor, at least 0.
        hue: turns, 0.5 is the opposite colour.
    """
    n, channels, height, width = x_BCHW.shape
    given = (brightness, contrast, saturation, hue)
    brightness, contrast, saturation, hue = (
        torch.as_tensor(value, dtype=x_BCHW.dtype, device=x_BCHW.device).expand(n).view(n, 1, 1) for value in given
    )
    x_BCP = x_BCHW.reshape(n, channels, height * width)
    grey_1C = torch.tensor([GREY if channels == 3 else (1.0,)], dtype=x_BCHW.dtype, device=x_BCHW.device)
    mean_B11 = brightness * (grey_1C @ x_BCP.mean(dim=2, keepdim=True))
    # Contrast's offset is grey, and neither saturation nor hue changes a grey.
    offset_BC1 = ((1 - contrast) * mean_B11).expand(n, channels, 1)
    scale_B11 = brightness * contrast
    if channels == 1:
        return (x_BCP * scale_B11 + offset_BC1).clamp_(0, 1).view_as(x_BCHW)
    colour_B33 = _turn(hue) @ _saturate(saturation, grey_1C)
    return torch.baddbmm(offset_BC1, scale_B11 * colour_B33, x_BCP).clamp_(0, 1).view(n, channels, height, width)


def _saturate(factor_B11: Tensor, grey_1C: Tensor) -> Tensor:
    """Colour matrices s I + (1 - s) 1 grey^T."""
    identity = torch.eye(3, dtype=factor_B11.dtype, device=factor_B11.device)
    return factor_B11 * identity + (1 - factor_B11) * grey_1C.expand(3, 3)


def _turn(turns_B11: Tensor) -> Tensor:
    """Colour matrices that turn the (I, Q) plane of YIQ (the American television standard NTSC, 1953)."""
    yiq = torch.tensor([GREY, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)]).to(turns_B11)
    cos, sin = (turns_B11 * math.tau).cos().flatten(), (turns_B11 * math.tau).sin().flatten()
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    turn_B33 = torch.stack((one, zero, zero, zero, cos, -sin, zero, sin, cos), dim=-1).view(-1, 3, 3)
    back: Tensor = torch.linalg.inv(yiq)
    return back @ turn_B33 @ yiq


def random_colour(x_BCHW: Tensor, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
    """Change each image's colours by its own uniform draws: factors within 1 +- these, hue within +- `hue` turns."""
    return adjust_colour(
        x_BCHW,
        brightness=uniform(x_BCHW, max(0.0, 1 - brightness), 1 + brightness),
        contrast=uniform(x_BCHW, max(0.0, 1 - contrast), 1 + contrast),
        saturation=uniform(x_BCHW, max(0.0, 1 - saturation), 1 + saturation),
        hue=uniform(x_BCHW, -hue, hue),
    )
