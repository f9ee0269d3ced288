"""Tables of a folder's runs, and all figures as one JSON file."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tuning.curves import TUTORIAL, Figures, Pair, figures, load, pairs
from tuning.one import CONTENDERS

_COLUMNS = ("", "val %", "test %", "best reading %", "trials", "epochs", "first s")
_TO = ("s to best", "of tutorial's", "s to retrained", "of tutorial's")

_CAPTION = (
    "val, test: winners retrained with 4 fresh seeds; mean ± deviation over {seeds} search seeds. s to best, to "
    "retrained: seconds until a reading as good as the tutorial's best one, as its retrained winner; of tutorial's: "
    "their share of the tutorial's own time (medians over pairs of seeds)."
)


def report(console: Console, folder: Path) -> None:
    """Print a table for each task, and write `summary.json`."""
    summary: dict[str, Any] = {}
    for (task, seconds), runs in load(folder).items():
        tutorial = runs.get(TUTORIAL, [])
        found = {name: figures(runs[name], tutorial) for name in CONTENDERS if name in runs}
        by_seed = {name: pairs(runs[name], tutorial) for name in found}
        console.print(table(f"{task}, {seconds:g} s", found))
        console.print(seeds_table(by_seed))
        summary[f"{task}-{seconds:g}s"] = {
            name: asdict(one) | {"by_seed": {seed: asdict(pair) for seed, pair in by_seed[name].items()}}
            for name, one in found.items()
        }
    (folder / "summary.json").write_text(json.dumps(_plain(summary), indent=1) + "\n")


def table(title: str, found: dict[str, Figures]) -> Table:
    """One task; the caption says what the columns mean."""
    counts = sorted({one.seeds for one in found.values()})
    shown = Table(*_COLUMNS, *_TO, title=title, caption=_CAPTION.format(seeds=" or ".join(map(str, counts))))
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, one in found.items():
        quality = (f"{100 * mean:.2f} ± {100 * deviation:.2f}" for mean, deviation in (one.val, one.test, one.best))
        work = (f"{one.trials:.0f}", f"{one.epochs:.0f}", f"{one.first_s:.1f}")
        to_best = (_seconds(one.to_best_s), _share(one.to_best))
        shown.add_row(name, *quality, *work, *to_best, _seconds(one.to_retrained_s), _share(one.to_retrained))
    return shown


def seeds_table(by_seed: dict[str, dict[int, Pair]]) -> Table:
    """The same by search seed, each beside the tutorial's run with that seed."""
    seeds = sorted({seed for found in by_seed.values() for seed in found})
    head = (f"seed {seed}: val %, to best, to retrained" for seed in seeds)
    shown = Table("", *head, caption="to best, to retrained: seconds, and their share of the tutorial's own time.")
    for name, found in by_seed.items():
        shown.add_row(name, *(_pair(found.get(seed)) for seed in seeds))
    return shown


def _pair(pair: Pair | None) -> str:
    if pair is None:
        return ""
    times = (" ".join(filter(None, (_seconds(t), _share(share)))) for t, share in (pair.to_best, pair.to_retrained))
    return ", ".join((f"{100 * pair.val:.2f}", *times))


def _seconds(value: float) -> str:
    return "never" if math.isinf(value) else "" if math.isnan(value) else f"{value:.0f}"


def _share(value: float) -> str:
    return "" if not math.isfinite(value) else f"{value:.2f}"


def _plain(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: None."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
