"""Friedman's curved surface: regression, three layers in `F.*`, Adam, mean squared error, batches of 32."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler

from patients.case import Case
from patients.scoring import sets
from patients.scoring.program import Data, Host, Permuted, Program, zero_last


class Net(nn.Module):
    """Two hidden layers; the activation between them is given."""

    def __init__(self, width: int = 48, activation=F.relu) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(10, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.activation = activation

    def hidden(self, x: Tensor) -> Tensor:
        return self.activation(self.second(self.activation(self.first(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x))


def adam(model: nn.Module, lr: float = 3e-3) -> Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr)


HOST = Host("friedman-mlp", "mlp", "functional")
HEALTHY = Program(
    data=sets.friedman, model=Net, setup=adam, loss=F.mse_loss, epochs=10, batch=32, loader=Permuted, update=zero_last
)


# Nets.


def unchanged(z: Tensor) -> Tensor:
    return z


def steep_step(z: Tensor) -> Tensor:
    return torch.tanh(20 * z)


class ReluAtEnd(Net):
    """Clips its answers at zero."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class NormAtEnd(Net):
    """Normalises over its single output."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Detached(Net):
    """Goes through numpy on its way."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.from_numpy(self.hidden(x).detach().numpy()))


class Branches(nn.Module):
    """Branches side by side, kept in a dict of the given type."""

    def __init__(self, kept: type = nn.ModuleDict) -> None:
        super().__init__()
        self.branches = kept({"a": nn.Linear(10, 24), "b": nn.Linear(10, 24)})
        self.out = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(torch.cat([branch(x) for branch in self.branches.values()], 1)))


class Residual(nn.Module):
    """Adds up many blocks without any normalisation."""

    def __init__(self, blocks: int, gain: float) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(10, 32), nn.Linear(32, 1)
        self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(blocks))
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = h + self.gain * F.relu(block(h))
        return self.out(h)


def all_ones() -> nn.Module:
    model = Net()
    for layer in (model.first, model.second, model.out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def negative_weights() -> nn.Module:
    """Weights of the second layer drawn below zero: after a ReLU nothing can come through."""
    model = Net()
    nn.init.uniform_(model.second.weight, -1.0, 0.0)
    nn.init.constant_(model.second.bias, -1.0)
    return model


class InHalf(nn.Module):
    """Weights and arithmetic in float16 with an optimizer made for float32."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net().half()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.half()).float()


# Data.


def flat_target(seed: int) -> Data:
    """One dimension less in the targets than in the predictions."""
    data = sets.friedman(seed)
    return replace(data, y=data.y.squeeze(1), y_val=data.y_val.squeeze(1))


def in_euros(seed: int) -> Data:
    data = sets.friedman(seed)
    return replace(data, y=250_000 + 80_000 * data.y, y_val=250_000 + 80_000 * data.y_val)


def as_whole_numbers(seed: int) -> Data:
    """Targets scaled to 0..1 and then cast to int."""
    data = sets.friedman(seed)
    low, high = data.y.min(), data.y.max()
    return replace(
        data, y=((data.y - low) / (high - low)).long().float(), y_val=((data.y_val - low) / (high - low)).long().float()
    )


def sorted_inputs(seed: int) -> Data:
    """The table was sorted by a column, the targets were not."""
    data = sets.friedman(seed)
    return replace(data, x=data.x[data.x[:, 3].argsort()])


# Loop.


def never_cleared(_model: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    loss.backward()
    optimizer.step()


def clamped_weights(model: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    zero_last(model, optimizer, loss)
    with torch.no_grad():
        for weights in model.parameters():
            weights.clamp_(-0.05, 0.05)


def only_the_head(model: nn.Module) -> Optimizer:
    return torch.optim.Adam(model.out.parameters(), lr=3e-3)


def strong_decay(model: nn.Module) -> Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=2.0)


def cyclic(optimizer: Optimizer, high: float) -> LRScheduler:
    return CyclicLR(optimizer, base_lr=1e-4, max_lr=high, step_size_up=15, cycle_momentum=False)


def flooded(out: Tensor, y: Tensor) -> Tensor:
    """The flood level of a paper's other data set."""
    return (F.mse_loss(out, y) - 0.4).abs() + 0.4


def squared(out: Tensor, y: Tensor) -> Tensor:
    """Mean squared error by hand."""
    return ((out - y) ** 2).mean()


CYCLED = replace(HEALTHY, schedule=partial(cyclic, high=6e-3), per_batch=True)
FAST = replace(HEALTHY, setup=partial(adam, lr=3e-2))
BRANCHED = replace(HEALTHY, model=Branches, setup=partial(adam, lr=1e-2))
FEW = partial(sets.friedman, n=50)

CASES: tuple[Case, ...] = (
    HOST.healthy(HEALTHY),
    HOST.healthy(replace(HEALTHY, loss=squared), "healthy-by-hand"),
    HOST.healthy(BRANCHED, "healthy-branches"),
    HOST.healthy(FAST, "healthy-fast"),
    HOST.healthy(CYCLED, "healthy-cyclic"),
    HOST.healthy(replace(HEALTHY, model=partial(Net, activation=torch.tanh)), "healthy-tanh"),
    HOST.healthy(replace(HEALTHY, model=partial(Residual, 12, 0.15)), "healthy-residual"),
    HOST.sick("missing_nonlinearity", "linear", replace(HEALTHY, model=partial(Net, activation=unchanged))),
    HOST.sick("bad_activation", "exp-inside", replace(HEALTHY, model=partial(Net, activation=torch.exp))),
    HOST.sick("saturated_activation", "steep-tanh", replace(HEALTHY, model=partial(Net, activation=steep_step))),
    HOST.sick("output_range_mismatch", "relu-at-end", replace(HEALTHY, model=ReluAtEnd)),
    HOST.sick("constant_output", "norm-of-one", replace(HEALTHY, model=NormAtEnd)),
    HOST.sick("disconnected_params", "through-numpy", replace(HEALTHY, model=Detached)),
    HOST.sick("unregistered_params", "dict-of-branches", replace(BRANCHED, model=partial(Branches, dict))),
    # What explodes forwards explodes backwards: the same sum of unscaled blocks.
    HOST.sick(
        "exploding_activation",
        "unscaled-residuals",
        replace(HEALTHY, model=partial(Residual, 12, 4.0)),
        ("exploding_gradient",),
    ),
    HOST.sick("symmetric_init", "all-zero", replace(HEALTHY, model=all_ones)),
    # The units are dead because their weights were drawn so.
    HOST.sick("dead_relu", "negative-weights", replace(HEALTHY, model=negative_weights), ("bad_init",)),
    HOST.sick("precision_loss", "float16-adam", replace(HEALTHY, model=InHalf)),
    HOST.sick("underfitting", "one-unit", replace(HEALTHY, model=partial(Net, width=1, activation=torch.tanh))),
    HOST.sick(
        "overfitting", "50-rows", replace(HEALTHY, data=FEW, model=partial(Net, width=128), batch=16, epochs=150)
    ),
    # A smaller lr would also tame the noise of single examples.
    HOST.sick(
        "batch_too_small",
        "one-by-one",
        replace(FAST, batch=1, epochs=1),
        ("lr_too_high",),
    ),
    HOST.sick("shape_broadcast", "flat-target", replace(HEALTHY, data=flat_target, loss=squared)),
    HOST.sick("unscaled_target", "in-euros", replace(HEALTHY, data=in_euros)),
    HOST.sick("degenerate_labels", "cast-to-int", replace(HEALTHY, data=as_whole_numbers)),
    HOST.sick("label_misaligned", "sorted-inputs", replace(HEALTHY, data=sorted_inputs)),
    HOST.sick("missing_zero_grad", "never-cleared", replace(HEALTHY, update=never_cleared)),
    HOST.sick("frozen_params", "only-the-head", replace(HEALTHY, setup=only_the_head)),
    HOST.sick("too_much_regularisation", "weight-decay-2", replace(HEALTHY, setup=strong_decay)),
    # A flood is a regulariser; its level is what the loss stands still at.
    HOST.sick("plateau", "flooded", replace(HEALTHY, loss=flooded), ("too_much_regularisation",)),
    # The peaks of the cycle are the swings: the upper lr is too high.
    HOST.sick(
        "oscillating_loss", "cycle-to-0.3", replace(CYCLED, schedule=partial(cyclic, high=0.3)), ("lr_too_high",)
    ),
)
