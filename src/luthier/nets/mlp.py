"""Fully connected network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from luthier.nets.parts import at_least, norm_or_none, rate, size_of, stack
from luthier.training.surgery.activations import activation as make_activation


class MLP(nn.Module):
    """Fully connected network: `depth` hidden layers of Linear, norm, activation, dropout, and a Linear on top.

    The "two-layer fully connected network" of the literature is depth=1.

    Args:
        inputs: numbers per example, or the shape of one; the network flattens by itself.
        outputs: logits per example.
        width: units of each hidden layer.
        depth: hidden layers; 0 is a linear model.
        activation: name, see `luthier.training.choices.ActivationName`.
        norm: name, see `luthier.training.choices.NormName`.
        dropout: rate in [0, 1) after each activation.
        bias: whether Linear layers have a bias.

    Raises:
        LuthierError: an unknown name or a value out of range.

    >>> import torch
    >>> MLP(784, 10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        inputs: int | Sequence[int],
        outputs: int,
        width: int = 128,
        depth: int = 1,
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        at_least(1, inputs=size_of(inputs), outputs=outputs, width=width)
        at_least(0, depth=depth)
        sizes = [size_of(inputs)] + [width] * depth
        self.hidden = nn.Sequential(
            *(
                stack(
                    nn.Linear(before, after, bias),
                    norm_or_none(norm, after, dims=0),
                    make_activation(activation),
                    nn.Dropout(rate(dropout)),
                )
                for before, after in pairwise(sizes)
            )
        )
        self.head = nn.Linear(sizes[-1], outputs, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, outputs] of examples [B, ...]."""
        logits: Tensor = self.head(self.hidden(x.flatten(1)))
        return logits
