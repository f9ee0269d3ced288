"""Cell nuclei, benign or not: a small net in `F.*`, Adam, binary cross entropy on a logit, batches of 32."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from patients.case import Case
from patients.scoring import sets
from patients.scoring.program import Data, Host, Permuted, Program, binary


class Net(nn.Module):
    """Hidden layers of equal width with one activation."""

    def __init__(self, depth: int = 2, width: int = 24, activation=F.relu) -> None:
        super().__init__()
        sizes = [30] + depth * [width]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.out = nn.Linear(width, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = self.activation(layer(x))
        return self.out(x)


def adam(model: nn.Module, lr: float = 1e-3) -> Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr)


HOST = Host("cancer-mlp", "mlp", "functional")
HEALTHY = Program(
    data=sets.cancer,
    model=Net,
    setup=adam,
    loss=F.binary_cross_entropy_with_logits,
    correct=binary,
    epochs=15,
    batch=32,
    loader=Permuted,
)


def logs_of_probabilities(out: Tensor, y: Tensor) -> Tensor:
    """The formula of the textbook, without its limits."""
    p = torch.sigmoid(out)
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()


def ce_on_one_score(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y)


def missing_values(seed: int) -> Data:
    """One entry in a hundred was never measured."""
    data = sets.cancer(seed)

    def gaps(x: Tensor) -> Tensor:
        return x.masked_fill(torch.rand(x.shape) < 0.01, float("nan"))

    return replace(data, x=gaps(data.x), x_val=gaps(data.x_val))


def target_among_features(seed: int) -> Data:
    """The diagnosis, coded as -2 and 2, stayed in the table in place of its last column; the rest is hard to read."""
    data = noisy_features(seed)

    def leaked(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x[:, :-1], 4 * y - 2], 1)

    return replace(data, x=leaked(data.x, data.y), x_val=leaked(data.x_val, data.y_val))


def noisy_features(seed: int) -> Data:
    """A worse microscope."""
    data = sets.cancer(seed)
    return replace(
        data, x=data.x + 1.5 * torch.randn_like(data.x), x_val=data.x_val + 1.5 * torch.randn_like(data.x_val)
    )


def wrong_labels(seed: int) -> Data:
    """A third of the labels was guessed, in both parts."""
    data = sets.cancer(seed)

    def guessed(y: Tensor) -> Tensor:
        return torch.where(torch.rand(y.shape) < 0.35, 1 - y, y)

    return replace(data, y=guessed(data.y), y_val=guessed(data.y_val))


def few_malignant(seed: int) -> Data:
    """Screening: hardly anybody is ill, and the microscope is bad."""
    data = noisy_features(seed)

    def thinned(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        kept = (y.squeeze(1) == 1) | (torch.rand(len(y)) < 0.08)
        return x[kept], y[kept]

    return Data(*thinned(data.x, data.y), *thinned(data.x_val, data.y_val))


def step_not_called(_model: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step  # noqa: B018


DEEP = replace(HEALTHY, model=partial(Net, depth=8, activation=F.relu))

CASES: tuple[Case, ...] = (
    HOST.healthy(HEALTHY),
    HOST.healthy(DEEP, "healthy-deep"),
    HOST.healthy(replace(HEALTHY, data=noisy_features, epochs=8), "healthy-noisy"),
    # Sigmoid in a deep stack is what makes the gradients vanish.
    HOST.sick(
        "vanishing_gradient",
        "deep-sigmoid",
        replace(DEEP, model=partial(Net, depth=8, activation=torch.sigmoid)),
        ("bad_activation",),
    ),
    HOST.sick("nan_inf", "log-of-zero", replace(HEALTHY, loss=logs_of_probabilities, setup=partial(adam, lr=1e-2))),
    HOST.sick("nan_input", "missing-values", replace(HEALTHY, data=missing_values)),
    HOST.sick("wrong_loss", "ce-on-one-score", replace(HEALTHY, loss=ce_on_one_score)),
    HOST.sick("no_learning", "step-not-called", replace(HEALTHY, update=step_not_called)),
    HOST.sick("data_leakage", "target-among-features", replace(HEALTHY, data=target_among_features)),
    HOST.sick("label_noise", "guessed-labels", replace(HEALTHY, data=wrong_labels)),
    HOST.sick("class_imbalance", "few-malignant", replace(HEALTHY, data=few_malignant, epochs=8)),
    HOST.sick("unnormalised_input", "raw-units", replace(HEALTHY, data=sets.raw_cancer)),
    HOST.sick("batch_too_large", "whole-set", replace(HEALTHY, batch=450, epochs=40)),
)
