"""Faults of the network: what it computes, how its parts hang together, how it begins."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patients.case import Case
from patients.tuning.hosts import (
    CANCER,
    CONV_F,
    DEEP,
    DIGITS,
    DIGITS_F,
    FASHION,
    FRIEDMAN,
    FRIEDMAN_F,
    GROUPS,
    SERIES_F,
    TOKENS_F,
    TOKENS_HOST,
    VOCABULARY,
    WAVES,
    FunctionalCNN,
    FunctionalMLP,
    HandRNN,
    TokenNet,
    WaveGRU,
    cnn,
    friedman,
    mlp,
    series,
    waves,
)


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# ---- gradients and activations through depth and time


def sigmoid_convolutions() -> nn.Sequential:
    """Seven convolutions with sigmoids, as in a book of 1998."""
    layers: list[nn.Module] = []
    for i in range(7):
        layers += [nn.Conv2d(1 if i == 0 else 8, 8, 3, padding=1), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 49, 10))


class LongRNN(HandRNN):
    """A ReLU recurrence that begins as the identity (Le et al. 2015), over a long sequence and without clipping."""

    def __init__(self, hidden: int = 24, out: int = 1):
        super().__init__(hidden, torch.relu, out)
        nn.init.eye_(self.recurrent.weight)


class Polynomial(nn.Module):
    """A recurrence that multiplies the state with what it reads (a gate without sigmoid)."""

    def __init__(self, hidden: int = 16):
        super().__init__()
        self.read, self.gate = nn.Linear(1, hidden), nn.Linear(1, hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.read(x[:, 0]))
        for t in range(1, x.shape[1]):
            h = h + (1 + self.gate(x[:, t])) * F.relu(self.mix(h)) + self.read(x[:, t])
        return self.out(h)


class Tower(nn.Module):
    """Residual blocks whose branch is as large as the trunk, without any normalisation: every block doubles."""

    def __init__(self, blocks: int = 16, width: int = 32, branch: float = 1.0):
        super().__init__()
        self.first = nn.Linear(10, width)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(blocks)]
        )
        for block in self.blocks:
            for layer in (block[0], block[2]):
                nn.init.kaiming_normal_(layer.weight)
        self.last = nn.Linear(width, 1)
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for block in self.blocks:
            x = x + self.branch * block(x)
        return self.last(x)


class GrowingCNN(FunctionalCNN):
    """Skip connections that add the input again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.ModuleList([nn.Conv2d(20, 20, 3, padding=1) for _ in range(8)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.relu(self.conv2(x))
        for conv in self.more:
            x = 2 * x + F.relu(conv(x))
        x = F.relu(self.fc1(F.max_pool2d(x, 2).flatten(1)))
        return self.fc2(x)


# ---- dead, flat and misplaced activations


def negative_biases(model: nn.Sequential) -> nn.Sequential:
    """Thresholds "to make it sparse"."""
    for layer in list(model)[:-1]:
        if isinstance(layer, nn.Linear):
            nn.init.constant_(layer.bias, -2.0)
    return model


class WrongSign(nn.Module):
    """The second ReLU sees only what is not positive."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 3, padding=1), nn.Conv2d(10, 20, 3, padding=1)
        self.fc = nn.Linear(20 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = -F.relu(self.conv2(x))
        return self.fc(F.max_pool2d(F.relu(x), 2).flatten(1))


class Hot(nn.Module):
    """tanh with a steepness that was meant for another scale."""

    def __init__(self, gain: float):
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.gain * x)


# ---- initialisation


def initialised(model: nn.Module, how: Callable[[Tensor], Any], *, biases: bool = False) -> nn.Module:
    """Every weight (and bias) set by `how`."""
    for parameter in model.parameters():
        if parameter.ndim > 1 or biases:
            how(parameter.data)
    return model


# ---- loss and outputs


class LogSoftmaxed(nn.Module):
    """A GRU that ends in sigmoids before a loss with logits."""

    def __init__(self, last: Callable[[Tensor], Tensor]):
        super().__init__()
        self.net, self.last = WaveGRU(), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.net(x))


class HalfNet(nn.Module):
    """Part of the way is cut."""

    def __init__(self, cut: str):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU())
        self.head = nn.Linear(24, 10)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        if self.cut == "no_grad":
            with torch.no_grad():
                features = self.encoder(x)
        else:
            features = self.encoder(x).detach()
        return self.head(features)


class DetachedState(HandRNN):
    """The state is detached at every step of the sequence, and before the read-out."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.recurrent.in_features)
        for t in range(x.shape[1]):
            h = self.act(self.inner(x[:, t]) + self.recurrent(h))
        return self.out(h.detach())


class ForgottenBranch(nn.Module):
    """The second branch is computed and never used."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3))
        self.right = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool2d(3))
        self.fc = nn.Linear(72, 10)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x).flatten(1), self.right(x).flatten(1)
        right = left  # was: torch.cat((left, right), 1)
        return self.fc(right)


class ListOfLayers(nn.Module):
    """Layers in a plain list."""

    def __init__(self, sizes: tuple[int, ...]):
        super().__init__()
        self.inner = [nn.Linear(a, b) for a, b in pairwise(sizes[:-1])]
        self.head = nn.Linear(sizes[-2], sizes[-1])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.inner:
            x = F.relu(layer(x))
        return self.head(x)


class DictOfConvs(nn.Module):
    """Convolutions in a plain dict."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = {"first": nn.Conv2d(1, 8, 3, padding=1), "second": nn.Conv2d(8, 16, 3, padding=1)}
        self.fc = nn.Linear(16 * 9, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs.values():
            x = F.max_pool2d(F.relu(conv(x)), 2)
        return self.fc(x.flatten(1))


class PlainTensor(nn.Module):
    """A weight that is a plain tensor with requires_grad, no Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 24)
        self.up = torch.randn(24, 48, requires_grad=True)
        self.down = torch.randn(48, 8, requires_grad=True)
        self.head = nn.Linear(8, GROUPS)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x).mean(1)
        return self.head(F.relu(h @ self.up) @ self.down)


class LinearRNN(HandRNN):
    def __init__(self) -> None:
        super().__init__(20, lambda h: h)


class TwoSoftmax(TokenNet):
    """Ends in a softmax over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(super().forward(x), dim=0)


def nll_of_probabilities(out: Tensor, y: Tensor) -> Tensor:
    return F.nll_loss(torch.log(out + 1e-9), y)


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """A loss by hand."""
    return ((prediction - target) ** 2).mean()


def flat(make: Callable[[int], Any]) -> Callable[[int], Any]:
    """Targets of shape (n,)."""

    def of(seed: int) -> Any:
        s = make(seed)
        return s._replace(y=s.y.flatten(), y_val=s.y_val.flatten())

    return of


def smaller(make: Callable[[int], Any], scale: float, shift: float = 0.0) -> Callable[[int], Any]:
    def of(seed: int) -> Any:
        s = make(seed)
        return s._replace(y=s.y * scale + shift, y_val=s.y_val * scale + shift)

    return of


adam, sgd = torch.optim.Adam, torch.optim.SGD

# SYMPTOMS says "sigmoid in a deep stack" under bad_activation too; the issue names the deep-sigmoid patient vanishing.
SIGMOID = ("bad_activation",)
# Biases that keep every unit below zero from the start are also an initialisation that does not fit.
BIASES = ("bad_init",)

# A recurrence that multiplies state and gradient alike: whatever grows forwards grows backwards.
RECURRENCE = ("exploding_activation",)

CASES: tuple[Case, ...] = (
    DEEP.sick(
        "vanishing_gradient",
        "sigmoid",
        model=lambda: mlp((2, 32, 32, 32, 32, 32, 32, 1), nn.Sigmoid),
        accepts=SIGMOID,
    ),
    DIGITS_F.sick(
        "vanishing_gradient",
        "sigmoid-eight",
        model=lambda: FunctionalMLP((64, 48, 48, 48, 48, 48, 48, 48, 10), torch.sigmoid),
        accepts=SIGMOID,
    ),
    FASHION.sick("vanishing_gradient", "sigmoid-convolutions", model=sigmoid_convolutions, accepts=SIGMOID),
    SERIES_F.sick(
        "exploding_gradient",
        "relu-recurrence",
        data=partial(series, length=60),
        model=LongRNN,
        optimizer=partial(sgd, lr=0.01),
        epochs=5,
        accepts=RECURRENCE,
    ),
    WAVES.sick(
        "exploding_gradient",
        "multiplied-state",
        data=partial(waves, length=30),
        model=Polynomial,
        before_step=None,
        epochs=6,
        accepts=RECURRENCE,
    ),
    FRIEDMAN.sick("exploding_activation", "tower", model=Tower, optimizer=partial(adam, lr=1e-3), epochs=10),
    CONV_F.sick("exploding_activation", "doubled-skips", model=GrowingCNN, epochs=6),
    DIGITS.sick("dead_relu", "negative-biases", model=lambda: negative_biases(mlp((64, 64, 32, 10))), accepts=BIASES),
    CONV_F.sick("dead_relu", "wrong-sign", model=WrongSign),
    CANCER.sick(
        "dead_relu",
        "relu-of-minus-square",
        model=lambda: mlp((30, 32, 16, 1), lambda: Apply(lambda x: F.relu(-x.square()))),
    ),
    FRIEDMAN.sick("saturated_activation", "steep-tanh", model=lambda: mlp((10, 64, 64, 64, 1), lambda: Hot(60.0))),
    TOKENS_HOST.sick("saturated_activation", "scores-times-dim", model=lambda: TokenNet(scale=400.0)),
    SERIES_F.sick(
        "saturated_activation",
        "steep-sigmoid",
        model=lambda: HandRNN(20, lambda h: torch.sigmoid(h * 50)),
    ),
    FRIEDMAN.sick("bad_activation", "exp", model=lambda: mlp((10, 64, 64, 64, 1), lambda: Apply(torch.exp))),
    DIGITS.sick("bad_activation", "softmax-inside", model=lambda: mlp((64, 64, 32, 10), partial(nn.Softmax, dim=1))),
    SERIES_F.sick("bad_activation", "square", model=lambda: HandRNN(20, torch.square)),
    DEEP.sick("missing_nonlinearity", "linear", model=lambda: mlp((2, 32, 32, 1), nn.Identity)),
    CONV_F.sick(
        "missing_nonlinearity",
        "linear-convolutions",
        model=lambda: nn.Sequential(
            nn.Conv2d(1, 10, 3, padding=1),
            nn.Conv2d(10, 20, 3, stride=2, padding=1),
            nn.Flatten(),
            nn.Linear(320, 32),
            nn.Linear(32, 10),
        ),
    ),
    FRIEDMAN_F.sick(
        "missing_nonlinearity", "relu-forgotten", model=lambda: FunctionalMLP((10, 64, 64, 1), lambda x: x)
    ),
    # how it begins
    DEEP.sick(
        "bad_init",
        "normal-one",
        model=lambda: initialised(mlp((2, 32, 32, 32, 32, 32, 1), nn.Tanh), partial(nn.init.normal_, std=1.5)),
    ),
    DIGITS_F.sick(
        "bad_init",
        "normal-thousandth",
        model=lambda: initialised(FunctionalMLP((64, 64, 64, 64, 10)), partial(nn.init.normal_, std=1e-3)),
    ),
    FASHION.sick(
        "bad_init",
        "uniform-one",
        model=lambda: initialised(cnn(8, norm=False), partial(nn.init.uniform_, a=-1.0, b=1.0)),
    ),
    DIGITS.sick(
        "symmetric_init",
        "constant",
        model=lambda: initialised(mlp((64, 64, 32, 10)), partial(nn.init.constant_, val=0.03)),
    ),
    CONV_F.sick("symmetric_init", "zeros", model=lambda: initialised(FunctionalCNN(), nn.init.zeros_, biases=True)),
    FRIEDMAN_F.sick(
        "symmetric_init",
        "one-over-n",
        model=lambda: initialised(
            FunctionalMLP((10, 64, 64, 1)), lambda p: nn.init.constant_(p, 1 / p.shape[-1]), biases=True
        ),
    ),
    # what comes out
    FRIEDMAN.sick("output_range_mismatch", "sigmoid", model=lambda: mlp((10, 64, 64, 1), last=(nn.Sigmoid,))),
    DIGITS_F.sick(
        "output_range_mismatch", "relu-on-logits", model=lambda: FunctionalMLP((64, 64, 32, 10), last=F.relu)
    ),
    SERIES_F.sick(
        "output_range_mismatch",
        "tanh-before-large",
        data=smaller(series, 4.0),
        model=lambda: nn.Sequential(HandRNN(), nn.Tanh()),
    ),
    DIGITS.sick(
        "softmax_before_ce",
        "nn-softmax",
        model=lambda: mlp((64, 64, 32, 10), last=(partial(nn.Softmax, dim=1),)),
    ),
    CONV_F.sick(
        "softmax_before_ce",
        "torch-softmax",
        loss=lambda out, y: F.cross_entropy(torch.softmax(out, -1), y),
    ),
    WAVES.sick("softmax_before_ce", "functional", model=lambda: LogSoftmaxed(lambda x: F.softmax(x, dim=-1))),
    # The binary sister: sigmoid before a loss that applies it again.
    CANCER.sick(
        "softmax_before_ce",
        "sigmoid-twice",
        model=lambda: mlp((30, 32, 16, 1), last=(nn.Sigmoid,)),
        accepts=("output_range_mismatch",),
    ),
    TOKENS_F.sick("softmax_wrong_dim", "over-batch", model=TwoSoftmax, loss=nll_of_probabilities),
    TOKENS_HOST.sick("softmax_wrong_dim", "over-queries", model=lambda: TokenNet(softmax_dim=-2)),
    DIGITS.sick(
        "softmax_wrong_dim",
        "log-softmax-over-batch",
        model=lambda: mlp((64, 64, 32, 10), last=(partial(nn.LogSoftmax, dim=0),)),
        loss=nn.NLLLoss(),
    ),
    FRIEDMAN.sick("shape_broadcast", "flat-targets", data=flat(friedman)),
    SERIES_F.sick("shape_broadcast", "by-hand", data=flat(series), loss=squared_error),
    FRIEDMAN_F.sick("shape_broadcast", "l1-squeezed", loss=lambda out, y: F.l1_loss(out.squeeze(), y)),
    # what hangs together
    DIGITS.sick("disconnected_params", "encoder-in-no-grad", model=lambda: HalfNet("no_grad")),
    DIGITS_F.sick("disconnected_params", "detached-features", model=lambda: HalfNet("detach")),
    SERIES_F.sick("disconnected_params", "detached-state", model=DetachedState),
    FASHION.sick("disconnected_params", "forgotten-branch", model=ForgottenBranch),
    DIGITS_F.sick("unregistered_params", "list", model=lambda: ListOfLayers((64, 48, 48, 32, 10))),
    FASHION.sick("unregistered_params", "dict", model=DictOfConvs),
    TOKENS_F.sick("unregistered_params", "plain-tensor", model=PlainTensor),
)
