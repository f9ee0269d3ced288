"""Stretches of steps that only count: most steps of a training, so each of their hooks is one call of ours.

Called once a millisecond, every call comes from cold caches. Whatever is not forward, optimizer step and the telling of
the loss in turn (an evaluation, a loss that is not told, time for a look) ends the stretch, and `Loop` goes on with it.

Most of its steps are counted in naps, which hear no more than the losses: see `napping`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import get_ident
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from luthier.doctor.measure.accounts import Accounts
from luthier.doctor.measure.backwards import Listening
from luthier.doctor.measure.batches import ALL_TARGETS_UNTIL, EVERY, Recent
from luthier.doctor.measure.iteration import Iteration
from luthier.doctor.measure.napping import Nap
from luthier.doctor.measure.pace import Pace
from luthier.doctor.measure.slots import plain_number

Next = Literal["forward", "step", "told", "nap", None]
AWAKE = 8  # steps at the beginning of a stretch
NAP_S = 1.25  # a nap lasts about so long at most, since in it nobody looks at the clock


class Stretch:
    """Steps in a row of a loop that tells its losses, none of which is looked at, written or read.

    Each hook asks here first; False says that the event is none of a stretch and has not been dealt with.

    Args:
        pace: when the next look or norms come.
        recent: where the steps go.
        accounts: of their times.
        nap: counts the quick ones.

    Attributes:
        next: what must come next for the stretch to go on; None between stretches.
    """

    def __init__(self, pace: Pace, recent: Recent, accounts: Accounts, nap: Nap) -> None:
        self._pace, self._recent, self._accounts, self._nap = pace, recent, accounts, nap
        self._thread = get_ident()
        self.next: Next = None

    @property
    def unbooked(self) -> int:
        """Steps of a nap, which the iteration does not count yet."""
        return len(self._nap.losses) if self.next == "nap" else 0

    def begin(
        self,
        now: Iteration,
        closer: Callable[[], torch.optim.Optimizer | None],
        listening: Listening,
        usual_forwards: int | None,
        until: float,
        naps: bool,
    ) -> None:
        """A step has ended that is yet to be told; from here on as far as can be known.

        Args:
            now: the iteration that begins; it becomes each of those to come in turn.
            closer: the optimizer whose steps end them.
            listening: forgets a loss that was told.
            usual_forwards: in each of them.
            until: the first step that is to be left to the loop.
            naps: whether forwards may go unheard.
        """
        self._until = min(until, self._pace.next_granted - 1, now.step + EVERY - len(self._recent))
        if not ALL_TARGETS_UNTIL <= now.step < self._until:
            return
        self._now, self._closer, self._listening, self._usual = now, closer, listening, usual_forwards
        self._until_s = self._pace.poor_until_s
        self._drowsy_at = now.step + AWAKE if naps and self._nap.allowed else math.inf
        self.next = "told"

    def forward(self, model: nn.Module) -> bool:
        """A watched model is about to run."""
        following = self.next
        if following is None or following == "told" or get_ident() != self._thread or not torch.is_grad_enabled():
            return False
        if following == "nap":
            return True
        at, now = perf_counter(), self._now
        if following == "forward":
            now.forward_at, now.training = at, model.training
            self.next = "step"
        now.forwards += 1
        self._accounts.counted_s += perf_counter() - at
        return True

    def ended(self, optimizer: torch.optim.Optimizer) -> bool:
        """An optimizer has stepped."""
        if self.next != "step":
            return False
        at, now, accounts = perf_counter(), self._now, self._accounts
        began: Any = now.forward_at
        if (
            now.forwards != self._usual
            or now.step >= self._until
            or at >= self._until_s
            or self._closer() is not optimizer
        ):
            return False
        lr = optimizer.param_groups[0]["lr"]
        wait_s = began - accounts.ended_at
        self._recent.steps.append(
            (now.step, lr if type(lr) is float else plain_number(lr), wait_s if wait_s > 0 else 0.0, at - began)
        )
        self._recent.losses.append(None)
        now.step += 1
        now.forwards = 0
        now.forward_at = None
        self.next = "told"
        accounts.ended_at = ended_at = perf_counter()
        accounts.counted_s += ended_at - at
        return True

    def told(self, loss: Any) -> bool:
        """The loss of the step that has just ended."""
        following = self.next
        if following == "nap" and isinstance(loss, Tensor):
            nap = self._nap
            nap.losses.append(loss.detach())
            nap.lrs.append(nap.group["lr"])
            if len(nap.losses) == self._most:
                self._wake()
                self.next, self._drowsy_at = "forward", self._now.step + AWAKE
            elif nap.alarmed:
                nap.on()
            return True
        if following != "told" or not isinstance(loss, Tensor):
            return False
        at = perf_counter()
        self._recent.losses[-1] = loss.detach()
        self._listening.latest = None
        self.next = "forward"
        if self._now.step >= self._drowsy_at:
            self._drowse()
        self._accounts.counted_s += perf_counter() - at
        return True

    def leave(self) -> bool:
        """Something came that is none of a stretch; returns whether the latest step was told."""
        following, self.next = self.next, None
        if following != "nap":
            return following != "told"
        return self._wake()

    def _drowse(self) -> None:
        optimizer, step = self._closer(), self._now.step
        if step == self._drowsy_at and optimizer is not None:
            self._nap.drowse(optimizer)
            return
        self._drowsy_at = math.inf
        _, lr, _, took_s = self._recent.steps[-1]
        self._most = int(min(self._until - 1 - step, NAP_S / max(took_s, 1e-6)))
        if self._most >= AWAKE and self._nap.allowed and self._nap.begin(lr):
            self.next = "nap"

    def _wake(self) -> bool:
        """Book the steps of the nap; returns whether the latest was told."""
        now, recent = self._now, self._recent
        rows, untold, now.forwards = self._nap.end(now.step)
        recent.steps += rows
        recent.losses += self._nap.losses
        now.step += len(rows)
        now.interrupted = True
        for _ in range(untold):
            recent.add(now.step, plain_number(self._nap.group["lr"]), 0.0, 0.0)
            now.step += 1
        self._accounts.ended_at = perf_counter()
        return not untold
