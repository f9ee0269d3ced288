"""One contender on one task, as a process of its own: `python -m tuning.one CONTENDER TASK SEED SECONDS FOLDER START`.

What it reads goes line by line into FOLDER/readings.jsonl; START is `time.time()` before this interpreter began.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning.tasks import TASKS, Task

CONTENDERS = {
    "luthier": "ours:as_a_user",
    "luthier-engine": "ours:engine",
    "optuna-tutorial": "peers_optuna:tutorial",
    "optuna-best": "peers_optuna:best",
    "ray-asha": "peers_ray:asha",
    "ray-asha-optuna": "peers_ray:asha_optuna",
    "one-epoch-top-k": "controls:one_epoch_top_k",
    "random": "controls:random_search",
}
"""Name -> function of a module beside this one."""

PROCESSES = 2
CHOICE = "choice.txt"


@dataclass(frozen=True)
class Job:
    """What a contender is to do.

    Attributes:
        contender, task_name, seed: what runs.
        seconds: from `start` to the end.
        folder: for its files.
        start: `time.time()` before the first interpreter began.
        rank: 0, or 1 for the second process.
    """

    contender: str
    task_name: str
    seed: int
    seconds: float
    folder: Path
    start: float
    rank: int = 0

    @property
    def task(self) -> Task:
        """The task."""
        return TASKS[self.task_name]

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.time() - self.start

    @property
    def left_s(self) -> float:
        """Seconds to the end."""
        return self.seconds - self.elapsed_s

    @property
    def chance(self) -> random.Random:
        """A generator that differs by seed and process."""
        return random.Random(f"{self.seed}/{self.rank}")

    def trial_seed(self, number: int) -> int:
        """Seed of one training: differs by search seed, process and number."""
        return (self.seed * PROCESSES + self.rank) * 10_000 + number

    def tell(self, trial: str, epoch: float, value: float, config: dict[str, Any], t: float | None = None) -> None:
        """Note a reading; lines of several processes do not mix."""
        told = {"t": self.elapsed_s if t is None else t, "trial": trial, "epoch": epoch}
        line = json.dumps({**told, "value": value, "config": config}) + "\n"
        file = os.open(self.folder / "readings.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(file, line.encode())
        os.close(file)

    def choose(self, trial: str) -> None:
        """Note the trial that the contender itself calls its best, where that is not the one with the best reading."""
        (self.folder / CHOICE).write_text(trial)

    @contextmanager
    def second_process(self) -> Iterator[None]:
        """The same contender once more beside this one, as one would start it from a second terminal."""
        if self.rank:
            yield
            return
        arguments = (self.contender, self.task_name, self.seed, self.seconds, self.folder, self.start, 1)
        process = subprocess.Popen([sys.executable, "-m", "tuning.one", *map(str, arguments)])
        try:
            yield
        finally:
            process.wait()


def readings(folder: Path) -> list[dict[str, Any]]:
    """All readings so far, in the order of their times; a line that is half written is left out."""
    path = folder / "readings.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return sorted(map(json.loads, lines), key=lambda reading: reading["t"])


def main(contender: str, task: str, seed: str, seconds: str, folder: str, start: str, rank: str = "0") -> None:
    module, _, function = CONTENDERS[contender].partition(":")
    job = Job(contender, task, int(seed), float(seconds), Path(folder), float(start), int(rank))
    getattr(importlib.import_module(f"tuning.{module}"), function)(job)


if __name__ == "__main__":
    main(*sys.argv[1:])
