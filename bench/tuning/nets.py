"""The networks of the tasks, in plain torch.

Shapes: B batch, C channels, H, W image, L tokens, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


def mlp(inputs: int, outputs: int, width: int = 128, depth: int = 2, dropout: float = 0.0) -> nn.Module:
    """Hidden layers of Linear, ReLU, Dropout, and a Linear on top."""
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout)]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def cnn(inputs: int, outputs: int, width: int = 16, depth: int = 3, dropout: float = 0.0) -> nn.Module:
    """Blocks of convolution, ReLU, pooling by 2, Dropout, channels doubled from block to block; Linear on top."""
    channels, size, layers = 1, int(inputs**0.5), list[nn.Module]()
    for block in range(depth):
        wider = width * 2**block
        layers += [nn.Conv2d(channels, wider, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(dropout)]
        channels, size = wider, size // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size * size, outputs))


class GRU(nn.Module):
    """Embedding, bidirectional GRU over each text at its own length, maximum over time, Linear."""

    def __init__(self, words: int, outputs: int, width: int = 64, depth: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width, padding_idx=0)
        self.dropout_in = nn.Dropout(dropout)
        between = dropout if depth > 1 else 0.0
        self.recurrent = nn.GRU(width, width, depth, batch_first=True, bidirectional=True, dropout=between)
        self.dropout_out = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, outputs)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        length_B = (tokens_BL != 0).sum(1).clamp(min=1)
        vectors_BLE = self.dropout_in(self.embedding(tokens_BL))
        packed = pack_padded_sequence(vectors_BLE, length_B, batch_first=True, enforce_sorted=False)
        steps_BLH, _ = pad_packed_sequence(self.recurrent(packed)[0], batch_first=True, padding_value=-torch.inf)
        return self.head(self.dropout_out(steps_BLH.amax(1)))


NETS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "cnn": cnn, "gru": GRU}


def builder(net: str, inputs: int, outputs: int) -> Callable[..., nn.Module]:
    """A network's builder for one task; keywords: width, depth, dropout."""
    return partial(NETS[net], inputs, outputs)
