"""Which token comes most often: a Transformer encoder of modules, AdamW, cross entropy, batches of 64."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from patients.case import Case
from patients.scoring import sets
from patients.scoring.program import Data, Host, Permuted, Program, multiclass


class Net(nn.Module):
    """Embedding and place, encoder layers, mean over time, head."""

    def __init__(self, layers: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 32)
        self.place = nn.Parameter(0.02 * torch.randn(1, 16, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(self.embed(x) + self.place)
        return self.head(h.mean(1))


class SoftmaxAtEnd(Net):
    """Probabilities instead of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(32, 4), nn.Softmax(dim=-1))


def adamw(model: nn.Module, lr: float = 3e-3) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr)


def frozen_encoder(model: nn.Module) -> Optimizer:
    """Only the head, as in fine tuning, but nothing was pretrained."""
    for name, weights in model.named_parameters():
        weights.requires_grad_(name.startswith("head"))
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)


def new_each_batch(model: nn.Module, _optimizer: Optimizer, loss: Tensor) -> None:
    fresh = adamw(model)
    fresh.zero_grad()
    loss.backward()
    fresh.step()


def linear_decay(optimizer: Optimizer, total: int) -> LRScheduler:
    return LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total))


def one_class(seed: int) -> Data:
    """Labels read from the wrong column, which is always 2."""
    data = sets.tokens(seed)
    return replace(data, y=torch.full_like(data.y, 2), y_val=torch.full_like(data.y_val, 2))


HOST = Host("tokens-attention", "attention")
HEALTHY = Program(
    data=sets.tokens,
    model=Net,
    setup=adamw,
    loss=nn.CrossEntropyLoss(),
    correct=multiclass,
    epochs=5,
    batch=64,
    loader=Permuted,
)
DECAYED = replace(HEALTHY, schedule=partial(linear_decay, total=5 * 32), per_batch=True)

CASES: tuple[Case, ...] = (
    HOST.healthy(HEALTHY),
    HOST.healthy(DECAYED, "healthy-decay"),
    HOST.healthy(replace(HEALTHY, model=partial(Net, dropout=0.1)), "healthy-dropout"),
    HOST.sick("softmax_before_ce", "softmax-at-end", replace(HEALTHY, model=SoftmaxAtEnd)),
    HOST.sick("frozen_params", "frozen-encoder", replace(HEALTHY, setup=frozen_encoder)),
    HOST.sick("optimizer_reset", "new-each-batch", replace(HEALTHY, update=new_each_batch)),
    HOST.sick("lr_schedule_collapse", "epochs-for-steps", replace(DECAYED, schedule=partial(linear_decay, total=5))),
    HOST.sick("lr_too_high", "lr-0.3", replace(HEALTHY, setup=partial(adamw, lr=0.3))),
    HOST.sick("lr_too_low", "lr-1e-6", replace(HEALTHY, setup=partial(adamw, lr=1e-6))),
    HOST.sick("degenerate_labels", "wrong-column", replace(HEALTHY, data=one_class)),
    HOST.sick("overfitting", "24-texts", replace(HEALTHY, data=partial(sets.tokens, n=24), batch=8, epochs=60)),
)
