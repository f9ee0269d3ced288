"""Digits of 8x8 through a waist of 10 numbers and back: an autoencoder in `F.*`, RMSprop, mean squared error."""

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


def pixels(seed: int) -> Data:
    """Pixels between 0 and 1, to be given back as they are."""
    data = sets.raw_digits(seed)
    x, x_val = data.x.flatten(1) / 16, data.x_val.flatten(1) / 16
    return Data(x, x, x_val, x_val)


class Net(nn.Module):
    """Encoder and decoder of two layers each."""

    def __init__(self, waist: int = 10, activation=F.leaky_relu) -> None:
        super().__init__()
        self.e1, self.e2 = nn.Linear(64, 64), nn.Linear(64, waist)
        self.d1, self.d2 = nn.Linear(waist, 64), nn.Linear(64, 64)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        code = self.e2(self.activation(self.e1(x)))
        return self.d2(self.activation(self.d1(code)))


def rmsprop(model: nn.Module, lr: float = 1e-3) -> Optimizer:
    return torch.optim.RMSprop(model.parameters(), lr=lr)


def forgot_decoder(model: nn.Module) -> Optimizer:
    return torch.optim.RMSprop([*model.e1.parameters(), *model.e2.parameters()], lr=1e-3)


HOST = Host("digits-autoencoder", "mlp", "functional")
HEALTHY = Program(data=pixels, model=Net, setup=rmsprop, loss=F.mse_loss, epochs=8, batch=32, loader=Permuted)

CASES: tuple[Case, ...] = (
    HOST.healthy(HEALTHY),
    HOST.sick("too_few_epochs", "two-epochs", replace(HEALTHY, epochs=2)),
    HOST.sick("frozen_params", "forgotten-decoder", replace(HEALTHY, setup=forgot_decoder)),
    HOST.sick("underfitting", "waist-of-one", replace(HEALTHY, model=partial(Net, waist=1))),
    HOST.sick("batch_too_large", "whole-set", replace(HEALTHY, batch=1400, epochs=20)),
)
