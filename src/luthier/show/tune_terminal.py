"""What a tuning shows in the terminal: how the search stands, and at the end what it found."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from luthier.show.console import Throttle, is_live, open_console, symbol
from luthier.show.tune_result import result
from luthier.show.words import (
    budget_text,
    clock_text,
    duration_text,
    metric_text,
    name_text,
    target_text,
    validation_text,
    value_text,
)

if TYPE_CHECKING:
    from luthier.tuning.ranges import Range
    from luthier.tuning.study import Study, Trial

_STOPPING = "stopping: what is under way is saved first (a function at its next report); Ctrl-C again leaves at once"
_ENDED = {"finished", "stopped", "failed"}
_STATE_STYLES = {"finished": "green", "stopped": "yellow", "failed": "red", "paused": "dim", "running": "cyan"}


class TuneConsole:
    """Tells how a tuning goes; plain lines (one per ended trial) when the output is not a terminal.

    Args:
        console: where to write; standard output when None.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = open_console() if console is None else console
        self.live: Live | None = None
        self.throttle = Throttle()
        self.trials: dict[int, Trial] = {}
        self.info: dict[str, Any] = {}
        self.best: Trial | None = None
        self.began_s = time.perf_counter()
        self.metric, self.minimise = "", False
        self.settings: dict[str, Any] = {}

    def started(self, study: Study) -> None:
        """Say what is tuned, over which space, with which budget; open the live view."""
        self.metric, self.minimise, self.settings = study.metric, study.direction == "min", study.settings
        self.began_s = time.perf_counter() - study.elapsed_s
        for trial in study.trials:
            self._note(trial)
        for line in introduction(study):
            self.console.print(line, soft_wrap=True)
        if is_live(self.console):
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
            self.live.start()

    def trial(self, trial: Trial) -> None:
        """Take in the new state of a trial; one that ended leaves a line (in a live view only a new best does)."""
        if not self.metric:
            return  # tidying before the start; `started` gives the whole state
        known = self.trials.get(trial.number)
        improved = self._note(trial)
        ended = trial.state in _ENDED and (known is None or known.state not in _ENDED)
        ended &= not trial.may_return  # all that were outranked end with the call: the result counts them
        if ended and (improved or self.live is None):
            self.console.print(self._line(trial, improved), soft_wrap=True)
        self.progress({})

    def widened(self, ranges: Mapping[str, Range]) -> None:
        """Say that the search goes on over wider ranges."""
        told = "; ".join(f"{path} {range_}" for path, range_ in ranges.items())
        self.console.print(Text(f"range widened: {told} (the best trials lie at its end)", "bold"), soft_wrap=True)

    def progress(self, info: Mapping[str, Any]) -> None:
        """Redraw the live view when it is due.

        Args:
            info: what is known besides the trials, all optional: `elapsed_s`, `doing` ("search", "repeats" or
                "stopping", which is told once), `spent` (of a budget in steps or epochs, in words).
        """
        if info.get("doing") == "stopping" != self.info.get("doing"):
            self.console.print(Text(_STOPPING, "bold"), soft_wrap=True)
        self.info.update(info)
        if self.live is not None and self.throttle.due():
            self.live.update(self._view(), refresh=True)
            self.throttle.done()

    def finished(self, study: Study) -> None:
        """Close the live view and tell the result."""
        if self.live is not None:
            self.live.stop()
            self.live = None
        for block in result(study):
            self.console.print(block, soft_wrap=isinstance(block, Text))

    def _note(self, trial: Trial) -> bool:
        """Remember a trial; whether it is the best of the search so far."""
        self.trials[trial.number] = trial
        if self.best is not None and self.best.number == trial.number and self._fell(trial, self.best):
            self.best = None
            for other in self.trials.values():
                self._note(other)
        if trial.kind != "search" or trial.value is None or trial.value != trial.value or trial.state == "failed":
            return False
        best = None if self.best is None else self.best.value
        better = best is None or (trial.value < best if self.minimise else trial.value > best)
        if better:
            self.best = trial
        return better or (self.best is not None and self.best.number == trial.number)

    def _fell(self, trial: Trial, before: Trial) -> bool:
        """Whether the trial is worth less than before: it failed, or returned less than it had reported."""
        if trial.state == "failed" or trial.value is None or before.value is None:
            return trial.state == "failed"
        return trial.value > before.value if self.minimise else trial.value < before.value

    def _line(self, trial: Trial, improved: bool) -> Text:
        """An ended trial in one line."""
        what = _values(trial) if trial.kind == "search" else f"trial {trial.of} again, seed {trial.seed}"
        return Text.assemble(
            f"{'#' + str(trial.number):>5}  ",
            (f"{trial.state:<8}", _STATE_STYLES.get(trial.state, "")),
            f"  {metric_text(self.metric, trial.value):>9}  {duration_text(trial.time_s):>9}  {what}",
            (
                f"  ({trial.reason})" if trial.reason and _cut_short(trial) else "",
                "" if trial.state == "failed" else "dim",
            ),
            (f"  [{trial.source}]" if trial.source else "", "dim"),
            (f"  {symbol(self.console, '★', '*')} best so far", "bold green") if improved else "",
        )

    def _view(self) -> Group:
        """The live view: counts, best, time left, then a line for each running trial."""
        counts = Counter(trial.state for trial in self.trials.values())
        elapsed = float(self.info.get("elapsed_s") or time.perf_counter() - self.began_s)
        states = [f"{counts[state]} {state}" for state in ("finished", "running", "paused", "stopped", "failed")]
        parts = [f"{len(self.trials)} trials: " + ", ".join(state for state in states if not state.startswith("0 "))]
        if self.best is not None:
            parts.append(f"best {metric_text(self.metric, self.best.value)} (#{self.best.number})")
        parts.append(_time_left(elapsed, self.settings.get("budget_s")))
        if self.info.get("spent"):
            parts.append(self.info["spent"])
        if self.info.get("doing") == "repeats":
            parts.append("retraining winner and baseline on more seeds")
        running = [trial for trial in self.trials.values() if trial.state == "running"]
        lines = [Text("  ".join(parts), style="bold", no_wrap=True, overflow="ellipsis")]
        return Group(*lines, *(self._running(trial) for trial in running[: self.console.height - 3]))

    def _running(self, trial: Trial) -> Text:
        share = trial.step / trial.total_steps if trial.total_steps else 0.0
        value = metric_text(self.metric, trial.value)
        text = f"{'#' + str(trial.number):>5} {share:5.0%}  {value:>9}  {_values(trial)}"
        return Text(text, style="cyan", no_wrap=True, overflow="ellipsis")


def introduction(study: Study) -> list[Text]:
    """What is tuned, by what, over which ranges."""
    settings = study.settings
    ends = {name: "lowest" if way == "min" else "highest" for name, way in study.objectives.items()}
    goal = f"{ends.pop(study.metric)} {validation_text(study.metric)}"
    goal = ", ".join([goal, *(f"{end} {name_text(name)}" for name, end in ends.items())])
    trials = f"{settings['trials']} trials" if settings.get("trials") else ""
    limits = [trials, budget_text(settings), target_text(settings, study.metric)]
    means = [str(settings.get(name) or "") for name in ("sampler", "strategy")]
    workers = f"{settings['workers']} workers" if settings.get("workers") else ""
    parts = [part for part in (*limits, *means, workers) if part]
    lines = [Text.assemble(("tuning ", ""), (study.name, "bold"), f" for the {goal}: " + ", ".join(parts))]
    ranges = "; ".join(f"{path} {range_}" for path, range_ in study.space.items())
    lines.append(Text.assemble(("space: ", "dim"), ranges))
    lines.append(Text.assemble(("folder: ", "dim"), str(study.folder)))
    if study.trials:
        lines.append(Text(f"resumed: {len(study.trials)} trials are there already"))
    return lines


def _cut_short(trial: Trial) -> bool:
    """Whether it ended before all of its steps were taken: that wants a reason."""
    return trial.state != "finished" or trial.step < trial.total_steps


def _values(trial: Trial) -> str:
    if not trial.values:
        return "the baseline" if trial.number == 0 else ""
    return ", ".join(f"{path} {value_text(value)}" for path, value in trial.values.items())


def _time_left(elapsed: float, budget_s: float | None) -> str:
    return f"{clock_text(elapsed)} elapsed" + ("" if budget_s is None else f", {clock_text(budget_s - elapsed)} left")
