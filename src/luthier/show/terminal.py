"""What a training shows in the terminal: what is trained, a live line, one kept line per epoch, the result."""

from __future__ import annotations

import time
from bisect import bisect_left
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from luthier.recipe import Recipe
from luthier.record import Record
from luthier.show.console import Throttle, bar, is_live, open_console, symbol
from luthier.show.finders_terminal import print_batch_sizes, print_lr_range
from luthier.show.tune_terminal import TuneConsole
from luthier.show.words import clock_text, duration_text, metric_text, name_text, number_text, value_text
from luthier.training.hooks import Hook

if TYPE_CHECKING:
    from luthier.training.run import Run

__all__ = ["FitConsole", "TuneConsole", "print_batch_sizes", "print_lr_range"]

_STATE_STYLES = {"finished": "bold green", "paused": "bold yellow", "interrupted": "bold yellow", "failed": "bold red"}


class FitConsole(Hook):
    """Tells how a training goes; plain lines when the output is not a terminal.

    Args:
        folder: the record's folder, named at the end.
        console: where to write; standard output when None.
    """

    def __init__(self, folder: Path | None = None, console: Console | None = None) -> None:
        self.folder = folder
        self.console = open_console() if console is None else console
        self.live: Live | None = None
        self.throttle = Throttle()
        self.table: EpochTable | None = None
        self.began_s = self.mark_s = 0.0
        self.began_step = self.mark_examples = 0
        self.last: dict[str, Any] = {}

    def start(self, run: Run) -> None:
        """Say what is trained; open the live line."""
        for line in introduction(run):
            self.console.print(line, soft_wrap=True)
        self.began_s, self.began_step = time.perf_counter(), run.step
        if is_live(self.console):
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
            self.live.start()

    def epoch_start(self, run: Run) -> None:
        """Begin to measure the rate anew."""
        self.mark_s, self.mark_examples = run.time_s, run.examples

    def step_end(self, run: Run) -> None:
        """Redraw the live line when it is due; otherwise return at once."""
        if self.live is not None and self.throttle.due():
            self.live.update(self._line(run), refresh=True)
            self.throttle.done()

    def evaluated(self, run: Run, row: dict[str, Any]) -> None:
        """Keep one line for the row."""
        self.last = row
        if self.table is None:
            self.table = EpochTable(row, run.task.metric.name, run.recipe.epochs, symbol(self.console, "★", "*"))
            self.console.print(Text(self.table.header(), style="dim"), soft_wrap=True)
        best = row["kind"] == "epoch" and run.best_step == row["step"]
        self.console.print(self.table.line(row, self._rate(run), best), soft_wrap=True)

    def end(self, run: Run, state: str, reason: str) -> None:
        """Close the live line and tell the result."""
        if self.live is not None:
            self.live.stop()
            self.live = None
        self.console.print(Text.assemble((state, _STATE_STYLES.get(state, "bold")), f": {reason}"), soft_wrap=True)
        self.console.print(Text(result(run, self.folder)), soft_wrap=True)
        if self.folder is not None and (told := opinion(self.folder)):
            self.console.print(told, soft_wrap=True)

    def _rate(self, run: Run) -> float:
        """Training examples per second of this epoch, evaluation not counted."""
        return (run.examples - self.mark_examples) / max(run.time_s - self.mark_s, 1e-9)

    def _bar(self, done: float) -> str:
        width = 24 if self.console.width >= 110 else 12
        return bar(done, symbol(self.console, "━", "#"), symbol(self.console, "─", "."), width)

    def _line(self, run: Run) -> Text:
        """The live line: as many parts as fit, the first ones first."""
        done = run.batch / run.steps_by_epoch[run.epoch]
        spent = (time.perf_counter() - self.began_s) / max(1, run.step - self.began_step)
        metric = f"val_{run.task.metric.name}"
        parts = [
            f"epoch {run.epoch + 1}/{run.recipe.epochs}",
            self._bar(done) + f"{done:5.0%}",
            f"ETA {clock_text(spent * (run.total_steps - run.step))}",
            f"loss {number_text(run.totals.loss_sum / max(run.totals.n, 1))}",
            f"{self._rate(run):,.0f}/s",
            f"lr {run.recipe.lr * (run.factor or 0.0):.2e}",
        ]
        if self.last:
            value = metric_text(run.task.metric.name, self.last.get(metric))
            parts[4:4] = [f"{name_text(metric)} {value}", f"val loss {number_text(self.last.get('val_loss'))}"]
        while len(line := "  ".join(parts)) >= self.console.width and len(parts) > 1:
            parts.pop()
        return Text(line, no_wrap=True, overflow="crop", style="cyan")


def introduction(run: Run) -> list[Text]:
    """What is trained and how: task, device, size, the recipe's own choices, what surgery did."""
    n = sum(parameter.numel() for parameter in run.model.parameters())
    recipe = run.recipe
    epochs = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
    steps = f"{epochs}, {run.total_steps:,} steps of {recipe.batch_size}"
    lines = [Text.assemble((run.task.name, "bold"), f" on {run.device}: {n:,} parameters, {steps}")]
    if run.step:
        lines.append(Text(f"resumed at step {run.step:,}, epoch {run.epoch + 1}"))
    lines.append(Text.assemble(("recipe: ", "dim"), own_choices(recipe) or "all defaults"))
    if run.surgery.changes:
        lines.append(Text.assemble(("surgery: ", "dim"), "; ".join(_grouped(run.surgery.changes))))
    for refusal in run.surgery.refused:
        lines.append(Text(f"surgery left {refusal.path or 'the model'}: {refusal.why}", style="yellow"))
    return lines


def own_choices(recipe: Recipe) -> str:
    """What a recipe has other than the defaults.

    >>> own_choices(Recipe(lr=0.1, optimizer="adam"))
    'optimizer adam, lr 0.1'
    """
    plain = Recipe().flat()
    chosen = recipe.flat(brief=True)
    return ", ".join(
        f"{path} {value_text(value)}" for path, value in chosen.items() if plain.get(path, _ABSENT) != value
    )


_ABSENT = object()


def _grouped(changes: Any) -> list[str]:
    """Changes of the same kind together: what was done, and to which modules."""
    places: dict[str, list[str]] = {}
    for change in changes:
        places.setdefault(change.what, []).append(change.path or "the model")
    return [f"{what} ({', '.join(paths[:4])}{', ...' if len(paths) > 4 else ''})" for what, paths in places.items()]


class EpochTable:
    """Lines of equal columns: header and one per row of metrics."""

    def __init__(self, row: dict[str, Any], metric: str, epochs: int, mark: str) -> None:
        self.metric, self.epochs, self.mark = metric, epochs, mark
        names = ["train_loss", f"train_{metric}", "val_loss", f"val_{metric}"]
        self.names = list(dict.fromkeys(name for name in names if name in row))
        self.widths = [max(len(name), 9) for name in self.names]

    def header(self) -> str:
        """The names of the columns."""
        names = [f"{name_text(name):>{width}}" for name, width in zip(self.names, self.widths, strict=True)]
        return "  ".join([f"{'epoch':>9}", *names, f"{'lr':>8}", f"{'examples/s':>10}", f"{'time':>10}"])

    def line(self, row: dict[str, Any], rate: float, best: bool) -> Text:
        """One row; the best so far is marked."""
        epoch = f"{row['epoch']:g}" if row["kind"] == "epoch" else f"{row['epoch']:.2f}"
        values = [f"{self._value(name, row):>{width}}" for name, width in zip(self.names, self.widths, strict=True)]
        ends = [f"{row['lr']:8.2e}", f"{rate:>10,.0f}", f"{duration_text(row['time_s']):>10}"]
        line = "  ".join([f"{epoch + '/' + str(self.epochs):>9}", *values, *ends])
        return Text.assemble(line, (f"  {self.mark} best", "bold green") if best else "")

    def _value(self, name: str, row: dict[str, Any]) -> str:
        value = row.get(name)
        if name.endswith("_loss"):
            return f"{value:.4f}" if value is not None and 1e-3 <= abs(value) < 1e3 else number_text(value)
        return metric_text(self.metric, value)


def result(run: Run, folder: Path | None) -> str:
    """Best value and where it was reached, the time taken, the folder."""
    told = []
    if run.best_value is not None:
        metric = run.task.metric.name
        epoch = bisect_left(list(accumulate(run.steps_by_epoch)), run.best_step) + 1
        told.append(f"best val {name_text(metric)} {metric_text(metric, run.best_value)} in epoch {epoch}")
    told.append(f"{duration_text(run.time_s)} of training")
    if folder is not None:
        told.append(str(folder))
    return " · ".join(told)


def opinion(folder: Path) -> Text | None:
    """What the doctor found, in one line: the roots, or how much is in order; None when it did not look."""
    found = Record(folder).findings if Record.exists(folder) else None
    if found is None:
        return None
    if found["is_healthy"]:
        n, missing = len(found["healthy"]), len(found["not_seen"])
        verdict = "healthy" if n >= max(missing, 1) else "nothing wrong in what could be seen"
        told = f": {n} check{'s' * (n != 1)} in order" + (f", {missing} could not look" if missing else "")
        return Text.assemble(("doctor: ", "dim"), (verdict, "bold green"), told)
    caused = [child["symptom"] for finding in found["findings"] for child in finding["consequences"]]
    roots = [each for each in found["findings"] if each["severity"] != "info" and each["symptom"] not in caused]
    named = ", ".join(dict.fromkeys(f"{each['symptom']} ({each['severity']})" for each in roots))
    return Text.assemble(
        ("doctor: ", "dim"), (named, "bold yellow"), f"; why, and what to do: luthier diagnose {folder}"
    )
