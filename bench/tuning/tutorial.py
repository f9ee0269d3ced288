"""Training as Optuna's PyTorch example has it (optuna-examples, pytorch/pytorch_simple.py), for the tasks at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from tuning.nets import GRU
from tuning.tasks import Task, tensors

BATCHSIZE = 128
Loader = DataLoader[tuple[torch.Tensor, ...]]


def define_mlp(trial: Any, task: Task) -> nn.Module:
    """Number of layers, units and dropout of each layer: the example's own network."""
    layers: list[nn.Module] = [nn.Flatten()]
    in_features = task.inputs
    for i in range(trial.suggest_int("n_layers", 1, 3)):
        out_features = trial.suggest_int(f"n_units_l{i}", 4, 128)
        layers += [nn.Linear(in_features, out_features), nn.ReLU()]
        layers.append(nn.Dropout(trial.suggest_float(f"dropout_l{i}", 0.2, 0.5)))
        in_features = out_features
    return nn.Sequential(*layers, nn.Linear(in_features, task.outputs), nn.LogSoftmax(dim=1))


def define_cnn(trial: Any, task: Task) -> nn.Module:
    """The same for convolutions: number of blocks, channels and dropout of each."""
    layers, channels, size = list[nn.Module](), 1, int(task.inputs**0.5)
    for i in range(trial.suggest_int("n_layers", 1, 3)):
        out_channels = trial.suggest_int(f"n_channels_l{i}", 4, 32)
        layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers.append(nn.Dropout(trial.suggest_float(f"dropout_l{i}", 0.2, 0.5)))
        channels, size = out_channels, size // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size * size, task.outputs), nn.LogSoftmax(dim=1))


def define_gru(trial: Any, task: Task) -> nn.Module:
    """The same for texts: number of layers, units, dropout."""
    width = trial.suggest_int("n_units", 4, 64)
    sizes = {"depth": trial.suggest_int("n_layers", 1, 2), "dropout": trial.suggest_float("dropout", 0.2, 0.5)}
    return nn.Sequential(GRU(task.inputs, task.outputs, width, **sizes), nn.LogSoftmax(dim=1))


DEFINE: dict[str, Callable[[Any, Task], nn.Module]] = {"mlp": define_mlp, "cnn": define_cnn, "gru": define_gru}


def loaders(task: Task) -> tuple[Loader, Loader]:
    """Training and validation part through DataLoader at its default settings."""
    train, val = (TensorDataset(*tensors(task, part)) for part in ("train", "val"))
    return DataLoader(train, BATCHSIZE, shuffle=True), DataLoader(val, BATCHSIZE, shuffle=True)


def train(task: Task, trial: Any, train_loader: Loader, valid_loader: Loader, told: Callable[..., None]) -> float:
    """The example's objective; `told(epoch, accuracy, model)` hears of each epoch."""
    model = DEFINE[task.net](trial, task)
    name = trial.suggest_categorical("optimizer", ["Adam", "RMSprop", "SGD"])
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=trial.suggest_float("lr", 1e-5, 1e-1, log=True))
    accuracy = 0.0
    for epoch in range(task.epochs):
        model.train()
        for data, target in train_loader:
            optimizer.zero_grad()
            loss = F.nll_loss(model(data), target)
            loss.backward()
            optimizer.step()
        accuracy = validate(model, valid_loader)
        told(epoch, accuracy, model)
    return accuracy


def validate(model: nn.Module, loader: Loader) -> float:
    """Share of right answers."""
    model.eval()
    correct = 0
    with torch.no_grad():
        for data, target in loader:
            pred = model(data).argmax(dim=1, keepdim=True)
            correct += pred.eq(target.view_as(pred)).sum().item()
    return correct / len(loader.dataset)  # type: ignore[arg-type]
