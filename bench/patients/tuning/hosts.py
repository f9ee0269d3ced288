"""The healthy programs of the tuning half: data, models and settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_digits, make_friedman1
from torch import Tensor, nn

from patients.tuning.loop import Host, Plan, Split

# ---------------------------------------------------------------- data


def divided(x: Tensor, y: Tensor, n_train: int, seed: int) -> Split:
    """Shuffled by the seed and cut."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1000 + seed))
    x, y = x[order], y[order]
    return Split(x[:n_train], y[:n_train], x[n_train:], y[n_train:])


@lru_cache(maxsize=1)
def _digits() -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def digits(seed: int) -> Split:
    """Handwritten digits, (n, 64), pixels scaled to 0-1."""
    x, y = _digits()
    return divided(x / 16, y, 1280, seed)


def digit_images(seed: int) -> Split:
    """The same as images (n, 1, 8, 8), standardised."""
    x, y = _digits()
    return divided(((x - x.mean()) / x.std()).view(-1, 1, 8, 8), y, 1280, seed)


@lru_cache(maxsize=1)
def fashion_raw() -> tuple[Tensor, Tensor]:
    """2,000 images of clothes at 14 x 14, pixels 0-255."""
    import luthier.data

    x, y = luthier.data.load("fashion-mnist").train
    small = F.avg_pool2d(x[:2000].float().view(-1, 1, 28, 28), 2)
    return small, y[:2000].long().clone()


def fashion(seed: int) -> Split:
    """Clothes (n, 1, 14, 14), standardised."""
    x, y = fashion_raw()
    return divided((x - x.mean()) / x.std(), y, 1500, seed)


def friedman_raw(seed: int, n: int = 1600, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Friedman's first regression: 10 features in 0-1, targets 0-30."""
    x, y = make_friedman1(n, noise=noise, random_state=seed)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)


def friedman(seed: int) -> Split:
    """Standardised; targets (n, 1)."""
    x, y = friedman_raw(seed)
    return divided((x - x.mean(0)) / x.std(0), ((y - y.mean()) / y.std()).unsqueeze(1), 1200, seed)


@lru_cache(maxsize=1)
def cancer_raw() -> tuple[Tensor, Tensor]:
    """Breast cancer: 30 features on very different scales, two classes (37% / 63%)."""
    x, y = load_breast_cancer(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def cancer(seed: int) -> Split:
    """Standardised; targets (n, 1) float."""
    x, y = cancer_raw()
    return divided((x - x.mean(0)) / x.std(0), y.float().unsqueeze(1), 400, seed)


def rings(seed: int, n: int = 1200) -> Split:
    """Two interleaved spirals in the plane; targets (n, 1) float."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (n,), generator=g)
    radius = torch.rand(n, generator=g).sqrt() * 2 + 0.2
    angle = radius * 2.2 + y * math.pi + 0.15 * torch.randn(n, generator=g)
    x = torch.stack((radius * angle.cos(), radius * angle.sin()), 1)
    return divided(x, y.float().unsqueeze(1), 900, seed)


def waves(seed: int, n: int = 1400, length: int = 24) -> Split:
    """Four wave forms of random phase and period with noise, (n, t, 1)."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (n,), generator=g)
    period = 6 + 6 * torch.rand(n, 1, generator=g)
    phase = (torch.arange(length) / period + torch.rand(n, 1, generator=g)) % 1
    sine = (2 * math.pi * phase).sin()
    forms = torch.stack((sine, sine.sign(), 2 * phase - 1, 1 - 2 * phase))
    x = forms[y, torch.arange(n)] + 0.1 * torch.randn(n, length, generator=g)
    return divided(x.unsqueeze(2), y, 1000, seed)


def series(seed: int, n: int = 1200, length: int = 20) -> Split:
    """Windows of a noisy sum of two oscillations; the target is the next value, (n, 1)."""
    g = torch.Generator().manual_seed(seed)
    t = torch.arange(n + length + 1, dtype=torch.float32)
    s = (t * 0.31).sin() + 0.6 * (t * 0.083 + 1).cos() + 0.1 * torch.randn(len(t), generator=g)
    windows = s.unfold(0, length + 1, 1)[:n]
    return divided(windows[:, :-1].unsqueeze(2), windows[:, -1:], 900, seed)


VOCABULARY, TOKENS, GROUPS = 40, 16, 4


def tokens(seed: int, n: int = 1600) -> Split:
    """Sentences of tokens; half of the tokens say nothing, the others belong to a group; the class is the majority."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, GROUPS, (n,), generator=g)
    group = torch.randint(0, GROUPS, (n, TOKENS), generator=g)
    group = torch.where(torch.rand(n, TOKENS, generator=g) < 0.55, y.unsqueeze(1), group)
    word = group * 5 + torch.randint(0, 5, (n, TOKENS), generator=g)
    noise = torch.randint(GROUPS * 5, VOCABULARY, (n, TOKENS), generator=g)
    x = torch.where(torch.rand(n, TOKENS, generator=g) < 0.5, word, noise)
    return divided(x, y, 1200, seed)


# ---------------------------------------------------------------- models


def mlp(
    sizes: tuple[int, ...], act: Callable[[], nn.Module] = nn.ReLU, dropout: float = 0.0, last: tuple[Any, ...] = ()
) -> nn.Sequential:
    """Linear layers with an activation (and dropout) between them, and `last` after the last."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(a, b))
        if i < len(sizes) - 2:
            layers.append(act())
            if dropout:
                layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, *(make() for make in last))


class FunctionalMLP(nn.Module):
    """The same in the F.* spelling."""

    def __init__(
        self,
        sizes: tuple[int, ...],
        act: Callable[[Tensor], Tensor] = F.relu,
        dropout: float = 0.0,
        last: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(sizes)])
        self.act, self.dropout, self.last = act, dropout, last

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.act(layer(x))
            if self.dropout:
                x = F.dropout(x, self.dropout, self.training)
        x = self.layers[-1](x)
        return x if self.last is None else self.last(x)


def cnn(channels: int = 10, norm: bool = True, side: int = 14, classes: int = 10) -> nn.Sequential:
    """Two convolutions with pooling."""
    c = channels
    left = side // 4
    return nn.Sequential(
        nn.Conv2d(1, c, 3, padding=1, bias=not norm),
        *([nn.BatchNorm2d(c)] if norm else []),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(c, 2 * c, 3, padding=1, bias=not norm),
        *([nn.BatchNorm2d(2 * c)] if norm else []),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * c * left * left, classes),
    )


class FunctionalCNN(nn.Module):
    """Convolutions with F.relu, F.max_pool2d and F.dropout."""

    def __init__(self, channels: int = 10, side: int = 8, classes: int = 10, dropout: float = 0.1):
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.fc1 = nn.Linear(2 * channels * (side // 4) ** 2, 32)
        self.fc2 = nn.Linear(32, classes)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(F.dropout(x, self.dropout, self.training))


class WaveGRU(nn.Module):
    """The last state of a GRU, read out by a linear layer."""

    def __init__(self, hidden: int = 20, classes: int = 4):
        super().__init__()
        self.gru = nn.GRU(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1])


class HandRNN(nn.Module):
    """A recurrent net written by hand: h = tanh(W x + U h)."""

    def __init__(self, hidden: int = 20, act: Callable[[Tensor], Tensor] = torch.tanh, out: int = 1, scale: float = 1):
        super().__init__()
        self.inner = nn.Linear(1, hidden)
        self.recurrent = nn.Linear(hidden, hidden, bias=False)
        nn.init.orthogonal_(self.recurrent.weight, scale)
        self.out = nn.Linear(hidden, out)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.recurrent.in_features)
        for t in range(x.shape[1]):
            h = self.act(self.inner(x[:, t]) + self.recurrent(h))
        return self.out(h)


class Attention(nn.Module):
    """Self-attention with several heads, written by hand."""

    def __init__(self, dim: int, heads: int = 2, scale: float | None = None, softmax_dim: int = -1):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.heads, self.softmax_dim = heads, softmax_dim
        self.scale = (dim // heads) ** -0.5 if scale is None else scale

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = F.softmax(q @ k.transpose(-2, -1) * self.scale, dim=self.softmax_dim)
        return self.out((weights @ v).transpose(1, 2).reshape(b, t, d))


class Block(nn.Module):
    """Attention and a feed-forward net, each normalised before and added."""

    def __init__(self, dim: int, dropout: float = 0.1, **attention: Any):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, **attention)
        self.feed = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.feed(self.norm2(x)))


class TokenNet(nn.Module):
    """A small Transformer encoder; the mean over tokens is classified."""

    def __init__(self, dim: int = 24, blocks: int = 1, pool: Callable[[Tensor], Tensor] | None = None, **block: Any):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, dim)
        self.position = nn.Parameter(torch.randn(TOKENS, dim) * 0.02)
        self.blocks = nn.ModuleList([Block(dim, **block) for _ in range(blocks)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, GROUPS)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x) + self.position
        for block in self.blocks:
            h = block(h)
        h = self.norm(h)
        h = h.mean(1) if self.pool is None else self.pool(h)
        return self.head(h)


class PlainTokenNet(nn.Module):
    """One attention layer in the F.* spelling, with scaled_dot_product_attention and F.layer_norm."""

    def __init__(self, dim: int = 24):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, dim)
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.head = nn.Linear(dim, GROUPS)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        n = F.layer_norm(h, h.shape[-1:])
        h = h + F.scaled_dot_product_attention(self.q(n), self.k(n), self.v(n))
        h = h + self.down(F.gelu(self.up(F.layer_norm(h, h.shape[-1:]))))
        return self.head(F.dropout(h.mean(1), 0.1, self.training))


def xavier(model: nn.Module, gain: float = 5 / 3) -> nn.Module:
    """Xavier initialisation of all linear layers."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, gain)
            nn.init.zeros_(layer.bias)
    return model


# ---------------------------------------------------------------- hosts

adam = torch.optim.Adam
sgd = torch.optim.SGD


DIGITS = Host(
    "digits-mlp",
    Plan(
        data=digits,
        model=lambda: mlp((64, 64, 32, 10)),
        optimizer=partial(adam, lr=2e-3),
        loss=nn.CrossEntropyLoss(),
        epochs=16,
        batch_size=64,
    ),
    "mlp",
)
DIGITS_F = Host(
    "digits-mlp-f",
    Plan(
        data=digits,
        model=lambda: FunctionalMLP((64, 64, 32, 10), dropout=0.1),
        optimizer=partial(adam, lr=2e-3),
        loss=F.cross_entropy,
        epochs=16,
        batch_size=64,
    ),
    "mlp",
    "functional",
)
FRIEDMAN = Host(
    "friedman-mlp",
    Plan(
        data=friedman,
        model=lambda: mlp((10, 64, 64, 1)),
        optimizer=partial(sgd, lr=0.02, momentum=0.9),
        loss=nn.MSELoss(),
        epochs=20,
        batch_size=50,
        score="none",
    ),
    "mlp",
)
FRIEDMAN_F = Host(
    "friedman-mlp-f",
    Plan(
        data=friedman,
        model=lambda: FunctionalMLP((10, 64, 64, 1)),
        optimizer=partial(sgd, lr=0.02, momentum=0.9),
        loss=F.mse_loss,
        epochs=20,
        batch_size=50,
        score="none",
        loader="indices",
    ),
    "mlp",
    "functional",
)
CANCER = Host(
    "cancer-mlp",
    Plan(
        data=cancer,
        model=lambda: mlp((30, 32, 16, 1), dropout=0.1),
        optimizer=partial(adam, lr=1e-3, weight_decay=1e-4),
        loss=nn.BCEWithLogitsLoss(),
        epochs=9,
        batch_size=16,
        score="binary",
    ),
    "mlp",
)
FASHION = Host(
    "fashion-cnn",
    Plan(
        data=fashion,
        model=lambda: cnn(8),
        optimizer=partial(torch.optim.AdamW, lr=2e-3, weight_decay=0.01),
        loss=nn.CrossEntropyLoss(),
        epochs=7,
        batch_size=50,
    ),
    "cnn",
)
CONV_F = Host(
    "digits-conv-f",
    Plan(
        data=digit_images,
        model=FunctionalCNN,
        optimizer=partial(sgd, lr=0.05, momentum=0.9),
        loss=F.cross_entropy,
        epochs=10,
        batch_size=40,
        loader="indices",
    ),
    "cnn",
    "functional",
)
DEEP = Host(
    "rings-deep",
    Plan(
        data=rings,
        model=lambda: xavier(mlp((2, 32, 32, 32, 32, 32, 1), nn.Tanh)),
        optimizer=partial(adam, lr=2e-3),
        loss=nn.BCEWithLogitsLoss(),
        epochs=22,
        batch_size=45,
        score="binary",
    ),
    "mlp",
)
DEEP_F = Host(
    "rings-deep-f",
    Plan(
        data=rings,
        model=lambda: xavier(FunctionalMLP((2, 32, 32, 32, 32, 32, 1), torch.tanh)),
        optimizer=partial(torch.optim.RMSprop, lr=1e-3),
        loss=F.binary_cross_entropy_with_logits,
        epochs=22,
        batch_size=45,
        score="binary",
        loader="indices",
    ),
    "mlp",
    "functional",
)
WAVES = Host(
    "waves-gru",
    Plan(
        data=waves,
        model=WaveGRU,
        optimizer=partial(adam, lr=8e-3),
        loss=nn.CrossEntropyLoss(),
        epochs=12,
        batch_size=50,
        loader="indices",
        before_step=lambda model: nn.utils.clip_grad_norm_(model.parameters(), 5.0),
    ),
    "rnn",
)
SERIES_F = Host(
    "series-rnn-f",
    Plan(
        data=series,
        model=HandRNN,
        optimizer=partial(adam, lr=4e-3),
        loss=F.mse_loss,
        epochs=9,
        batch_size=30,
        score="none",
        loader="indices",
    ),
    "rnn",
    "functional",
)
TOKENS_HOST = Host(
    "tokens-attention",
    Plan(
        data=tokens,
        model=TokenNet,
        optimizer=partial(torch.optim.AdamW, lr=2e-3, weight_decay=0.01),
        loss=nn.CrossEntropyLoss(),
        epochs=9,
        batch_size=40,
        schedule=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / 20)),
        schedule_each="batch",
    ),
    "attention",
)
TOKENS_F = Host(
    "tokens-attention-f",
    Plan(
        data=tokens,
        model=PlainTokenNet,
        optimizer=partial(adam, lr=3e-3),
        loss=F.cross_entropy,
        epochs=9,
        batch_size=40,
        loader="indices",
    ),
    "attention",
    "functional",
)

HOSTS = (
    DIGITS,
    DIGITS_F,
    FRIEDMAN,
    FRIEDMAN_F,
    CANCER,
    FASHION,
    CONV_F,
    DEEP,
    DEEP_F,
    WAVES,
    SERIES_F,
    TOKENS_HOST,
    TOKENS_F,
)
