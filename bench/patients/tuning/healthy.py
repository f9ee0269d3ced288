"""Healthy programs that look like something they are not."""

from __future__ import annotations

import copy
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patients.case import Case, Watch
from patients.tuning.data_faults import multi_label
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
    FunctionalMLP,
    TokenNet,
    WaveGRU,
    cancer,
    cnn,
    digit_images,
    digits,
    divided,
    fashion,
    friedman,
    mlp,
    waves,
)
from patients.tuning.loop import Split

lr_scheduler = torch.optim.lr_scheduler
adam, adamw, sgd = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD


@lru_cache(maxsize=1)
def pretrained() -> dict[str, Tensor]:
    """Weights of a CNN that was trained on the even digits."""
    torch.manual_seed(99)
    s = digit_images(99)
    keep = s.y % 2 == 0
    x, y = s.x[keep], s.y[keep]
    model = cnn(8, side=8)
    optimizer = adam(model.parameters(), lr=3e-3)
    for _ in range(6):
        for index in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
    return copy.deepcopy(model.state_dict())


def backbone() -> nn.Module:
    """A trained backbone, kept as it is, with a new head."""
    random = torch.get_rng_state()
    model = cnn(8, side=8)
    model.load_state_dict(pretrained())
    torch.set_rng_state(random)
    for parameter in model.parameters():
        parameter.requires_grad = False
    model[-1] = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    return model


def zero_last(model: nn.Sequential) -> nn.Sequential:
    """The last layer begins at zero: a usual choice, and no symmetry, since the layers before differ."""
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    return model


class NormMLP(nn.Module):
    """LayerNorm and residuals."""

    def __init__(self, inputs: int, outputs: int, width: int = 48):
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(3)])
        self.last = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + F.gelu(layer(norm(x)))
        return self.last(x)


class TimeFirst(nn.Module):
    """batch_first=False: time comes first inside."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 20)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(x.transpose(0, 1))
        return self.head(out[-1])


class LastOfLSTM(nn.Module):
    """Two layers of LSTM with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 16, num_layers=2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.lstm(x)
        return self.head(h[-1])


def bounded(seed: int) -> Split:
    """Targets in 0-1, for a sigmoid and MSE."""
    s = friedman(seed)
    return s._replace(y=(s.y / 6 + 0.5).clamp(0.02, 0.98), y_val=(s.y_val / 6 + 0.5).clamp(0.02, 0.98))


def seventy_thirty(seed: int) -> Split:
    """Two separable clouds, 30% in the second."""
    g = torch.Generator().manual_seed(seed)
    y = (torch.rand(1600, generator=g) < 0.3).long()
    x = torch.randn(1600, 8, generator=g)
    x[:, :4] += 1.6 * y.unsqueeze(1)
    return divided(x, y, 1200, seed)


def itself(seed: int) -> Split:
    s = digits(seed)
    return Split(s.x, s.x, s.x_val, s.x_val)


class Frozen(nn.Module):
    """Embeddings from elsewhere stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TokenNet()
        self.net.embedding.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class VAE(nn.Module):
    """Draws its code, and returns what the loss needs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(48, 6), nn.Linear(48, 6)
        self.decoder = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decoder(z), mean, log_variance


def vae(watch: Watch, seed: int) -> None:
    """A variational autoencoder; no targets."""
    torch.manual_seed(seed)
    x, _, xv, _ = digits(seed)
    model = VAE()
    optimizer = adam(model.parameters(), lr=2e-3)

    def loss_of(batch: Tensor) -> Tensor:
        out, mean, log_variance = model(batch)
        rebuilt = F.binary_cross_entropy_with_logits(out, batch, reduction="sum") / len(batch)
        kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()
        return rebuilt + 0.5 * kl

    w = watch(model, optimizer)
    for _epoch in range(16):
        model.train()
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss = loss_of(x[index])
            loss.backward()
            optimizer.step()
            w.step(loss, inputs=x[index])
        model.eval()
        with torch.no_grad():
            w.metrics(val_loss=loss_of(xv).item())


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(15, 24), nn.Linear(15, 24)
        self.out = nn.Sequential(nn.ReLU(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.out(torch.cat((self.left(left), self.right(right)), 1)).squeeze(1)


def two_inputs(watch: Watch, seed: int) -> None:
    """A model with two inputs, told as a tuple; targets of shape (n,)."""
    torch.manual_seed(seed)
    s = cancer(seed)
    y, yv = s.y.squeeze(1), s.y_val.squeeze(1)
    model = TwoInputs()
    optimizer = adam(model.parameters(), lr=1e-3)
    loss_fn = nn.BCEWithLogitsLoss()
    w = watch(model, optimizer, loss_fn)
    for _epoch in range(8):
        for index in torch.randperm(len(y)).split(16):
            left, right = s.x[index, :15], s.x[index, 15:]
            loss = loss_fn(model(left, right), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            w.step(loss, inputs=(left, right), targets=y[index])
        with torch.no_grad():
            out = model(s.x_val[:, :15], s.x_val[:, 15:])
            w.metrics(val_loss=loss_fn(out, yv).item(), val_accuracy=((out > 0) == (yv > 0.5)).float().mean().item())


def autocast(watch: Watch, seed: int) -> None:
    """bfloat16 autocast over float32 weights."""
    torch.manual_seed(seed)
    x, y, xv, yv = digits(seed)
    model = mlp((64, 64, 32, 10))
    optimizer = adam(model.parameters(), lr=2e-3)
    w = watch(model, optimizer, F.cross_entropy)
    for _epoch in range(12):
        model.train()
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(x[index]), y[index])
            loss.backward()
            optimizer.step()
            w.step(loss, inputs=x[index], targets=y[index])
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            w.metrics(val_loss=F.cross_entropy(model(xv), yv).item())


def evaluates_training_too(watch: Watch, seed: int) -> None:
    """Accuracy on the training part as well as on validation, twice an epoch."""
    torch.manual_seed(seed)
    x, y, xv, yv = fashion(seed)
    model = cnn(8)
    optimizer = sgd(model.parameters(), lr=0.03, momentum=0.9, nesterov=True)
    loss_fn = nn.CrossEntropyLoss()

    @torch.inference_mode()
    def accuracy(a: Tensor, b: Tensor) -> float:
        model.eval()
        right = sum(int((model(a[i : i + 250]).argmax(1) == b[i : i + 250]).sum()) for i in range(0, len(a), 250))
        model.train()
        return right / len(a)

    with watch(model, optimizer, loss_fn) as w:
        for _epoch in range(4):
            model.train()
            for i, index in enumerate(torch.randperm(len(x)).split(50)):
                optimizer.zero_grad()
                loss = loss_fn(model(x[index]), y[index])
                loss.backward()
                optimizer.step()
                w.step(loss, inputs=x[index], targets=y[index])
                if i % 15 == 14:
                    w.metrics(train_accuracy=accuracy(x[:500], y[:500]), val_accuracy=accuracy(xv, yv))


def nothing_told(watch: Watch, seed: int) -> None:
    """The shortest use: the watch is attached and never told anything but the loss."""
    torch.manual_seed(seed)
    s = waves(seed)
    model = WaveGRU()
    optimizer = torch.optim.NAdam(model.parameters(), lr=5e-3)
    w = watch(model, optimizer)
    for _ in range(200):
        index = torch.randint(0, len(s.x), (48,))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(s.x[index]), s.y[index])
        loss.backward()
        optimizer.step()
        w.step(loss)


def by_groups(watch: Watch, seed: int) -> None:
    """Two groups of parameters with an lr each, no decay for biases, and an average of weights for evaluation."""
    torch.manual_seed(seed)
    x, y, xv, yv = friedman(seed)
    model = FunctionalMLP((10, 64, 64, 1), F.silu)
    weights = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    groups: Any = [{"params": weights, "weight_decay": 0.01}, {"params": biases, "weight_decay": 0.0, "lr": 2e-3}]
    optimizer = adamw(groups, lr=4e-3)
    average = torch.optim.swa_utils.AveragedModel(model)
    w = watch(model, optimizer, F.mse_loss)
    for _epoch in range(16):
        for index in torch.randperm(len(x)).split(40):
            loss = F.mse_loss(model(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(model)
            w.step(loss, inputs=x[index], targets=y[index])
        with torch.no_grad():
            w.metrics(train_loss=loss.item(), val_loss=F.mse_loss(average(xv), yv).item())


def clip(most: float) -> Any:
    return lambda model: nn.utils.clip_grad_norm_(model.parameters(), most)


def warm_cosine(total: int) -> Any:
    def make(optimizer: torch.optim.Optimizer) -> Any:
        warm = lr_scheduler.LinearLR(optimizer, 0.05, 1.0, total_iters=total // 10)
        down = lr_scheduler.CosineAnnealingLR(optimizer, total - total // 10)
        return lr_scheduler.SequentialLR(optimizer, [warm, down], [total // 10])

    return make


CASES: tuple[Case, ...] = (
    DIGITS.tricky("label-smoothing", loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
    FASHION.tricky("accumulation", batch_size=25, accumulate=2, epochs=7),
    CONV_F.tricky("frozen-backbone", model=backbone, optimizer=partial(adam, lr=3e-3), epochs=8),
    DIGITS.tricky("zero-last-layer", model=lambda: zero_last(mlp((64, 64, 32, 10)))),
    FRIEDMAN.tricky(
        "bounded-targets",
        data=bounded,
        model=lambda: mlp((10, 64, 64, 1), last=(nn.Sigmoid,)),
        optimizer=partial(adam, lr=3e-3),
    ),
    FASHION.tricky(
        "warm-cosine", schedule=warm_cosine(210), schedule_each="batch", optimizer=partial(sgd, lr=0.05, momentum=0.9)
    ),
    DIGITS.tricky("dropout-half", model=lambda: mlp((64, 128, 64, 10), dropout=0.5), epochs=18),
    DIGITS_F.tricky(
        "layer-norm-batch-eight",
        model=lambda: NormMLP(64, 10),
        batch_size=8,
        epochs=3,
        optimizer=partial(adam, lr=1e-3),
    ),
    DIGITS_F.tricky(
        "weighted",
        loss=lambda out, y: F.cross_entropy(out, y, weight=torch.linspace(0.8, 1.2, 10)),
    ),
    DIGITS.own(None, "autocast", autocast),
    FASHION.own(None, "evaluates-training-too", evaluates_training_too),
    WAVES.tricky("time-first", model=TimeFirst, optimizer=partial(adam, lr=0.01), epochs=12),
    DIGITS.own(None, "vae", vae),
    DIGITS.tricky(
        "autoencoder",
        data=itself,
        model=lambda: mlp((64, 48, 12, 48, 64)),
        loss=nn.MSELoss(),
        score="none",
        optimizer=partial(adam, lr=3e-3),
    ),
    DIGITS_F.tricky(
        "multi-label",
        data=multi_label,
        model=lambda: FunctionalMLP((12, 32, 4)),
        loss=F.binary_cross_entropy_with_logits,
        score="labels",
        optimizer=partial(adam, lr=3e-3),
        epochs=12,
    ),
    CANCER.own(None, "two-inputs", two_inputs),
    DIGITS.tricky(
        "seventy-thirty", data=seventy_thirty, model=lambda: mlp((8, 24, 2)), epochs=8, optimizer=partial(adam, lr=2e-3)
    ),
    FASHION.tricky(
        "one-cycle",
        schedule=lambda o: lr_scheduler.OneCycleLR(o, 0.01, total_steps=210),
        schedule_each="batch",
    ),
    TOKENS_HOST.tricky("adamw-decay", optimizer=partial(adamw, lr=2e-3, weight_decay=0.05)),
    TOKENS_F.tricky("clipped", before_step=clip(1.0)),
    DIGITS.tricky("early-part", epochs=4),
    FASHION.tricky("early-part", epochs=3),
    FRIEDMAN_F.tricky("huber", loss=F.huber_loss, optimizer=partial(adam, lr=3e-3), epochs=14),
    DEEP.tricky("elu-sgd", model=lambda: mlp((2, 48, 48, 48, 1), nn.ELU), optimizer=partial(sgd, lr=0.1, momentum=0.9)),
    SERIES_F.tricky(
        "lstm",
        model=LastOfLSTM,
        optimizer=partial(adam, lr=8e-3),
        before_step=clip(1.0),
    ),
    TOKENS_HOST.tricky("frozen-embeddings", model=Frozen, epochs=10),
    WAVES.own(None, "nothing-told", nothing_told),
    FRIEDMAN_F.own(None, "parameter-groups", by_groups),
    FRIEDMAN.tricky("no-metrics", tells=("inputs", "targets", "loss_fn")),
    CONV_F.tricky("nothing-told", tells=()),
    CANCER.tricky("few-epochs-enough", optimizer=partial(adam, lr=3e-3, weight_decay=1e-3), epochs=5),
    FASHION.tricky("step-decay", schedule=lambda o: lr_scheduler.MultiStepLR(o, [4, 6], 0.2)),
    DIGITS_F.tricky(
        "nll", model=lambda: FunctionalMLP((64, 64, 32, 10), last=partial(F.log_softmax, dim=-1)), loss=F.nll_loss
    ),
)
