"""Reference nets: parameters counted by hand, shapes, choices, and padding that never matters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from luthier.errors import LuthierError
from luthier.nets import CNN, MLP, NETS, RNN, ResNet
from luthier.nets.rnn import lengths
from luthier.training.surgery import ACTIVATIONS, NORMS

IMAGES = (3, 16, 16)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def build(name: str, **keywords: object) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if name == "rnn":
        return RNN(20, 4, embedding=6, hidden=5, **keywords), torch.tensor([[3, 4, 0], [5, 6, 7]])  # type: ignore[arg-type]
    return NETS[name](inputs=IMAGES, outputs=4, width=8, **keywords), torch.randn(2, *IMAGES)


@pytest.mark.parametrize("name", NETS)
def test_gives_logits_and_trains_every_parameter(name: str) -> None:
    model, x = build(name)
    logits = model(x)
    assert logits.shape == (2, 4)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_has_the_activation_that_was_asked_for(name: str, activation: str) -> None:
    model, _ = build(name, activation=activation)
    wanted = type(ACTIVATIONS[activation].module())
    kinds = {type(module) for module in model.modules()}
    assert wanted in kinds
    assert kinds & {type(other.module()) for other in ACTIVATIONS.values()} == {wanted}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_has_the_norm_that_was_asked_for(name: str, norm: str) -> None:
    model, x = build(name, norm=norm)
    found = {type(module).__name__ for module in model.modules() if "Norm" in type(module).__name__}
    dense = name == "mlp"
    expected = {
        "batch": {"BatchNorm1d" if dense else "BatchNorm2d"},
        "layer": {"LayerNorm" if dense else "GroupNorm"},
        "group": {"GroupNorm"},
        "none": set(),
    }
    assert found == expected[norm]
    assert model(x).shape == (2, 4)


def test_mlp_parameters_by_hand() -> None:
    assert size(MLP((1, 28, 28), 10)) == 784 * 128 + 128 + 128 * 10 + 10
    assert size(MLP(20, 3, width=8, depth=2, bias=False)) == 20 * 8 + 8 * 8 + 8 * 3
    assert size(MLP(20, 3, depth=0)) == 20 * 3 + 3
    assert size(MLP(20, 3, width=8, norm="batch")) == 20 * 8 + 8 + 2 * 8 + 8 * 3 + 3


def test_cnn_parameters_by_hand() -> None:
    convolutions = (3 * 9 * 8 + 8) + (8 * 9 * 16 + 16)
    assert size(CNN(IMAGES, 4, width=8, depth=2)) == convolutions + 16 * 4 + 4
    assert size(CNN(IMAGES, 4, width=8, depth=2, pool="stride")) == convolutions + 16 * 4 + 4
    assert size(CNN(IMAGES, 4, width=8, depth=1, kernel_size=5)) == 3 * 25 * 8 + 8 + 8 * 4 + 4


def test_resnet_parameters_by_hand() -> None:
    stem = 3 * 9 * 8 + 16
    first = 2 * (8 * 9 * 8 + 16)
    second = (8 * 9 * 16 + 32) + (16 * 9 * 16 + 32) + (8 * 16 + 32)
    assert size(ResNet(IMAGES, 4, width=8, depth=1, stages=2)) == stem + first + second + 16 * 4 + 4


def test_resnet_20_has_the_convolutions_of_the_paper() -> None:
    model = ResNet((3, 32, 32), 10, width=16, depth=3, stem_stride=1)
    weighted = [m for m in model.modules() if isinstance(m, nn.Linear) or getattr(m, "kernel_size", None) == (3, 3)]
    assert len(weighted) == 20


def test_rnn_parameters_by_hand() -> None:
    recurrent = 4 * (5 * 6 + 5 * 5 + 5 + 5)
    assert size(RNN(20, 4, embedding=6, hidden=5)) == 20 * 6 + 2 * recurrent + 10 * 4 + 4
    assert size(RNN(20, 4, embedding=6, hidden=5, bidirectional=False)) == 20 * 6 + recurrent + 5 * 4 + 4


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("pool", ["last", "mean", "max"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_padding_never_matters(cell: str, pool: str, bidirectional: bool) -> None:
    torch.manual_seed(0)
    model = RNN(20, 3, 6, 5, depth=2, cell=cell, pool=pool, bidirectional=bidirectional)  # type: ignore[arg-type]
    tokens = torch.randint(1, 20, (4, 6))
    tokens[1, 3:] = 0
    padded = torch.cat([tokens, torch.zeros(4, 5, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(model(padded), model(tokens))
    torch.testing.assert_close(model(tokens[1:2, :3]), model(tokens)[1:2])


def test_a_pad_inside_a_text_belongs_to_it_and_an_empty_text_is_read() -> None:
    assert lengths(torch.tensor([[5, 0, 7, 0], [0, 0, 0, 0]]), pad=0).tolist() == [3, 1]
    assert RNN(20, 2)(torch.zeros(2, 4, dtype=torch.int64)).isfinite().all()


def test_last_is_the_state_after_the_last_token() -> None:
    torch.manual_seed(0)
    model = RNN(20, 3, 6, 5, cell="gru", bidirectional=False)
    text = torch.tensor([[4, 9, 2]])
    steps, _ = model.recurrent(model.embedding(text))
    torch.testing.assert_close(model(text), model.head(steps[:, -1]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(4, 2, activation="rleu"), "unknown activation 'rleu': did you mean 'relu'"),
        (lambda: MLP(4, 2, norm="bach"), "unknown norm 'bach': did you mean 'batch'"),
        (lambda: MLP(4, 2, dropout=1.0), "dropout must be at least 0 and below 1, got 1.0"),
        (lambda: MLP(4, 2, depth=-1), "depth must be at least 0, got -1"),
        (lambda: CNN((28, 28), 2), "inputs=\\(channels, height, width\\), got \\(28, 28\\)"),  # type: ignore[arg-type]
        (lambda: CNN((1, 4, 4), 2, depth=3), "depth=3 halves the image 3 times, too often for 4 x 4"),
        (lambda: CNN((1, 4, 4), 2, depth=1, kernel_size=2), "kernel_size must be odd"),
        (lambda: CNN((1, 8, 8), 2, pool="mx"), "unknown pool 'mx': did you mean 'max'"),  # type: ignore[arg-type]
        (lambda: ResNet((3, 8, 8), 2, stem_kernel=2), "stem_kernel must be odd"),
        (lambda: RNN(10, 2, cell="lstn"), "unknown cell 'lstn': did you mean 'lstm'"),  # type: ignore[arg-type]
        (lambda: RNN(10, 2, pool="first"), "unknown pool 'first'"),  # type: ignore[arg-type]
    ],
)
def test_wrong_choices_say_what_to_do(make: object, message: str) -> None:
    with pytest.raises(LuthierError, match=message):
        make()  # type: ignore[operator]
