"""Faults of the step: its size, its noise, its precision, and what is added to the loss."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patients.case import Case, Watch
from patients.tuning.hosts import (
    CANCER,
    CONV_F,
    DIGITS,
    DIGITS_F,
    FASHION,
    FRIEDMAN,
    FRIEDMAN_F,
    TOKENS_F,
    TOKENS_HOST,
    WAVES,
    FunctionalMLP,
    friedman,
    mlp,
)
from patients.tuning.loop import Split

lr_scheduler = torch.optim.lr_scheduler
adam, sgd = torch.optim.Adam, torch.optim.SGD


def entropy_by_hand(out: Tensor, y: Tensor) -> Tensor:
    """Binary cross entropy by hand: once a probability rounds to 1 the log of the rest is infinite, times 0 is NaN."""
    p = torch.sigmoid(out)
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()


def gaussian(out: Tensor, y: Tensor) -> Tensor:
    """Likelihood with a variance from a ReLU, which can be 0."""
    mean, variance = out[:, :1], F.relu(out[:, 1:])
    return (0.5 * torch.log(variance) + (y - mean) ** 2 / (2 * variance)).mean()


def floored(out: Tensor, y: Tensor) -> Tensor:
    """Meant to keep the loss from falling too low (flooding without its absolute value): no gradient below 0.4."""
    return torch.maximum(F.mse_loss(out, y), torch.tensor(0.4))


class OwnNorm(nn.Module):
    """Normalises every row by hand, without epsilon: a row of zeros gives 0 / 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=1, keepdim=True)


def summed(out: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(out, y, reduction="sum")


def penalised(strength: float) -> Any:
    """L1 of all weights, added to the gradient by hand."""

    def add(model: nn.Module) -> None:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.add_(parameter.data.sign(), alpha=strength)

    return add


class LowPrecision(nn.Module):
    """All weights in a type of few digits; inputs are cast on the way in, outputs on the way out."""

    def __init__(self, net: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.net = net.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.to(self.dtype) if x.is_floating_point() else x).float()


def times_hundred(watch: Watch, seed: int) -> None:
    """The loss times 100 "to see more digits", added up over 4 batches without dividing."""
    torch.manual_seed(seed)
    x, y, xv, yv = friedman(seed)
    model = FunctionalMLP((10, 64, 64, 1))
    optimizer = sgd(model.parameters(), lr=0.02, momentum=0.9)
    w = watch(model, optimizer, F.mse_loss)
    for _epoch in range(20):
        for i, index in enumerate(torch.randperm(len(x)).split(15)):
            loss = 100 * F.mse_loss(model(x[index]), y[index])
            loss.backward()
            if i % 4 == 3:
                nn.utils.clip_grad_norm_(model.parameters(), 50.0)
                optimizer.step()
                optimizer.zero_grad()
                w.step(loss, inputs=x[index], targets=y[index])
        with torch.no_grad():
            w.metrics(val_loss=F.mse_loss(model(xv), yv).item())


def noisy_targets(seed: int) -> Split:
    """Targets with as much noise as signal, which single examples drown in."""
    s = friedman(seed)
    g = torch.Generator().manual_seed(seed)
    return s._replace(y=s.y + torch.randn(s.y.shape, generator=g))


# The peaks of a cycle are steps that are too large: to say that the lr is too high is true as well.
PEAKS = ("lr_too_high",)

CASES: tuple[Case, ...] = (
    DIGITS.sick("lr_too_high", "sgd-five", optimizer=partial(sgd, lr=5.0)),
    FASHION.sick("lr_too_high", "adam-half", optimizer=partial(adam, lr=0.5)),
    TOKENS_HOST.sick("lr_too_high", "adam-tenth", optimizer=partial(adam, lr=0.1)),
    FRIEDMAN_F.sick("lr_too_high", "diverges", optimizer=partial(sgd, lr=0.8, momentum=0.9)),
    WAVES.sick("lr_too_high", "adam-one", optimizer=partial(adam, lr=1.0)),
    DIGITS_F.sick("lr_too_low", "adam-millionth", optimizer=partial(adam, lr=2e-6)),
    FRIEDMAN.sick("lr_too_low", "sgd", optimizer=partial(sgd, lr=1e-5, momentum=0.9)),
    TOKENS_F.sick("lr_too_low", "adam", optimizer=partial(adam, lr=3e-6)),
    CONV_F.sick("lr_too_low", "sgd", optimizer=partial(sgd, lr=2e-4)),
    FRIEDMAN.sick(
        "oscillating_loss",
        "warm-restarts",
        optimizer=partial(sgd, lr=0.6, momentum=0.9),
        schedule=lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 24),
        schedule_each="batch",
        accepts=PEAKS,
    ),
    CONV_F.sick(
        "oscillating_loss",
        "cyclic",
        optimizer=partial(sgd, lr=0.05),
        schedule=lambda o: lr_scheduler.CyclicLR(o, base_lr=0.01, max_lr=3.0, step_size_up=10),
        schedule_each="batch",
        accepts=PEAKS,
    ),
    DIGITS.sick("plateau", "clamped-loss", loss=lambda out, y: F.cross_entropy(out, y).clamp(min=1.2)),
    FRIEDMAN_F.sick("plateau", "flooded-wrongly", loss=floored),
    CANCER.sick("batch_too_small", "one", batch_size=1, optimizer=partial(sgd, lr=0.2), epochs=2),
    FRIEDMAN.sick(
        "batch_too_small",
        "two-noisy",
        data=noisy_targets,
        batch_size=2,
        epochs=1,
    ),
    DIGITS.sick("batch_too_large", "all", batch_size=1280, epochs=25, optimizer=partial(sgd, lr=0.05, momentum=0.9)),
    FASHION.sick("batch_too_large", "all", batch_size=1500, epochs=10, optimizer=partial(sgd, lr=0.05)),
    WAVES.sick("batch_too_large", "all", batch_size=1000, epochs=20),
    FRIEDMAN.sick("loss_scale", "sum", loss=summed),
    DIGITS_F.sick(
        "loss_scale",
        "times-thousand",
        loss=lambda out, y: 1000 * F.cross_entropy(out, y),
        optimizer=partial(sgd, lr=0.05, momentum=0.9),
    ),
    CONV_F.sick("loss_scale", "divided-twice", loss=lambda out, y: F.cross_entropy(out, y) / len(y) / 16),
    FRIEDMAN_F.own("loss_scale", "times-hundred", times_hundred),
    FASHION.sick("small_batch_bn", "two", batch_size=2, epochs=1, optimizer=partial(sgd, lr=0.01)),
    FASHION.sick("small_batch_bn", "three-accumulated", batch_size=3, accumulate=8, epochs=2, drop_last=True),
    DIGITS.sick("too_much_regularisation", "dropout", model=lambda: mlp((64, 64, 32, 10), dropout=0.85)),
    FRIEDMAN.sick(
        "too_much_regularisation",
        "weight-decay",
        optimizer=partial(sgd, lr=0.02, momentum=0.9, weight_decay=0.4),
    ),
    FASHION.sick(
        "too_much_regularisation",
        "adamw-decay",
        optimizer=partial(torch.optim.AdamW, lr=2e-3, weight_decay=80.0),
    ),
    CANCER.sick("too_much_regularisation", "l1-by-hand", before_step=penalised(0.05)),
    CANCER.sick("nan_inf", "entropy-by-hand", loss=entropy_by_hand, optimizer=partial(adam, lr=0.005), epochs=25),
    FRIEDMAN_F.sick("nan_inf", "log-of-relu", loss=gaussian, model=lambda: FunctionalMLP((10, 64, 64, 2))),
    CONV_F.sick(
        "nan_inf",
        "norm-of-zero",
        model=lambda: nn.Sequential(
            nn.Conv2d(1, 10, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(8),
            nn.Flatten(),
            nn.Linear(10, 4),
            nn.ReLU(),
            OwnNorm(),
            nn.Linear(4, 10),
        ),
    ),
    DIGITS.sick(
        "precision_loss",
        "bfloat16-sgd",
        model=lambda: LowPrecision(mlp((64, 64, 32, 10)), torch.bfloat16),
        optimizer=partial(sgd, lr=0.005),
    ),
    FRIEDMAN.sick(
        "precision_loss",
        "bfloat16-adam",
        model=lambda: LowPrecision(mlp((10, 64, 64, 1)), torch.bfloat16),
        optimizer=partial(adam, lr=1e-4),
    ),
    TOKENS_F.sick(
        "precision_loss",
        "bfloat16-attention",
        model=lambda: LowPrecision(TOKENS_F.plan.model(), torch.bfloat16),
        optimizer=partial(adam, lr=1e-4),
    ),
)
