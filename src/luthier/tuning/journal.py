"""A study as it is written: every event goes to the ledger and into the state, and the console hears of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from luthier.tuning.budgets import Budget
from luthier.tuning.folding import apply, fold
from luthier.tuning.ledger import Ledger
from luthier.tuning.ranges import Range
from luthier.tuning.space import space_from_json
from luthier.tuning.state import State, Trial
from luthier.tuning.study import Study

_READINGS_S = 0.5


@runtime_checkable
class Console(Protocol):
    """What may be told of a study's course; `luthier.show.terminal.TuneConsole` is one."""

    def started(self, study: Study) -> None:
        """The study is open; nothing runs yet."""

    def trial(self, trial: Trial) -> None:
        """A trial's state changed."""

    def progress(self, info: dict[str, Any]) -> None:
        """Time passes: `elapsed_s`, `doing` ("search", "repeats", "stopping"), `spent` of a budget of work in words."""

    def widened(self, ranges: dict[str, Range]) -> None:
        """The search goes on over wider ranges, by path."""

    def finished(self, study: Study) -> None:
        """The call is over."""


class Journal:
    """The ledger, and the state that follows from it.

    Args:
        ledger: claimed by this process.
        folder: of the study.
        console: told of every change, or None.
        origin: `time.monotonic()` when the call began.
    """

    def __init__(self, ledger: Ledger, folder: Path, console: Console | None, origin: float) -> None:
        self.ledger, self.console = ledger, console
        self.state: State = fold(ledger.events(), folder)
        self._before_s, self._origin = self.state.clock, origin
        self._urgent, self._flushed_at = False, origin

    @property
    def clock(self) -> float:
        """Seconds at work, over all calls."""
        return self._before_s + time.monotonic() - self._origin

    def record(self, event: str, /, **payload: Any) -> None:
        """Write an event and take it into the state; it is durable after the next `flush`."""
        apply(self.state, self.ledger.append(event, self.clock, payload))
        self._urgent |= event != "row"
        if "number" in payload and event != "proposed" and self.console is not None:
            self.console.trial(self.state.trials[payload["number"]])
        if event == "widened" and self.console is not None:
            self.console.widened(space_from_json(payload["ranges"]))

    def flush(self) -> None:
        """Make durable what was written: before anything is done that follows from it."""
        self.ledger.flush()
        self._urgent, self._flushed_at = False, time.monotonic()

    def flush_when_due(self) -> None:
        """Flush, but let readings wait for each other a moment: after a kill their trainings tell them again."""
        if self._urgent or time.monotonic() - self._flushed_at > _READINGS_S:
            self.flush()

    def begun(self) -> None:
        """Tell the console that the call has begun."""
        if self.console is not None:
            self.console.started(Study(self.state))

    def progress(self, doing: str, budget: Budget | None) -> None:
        """Tell the console that time passes."""
        if self.console is not None:
            spent = "" if budget is None else budget.spent(self.state)
            self.console.progress({"elapsed_s": self.clock, "doing": doing, "spent": spent})

    def over(self) -> Study:
        """Tell the console that the call is over; returns the study."""
        study = Study(self.state)
        if self.console is not None:
            self.console.finished(study)
        return study
