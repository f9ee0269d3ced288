"""Faults of the training loop and of the optimizer that it holds."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patients.case import Case, Watch
from patients.tuning.hosts import (
    CANCER,
    CONV_F,
    DEEP,
    DIGITS,
    DIGITS_F,
    FASHION,
    FRIEDMAN,
    FRIEDMAN_F,
    SERIES_F,
    TOKENS_F,
    TOKENS_HOST,
    WAVES,
    FunctionalCNN,
    WaveGRU,
    cnn,
    digits,
    friedman,
    mlp,
)

lr_scheduler = torch.optim.lr_scheduler


def new_head(model: nn.Module) -> None:
    """Fine-tuning as many write it: the head is replaced, but the optimizer was built before."""
    model.head = nn.Linear(model.head.in_features, model.head.out_features)
    nn.init.zeros_(model.head.bias)


def new_layers(model: nn.Sequential) -> None:
    """Every layer is built anew (a reset of the weights by a function that replaces the modules)."""
    for i, layer in enumerate(model):
        if isinstance(layer, nn.Linear):
            model[i] = nn.Linear(layer.in_features, layer.out_features)


def forgotten_zero_grad(watch: Watch, seed: int) -> None:
    """A loop by hand over a regression, with the metrics left out."""
    torch.manual_seed(seed)
    x, y, _, _ = friedman(seed)
    model = mlp((10, 64, 64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    w = watch(model, optimizer, nn.MSELoss())
    for _ in range(300):
        index = torch.randint(0, len(x), (50,))
        loss = ((model(x[index]) - y[index]) ** 2).mean()
        loss.backward()
        optimizer.step()
        w.step(loss, inputs=x[index], targets=y[index])


def model_made_again(watch: Watch, seed: int) -> None:
    """A notebook in which the cell of the model ran again after the cell of the optimizer."""
    torch.manual_seed(seed)
    x, y, xv, yv = digits(seed)
    model = mlp((64, 64, 32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    model = mlp((64, 64, 32, 10))
    loss_fn = nn.CrossEntropyLoss()
    with watch(model, optimizer, loss_fn) as w:
        for _epoch in range(10):
            for index in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                loss = loss_fn(model(x[index]), y[index])
                loss.backward()
                optimizer.step()
                w.step(loss, inputs=x[index], targets=y[index])
            with torch.no_grad():
                w.metrics(val_loss=loss_fn(model(xv), yv).item())


def adam_in_loop(watch: Watch, seed: int) -> None:
    """The optimizer is built inside a function train_step()."""
    torch.manual_seed(seed)
    x, y, xv, yv = digits(seed)
    model = mlp((64, 64, 32, 10))

    def train_step(xb: Tensor, yb: Tensor) -> Tensor:
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(xb), yb)
        loss.backward()
        optimizer.step()
        return loss

    w = watch(model, torch.optim.Adam(model.parameters(), lr=2e-3))
    for _epoch in range(15):
        for index in torch.randperm(len(x)).split(64):
            loss = train_step(x[index], y[index])
            w.step(loss, inputs=x[index], targets=y[index])
        with torch.no_grad():
            w.metrics(val_loss=F.cross_entropy(model(xv), yv).item())


class Slow(torch.utils.data.Dataset):
    """Reads one example after the other from somewhere slow."""

    def __init__(self, x: Tensor, y: Tensor, wait_s: float):
        self.x, self.y, self.wait_s = x, y, wait_s

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        time.sleep(self.wait_s)
        return self.x[i], self.y[i]


def slow_batches(watch: Watch, seed: int) -> None:
    """Every batch is decoded from bytes in Python just before it is needed."""
    torch.manual_seed(seed)
    x, y, xv, yv = digits(seed)
    raw = [bytes((row * 16).to(torch.uint8).tolist()) for row in x]
    model = mlp((64, 32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    w = watch(model, optimizer, F.cross_entropy)
    for _epoch in range(6):
        for index in torch.randperm(len(x)).split(64):
            rows = []
            for i in index.tolist():
                for _ in range(6):  # a decoder of its own makes
                    row = [byte / 16 for byte in raw[i]]
                rows.append(torch.tensor(row))
            xb = torch.stack(rows)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(xb), y[index])
            loss.backward()
            optimizer.step()
            w.step(loss, inputs=xb, targets=y[index])
        with torch.no_grad():
            w.metrics(val_loss=F.cross_entropy(model(xv), yv).item())


def train_mode_left(watch: Watch, seed: int) -> None:
    """A model with much dropout is never put into eval mode for validation."""
    torch.manual_seed(seed)
    x, y, xv, yv = digits(seed)
    model = mlp((64, 96, 48, 10), dropout=0.4)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loss_fn = nn.CrossEntropyLoss()
    w = watch(model, optimizer, loss_fn)
    for _epoch in range(12):
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss = loss_fn(model(x[index]), y[index])
            loss.backward()
            optimizer.step()
            w.step(loss, inputs=x[index], targets=y[index])
        with torch.no_grad():
            out = model(xv)
            w.metrics(val_loss=loss_fn(out, yv).item(), val_acc=(out.argmax(1) == yv).float().mean().item())


class AlwaysDropout(FunctionalCNN):
    """F.dropout without training=self.training: it stays on in evaluation (its default is training=True)."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(F.dropout(x, 0.5))


def frozen_gru(model: WaveGRU) -> Any:
    """Only the head is trained, on features that were never trained."""
    for parameter in model.gru.parameters():
        parameter.requires_grad = False
    return model.parameters()


def frozen_convolutions(model: nn.Module) -> Any:
    for parameter in list(model.parameters())[:-2]:
        parameter.requires_grad_(False)
    return filter(lambda p: p.requires_grad, model.parameters())


def clip(most: float) -> Any:
    return lambda model: nn.utils.clip_grad_norm_(model.parameters(), most)


CASES: tuple[Case, ...] = (
    # gradients are never cleared
    FRIEDMAN.own("missing_zero_grad", "no-zero-grad", forgotten_zero_grad),
    FASHION.sick("missing_zero_grad", "no-zero-grad", zero_grad="never"),
    WAVES.sick("missing_zero_grad", "no-zero-grad", zero_grad="never"),
    # gradients are cleared between backward and step; the step is never made; no backward
    DIGITS.sick("no_learning", "cleared-too-late", zero_grad="after_backward"),
    FRIEDMAN_F.sick("no_learning", "no-backward", backward=False),
    TOKENS_F.sick("no_learning", "no-step", step=False),
    # the optimizer is made again
    DIGITS.own("optimizer_reset", "adam-in-train-step", adam_in_loop),
    FRIEDMAN.sick("optimizer_reset", "sgd-each-step", renew="step"),
    FASHION.sick("optimizer_reset", "adamw-each-step", renew="step"),
    # the optimizer holds other parameters than the model
    DIGITS.own("stale_optimizer", "model-made-again", model_made_again),
    WAVES.sick("stale_optimizer", "new-head", after_optimizer=new_head),
    CANCER.sick("stale_optimizer", "layers-replaced", after_optimizer=new_layers),
    # a schedule that ends the training early
    DIGITS_F.sick(
        "lr_schedule_collapse",
        "exponential-per-batch",
        schedule=lambda o: lr_scheduler.ExponentialLR(o, 0.9),
        schedule_each="batch",
    ),
    CONV_F.sick(
        "lr_schedule_collapse",
        "step-each-epoch",
        schedule=lambda o: lr_scheduler.StepLR(o, step_size=1, gamma=0.1),
    ),
    TOKENS_HOST.sick(
        "lr_schedule_collapse",
        "linear-wrong-total",
        schedule=lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=9),
        schedule_each="batch",
    ),
    # clipping to nothing
    FRIEDMAN.sick("grad_clip_too_small", "norm", before_step=clip(0.003)),
    CONV_F.sick(
        "grad_clip_too_small",
        "value",
        before_step=lambda model: nn.utils.clip_grad_value_(model.parameters(), 1e-5),
    ),
    WAVES.sick(
        "grad_clip_too_small",
        "norm-sgd",
        optimizer=partial(torch.optim.SGD, lr=0.2, momentum=0.9),
        before_step=clip(1e-3),
    ),
    # parameters that do not take part
    WAVES.sick("frozen_params", "gru-frozen", trainable=frozen_gru),
    FASHION.sick("frozen_params", "only-head-given", trainable=lambda model: model[-1].parameters()),
    CONV_F.sick("frozen_params", "all-but-head", trainable=frozen_convolutions),
    DEEP.sick("frozen_params", "last-layer-given", trainable=lambda model: model[-1].parameters()),
    # modes
    FASHION.sick("train_eval_slip", "batch-norm-in-train-mode", eval_mode=False, batch_size=50),
    FASHION.sick(
        "train_eval_slip",
        "trained-in-eval-mode",
        train_mode="never",
        model=lambda: nn.Sequential(*cnn(8)[:-1], nn.Dropout(0.25), cnn(8)[-1]),
    ),
    DIGITS.own("train_eval_slip", "dropout-in-evaluation", train_mode_left),
    CONV_F.sick("train_eval_slip", "functional-dropout", model=AlwaysDropout),
    DIGITS_F.sick("train_eval_slip", "train-once", train_mode="once", epochs=16),
    # waiting for data
    CANCER.sick("input_bottleneck", "slow-reader", dataset=partial(Slow, wait_s=2e-4), epochs=6),
    DIGITS.own("input_bottleneck", "decoded-in-python", slow_batches),
    SERIES_F.sick(
        "input_bottleneck",
        "slow-reader",
        dataset=partial(Slow, wait_s=3e-4),
        loader="loader",
        epochs=5,
    ),
)
