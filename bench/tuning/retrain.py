"""A winner trained again with fresh seeds: `python -m tuning.retrain CONTENDER TASK FOLDER SECONDS`.

Of each training the weights of its best epoch by validation count; with these the test data are read, once.
Writes FOLDER/retrained.json: val, test, and the validation after the last epoch, of each seed.
"""

from __future__ import annotations

import copy
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tuning.one import CHOICE, PROCESSES, readings
from tuning.tasks import TASKS, Task

SEEDS = (1_000_001, 1_000_002, 1_000_003, 1_000_004)


def winner(found: list[dict[str, Any]], seconds: float, folder: Path) -> dict[str, Any]:
    """The best reading within the time, the first of equals: of the trial that the contender chose, if it told one."""
    choice = folder / CHOICE
    chosen = choice.read_text() if choice.exists() else None
    within = [reading for reading in found if reading["t"] <= seconds and chosen in (None, reading["trial"])]
    return max(within, key=lambda reading: reading["value"])


def retrain(contender: str, task: Task, config: dict[str, Any], seed: int, folder: Path) -> dict[str, float]:
    """One training by the contender's own means: the shared function, its recipe, or the tutorial's loop."""
    import torch

    torch.set_num_threads(1)
    if contender == "luthier":
        return _by_recipe(task, config, seed, folder / f"retrained-{seed}")
    return _by_tutorial(task, config, seed) if contender == "optuna-tutorial" else _by_function(task, config, seed)


class Best:
    """Keeps the weights of the best epoch."""

    def __init__(self) -> None:
        self.value, self.last, self.model = -1.0, -1.0, None

    def __call__(self, epoch: int, value: float, model: Any) -> None:
        self.last = value
        if value > self.value:
            self.value, self.model = value, copy.deepcopy(model)

    def with_test(self, task: Task) -> dict[str, float]:
        """Both validation values, and the test accuracy of the best weights."""
        from tuning.tasks import tensors
        from tuning.training import accuracy

        return {"val": self.value, "last": self.last, "test": accuracy(self.model, tensors(task, "test"))}


def _by_function(task: Task, config: dict[str, Any], seed: int) -> dict[str, float]:
    from tuning.training import Training, memory

    training, best = Training(task, config, seed, *memory(task)), Best()
    for epoch in range(task.epochs):
        best(epoch, training.epoch(), training.model)
    return best.with_test(task)


def _by_tutorial(task: Task, config: dict[str, Any], seed: int) -> dict[str, float]:
    import torch

    from tuning.peers_optuna import fixed
    from tuning.tutorial import loaders, train

    torch.manual_seed(seed)
    best = Best()
    train(task, fixed(config), *loaders(task), best)
    return best.with_test(task)


def _by_recipe(task: Task, config: dict[str, Any], seed: int, folder: Path) -> dict[str, float]:
    import luthier
    from luthier.fitting import evaluate_test
    from tuning.ours import task_for

    subject = task_for(task, test=True)
    recipe = luthier.Recipe.from_json(config["recipe"]).replace({"seed": seed})
    record = luthier.fit(subject, recipe, folder=folder, console=False, tensorboard=False, watch=False)
    metric = subject.metric.name
    read = record.metrics[f"val_{metric}"]
    return {"val": max(read), "last": read[-1], "test": evaluate_test(subject, [record])[0][metric]}


def main(contender: str, name: str, where: str, seconds: str) -> None:
    folder, task = Path(where), TASKS[name]
    best = winner(readings(folder), float(seconds), folder)
    with ProcessPoolExecutor(PROCESSES) as pool:
        jobs = [pool.submit(retrain, contender, task, best["config"], seed, folder) for seed in SEEDS]
        trained = [job.result() for job in jobs]
    values = {name: [one[name] for one in trained] for name in ("val", "last", "test")}
    (folder / "retrained.json").write_text(json.dumps(values))


if __name__ == "__main__":
    main(*sys.argv[1:])
