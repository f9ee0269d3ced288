"""Built-in tasks on tables."""

from __future__ import annotations

from luthier.data import load
from luthier.nets import MLP
from luthier.recipe import Recipe
from luthier.task import Task
from luthier.tasks.subjects import Subject


def linear() -> Subject:
    """Synthetic linear regression: the smallest task there is."""
    data = load("linear")
    features = data.train[0].shape[1]

    def linear_model(width: int = 32, depth: int = 0) -> MLP:
        return MLP(inputs=features, outputs=1, width=width, depth=depth)

    task = Task(linear_model, data.train, val=0.2, test=data.test, loss="mse", name="linear")
    return Subject(task, Recipe(lr=1e-2, epochs=20, batch_size=64))
