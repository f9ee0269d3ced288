"""Accurate and small at once: a Pareto front of two objectives on 8x8 digits.

python examples/small_and_good.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import luthier


def net(width: int = 64) -> nn.Module:
    """Two layers; `width` is found by the search as `model.width`."""
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def digits() -> luthier.Task:
    """A fifth of the 1,797 images is kept to choose by."""
    images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    return luthier.Task(net, (images.float() / 16, labels), val=0.2, name="digits")


if __name__ == "__main__":
    study = luthier.tune(
        digits(),
        luthier.Recipe(epochs=10, batch_size=32),
        space={"lr": luthier.loguniform(1e-4, 1e-1), "model.width": luthier.integers(2, 128, log=True)},
        objectives=["accuracy", "parameters"],
        trials=12,
        workers=2,
    )
    print("the front, from the most accurate to the smallest:")
    for trial in sorted(study.front, key=lambda trial: -trial.scores["accuracy"]):
        scores = trial.scores
        print(f"  {scores['accuracy']:.3f} with {scores['parameters']:.0f} parameters: {trial.values}")
    print(f"report: {study.report('front.html')}")
