"""Sick trainings to mend: a healthy host, and a recipe or network with one fault that a Recipe can cure.

`PATIENTS` says of each which host it comes from and whether it is for tuning the mending or only for scoring it
(`bench/mend.py`); hosts are on one side only. The host's own recipe is the healthy one on the same task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from luthier.data import load
from luthier.data.splits import split
from luthier.errors import unknown
from luthier.nets import CNN, MLP
from luthier.recipe import Recipe
from luthier.task import Task
from luthier.tasks.images import DIGITS_SHAPE, MNIST_SHAPE, mnist_overfit
from luthier.tasks.subjects import Subject
from luthier.training.optimizers import SGD

Side = Literal["tuning", "scoring"]


@dataclass(frozen=True)
class Patient:
    """A sick training and its healthy twin.

    Attributes:
        make: the sick subject.
        host: the healthy one, with the same data.
        side: "tuning" or "scoring".
    """

    make: Callable[[], Subject]
    host: Callable[[], Subject]
    side: Side


def grey_mlp(width: int = 64, depth: int = 2) -> MLP:
    """A fully connected network for 28x28 grey images."""
    return MLP(MNIST_SHAPE, 10, width=width, depth=depth)


def small_cnn(width: int = 16, depth: int = 2) -> CNN:
    """A convolutional network for 8x8 grey images."""
    return CNN(DIGITS_SHAPE, 10, width=width, depth=depth)


def digits_net(arch: Literal["mlp", "cnn"] = "mlp", width: int | None = None, depth: int | None = None) -> nn.Module:
    """A network for 8x8 grey images whose architecture can be chosen; None leaves a size to it."""
    if arch == "mlp":
        return MLP(DIGITS_SHAPE, 10, width=width or 64, depth=depth or 2)
    if arch == "cnn":
        return CNN(DIGITS_SHAPE, 10, width=width or 32, depth=depth or 3, norm="batch")
    raise unknown("arch", arch, ["mlp", "cnn"])


def spiral_mlp(width: int = 32, depth: int = 2) -> MLP:
    """A fully connected network for points in the plane."""
    return MLP(2, 3, width=width, depth=depth)


def friedman_mlp(width: int = 32, depth: int = 2) -> MLP:
    """A fully connected network for ten features and one number."""
    return MLP(10, 1, width=width, depth=depth)


def signs_mlp(width: int = 64, depth: int = 2) -> MLP:
    """A fully connected network for eight features and two classes."""
    return MLP(8, 2, width=width, depth=depth)


def overfit_host() -> Subject:
    """300 MNIST images; what keeps a network from learning them by heart, and gradients alive."""
    host = mnist_overfit()
    parts: list[dict[str, Any]] = [{"name": "affine", "degrees": 10.0, "translate": 0.1, "scale": 0.1}]
    return Subject(host.task, host.recipe.replace({"model": {"width": 128}, "augment": parts, "epochs": 60}))


def mnist_host() -> Subject:
    """2,000 MNIST images, fully connected network."""
    return _grey("mnist", 2000)


def fashion_host() -> Subject:
    """2,000 Fashion-MNIST images, fully connected network."""
    return _grey("fashion-mnist", 2000)


def digits_few_host() -> Subject:
    """80 of the 8x8 digits: a convolutional network, and small shifts and turns against learning by heart."""
    data = load("digits")
    n = len(data.train[1])
    train, val, test = split(data.train, [80 / n, 600 / n, 1 - 680 / n], seed=0)
    task = Task(digits_net, train, val=val, test=test, normalize=True, name="digits-few")
    parts: list[dict[str, Any]] = [{"name": "affine", "degrees": 10.0, "translate": 0.12, "scale": 0.1}]
    recipe = Recipe(lr=5e-3, schedule="one-cycle", batch_size=20, epochs=80, augment=parts, model={"arch": "cnn"})
    return Subject(task, recipe)


def digits_cnn_host() -> Subject:
    """Small convolutional network on 8x8 digits, SGD with momentum."""
    data = load("digits")
    train, val = split(data.train, [0.6, 0.4], seed=0)
    task = Task(small_cnn, train, val=val, test=data.test, normalize=True, name="digits-cnn")
    recipe = Recipe(optimizer=SGD(momentum=0.9), lr=0.05, schedule="one-cycle", batch_size=32, epochs=12)
    return Subject(task, recipe.replace({"norm": "batch"}))


def spiral_host() -> Subject:
    """Three noisy spiral arms in the plane."""
    task = Task(spiral_mlp, spirals(600, 0), val=spirals(1000, 1), test=spirals(2000, 2), name="spirals")
    return Subject(task, Recipe(lr=1e-2, schedule="one-cycle", batch_size=32, epochs=30))


def friedman_host() -> Subject:
    """Friedman's regression function, inputs on a common scale."""
    task = Task(
        friedman_mlp, friedman(800, 0), val=friedman(1000, 1), test=friedman(2000, 2), loss="mse", name="friedman"
    )
    return Subject(task, Recipe(lr=1e-2, schedule="one-cycle", batch_size=32, epochs=20))


def friedman_raw_host() -> Subject:
    """Friedman's function with inputs from 300 to 400; the healthy network normalises behind its layers."""
    train, val, test = (friedman(n, seed, raw=True) for n, seed in ((800, 0), (1000, 1), (2000, 2)))
    task = Task(friedman_mlp, train, val=val, test=test, loss="mse", name="friedman-raw")
    return Subject(task, Recipe(lr=1e-2, schedule="one-cycle", batch_size=32, epochs=20, norm="batch"))


def signs_host() -> Subject:
    """Is the product of the first three of eight features positive? No single feature tells anything."""
    task = Task(signs_mlp, signs(1500, 0), val=signs(1000, 1), test=signs(2000, 2), name="signs")
    recipe = Recipe(optimizer=SGD(momentum=0.9), lr=0.1, schedule="one-cycle", batch_size=50, epochs=20)
    return Subject(task, recipe)


def _grey(name: str, n: int) -> Subject:
    """A subset of MNIST's kin: n training images, 2,000 for validation, the set's own test images."""
    data = load(name)
    total = len(data.train[1])
    train, val, _ = split(data.train, [n / total, 2000 / total, 1 - (n + 2000) / total], seed=0)
    task = Task(grey_mlp, train, val=val, test=data.test, normalize=True, name=name)
    return Subject(task, Recipe(lr=2e-3, schedule="one-cycle", batch_size=64, epochs=12, dropout=0.1))


def spirals(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points [n, 2] of three spiral arms, and the arm of each."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    radius = torch.rand(n, generator=generator)
    angle = 4.0 * radius + 2.0944 * y + 0.15 * torch.randn(n, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1) * 2, y


def friedman(n: int, seed: int, raw: bool = False) -> tuple[Tensor, Tensor]:
    """y = (10 sin(pi x1 x2) + 20 (x3 - 1/2)^2 + 10 x4 + 5 x5 - 14.4) / 5 + noise; five more features say nothing.

    Args:
        n: examples.
        seed: of the draws.
        raw: features from 300 to 400, instead of -1.7 to 1.7.

    Source: Friedman 1991, Multivariate adaptive regression splines, section 4.3.
    """
    generator = torch.Generator().manual_seed(100 + seed)
    x = torch.rand(n, 10, generator=generator)
    clean = 10 * torch.sin(torch.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    y = (clean - 14.4) / 5 + 0.1 * torch.randn(n, generator=generator)
    return (x * 100 + 300 if raw else (x - 0.5) * 3.46), y[:, None]


def signs(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features [n, 8] from a normal distribution, and whether x1 x2 x3 > 0."""
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(200 + seed))
    return x, (x[:, :3].prod(1) > 0).long()


def _sick(host: Callable[[], Subject], name: str, **fault: Any) -> Subject:
    """The host's task under a name of its own, its recipe with these faulty values."""
    healthy = host()
    healthy.task.name = name
    return Subject(healthy.task, healthy.recipe.replace(fault))


def mnist_overfit_sigmoid() -> Subject:
    """The sister of mnist-overfit with five sigmoid layers, whose gradients vanish."""
    return _sick(overfit_host, "mnist-overfit-sigmoid", activation="sigmoid", model={"width": 30, "depth": 5})


def mnist_lr_high() -> Subject:
    """MNIST (2,000 images), SGD steps far too large."""
    return _sick(mnist_host, "mnist-lr-high", optimizer=SGD(momentum=0.9), lr=3.0)


def mnist_lr_low() -> Subject:
    """MNIST (2,000 images), steps a thousand times too small."""
    return _sick(mnist_host, "mnist-lr-low", lr=2e-6)


def mnist_dropout() -> Subject:
    """MNIST (2,000 images), nearly all hidden units dropped."""
    return _sick(mnist_host, "mnist-dropout", dropout=0.95)


def mnist_decay() -> Subject:
    """MNIST (2,000 images), weights decay faster than they learn."""
    return _sick(mnist_host, "mnist-decay", weight_decay=20.0)


def mnist_deep_uniform() -> Subject:
    """MNIST (2,000 images), twelve layers whose initial weights are too small."""
    return _sick(
        mnist_host,
        "mnist-deep-uniform",
        init="uniform",
        dropout=None,
        model={"width": 64, "depth": 12},
        optimizer=SGD(momentum=0.9),
        lr=0.02,
    )


def spirals_narrow() -> Subject:
    """Three spiral arms, three hidden units."""
    return _sick(spiral_host, "spirals-narrow", model={"width": 3, "depth": 1})


def spirals_schedule() -> Subject:
    """Three spiral arms, a schedule that ends the learning after fifty steps."""
    return _sick(spiral_host, "spirals-schedule", schedule={"name": "exponential", "gamma": 0.9, "unit": "step"})


def spirals_clip() -> Subject:
    """Three spiral arms, gradients clipped to nearly nothing."""
    return _sick(spiral_host, "spirals-clip", optimizer=SGD(momentum=0.9), lr=0.1, clip_norm=1e-3)


def spirals_batch_large() -> Subject:
    """Three spiral arms, one step an epoch."""
    return _sick(spiral_host, "spirals-batch-large", batch_size=600)


def fashion_lr_high() -> Subject:
    """Fashion-MNIST (2,000 images), Adam's steps far too large."""
    return _sick(fashion_host, "fashion-lr-high", lr=0.5)


def fashion_lr_low() -> Subject:
    """Fashion-MNIST (2,000 images), plain SGD that hardly moves."""
    return _sick(fashion_host, "fashion-lr-low", optimizer=SGD(momentum=0.0), lr=1e-4)


def fashion_deep_sigmoid() -> Subject:
    """Fashion-MNIST (2,000 images), six sigmoid layers."""
    return _sick(
        fashion_host,
        "fashion-deep-sigmoid",
        activation="sigmoid",
        model={"width": 64, "depth": 6},
        optimizer=SGD(momentum=0.9),
        lr=0.05,
    )


def digits_few_overfit() -> Subject:
    """80 digits, learnt by heart by a fully connected network."""
    return _sick(
        digits_few_host, "digits-few-overfit", augment=(), schedule="constant", model={"arch": "mlp", "width": 32}
    )


def digits_clip() -> Subject:
    """Digits, convolutional, gradients clipped to nearly nothing."""
    return _sick(digits_cnn_host, "digits-clip", clip_norm=1e-3)


def digits_dropout() -> Subject:
    """Digits, convolutional, nine of ten channels dropped."""
    return _sick(digits_cnn_host, "digits-dropout", dropout=0.9)


def digits_batch_large() -> Subject:
    """Digits, convolutional, one step an epoch."""
    return _sick(digits_cnn_host, "digits-batch-large", batch_size=800)


def digits_no_norm() -> Subject:
    """Digits, convolutional, without normalisation and with small steps."""
    return _sick(digits_cnn_host, "digits-no-norm", norm=None, lr=1e-3)


def friedman_lr_high() -> Subject:
    """Friedman's regression, steps far too large."""
    return _sick(friedman_host, "friedman-lr-high", lr=3.0)


def friedman_decay() -> Subject:
    """Friedman's regression, weights decay faster than they learn."""
    return _sick(friedman_host, "friedman-decay", weight_decay=10.0)


def friedman_narrow() -> Subject:
    """Friedman's regression, one hidden unit in each layer."""
    return _sick(friedman_host, "friedman-narrow", model={"width": 1, "depth": 2})


def friedman_raw() -> Subject:
    """Friedman's regression, inputs from 300 to 400 and no normalisation."""
    return _sick(friedman_raw_host, "friedman-raw", norm=None)


def signs_schedule() -> Subject:
    """A product of signs, a schedule that ends the learning after fifty steps."""
    return _sick(signs_host, "signs-schedule", schedule={"name": "exponential", "gamma": 0.9, "unit": "step"})


def signs_short() -> Subject:
    """A product of signs, training that ends before it has begun."""
    return _sick(signs_host, "signs-short", epochs=2, lr=1e-3)


def signs_bad_init() -> Subject:
    """A product of signs, ten layers whose initial weights are too small."""
    return _sick(signs_host, "signs-bad-init", init="uniform", model={"width": 64, "depth": 10})


PATIENTS: dict[str, Patient] = {
    "mnist-overfit-sigmoid": Patient(mnist_overfit_sigmoid, overfit_host, "tuning"),
    "mnist-lr-high": Patient(mnist_lr_high, mnist_host, "tuning"),
    "mnist-lr-low": Patient(mnist_lr_low, mnist_host, "tuning"),
    "mnist-dropout": Patient(mnist_dropout, mnist_host, "tuning"),
    "mnist-decay": Patient(mnist_decay, mnist_host, "tuning"),
    "mnist-deep-uniform": Patient(mnist_deep_uniform, mnist_host, "tuning"),
    "spirals-narrow": Patient(spirals_narrow, spiral_host, "tuning"),
    "spirals-schedule": Patient(spirals_schedule, spiral_host, "tuning"),
    "spirals-clip": Patient(spirals_clip, spiral_host, "tuning"),
    "spirals-batch-large": Patient(spirals_batch_large, spiral_host, "tuning"),
    "fashion-lr-high": Patient(fashion_lr_high, fashion_host, "scoring"),
    "fashion-lr-low": Patient(fashion_lr_low, fashion_host, "scoring"),
    "fashion-deep-sigmoid": Patient(fashion_deep_sigmoid, fashion_host, "scoring"),
    "digits-few-overfit": Patient(digits_few_overfit, digits_few_host, "scoring"),
    "digits-clip": Patient(digits_clip, digits_cnn_host, "scoring"),
    "digits-dropout": Patient(digits_dropout, digits_cnn_host, "scoring"),
    "digits-batch-large": Patient(digits_batch_large, digits_cnn_host, "scoring"),
    "digits-no-norm": Patient(digits_no_norm, digits_cnn_host, "scoring"),
    "friedman-lr-high": Patient(friedman_lr_high, friedman_host, "scoring"),
    "friedman-decay": Patient(friedman_decay, friedman_host, "scoring"),
    "friedman-narrow": Patient(friedman_narrow, friedman_host, "scoring"),
    "friedman-raw": Patient(friedman_raw, friedman_raw_host, "scoring"),
    "signs-schedule": Patient(signs_schedule, signs_host, "scoring"),
    "signs-short": Patient(signs_short, signs_host, "scoring"),
    "signs-bad-init": Patient(signs_bad_init, signs_host, "scoring"),
}
