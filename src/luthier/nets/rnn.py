"""Recurrent text classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from luthier.errors import unknown
from luthier.nets.parts import at_least, rate

CellName = Literal["lstm", "gru", "rnn"]
PoolName = Literal["last", "mean", "max"]

CELLS: dict[str, Callable[..., nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class RNN(nn.Module):
    """Text classifier: embedding, dropout, recurrent layers, pooling over time, dropout, Linear.

    Padding never matters: the recurrent layers see each text at its own length, and pooling leaves padding out.
    A text's length is the place after its last token that is not padding; an empty text is read as one padding token.

    Args:
        vocabulary: number of token ids.
        outputs: logits per text.
        embedding: size of a token's vector.
        hidden: units of each recurrent layer and direction.
        depth: recurrent layers.
        cell: "lstm", "gru" or "rnn".
        bidirectional: whether texts are read in both directions.
        dropout: rate in [0, 1) of embedding, between recurrent layers, and before the Linear.
        pool: "last" (final state of each direction), "mean" or "max" over a text's own tokens.
        pad: the id that pads; its vector stays zero.

    Raises:
        LuthierError: an unknown name or a value out of range.

    >>> RNN(100, 2)(torch.tensor([[5, 7, 0], [9, 0, 0]])).shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        vocabulary: int,
        outputs: int,
        embedding: int = 64,
        hidden: int = 64,
        depth: int = 1,
        cell: CellName = "lstm",
        bidirectional: bool = True,
        dropout: float = 0.0,
        pool: PoolName = "last",
        pad: int = 0,
    ) -> None:
        super().__init__()
        at_least(1, vocabulary=vocabulary, outputs=outputs, embedding=embedding, hidden=hidden, depth=depth)
        if cell not in CELLS:
            raise unknown("cell", cell, CELLS)
        if pool not in ("last", "mean", "max"):
            raise unknown("pool", pool, ("last", "mean", "max"))
        self.pad, self.pool = pad, pool
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=pad)
        self.dropout_in = nn.Dropout(rate(dropout))
        self.recurrent = CELLS[cell](
            embedding,
            hidden,
            depth,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout if depth > 1 else 0.0,
        )
        self.dropout_out = nn.Dropout(dropout)
        self.head = nn.Linear(hidden * (2 if bidirectional else 1), outputs)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Logits [B, outputs] of padded token ids, int64 [B, L]."""
        length_B = lengths(tokens_BL, self.pad)
        vectors_BLE = self.dropout_in(self.embedding(tokens_BL))
        packed = pack_padded_sequence(vectors_BLE, length_B.cpu(), batch_first=True, enforce_sorted=False)
        steps, state = self.recurrent(packed)
        logits: Tensor = self.head(self.dropout_out(self._pooled(steps, state, length_B)))
        return logits

    def _pooled(self, steps: nn.utils.rnn.PackedSequence, state: Tensor | tuple[Tensor, Tensor], n_B: Tensor) -> Tensor:
        if self.pool == "last":
            last_DBH = (state[0] if isinstance(state, tuple) else state)[-(1 + self.recurrent.bidirectional) :]
            return last_DBH.transpose(0, 1).flatten(1)
        steps_BLH, _ = pad_packed_sequence(steps, batch_first=True)
        outside_BL1 = (torch.arange(steps_BLH.shape[1], device=n_B.device) >= n_B[:, None])[..., None]
        if self.pool == "mean":
            return steps_BLH.masked_fill(outside_BL1, 0.0).sum(1) / n_B[:, None]
        return steps_BLH.masked_fill(outside_BL1, -torch.inf).amax(1)


def lengths(tokens_BL: Tensor, pad: int) -> Tensor:
    """Length of each text [B]: the place after its last token that is not padding, at least 1.

    >>> lengths(torch.tensor([[5, 0, 7, 0], [0, 0, 0, 0]]), pad=0)
    tensor([3, 1])
    """
    places_L = torch.arange(1, tokens_BL.shape[1] + 1, device=tokens_BL.device)
    return ((tokens_BL != pad) * places_L).amax(1).clamp(min=1)
