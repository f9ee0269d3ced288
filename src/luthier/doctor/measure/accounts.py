"""How long steps take, how long they wait for data, and what watching them costs."""

from __future__ import annotations

import time

from luthier.doctor.measure.iteration import Iteration
from luthier.doctor.measure.pace import Pace


class Accounts:
    """The clock of a loop.

    Args:
        pace: told of every cost.

    Attributes:
        cost_s: what watching the present iteration has cost so far.
        counted_s: what the steps of a stretch have cost and is not booked yet.
        began_at, ended_at: when watching began, and when the last iteration ended.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._typical_busy_s: float | None = None
        self._after_look = self._undisturbed = False
        self.cost_s = self.counted_s = 0.0
        self.began_at = self.ended_at = time.perf_counter()

    def book(self, now: Iteration, at: float) -> tuple[float, float]:
        """Close the account of an iteration whose optimizer has stepped.

        What a look costs is heard within the step too (operations that are listened to), so it is what the step took
        beyond a usual one. So is what the step after it took beyond a usual one: memory has to be asked for again.

        Args:
            now: the iteration.
            at: when the step had been made.

        Returns:
            Seconds of waiting and of work; zeros when something else came between or the step was looked at.
        """
        began = now.forward_at if now.forward_at is not None else at
        busy_s, wait_s = at - began, max(0.0, began - self.ended_at)
        cost_s = self.cost_s + time.perf_counter() - at
        known_s, own_s = self._typical_busy_s, max(0.0, busy_s - self.cost_s)
        if now.forward_at is None and now.interrupted:
            pass  # it began unheard
        elif now.kind != "look":
            self._learn(own_s)
            if self._after_look and self._undisturbed and known_s is not None and not now.interrupted:
                self._pace.paid_later(own_s - known_s, now.step)
        elif known_s is not None:
            cost_s = max(cost_s, busy_s - known_s + time.perf_counter() - at)
        self._after_look = now.kind == "look"
        self.pay(now.step - 1)
        self._pace.paid(now.kind, cost_s, now.step)
        self.cost_s = 0.0
        return (wait_s, busy_s) if now.kind == "count" and not now.interrupted else (0.0, 0.0)

    def _learn(self, own_s: float) -> None:
        """What a usual step takes: one right after a look tells it only until another one does."""
        known_s = self._typical_busy_s
        if not self._after_look and not self._undisturbed:
            known_s, self._undisturbed = None, True
        if known_s is None or (self._after_look and not self._undisturbed):
            self._typical_busy_s = own_s
        elif not self._after_look:
            self._typical_busy_s = 0.9 * known_s + 0.1 * own_s

    def pay(self, step: int) -> None:
        """Book what the steps of a stretch have cost, up to this one."""
        self._pace.paid("count", self.counted_s, step)
        self.counted_s = 0.0
