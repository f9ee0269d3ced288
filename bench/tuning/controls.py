"""The two controls: random search over all epochs, and one epoch for all, then the best ones to the end."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

from tuning.one import Job, readings
from tuning.spaces import draw, space_of


def random_search(job: Job) -> None:
    """Random configurations in two processes, each over all epochs."""
    with job.second_process():
        from tuning.training import Training, memory

        data, space, chance = memory(job.task), space_of(job.task), job.chance
        for number in itertools.count():
            if job.left_s <= 0:
                return
            config = draw(space, chance)
            training = Training(job.task, config, job.trial_seed(number), *data)
            _finish(job, training, f"{job.rank}-{number}", config)


def one_epoch_top_k(job: Job) -> None:
    """Random configurations for one epoch each; from half-time on the best ones go on, best first: as many as fit."""
    with job.second_process():
        import torch

        from tuning.training import Training, memory

        data, space, chance = memory(job.task), space_of(job.task), job.chance
        for number in itertools.count():
            if job.elapsed_s >= job.seconds / 2:
                break
            name, seed, config = f"{job.rank}-{number}", job.trial_seed(number), draw(space, chance)
            training = Training(job.task, config, seed, *data)
            value = training.epoch()
            torch.save({**training.state(), "seed": seed}, job.folder / f"{name}.pt")
            job.tell(name, 1, value, config)
        _promote(job, data)


def _promote(job: Job, data: Any) -> None:
    """Train on what was best after its first epoch; both processes take from one ranking."""
    import torch

    from tuning.training import Training

    first = [reading for reading in readings(job.folder) if reading["epoch"] == 1]
    for reading in sorted(first, key=lambda reading: -reading["value"]):
        path = job.folder / f"{reading['trial']}.pt"
        if job.left_s <= 0 or not _claim(path):
            continue
        state = torch.load(path)
        training = Training(job.task, reading["config"], state["seed"], *data)
        training.load(state)
        _finish(job, training, reading["trial"], reading["config"])


def _finish(job: Job, training: Any, name: str, config: dict[str, Any]) -> None:
    """Train to the end of the epochs or of the time."""
    while training.epochs < job.task.epochs and job.left_s > 0:
        value = training.epoch()
        job.tell(name, training.epochs, value, config)


def _claim(path: Path) -> bool:
    """Whether this process is the first that asks."""
    try:
        os.close(os.open(path.with_suffix(".taken"), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
