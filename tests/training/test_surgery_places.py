"""Which activations, norms and dropouts are changed and which must stay, against hand-built models."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from luthier.training.surgery import Report, operate


def whys(report: Report) -> dict[str, str]:
    return {refusal.path: refusal.why for refusal in report.refused}


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))  # type: ignore[no-any-return]


class Ending(Hidden):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(torch.sigmoid(self.fc1(x)))).squeeze(-1)


class Gated(nn.Module):
    """Squeeze and excitation: the sigmoid scales channels, the ReLU is hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 4)
        self.sigmoid, self.head = nn.Sigmoid(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        scale = self.sigmoid(self.squeeze(x.mean((2, 3))))
        return self.head((x * scale[:, :, None, None]).mean((2, 3)))  # type: ignore[no-any-return]


def test_functions_become_the_chosen_one_exactly() -> None:
    model, x = Hidden(), torch.randn(3, 4)
    operate(model, activation="gelu", example=x)
    assert torch.equal(model(x), model.fc2(F.gelu(model.fc1(x))))


def test_output_in_functional_form_stays() -> None:
    model, x = Ending(), torch.randn(3, 4)
    report = operate(model, activation="gelu", example=x)
    assert torch.equal(model(x), torch.sigmoid(model.fc2(F.gelu(model.fc1(x)))).squeeze(-1))
    assert list(whys(report).values()) == ["this sigmoid stays: it makes the model's output"]


def test_without_example_functions_stay_and_the_report_says_so() -> None:
    model, x = Hidden(), torch.randn(3, 4)
    expected = model(x)
    report = operate(model, activation="gelu", dropout=0.5)
    assert torch.equal(model(x), expected)
    assert "pass example=" in whys(report)[""]


def test_gates_stay() -> None:
    model, x = Gated(), torch.randn(2, 2, 5, 5)
    report = operate(model, activation="elu", example=x)
    assert isinstance(model.sigmoid, nn.Sigmoid)
    assert "gate" in whys(report)["sigmoid"]
    y = F.elu(model.conv(x))
    scale = torch.sigmoid(model.squeeze(y.mean((2, 3))))
    assert torch.equal(model(x), model.head((y * scale[:, :, None, None]).mean((2, 3))))


def test_an_unplaced_sigmoid_stays_without_example_and_a_relu_does_not() -> None:
    class Loose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.relu, self.b, self.sigmoid = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1), nn.Sigmoid()

        def forward(self, x: Tensor) -> Tensor:
            return self.sigmoid(self.b(self.relu(self.a(x))))  # type: ignore[no-any-return]

    model = Loose()
    report = operate(model, activation="silu")
    assert isinstance(model.relu, nn.SiLU)
    assert isinstance(model.sigmoid, nn.Sigmoid)
    assert "may be a gate" in whys(report)["sigmoid"]


def test_features_returned_beside_the_logits_are_hidden_but_a_relu_on_the_way_out_is_mixed() -> None:
    class Both(Hidden):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            features = F.relu(self.fc1(x))
            return self.fc2(features), features

    class Loop(Hidden):
        def forward(self, x: Tensor) -> Tensor:
            for layer in (self.fc1, self.fc2):
                x = F.relu(layer(x))
            return x

    x = torch.randn(3, 4)
    assert not operate(Both(), activation="gelu", example=x).refused
    assert "several places" in next(iter(whys(operate(Loop(), activation="gelu", example=x)).values()))


def test_shortcuts_do_not_make_hidden_activations_outputs() -> None:
    class Residual(Hidden):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(x)
            return x[:, :2] + self.fc2(F.relu(self.fc1(x)))  # type: ignore[no-any-return]

    assert not operate(Residual(), activation="gelu", example=torch.randn(3, 4)).refused


def test_in_place_functions_still_work_in_place() -> None:
    class InPlace(Hidden):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.fc1(x)
            hidden.relu_()
            return self.fc2(hidden)  # type: ignore[no-any-return]

    model, x = InPlace(), torch.randn(3, 4)
    operate(model, activation="gelu", example=x)
    ours = torch.autograd.grad(model(x).sum(), model.fc1.weight)[0]
    theirs = torch.autograd.grad(model.fc2(F.gelu(model.fc1(x))).sum(), model.fc1.weight)[0]
    torch.testing.assert_close(ours, theirs)


def test_dropout_goes_behind_hidden_functions_only() -> None:
    model, x = Ending(), torch.ones(64, 4)
    operate(model, dropout=0.5, example=x)
    with torch.no_grad():
        model.fc2.weight.fill_(1.0)
        model.fc2.bias.fill_(0.0)
    seen = model(x)
    assert ((seen >= 0.5) & (seen <= 1)).all()
    assert not torch.equal(seen, model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_dropout_functions_get_the_rate() -> None:
    class Dropping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, self.training)

    model, x = Dropping(), torch.ones(10_000)
    operate(model, dropout=0.2, example=x)
    assert torch.isclose((model(x) == 0).float().mean(), torch.tensor(0.2), atol=0.02)
    assert torch.isclose(model(x).max(), torch.tensor(1.25))


def test_dropout_zero_switches_off() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)), torch.randn(3, 4)
    operate(model, dropout=0.0)
    assert torch.equal(model(x), model(x))


def test_lstm_dropout_needs_two_layers_and_its_gates_are_fixed() -> None:
    one, two = nn.LSTM(4, 4), nn.LSTM(4, 4, num_layers=2)
    report = operate(nn.ModuleList([one, two]), dropout=0.3, activation="relu")
    assert (one.dropout, two.dropout) == (0.0, 0.3)
    reasons = [refusal.why for refusal in report.refused if refusal.path == "0"]
    assert reasons == ["the gates of LSTM are fixed", "dropout of LSTM acts between layers only, and it has one"]


def test_rnn_nonlinearity() -> None:
    model, x = nn.RNN(4, 4), torch.randn(5, 2, 4)
    operate(model, activation="relu")
    reference = nn.RNN(4, 4, nonlinearity="relu")
    reference.load_state_dict(model.state_dict())
    assert torch.equal(model(x)[0], reference(x)[0])
    assert "tanh or relu only" in whys(operate(model, activation="gelu"))[""]


@pytest.mark.parametrize("training", [True, False])
def test_transformer_layer_activation_equals_torchs_own(training: bool) -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    reference = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
    reference.load_state_dict(model.state_dict())
    operate(model, activation="gelu")
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        torch.testing.assert_close(model.train(training)(x), reference.train(training)(x))


def test_norms_go_behind_hidden_layers_and_equal_a_hand_built_net() -> None:
    model, x = Hidden(), torch.randn(6, 4)
    operate(model, norm="batch", example=x)
    assert list(model.state_dict())[:3] == ["fc1.weight", "fc1.bias", "fc1.norm.weight"]
    hidden = F.linear(x, model.fc1.weight, model.fc1.bias)
    expected = model.fc2(F.relu(F.batch_norm(hidden, None, None, training=True)))
    torch.testing.assert_close(model(x), expected)


def test_norm_in_a_sequential_without_example() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 2))
    report = operate(model, norm="batch")
    assert [change.path for change in report.changes] == ["0", "3"]
    assert model(torch.randn(2, 3, 4, 4)).shape == (2, 2)


def test_a_linear_before_an_lstm_is_not_the_last_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.LSTM(4, 4))
    report = operate(model, norm="layer", zero_last=True)
    assert [change.path for change in report.changes] == ["0"]
    assert "no Linear or convolution makes the output" in whys(report)[""]


def test_unknown_order_is_refused_by_name() -> None:
    assert "pass example=" in whys(operate(Hidden(), norm="batch"))["fc1"]


def test_batch_norm_over_time_normalises_every_channel() -> None:
    model, x = Hidden(), torch.randn(5, 7, 4)
    operate(model, norm="batch", example=x)
    out = model.fc1(x)
    torch.testing.assert_close(out.mean((0, 1)), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var((0, 1), unbiased=False), torch.ones(8), atol=1e-2, rtol=0)


def test_replaced_norms_keep_scale_and_shift() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1))
    nn.init.uniform_(model[1].weight)  # type: ignore[arg-type]
    before = copy.deepcopy(model[1])
    operate(model, norm="layer")
    assert isinstance(model[1], nn.GroupNorm)
    assert torch.equal(model[1].weight, before.weight)  # type: ignore[arg-type]


def test_norm_none_takes_them_out() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
    operate(model, norm="none")
    assert isinstance(model[1], nn.Identity)


def test_transformer_norms_and_layers_that_run_twice_are_refused() -> None:
    assert "own LayerNorm" in whys(operate(nn.TransformerEncoderLayer(8, 2), norm="batch"))["norm1"]

    class Twice(Hidden):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(F.relu(self.fc1(F.relu(self.fc1(x[..., :4]))[..., :4])))  # type: ignore[no-any-return]

    assert "several times" in whys(operate(Twice(), norm="batch", example=torch.randn(3, 4)))["fc1"]


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.mix, self.head = nn.Embedding(10, 6), nn.Linear(6, 6), nn.Linear(6, 10, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.mix(self.embedding(tokens)).relu())  # type: ignore[no-any-return]

    model, tokens = Tied(), torch.randint(0, 10, (3, 4))
    report = operate(
        model, norm="layer", activation="gelu", dropout=0.1, init="orthogonal", zero_last=True, example=tokens
    )
    assert model.head.weight is model.embedding.weight
    torch.testing.assert_close(model.head.weight.T @ model.head.weight, torch.eye(6), atol=1e-5, rtol=0)
    assert "shared with embedding" in whys(report)["head"]


def test_lazy_compiled_and_hooked_modules_are_refused() -> None:
    assert "run the model once" in whys(operate(nn.Sequential(nn.LazyLinear(3), nn.ReLU()), init="kaiming"))["0"]
    hooked = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    hooked[1].register_forward_hook(lambda *_: None)
    assert "hooks are registered" in whys(operate(hooked, activation="gelu"))["1"]


def test_activation_checkpointing_is_refused() -> None:
    class Checkpointed(Hidden):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x, use_reentrant=False)  # type: ignore[no-any-return]

    report = operate(Checkpointed(), activation="gelu", example=torch.randn(3, 4))
    assert "checkpointing" in whys(report)[""]


def test_example_may_be_several_inputs_a_mapping_or_a_callable() -> None:
    class Two(Hidden):
        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"logits": self.fc2(F.relu(self.fc1(x + y)))}

    x = torch.randn(3, 4)
    for example in ((x, x), {"x": x, "y": x}, lambda model: model(x, x)["logits"].sum()):
        assert len(operate(Two(), activation="gelu", example=example).changes) == 1


def test_a_shared_module_is_replaced_everywhere() -> None:
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 2), act, nn.Linear(2, 2), act, nn.Linear(2, 2))
    operate(model, activation="tanh")
    assert isinstance(model[1], nn.Tanh)
    assert model[3] is model[1]


@contextmanager
def eager_compile(model: nn.Module) -> Iterator[nn.Module]:
    yield torch.compile(model, backend="eager")  # type: ignore[misc]
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Hidden, Ending])
def test_compiled_equals_eager(kind: type[nn.Module]) -> None:
    model, x = kind(), torch.randn(3, 4)
    operate(model, activation="gelu", norm="layer", example=x)
    with eager_compile(model) as compiled:
        torch.testing.assert_close(compiled(x), model(x))


def test_report_reads_as_text() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1), nn.Sigmoid())
    assert str(operate(model, activation="gelu")).splitlines() == [
        "1 changed, 1 left as it was",
        "  1: relu -> gelu",
        "  3: left, this sigmoid stays: it makes the model's output",
    ]
