"""What watching costs: the same loop bare and watched, taking turns, on nets from the smallest MLP to tens of ms.

    python bench/watching.py [--rounds 3] [--seconds 20] [--only NAME]

Each round trains both for about `seconds`; printed are the medians over rounds of the ratio of times (wall clock, and
the CPU time of the one thread, which other processes disturb less), and the share that the watch says it spent.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import luthier

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


def run(make: Callable[[], Made], steps: int, watched: bool) -> tuple[float, float, float]:
    """Wall and CPU seconds of a training, and the seconds that the watch says it spent."""
    torch.manual_seed(0)
    model, inputs, targets, batch = make()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    loss_fn = nn.CrossEntropyLoss()
    watch = luthier.watch(model, optimizer, loss_fn) if watched else None
    wall, cpu = time.perf_counter(), time.thread_time()
    for step in range(steps):
        first = step * batch % len(inputs)
        x, y = inputs[first : first + batch], targets[first : first + batch]
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        if watch is not None:
            watch.step(loss, inputs=x, targets=y)
    wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
    if watch is None:
        return wall, cpu, 0.0
    watch.close()
    spent = watch.vitals.spent
    return wall, cpu, 0.0 if spent is None else spent.spent_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--only", action="append", choices=NETS, default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.only or NETS:
        run(NETS[name], 30, watched=True)
        step_s = run(NETS[name], 100, watched=False)[0] / 100
        steps = max(100, int(arguments.seconds / step_s))
        ratios: dict[str, list[float]] = {"wall": [], "cpu": [], "told": []}
        for turn in range(arguments.rounds):
            order = (True, False) if turn % 2 else (False, True)
            found = {watched: run(NETS[name], steps, watched) for watched in order}
            ratios["wall"].append(found[True][0] / found[False][0] - 1)
            ratios["cpu"].append(found[True][1] / found[False][1] - 1)
            ratios["told"].append(found[True][2] / found[True][0])
        told = ", ".join(
            f"{kind} {statistics.median(values):+.2%} ({min(values):+.2%} to {max(values):+.2%})"
            for kind, values in ratios.items()
        )
        print(f"{name}: {1000 * step_s:.2f} ms a step, {steps} steps: {told}", flush=True)


if __name__ == "__main__":
    main()
