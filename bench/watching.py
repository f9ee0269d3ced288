"""What watching costs: triplets of one training, one of them watched, taking short turns on one core.

    python bench/watching.py [--rounds 5] [--seconds 60] [--only NAME]

The three are forked from one process, so that their memory lies alike (the same step in fresh processes differs by up
to 10 %), and turns of a tenth of a second share whatever else the machine does. Each trains for about `seconds`, looks
and the examination of the first steps included, imports not. Printed are mean, spread and each round of what watching
adds (wall clock and CPU time), of what the third, bare like the first, adds to it (the error of this measurement), and
the share that the watch says it spent.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
from torch import Tensor, nn

import luthier

TURN_S = 0.1
WATCHED = 1
OVERHEAD = 0.01 / 3  # the clock of a watch goes on in the turns of the other two: 1 % of its own
ORDERS = ((0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1), (2, 0, 1), (1, 0, 2))
Made = tuple[nn.Module, Tensor, Tensor, int]


def mlp() -> Made:
    model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    return model, torch.randn(6400, 784), torch.randint(0, 10, (6400,)), 64


def cnn() -> Made:
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 10))
    return model, torch.randn(640, 3, 32, 32), torch.randint(0, 10, (640,)), 16


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(200, 64)
        self.blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2)
        self.head = nn.Linear(64, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(tokens)).mean(1))


def transformer() -> Made:
    return Tokens(), torch.randint(0, 200, (640, 32)), torch.randint(0, 4, (640,)), 32


NETS: dict[str, Callable[[], Made]] = {"mlp": mlp, "cnn": cnn, "transformer": transformer}


class Training:
    """A plain loop, step by step, watched or not."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.model, self.inputs, self.targets, self.batch = NETS[name]()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3)
        self.loss_fn = nn.CrossEntropyLoss()
        self.done = 0

    def run(self, steps: int, watch: luthier.Watch | None = None) -> None:
        model, optimizer, loss_fn = self.model, self.optimizer, self.loss_fn
        for step in range(self.done, self.done + steps):
            first = step * self.batch % len(self.inputs)
            x, y = self.inputs[first : first + self.batch], self.targets[first : first + self.batch]
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            if watch is not None:
                watch.step(loss, inputs=x, targets=y)
        self.done += steps


def sibling(training: Training, watched: bool, turns: Connection) -> None:
    """Train a turn whenever a number of steps comes; answer with wall and CPU seconds, last with those told."""
    watch = None
    while steps := turns.recv():
        wall, cpu = time.perf_counter(), time.thread_time()
        if watched and watch is None:
            watch = luthier.watch(training.model, training.optimizer, training.loss_fn, overhead=OVERHEAD)
        training.run(steps, watch)
        turns.send((time.perf_counter() - wall, time.thread_time() - cpu))
    spent = None if watch is None else watch.vitals.spent
    turns.send(0.0 if spent is None else spent.spent_s)


def compare(name: str, seconds: float) -> dict[str, float]:
    """The shares that the watched and the third training add to the first."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    warm = Training(name)
    with luthier.watch(warm.model, warm.optimizer, warm.loss_fn) as watch:
        warm.run(30, watch)
    watch.diagnose()
    training = Training(name)
    training.run(30)
    began = time.perf_counter()
    training.run(100)
    step_s = (time.perf_counter() - began) / 100
    steps, turns = max(1, round(TURN_S / step_s)), max(2, round(seconds / TURN_S))
    fork = multiprocessing.get_context("fork")
    ends = []
    for number in range(3):
        end, other = fork.Pipe()
        fork.Process(target=sibling, args=(training, number == WATCHED, other), daemon=True).start()
        ends.append(end)
    times = [[0.0, 0.0] for _ in ends]
    for turn in range(turns):
        for number in ORDERS[turn % len(ORDERS)]:
            ends[number].send(steps)
            times[number] = [sum(both) for both in zip(times[number], ends[number].recv(), strict=True)]
    for end in ends:
        end.send(0)
    spent_s = ends[WATCHED].recv()
    bare, watched, third = times
    added = {"wall": watched[0] / bare[0], "cpu": watched[1] / bare[1]}
    noise = {"bare, wall": third[0] / bare[0], "bare, cpu": third[1] / bare[1]}
    shares = {name: ratio - 1 for name, ratio in (added | noise).items()}
    return {"step_s": step_s, "steps": steps * turns, **shares, "told": spent_s / watched[0]}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", action="append", choices=NETS, default=[])
    parser.add_argument("--one", choices=NETS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one:
        print(json.dumps(compare(given.one, given.seconds)))
        return
    for name in given.only or NETS:
        command = [sys.executable, __file__, "--one", name, "--seconds", str(given.seconds)]
        rounds = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for _ in range(given.rounds)
        ]
        found = {kind: [each[kind] for each in rounds] for kind in ("wall", "cpu", "bare, wall", "bare, cpu", "told")}
        told = "; ".join(
            f"{kind} {statistics.mean(values):+.2%} ± {statistics.stdev(values) if len(values) > 1 else 0:.2%}"
            f" ({', '.join(f'{value:+.2%}' for value in values)})"
            for kind, values in found.items()
        )
        print(f"{name}: {1000 * rounds[0]['step_s']:.2f} ms a step, {rounds[0]['steps']} steps: {told}", flush=True)


if __name__ == "__main__":
    main()
