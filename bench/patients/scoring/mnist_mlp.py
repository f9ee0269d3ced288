"""MNIST, 4000 images: a ReLU net of three layers, modules, SGD with momentum, batches of 64 from a DataLoader."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from patients.case import Case
from patients.scoring import sets
from patients.scoring.program import Data, Host, Permuted, Program, multiclass


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def sgd(model: nn.Module, lr: float = 0.02, momentum: float = 0.9, weight_decay: float = 0.0) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)


HOST = Host("mnist-mlp", "mlp")
HEALTHY = Program(
    data=sets.mnist, model=mlp, setup=sgd, loss=nn.CrossEntropyLoss(), correct=multiclass, epochs=5, batch=64
)


# Nets that somebody built wrongly.


def deep(activation: type[nn.Module]) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(784, 64), activation()]
    for _ in range(6):
        layers += [nn.Linear(64, 64), activation()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def deep_relu() -> nn.Module:
    model = deep(nn.ReLU)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return model


def constant_weights() -> nn.Module:
    model = mlp()
    for weights in model.parameters():
        nn.init.constant_(weights, 0.01)
    return model


def huge_weights() -> nn.Module:
    model = deep(nn.ReLU)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight)
    return model


def negative_biases() -> nn.Module:
    model = mlp()
    for layer in (model[0], model[2]):
        nn.init.constant_(layer.bias, -4.0)
    return model


def softmax_inside() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 128), nn.Softmax(dim=1), nn.Linear(128, 64), nn.Softmax(dim=1), nn.Linear(64, 10)
    )


def softmax_at_end() -> nn.Module:
    return nn.Sequential(mlp(), nn.Softmax(dim=1))


def relu_at_end() -> nn.Module:
    return nn.Sequential(mlp(), nn.ReLU())


def log_softmax(dim: int) -> nn.Module:
    return nn.Sequential(mlp(), nn.LogSoftmax(dim=dim))


def dropout(p: float) -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 128), nn.ReLU(), nn.Dropout(p), nn.Linear(128, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 10)
    )


def batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 128),
        nn.BatchNorm1d(128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def narrow() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 2), nn.ReLU(), nn.Linear(2, 10))


class ListOfLayers(nn.Module):
    """Keeps its hidden layers in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Linear(784, 128), nn.Linear(128, 64)]
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.out(x)


class Halved(nn.Module):
    """All weights and inputs in bfloat16, scores given back in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp().to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.to(torch.bfloat16)).float()


# Data that somebody prepared wrongly.


def shuffled_apart(seed: int) -> Data:
    data = sets.mnist(seed)
    return replace(data, x=data.x[torch.randperm(len(data.x))])


def mostly_ones(seed: int) -> Data:
    """A detector's log: nine images in ten show the same digit, in both parts."""
    data = sets.mnist(seed, n=6000, n_val=1500)

    def thinned(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        kept = (y == 1) | (torch.rand(len(y)) < 0.012)
        return x[kept], y[kept]

    return Data(*thinned(data.x, data.y), *thinned(data.x_val, data.y_val))


def forgotten_scaling(seed: int) -> Data:
    data, raw = sets.mnist(seed), sets.raw_mnist(seed)
    return replace(data, x_val=raw.x_val / 255 * 2 - 1)


def as_bytes(seed: int) -> Data:
    """ToTensor had scaled to 0..1 already; an integer division by 255 then leaves nothing."""
    raw = sets.raw_mnist(seed)

    def scaled(x: Tensor) -> Tensor:
        return ((x / 255).byte() // 255).float()

    return Data(scaled(raw.x), raw.y, scaled(raw.x_val), raw.y_val)


# Loops that somebody wrote wrongly.


def new_optimizer_each_batch(model: nn.Module, _optimizer: Optimizer, loss: Tensor) -> None:
    optimizer = sgd(model)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def clipped_hard(model: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm=1e-3)
    optimizer.step()


def linear_decay(optimizer: Optimizer, total: int) -> LRScheduler:
    return LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total))


GENTLE = replace(HEALTHY, setup=partial(sgd, lr=0.002), epochs=9)
DEEP = replace(HEALTHY, model=deep_relu, setup=partial(sgd, lr=0.005))
NORMED = replace(HEALTHY, model=batch_norm)
DROPPED = replace(HEALTHY, model=partial(dropout, 0.2))
DECAYED = replace(HEALTHY, schedule=partial(linear_decay, total=310), per_batch=True)
LOGS = replace(HEALTHY, model=partial(log_softmax, 1), loss=nn.NLLLoss())

CASES: tuple[Case, ...] = (
    HOST.healthy(HEALTHY),
    HOST.healthy(DEEP, "healthy-deep"),
    HOST.healthy(GENTLE, "healthy-gentle"),
    HOST.healthy(NORMED, "healthy-batch-norm"),
    HOST.healthy(DROPPED, "healthy-dropout"),
    HOST.healthy(DECAYED, "healthy-decay"),
    HOST.healthy(LOGS, "healthy-nll"),
    # Sigmoid in a deep stack is what makes the gradients vanish.
    HOST.sick(
        "vanishing_gradient", "deep-sigmoid", replace(DEEP, model=partial(deep, nn.Sigmoid)), ("bad_activation",)
    ),
    HOST.sick("symmetric_init", "constant-weights", replace(HEALTHY, model=constant_weights)),
    HOST.sick("bad_init", "huge-weights", replace(DEEP, model=huge_weights)),
    # Units are dead because their biases were set so.
    HOST.sick("dead_relu", "negative-biases", replace(HEALTHY, model=negative_biases), ("bad_init",)),
    HOST.sick("bad_activation", "softmax-inside", replace(HEALTHY, model=softmax_inside)),
    HOST.sick("softmax_before_ce", "softmax-at-end", replace(HEALTHY, model=softmax_at_end)),
    HOST.sick("softmax_wrong_dim", "log-softmax-over-batch", replace(LOGS, model=partial(log_softmax, 0))),
    HOST.sick("output_range_mismatch", "relu-at-end", replace(HEALTHY, model=relu_at_end)),
    HOST.sick("too_much_regularisation", "dropout-95", replace(DROPPED, model=partial(dropout, 0.95))),
    # The batch is what makes the statistics of batch norm noise.
    HOST.sick("small_batch_bn", "bn-pairs", replace(NORMED, batch=2, epochs=1), ("batch_too_small",)),
    HOST.sick("underfitting", "two-hidden-units", replace(HEALTHY, model=narrow)),
    HOST.sick("unregistered_params", "python-list", replace(HEALTHY, model=ListOfLayers)),
    HOST.sick("precision_loss", "bfloat16-weights", replace(GENTLE, model=Halved)),
    HOST.sick("overfitting", "120-images", replace(HEALTHY, data=partial(sets.mnist, n=120), batch=16, epochs=45)),
    HOST.sick("label_misaligned", "shuffled-apart", replace(HEALTHY, data=shuffled_apart)),
    HOST.sick("class_imbalance", "mostly-ones", replace(HEALTHY, data=mostly_ones)),
    HOST.sick("train_val_mismatch", "other-scaling", replace(HEALTHY, data=forgotten_scaling)),
    HOST.sick("constant_output", "integer-division", replace(HEALTHY, data=as_bytes)),
    HOST.sick("unnormalised_input", "bytes", replace(HEALTHY, data=sets.raw_mnist)),
    HOST.sick("lr_too_high", "lr-1", replace(HEALTHY, setup=partial(sgd, lr=1.0))),
    HOST.sick("lr_too_low", "lr-1e-5", replace(HEALTHY, setup=partial(sgd, lr=1e-5))),
    # A smaller lr would also tame the noise of single examples.
    HOST.sick(
        "batch_too_small",
        "one-by-one",
        replace(HEALTHY, data=partial(sets.mnist, n=1500), batch=1, epochs=1),
        ("lr_too_high",),
    ),
    HOST.sick("batch_too_large", "whole-set", replace(HEALTHY, batch=4000, epochs=30, loader=Permuted)),
    HOST.sick("optimizer_reset", "new-each-batch", replace(HEALTHY, update=new_optimizer_each_batch)),
    HOST.sick("grad_clip_too_small", "clip-1e-3", replace(HEALTHY, update=clipped_hard)),
    HOST.sick("lr_schedule_collapse", "epochs-for-steps", replace(DECAYED, schedule=partial(linear_decay, total=10))),
    # Momentum of 0.995 makes the effective lr twenty times larger.
    HOST.sick(
        "oscillating_loss", "momentum-995", replace(HEALTHY, setup=partial(sgd, momentum=0.995)), ("lr_too_high",)
    ),
    HOST.sick("loss_scale", "summed", replace(HEALTHY, loss=nn.CrossEntropyLoss(reduction="sum"))),
)
