"""Settings that experience says work for most networks, before anything is known about this one.

Sources: Smith & Topin 2019, Super-Convergence (one-cycle); Loshchilov & Hutter 2017, SGDR (cosine); Karpathy 2015,
"3e-4" and its multiples for Adam; He et al. 2015 (Kaiming); Ioffe & Szegedy 2015 (normalised layers bear higher lr).
"""

from __future__ import annotations

from typing import Any

ADAPTIVE = ("adam", "adamw", "nadam", "radam", "adamax", "lamb", "lion", "rmsprop")
"""Optimizers that scale each step themselves."""

FOR_ADAPTIVE: tuple[dict[str, Any], ...] = (
    {"schedule": "one-cycle", "lr": 1e-2, "batch_size": 128},
    {"schedule": "one-cycle", "lr": 3e-3, "batch_size": 64},
    {"schedule": "cosine", "lr": 1e-3, "batch_size": 32},
)
"""The quickest first; it is also more often the best than the second (see LOG.md)."""

FOR_SGD: tuple[dict[str, Any], ...] = (
    {"schedule": "one-cycle", "lr": 0.1, "batch_size": 64},
    {"schedule": "cosine", "lr": 0.03, "batch_size": 32},
)

STEPS: dict[str, Any] = {
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "warmup_frac": 0.0,
    "clip_norm": 1.0,
    "clip_value": None,
    "batch_growth": None,
}
"""How steps are made, beside learning rate and schedule."""

SIGNALS: dict[str, Any] = {"activation": "relu", "init": "kaiming"}
"""What lets signals through a network."""

UNREGULARISED: dict[str, Any] = {"dropout": None, "l1": 0.0, "label_smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0}
"""Nothing that keeps a network from fitting its data, other than the weight decay."""

PARAMETERS_PER_EXAMPLE = 50
"""With more of them a network is likely to learn its data by heart."""

FOR_FEW_EXAMPLES: dict[str, Any] = {"dropout": 0.3}
"""What helps such networks more often than not; smaller ones it harms (see LOG.md)."""
