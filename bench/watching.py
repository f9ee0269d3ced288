"""What watching costs: one training that is watched and bare in short turns, in one process on one core.

    python bench/watching.py [--rounds 3] [--seconds 60] [--only NAME]

The same step in fresh processes, or forks, differs by more than what is to be measured (memory lies elsewhere), so the
two sides share one process, one model and one heap: a turn is watched or bare, which is to say that every hook is taken
away for its time and nothing is told. Of each pair of turns the order changes. The watched turns together are a whole
training of `seconds`: the examination of its first steps, all looks and the steps after them are in it, imports not.
Printed are mean and spread over rounds, for each round the standard error over its pairs, and what the watch says it
spent.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

import luthier
from luthier.doctor.measure.alarm import SWITCHES

TURN_S = 0.4
OVERHEAD = 0.01 / 2  # the clock of a watch goes on in bare turns: 1 % of its own
WARM_UP = 300
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

    def evaluate(self) -> None:
        self.model.eval()
        with torch.no_grad():
            self.model(self.inputs[: self.batch])
        self.model.train()


@contextmanager
def aside(watch: luthier.Watch, model: nn.Module, unwatched: tuple[object, ...]) -> Iterator[None]:
    """Without any hook of the watch."""
    watch._loop._leave_stretch()
    hooks = (
        model._forward_pre_hooks,
        model._forward_pre_hooks_with_kwargs,
        _global_optimizer_pre_hooks,
        _global_optimizer_post_hooks,
    )
    kept, watched = [dict(each) for each in hooks], wrapped()
    for each in hooks:
        each.clear()
    put(unwatched)
    yield
    put(watched)
    for each, before in zip(hooks, kept, strict=True):
        each.update(before)


def wrapped() -> tuple[object, ...]:
    """What a watch wraps, as it is now."""
    return torch.autograd.backward, *(switch.__enter__ for switch in SWITCHES)


def put(functions: tuple[object, ...]) -> None:
    """Set it."""
    torch.autograd.backward = functions[0]
    for switch, enter in zip(SWITCHES, functions[1:], strict=True):
        switch.__enter__ = enter


def compare(name: str, seconds: float) -> dict[str, float]:
    """What the watched turns take beyond the bare ones."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    warm = Training(name)
    with luthier.watch(warm.model, warm.optimizer, warm.loss_fn) as watch:
        warm.run(30, watch)
    watch.diagnose()
    training, unwatched = Training(name), wrapped()
    training.run(WARM_UP // 3)
    began = time.perf_counter()
    training.run(WARM_UP)
    step_s = (time.perf_counter() - began) / WARM_UP
    steps, pairs = max(1, round(TURN_S / step_s)), max(2, round(seconds / TURN_S))
    watch = luthier.watch(training.model, training.optimizer, training.loss_fn, overhead=OVERHEAD)
    watched, bare = [], []
    for pair in range(pairs):
        for is_watched in (True, False) if pair % 2 == 0 else (False, True):
            if is_watched:
                watched.append(took(lambda: training.run(steps, watch)))
                training.evaluate()
            else:
                with aside(watch, training.model, unwatched):
                    bare.append(took(lambda: training.run(steps)))
    spent = watch.vitals.spent
    differences = [one - other for one, other in zip(watched, bare, strict=True)]
    return {
        "step_s": step_s,
        "steps": steps * pairs,
        "added": sum(watched) / sum(bare) - 1,
        "error": statistics.stdev(differences) * pairs**0.5 / sum(bare),
        "without the first turn": sum(watched[1:]) / sum(bare[1:]) - 1,
        "told": 0.0 if spent is None else spent.spent_s / sum(watched),
    }


def took(work: Callable[[], None]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the watched turns together")
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
        print(
            f"{name}: {1000 * rounds[0]['step_s']:.2f} ms a step, {rounds[0]['steps']} steps: {line(rounds)}",
            flush=True,
        )


def line(rounds: list[dict[str, float]]) -> str:
    """Mean and spread of what is added, each round with its error, and what was told."""
    added = [each["added"] for each in rounds]
    spread = f" ± {statistics.stdev(added):.2%}" if len(added) > 1 else ""
    each = ", ".join(f"{one['added']:+.2%} ± {one['error']:.2%}" for one in rounds)
    later, told = (statistics.mean(one[key] for one in rounds) for key in ("without the first turn", "told"))
    return f"{statistics.mean(added):+.2%}{spread} ({each}); without the first turn {later:+.2%}; told {told:.2%}"


if __name__ == "__main__":
    main()
