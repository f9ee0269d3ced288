"""Surgery as a contract over every choice, on nets of every kind."""

from __future__ import annotations

import copy
import pickle
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.errors import LuthierError
from luthier.nets import CNN, MLP, RNN, ResNet
from luthier.training.choices import ActivationName, InitName, NormName
from luthier.training.surgery import ACTIVATIONS, INITS, NORMS, operate


class Spelled(nn.Module):
    """Everything by functions, nothing by modules."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.fc1(x), inplace=True), 0.5, self.training)
        return torch.sigmoid(self.fc3(self.fc2(x).tanh()))


class Text(nn.Module):
    """A Transformer on token ids."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.embedding = nn.Embedding(20, 8)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(self.embedding(tokens)).mean(1))
        return logits


def cases() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    tokens = torch.randint(1, 20, (4, 5))
    return {
        "mlp": (MLP(6, 3, width=8, depth=2), torch.randn(4, 6)),
        "cnn": (CNN((2, 8, 8), 3, width=4, depth=2), torch.randn(4, 2, 8, 8)),
        "resnet": (ResNet((2, 8, 8), 3, width=4, depth=1, stages=2), torch.randn(4, 2, 8, 8)),
        "rnn": (RNN(20, 3, 6, 5, depth=2, cell="rnn"), tokens),
        "transformer": (Text(), tokens),
        "functions": (Spelled(), torch.randn(4, 6)),
    }


KINDS = ("mlp", "cnn", "resnet", "rnn", "transformer", "functions")


def works(model: nn.Module, x: Tensor) -> None:
    before = model(x)
    assert before.isfinite().all()
    loss = before.square().sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    model.eval()
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    assert torch.equal(copied(x), model(x))
    assert torch.equal(pickled(x), model(x))
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    copied.load_state_dict(model.state_dict())
    assert torch.equal(copied(x), model(x))


def test_names_without_torch_are_the_keys() -> None:
    assert set(get_args(ActivationName)) == set(ACTIVATIONS)
    assert set(get_args(NormName)) == set(NORMS)
    assert set(get_args(InitName)) == set(INITS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_example", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_keeps_every_weight(kind: str, with_example: bool, activation: str) -> None:
    model, x = cases()[kind]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = operate(model, activation=activation, example=x if with_example else None)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(refusal.why for refusal in report.refused)
    works(model, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_example", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_norm_keeps_old_names(kind: str, with_example: bool, norm: str) -> None:
    model, x = cases()[kind]
    linear = {id(module): path for path, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    report = operate(model, norm=norm, example=x if with_example else None)
    kept = {id(module): path for path, module in model.named_modules() if id(module) in linear}
    assert kept == linear
    assert all(refusal.why for refusal in report.refused)
    works(model, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", INITS)
def test_init_is_a_function_of_the_seed(kind: str, init: str) -> None:
    model, x = cases()[kind]
    twin = copy.deepcopy(model)
    for net in (model, twin):
        torch.manual_seed(7)
        operate(net, init=init, example=x)
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    works(model, x)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_at_once_and_twice(kind: str) -> None:
    model, x = cases()[kind]
    operate(model, dropout=0.5, norm="batch", activation="gelu", init="kaiming", zero_last=True, example=x)
    names = list(dict(model.named_parameters()))
    operate(model, dropout=0.1, norm="group", activation="silu", init="orthogonal", example=x)
    assert list(dict(model.named_parameters())) == names
    works(model, x)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_acts_in_training_only(kind: str) -> None:
    model, x = cases()[kind]
    operate(model, dropout=0.9, example=x)
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("kind", KINDS)
def test_the_probe_leaves_no_trace(kind: str) -> None:
    model, x = cases()[kind]
    model.train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    operate(model, activation="relu", example=x)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["mlp", "cnn", "resnet", "functions"])
def test_new_modules_follow_dtype_and_mode(kind: str) -> None:
    model, x = cases()[kind]
    model.double().eval()
    operate(model, norm="group", dropout=0.2, activation="elu", init="orthogonal", example=x.double())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert not any(module.training for module in model.modules())


def test_nothing_asked_is_nothing_done() -> None:
    model, _ = cases()["functions"]
    report = operate(model, example="would not run")
    assert (report.changes, report.refused) == ((), ())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"activation": "rleu"}, "unknown activation 'rleu': did you mean 'relu'"),
        ({"norm": "bach"}, "unknown norm 'bach': did you mean 'batch'"),
        ({"init": "xaver"}, "unknown init 'xaver': did you mean 'xavier'"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"dropout": float("nan")}, "dropout must be at least 0 and below 1, got nan"),
        ({"norm": "batch", "example": torch.zeros(2, 5)}, "Spelled raised RuntimeError: .*pass example="),
    ],
)
def test_wrong_wishes_say_what_to_do_and_change_nothing(keywords: dict[str, Any], message: str) -> None:
    model = Spelled()
    before = repr(model)
    with pytest.raises(LuthierError, match=message):
        operate(model, **keywords)
    assert repr(model) == before
