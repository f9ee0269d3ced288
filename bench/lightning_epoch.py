"""Lightning's side of the benchmark; runs in an environment of its own and trains when a line asks for it.

Reads one JSON object a line (network, batch_size, epochs, kind, data: path of the tensors) and answers with the
seconds per epoch, measured from the first training batch to the end of the last epoch with its validation.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
import warnings
from functools import cache, partial
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from contenders import EVALUATION_BATCH, LR, NETWORKS, memory_batches
from torch.utils.data import DataLoader, TensorDataset

BARE: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Classifier(L.LightningModule):
    """The module that Lightning's own guide would have one write."""

    def __init__(self, network: str) -> None:
        super().__init__()
        self.network = NETWORKS[network]()

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        x, y = batch
        loss = F.cross_entropy(self.network(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        x, y = batch
        logits = self.network(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_accuracy", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=LR, fused=True)


class MemoryBatches:
    """Batches selected from tensors in memory, for a Trainer."""

    def __init__(self, data: Any, batch_size: int) -> None:
        self.data, self.batch_size = data, batch_size

    def __len__(self) -> int:
        return -(-len(self.data[0]) // self.batch_size)

    def __iter__(self) -> Any:
        return memory_batches(self.data, self.batch_size)


class Stopwatch(L.Callback):
    """From the first epoch's start to the last epoch's end; Lightning saves after that, which is not counted."""

    started = ended = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        self.started = self.started or time.perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.ended = time.perf_counter()


@cache
def tensors(path: str) -> Any:
    """Training and validation tensors, read once."""
    return torch.load(path)


def seconds_per_epoch(order: dict[str, Any]) -> float:
    train, val = tensors(order["data"])
    in_memory = partial(MemoryBatches, train, order["batch_size"])
    through_loader = partial(DataLoader, TensorDataset(*train), order["batch_size"], shuffle=True)
    bare = order["kind"] == "bare"
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=order["epochs"],
            default_root_dir=folder,
            num_sanity_val_steps=0,
            callbacks=[watch],
            **(BARE if bare else {}),
        )
        trainer.fit(
            Classifier(order["network"]),
            in_memory() if bare else through_loader(),
            DataLoader(TensorDataset(*val), EVALUATION_BATCH),
        )
    return (watch.ended - watch.started) / order["epochs"]


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # the progress bar goes elsewhere
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(json.dumps({"lightning": L.__version__, "torch": torch.__version__}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        torch.set_num_threads(order["threads"])
        print(json.dumps(seconds_per_epoch(order)), file=answers, flush=True)


if __name__ == "__main__":
    main()
