"""Clothes at 14x14, 1600 images: two convolutions, two linear layers, `F.*`, no batch norm, Adam, batches of 32."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, Dataset, TensorDataset

from patients.case import Case
from patients.scoring import sets
from patients.scoring.program import Batches, Data, Host, Program, multiclass


class Net(nn.Module):
    """Convolve, pool, convolve, pool, two linear layers."""

    def __init__(self, channels: int = 8, activation=F.relu) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.fc1 = nn.Linear(2 * channels * 9, 48)
        self.fc2 = nn.Linear(48, 10)
        self.activation = activation

    def features(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.activation(self.conv1(x)), 2)
        x = F.avg_pool2d(self.activation(self.conv2(x)), 2)
        return self.activation(self.fc1(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.features(x))


def adam(model: nn.Module, lr: float = 3e-3) -> Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr)


HOST = Host("fashion-cnn", "cnn", "functional")
HEALTHY = Program(
    data=sets.fashion, model=Net, setup=adam, loss=F.cross_entropy, correct=multiclass, epochs=6, batch=32
)


# Nets.


def unchanged(z: Tensor) -> Tensor:
    return z


class WithDropout(Net):
    """Dropout before the last layer that ends with the training."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.dropout(self.features(x), 0.3, self.training))


class AlwaysDropout(Net):
    """Dropout before the last layer that nobody told about evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.dropout(self.features(x), 0.3))


class OneScore(Net):
    """Answers with the class as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.fc2 = nn.Linear(48, 1)


class NarrowWaist(Net):
    """Two units carry everything."""

    def __init__(self) -> None:
        super().__init__(channels=1)
        self.fc1, self.fc2 = nn.Linear(18, 2), nn.Linear(2, 10)


def tiny_weights() -> nn.Module:
    model = Net()
    for weights in model.parameters():
        nn.init.normal_(weights, std=1e-4)
    return model


# Losses.


def spread(out: Tensor, y: Tensor, eps: float) -> Tensor:
    """Rewards distance between the examples of a batch; that of an example to itself is the root of zero."""
    squares = (out.unsqueeze(0) - out.unsqueeze(1)).square().sum(-1)
    return F.cross_entropy(out, y) - 1e-3 * torch.sqrt(squares + eps).mean()


def number_of_class(out: Tensor, y: Tensor) -> Tensor:
    """Mean squared error against the class's number."""
    return F.mse_loss(out.squeeze(1), y.float())


def nearest(out: Tensor, y: Tensor) -> Tensor:
    return out.squeeze(1).round() == y


# Data.


def wrong_labels(seed: int) -> Data:
    """Four labels in ten are drawn at random, in both parts."""
    data = sets.fashion(seed)

    def noisy(y: Tensor) -> Tensor:
        return torch.where(torch.rand(len(y)) < 0.45, torch.randint(10, (len(y),)), y)

    return replace(data, y=noisy(data.y), y_val=noisy(data.y_val))


def validated_on_training(seed: int) -> Data:
    """The split came after the copies: every validation image is one of the training images."""
    data = sets.fashion(seed, n=400)
    return replace(data, x_val=data.x[:300], y_val=data.y[:300])


def sorted_by_class(data: Data, batch: int) -> Batches:
    rows = data.y.argsort()
    return DataLoader(TensorDataset(data.x[rows], data.y[rows]), batch_size=batch)


class FromDisk(Dataset):
    """Opens and decodes a file for every image."""

    def __init__(self, data: Data, delay: float) -> None:
        self.data, self.delay = data, delay

    def __len__(self) -> int:
        return len(self.data.x)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        time.sleep(self.delay)
        return self.data.x[row], self.data.y[row]


def slow_loader(data: Data, batch: int) -> Batches:
    return DataLoader(FromDisk(data, delay=3e-4), batch_size=batch, shuffle=True)


# Loop.


def wrong_sign(model: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    """The penalty on the weights is subtracted."""
    penalty = sum(weights.square().sum() for weights in model.parameters())
    optimizer.zero_grad()
    (loss - 0.5 * penalty).backward()
    optimizer.step()


def right_sign(model: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    penalty = sum(weights.square().sum() for weights in model.parameters())
    optimizer.zero_grad()
    (loss + 1e-4 * penalty).backward()
    optimizer.step()


def frozen_features(model: nn.Module) -> Optimizer:
    """Fine tuning of a net that was never trained."""
    for layer in (model.conv1, model.conv2, model.fc1):
        layer.requires_grad_(False)
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)


DROPPED = replace(HEALTHY, model=WithDropout)
SLOW_DECAY = replace(HEALTHY, schedule=partial(ExponentialLR, gamma=0.8))

CASES: tuple[Case, ...] = (
    HOST.healthy(HEALTHY),
    HOST.healthy(DROPPED, "healthy-dropout"),
    HOST.healthy(SLOW_DECAY, "healthy-decay"),
    HOST.healthy(replace(HEALTHY, update=right_sign), "healthy-penalty"),
    HOST.healthy(replace(HEALTHY, loss=partial(spread, eps=1e-6)), "healthy-spread"),
    HOST.sick("missing_nonlinearity", "linear", replace(HEALTHY, model=partial(Net, activation=unchanged))),
    HOST.sick("train_eval_slip", "always-dropout", replace(HEALTHY, model=AlwaysDropout)),
    HOST.sick("wrong_loss", "number-of-class", replace(HEALTHY, model=OneScore, loss=number_of_class, correct=nearest)),
    HOST.sick("underfitting", "narrow-waist", replace(HEALTHY, model=NarrowWaist)),
    HOST.sick("nan_inf", "root-of-zero", replace(HEALTHY, loss=partial(spread, eps=0.0))),
    HOST.sick("bad_init", "tiny-weights", replace(HEALTHY, model=tiny_weights)),
    HOST.sick("label_noise", "random-labels", replace(HEALTHY, data=wrong_labels)),
    HOST.sick("data_leakage", "validated-on-training", replace(HEALTHY, data=validated_on_training, epochs=30)),
    HOST.sick("unshuffled_data", "sorted-by-class", replace(HEALTHY, loader=sorted_by_class)),
    HOST.sick("input_bottleneck", "from-disk", replace(HEALTHY, loader=slow_loader, epochs=2)),
    HOST.sick("exploding_activation", "wrong-sign", replace(HEALTHY, update=wrong_sign)),
    HOST.sick("frozen_params", "frozen-features", replace(HEALTHY, setup=frozen_features)),
    HOST.sick("lr_schedule_collapse", "decay-per-batch", replace(SLOW_DECAY, per_batch=True)),
    HOST.sick("lr_too_low", "lr-1e-6", replace(HEALTHY, setup=partial(adam, lr=1e-6))),
)
