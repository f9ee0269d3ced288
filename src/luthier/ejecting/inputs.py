"""Data, batches, augmentation and mixing as source code."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.data import augmentation, image_ops
from luthier.data.cache import cache_folder
from luthier.data.fetching import Fetched
from luthier.data.sets import DATA_SETS, load
from luthier.data.splits import part_sizes, split
from luthier.ejecting.facts import Facts
from luthier.ejecting.sources import EjectError
from luthier.files import write_atomic

PARTS = ("train_inputs", "train_targets", "val_inputs", "val_targets")


def write_data(facts: Facts, data: Path | None) -> tuple[str, str, str]:
    """Where the script's data are, what that is in words, and the function that loads them.

    Args:
        facts: of the run.
        data: a file to write the data to; None reads the files of a built-in data set in the cache.

    Raises:
        EjectError: no file was given, and the data are not the files of a built-in data set.
    """
    if data is not None:
        return _write_file(facts, data)
    name = facts.task.name
    source = DATA_SETS.get(name)
    fraction = _fraction(facts) if isinstance(source, Fetched) else None
    if fraction is None:
        raise EjectError(
            f"the data of the task {name!r} are not the files of a built-in data set: give a file to write them to, "
            "--data train.npz (in Python: data='train.npz'), and that the script reads"
        )
    return str(cache_folder() / name), "folder with train_inputs.npy and train_targets.npy", _from_cache(facts)


def _write_file(facts: Facts, data: Path) -> tuple[str, str, str]:
    buffer = io.BytesIO()
    try:
        arrays: dict[str, Any] = {name: facts.parts[name].numpy() for name in PARTS}
        np.savez(buffer, **arrays)
    except TypeError as error:
        raise EjectError(f"the data cannot be written as NumPy arrays ({error}): store them as float32") from None
    try:
        write_atomic(data, buffer.getvalue())
    except OSError as error:
        raise EjectError(f"the data cannot be written to {data} ({error.strerror}): give the name of a file") from None
    return str(data), "file with the arrays train_inputs, train_targets, val_inputs, val_targets", _LOAD_FILE


_LOAD_FILE = '''def load_data(path):
    """Inputs and targets to train and to validate with."""
    with np.load(path) as file:
        parts = ("train_inputs", "train_targets", "val_inputs", "val_targets")
        return [torch.tensor(file[part]) for part in parts]'''


def _fraction(facts: Facts) -> float | None:
    """The fraction that was held out of a built-in data set for validation; None when the parts are others."""
    inputs, targets = load(facts.task.name).train
    n, held_out = len(targets), len(facts.parts["val_targets"])
    for fraction in (held_out / n, *(1 / k for k in range(2, 21)), *(k / 100 for k in range(1, 100))):
        sizes = [n - held_out, held_out]
        if part_sizes(n, [1 - fraction, fraction]) == sizes and _is_split(facts, (inputs, targets), fraction):
            return fraction
    return None


def _is_split(facts: Facts, data: tuple[Tensor, Tensor], fraction: float) -> bool:
    parts = [leaf for part in split(data, [1 - fraction, fraction], seed=0) for leaf in part]
    ours = [facts.parts[name] for name in PARTS]
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(reversed(parts), reversed(ours), strict=True))


def _from_cache(facts: Facts) -> str:
    counts = facts.parts["val_targets"].bincount().tolist()
    return f'''VAL_COUNTS = ({", ".join(map(str, counts))})


def load_data(folder):
    """Inputs and targets to train with, and those held out for validation: in every class as many as VAL_COUNTS."""
    x, y = (torch.from_numpy(np.load(f"{{folder}}/{{part}}.npy")) for part in ("train_inputs", "train_targets"))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    by_class = order[y[order].argsort(stable=True)].split(y.bincount().tolist())
    cuts = [len(group) - count for group, count in zip(by_class, VAL_COUNTS, strict=True)]
    train = torch.cat([group[:cut] for group, cut in zip(by_class, cuts, strict=True)]).sort().values
    val = torch.cat([group[cut:] for group, cut in zip(by_class, cuts, strict=True)]).sort().values
    return x[train], y[train], x[val], y[val]'''


ORDER = '''def batches(n, epoch, size):
    """The examples of an epoch in batches, in an order of its own."""
    digest = hashlib.blake2b(f"{derived_seed(ORDER)}:{epoch}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.randperm(n, generator=generator).split(size)'''


def write_scale(facts: Facts) -> list[str]:
    """The functions `statistics` (where inputs are scaled) and `prepare` (where anything is done to them)."""
    lines = []
    floats = ".float().div_(255)" if facts.bytes else ""
    if facts.bytes:
        lines.append("    x = x.float().div_(255)")
    if facts.recipe.augment:
        lines += ["    if training:", "        x = augmented(x)"]
    if facts.scales:
        lines.append("    x = (x - mean) / std")
    if facts.recipe.memory_format == "channels_last" and facts.parts["train_inputs"].ndim == 4:
        lines.append("    x = x.contiguous(memory_format=torch.channels_last)")
    if not lines:
        return []
    *first, last = lines
    arguments = "x" + (", mean, std" if facts.scales else "") + (", training=False" if facts.recipe.augment else "")
    last = last.replace("    x = ", "    return ") if last.startswith("    x = ") else f"{last}\n    return x"
    prepare = "\n".join([f"def prepare({arguments}):", f'    """{_prepared(facts)}"""', *first, last])
    return [*([_statistics(facts, floats)] if facts.scales else []), prepare]


def _prepared(facts: Facts) -> str:
    done = ["bytes as floats in [0, 1]"] if facts.bytes else []
    done += ["augmented in training"] if facts.recipe.augment else []
    done += ["centred and scaled"] if facts.scales else []
    done += ["channels last in memory"] if facts.recipe.memory_format == "channels_last" else []
    text = ", ".join(done)
    return f"{text[0].upper()}{text[1:]}."


def _statistics(facts: Facts, floats: str) -> str:
    inputs = facts.parts["train_inputs"]
    if facts.task.normalize is not True:
        mean, std = facts.run.inputs.scale or (torch.zeros(1), torch.ones(1))
        if mean.numel() + std.numel() > 64:
            raise EjectError("the task's normalize=(mean, std) has over 64 numbers: scale the data in the task instead")
        return f'''def statistics(x):
    """Mean and standard deviation of the inputs, as the task gives them."""
    return torch.tensor({mean.tolist()}), torch.tensor({std.tolist()})'''
    step = max(1, len(inputs) // 20_000)
    sample = f"x[::{step}]" if step > 1 else "x"
    sample += floats or ("" if inputs.dtype == torch.float32 else ".float()")
    dims, of = ("(0, 2, 3)", "channel") if inputs.ndim == 4 else ("0", "feature")
    taken = "" if sample == "x" else f"    x = {sample}\n"
    return f'''def statistics(x):
    """Mean and standard deviation of every {of}."""
{taken}    mean, std = x.mean({dims}, keepdim=True)[0], x.std({dims}, keepdim=True, correction=0)[0]
    return mean, torch.where(std > 1e-6, std, torch.ones_like(std))'''


def write_augment(facts: Facts) -> list[str]:
    """The function `augmented` with all that it calls."""
    if not facts.recipe.augment:
        return []
    if facts.parts["train_inputs"].dtype not in (torch.uint8, torch.float32, torch.float64):
        raise EjectError("recipe field augment: eject writes it for inputs of bytes, float32 or float64 only")
    lines = [f"    x = {_CALLS[part.name](facts, part)}" for part in facts.recipe.augment if _known(part)]
    return [
        "\n".join(
            ["def augmented(x):", '    """Each image changed by its own draw."""', *lines, "    return x.contiguous()"]
        )
    ]


def _known(part: Any) -> bool:
    if part.name not in _CALLS:
        raise EjectError(f"recipe field augment={part.name!r} is not written by eject: use {', '.join(_CALLS)}")
    return True


def _call(facts: Facts, function: Any, *arguments: Any) -> str:
    name = facts.sources.add(function, "recipe field augment")
    return f"{name}(x, {', '.join(map(_text, arguments))})"


def _text(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _size(facts: Facts) -> tuple[int, int]:
    height, width = facts.parts["train_inputs"].shape[2:]
    return height, width


def _translate(facts: Facts, part: augmentation.Translate) -> str:
    rows, columns = (round(part.fraction * size) for size in _size(facts))
    return _call(facts, image_ops.random_window, rows, columns, "zero")


def _cutout(facts: Facts, part: augmentation.Cutout) -> str:
    sizes = (part.size if isinstance(part.size, int) else max(1, round(part.size * side)) for side in _size(facts))
    return _call(facts, image_ops.cutout, *sizes)


def _own(facts: Facts, part: augmentation.CustomAugmentation) -> str:
    if part.call._call is None:
        raise EjectError(
            f"recipe field augment: the run's files hold the name of {part.call.function!r} only: give the task by a "
            "function that returns a pair (task, recipe), the recipe with it (in Python: a Subject)"
        )
    return _call(facts, part.call._call).replace("(x, )", "(x)")


_CALLS: dict[str, Callable[[Facts, Any], str]] = {
    "flip": lambda facts, part: _call(facts, image_ops.flip, part.p, 2 if part.vertical else 3),
    "crop": lambda facts, part: _call(facts, image_ops.random_window, part.padding, part.padding, part.mode),
    "translate": _translate,
    "rotate": lambda facts, part: _call(facts, image_ops.random_affine, part.degrees, 0.0, 0.0, 0.0),
    "affine": lambda facts, part: _call(
        facts, image_ops.random_affine, part.degrees, part.translate, part.scale, part.shear
    ),
    "erase": lambda facts, part: _call(facts, image_ops.random_erase, part.p, part.scale, part.ratio),
    "cutout": _cutout,
    "color-jitter": lambda facts, part: _call(
        facts, image_ops.random_colour, part.brightness, part.contrast, part.saturation, part.hue
    ),
    "custom": _own,
}


def write_mixing(facts: Facts) -> tuple[list[str], str | None]:
    """The functions of mixup and cutmix, and the call in the training loop; None without them."""
    mixup, cutmix = facts.recipe.mixup, facts.recipe.cutmix
    if not mixup and not cutmix:
        return [], None
    soft = "y" if facts.parts["train_targets"].is_floating_point() else f"F.one_hot(y, {facts.classes}).float()"
    blocks = [_BLEND, *([_MIXUP] if mixup else [])]
    if cutmix:
        facts.sources.add(image_ops.box, "recipe field cutmix")
        blocks.append(_CUTMIX)
    blocks = [
        block.replace("SOFT", soft).replace("MIXUP", repr(mixup)).replace("CUTMIX", repr(cutmix)) for block in blocks
    ]
    if mixup and cutmix:
        return [*blocks, _MIX], "mix(x, y)"
    return blocks, "mixup(x, y)" if mixup else "cutmix(x, y)"


_BLEND = '''def blend(values, partner, share):
    """share * values + (1 - share) * those of the partners, for each sample."""
    share = share.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
    return torch.lerp(values[partner], values, share)


def beta(n, alpha):
    """One draw from Beta(alpha, alpha) for each of n samples."""
    return torch.distributions.Dirichlet(torch.full((n, 2), alpha), validate_args=False).sample()[:, 0]'''
_MIXUP = '''def mixup(x, y):
    """Blend each sample and its target with another of the batch (Zhang et al. 2018)."""
    share, partner = beta(len(x), MIXUP), torch.randperm(len(x))
    return blend(x, partner, share), blend(SOFT, partner, share)'''
_MIX = '''def mix(x, y):
    """Cutmix or mixup, with equal chance."""
    return cutmix(x, y) if float(torch.rand(())) < 0.5 else mixup(x, y)'''
_CUTMIX = '''def cutmix(x, y):
    """Paste into each image a box from another of the batch, targets mixed by area (Yun et al. 2019)."""
    n, _, height, width = x.shape
    partner = torch.randperm(n)
    side = (1 - beta(n, CUTMIX)).sqrt()
    rows, columns = (side * height).long(), (side * width).long()
    top, left = torch.randint(height, (n,)) - rows // 2, torch.randint(width, (n,)) - columns // 2
    inside = box(top, rows, height)[:, :, None] & box(left, columns, width)[:, None, :]
    share = 1 - inside.flatten(1).sum(1) / (height * width)
    return torch.where(inside[:, None], x[partner], x), blend(SOFT, partner, share)'''
