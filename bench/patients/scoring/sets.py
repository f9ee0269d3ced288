"""The examples that the programs train on: real tables and images, made-up curves and sequences."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine, make_friedman1, make_multilabel_classification
from torch import Tensor
from torch.nn import functional as F

from luthier.data import load
from patients.scoring.program import Data


def _split(x: Tensor, y: Tensor, n_val: int, seed: int) -> Data:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    val, train = order[:n_val], order[n_val:]
    return Data(x[train], y[train], x[val], y[val])


def standardised(data: Data) -> Data:
    """Features with the training part's mean 0 and deviation 1."""
    mean, std = data.x.mean(0), data.x.std(0).clamp(min=1e-6)
    return Data((data.x - mean) / std, data.y, (data.x_val - mean) / std, data.y_val)


@cache
def _images(name: str) -> tuple[Tensor, Tensor]:
    x, y = load(name).train
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(99))[:12_000]
    return x[rows].float(), y[rows].long()


def raw_mnist(seed: int, n: int = 4000, n_val: int = 500) -> Data:
    """Digits as bytes 0 to 255, flattened."""
    x, y = _images("mnist")
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: n + n_val]
    return _split(x[rows].flatten(1), y[rows], n_val, seed)


def mnist(seed: int, n: int = 4000, n_val: int = 500) -> Data:
    """Digits with the usual constants subtracted and divided."""
    data = raw_mnist(seed, n, n_val)
    return Data((data.x / 255 - 0.1307) / 0.3081, data.y, (data.x_val / 255 - 0.1307) / 0.3081, data.y_val)


def fashion(seed: int, n: int = 1600, n_val: int = 400) -> Data:
    """Clothes at 14x14."""
    x, y = _images("fashion-mnist")
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: n + n_val]
    small = F.avg_pool2d(x[rows], 2) / 255
    return _split((small - 0.286) / 0.32, y[rows], n_val, seed)


def raw_digits(seed: int) -> Data:
    """The small digits of 8x8, values 0 to 16."""
    bunch = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1)
    return _split(x, torch.tensor(bunch.target), 397, seed)


def digits(seed: int) -> Data:
    """The small digits, centred."""
    data = raw_digits(seed)
    return Data((data.x - 5) / 6, data.y, (data.x_val - 5) / 6, data.y_val)


def raw_wine(seed: int) -> Data:
    """Thirteen measurements of wines of three growers, in their own units."""
    bunch = load_wine()
    return _split(torch.tensor(bunch.data, dtype=torch.float32), torch.tensor(bunch.target), 40, seed)


def wine(seed: int) -> Data:
    """The wines, standardised."""
    return standardised(raw_wine(seed))


def raw_cancer(seed: int) -> Data:
    """Thirty measurements of cell nuclei; 1 is benign."""
    bunch = load_breast_cancer()
    y = torch.tensor(bunch.target, dtype=torch.float32).unsqueeze(1)
    return _split(torch.tensor(bunch.data, dtype=torch.float32), y, 119, seed)


def cancer(seed: int) -> Data:
    """The cell nuclei, standardised."""
    return standardised(raw_cancer(seed))


def friedman(seed: int, n: int = 1500, n_val: int = 400) -> Data:
    """Ten features, of which five make a curved surface; features and target standardised."""
    x, y = make_friedman1(n + n_val, n_features=10, noise=1.0, random_state=seed)
    target = torch.tensor(y, dtype=torch.float32).unsqueeze(1)
    return standardised(_split(torch.tensor(x, dtype=torch.float32), (target - 14.4) / 4.9, n_val, seed))


def tags(seed: int) -> Data:
    """Counts of 30 words and the topics that a text is about, some of 8 (several at once)."""
    x, y = make_multilabel_classification(1500, n_features=30, n_classes=8, n_labels=3, length=60, random_state=seed)
    return standardised(_split(torch.tensor(x).float(), torch.tensor(y).float(), 300, seed))


def waves(seed: int, n: int = 1200, n_val: int = 300, length: int = 30) -> Data:
    """Noisy sine, square, saw and chirp waves [N, T, 1]: which shape is it?"""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (n + n_val,), generator=draw)
    time = torch.arange(length) / length
    pace = 2 + 2 * torch.rand(n + n_val, 1, generator=draw)
    turns = pace * time + torch.rand(n + n_val, 1, generator=draw)
    sine = torch.sin(2 * torch.pi * turns)
    shapes = torch.stack([sine, sine.sign(), 2 * (turns % 1) - 1, torch.sin(2 * torch.pi * turns * (0.5 + time))])
    x = shapes[y, torch.arange(n + n_val)] + 0.1 * torch.randn(n + n_val, length, generator=draw)
    return _split(x.unsqueeze(2), y, n_val, seed)


def prices(seed: int, n: int = 1200, n_val: int = 300, length: int = 24) -> Data:
    """A day of hourly demand with two rhythms and noise [N, T, 1]; the next hour is to be foretold [N, 1]."""
    draw = torch.Generator().manual_seed(seed)
    start = 1000 * torch.rand(n + n_val, 1, generator=draw)
    hours = start + torch.arange(length + 1)
    curve = torch.sin(2 * torch.pi * hours / 12) + 0.7 * torch.sin(2 * torch.pi * hours / 7.3)
    curve = curve + 0.1 * torch.randn(curve.shape, generator=draw)
    return _split(curve[:, :-1].unsqueeze(2), curve[:, -1:], n_val, seed)


def tokens(seed: int, n: int = 2000, n_val: int = 400, length: int = 16) -> Data:
    """Words of 20 tokens [N, T]: which of the tokens 1 to 4 comes most often? The others are filler; no ties."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(1, 20, (3 * (n + n_val), length), generator=draw)
    x = torch.where(torch.rand(x.shape, generator=draw) < 0.3, 1 + x % 4, x)
    counts = torch.stack([(x == token).sum(1) for token in range(1, 5)], 1)
    top = counts.topk(2, 1).values
    clear = torch.nonzero(top[:, 0] > top[:, 1]).flatten()[: n + n_val]
    return _split(x[clear], counts[clear].argmax(1), n_val, seed)
