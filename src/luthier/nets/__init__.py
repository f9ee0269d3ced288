"""Reference networks, every structural choice an argument."""

from __future__ import annotations

from torch import nn

from luthier.nets.cnn import CNN
from luthier.nets.mlp import MLP
from luthier.nets.resnet import ResNet
from luthier.nets.rnn import RNN

__all__ = ["CNN", "MLP", "NETS", "RNN", "ResNet"]

NETS: dict[str, type[nn.Module]] = {"mlp": MLP, "cnn": CNN, "resnet": ResNet, "rnn": RNN}
"""Name -> builder, called with keywords."""
