"""Your own module and arrays: train, then search for a better recipe.

python examples/own_data.py
luthier fit examples/own_data.py:task --dropout 0.2
luthier tune examples/own_data.py:task --trials 20
"""

import torch
from torch import nn

import luthier


class Net(nn.Module):
    """Two moons need a hidden layer; `width` is found by the search as `model.width`."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def moons(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two half circles that reach into each other."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    angle = torch.rand(n, generator=generator) * torch.pi
    x = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    x = torch.where(y[:, None] == 1, torch.tensor([1.0, 0.5]) - x, x)
    return x + 0.15 * torch.randn(n, 2, generator=generator), y


def task() -> tuple[luthier.Task, luthier.Recipe]:
    """What is trained, and the recipe to start from."""
    train, test = moons(1000, seed=0), moons(500, seed=1)
    return luthier.Task(Net, train, val=0.2, test=test, name="moons"), luthier.Recipe(lr=1e-3, epochs=5, batch_size=32)


if __name__ == "__main__":
    moons_task, recipe = task()
    record = luthier.fit(moons_task, recipe)
    print(f"best validation accuracy by the starting recipe: {record.best:.3f}")
    space = {"lr": luthier.loguniform(1e-4, 1e-1), "model.width": luthier.choice(16, 64, 256)}
    study = luthier.tune(moons_task, recipe, space, trials=8, workers=2)
    print(f"comparison: {study.comparison}")
    print(f"report: {study.report('moons.html')}")
