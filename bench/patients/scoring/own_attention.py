"""The same texts with attention written by hand in `F.*`: one head, a residual, Adam, batches of 64."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from patients.case import Case
from patients.scoring import sets
from patients.scoring.program import Data, Host, Program, Sampled, multiclass


class Net(nn.Module):
    """Queries, keys and values from embeddings; what is attended to is added, averaged and read."""

    def __init__(self, size: int = 48, scale: float | None = None, dim: int = -1) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, size)
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.norm = nn.LayerNorm(size)
        self.mix, self.head = nn.Linear(size, 64), nn.Linear(64, 4)
        self.scale = size**-0.5 if scale is None else scale
        self.dim = dim

    def masked(self, scores: Tensor, _x: Tensor) -> Tensor:
        return scores

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        scores = self.masked(self.scale * self.query(h) @ self.key(h).transpose(1, 2), x)
        h = self.norm(h + F.softmax(scores, dim=self.dim) @ self.value(h))
        return self.head(F.gelu(self.mix(h.mean(1))))


class Masked(Net):
    """Looks at no filler token; a text of filler alone has nothing left to look at."""

    def __init__(self, low: float) -> None:
        super().__init__()
        self.low = low

    def masked(self, scores: Tensor, x: Tensor) -> Tensor:
        return scores.masked_fill((x >= 5).unsqueeze(1), self.low)


def strong_weights(scale: float | None) -> nn.Module:
    """Queries and keys start orthogonal, as in the paper that was followed."""
    model = Net(scale=scale)
    for layer in (model.query, model.key):
        nn.init.orthogonal_(layer.weight)
    return model


def adam(model: nn.Module, lr: float = 2e-3) -> Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr)


def with_empty_texts(seed: int) -> Data:
    """One text in two hundred holds filler only."""
    data = sets.tokens(seed)
    return replace(data, x=data.x.masked_fill(torch.rand(len(data.x), 1) < 0.005, 7))


HOST = Host("own-attention", "attention", "functional")
HEALTHY = Program(
    data=sets.tokens,
    model=Net,
    setup=adam,
    loss=F.cross_entropy,
    correct=multiclass,
    epochs=7,
    batch=64,
    loader=Sampled,
)

CASES: tuple[Case, ...] = (
    HOST.healthy(HEALTHY),
    HOST.healthy(replace(HEALTHY, model=partial(strong_weights, None)), "healthy-orthogonal"),
    HOST.healthy(replace(HEALTHY, model=partial(Masked, -1e4), data=with_empty_texts), "healthy-masked"),
    HOST.sick("nan_inf", "all-masked", replace(HEALTHY, model=partial(Masked, -torch.inf), data=with_empty_texts)),
    HOST.sick("softmax_wrong_dim", "attention-over-batch", replace(HEALTHY, model=partial(Net, dim=0))),
    HOST.sick("saturated_activation", "unscaled-scores", replace(HEALTHY, model=partial(strong_weights, 1.0))),
)
