"""Healthy trainings that the sick ones of `patients` are made from: networks, data, recipes that train them well."""

from __future__ import annotations

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
