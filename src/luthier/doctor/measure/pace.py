"""When to look: dense at first, then ever rarer, within a share of the training's time.

A full look costs about as much as a step or two of a small net, norms a tenth of that. The first `DENSE` steps are an
examination (most faults of a loop show there). A few further looks, at steps in geometric progression, are granted on
credit, so that short trainings are seen to their end. Examination and credit are bounded in seconds, and both are paid
back: all other looks and norms are bought from two purses that fill with half of `overhead` times the time that passes.
The other half is kept for what the clock does not see (torch's slower way through a module with hooks, memory that a
look has moved). That differs from net to net: LOG.md has what was measured.
"""

from __future__ import annotations

import math
from typing import Literal

DENSE = 20
FIRST = 6
GROWTH = 1.25
EXAMINATION_S = 0.4
CREDIT_S = 0.15
SEEN = 1 / 2  # share of the budget for what the watch's own clock sees

Kind = Literal["look", "norms", "count"]
_PURSES: dict[Kind, float] = {"look": 0.7, "norms": 0.3}


class Pace:
    """Chooses what to measure at each step, and keeps account of what was spent.

    Args:
        overhead: share of the training's time that may be spent, 0-1.

    Attributes:
        poor_until_s, next_granted: before this time and this step no look or norms can be paid for: steps only count.
    """

    def __init__(self, overhead: float) -> None:
        self.overhead = overhead
        self.cost_s = {"look": 0.0, "norms": 0.0}
        self.spent_s = 0.0
        self.spent_later_s = 0.0
        self.looks = 0
        self.norms = 0
        self._began_s: float | None = None
        self._used_s = {"look": 0.0, "norms": 0.0}
        self._credit_s = CREDIT_S
        self._granted = -1
        self.next_granted = DENSE
        self.poor_until_s = 0.0

    def plan(self, step: int, now_s: float) -> Kind:
        """What the coming step is measured by.

        Args:
            step: optimizer steps made so far.
            now_s: clock.
        """
        if self._began_s is None:
            self._began_s = now_s
        if step < DENSE:
            dense = step < FIRST or (step % 2 == 0 and self.spent_s < EXAMINATION_S)
            return "look" if dense else "norms"
        if self._granted_now(step) and self._credit_s >= self.cost_s["look"]:
            self._granted = step
            return "look"
        purse_s = SEEN * self.overhead * (now_s - self._began_s) - self._counting_s()
        lacking_s = {
            kind: (self._used_s[kind] + self.cost_s[kind]) / share - purse_s for kind, share in _PURSES.items()
        }
        affordable = (kind for kind, lacks_s in lacking_s.items() if lacks_s < 0)
        if (kind := next(affordable, None)) is not None:
            return kind
        self.poor_until_s = now_s + min(lacking_s.values()) / (SEEN * self.overhead)
        return "count"

    def paid(self, kind: Kind, seconds: float, step: int) -> None:
        """Book the time that a step of some kind cost."""
        self.spent_s += seconds
        if step >= DENSE:
            self.spent_later_s += seconds
        if step == self._granted:
            self._credit_s -= seconds
        if kind == "count":
            return
        self.looks += kind == "look"
        self.norms += kind == "norms"
        self._used_s[kind] += seconds
        known = self.cost_s[kind]
        self.cost_s[kind] = seconds if known == 0 or step < 3 else 0.8 * known + 0.2 * seconds

    def paid_later(self, seconds: float, step: int) -> None:
        """Book what the latest look cost the step after it; chance may make that less than nothing."""
        self.spent_s += seconds
        self.spent_later_s += seconds if step >= DENSE else 0.0
        self._used_s["look"] += seconds
        self.cost_s["look"] = max(0.0, self.cost_s["look"] + 0.2 * seconds)
        if step == self._granted + 1:
            self._credit_s -= seconds

    def _granted_now(self, step: int) -> bool:
        """Whether the next of the looks in geometric progression has come."""
        if step < self.next_granted:
            return False
        self.next_granted = max(step + 1, int(step * GROWTH))
        return True

    def _counting_s(self) -> float:
        """What counting alone has cost."""
        return self.spent_s - self._used_s["look"] - self._used_s["norms"]


class StepPace(Pace):
    """Looks by the number of the step alone, so that two runs of the same training are seen alike.

    The first `DENSE` steps are the examination, then come the looks in geometric progression, and nothing else.
    """

    def plan(self, step: int, now_s: float) -> Kind:
        """What the coming step is measured by; the clock is not read."""
        self.poor_until_s = math.inf
        if step < DENSE:
            return "look" if step < FIRST or step % 2 == 0 else "norms"
        return "look" if self._granted_now(step) else "count"
