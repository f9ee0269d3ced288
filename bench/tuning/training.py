"""The training function that all engines share: plain torch, batches selected from tensors in memory, no schedule."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuning.nets import builder
from tuning.tasks import Task, tensors

Pair = tuple[Tensor, Tensor]
EVALUATION_BATCH = 512
OPTIMIZERS = {
    "adamw": lambda parameters, **settings: torch.optim.AdamW(parameters, fused=True, **settings),
    "rmsprop": torch.optim.RMSprop,
    "sgd": lambda parameters, **settings: torch.optim.SGD(parameters, momentum=0.9, fused=True, **settings),
}


class Training:
    """One training that can be stopped after any epoch and gone on with later, bitwise the same.

    Args:
        task: gives network and number of classes.
        config: optimizer, lr, weight_decay, batch_size, dropout, width, depth.
        seed: of weights, order and dropout.
        train, val: tensors of inputs and labels.
    """

    def __init__(self, task: Task, config: dict[str, Any], seed: int, train: Pair, val: Pair) -> None:
        torch.manual_seed(seed)
        self.seed, self.train, self.val = seed, train, val
        sizes = {name: config[name] for name in ("width", "depth", "dropout")}
        self.model = builder(task.net, task.inputs, task.outputs)(**sizes)
        make = OPTIMIZERS[config["optimizer"]]
        self.optimizer = make(self.model.parameters(), lr=config["lr"], weight_decay=config["weight_decay"])
        self.batch_size, self.epochs = config["batch_size"], 0

    def epoch(self) -> float:
        """Train one epoch; returns the validation accuracy after it."""
        torch.manual_seed(self.seed * 1_000 + self.epochs)
        x, y = self.train
        self.model.train()
        for chosen in torch.randperm(len(x)).split(self.batch_size):
            loss = F.cross_entropy(self.model(x.index_select(0, chosen)), y.index_select(0, chosen))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.epochs += 1
        return accuracy(self.model, self.val)

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on."""
        return {"epochs": self.epochs, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.epochs = state["epochs"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def memory(task: Task) -> tuple[Pair, Pair]:
    """Training and validation part, and one torch thread, since two processes share two cores."""
    torch.set_num_threads(1)
    return tensors(task, "train"), tensors(task, "val")


@torch.inference_mode()
def accuracy(model: nn.Module, data: Pair) -> float:
    """Share of the examples whose class gets the highest logit."""
    model.eval()
    pairs = zip(data[0].split(EVALUATION_BATCH), data[1].split(EVALUATION_BATCH), strict=True)
    correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in pairs)
    return correct / len(data[1])
