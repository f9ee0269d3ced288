"""What the names of curves in logs mean, told by their words: `Loss/train`, `val_acc`, `lr-Adam`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["step", "epoch", "lr", "metric"]
SIDES = (
    dict.fromkeys(("train", "training", "tr", "fit"), "train")
    | dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation", "holdout"), "val")
    | {"test": "test"}
)
QUANTITIES = {
    "loss": "loss",
    "losses": "loss",
    "cost": "loss",
    "criterion": "loss",
    "objective": "loss",
    "acc": "accuracy",
    "accuracy": "accuracy",
    "top1": "accuracy",
    "accuracy1": "accuracy",
    "acc1": "accuracy",
    "ppl": "perplexity",
} | {name: name for name in ("perplexity", "error", "mse", "mae", "rmse", "f1", "auc", "auroc", "r2", "precision")}
QUANTITIES |= {name: name for name in ("recall", "iou", "dice", "bleu", "psnr", "nll", "wer", "cer", "score")}
_STEPS = {"step", "steps", "iteration", "iterations", "iter", "iters", "batch", "batches"}
_UNREAD = {"time", "runtime", "timestamp", "wall", "second", "seconds", "sec", "fps", "throughput", "duration", "eta"}
_UNREAD |= {"speed", "examples", "samples", "size", "memory", "mem", "gpu", "cpu"}
_FILLERS = {"mean", "avg", "average", "global", "trainer", "metrics", "metric", "scalar", "scalars", "per", "model"}


@dataclass(frozen=True)
class Meaning:
    """What a curve is.

    Attributes:
        kind: an axis (step, epoch), a learning rate or a metric.
        side: train, val or test; "" when the name does not tell.
        quantity: loss, accuracy, ...; "" for axes.
        per: "step" or "epoch" when the name says how often it is taken, else "".
    """

    kind: Kind
    side: str = ""
    quantity: str = ""
    per: str = ""


def words_of(name: str) -> list[str]:
    """Lower-case words of a name.

    >>> words_of("trainLoss"), words_of("Loss/train"), words_of("val_acc (%)")
    (['train', 'loss'], ['loss', 'train'], ['val', 'acc'])
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return re.findall(r"[a-z0-9]+", spaced.lower())


def meaning(name: str) -> Meaning | None:
    """What a curve's name says; None for times, sizes and whatever else no rule reads.

    >>> meaning("val/acc")
    Meaning(kind='metric', side='val', quantity='accuracy', per='')
    >>> meaning("trainer/global_step").kind, meaning("lr-AdamW").kind, meaning("train_loss_epoch").per
    ('step', 'lr', 'epoch')
    >>> meaning("_runtime") is None
    True
    """
    words = [word for word in words_of(name) if word not in _FILLERS]
    told = set(words)
    if told & _UNREAD or not words:
        return None
    if "lr" in told or {"learning", "rate"} <= told:
        return Meaning("lr")
    if told <= _STEPS:
        return Meaning("step")
    if told <= {"epoch", "epochs"}:
        return Meaning("epoch")
    return _metric(words)


def _metric(words: list[str]) -> Meaning | None:
    sides = [SIDES[word] for word in words if word in SIDES]
    per = "epoch" if {"epoch", "epochs"} & set(words) else "step" if _STEPS & set(words) else ""
    rest = [word for word in words if word not in SIDES and word not in _STEPS and word not in ("epoch", "epochs")]
    known = [word for word in rest if word in QUANTITIES]
    if not rest or len(set(sides)) > 1 or not (sides or known):
        return None
    return Meaning("metric", sides[0] if sides else "", "_".join(QUANTITIES.get(word, word) for word in rest), per)


def side_of_folder(name: str) -> bool:
    """Whether a subfolder is one side of a training, as Keras (`train`) and `add_scalars` (`loss_val`) make them."""
    words = words_of(name)
    return sum(word in SIDES for word in words) == 1 and all(word in SIDES or word in QUANTITIES for word in words)
