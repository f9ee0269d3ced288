"""What workers tell, taken in: written down, and what follows from it at once."""

from __future__ import annotations

from typing import Any

from luthier.tuning.endings import check_failures
from luthier.tuning.jobs import Continue, Plan
from luthier.tuning.journal import Journal
from luthier.tuning.proposing import space_now
from luthier.tuning.searched import Searched
from luthier.tuning.space import space_to_json
from luthier.tuning.steering import widened
from luthier.tuning.unpausable import at_rung
from luthier.tuning.workers import Workers

_ENDS = ("paused", "finished", "stopped", "failed", "crashed")
_DETAILS = ("reason", "step", "total_steps", "time_s")


class Intake:
    """Takes messages of the workers in.

    Args:
        journal: of the study.
        searched: what is tuned.
        plan: its arms and strategy.
        workers: the processes; one that asks is answered.
        steers: whether ranges are widened where trials crowd.
    """

    def __init__(self, journal: Journal, searched: Searched, plan: Plan, workers: Workers, steers: bool) -> None:
        self.journal, self.searched, self.plan, self.workers = journal, searched, plan, workers
        self.widens = steers and searched.widens

    def take(self, message: dict[str, Any]) -> None:
        """Write down what a worker told, and what follows from it."""
        event, number = message["event"], int(message["number"])
        details = {name: message[name] for name in _DETAILS if name in message}
        if event == "row":
            self.journal.record("row", number=number, row=message["row"])
        elif event == "asked":
            self._decide(number, details)
        elif event in _ENDS and not self.journal.state.trials[number].ended:  # who was told to stop has ended already
            self.journal.record(event, number=number, **details)
            self._steer(number, message.get("changes", []))
            check_failures(self.journal.state, number, self.plan.workers)

    def _decide(self, number: int, details: dict[str, Any]) -> None:
        """Send a trial on that has come to its rung and cannot be paused, or end it: its worker waits for the word."""
        self.journal.record("paused", number=number, reason="at its rung", **details)
        decision = at_rung(self.journal.state, self.plan, number)
        if isinstance(decision, Continue):
            self.journal.record("assigned", number=number, until=decision.until_step)
            answer: dict[str, Any] = {"order": "go", "until": decision.until_step}
        else:
            told = {"reason": decision.reason, "may_return": decision.may_return}
            self.journal.record("stopped", number=number, **told)
            answer = {"order": "stop", "reason": decision.reason}
        self.journal.flush()
        self.workers.answer(number, **answer)

    def _steer(self, number: int, changes: list[dict[str, Any]]) -> None:
        """Note what the doctor would change in a finished trial, and widen ranges whose end is crowded."""
        state = self.journal.state
        if changes:
            self.journal.record("prescribed", number=number, changes=changes)
        trial = state.trials[number]
        if self.widens and trial.state == "finished" and trial.arm in self.plan.arms:
            ranges = space_now(self.searched.space, state)
            if wider := widened({path: ranges[path] for path in self.plan.arms[trial.arm]}, state, trial.arm):
                self.journal.record("widened", ranges=space_to_json(wider))
