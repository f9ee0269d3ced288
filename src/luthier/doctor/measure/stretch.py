"""Stretches of steps that only count: most steps of a training, so they pass through as few calls as can be.

Called once a millisecond, each call comes from cold caches. What may come between (an evaluation, a loss that is not
told, time for a look) is left to the full account of an iteration.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from luthier.doctor.measure.accounts import Accounts
from luthier.doctor.measure.attaching import Ears
from luthier.doctor.measure.batches import ALL_TARGETS_UNTIL, EVERY, Recent
from luthier.doctor.measure.iteration import Iteration
from luthier.doctor.measure.pace import Pace
from luthier.doctor.measure.resting import Resting
from luthier.doctor.measure.slots import learning_rate


class Stretch:
    """Steps in a row of a loop that tells its losses, none of which is looked at, written or read.

    Args:
        ears: forget a loss that was told.
        resting: whether they rest: only then.
        pace: when the next look or norms come.
        recent: where the steps go.
        accounts: of their times.
    """

    def __init__(self, ears: Ears, resting: Resting, pace: Pace, recent: Recent, accounts: Accounts) -> None:
        self._ears, self._resting, self._pace = ears, resting, pace
        self._recent, self._accounts = recent, accounts
        self._until = 0

    def begin(self, step: int, free: bool) -> None:
        """From a step on as far as can be known; `free`: nothing waits to be read."""
        ends = min(self._pace.next_granted - 1, step + EVERY - len(self._recent))
        self._until = ends if free and step >= ALL_TARGETS_UNTIL else 0

    def ended(self, now: Iteration, optimizer: torch.optim.Optimizer, at: float) -> bool:
        """An iteration as usual has ended: whether that is all there is to it. It becomes the next one then."""
        if now.step >= self._until or at >= self._pace.poor_until_s:
            return False
        recent = self._recent
        recent.steps.append((now.step, learning_rate(optimizer), *self._accounts.count(now, at)))
        recent.losses.append(now.loss)
        now.step += 1
        now.forwards = 0
        now.forward_at = now.loss = None
        now.interrupted = False
        self._accounts.ended_at = time.perf_counter()
        return True

    def told(self, step: int, loss: object, at: float) -> bool:
        """The loss of the latest step: whether that is all there is to be told."""
        recent = self._recent
        if step >= self._until or not self._resting.now or not recent.losses or not isinstance(loss, Tensor):
            return False
        recent.losses[-1] = loss.detach()
        self._ears.forget_latest()
        self._accounts.cost_s += time.perf_counter() - at
        return True
