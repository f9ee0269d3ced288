"""Demand of the next hour: a GRU with a head in `F.*`, RMSprop, Huber loss, batches of 32."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from patients.case import Case
from patients.scoring import sets
from patients.scoring.program import Data, Host, Permuted, Program


class Net(nn.Module):
    """A gated recurrent layer, one hidden layer, one number."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, 24, batch_first=True)
        self.hidden, self.out = nn.Linear(24, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.out(F.relu(self.hidden(out[:, -1])))


class SigmoidAtEnd(Net):
    """Answers between 0 and 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(x))


class Accumulating(Net):
    """A cell by hand that adds to its state and never squashes it."""

    def __init__(self, squash: bool) -> None:
        super().__init__()
        self.rnn = None
        self.enter, self.turn = nn.Linear(1, 24), nn.Linear(24, 24)
        self.squash = squash

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 24)
        for t in range(x.shape[1]):
            h = self.enter(x[:, t]) + h + self.turn(h)
            h = torch.tanh(h) if self.squash else h
        return self.out(F.relu(self.hidden(h)))


def rmsprop(model: nn.Module, lr: float = 2e-3) -> Optimizer:
    return torch.optim.RMSprop(model.parameters(), lr=lr)


HOST = Host("demand-gru", "rnn", "functional")
HEALTHY = Program(data=sets.prices, model=Net, setup=rmsprop, loss=F.huber_loss, epochs=8, batch=32, loader=Permuted)


def flat_target(seed: int) -> Data:
    data = sets.prices(seed)
    return replace(data, y=data.y.squeeze(1), y_val=data.y_val.squeeze(1))


def huber(out: Tensor, y: Tensor) -> Tensor:
    """Huber's loss by hand."""
    error = (out - y).abs()
    return torch.where(error < 1, 0.5 * error**2, error - 0.5).mean()


def in_watts(seed: int) -> Data:
    """What goes in is scaled, what must come out is in watts."""
    data = sets.prices(seed)
    return replace(data, y=5000 + 2000 * data.y, y_val=5000 + 2000 * data.y_val)


def another_year(x: Tensor) -> Tensor:
    """Validated on a year with four times the level and the swing."""
    return 3 * x + 3


def never_cleared(_model: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    loss.backward()
    optimizer.step()


def shifted(seed: int) -> Data:
    """Windows and answers were cut from two tables, one of which lost its first row."""
    data = sets.prices(seed)
    return replace(data, y=data.y.roll(1, 0), y_val=data.y_val.roll(1, 0))


def strong_decay(model: nn.Module) -> Optimizer:
    return torch.optim.RMSprop(model.parameters(), lr=2e-3, weight_decay=1.0)


BY_HAND = replace(HEALTHY, loss=huber)
CELL = replace(HEALTHY, model=partial(Accumulating, squash=True), setup=partial(rmsprop, lr=1e-3))

CASES: tuple[Case, ...] = (
    HOST.healthy(HEALTHY),
    HOST.healthy(BY_HAND, "healthy-by-hand"),
    HOST.healthy(CELL, "healthy-cell"),
    HOST.sick("shape_broadcast", "flat-target", replace(BY_HAND, data=flat_target)),
    HOST.sick("unscaled_target", "in-watts", replace(HEALTHY, data=in_watts)),
    HOST.sick("output_range_mismatch", "sigmoid-at-end", replace(HEALTHY, model=SigmoidAtEnd)),
    HOST.sick("train_val_mismatch", "another-year", replace(HEALTHY, val_transform=another_year)),
    HOST.sick("missing_zero_grad", "never-cleared", replace(HEALTHY, update=never_cleared)),
    HOST.sick("label_misaligned", "lost-row", replace(HEALTHY, data=shifted)),
    HOST.sick("too_much_regularisation", "weight-decay-1", replace(HEALTHY, setup=strong_decay)),
    HOST.sick("lr_too_high", "lr-0.3", replace(HEALTHY, setup=partial(rmsprop, lr=0.3))),
    # The state that is never squashed explodes forwards, and with it the gradient.
    HOST.sick(
        "exploding_gradient",
        "adding-cell",
        replace(CELL, model=partial(Accumulating, squash=False)),
        ("exploding_activation",),
    ),
)
