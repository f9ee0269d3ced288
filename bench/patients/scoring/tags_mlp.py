"""Topics of texts, several at once: a net of modules, AdamW, binary cross entropy for each topic, batches of 64."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from patients.case import Case
from patients.scoring import sets
from patients.scoring.program import Data, Host, Program, Sampled, binary


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(30, 64), nn.LayerNorm(64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 8))


def adamw(model: nn.Module, lr: float = 3e-3) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)


HOST = Host("tags-mlp", "mlp")
HEALTHY = Program(
    data=sets.tags,
    model=mlp,
    setup=adamw,
    loss=nn.BCEWithLogitsLoss(),
    correct=binary,
    epochs=12,
    batch=64,
    loader=Sampled,
)


def random_tags(seed: int) -> Data:
    """Crowd workers who clicked at random: four tags in ten are wrong."""
    data = sets.tags(seed)

    def clicked(y: Tensor) -> Tensor:
        return torch.where(torch.rand(y.shape) < 0.4, 1 - y, y)

    return replace(data, y=clicked(data.y), y_val=clicked(data.y_val))


CASES: tuple[Case, ...] = (
    HOST.healthy(HEALTHY),
    HOST.sick("wrong_loss", "softmax-for-many", replace(HEALTHY, loss=nn.CrossEntropyLoss())),
    HOST.sick("label_noise", "random-clicks", replace(HEALTHY, data=random_tags)),
    HOST.sick("lr_too_high", "lr-1", replace(HEALTHY, setup=partial(adamw, lr=1.0))),
    HOST.sick("too_few_epochs", "two-epochs", replace(HEALTHY, epochs=2, setup=partial(adamw, lr=1e-3))),
)
