"""Digits of 8x8, 1400 images: a small residual net with batch norm, modules, SGD with momentum, batches of 32."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from patients.case import Case
from patients.scoring import sets
from patients.scoring.program import Batches, Data, Host, Program, multiclass, zero_last


class Block(nn.Module):
    """Two convolutions around a short cut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class ResNet(nn.Module):
    """A stem, two blocks with a pool between, a mean, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.blocks = nn.Sequential(Block(12), nn.MaxPool2d(2), Block(12), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class DetachedBody(ResNet):
    """Features detached to save memory."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).detach())


class ListOfBlocks(nn.Module):
    """Keeps its trunk in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        whole = ResNet()
        self.trunk = [whole.stem, whole.blocks]
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.trunk:
            x = part(x)
        return self.head(x)


def sgd(model: nn.Module, lr: float = 0.05, momentum: float = 0.9) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)


HOST = Host("digits-resnet", "cnn")
HEALTHY = Program(
    data=sets.digits,
    model=ResNet,
    setup=sgd,
    loss=nn.CrossEntropyLoss(),
    correct=multiclass,
    epochs=4,
    batch=32,
    update=zero_last,
)


def new_head_after(model: nn.Module) -> Optimizer:
    """The last layers are replaced for the new classes after the optimizer was made."""
    optimizer = sgd(model)
    model.blocks = ResNet().blocks
    model.head = nn.Linear(48, 10)
    return optimizer


def divided_by_zero(seed: int) -> Data:
    """Each pixel divided by its deviation; the pixels of the margin never change."""
    data = sets.raw_digits(seed)
    mean, std = data.x.mean(0), data.x.std(0)
    return replace(data, x=(data.x - mean) / std, x_val=(data.x_val - mean) / std)


def inverted(x: Tensor) -> Tensor:
    """Black on white instead of white on black."""
    return 1 - x


def sorted_by_class(data: Data, batch: int) -> Batches:
    rows = data.y.argsort()
    return DataLoader(TensorDataset(data.x[rows], data.y[rows]), batch_size=batch, drop_last=True)


def never_cleared(_model: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    loss.backward()
    optimizer.step()


def clipped_hard(model: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()


def cut_off(out: Tensor, y: Tensor) -> Tensor:
    """A loss that is cut off where "the model is good enough"."""
    return nn.functional.cross_entropy(out, y).clamp(min=1.2)


def new_each_batch(model: nn.Module, _optimizer: Optimizer, loss: Tensor) -> None:
    fresh = torch.optim.Adam(model.parameters(), lr=2e-3)
    fresh.zero_grad()
    loss.backward()
    fresh.step()


def adam(model: nn.Module) -> Optimizer:
    return torch.optim.Adam(model.parameters(), lr=2e-3)


ADAM = replace(HEALTHY, setup=adam)

CASES: tuple[Case, ...] = (
    HOST.healthy(HEALTHY),
    HOST.healthy(ADAM, "healthy-adam"),
    # Batches of two are what makes the statistics of batch norm noise.
    HOST.sick("small_batch_bn", "bn-pairs", replace(HEALTHY, batch=2, epochs=1), ("batch_too_small",)),
    HOST.sick("train_eval_slip", "no-train-again", replace(HEALTHY, train_again=False)),
    HOST.sick("train_eval_slip", "evaluated-in-training-mode", replace(HEALTHY, eval_mode=False)),
    HOST.sick("stale_optimizer", "new-head-after", replace(HEALTHY, setup=new_head_after)),
    HOST.sick("disconnected_params", "detached-body", replace(HEALTHY, model=DetachedBody)),
    HOST.sick("unregistered_params", "list-of-blocks", replace(HEALTHY, model=ListOfBlocks)),
    HOST.sick("nan_input", "divided-by-zero", replace(HEALTHY, data=divided_by_zero)),
    HOST.sick("train_val_mismatch", "inverted", replace(HEALTHY, val_transform=inverted)),
    HOST.sick("unshuffled_data", "sorted-by-class", replace(HEALTHY, loader=sorted_by_class)),
    HOST.sick("missing_zero_grad", "never-cleared", replace(HEALTHY, update=never_cleared)),
    HOST.sick("grad_clip_too_small", "clip-1e-3", replace(HEALTHY, update=clipped_hard)),
    HOST.sick("plateau", "loss-cut-off", replace(HEALTHY, loss=cut_off)),
    HOST.sick("optimizer_reset", "new-each-batch", replace(ADAM, update=new_each_batch)),
    HOST.sick("lr_too_high", "lr-10", replace(HEALTHY, setup=partial(sgd, lr=10.0))),
)
