"""Seconds per epoch of luthier.fit, of loops written by hand, and of Lightning; `make bench` runs this.

An epoch is the training pass and one evaluation of the validation part, for every contender, by the wall clock.
All take turns in an order that rotates, so that a drift of the machine falls on all alike; each turn trains a fresh
network; ratios are taken within a round, against the hand-written loop with the fused optimizer that we use too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contenders import Ours, Setting, data_loader, hand_written
from lightning_peer import Lightning, NotAvailable
from rich.console import Console
from rich.table import Table

import luthier.data

Contender = Callable[[Setting], float]
REFERENCE = "hand-written, tensors in memory"
US = "luthier.fit, everything at its defaults"
TARGET = 1.05
BUSY = 0.7  # load average from which others disturb the measurement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer images, three rounds")
    parser.add_argument("--rounds", type=int, help="turns of each contender (default 9; quick 3)")
    parser.add_argument("--without-lightning", action="store_true", help="do not install or measure Lightning")
    parser.add_argument("--threads", type=int, help="torch threads, the same for all (default: torch's own choice)")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    rounds = arguments.rounds or (3 if arguments.quick else 9)
    warnings.simplefilter("ignore")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    us = Ours()
    contenders, lightning = with_lightning(entrants(us), console, arguments.without_lightning)
    told = environment(lightning)
    console.print(", ".join(f"{name} {value}" for name, value in told.items()))
    if told["load"] > BUSY:
        console.print(f"the machine is busy (load {told['load']}): the figures will be rough", style="yellow")
    results = []
    for setting in settings(arguments.quick):
        times = measure(setting, contenders, rounds)
        console.print(table(setting, times))
        results.append({"setting": setting.name, "seconds_per_epoch": times})
    console.print(f"luthier.fit outside its epochs: {statistics.median(us.fixed_s):.2f} s a training")
    console.print(f"written to {save(told, results, us.fixed_s)}")
    if lightning is not None:
        lightning.close()


def settings(quick: bool) -> list[Setting]:
    """MNIST as float tensors, 10,000 of its training images held out; fewer for the CNN, whose steps are long."""
    images, labels = luthier.data.load("mnist").train
    x = images.float().div_(255)
    val = x[50_000:], labels[50_000:]

    def part(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        return x[:n].clone(), labels[:n].clone()

    some, few = part(10_000 if quick else 50_000), part(1_000 if quick else 4_000)
    small = val[0][:1_000].clone(), val[1][:1_000].clone()
    return [
        Setting("MLP 784-128-10", 64, some, val, epochs=1),
        Setting("MLP 784-128-10", 128, some, val, epochs=1),
        Setting("CNN", 64, few, small, epochs=1),
    ]


def entrants(us: Ours) -> dict[str, Contender]:
    """Those that need nothing beside torch."""
    return {
        REFERENCE: hand_written,
        US: us,
        "hand-written, torch's default AdamW": partial(hand_written, fused=None),
        "DataLoader(TensorDataset)": data_loader,
    }


def with_lightning(
    contenders: dict[str, Contender], console: Console, without: bool
) -> tuple[dict[str, Contender], Lightning | None]:
    """The same and Lightning twice, where it can be had: as it comes, and with all extras off on our fast batches."""
    if without:
        return contenders, None
    try:
        lightning = Lightning()
    except NotAvailable as reason:
        console.print(f"Lightning is not measured: {reason}", style="yellow")
        return contenders, None
    peers: dict[str, Contender] = {
        "Lightning, defaults, DataLoader": partial(lightning.seconds_per_epoch, kind="defaults"),
        "Lightning, extras off, tensors in memory": partial(lightning.seconds_per_epoch, kind="bare"),
    }
    return contenders | peers, lightning


def measure(setting: Setting, contenders: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Seconds per epoch by contender, one number a round; a first round warms up and is not kept."""
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            seconds = contenders[name](setting)
            if turn:
                times[name].append(seconds)
    return times


def table(setting: Setting, times: dict[str, list[float]]) -> Table:
    """Means, spread, and the ratios to the reference."""
    rounds = len(times[REFERENCE])
    shown = Table(title=f"{setting.name}, {rounds} rounds", title_justify="left", box=None, header_style="bold")
    shown.add_column("seconds per epoch")
    for name in ("mean", "std", "best", "ratio: median", "quartiles", ""):
        shown.add_column(name, justify="right")
    for name, seconds in times.items():
        ratios = [mine / base for mine, base in zip(seconds, times[REFERENCE], strict=True)]
        low, middle, high = quartiles(ratios)
        verdict = "" if name != US else f"{'within' if middle <= TARGET else 'not within'} {TARGET - 1:.0%}"
        spread = statistics.stdev(seconds) if rounds > 1 else 0.0
        numbers = [f"{value:.3f}" for value in (statistics.mean(seconds), spread, min(seconds), middle)]
        shown.add_row(name, *numbers, f"{low:.3f} to {high:.3f}", verdict, style="bold" if name == US else None)
    return shown


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def environment(lightning: Lightning | None) -> dict[str, Any]:
    """What the figures depend on."""
    told = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }
    return told if lightning is None else told | {"lightning": lightning.versions["lightning"]}


def save(told: dict[str, Any], results: list[dict[str, Any]], fixed_s: list[float]) -> Path:
    """Every single time, as JSON."""
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"speed-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps({"environment": told, "results": results, "fit_outside_epochs_s": fixed_s}, indent=1))
    return path


if __name__ == "__main__":
    main()
