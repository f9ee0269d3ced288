"""Every spelling of an operation gets the same plain name and attributes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from luthier.doctor.measure.attributes import arguments, attributes, tensors
from luthier.doctor.measure.operations import operation


class Listening(TorchFunctionMode):
    """Notes (name, attrs, number of tensors) of every operation."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        known = operation(func)
        if known is not None:
            attrs = attributes(known, args, kwargs, result)
            self.found.append((known.name, attrs, len(arguments(known, args, kwargs))))
        return result


def heard(call, *args):
    with Listening() as mode:
        call(*args)
    return mode.found


X = torch.rand(4, 6) + 0.1
IMAGE = torch.rand(2, 3, 8, 8)
SEQUENCE = torch.rand(5, 2, 6)
WHOLE = torch.tensor([0, 1, 2, 3])

SPELLINGS = {
    "relu": [F.relu, torch.relu, torch.Tensor.relu, nn.ReLU(), lambda x: x.clone().relu_(), nn.ReLU(inplace=True)],
    "sigmoid": [torch.sigmoid, F.sigmoid, nn.Sigmoid(), torch.special.expit],
    "tanh": [torch.tanh, F.tanh, nn.Tanh()],
    "softmax": [lambda x: F.softmax(x, 1), lambda x: x.softmax(1), lambda x: torch.softmax(x, dim=1), nn.Softmax(1)],
    "log_softmax": [lambda x: F.log_softmax(x, 1), lambda x: x.log_softmax(1), nn.LogSoftmax(1)],
    "gelu": [F.gelu, nn.GELU()],
    "silu": [F.silu, nn.SiLU()],
    "leaky_relu": [F.leaky_relu, nn.LeakyReLU()],
    "logsigmoid": [F.logsigmoid, nn.LogSigmoid()],
    "hardtanh": [F.hardtanh, nn.Hardtanh()],
    "threshold": [lambda x: F.threshold(x, 0.0, 0.0), nn.Threshold(0.0, 0.0)],
    "clamp": [lambda x: x.clamp(min=0), lambda x: x.clip(0), lambda x: x.clamp_min(0), lambda x: torch.clamp(x, 0)],
    "dropout": [F.dropout, nn.Dropout(0.5), nn.AlphaDropout(0.5), lambda x: torch.dropout(x, 0.5, True)],
    "linear": [nn.Linear(6, 2), lambda x: F.linear(x, torch.ones(2, 6)), lambda x: torch._C._nn.linear(x, x)],
    "matmul": [lambda x: x @ x.clone().reshape(6, 4), lambda x: torch.mm(x, x.reshape(6, 4)), lambda x: x.mv(x[0])],
    "transpose": [lambda x: x.T, lambda x: x.t(), lambda x: x.mT, lambda x: x.transpose(0, 1), torch.t],
    "add": [
        lambda x: x + x,
        lambda x: x.add(1),
        lambda x: 1 + x,
        lambda x: torch.add(x, 1),
        lambda x: x.clone().add_(1),
    ],
    "sub": [lambda x: x - 1, lambda x: 1 - x, lambda x: x.subtract(x)],
    "mul": [lambda x: x * 2, lambda x: 2 * x, lambda x: x.mul(x), lambda x: torch.multiply(x, 3)],
    "div": [lambda x: x / 2, lambda x: 2 / x, lambda x: x.true_divide(2), lambda x: torch.div(x, x)],
    "pow": [lambda x: x**2, lambda x: 2**x, lambda x: x.pow(2), lambda x: torch.pow(x, 2)],
    "to": [
        torch.Tensor.float,
        torch.Tensor.half,
        lambda x: x.to(torch.float64),
        torch.Tensor.cpu,
        lambda x: x.type_as(x),
    ],
    "detach": [torch.Tensor.detach, lambda x: x.data],
    "getitem": [lambda x: x[0], lambda x: x[:, 1]],
    "setitem": [lambda x: x.__setitem__(0, 1.0)],
    "cat": [lambda x: torch.cat([x, x]), lambda x: torch.concat((x, x)), lambda x: torch.hstack((x, x))],
    "norm": [torch.norm, torch.Tensor.norm, torch.linalg.norm, torch.linalg.vector_norm],
    "cross_entropy": [lambda x: F.cross_entropy(x, WHOLE), lambda x: nn.CrossEntropyLoss()(x, WHOLE)],
    "nll_loss": [lambda x: F.nll_loss(x, WHOLE), lambda x: nn.NLLLoss()(x, WHOLE)],
    "mse_loss": [lambda x: F.mse_loss(x, x), lambda x: nn.MSELoss()(x, x)],
    "layer_norm": [nn.LayerNorm(6), lambda x: F.layer_norm(x, (6,))],
    "einsum": [lambda x: torch.einsum("ij,kj->ik", x, x)],
    "embedding": [lambda x: F.embedding(WHOLE, x), lambda x: nn.Embedding.from_pretrained(x)(WHOLE)],
}


@pytest.mark.parametrize(
    ("name", "position"), [(name, position) for name, calls in SPELLINGS.items() for position in range(len(calls))]
)
def test_spellings_share_a_name(name, position):
    call = SPELLINGS[name][position]
    assert heard(call, X.clone())[-1][0] == name


@pytest.mark.parametrize(
    ("name", "call", "given"),
    [
        ("conv2d", nn.Conv2d(3, 4, 3), IMAGE),
        ("conv_transpose2d", nn.ConvTranspose2d(3, 4, 3), IMAGE),
        ("max_pool2d", nn.MaxPool2d(2), IMAGE),
        ("max_pool2d", lambda x: F.max_pool2d(x, 2, return_indices=True), IMAGE),
        ("avg_pool2d", nn.AvgPool2d(2), IMAGE),
        ("adaptive_avg_pool2d", nn.AdaptiveAvgPool2d(1), IMAGE),
        ("batch_norm", nn.BatchNorm2d(3), IMAGE),
        ("group_norm", nn.GroupNorm(1, 3), IMAGE),
        ("instance_norm", nn.InstanceNorm2d(3), IMAGE),
        ("dropout", nn.Dropout2d(), IMAGE),
        ("lstm", nn.LSTM(6, 5), SEQUENCE),
        ("gru", nn.GRU(6, 5), SEQUENCE),
        ("rnn", nn.RNN(6, 5), SEQUENCE),
        ("rnn", nn.RNN(6, 5, nonlinearity="relu"), SEQUENCE),
        ("gru_cell", nn.GRUCell(6, 5), X),
        ("rnn_cell", nn.RNNCell(6, 5), X),
        ("matmul", lambda x: torch.bmm(x, x.mT), SEQUENCE),
        ("scaled_dot_product_attention", lambda x: F.scaled_dot_product_attention(x, x, x), SEQUENCE),
    ],
)
def test_layers_have_plain_names(name, call, given):
    with torch.no_grad():
        assert heard(call, given)[-1][0] == name


def test_attention_is_one_operation():
    attention = nn.MultiheadAttention(6, 2, dropout=0.1)
    found = heard(lambda x: attention(x, x, x, attn_mask=torch.zeros(5, 5)), SEQUENCE)
    name, attrs, _ = found[-1]
    assert name == "multi_head_attention"
    assert (attrs["num_heads"], attrs["p"], attrs["training"], attrs["masked"]) == (2, 0.1, True, True)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.shape,
        lambda x: x.size(0),
        lambda x: x.requires_grad,
        lambda x: x.grad,
        lambda x: x.is_leaf,
        lambda x: len(x),
        lambda x: x.tolist(),
        lambda x: torch.zeros(3),
        lambda x: torch.randn_like(x),
        lambda x: x.new_zeros(2),
        lambda x: x.is_contiguous(),
        lambda x: nn.init.normal_(x),
        lambda x: bool(x.sum().item() > 0),
    ],
)
def test_questions_and_factories_are_no_operations(call):
    assert [name for name, _, _ in heard(call, X.clone())] in ([], ["sum"])


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: F.dropout(X, 0.3), {"p": 0.3, "training": True, "inplace": False}),
        (lambda: X * 2, {"scalar": 2}),
        (lambda: 1 - X, {"scalar": 1, "reversed": True}),
        (lambda: torch.sub(1, X), {"scalar": 1, "reversed": True}),
        (lambda: 2**X, {"scalar": 2, "reversed": True}),
        (lambda: X**3, {"exponent": 3}),
        (lambda: X.clone().mul_(0.5), {"scalar": 0.5, "inplace": True}),
        (lambda: X.softmax(0), {"dim": 0}),
        (lambda: F.softmax(X, dim=-1), {"dim": -1}),
        (lambda: X.mean(0, keepdim=True), {"dim": 0, "keepdim": True}),
        (lambda: X.mean((0, 1)), {"dim": [0, 1]}),
        (lambda: X.transpose(0, 1), {"dim": [0, 1]}),
        (lambda: IMAGE.permute(0, 2, 3, 1), {"dim": [0, 2, 3, 1]}),
        (lambda: X.clamp(0, 6), {"min": 0, "max": 6}),
        (lambda: X.clamp_min(0), {"min": 0}),
        (lambda: F.leaky_relu(X, 0.2), {"negative_slope": 0.2, "inplace": False}),
        (lambda: X.masked_fill(X > 2, float("-inf")), {"value": "-inf"}),
        (lambda: torch.einsum("ij,kj->ik", X, X), {"equation": "ij,kj->ik"}),
        (lambda: F.max_pool2d(IMAGE, 2), {"kernel": 2, "padding": 0, "dilation": 1}),
        (lambda: F.conv2d(IMAGE, torch.ones(3, 1, 2, 2), groups=3), {"groups": 3, "kernel": [2, 2]}),
        (lambda: F.mse_loss(X, X, reduction="sum"), {"reduction": "sum"}),
    ],
)
def test_attributes(call, expected):
    assert heard(call)[-1][1] == expected


def test_attributes_of_losses_and_recurrent_layers():
    weighted = heard(lambda: F.cross_entropy(X, WHOLE, weight=torch.ones(6), label_smoothing=0.1))[-1][1]
    assert (weighted["weighted"], weighted["label_smoothing"]) == (True, 0.1)
    assert "weighted" not in heard(lambda: F.cross_entropy(X, WHOLE))[-1][1]
    unweighted = heard(nn.Linear(6, 2), X)[-1][1]
    assert "weighted" not in unweighted
    lstm = heard(nn.LSTM(6, 5, num_layers=2, dropout=0.2, bidirectional=True, batch_first=True), SEQUENCE)[-1][1]
    assert (lstm["hidden_size"], lstm["num_layers"], lstm["p"], lstm["bidirectional"]) == (5, 2, 0.2, True)
    packed = nn.utils.rnn.pack_sequence([torch.rand(3, 6), torch.rand(2, 6)])
    gru = heard(nn.GRU(6, 5), packed)[-1][1]
    assert (gru["hidden_size"], gru["num_layers"], gru["bidirectional"], gru["training"]) == (5, 1, False, True)


def test_arguments_come_in_the_order_of_the_signature():
    targets = torch.zeros(4, 6)
    with Listening() as mode:
        F.mse_loss(target=targets, input=X)
    assert mode.found[-1][2] == 2
    known = operation(F.mse_loss)
    assert arguments(known, (), {"target": targets, "input": X})[0] is X


def test_tensors_are_found_in_nested_values():
    found = tensors({"a": X, "b": [X, (X, {"c": X})], "d": "text", "e": 3})
    assert len(found) == 4
