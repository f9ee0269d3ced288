"""Linear: synthetic regression, for tests and for learning how a loss behaves.

    y = X w + noise,    X ~ N(0, 1),    w ~ N(0, 1),    noise ~ N(0, 0.1^2)

The best mean squared error that any model can reach is 0.01 on average.
"""

from __future__ import annotations

import numpy as np

from luthier.data.dataset import Arrays
from luthier.data.fetching import Generated

SEED, TRAIN, TEST, FEATURES, NOISE = 0, 1000, 1000, 10, 0.1


def make() -> Arrays:
    """Inputs float32 [N, 10] and targets float32 [N, 1], from a generator whose stream numpy never changes."""
    random = np.random.RandomState(SEED)
    weights = random.standard_normal((FEATURES, 1))
    inputs = random.standard_normal((TRAIN + TEST, FEATURES))
    noise = NOISE * random.standard_normal((TRAIN + TEST, 1))
    targets = (inputs * weights.T).sum(1, keepdims=True) + noise
    x, y = inputs.astype(np.float32), targets.astype(np.float32)
    return {"train_inputs": x[:TRAIN], "train_targets": y[:TRAIN], "test_inputs": x[TRAIN:], "test_targets": y[TRAIN:]}


LINEAR = Generated(name="linear", make=make)
