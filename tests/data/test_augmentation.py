import math
import random
import subprocess
import sys
from typing import Any

import kornia.enhance
import kornia.geometry
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from luthier.data import image_ops, rand_augment
from luthier.data.augmentation import (
    AUGMENTATIONS,
    AugmentationChoice,
    ColorJitter,
    Crop,
    CustomAugmentation,
    Cutout,
    Erase,
    Flip,
    RandAugment,
    Rotate,
    Translate,
    build_augmentation,
)
from luthier.errors import DataError
from luthier.parts import Function


class Holder(BaseModel):
    model_config = ConfigDict(frozen=True)
    augment: AugmentationChoice


def images(n: int = 8, channels: int = 3, height: int = 12, width: int = 10) -> Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(1))


def augmented(part: Any, x: Tensor, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return build_augmentation([part])(x)


# ---------------------------------------------------------------- every augmentation


every = pytest.mark.parametrize("name", AUGMENTATIONS)


@every
def test_equal_seeds_give_equal_bits_and_others_do_not(name: str) -> None:
    part, x = AUGMENTATIONS[name](name=name), images(64)
    before = x.clone()
    first = augmented(part, x)
    random.seed(5)
    np.random.seed(5)
    assert first.equal(augmented(part, x))
    assert not first.equal(augmented(part, x, seed=1))
    assert not first.equal(x)
    assert x.equal(before), "the input is not changed in place"


@every
def test_the_global_generator_is_the_only_source(name: str) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    build_augmentation([AUGMENTATIONS[name](name=name)])(images())
    assert not torch.get_rng_state().equal(state)


@every
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shape_type_layout_and_range_are_kept(name: str, channels: int, dtype: Any, layout: Any) -> None:
    x = images(6, channels).to(dtype).contiguous(memory_format=layout).requires_grad_()
    y = augmented(AUGMENTATIONS[name](name=name), x)
    assert (y.shape, y.dtype, y.requires_grad) == (x.shape, dtype, False)
    assert y.is_contiguous(memory_format=layout)
    assert 0 <= float(y.min()) <= float(y.max()) <= 1
    plain = augmented(AUGMENTATIONS[name](name=name), x.detach().contiguous())
    torch.testing.assert_close(y, plain, msg="the layout changes no value")


@every
def test_samples_are_changed_each_in_its_own_way(name: str) -> None:
    x = images(1).expand(32, -1, -1, -1)
    y = augmented(AUGMENTATIONS[name](name=name), x)
    assert len({sample.numpy().tobytes() for sample in y}) > 1


@every
def test_one_sample_and_none(name: str) -> None:
    part = AUGMENTATIONS[name](name=name)
    assert augmented(part, images(1)).shape == (1, 3, 12, 10)
    assert augmented(part, images(0)).shape == (0, 3, 12, 10)


@every
def test_parts_survive_json(name: str) -> None:
    held = Holder(augment=name)
    assert held == Holder.model_validate_json(held.model_dump_json())
    assert type(held.augment) is AUGMENTATIONS[name]


@pytest.mark.parametrize("name", sorted(set(AUGMENTATIONS) - {"color-jitter", "rand-augment"}))
def test_any_number_of_channels(name: str) -> None:
    assert augmented(AUGMENTATIONS[name](name=name), images(4, 7)).shape == (4, 7, 12, 10)


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, luthier.data.augmentation; sys.exit('torch' in sys.modules or 'kornia' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# ---------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("x", "came"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), r"got torch.uint8 of shape \[2, 3, 4, 4\].*float\(\) / 255"),
        (torch.zeros(2, 4, 4), r"got torch.float32 of shape \[2, 4, 4\]"),
        (np.zeros((2, 3, 4, 4)), "got ndarray"),
        (torch.zeros(2, 3, 0, 4), r"images with pixels, got shape \[2, 3, 0, 4\]"),
    ],
)
def test_what_is_no_image_batch_is_refused(x: Any, came: str) -> None:
    with pytest.raises(DataError, match=came):
        build_augmentation([Flip()])(x)


@pytest.mark.parametrize("part", [ColorJitter(), RandAugment()])
def test_colour_parts_say_which_images_they_cannot_take(part: Any) -> None:
    with pytest.raises(DataError, match=f"'{part.name}' expects grey .* or RGB .* got C = 4"):
        build_augmentation([part])(images(2, 4))
    with pytest.raises(DataError, match=f"'{part.name}' expects values in \\[0, 1\\], got .* to 2"):
        build_augmentation([part])(torch.full((2, 3, 4, 4), 2.0))
    with pytest.raises(DataError, match="expects values"):
        build_augmentation([part])(torch.full((2, 3, 4, 4), math.nan))


def test_padding_that_cannot_be_reflected() -> None:
    with pytest.raises(DataError, match="smaller than the image, got padding 4 for images of 4x9"):
        build_augmentation([Crop(mode="reflect")])(images(2, 3, 4, 9))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Holder(augment="flop"), "unknown augmentation 'flop': did you mean 'flip'"),
        (lambda: Flip(p=1.5), "less than or equal to 1"),
        (lambda: Cutout(size=4.5), "write 4 for pixels"),
        (lambda: Erase(scale=(0.5, 0.1)), "scale must be a range within 0 and 1"),
        (lambda: Erase(ratio=(0.0, 1.0)), "ratio must be a range above 0"),
        (lambda: Rotate.model_validate({"angle": 3}), "angle"),
    ],
)
def test_wrong_settings(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


# ---------------------------------------------------------------- each by its definition


def test_no_parts_change_nothing() -> None:
    x = images()
    assert build_augmentation([])(x) is x


def test_parts_are_applied_in_their_order() -> None:
    double = CustomAugmentation(call=Function.of(lambda x: x * 2))
    add = CustomAugmentation(call=Function.of(lambda x: x + 1))
    x = torch.ones(1, 1, 2, 2)
    assert build_augmentation([double, add])(x).flatten().tolist() == [3.0] * 4
    assert build_augmentation([add, double])(x).flatten().tolist() == [4.0] * 4


def test_a_custom_function_must_return_images_of_the_same_shape() -> None:
    def half(x: Tensor) -> Tensor:
        return x[:, :, ::2]

    with pytest.raises(DataError, match=r"'half' must return images .* \[8, 3, 12, 10\], got \[8, 3, 6, 10\]"):
        build_augmentation([Holder(augment=half).augment])(images())
    with pytest.raises(DataError, match="got NoneType"):
        build_augmentation([Holder(augment=lambda x: None).augment])(images())


@pytest.mark.parametrize(("vertical", "dim"), [(False, 3), (True, 2)])
def test_flip_mirrors_with_its_chance(vertical: bool, dim: int) -> None:
    x = images(400)
    y = augmented(Flip(p=0.3, vertical=vertical), x)
    flipped = [bool(b.equal(a.flip(dim - 1))) for a, b in zip(x, y, strict=True)]
    assert all(f or b.equal(a) for f, a, b in zip(flipped, x, y, strict=True))
    assert abs(sum(flipped) / 400 - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 400)
    assert augmented(Flip(p=1.0, vertical=vertical), x).equal(x.flip(dim))
    assert augmented(Flip(p=0.0, vertical=vertical), x).equal(x)


@pytest.mark.parametrize(("mode", "torch_mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_crop_takes_every_window_of_the_padded_image(mode: Any, torch_mode: str) -> None:
    x = images(300, 2, 5, 6)
    y = augmented(Crop(padding=2, mode=mode), x)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode=torch_mode)
    windows = {(r, c): padded[:, :, r : r + 5, c : c + 6] for r in range(5) for c in range(5)}
    found = {place: (window == y).flatten(1).all(1) for place, window in windows.items()}
    assert torch.stack(list(found.values())).any(0).all(), "every result is a window of its own image"
    assert all(hits.any() for hits in found.values()), "every window occurs"


def test_translate_shifts_rows_and_columns_by_their_fractions() -> None:
    x = torch.zeros(500, 1, 20, 40)
    x[:, :, 10, 20] = 1
    y = augmented(Translate(fraction=0.1), x)
    _, _, rows, columns = y.nonzero(as_tuple=True)
    assert sorted(set((rows - 10).tolist())) == [-2, -1, 0, 1, 2]
    assert sorted(set((columns - 20).tolist())) == list(range(-4, 5))
    assert y.sum() == 500
    assert augmented(Translate(fraction=0.0), x).equal(x)


def test_erase_draws_area_and_ratio_within_their_ranges() -> None:
    y = augmented(Erase(p=1.0, scale=(0.1, 0.3), ratio=(0.5, 2.0)), torch.ones(300, 2, 40, 40))
    for image in y:
        assert image[0].equal(image[1])
        rows, columns = (image[0] == 0).nonzero(as_tuple=True)
        height, width = (int(i.max() - i.min()) + 1 for i in (rows, columns))
        assert len(rows) == height * width, "a whole box"
        assert 0.1 * 1600 - height - width < height * width < 0.3 * 1600 + height + width
        assert 0.5 - 0.1 < height / width < 2 + 0.2
    assert augmented(Erase(p=0.0), images()).equal(images())
    touched = (augmented(Erase(p=0.25), torch.ones(800, 1, 16, 16)) == 0).flatten(1).any(1).float().mean()
    assert abs(float(touched) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 800)


def test_erase_reaches_the_whole_image() -> None:
    y = augmented(Erase(p=1.0), torch.ones(2000, 1, 8, 8))
    assert ((y == 0).float().mean(0) > 0).all()
    assert augmented(Erase(p=1.0, scale=(1.0, 1.0), ratio=(1.0, 1.0)), torch.ones(3, 1, 8, 8)).sum() == 0


@pytest.mark.parametrize(("size", "height", "width"), [(4, 4, 4), (0.5, 4, 8), (3, 3, 3), (1.0, 8, 16)])
def test_cutout_centres_lie_on_every_pixel(size: Any, height: int, width: int) -> None:
    y = augmented(Cutout(size=size), torch.ones(4000, 1, 8, 16))
    seen = {tuple(map(tuple, (image[0] == 0).nonzero().tolist())) for image in y}
    wanted = set()
    for r in range(8):
        for c in range(16):
            top, left = r - height // 2, c - width // 2
            rows = range(max(0, top), min(8, top + height))
            wanted.add(tuple((i, j) for i in rows for j in range(max(0, left), min(16, left + width))))
    assert seen == wanted


# ---------------------------------------------------------------- geometry


def test_a_quarter_turn_a_shift_and_a_doubling_by_hand() -> None:
    x = torch.arange(1.0, 10).view(1, 1, 3, 3)
    turned = image_ops.warp(x, angle=math.pi / 2)
    torch.testing.assert_close(turned, x.rot90(-1, (2, 3)), msg="clockwise on the screen")
    shifted = image_ops.warp(x, shift_x=1.0, shift_y=-1.0)
    torch.testing.assert_close(shifted, torch.tensor([[[[0.0, 4, 5], [0, 7, 8], [0, 0, 0]]]]))
    doubled = image_ops.warp(x, scale=2.0)
    torch.testing.assert_close(doubled, torch.tensor([[[[3.0, 3.5, 4], [4.5, 5, 5.5], [6, 6.5, 7]]]]))
    torch.testing.assert_close(image_ops.warp(x), x)


@settings(deadline=None, max_examples=40)
@given(st.floats(-3.1, 3.1), st.floats(0.5, 2), st.floats(-1, 1), st.floats(-1, 1), st.floats(-4, 4), st.floats(-4, 4))
def test_warps_equal_those_of_kornia(
    angle: float, scale: float, shear_x: float, shear_y: float, shift_x: float, shift_y: float
) -> None:
    x = images(2, 3, 9, 14).double()
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = scale * turn @ [[1, shear_x], [0, 1]] @ [[1, 0], [shear_y, 1]]
    centre = np.array([6.5, 4.0])
    matrix = np.column_stack((linear, centre + np.array([shift_x, shift_y]) - linear @ centre))
    wanted = kornia.geometry.warp_affine(x, torch.tensor(matrix)[None].expand(2, 2, 3), (9, 14), align_corners=True)
    ours = image_ops.warp(
        x, angle=angle, scale=scale, shear_x=shear_x, shear_y=shear_y, shift_x=shift_x, shift_y=shift_y
    )
    torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=0)


def test_rotations_are_bounded_by_degrees() -> None:
    x = torch.zeros(200, 1, 41, 41)
    x[:, :, 20, 38] = 1  # 18 pixels right of the centre
    y = augmented(Rotate(degrees=30), x)
    row = torch.arange(41.0).view(1, 1, 41, 1) - 20
    column = torch.arange(41.0).view(1, 1, 1, 41) - 20
    angles = torch.atan2((y * row).sum((1, 2, 3)), (y * column).sum((1, 2, 3))).rad2deg()
    assert float(angles.abs().max()) < 31
    assert float(angles.min()) < -25
    assert float(angles.max()) > 25


# ---------------------------------------------------------------- colours, against PIL


def levels(channels: int = 3) -> Tensor:
    return torch.randint(20, 200, (4, channels, 24, 24), generator=torch.Generator().manual_seed(3)) / 255


def through_pil(x: Tensor, change: Any) -> Tensor:
    arrays = [(image * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(-1).numpy() for image in x]
    changed = [torch.from_numpy(np.array(change(Image.fromarray(array)))) for array in arrays]
    return torch.stack([image if image.ndim == 3 else image[..., None] for image in changed]).permute(0, 3, 1, 2) / 255


PIL_PAIRS = {
    "brightness": (
        lambda x: image_ops.adjust_colour(x, brightness=1.2),
        lambda i: ImageEnhance.Brightness(i).enhance(1.2),
    ),
    "dark": (lambda x: image_ops.adjust_colour(x, brightness=0.2), lambda i: ImageEnhance.Brightness(i).enhance(0.2)),
    "contrast": (lambda x: image_ops.adjust_colour(x, contrast=1.7), lambda i: ImageEnhance.Contrast(i).enhance(1.7)),
    "flat": (lambda x: image_ops.adjust_colour(x, contrast=0.3), lambda i: ImageEnhance.Contrast(i).enhance(0.3)),
    "colour": (lambda x: image_ops.adjust_colour(x, saturation=1.8), lambda i: ImageEnhance.Color(i).enhance(1.8)),
    "grey": (lambda x: image_ops.adjust_colour(x, saturation=0.0), lambda i: ImageEnhance.Color(i).enhance(0.0)),
    "sharp": (
        lambda x: rand_augment.sharpen(x, torch.full((len(x),), 1.9)),
        lambda i: ImageEnhance.Sharpness(i).enhance(1.9),
    ),
    "smooth": (
        lambda x: rand_augment.sharpen(x, torch.full((len(x),), 0.1)),
        lambda i: ImageEnhance.Sharpness(i).enhance(0.1),
    ),
    "posterize": (lambda x: rand_augment.posterize(x, torch.full((len(x),), 3.0)), lambda i: ImageOps.posterize(i, 3)),
    "solarize": (
        lambda x: rand_augment.solarize(x, torch.full((len(x),), 99.5 / 255)),
        lambda i: ImageOps.solarize(i, 100),
    ),
    "auto-contrast": (rand_augment.auto_contrast, ImageOps.autocontrast),
    "equalize": (rand_augment.equalize, ImageOps.equalize),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("ours", "pil"), PIL_PAIRS.values(), ids=PIL_PAIRS)
def test_colours_are_those_of_pillow(ours: Any, pil: Any, channels: int) -> None:
    x = levels(channels)
    torch.testing.assert_close(ours(x), through_pil(x, pil), atol=1.51 / 255, rtol=0)


def test_histograms_of_few_levels_are_equalized_exactly() -> None:
    for image in (torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 20, 20), (torch.arange(400.0) % 3 / 10).view(1, 1, 20, 20)):
        torch.testing.assert_close(
            rand_augment.equalize(image), through_pil(image, ImageOps.equalize), atol=0.002, rtol=0
        )


def test_all_four_colour_changes_compose_in_their_order() -> None:
    x = levels() * 0.3 + 0.35
    together = image_ops.adjust_colour(x, brightness=1.1, contrast=0.8, saturation=1.2, hue=0.05)
    steps = kornia.enhance.adjust_contrast_with_mean_subtraction(x * 1.1, 0.8)
    steps = image_ops.adjust_colour(steps, saturation=1.2)
    torch.testing.assert_close(together, image_ops.adjust_colour(steps, hue=0.05), atol=2e-4, rtol=0)


def test_hue_turns_colours_and_keeps_their_grey() -> None:
    x = levels() * 0.3 + 0.35
    grey = torch.tensor(image_ops.GREY).view(1, 3, 1, 1)
    turned = image_ops.adjust_colour(x, hue=torch.tensor([0.1, -0.2, 0.5, 0.0]))
    torch.testing.assert_close((turned * grey).sum(1), (x * grey).sum(1), atol=1e-4, rtol=0)
    assert not torch.allclose(turned[:3], x[:3], atol=0.02)
    back = image_ops.adjust_colour(turned, hue=torch.tensor([-0.1, 0.2, 0.5, 1.0]))
    torch.testing.assert_close(back, x, atol=1e-4, rtol=0)
    opposite = image_ops.adjust_colour(torch.tensor([0.6, 0.5, 0.5]).view(1, 3, 1, 1), hue=0.5).flatten()
    assert opposite[0] < opposite[1], "red turns to cyan"


def test_grey_images_take_only_brightness_and_contrast() -> None:
    x = images(5, 1)
    assert augmented(ColorJitter(brightness=0, contrast=0, saturation=0.9, hue=0.5), x).allclose(x)
    torch.testing.assert_close(image_ops.adjust_colour(x, brightness=0.5), x / 2)


def test_color_jitter_draws_factors_within_its_bounds() -> None:
    x = torch.full((400, 1, 2, 2), 0.5)
    factors = augmented(ColorJitter(brightness=0.4, contrast=0), x)[:, 0, 0, 0] / 0.5
    assert 0.6 <= float(factors.min()) < 0.65
    assert 1.35 < float(factors.max()) <= 1.4


# ---------------------------------------------------------------- rand-augment


def test_every_operation_is_drawn_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = dict.fromkeys(rand_augment.OPERATIONS, 0)

    def counting(change: Any) -> Any:
        def counted(x: Tensor, s: Tensor, drawn: dict[str, Tensor]) -> Any:
            assert torch.stack(list(drawn.values())).sum(0).eq(1).all()
            for name, who in drawn.items():
                counts[name] += int(who.sum())
            return change(x, s, drawn)

        return counted

    monkeypatch.setattr(
        rand_augment, "FAMILIES", {names: counting(change) for names, change in rand_augment.FAMILIES.items()}
    )
    augmented(RandAugment(n=3), images(1000, 1, 4, 4))
    counts["identity"] = 3000 - sum(counts.values())
    assert len(counts) == 14
    wanted, spread = 3000 / 14, math.sqrt(3000 / 14)
    assert all(abs(count - wanted) < 4 * spread for count in counts.values()), counts


def test_magnitude_sets_the_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(200)
    distance = [float((augmented(RandAugment(n=1, magnitude=m), x) - x).abs().mean()) for m in (1, 10, 30)]
    assert distance == sorted(distance)
    only_moved = {names: change for names, change in rand_augment.FAMILIES.items() if "rotate" in names}
    monkeypatch.setattr(rand_augment, "FAMILIES", only_moved)
    torch.testing.assert_close(augmented(RandAugment(magnitude=0), x), x)
