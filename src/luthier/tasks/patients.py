"""Sick trainings to mend: a healthy host, and a recipe or network with one fault that a Recipe can cure.

`PATIENTS` says of each which host it comes from and whether it is for tuning the mending or only for scoring it
(`bench/mend.py`); hosts are on one side only. The host's own recipe is the healthy one on the same task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from luthier.tasks.hosts import (
    digits_cnn_host,
    digits_few_host,
    fashion_host,
    friedman_host,
    friedman_raw_host,
    mnist_host,
    overfit_host,
    signs_host,
    spiral_host,
)
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
