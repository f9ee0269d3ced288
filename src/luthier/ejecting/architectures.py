"""Luthier's reference networks as classes of plain torch, with what surgery did to their layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from luthier.ejecting.modules import chain, expression, one_or_sequential, sequential
from luthier.ejecting.sources import EjectError, Sources
from luthier.nets import CNN, RNN, ResNet
from luthier.nets.rnn import lengths


def _cnn(model: Any) -> list[str]:
    only(model, {"blocks", "head"})
    return [
        f'''class Net(nn.Module):
    """Convolutions, mean over all positions, linear layer."""

    def __init__(self):
        super().__init__()
        self.blocks = {sequential(chain(model.blocks), " " * 8)}
        self.head = {_one(model.head)}

    def forward(self, x):
        return self.head(self.blocks(x).mean((2, 3)))''',
        "Net()",
    ]


def _resnet(model: Any) -> list[str]:
    only(model, {"stem", "blocks", "head"})
    blocks = [
        f"""            Block(
                body={sequential(chain(block.body), " " * 16)},
                shortcut={one_or_sequential(block.shortcut, " " * 16)},
                activation={one_or_sequential(block.activation, " " * 16)},
            ),"""
        for block in model.blocks
    ]
    return [
        '''class Block(nn.Module):
    """Layers around a shortcut (He et al. 2016)."""

    def __init__(self, body, shortcut, activation):
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, activation

    def forward(self, x):
        return self.activation(self.shortcut(x) + self.body(x))''',
        f'''class Net(nn.Module):
    """Stem, residual blocks, mean over all positions, linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = {sequential(chain(model.stem), " " * 8)}
        self.blocks = nn.Sequential(
{chr(10).join(blocks)}
        )
        self.head = {_one(model.head)}

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))''',
        "Net()",
    ]


def _rnn(model: Any) -> list[str]:
    only(model, {"embedding", "dropout_in", "recurrent", "dropout_out", "head"})
    sources = Sources()
    sources.add(lengths, "the network")
    tail = {
        "last": [
            "    _, state = self.recurrent(packed)",
            f"    last = {'state[0]' if isinstance(model.recurrent, nn.LSTM) else 'state'}"
            f"[-{1 + int(model.recurrent.bidirectional)}:]",
            "    pooled = last.transpose(0, 1).flatten(1)",
        ],
        "mean": [*_POOLING, "    pooled = steps.masked_fill(outside, 0.0).sum(1) / n[:, None]"],
        "max": [*_POOLING, "    pooled = steps.masked_fill(outside, -torch.inf).amax(1)"],
    }[str(model.pool)]
    return [
        sources.blocks["lengths"],
        f'''class Net(nn.Module):
    """Embedding, recurrent layers over each text at its own length, pooling ({model.pool}), linear layer."""

    def __init__(self):
        super().__init__()
        self.embedding = {_one(model.embedding)}
        self.dropout_in = {expression(model.dropout_in)}
        self.recurrent = {_one(model.recurrent)}
        self.dropout_out = {expression(model.dropout_out)}
        self.head = {_one(model.head)}

    def forward(self, tokens):
        n = lengths(tokens, pad={model.pad!r})
        vectors = self.dropout_in(self.embedding(tokens))
        packed = pack_padded_sequence(vectors, n, batch_first=True, enforce_sorted=False)
    {(chr(10) + "    ").join(tail)}
        return self.head(self.dropout_out(pooled))''',
        "Net()",
    ]


_POOLING = (
    "    steps, _ = self.recurrent(packed)",
    "    steps, _ = pad_packed_sequence(steps, batch_first=True)",
    "    outside = (torch.arange(steps.shape[1]) >= n[:, None])[..., None]",
)
ARCHITECTURES: dict[type[nn.Module], Callable[[Any], list[str]]] = {
    CNN: _cnn,
    ResNet: _resnet,
    RNN: _rnn,
}


def only(model: nn.Module, names: set[str]) -> None:
    """Refuse a reference network to which something was added that its plain form would lose."""
    if set(dict(model.named_children())) != names or "forward" in vars(model):
        raise EjectError(f"the {type(model).__name__} was changed by hand: eject knows its plain form only")


def _one(module: nn.Module) -> str:
    """One layer; refused when something is attached to it."""
    (layer,) = chain(module)
    return expression(layer)
