"""Initial weights against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.nets import MLP
from luthier.training.surgery import ACTIVATIONS, operate


def net(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(300, 500), activation(), nn.Linear(500, 200))


def std(model: nn.Sequential, index: int) -> float:
    return float(model[index].weight.detach().std())  # type: ignore[operator]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gain_keeps_the_second_moment(name: str) -> None:
    z = torch.linspace(-12, 12, 240_001, dtype=torch.float64)
    weight = torch.exp(-(z**2) / 2)
    moment = (ACTIVATIONS[name].function(z) ** 2 * weight).sum() / weight.sum()
    assert ACTIVATIONS[name].gain == pytest.approx(float(moment.rsqrt()), abs=1e-5)


@pytest.mark.parametrize("name", ["relu", "leaky_relu"])
def test_gain_agrees_with_torch(name: str) -> None:
    assert ACTIVATIONS[name].gain == pytest.approx(nn.init.calculate_gain(name), abs=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("init", "hidden", "last"),
    [
        ("kaiming", math.sqrt(2 / 300), math.sqrt(1 / 500)),
        ("xavier", math.sqrt(2 / 800), math.sqrt(2 / 700)),
        ("normal", math.sqrt(1 / 300), math.sqrt(1 / 500)),
        ("uniform", math.sqrt(1 / 900), math.sqrt(1 / 1500)),
        ("torch", math.sqrt(1 / 900), math.sqrt(1 / 1500)),
    ],
)
def test_variance_of_linear_layers(init: str, hidden: float, last: float) -> None:
    model = net()
    operate(model, init=init)
    assert std(model, 0) == pytest.approx(hidden, rel=0.02)
    assert std(model, 2) == pytest.approx(last, rel=0.02)
    if init != "torch":
        assert not model[0].bias.any()  # type: ignore[operator]


def test_kaiming_reckons_with_the_new_activation() -> None:
    model = net()
    operate(model, init="kaiming", activation="tanh")
    assert std(model, 0) == pytest.approx(1.5925 / math.sqrt(300), rel=0.02)


def test_kaiming_sees_functions_in_forward() -> None:
    class Spelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(300, 500), nn.Linear(500, 300), nn.Linear(300, 300)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(torch.tanh(self.a(x))))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Spelled()
    operate(model, init="kaiming", example=torch.zeros(2, 300))
    assert float(model.a.weight.detach().std()) == pytest.approx(1.5925 / math.sqrt(300), rel=0.02)
    assert float(model.b.weight.detach().std()) == pytest.approx(1 / math.sqrt(500), rel=0.02)


def test_variance_of_convolutions_counts_kernel_and_groups() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 128, 3, groups=2), nn.ReLU(), nn.ConvTranspose1d(128, 64, 5))
    operate(model, init="kaiming")
    assert std(model, 0) == pytest.approx(math.sqrt(2 / (32 * 9)), rel=0.02)
    assert std(model, 2) == pytest.approx(math.sqrt(1 / (128 * 5)), rel=0.02)


def test_orthogonal_columns_have_the_gain_as_length() -> None:
    model = net()
    operate(model, init="orthogonal")
    w = model[0].weight
    torch.testing.assert_close(w.T @ w, 2 * torch.eye(300), atol=1e-4, rtol=0)  # type: ignore[operator]


def test_signals_keep_their_size_through_twenty_layers() -> None:
    torch.manual_seed(0)
    model = MLP(256, 256, width=256, depth=20)
    operate(model, init="kaiming")
    x = torch.randn(128, 256)
    assert 0.3 < float(model(x).detach().square().mean()) < 3.0


def test_embeddings_norms_and_padding() -> None:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Embedding(1000, 50, padding_idx=3), nn.BatchNorm1d(5), nn.LayerNorm(5)])
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7.0)
    model[1].running_mean.fill_(9.0)  # type: ignore[operator]
    operate(model, init="xavier")
    assert float(model[0].weight.detach().std()) == pytest.approx(1.0, rel=0.02)  # type: ignore[operator]
    assert not model[0].weight[3].any()  # type: ignore[index]
    assert model[2].weight.tolist() == [1.0] * 5  # type: ignore[operator]
    assert model[1].bias.tolist() == [0.0] * 5  # type: ignore[operator]
    assert model[1].running_mean.tolist() == [0.0] * 5  # type: ignore[operator]


def test_recurrent_gates_one_by_one() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(200, 100)
    operate(model, init="kaiming")
    for gate in model.get_parameter("weight_hh_l0").chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(100), atol=1e-4, rtol=0)
    assert float(model.get_parameter("weight_ih_l0").detach().std()) == pytest.approx(math.sqrt(2 / 300), rel=0.02)
    assert model.get_parameter("bias_ih_l0").tolist() == [0.0] * 100 + [1.0] * 100 + [0.0] * 200
    assert not model.get_parameter("bias_hh_l0").any()


def test_attention_projections_are_three_matrices() -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(128, 4)
    operate(model, init="xavier")
    assert float(model.in_proj_weight.detach().std()) == pytest.approx(math.sqrt(2 / 256), rel=0.02)


def test_zero_last_makes_all_first_logits_alike() -> None:
    class Odd(nn.Module):
        """The layer registered last is not the one that the output comes from."""

        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(8, 3), nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.body(x)))  # type: ignore[no-any-return]

    model, x = Odd(), torch.randn(5, 4)
    operate(model, zero_last=True, example=x)
    assert not model(x).any()
    assert model.body.weight.any()


def test_frozen_parametrised_and_free_parameters_are_named() -> None:
    class Free(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.ones(3))
            self.frozen = nn.Linear(3, 3).requires_grad_(False)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))

    model = Free()
    frozen = model.frozen.weight.clone()
    report = operate(model, init="orthogonal")
    whys = {refusal.path: refusal.why for refusal in report.refused}
    assert torch.equal(model.frozen.weight, frozen)
    assert "requires_grad is False" in whys["frozen"]
    assert "no rule for a Free" in whys[""]
    assert "parametrised" in whys["normed.parametrizations.weight"]
