"""Shapes of noisy waves: an LSTM of modules, a head on the mean of its states, Adam, clipping, batches of 64."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from patients.case import Case
from patients.scoring import sets
from patients.scoring.program import Batches, Data, Host, Program, clipped, multiclass


class Net(nn.Module):
    """A recurrent layer and a head."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.rnn = nn.LSTM(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.head(out.mean(1))


class NoGradBody(Net):
    """The recurrent layer under no_grad, left from a test of speed."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            out, _ = self.rnn(x)
        return self.head(out.mean(1))


class FirstState(Net):
    """Reads the state that went in instead of the one that came out."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(1, len(x), self.rnn.hidden_size)
        self.rnn(x, (h, torch.zeros_like(h)))
        return self.head(h[0])


class PlainRnn(Net):
    """A plain recurrent layer whose units start by keeping their own state."""

    def __init__(self, gain: float, nonlinearity: str) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, 32, nonlinearity=nonlinearity, batch_first=True)
        nn.init.eye_(self.rnn.weight_hh_l0)
        with torch.no_grad():
            self.rnn.weight_hh_l0.mul_(gain)


def all_constant() -> nn.Module:
    model = Net()
    for weights in model.parameters():
        nn.init.constant_(weights, 0.05)
    return model


def adam(model: nn.Module, lr: float = 1e-2) -> Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr)


HOST = Host("waves-lstm", "rnn")
HEALTHY = Program(
    data=sets.waves,
    model=Net,
    setup=adam,
    loss=nn.CrossEntropyLoss(),
    correct=multiclass,
    epochs=12,
    batch=64,
    update=clipped,
)


def cleared_too_early(_model: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    loss.backward()
    optimizer.zero_grad()
    optimizer.step()


def copied_after(model: nn.Module) -> Optimizer:
    """The layers are built anew, larger context and all, after the optimizer was made."""
    optimizer = adam(model)
    model.rnn, model.head = Net().rnn, Net().head
    return optimizer


class Parsed:
    """Every batch is read from text again."""

    def __init__(self, data: Data, batch: int) -> None:
        self.data, self.batch = data, batch

    def __iter__(self):
        for rows in torch.randperm(len(self.data.x)).split(self.batch):
            time.sleep(0.04)
            yield self.data.x[rows], self.data.y[rows]


def parsed(data: Data, batch: int) -> Batches:
    return Parsed(data, batch)


# A plain recurrent layer whose state neither grows nor fades.
PLAIN = replace(HEALTHY, model=partial(PlainRnn, 0.9, "tanh"), setup=partial(adam, lr=5e-3), epochs=16)

CASES: tuple[Case, ...] = (
    HOST.healthy(HEALTHY),
    HOST.healthy(PLAIN, "healthy-plain"),
    HOST.sick("no_learning", "cleared-too-early", replace(HEALTHY, update=cleared_too_early)),
    # Nothing that is trained below the head reaches the loss; what shows is one answer for all.
    HOST.sick("disconnected_params", "first-state", replace(HEALTHY, model=FirstState), ("constant_output",)),
    HOST.sick("disconnected_params", "no-grad-body", replace(HEALTHY, model=NoGradBody)),
    HOST.sick("stale_optimizer", "built-anew-after", replace(HEALTHY, setup=copied_after)),
    HOST.sick("symmetric_init", "all-constant", replace(HEALTHY, model=all_constant)),
    # Unbounded units with recurrent weights above one let state and gradient grow with every step of time.
    HOST.sick(
        "exploding_gradient",
        "relu-rnn",
        replace(PLAIN, model=partial(PlainRnn, 1.5, "relu")),
        ("exploding_activation", "bad_init"),
    ),
    HOST.sick("too_few_epochs", "three-epochs", replace(HEALTHY, epochs=3)),
    HOST.sick("input_bottleneck", "parsed-each-time", replace(HEALTHY, loader=parsed, epochs=2)),
    HOST.sick("lr_too_low", "lr-1e-6", replace(HEALTHY, setup=partial(adam, lr=1e-6), epochs=8)),
    HOST.sick("batch_too_large", "whole-set", replace(HEALTHY, batch=1200, epochs=20)),
)
