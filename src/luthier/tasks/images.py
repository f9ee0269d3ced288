"""Built-in tasks on images."""

from __future__ import annotations

from typing import Literal

from torch import nn

from luthier.data import load
from luthier.data.augmentation import Crop, Flip
from luthier.data.splits import split
from luthier.errors import unknown
from luthier.nets import CNN, MLP, ResNet
from luthier.recipe import Recipe
from luthier.task import Task
from luthier.tasks.subjects import Subject
from luthier.training.optimizers import SGD
from luthier.training.schedules import Cyclic
from luthier.tuning.space import choice, loguniform, uniform

MNIST_SHAPE, CIFAR_SHAPE, DIGITS_SHAPE = (1, 28, 28), (3, 32, 32), (1, 8, 8)


def mnist_mlp(width: int = 128, depth: int = 1) -> MLP:
    """A fully connected network for 28x28 grey images; depth 1 is the classic two-layer network."""
    return MLP(inputs=MNIST_SHAPE, outputs=10, width=width, depth=depth)


def mnist_net(arch: Literal["mlp", "cnn"] = "mlp", width: int | None = None, depth: int | None = None) -> nn.Module:
    """A network for 28x28 grey images whose architecture can be chosen; None leaves a size to it.

    "mlp": 128 hidden units in one layer. "cnn": 16 channels doubled over four blocks with batch norm, so that the last
    one sees the whole image.
    """
    if arch == "mlp":
        return mnist_mlp(width or 128, 1 if depth is None else depth)
    if arch == "cnn":
        return CNN(inputs=MNIST_SHAPE, outputs=10, width=width or 16, depth=depth or 4, norm="batch")
    raise unknown("arch", arch, ["mlp", "cnn"])


def mnist_cnn(width: int = 32, depth: int = 2) -> CNN:
    """A small convolutional network for 28x28 grey images."""
    return CNN(inputs=MNIST_SHAPE, outputs=10, width=width, depth=depth)


def cifar_resnet(width: int = 32, depth: int = 1) -> ResNet:
    """A small residual network for 32x32 colour images."""
    return ResNet(inputs=CIFAR_SHAPE, outputs=10, width=width, depth=depth)


def digits_mlp(width: int = 64, depth: int = 1) -> MLP:
    """A fully connected network for 8x8 grey images."""
    return MLP(inputs=DIGITS_SHAPE, outputs=10, width=width, depth=depth)


def mnist() -> Subject:
    """A two-layer fully connected network on MNIST, from a starting recipe that is poor on purpose."""
    data = load("mnist")
    task = Task(mnist_mlp, data.train, val=1 / 6, test=data.test, normalize=True, name="mnist")
    poor = Recipe(optimizer=SGD(momentum=0.0), lr=0.001, batch_size=128, epochs=10, model={"width": 64})
    space = {
        "optimizer": choice("sgd", "adamw"),
        "lr": loguniform(1e-3, 0.3),
        "schedule": choice("cosine", "one-cycle"),
        "batch_size": choice(128, 256),
        "weight_decay": loguniform(1e-6, 1e-2),
        "dropout": uniform(0.0, 0.5),
        "model.width": choice(128, 256, 512),
    }
    return Subject(task, poor, space)


def mnist_overfit() -> Subject:
    """The seed case by the book: 300 labelled MNIST images, learnt by heart; 1,000 more for validation."""
    data = load("mnist")
    train, val, _ = split(data.train, [300 / 60_000, 1_000 / 60_000, 58_700 / 60_000], seed=0)
    task = Task(mnist_net, train, val=val, test=data.test, normalize=False, name="mnist-overfit")
    recipe = Recipe(optimizer=SGD(momentum=0.0), lr=0.1, batch_size=30, epochs=40, model={"width": 30})
    space = {
        "lr": loguniform(1e-3, 1.0),
        "batch_size": choice(10, 30, 100, 300),
        "dropout": uniform(0.0, 0.7),
        "weight_decay": loguniform(1e-6, 1e-1),
    }
    groups = {"lr + batch": ("lr", "batch_size"), "lr + dropout": ("lr", "dropout"), "all": tuple(space)}
    return Subject(task, recipe, space, groups)


def fashion_mnist() -> Subject:
    """A small convolutional network on Fashion-MNIST."""
    data = load("fashion-mnist")
    task = Task(mnist_cnn, data.train, val=1 / 6, test=data.test, normalize=True, name="fashion-mnist")
    recipe = Recipe(lr=2e-3, schedule="one-cycle", epochs=8, memory_format="channels_last", precision="bfloat16")
    return Subject(task, recipe)


def cifar10() -> Subject:
    """A small residual network on CIFAR-10 with the cyclic schedule (Smith 2017)."""
    data = load("cifar10")
    task = Task(cifar_resnet, data.train, val=0.1, test=data.test, normalize=True, name="cifar10")
    recipe = Recipe(
        optimizer=SGD(momentum=0.9, nesterov=True),
        lr=0.1,
        weight_decay=5e-4,
        schedule=Cyclic(base_factor=0.01),
        augment=(Flip(), Crop(padding=4)),
        epochs=10,
        batch_size=128,
        precision="bfloat16",
        memory_format="channels_last",
    )
    return Subject(task, recipe)


def digits() -> Subject:
    """A two-layer fully connected network on scikit-learn's 8x8 digits; trains in a second."""
    data = load("digits")
    task = Task(digits_mlp, data.train, val=0.2, test=data.test, normalize=True, name="digits")
    return Subject(task, Recipe(lr=3e-3, batch_size=64, epochs=20))
