"""Anytime curves of a folder's runs, one picture a task: `python -m tuning.picture FOLDER`."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from tuning.curves import TUTORIAL, at, load
from tuning.one import CONTENDERS

_OURS = ("luthier", "luthier-engine")
_POINTS = 400


def draw(task: str, seconds: float, runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Mean over seeds of the best so far, the range over seeds shaded; the tutorial's final value as a line."""
    figure, axes = plt.subplots(figsize=(9, 5.5), constrained_layout=True)
    times = [seconds ** (index / _POINTS) for index in range(_POINTS + 1)]
    finals = []
    for index, name in enumerate(CONTENDERS):
        if name not in runs:
            continue
        curves = [[100 * at(run["curve"], t) for t in times] for run in runs[name]]
        rows = [(t, column) for t, column in zip(times, zip(*curves, strict=True), strict=True) if column == column]
        rows = [(t, column) for t, column in rows if all(value == value for value in column)]
        x, mean = [t for t, _ in rows], [statistics.fmean(column) for _, column in rows]
        (line,) = axes.plot(x, mean, color=f"C{index}", linewidth=2.6 if name in _OURS else 1.4, label=name)
        low, high = [min(column) for _, column in rows], [max(column) for _, column in rows]
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        finals.append(mean[-1])
        if name == TUTORIAL:
            axes.axhline(mean[-1], color=line.get_color(), linestyle=":", linewidth=1)
    axes.set(xscale="log", xlabel="seconds since the process began", ylabel="best validation accuracy so far, %")
    axes.set(xlim=(1, seconds), ylim=_limits(finals), title=f"{task}, {seconds:g} s on 2 cores")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _limits(finals: list[float]) -> tuple[float, float]:
    """Where the contenders differ: from six times their spread below the worst, at least two points."""
    below = max(2.0, 6 * (max(finals) - min(finals)))
    return min(finals) - below, min(100.0, max(finals) + 0.15 * below)


def main(folder: Path) -> None:
    for (task, seconds), runs in load(folder).items():
        draw(task, seconds, runs, folder / f"{task}-{seconds:g}s.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
