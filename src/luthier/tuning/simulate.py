"""A study on recorded curves with a fake clock: the scheduler that runs here is the one that runs studies.

Says what a strategy finds in how much time without a single training, and what the decisions themselves cost.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import LuthierError
from luthier.tuning.budgets import Time
from luthier.tuning.folding import apply, fold
from luthier.tuning.jobs import BASELINE, Continue, Plan, Propose, Start
from luthier.tuning.scheduler import budget_over, next_job, next_repeat, reserve, search_over
from luthier.tuning.state import Event, Trial, best

_GRAIN = 1e-6  # epochs add up to the clock up to rounding


@dataclass(frozen=True)
class Curve:
    """A recorded training.

    Attributes:
        values: validation value after each epoch; NaN where it was none. An empty curve is a training that fails.
        epoch_s: seconds of an epoch, above 0.
    """

    values: Sequence[float]
    epoch_s: float = 1.0


class Simulator:
    """Runs a plan on recorded curves.

    Args:
        plan: as of a study.
        propose: as of a study; `Proposal.total_steps` are epochs here.
        curve: (trial's number, its values) -> its recorded curve.
        direction: which way values improve, "max" or "min".
        events: of an earlier simulation, to go on from.

    Attributes:
        state: of the study.
        clock: simulated seconds so far.
        busy_s: simulated seconds of all trainings given out.
        decisions: jobs given out, in order.
        deciding_s: real seconds that the scheduler took for them.
        readings: (simulated seconds, value) of every epoch.
    """

    def __init__(
        self,
        plan: Plan,
        propose: Propose,
        curve: Callable[[int, Mapping[str, Any]], Curve],
        direction: str = "max",
        events: Sequence[Event] = (),
    ) -> None:
        if direction not in ("max", "min"):
            raise LuthierError(f"expected direction 'max' or 'min', got {direction!r}")
        self.plan, self.propose, self.curve = plan, propose, curve
        self.events = list(events)
        self.state = fold(self.events, Path("simulation"))
        self.clock = self.state.clock
        self.busy_s = self.deciding_s = 0.0
        self.decisions: list[Start | Continue] = []
        self.readings: list[tuple[float, float]] = []
        self.running: list[tuple[float, int]] = []
        if not self.events:
            self.record("created", task={"metric": "value", "direction": direction}, seed=plan.seed)

    def run(self, decisions: int | None = None) -> Simulator:
        """Search until there is nothing to do, or until so many decisions are made.

        When a budget of time is over, what is under way pauses after its last whole epoch.
        """
        over = lambda: search_over(self.state, self.plan, self.clock)  # noqa: E731
        return self._drive(lambda: next_job(self.state, self.plan, self.propose, self.clock), over, decisions)

    def repeat(self) -> Simulator:
        """Retrain winner and baseline, as a study does after its search."""
        over = lambda: budget_over(self.state, self.plan, self.clock)  # noqa: E731
        return self._drive(lambda: next_repeat(self.state, self.plan), over)

    def best_at(self, seconds: float) -> float | None:
        """The best reading up to a time."""
        return best((value for at, value in self.readings if at <= seconds), self.state.direction)

    def record(self, kind: str, /, **payload: Any) -> None:
        """Write an event and take it into the state."""
        event = Event(len(self.events) + 1, self.clock, kind, payload)
        self.events.append(event)
        apply(self.state, event)

    def _drive(
        self, choose: Callable[[], Start | Continue | None], over: Callable[[], bool], decisions: int | None = None
    ) -> Simulator:
        while decisions is None or len(self.decisions) < decisions:
            began = time.perf_counter()
            job = choose() if len(self.running) < self.plan.workers and not over() else None
            self.deciding_s += time.perf_counter() - began
            if job is not None:
                self._start(job)
            elif self.running:
                self._end_first()
            else:
                break
        return self

    def _start(self, job: Start | Continue) -> None:
        self.decisions.append(job)
        if isinstance(job, Start):
            names = ("number", "arm", "values", "kind", "seed", "of", "total_steps")
            self.record("proposed", until=job.until_step, **{name: getattr(job, name) for name in names})
        self.record("assigned", number=job.number, until=job.until_step, worker=0)
        trial = self.state.trials[job.number]
        seconds = (job.until_step - trial.step) * self.curve(trial.number, trial.values).epoch_s
        self.busy_s += seconds
        heapq.heappush(self.running, (self.clock + seconds, job.number))

    def _end_first(self) -> None:
        ends, number = heapq.heappop(self.running)
        trial = self.state.trials[number]
        curve = self.curve(number, trial.values)
        self.clock = min(ends, max(self.clock, self._deadline(trial)))
        until = trial.until - math.ceil((ends - self.clock) / curve.epoch_s - _GRAIN)
        if len(curve.values) < trial.until:
            self.record("failed", number=number, reason="the recorded training failed", step=until)
            return
        for epoch in range(trial.step + 1, until + 1):
            value = curve.values[epoch - 1]
            row = {"kind": "epoch", "step": epoch, "time_s": epoch * curve.epoch_s, "val_value": value}
            self.record("row", number=number, row=row)
            self.readings.append((ends - (trial.until - epoch) * curve.epoch_s, value))
        self.record("finished" if until == trial.total_steps else "paused", number=number, step=until)

    def _deadline(self, trial: Trial) -> float:
        """When the trainings of a trial's kind must pause."""
        if not isinstance(self.plan.budget, Time) or trial.arm == BASELINE:
            return math.inf
        return self.plan.budget.total - (reserve(self.state, self.plan) if trial.kind == "search" else 0.0)
