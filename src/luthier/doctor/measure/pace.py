"""When to look: dense at first, then ever rarer, within a share of the training's time.

A full look costs about as much as a step or two of a small net, norms a tenth of that. The first `DENSE` steps are an
examination of fixed size (most faults of a loop show there). After them two purses fill with `overhead` times the time
that passes, one for looks and one for norms; a few looks at steps in geometric progression are granted on credit, so
that short trainings are seen to their end, and are paid back before the next one is bought.
"""

from __future__ import annotations

from typing import Literal

DENSE = 20
GROWTH = 1.25
CREDIT_UNTIL = 4000

Kind = Literal["look", "norms", "count"]


class Pace:
    """Chooses what to measure at each step, and keeps account of what was spent.

    Args:
        overhead: share of the training's time that may be spent after the first `DENSE` steps, 0-1.
    """

    def __init__(self, overhead: float) -> None:
        self.overhead = overhead
        self.cost_s = {"look": 0.0, "norms": 0.0}
        self.spent_s = 0.0
        self.spent_later_s = 0.0
        self.looks = 0
        self.norms = 0
        self._began_later: float | None = None
        self._used = {"look": 0.0, "norms": 0.0}
        self._next_granted = DENSE

    def plan(self, step: int, now_s: float) -> Kind:
        """What the coming step is measured by.

        Args:
            step: optimizer steps made so far.
            now_s: clock.
        """
        if step < DENSE:
            return "look" if step < 6 or step % 2 == 0 else "norms"
        if self._began_later is None:
            self._began_later = now_s
        if step >= self._next_granted:
            self._next_granted = max(step + 1, int(step * GROWTH)) if step < CREDIT_UNTIL else 1 << 62
            return "look"
        purse_s = self.overhead * (now_s - self._began_later) - self._overspent()
        if purse_s * 0.7 - self._used["look"] > self.cost_s["look"]:
            return "look"
        if purse_s * 0.3 - self._used["norms"] > self.cost_s["norms"]:
            return "norms"
        return "count"

    def _overspent(self) -> float:
        """What counting alone has cost."""
        return self.spent_later_s - self._used["look"] - self._used["norms"]

    def paid(self, kind: Kind, seconds: float, step: int) -> None:
        """Book the time that a step of some kind cost."""
        self.spent_s += seconds
        if step >= DENSE:
            self.spent_later_s += seconds
        if kind == "count":
            return
        if kind == "look":
            self.looks += 1
        else:
            self.norms += 1
        if step >= DENSE:
            self._used[kind] += seconds
        known = self.cost_s[kind]
        self.cost_s[kind] = seconds if known == 0 or step < 3 else 0.8 * known + 0.2 * seconds
