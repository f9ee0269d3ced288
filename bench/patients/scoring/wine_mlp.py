"""Wines of three growers, 138 rows: a small tanh net of modules, plain SGD, batches of 16."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from patients.case import Case
from patients.scoring import sets
from patients.scoring.program import Data, Host, Program, multiclass


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(13, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3))


def sgd(model: nn.Module, lr: float = 0.1) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


HOST = Host("wine-mlp", "mlp")
HEALTHY = Program(
    data=sets.wine, model=mlp, setup=sgd, loss=nn.CrossEntropyLoss(), correct=multiclass, epochs=30, batch=16
)


def tiny_weights() -> nn.Module:
    model = mlp()
    for weights in model.parameters():
        nn.init.normal_(weights, std=1e-4)
    return model


def wide_weights() -> nn.Module:
    model = mlp()
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight, std=15.0)
    return model


def one_grower(seed: int) -> Data:
    """A comparison with a threshold that every label passes."""
    data = sets.wine(seed)
    return replace(data, y=(data.y >= 0).long(), y_val=(data.y_val >= 0).long())


def clipped_values(model: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_value_(model.parameters(), 1e-5)
    optimizer.step()


def divided_by_rows(out: Tensor, y: Tensor) -> Tensor:
    """A mean, divided by the batch and the number of batches once more."""
    return nn.functional.cross_entropy(out, y) / 16 / 8


CASES: tuple[Case, ...] = (
    HOST.healthy(HEALTHY),
    HOST.sick("bad_init", "tiny-weights", replace(HEALTHY, model=tiny_weights)),
    # tanh units sit on their flat parts because of their first weights.
    HOST.sick("saturated_activation", "wide-weights", replace(HEALTHY, model=wide_weights), ("bad_init",)),
    HOST.sick("degenerate_labels", "one-grower", replace(HEALTHY, data=one_grower)),
    HOST.sick("unnormalised_input", "raw-units", replace(HEALTHY, data=sets.raw_wine)),
    HOST.sick("grad_clip_too_small", "clip-values", replace(HEALTHY, update=clipped_values)),
    HOST.sick("loss_scale", "divided-again", replace(HEALTHY, loss=divided_by_rows)),
    HOST.sick("lr_too_low", "lr-1e-4", replace(HEALTHY, setup=partial(sgd, lr=1e-4))),
)
