"""Augmentations: parts that change training images, each sample by its own draw, labels untouched.

`build_augmentation` turns a sequence of them into one function on whole batches. This module does not import torch;
the arithmetic is in `luthier.data.image_ops` and `luthier.data.rand_augment`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from luthier.errors import DataError, LuthierError
from luthier.parts import Function, Part, resolve

if TYPE_CHECKING:
    from torch import Tensor

Frac = Annotated[float, Field(ge=0, le=1)]
Pair = tuple[float, float]


class Augmentation(Part):
    """A random change of images.

    Attributes:
        of_colours: whether it needs grey or RGB images with values in [0, 1] (others take any channels).
    """

    of_colours: ClassVar[bool] = False

    @abstractmethod
    def apply(self, x_BCHW: Tensor) -> Tensor:
        """The images, each changed by its own draw from torch's global generator.

        Args:
            x_BCHW: float32 or float64 images.
        """


class Flip(Augmentation):
    """Mirror images left to right, or top to bottom."""

    name: Literal["flip"] = "flip"
    p: Frac = Field(0.5, description="Chance for each image.")
    vertical: bool = Field(False, description="Top to bottom instead of left to right.")

    def apply(self, x_BCHW: Tensor) -> Tensor:
        """See `Augmentation.apply`."""
        from luthier.data import image_ops

        return image_ops.flip(x_BCHW, self.p, 2 if self.vertical else 3)


class Crop(Augmentation):
    """Pad, then cut a window of the old size at a random place: shifts by whole pixels.

    Source: He et al. 2016, Deep residual learning, section 4.2 (padding 4 for 32x32 images).
    """

    name: Literal["crop"] = "crop"
    padding: int = Field(4, ge=1, description="Pixels on each side; the largest shift.")
    mode: Literal["zero", "reflect"] = Field("zero", description="What the padding holds.")

    def apply(self, x_BCHW: Tensor) -> Tensor:
        """See `Augmentation.apply`."""
        from luthier.data import image_ops

        return image_ops.random_window(x_BCHW, self.padding, self.padding, self.mode)


class Translate(Augmentation):
    """Shift by whole pixels, uniformly within a fraction of height and width; zero comes in."""

    name: Literal["translate"] = "translate"
    fraction: Frac = Field(0.1, description="Largest shift, of height and of width.")

    def apply(self, x_BCHW: Tensor) -> Tensor:
        """See `Augmentation.apply`."""
        from luthier.data import image_ops

        rows, columns = (round(self.fraction * size) for size in x_BCHW.shape[2:])
        return image_ops.random_window(x_BCHW, rows, columns, "zero")


class Rotate(Augmentation):
    """Turn about the centre, uniformly within +- degrees; bilinear, zero outside."""

    name: Literal["rotate"] = "rotate"
    degrees: float = Field(15.0, ge=0, le=180, description="Largest angle.")

    def apply(self, x_BCHW: Tensor) -> Tensor:
        """See `Augmentation.apply`."""
        from luthier.data import image_ops

        return image_ops.random_affine(x_BCHW, self.degrees, 0.0, 0.0, 0.0)


class Affine(Augmentation):
    """Rotate, shift, scale and shear in one interpolation, all uniformly; bilinear, zero outside."""

    name: Literal["affine"] = "affine"
    degrees: float = Field(10.0, ge=0, le=180, description="Largest angle.")
    translate: Frac = Field(0.1, description="Largest shift, of height and of width.")
    scale: float = Field(0.1, ge=0, lt=1, description="Factors lie in 1 - scale to 1 + scale.")
    shear: float = Field(0.0, ge=0, lt=90, description="Largest slant of columns, in degrees.")

    def apply(self, x_BCHW: Tensor) -> Tensor:
        """See `Augmentation.apply`."""
        from luthier.data import image_ops

        return image_ops.random_affine(x_BCHW, self.degrees, self.translate, self.scale, self.shear)


class Erase(Augmentation):
    """Zero a random box: area uniform in `scale` of the image, height / width log-uniform in `ratio`.

    A side that would be longer than the image is cut to it.

    Source: Zhong et al. 2020, Random erasing (with zeros, and the ratio log-uniform so that upright and lying boxes
    are equally likely).
    """

    name: Literal["erase"] = "erase"
    p: Frac = Field(0.5, description="Chance for each image.")
    scale: Pair = Field((0.02, 0.33), description="Smallest and largest erased fraction of the area.")
    ratio: Pair = Field((0.3, 3.3), description="Smallest and largest height / width of the box.")

    @model_validator(mode="after")
    def _ordered(self) -> Erase:
        if not 0 <= self.scale[0] <= self.scale[1] <= 1:
            raise LuthierError(f"scale must be a range within 0 and 1, got {self.scale}: give (smallest, largest)")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise LuthierError(f"ratio must be a range above 0, got {self.ratio}: give (smallest, largest)")
        return self

    def apply(self, x_BCHW: Tensor) -> Tensor:
        """See `Augmentation.apply`."""
        from luthier.data import image_ops

        return image_ops.random_erase(x_BCHW, self.p, self.scale, self.ratio)


class Cutout(Augmentation):
    """Zero a square in every image, its centre uniform over all pixels, so that a part of it may lie outside.

    Source: DeVries & Taylor 2017, Improved regularization of convolutional neural networks with cutout.
    """

    name: Literal["cutout"] = "cutout"
    size: int | float = Field(0.5, gt=0, description="Side: pixels (an integer), or fraction of height and of width.")

    @field_validator("size")
    @classmethod
    def _fraction(cls, size: int | float) -> int | float:
        if isinstance(size, float) and size > 1:
            raise LuthierError(
                f"size must be whole pixels or a fraction of at most 1.0, got {size}: "
                f"write {round(size)} for pixels or a number below 1 for a fraction"
            )
        return size

    def apply(self, x_BCHW: Tensor) -> Tensor:
        """See `Augmentation.apply`."""
        from luthier.data import image_ops

        height, width = (
            self.size if isinstance(self.size, int) else max(1, round(self.size * side)) for side in x_BCHW.shape[2:]
        )
        return image_ops.cutout(x_BCHW, height, width)


class ColorJitter(Augmentation):
    """Change brightness, contrast, saturation (factors within 1 +- these) and hue (turns within +- this).

    On grey images only brightness and contrast act. The four are applied in this order, and values clamped once.
    """

    of_colours = True
    name: Literal["color-jitter"] = "color-jitter"
    brightness: float = Field(0.2, ge=0, description="Factor within 1 +- this, not below 0.")
    contrast: float = Field(0.2, ge=0, description="Factor within 1 +- this, not below 0.")
    saturation: float = Field(0.2, ge=0, description="Factor within 1 +- this, not below 0.")
    hue: float = Field(0.0, ge=0, le=0.5, description="Turns of the colour circle; 0.5 reaches the opposite colour.")

    def apply(self, x_BCHW: Tensor) -> Tensor:
        """See `Augmentation.apply`."""
        from luthier.data import image_ops

        return image_ops.random_colour(x_BCHW, self.brightness, self.contrast, self.saturation, self.hue)


class RandAugment(Augmentation):
    """For each image n operations, drawn from fourteen, all of one magnitude.

    Source: Cubuk et al. 2020, RandAugment: practical automated data augmentation with a reduced search space.
    """

    of_colours = True
    name: Literal["rand-augment"] = "rand-augment"
    n: int = Field(2, ge=1, description="Operations for each image.")
    magnitude: float = Field(9.0, ge=0, le=30, description="Strength of the operations.")

    def apply(self, x_BCHW: Tensor) -> Tensor:
        """See `Augmentation.apply`."""
        from luthier.data.rand_augment import rand_augment

        return rand_augment(x_BCHW, self.n, self.magnitude)


class CustomAugmentation(Augmentation):
    """A user's function from images to images of the same shape, random draws from torch's global generator."""

    name: Literal["custom"] = "custom"
    call: Function

    def apply(self, x_BCHW: Tensor) -> Tensor:
        """See `Augmentation.apply`."""
        from torch import Tensor

        changed = self.call(x_BCHW)
        if not isinstance(changed, Tensor) or changed.shape != x_BCHW.shape:
            came = list(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise DataError(
                f"the augmentation {self.call.function!r} must return images of the shape that it got, "
                f"{list(x_BCHW.shape)}, got {came}: return the changed batch"
            )
        return changed


AUGMENTATIONS: dict[str, type[Augmentation]] = {
    "flip": Flip,
    "crop": Crop,
    "translate": Translate,
    "rotate": Rotate,
    "affine": Affine,
    "erase": Erase,
    "cutout": Cutout,
    "color-jitter": ColorJitter,
    "rand-augment": RandAugment,
}

AugmentationChoice = Annotated[SerializeAsAny[Augmentation], resolve(AUGMENTATIONS, "augmentation", CustomAugmentation)]


def build_augmentation(parts: Sequence[Augmentation]) -> Callable[[Tensor], Tensor]:
    """One function that applies the parts in their order to a batch of training images.

    It keeps type, device and memory format, tracks no gradients, and changes nothing in place. Images of half
    precision are computed with in float32.

    Args:
        parts: augmentations; with none the function returns its input.

    Returns:
        A function of float images [B, C, H, W].

    The function raises DataError for anything but float images, for channels or values (looked at in the first
    batch) that a colour part cannot take, and for padding too large to reflect.

    >>> import torch
    >>> augment = build_augmentation([Flip(p=1.0)])
    >>> augment(torch.tensor([[[[0.0, 1.0]]]]))
    tensor([[[[1., 0.]]]])
    """
    colour_parts = [part.name for part in parts if part.of_colours]
    seen = False

    def augment(x_BCHW: Tensor) -> Tensor:
        nonlocal seen
        import torch

        _check_images(x_BCHW)
        if colour_parts and not seen:
            _check_colours(x_BCHW, colour_parts[0])
            seen = True
        with torch.no_grad():
            x = x_BCHW.float() if x_BCHW.element_size() < 4 else x_BCHW.detach()
            for part in parts:
                x = part.apply(x)
            channels_last = x_BCHW.is_contiguous(memory_format=torch.channels_last) and not x_BCHW.is_contiguous()
            layout = torch.channels_last if channels_last else torch.contiguous_format
            return x.to(x_BCHW.dtype).contiguous(memory_format=layout)

    return augment if parts else lambda x_BCHW: x_BCHW


def _check_images(x: Tensor) -> None:
    from torch import Tensor

    if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
        came = f"{x.dtype} of shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise DataError(
            f"augmentation expects float images [B, C, H, W] with values in [0, 1], got {came}: "
            "convert the images (uint8: x.float() / 255; without channels: x[:, None]), or take the augmentation away"
        )
    if 0 in x.shape[1:]:
        raise DataError(f"augmentation expects images with pixels, got shape {list(x.shape)}: look at the data")


def _check_colours(x_BCHW: Tensor, part: str) -> None:
    if x_BCHW.shape[1] not in (1, 3):
        raise DataError(
            f"{part!r} expects grey (C = 1) or RGB (C = 3) images, got C = {x_BCHW.shape[1]}: "
            "take it away, or give a function of your own for these channels"
        )
    if len(x_BCHW) == 0:
        return
    low, high = (float(value) for value in x_BCHW.detach().aminmax())
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"{part!r} expects values in [0, 1], got {low:.4g} to {high:.4g}: "
            "scale the images to [0, 1] and normalise inside the model, or take it away"
        )
