"""The loop as the hooks see it: forwards, backwards, optimizer steps, evaluations; what to measure at each.

An iteration ends when the closing optimizer has stepped. What a look of one iteration has left on the device is read
when the next one ends. Every step counts; only looks and norms measure (see `pace`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from luthier.doctor.measure.accounts import Accounts
from luthier.doctor.measure.attaching import Ears, first_tensor
from luthier.doctor.measure.backwards import scale_of
from luthier.doctor.measure.batches import ALL_TARGETS_UNTIL, EVERY, Recent
from luthier.doctor.measure.beginning import Beginning
from luthier.doctor.measure.evaluating import Evaluating, Usual
from luthier.doctor.measure.iteration import Iteration
from luthier.doctor.measure.journal import Journal
from luthier.doctor.measure.late import Late
from luthier.doctor.measure.napping import Nap
from luthier.doctor.measure.pace import DENSE, Pace
from luthier.doctor.measure.patient import Patient
from luthier.doctor.measure.resting import Resting
from luthier.doctor.measure.samples import Samples
from luthier.doctor.measure.slots import Slot, learning_rate
from luthier.doctor.measure.stretch import Stretch

MOST_ENTRIES = 4
PATIENCE = 10
FIRST_REPORT = 5
UNEVALUATED = 5000  # steps after which a loop that has shown no evaluation may nap
NAN = float("nan")


class Loop:
    """Listens to the hooks and writes rows; never changes anything of the training.

    Args:
        patient: the models and optimizers.
        pace: when to look.
        journal: where rows go.
        ears: what may rest at some steps.
        ended: called after iterations with their step, if given, at steps in geometric progression.
        first_step: steps made before watching began (a resumed training).
    """

    def __init__(
        self,
        patient: Patient,
        pace: Pace,
        journal: Journal,
        ears: Ears,
        ended: Callable[[int], None] | None,
        first_step: int = 0,
    ) -> None:
        self.patient, self.pace, self.journal = patient, pace, journal
        self.samples = Samples()
        self.evaluating = Evaluating(patient, self.samples)
        self.resting = Resting(ears, allowed=not (patient.several or patient.compiled))
        self._ended = ended
        self._report_at: float = math.inf if ended is None else FIRST_REPORT
        self._recent = Recent()
        self._late = Late(journal, self.samples)
        self._usual = Usual()
        self._beginning = Beginning(patient, pace, self.resting, journal, self._usual)
        self._model_runs = self._stepped = self._gradients_inside = self._in_backward = False
        self._owed: tuple[torch.optim.Optimizer, float] | None = None
        self._closer: Callable[[], torch.optim.Optimizer | None] = lambda: None
        self._told_step, self._told_in_vain = first_step, 0
        self._known_step = first_step
        self.accounts = Accounts(pace)
        self._ears, self._nap = ears, Nap(ears)
        self.stretch = Stretch(pace, self._recent, self.accounts, self._nap)
        self._now = self._beginning.begin(first_step, at_once=self)

    @property
    def step(self) -> int:
        """Optimizer steps made."""
        return self._now.step + self.stretch.unbooked

    # Called by the hooks of the models, the trace and the optimizers

    def before_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """A watched model is about to run; returns whether its output matters."""
        if self._in_backward:
            self.resting.never()
            return False
        self._leave_stretch()
        if self._known_step != self._now.step:
            self._untold()
        if self._owed is not None:
            self._catch_up()
        self._model_runs = True
        at = time.perf_counter()
        if not torch.is_grad_enabled():
            self._nap.evaluated()
            self.evaluating.begin_forward(model, self.step, args, kwargs, free=self._now.trace is None)
            self.accounts.cost_s += time.perf_counter() - at
            return True
        now = self._now
        now.forwards += 1
        if now.forward_at is None:
            if self.evaluating.forwards:
                now.interrupted = True
                self._close_evaluation()
            now.forward_at, now.training = at, model.training
        if now.kind != "look" or self.patient.compiled:
            return False
        self._beginning.traced_forward(now, model, args, kwargs, self)
        self.accounts.cost_s += time.perf_counter() - at
        return now.outputs is None

    def after_forward(self, model: nn.Module, output: Any) -> None:
        """It ran."""
        if self._in_backward:
            return
        if not torch.is_grad_enabled():
            self.evaluating.end_forward(model, self.step, output)
        elif self._now.trace is not None and self._now.outputs is None:
            self._now.outputs = first_tensor((output,), {})

    def backward_begins(self, loss: Tensor) -> None:
        """A backward pass begins; its loss counts when a watched model ran before."""
        self._leave_stretch()
        now = self._now
        self._in_backward = True
        if now.forwards and loss.numel() == 1:
            now.scale = scale_of(loss)
            now.loss = loss.detach() if now.scale is None else loss.detach() / now.scale
            if now.scale is not None:
                self.resting.never()
        if now.kind == "look" and now.look is not None and len(now.look.entries) < MOST_ENTRIES:
            now.look.backward_begins([slot.positions for slot in self.patient.slots.all])

    def backward_ends(self, _: Tensor) -> None:
        """It ended; an iteration that ended inside it is closed later (a trace may be at work just now)."""
        self._in_backward = False
        if self._now.kind == "look" and self._now.look is not None:
            self._now.look.backward_ended(self._now.scale)

    def before_backward(self, _: Tensor) -> None:
        """The trace saw a backward pass, or gradients asked of `autograd.grad`."""
        self._now.backwards += 1

    def before_step(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        """An optimizer is about to step; with a closure (LBFGS) the gradients come inside the step."""
        if self._owed is not None and not self._in_backward:
            self._catch_up()
        if self._now.look is None:
            return
        at = time.perf_counter()
        slot = self._slot(optimizer)
        if slot is not None:
            if self._now.look is not None:
                self._now.look.step_begins(slot.positions)
            self._gradients_inside = closure
            if not closure:
                self._gradients_ready(slot)
        self.accounts.cost_s += time.perf_counter() - at

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """It stepped."""
        at = time.perf_counter()
        self._leave_stretch()
        if self.resting.now and self._closer() is optimizer:
            self._end(optimizer, at)
            return
        slot = self._slot(optimizer)
        if slot is None:
            return
        if self._now.look is not None:
            if self._gradients_inside:
                self._gradients_ready(slot)
            self._now.look.step_ended()
        if slot.closes:
            self._stepped, self._closer = True, slot.optimizer
            if self._in_backward:
                self._owed = optimizer, at
                self.resting.never()
            else:
                self._end(optimizer, at)

    # Called by the watch

    def told(self, loss: Any, inputs: Any, targets: Any) -> None:
        """watch.step: belongs to the iteration that just ended."""
        at = time.perf_counter()
        self._leave_stretch()
        if self._owed is not None:
            self._catch_up()
        if self._told_step == self._now.step and not self._ends_untold(at):
            return
        self._told_step = self._known_step = self._now.step
        self.resting.told(loss is not None)
        if loss is not None:
            self._recent.set_loss(loss.detach() if isinstance(loss, Tensor) else loss)
        looked = self._late.pending is not None and self._late.of_step(self._told_step - 1)
        if looked or self._told_step <= ALL_TARGETS_UNTIL:
            self._tell_batch(inputs, targets, looked)
        self.accounts.cost_s += time.perf_counter() - at

    def _tell_batch(self, inputs: Any, targets: Any, looked: bool) -> None:
        target = first_tensor((targets,), {})
        if target is not None:
            self._recent.add_targets(self.step - 1, target)
        if looked:
            self._late.tell(inputs, targets)

    def evaluated(self) -> None:
        """Whatever ran since the last step was an evaluation."""
        self._leave_stretch()
        self._catch_up()
        now = self._now
        if now.forwards and not self.patient.several:
            self.journal.add(self._usual.unseen(now, now.forwards))
            now.forwards, now.forward_at = 0, None
            now.drop_trace()
        self._close_evaluation()
        now.interrupted = True

    def settle(self) -> None:
        """Read everything that still lies on the device."""
        self._leave_stretch()
        self._catch_up()
        if self._known_step != self._now.step:
            self._untold()
        self._close_evaluation()
        self._late.read()
        self._recent.flush(self.journal)
        self.accounts.pay(self.step - 1)

    def stop(self) -> None:
        """End all traces and read the rest."""
        self._catch_up()
        self._now.drop_trace()
        self.settle()
        self.journal.flush()

    # An iteration

    def _leave_stretch(self) -> None:
        """Go on from where the steps have come that were counted without this loop."""
        if self.stretch.next is not None:
            told = self.stretch.leave()
            self._told_step = self._known_step = self.step if told else self.step - 1

    def _untold(self) -> None:
        """Nobody told of the latest step so far."""
        self._known_step = self._now.step
        self._nap.allowed = False
        loss = self.resting.untold()
        if loss is not None:
            self._recent.set_loss(loss)

    def _catch_up(self) -> None:
        """Close the iteration whose optimizer stepped inside a backward pass."""
        owed, self._owed = self._owed, None
        if owed is not None:
            self._end(*owed)

    def _slot(self, optimizer: torch.optim.Optimizer) -> Slot | None:
        slot, new = self.patient.slots.find(optimizer)
        if new and slot is not None:
            self.journal.add(self.patient.optimizer_row(self.step, slot, optimizer, given=False))
        return slot

    def _gradients_ready(self, slot: Slot) -> None:
        if slot.closes and not self._in_backward:
            self._now.end_trace()
        look = self._now.look
        if look is not None and not look.measure_gradients(slot.positions) and slot.positions:
            self._now.without_gradients += 1

    def _ends_untold(self, at: float) -> bool:
        """watch.step without an optimizer step: a micro-batch, or a loop that never steps (then calls count)."""
        self._told_in_vain += 1
        if self._stepped or self._told_in_vain < PATIENCE:
            return False
        if self._told_in_vain == PATIENCE:
            self._event("steps_without_optimizer", calls=PATIENCE)
        self._end(None, at)
        return True

    def _end(self, optimizer: torch.optim.Optimizer | None, at: float) -> None:
        now = self._now
        self._ears.alarmed = False
        self._finish(now, optimizer)
        self._now = self._beginning.begin(now.step + 1, None if self._model_runs else self)
        self._book(now, optimizer, at)
        if self._ended is not None and self.step >= self._report_at:
            self._report_at = self.step + 3 if self.step < 12 else int(self.step * 1.5)
            self._ended(self.step)
        listening = self._ears.listening
        if self.resting.now and self._late.pending is None and listening is not None:
            usual, until = self._usual.forwards, self._report_at - 1
            self.stretch.begin(self._now, self._closer, listening, usual, until, self._may_nap())
        self.accounts.ended_at = time.perf_counter()  # what a report takes is no waiting for data

    def _may_nap(self) -> bool:
        """Whether forwards may go unheard: this loop evaluates without gradients, or not at all."""
        return not self._usual.exceeded and (self.evaluating.number > 0 or self.step >= UNEVALUATED)

    def _finish(self, now: Iteration, optimizer: torch.optim.Optimizer | None) -> None:
        if now.trace is not None:
            now.end_trace()
        if self.evaluating.forwards:
            self._close_evaluation()
        if not self.patient.several and (row := self._usual.beyond(now)) is not None:
            self.journal.add(row)
        self._late.read()
        if len(self._recent) >= EVERY or (now.step <= DENSE and now.step % 5 == 0):
            self._recent.flush(self.journal)
        if now.without_gradients:
            self._event("no_gradients", optimizers=now.without_gradients)
        if now.look is not None:
            self._late.pending = now.pending(now.look, optimizer, self.accounts.cost_s)

    def _book(self, now: Iteration, optimizer: torch.optim.Optimizer | None, at: float) -> None:
        wait_s, busy_s = self.accounts.book(now, at)
        self._recent.add(now.step, NAN if optimizer is None else learning_rate(optimizer), wait_s, busy_s)
        if now.loss is not None:
            self._recent.set_loss(now.loss)

    def _close_evaluation(self) -> None:
        for row in self.evaluating.end():
            self.journal.add(row)

    def _event(self, name: str, **details: Any) -> None:
        self.journal.add({"kind": "event", "step": self.step, "name": name, "details": details})
