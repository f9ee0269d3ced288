"""Tables of a folder's runs, and all figures as one JSON file."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tuning.curves import TUTORIAL, Figures, figures, load
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
        console.print(table(f"{task}, {seconds:g} s", found))
        summary[f"{task}-{seconds:g}s"] = {name: asdict(one) for name, one in found.items()}
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


def _seconds(value: float) -> str:
    return "never" if math.isinf(value) else "" if math.isnan(value) else f"{value:.0f}"


def _share(value: float) -> str:
    return "" if not math.isfinite(value) else f"{value:.2f}"


def _plain(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: None."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
