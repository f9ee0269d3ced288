"""Which way a metric is better, told by its name."""

from __future__ import annotations

SMALLER = ("loss", "error", "err", "mse", "mae", "rmse", "nll", "perplexity", "ppl", "wer", "cer", "fid", "distance")


def direction_of(name: str) -> str:
    """Tell "min" for losses and errors, else "max".

    >>> direction_of("val_loss"), direction_of("val_accuracy"), direction_of("test/RMSE")
    ('min', 'max', 'min')
    """
    words = name.lower().replace("/", "_").replace("-", "_").replace(".", "_").split("_")
    return "min" if any(word in SMALLER or word.endswith("loss") for word in words) else "max"
