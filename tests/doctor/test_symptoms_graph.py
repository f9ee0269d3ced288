"""Rules that read the graph of a look: sick programs and their healthy twins, trained a few steps under the watch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import luthier
from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms import SYMPTOMS, underfit
from luthier.doctor.symptoms.courses import poor_below
from luthier.doctor.vitals import Vitals

RULES = (
    "softmax_before_ce",
    "softmax_wrong_dim",
    "missing_nonlinearity",
    "output_range_mismatch",
    "wrong_loss",
    "shape_broadcast",
    "loss_scale",
    "bad_activation",
    "disconnected_params",
    "unregistered_params",
    "frozen_params",
    "stale_optimizer",
)
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
Program = Callable[[], Vitals]


def found(vitals: Vitals, names: Sequence[str] = RULES) -> list[Finding]:
    answers = [SYMPTOMS[name](vitals) for name in names]
    return [finding for answer in answers if not isinstance(answer, NotSeen) for finding in answer]


def serious(vitals: Vitals) -> set[str]:
    return {finding.symptom for finding in found(vitals) if finding.severity != "info"}


def watched(
    model: nn.Module, loss: Loss, x: Tensor, y: Tensor, given: Sequence[Tensor] | None = None, steps: int = 6
) -> Vitals:
    parameters = list(model.parameters()) if given is None else list(given)
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    watch = luthier.watch(model, optimizer)
    for step in range(steps):
        batch = slice(16 * step % 64, 16 * step % 64 + 16)
        optimizer.zero_grad()
        value = loss(model, x[batch], y[batch])
        value.backward()
        optimizer.step()
        watch.step(value, inputs=x[batch], targets=y[batch])
    watch.close()
    return watch.vitals


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def features() -> Tensor:
    return torch.randn(64, 6)


def classes() -> Tensor:
    return torch.randint(0, 4, (64,))


def net(*last: nn.Module, outputs: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, outputs), *last)


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def classifier(loss: Loss, *last: nn.Module, outputs: int = 4) -> Program:
    return lambda: watched(net(*last, outputs=outputs), loss, features(), classes())


def binary(loss: Loss, *last: nn.Module) -> Program:
    return lambda: watched(net(*last, outputs=1), loss, features(), torch.randint(0, 2, (64,)).float())


def regression(loss: Loss, *last: nn.Module, scale: float = 1.0, shift: float = 0.0) -> Program:
    return lambda: watched(net(*last, outputs=1), loss, features(), torch.randn(64) * scale + shift)


def multi_label(loss: Loss, *last: nn.Module) -> Program:
    return lambda: watched(net(*last), loss, features(), (torch.rand(64, 4) > 0.5).float())


def squeezed(function: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    return lambda model, x, y: function(model(x).squeeze(1), y)


def stack(activation: Callable[[Tensor], Tensor], depth: int = 2, width: int = 16) -> Program:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = [6, *[width] * depth]
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
            self.head = nn.Linear(width, 4)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = activation(layer(x))
            return self.head(x)

    return lambda: watched(Stack(), cross_entropy, features(), classes())


class Attention(nn.Module):
    """Two heads, hand-written; `dim` of the softmax is what a fault changes."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(3, 8), nn.LayerNorm(8)
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.head, self.dim = nn.Linear(8, 4), dim

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (
            layer(self.norm(x)).view(len(x), -1, 2, 4).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        weights = F.dropout(torch.softmax(q @ k.transpose(-2, -1) / 2, self.dim), 0.1, self.training)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return self.head(x.mean(1))


class LearntQuery(nn.Module):
    """Scores of keys by a query that is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.query = nn.Linear(8, 8), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return (self.key(x) @ self.query).unsqueeze(-1)


class Pooling(nn.Module):
    """Attention that pools over time, in four spellings."""

    def __init__(self, spelling: str, dim: int = 1) -> None:
        super().__init__()
        self.rnn, self.score, self.head = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 1), nn.Linear(8, 4)
        if spelling == "query":
            self.score = LearntQuery()
        self.spelling, self.dim = spelling, dim

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        weights = F.softmax(self.score(states), dim=self.dim)
        if self.spelling in ("sum", "query"):
            return self.head((weights * states).sum(1))
        if self.spelling == "bmm":
            return self.head(torch.bmm(weights.transpose(1, 2), states).squeeze(1))
        return self.head((weights.squeeze(-1).unsqueeze(1) @ states).squeeze(1))


def sequences(model: nn.Module, n: int = 5) -> Program:
    return lambda: watched(model, cross_entropy, torch.randn(64, n, 3), classes())


class BatchFirst(nn.Module):
    def __init__(self, right: bool) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=right), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1))
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Cut(nn.Module):
    """Three layers whose graph may be cut behind the first."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.second, self.head, self.how = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4), how

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        if self.how == "detach":
            x = x.detach()
        if self.how == "no_grad":
            with torch.no_grad():
                x = F.relu(self.second(x))
        elif self.how != "unused":
            x = F.relu(self.second(x))
        x = self.head(x)
        return x.detach().requires_grad_() if self.how == "all" else x


def cut(how: str) -> Program:
    return lambda: watched(Cut(how), cross_entropy, features(), classes())


class Hidden(nn.Module):
    def __init__(self, registered: bool) -> None:
        super().__init__()
        layers = [nn.Linear(6, 16), nn.Linear(16, 16)]
        self.layers = nn.ModuleList(layers) if registered else layers
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)


class PlainWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = {"first": torch.randn(6, 16, requires_grad=True)}
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(x @ self.weights["first"]))


class Recurrence(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.recurrent, self.head, self.act = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 4), activation

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 8)
        for step in range(x.shape[1]):
            state = self.act(self.inner(x[:, step]) + self.recurrent(state))
        return self.head(state)


class Gated(nn.Module):
    def __init__(self, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.head, self.gate = nn.Linear(11, 24), nn.Linear(8, 4), gate

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 8)
        for step in range(x.shape[1]):
            keep, take, new = self.inner(torch.cat([x[:, step], state], 1)).chunk(3, 1)
            state = self.gate(keep) * state + self.gate(take) * torch.tanh(new)
        return self.head(state)


def embedding() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 16), nn.LayerNorm(16), nn.Linear(16, 4))


def images(model: nn.Module) -> Program:
    return lambda: watched(model, cross_entropy, torch.randn(64, 1, 6, 6), classes())


def convolutions(activation: type[nn.Module], pool: type[nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), activation(), pool(2),
        nn.Conv2d(4, 8, 3, padding=1), activation(), pool(3), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def frozen(names: Sequence[str], train_first: bool = False) -> Program:
    def program() -> Vitals:
        model = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
        x, y = features(), classes()
        if train_first:
            optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
            for _ in range(60):
                optimizer.zero_grad()
                cross_entropy(model, x, y).backward()
                optimizer.step()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.split(".")[0] not in names)
        return watched(model, cross_entropy, x, y)

    return program


def missing_from_optimizer() -> Vitals:
    model = net()
    return watched(model, cross_entropy, features(), classes(), given=list(model[2].parameters()))  # type: ignore[index]


def replaced_head(classes_before: int = 4) -> Vitals:
    model = net(outputs=classes_before)
    given = list(model.parameters())
    model[2] = nn.Linear(16, 4)  # type: ignore[operator]
    return watched(model, cross_entropy, features(), classes(), given=given)


def replaced_head_of_another_shape() -> Vitals:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 20)))
    given = list(model.parameters())
    model[2] = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4))
    return watched(model, cross_entropy, features(), classes(), given=given)


def other_model() -> Vitals:
    return watched(net(), cross_entropy, features(), classes(), given=list(net().parameters()))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.value, self.kind = nn.Linear(6, 16), nn.Linear(16, 1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shared = F.relu(self.trunk(x))
        return self.value(shared).squeeze(1), self.kind(shared)


def weighed(reduce: Callable[[Tensor], Tensor]) -> Vitals:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        value, kind = model(x)
        return F.cross_entropy(kind, y) + reduce(value.pow(2))

    return watched(TwoHeads(), loss, features(), classes())


def two_heads(factor: float) -> Vitals:
    model, x, y = TwoHeads(), features(), classes()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    watch = luthier.watch(model, optimizer)
    for _ in range(12):
        optimizer.zero_grad()
        value, kind = model(x)
        loss = F.mse_loss(value, x.sum(1)) + factor * F.cross_entropy(kind, y)
        loss.backward()
        optimizer.step()
        watch.step(loss, inputs=x, targets=y)
    watch.close()
    return watch.vitals


def autoencoder(loss: Loss, *last: nn.Module, data: Callable[[Tensor], Tensor] = torch.sigmoid) -> Program:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2), nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 6))

    def program() -> Vitals:
        x = data(features())
        return watched(nn.Sequential(*model, *last), loss, x, x)

    return program


def accumulated(model: nn.Module) -> Vitals:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = luthier.watch(model, optimizer)
    x, y = features(), classes()
    for _ in range(6):
        optimizer.zero_grad()
        for part in range(4):
            loss = F.cross_entropy(model(x[part::4]), y[part::4]) / 4
            loss.backward()
        optimizer.step()
        watch.step(loss, inputs=x, targets=y)
    watch.close()
    return watch.vitals


def one_hot(y: Tensor) -> Tensor:
    return F.one_hot(y, 4).float()


SICK: dict[str, tuple[str, Program]] = {
    "softmax, cross_entropy": ("softmax_before_ce", classifier(cross_entropy, nn.Softmax(dim=1))),
    "F.softmax, cross_entropy": (
        "softmax_before_ce",
        classifier(lambda m, x, y: F.cross_entropy(F.softmax(m(x), dim=-1), y)),
    ),
    "softmax by hand": (
        "softmax_before_ce",
        classifier(lambda m, x, y: F.cross_entropy(m(x).exp() / m(x).exp().sum(1, keepdim=True), y)),
    ),
    "sigmoid twice": (
        "softmax_before_ce",
        binary(squeezed(F.binary_cross_entropy_with_logits), nn.Sigmoid()),
    ),
    "softmax, log_softmax, nll": (
        "softmax_before_ce",
        classifier(lambda m, x, y: F.nll_loss(F.log_softmax(m(x), 1), y), nn.Softmax(dim=1)),
    ),
    "log_softmax over batch": (
        "softmax_wrong_dim",
        classifier(lambda m, x, y: F.nll_loss(m(x), y), nn.LogSoftmax(dim=0)),
    ),
    "softmax over batch by hand": (
        "softmax_wrong_dim",
        classifier(lambda m, x, y: -torch.log(F.softmax(m(x), 0).gather(1, y[:, None]) + 1e-9).mean()),
    ),
    "attention over queries": ("softmax_wrong_dim", sequences(Attention(dim=-2))),
    "attention over heads": ("softmax_wrong_dim", sequences(Attention(dim=1))),
    "attention over batch": ("softmax_wrong_dim", sequences(Attention(dim=0))),
    "pooling over nothing": ("softmax_wrong_dim", sequences(Pooling("sum", dim=-1))),
    "pooling over batch": ("softmax_wrong_dim", sequences(Pooling("sum", dim=0))),
    "pooling by bmm over batch": ("softmax_wrong_dim", sequences(Pooling("bmm", dim=0))),
    "pooling by @ over batch": ("softmax_wrong_dim", sequences(Pooling("@", dim=0))),
    "MultiheadAttention over batch": ("softmax_wrong_dim", sequences(BatchFirst(right=False))),
    "no activation": ("missing_nonlinearity", stack(lambda x: x)),
    "activation that is none": ("missing_nonlinearity", stack(nn.LeakyReLU(1.0))),
    "no activation but norm": ("missing_nonlinearity", stack(lambda x: F.dropout(F.layer_norm(x, (16,)), 0.1))),
    "no activation in CNN": ("missing_nonlinearity", images(convolutions(nn.Identity, nn.AvgPool2d))),
    "only max pooling": ("missing_nonlinearity", images(convolutions(nn.Identity, nn.MaxPool2d))),
    "linear recurrence": ("missing_nonlinearity", sequences(Recurrence(lambda x: 0.5 * x))),
    "one activation forgotten": (
        "missing_nonlinearity",
        lambda: watched(
            nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 16), nn.ReLU()).append(
                nn.Linear(16, 4)
            ),
            cross_entropy,
            features(),
            classes(),
        ),
    ),
    "ReLU before signed targets": ("output_range_mismatch", regression(squeezed(F.mse_loss), nn.ReLU())),
    "sigmoid before large targets": (
        "output_range_mismatch",
        regression(lambda m, x, y: (torch.sigmoid(m(x)).view(-1) - y).abs().mean(), scale=10, shift=50),
    ),
    "ReLU on logits": ("output_range_mismatch", classifier(cross_entropy, nn.ReLU())),
    "tanh on logits": ("output_range_mismatch", classifier(lambda m, x, y: F.cross_entropy(torch.tanh(m(x)), y))),
    "ReLU under log_softmax": (
        "output_range_mismatch",
        classifier(lambda m, x, y: F.nll_loss(F.log_softmax(F.relu(m(x)), -1), y)),
    ),
    "cross_entropy of one score": (
        "wrong_loss",
        lambda: watched(net(outputs=1), cross_entropy, features(), torch.zeros(64, dtype=torch.long)),
    ),
    "nll_loss of logits": ("wrong_loss", classifier(lambda m, x, y: F.nll_loss(m(x), y))),
    "nll_loss of softmax": ("wrong_loss", classifier(lambda m, x, y: F.nll_loss(m(x), y), nn.Softmax(dim=1))),
    "MAE of one-hot rows by hand": (
        "wrong_loss",
        classifier(lambda m, x, y: (F.softmax(m(x), 1) - F.one_hot(y, 4)).abs().mean()),
    ),
    "MSE of one-hot rows": ("wrong_loss", classifier(lambda m, x, y: F.mse_loss(m(x), one_hot(y)))),
    "MAE of looked-up rows": ("wrong_loss", classifier(lambda m, x, y: (m(x) - torch.eye(4)[y]).abs().mean())),
    "MSE of class ids": (
        "wrong_loss",
        classifier(lambda m, x, y: F.mse_loss(m(x).squeeze(1), y.float()), outputs=1),
    ),
    "MSE of 0 and 1": ("wrong_loss", binary(squeezed(F.mse_loss), nn.Sigmoid())),
    "multi-label cross_entropy": ("wrong_loss", multi_label(cross_entropy)),
    "multi-label by hand": (
        "wrong_loss",
        multi_label(lambda m, x, y: -(F.log_softmax(m(x), 1) * y).sum(1).mean()),
    ),
    "multi-label argmax": ("wrong_loss", multi_label(lambda m, x, y: F.cross_entropy(m(x), y.argmax(1)))),
    "multi-label softmax": (
        "wrong_loss",
        multi_label(lambda m, x, y: F.binary_cross_entropy(m(x), y), nn.Softmax(dim=1)),
    ),
    "negated": ("wrong_loss", classifier(lambda m, x, y: -F.cross_entropy(m(x), y))),
    "likelihood down": (
        "wrong_loss",
        classifier(lambda m, x, y: m(x)[torch.arange(len(y)), y].mean(), nn.LogSoftmax(dim=1)),
    ),
    "targets -1 and 1": (
        "wrong_loss",
        binary(lambda m, x, y: F.binary_cross_entropy_with_logits(m(x).squeeze(1), 2 * y - 1)),
    ),
    "soft margin of 0 and 1": ("wrong_loss", binary(squeezed(F.soft_margin_loss))),
    "own answer as target": ("wrong_loss", classifier(lambda m, x, y: F.cross_entropy(m(x), m(x).argmax(1)))),
    "(B, 1) - (B,)": ("shape_broadcast", regression(lambda m, x, y: ((m(x) - y) ** 2).mean())),
    "(B,) - (B, 1)": ("shape_broadcast", regression(lambda m, x, y: (y.unsqueeze(1) - m(x).squeeze(1)).abs().mean())),
    "summed": ("loss_scale", classifier(lambda m, x, y: F.cross_entropy(m(x), y, reduction="sum"))),
    "summed by hand": ("loss_scale", classifier(lambda m, x, y: F.cross_entropy(m(x), y, reduction="none").sum())),
    "times 1000": ("loss_scale", classifier(lambda m, x, y: 1000 * F.cross_entropy(m(x), y))),
    "divided twice": ("loss_scale", classifier(lambda m, x, y: F.cross_entropy(m(x), y) / len(y))),
    "summed, divided by the size of the data set": (
        "loss_scale",
        classifier(lambda m, x, y: F.cross_entropy(m(x), y, reduction="sum") / 5000),
    ),
    "second head times 1e-5": ("loss_scale", lambda: two_heads(1e-5)),
    "second head times 1e6": ("loss_scale", lambda: two_heads(1e6)),
    "summed beside a mean": ("loss_scale", lambda: weighed(torch.Tensor.sum)),
    "exp": ("bad_activation", stack(torch.exp)),
    "square": ("bad_activation", stack(lambda x: x * x)),
    "square in a recurrence": ("bad_activation", sequences(Recurrence(torch.square))),
    "exponential gates": ("bad_activation", sequences(Gated(torch.exp), n=30)),
    "sign": ("bad_activation", stack(torch.sign)),
    "softmax inside": ("bad_activation", stack(lambda x: F.softmax(x, -1))),
    "five sigmoids": ("bad_activation", stack(torch.sigmoid, depth=5)),
    "ReLU, tanh": ("bad_activation", stack(lambda x: torch.tanh(F.relu(x)))),
    **{
        f"cut by {how}": ("disconnected_params", cut(how)) for how in ("detach", "no_grad", "unused", "all")
    },
    "list of layers": (
        "unregistered_params",
        lambda: watched(Hidden(registered=False), cross_entropy, features(), classes()),
    ),
    "plain tensor": ("unregistered_params", lambda: watched(PlainWeight(), cross_entropy, features(), classes())),
    "frozen at random": ("frozen_params", frozen(["0"])),
    "missing from the optimizer": ("frozen_params", missing_from_optimizer),
    "head replaced": ("stale_optimizer", replaced_head),
    "head of another shape": ("stale_optimizer", replaced_head_of_another_shape),
    "head of two classes replaced": ("stale_optimizer", lambda: replaced_head(2)),
    "optimizer of another model": ("stale_optimizer", other_model),
}  # fmt: skip


def scaled_accumulation() -> Vitals:
    return accumulated(net())


def variational() -> Vitals:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.mean, self.log_var = nn.Linear(6, 16), nn.Linear(16, 2), nn.Linear(16, 2)
            self.decode, self.out = nn.Linear(2, 16), nn.Linear(16, 6)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            h = F.relu(self.encode(x))
            mean, log_var = self.mean(h), self.log_var(h)
            z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
            return torch.sigmoid(self.out(F.relu(self.decode(z)))), mean, log_var

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out, mean, log_var = model(x)
        gap = -0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp())
        return F.binary_cross_entropy(out, x, reduction="sum") + gap

    x = torch.sigmoid(features())
    return watched(Net(), loss, x, x)


def adversarial() -> Vitals:
    maker, judge = net(outputs=6), net(outputs=1)
    optimizers = [torch.optim.Adam(model.parameters(), lr=1e-3) for model in (maker, judge)]
    watch = luthier.watch([maker, judge], optimizers)
    for _ in range(6):
        real, noise = torch.randn(16, 6), torch.randn(16, 6)
        optimizers[1].zero_grad()
        (-(judge(real).mean() - judge(maker(noise).detach()).mean())).backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        loss = -judge(maker(noise)).mean()
        loss.backward()
        optimizers[0].step()
        watch.step(loss)
    watch.close()
    return watch.vitals


def residual() -> nn.Module:
    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.first, self.second = (
                nn.Conv2d(inputs, outputs, 3, padding=1),
                nn.Conv2d(outputs, outputs, 3, padding=1),
            )
            self.norm, self.short = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.relu(self.first(F.relu(self.norm(x))))) + self.short(x)

    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), Block(4, 8), Block(8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip


def separable() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 16, 1), nn.ReLU6(),
        nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.embed, self.layers = nn.Linear(3, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.position, self.head = nn.Parameter(0.02 * torch.randn(1, 5, 8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(x) + self.position).mean(1))


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 3)
        self.experts = nn.ModuleList(net() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        answers = torch.stack([expert(x) for expert in self.experts], 1)
        return (F.softmax(self.gate(x), dim=1).unsqueeze(-1) * answers).sum(1)


def counts() -> Vitals:
    x = features()
    return watched(net(outputs=1), squeezed(F.mse_loss), x, torch.poisson(torch.exp(1 + 0.5 * x[:, 0])))


def quantiles() -> Vitals:
    levels = torch.tensor([0.1, 0.5, 0.9])

    def pinball(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        error = y - model(x)
        return torch.maximum(levels * error, (levels - 1) * error).mean()

    return watched(net(outputs=3), pinball, features(), torch.randn(64, 1))


class Transcriber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.head(self.rnn(x.transpose(0, 1))[0]), dim=-1)


def transcription(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.ctc_loss(model(x), y, torch.full((len(x),), 8), torch.full((len(x),), 3))


def closures() -> Vitals:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    watch = luthier.watch(model, optimizer)
    x, y = features(), classes()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(6):
        watch.step(optimizer.step(closure), inputs=x, targets=y)
    watch.close()
    return watch.vitals


def autocast(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.cross_entropy(model(x), y)


HEALTHY: dict[str, Program] = {
    "MLP": classifier(cross_entropy),
    "logistic regression": lambda: watched(nn.Linear(6, 4), cross_entropy, features(), classes()),
    "linear regression": lambda: watched(nn.Linear(6, 1), squeezed(F.mse_loss), features(), torch.randn(64)),
    "log_softmax, nll": classifier(lambda m, x, y: F.nll_loss(m(x), y), nn.LogSoftmax(dim=1)),
    "softmax, log by hand": classifier(
        lambda m, x, y: -torch.log(m(x).gather(1, y[:, None]) + 1e-9).mean(), nn.Softmax(dim=-1)
    ),
    "soft labels": classifier(lambda m, x, y: F.cross_entropy(m(x), 0.9 * one_hot(y) + 0.025)),
    "sigmoid, binary cross entropy": binary(squeezed(F.binary_cross_entropy), nn.Sigmoid()),
    "binary, unsqueezed": binary(lambda m, x, y: F.binary_cross_entropy_with_logits(m(x), y.unsqueeze(1))),
    "multi-label": multi_label(lambda m, x, y: F.binary_cross_entropy_with_logits(m(x), y)),
    "regression": regression(squeezed(F.huber_loss)),
    "regression by hand": regression(lambda m, x, y: ((y - m(x).squeeze(1)) ** 2).mean() / 2),
    "softplus before counts": lambda: watched(
        net(nn.Softplus(), outputs=1), squeezed(F.mse_loss), features(), torch.rand(64) * 5
    ),
    "counts": counts,
    "quantiles": quantiles,
    "CTC": lambda: watched(Transcriber(), transcription, torch.randn(64, 8, 3), torch.randint(1, 5, (64, 3))),
    "closures": closures,
    "CNN": images(convolutions(nn.ReLU, nn.MaxPool2d)),
    "pre-activation residual net": images(residual()),
    "separable convolutions": images(separable()),
    "LSTM": lambda: watched(
        nn.Sequential(nn.Flatten(), nn.Unflatten(1, (5, 3)), Last(), nn.Linear(8, 4)),
        cross_entropy,
        torch.randn(64, 5, 3),
        classes(),
    ),
    "recurrence by hand": sequences(Recurrence(torch.tanh)),
    "attention by hand": sequences(Attention()),
    "attention by hand, batch as long as heads": sequences(Attention(), n=16),
    "transformer encoder": sequences(Encoder()),
    "MultiheadAttention": sequences(BatchFirst(right=True)),
    **{f"pooling by {spelling}": sequences(Pooling(spelling)) for spelling in ("sum", "bmm", "@", "query")},
    "mixture of experts": lambda: watched(Mixture(), cross_entropy, features(), classes()),
    "two heads": lambda: two_heads(1.0),
    "mean beside a mean": lambda: weighed(torch.Tensor.mean),
    "small sum of activities": classifier(lambda m, x, y: F.cross_entropy(m(x), y) + 1e-3 * m[:2](x).abs().sum()),
    "variational autoencoder": variational,
    "autoencoder": autoencoder(lambda m, x, y: F.mse_loss(m(x), y), nn.Sigmoid()),
    "autoencoder of bits": autoencoder(lambda m, x, y: F.mse_loss(m(x), y), data=lambda x: (x > 0).float()),
    "adversarial pair": adversarial,
    "weight penalty": classifier(
        lambda m, x, y: F.cross_entropy(m(x), y) + 1e-4 * sum(p.pow(2).sum() for p in m.parameters())
    ),
    "masked mean": classifier(
        lambda m, x, y: (F.cross_entropy(m(x), y, reduction="none") * (y > 0)).sum() / (y > 0).sum()
    ),
    "summed and divided": classifier(lambda m, x, y: F.cross_entropy(m(x), y, reduction="sum") / len(y)),
    "accumulation": scaled_accumulation,
    "summed over features, divided by their number": autoencoder(
        lambda m, x, y: F.mse_loss(m(x), y, reduction="sum") / y.numel()
    ),
    "exponential scale": sequences(Gated(torch.exp), n=1),
    "sigmoid gates": sequences(Gated(torch.sigmoid), n=30),
    "head over a normalised embedding": lambda: watched(embedding(), cross_entropy, features(), classes()),
    "autocast": classifier(autocast),
    "layers in a ModuleList": lambda: watched(Hidden(registered=True), cross_entropy, features(), classes()),
    "all connected": lambda: watched(Cut(""), cross_entropy, features(), classes()),
    "trained backbone frozen": frozen(["0", "1"], train_first=True),
    "two tanh layers": stack(torch.tanh),
}


class Last(nn.Module):
    """The last state of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        return states[:, -1]


@pytest.mark.parametrize("name", SICK)
def test_sick_programs_are_named(name: str) -> None:
    symptom, program = SICK[name]
    vitals = program()
    findings = [item for item in found(vitals, [symptom]) if item.severity != "info"]
    assert [item.symptom for item in findings] == [symptom]
    assert findings[0].certainty >= 0.7
    assert findings[0].evidence


class Seq2Seq(nn.Module):
    """An encoder, and a decoder that is given tokens; the batch holds the sequences that it is to answer."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.tokens = nn.Embedding(9, 8), nn.Embedding(9, 8)
        self.encoder, self.decoder = (nn.GRU(8, 16, batch_first=True) for _ in range(2))
        self.head = nn.Linear(16, 9)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        return self.head(self.decoder(self.tokens(given), self.encoder(self.source(x))[1])[0])


@pytest.mark.parametrize(("shifted", "leaks"), [(False, True), (True, False)])
def test_a_decoder_that_is_given_the_targets_unshifted(shifted: bool, leaks: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        given = torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], 1) if shifted else y
        return F.cross_entropy(model(x, given).transpose(1, 2), y)

    x = torch.randint(1, 9, (64, 6))
    vitals = watched(Seq2Seq(), loss, x, x.flip(1))
    assert bool(found(vitals, ["data_leakage"])) == leaks


def test_tokens_keep_a_loss_of_their_own_also_when_their_targets_are_told_as_one_row() -> None:
    model, tokens = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9)), torch.randint(9, (16, 6))
    optimizer = torch.optim.Adam(model.parameters())
    for y, limit in ((tokens.flatten(), 0.15), (tokens[:, 0], 0.6)):
        with luthier.watch(model, optimizer) as watch:
            for _ in range(3):
                logits = model(tokens).flatten(0, 1) if len(y) > 16 else model(tokens).mean(1)
                loss = F.cross_entropy(logits, y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                watch.step(loss, inputs=tokens, targets=y)
        assert poor_below(watch.vitals) == limit


@pytest.mark.parametrize(("hidden", "ahead"), [(torch.triu, False), (torch.tril, True)])
def test_a_mask_tells_whether_it_shows_later_places(hidden: Callable[..., Tensor], ahead: bool) -> None:
    mask = hidden(torch.ones(5, 5), 1 if hidden is torch.triu else -1).bool()

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.key, self.head, self.fused = nn.Linear(6, 6), nn.Linear(6, 4), nn.MultiheadAttention(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            by_hand = (self.key(x) @ x.transpose(1, 2)).masked_fill(mask, -1e9).softmax(-1) @ x
            shown = F.scaled_dot_product_attention(x, self.key(x), x, ~mask)
            times = x.transpose(0, 1)
            fused = self.fused(times, times, times, attn_mask=mask)[0].transpose(0, 1)
            return self.head((by_hand + shown + fused).mean(1))

    vitals = watched(Masked(), cross_entropy, torch.randn(64, 5, 6), classes())
    told = {node.op: node.attrs["ahead"] for node in vitals.looks[0].nodes if "ahead" in node.attrs}
    assert told == dict.fromkeys(("masked_fill", "scaled_dot_product_attention", "multi_head_attention"), ahead)


@pytest.mark.parametrize(("moves", "mixed"), [(False, True), (True, False)])
def test_a_view_in_place_of_a_transpose_mixes_the_examples(moves: bool, mixed: bool) -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            by_time = x.transpose(0, 1) if moves else x.view(x.shape[1], x.shape[0], x.shape[2])
            states = self.lstm(by_time)[0]
            return self.head(states[-1].reshape(len(x), 2, 4).flatten(1))

    vitals = watched(TimeFirst(), cross_entropy, torch.randn(64, 5, 3), classes())
    assert [item.numbers.get("mixed") for item in found(vitals, ["label_misaligned"])] == [True] * mixed


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_programs_are_left_alone(name: str) -> None:
    assert serious(HEALTHY[name]()) == set()


def test_one_layer_of_many_without_activation_explains_little() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 16)
            self.rest = nn.ModuleList(nn.Linear(16, 16) for _ in range(8))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for layer in self.rest:
                x = torch.tanh(layer(x))
            return x[:, :4]

    (little,) = found(watched(Deep(), cross_entropy, features(), classes()), ["missing_nonlinearity"])
    (much,) = found(SICK["one activation forgotten"][1](), ["missing_nonlinearity"])
    assert little.certainty < 0.8 < much.certainty


@pytest.mark.parametrize(("width", "narrow"), [(2, True), (8, False)])
def test_a_way_past_a_narrow_layer_helps_when_it_is_wider(width: int, narrow: bool) -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, width), nn.Linear(width, 4)
            self.down, self.up = nn.Linear(width, 2), nn.Linear(2, width)

        def forward(self, x: Tensor) -> Tensor:
            state = self.embed(x)
            return self.head(state + self.up(F.relu(self.down(state))))

    assert bool(underfit._bottleneck(watched(Stream(), cross_entropy, torch.randint(0, 9, (64,)), classes()))) == narrow


def test_the_layer_is_named() -> None:
    (finding,) = found(SICK["one activation forgotten"][1](), ["missing_nonlinearity"])
    assert finding.where == ("2", "3")
    (finding,) = found(SICK["cut by detach"][1](), ["disconnected_params"])
    assert finding.where == ("first",)
    assert "detach" in " ".join(finding.evidence)


def test_floor_of_softmax_before_cross_entropy() -> None:
    (finding,) = found(SICK["softmax, cross_entropy"][1](), ["softmax_before_ce"])
    best = F.cross_entropy(torch.eye(4), torch.arange(4)).item()
    assert math.isclose(finding.numbers["floor"], best, rel_tol=1e-6)


def test_log_softmax_twice_is_worth_knowing_only() -> None:
    vitals = classifier(cross_entropy, nn.LogSoftmax(dim=1))()
    assert [item.severity for item in found(vitals, ["softmax_before_ce"])] == ["info"]


def test_without_operations_the_rules_say_why() -> None:
    for name in ("softmax_before_ce", "missing_nonlinearity", "wrong_loss", "loss_scale", "shape_broadcast"):
        assert isinstance(SYMPTOMS[name](Vitals()), NotSeen)
