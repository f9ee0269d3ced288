"""The loop as the hooks see it: forwards, backwards, optimizer steps, evaluations; what to measure at each.

An iteration ends when the closing optimizer has stepped. What a look of one iteration has left on the device is read when
the next one ends. Every step counts; only looks and norms measure (see `pace`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.doctor.measure import anatomy
from luthier.doctor.measure.attaching import first_tensor
from luthier.doctor.measure.batches import ALL_TARGETS_UNTIL, EVERY, Recent
from luthier.doctor.measure.evaluating import TRACED_EVALUATIONS, Evaluating
from luthier.doctor.measure.journal import Journal
from luthier.doctor.measure.looking import ParameterLook
from luthier.doctor.measure.pace import DENSE, Pace
from luthier.doctor.measure.samples import Samples
from luthier.doctor.measure.slots import Slot, Slots, learning_rate, plain_number, state_step
from luthier.doctor.measure.stats import DeadUnits
from luthier.doctor.measure.tracing import Trace, has_fast_path

IDENTICAL = 1e-3
EVALUATION_SAMPLES = 16
MOST_GRAPHS = 64
PATIENCE = 10


@dataclass
class Pending:
    """A finished look that still lies on the device."""

    row: dict[str, Any]
    parameters: ParameterLook
    trace: Trace | None = None
    inputs: Tensor | None = None
    targets: Any = None
    outputs: Tensor | None = None


class Loop:
    """Listens to the hooks and writes rows; never changes anything of the training.

    Args:
        models, optimizers, loss_fn: what is watched.
        pace: when to look.
        journal: where rows go.
        ended: called after every iteration with its step.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        loss_fn: Any,
        pace: Pace,
        journal: Journal,
        ended: Callable[[int], None],
    ) -> None:
        self.models, self.loss_fn, self.pace, self.journal = models, loss_fn, pace, journal
        self.samples = Samples()
        self.evaluating = Evaluating()
        self.step = 0
        self.compiled = anatomy.is_compiled(models)
        self._ended_call = ended
        self._traceable_evaluation = not self.compiled and not any(has_fast_path(model) for model in models)
        self._dead = DeadUnits()
        self._recent = Recent()
        self._graphs: dict[Any, int] = {}
        self._slots = Slots(self._read_parameters())
        for optimizer in optimizers:
            self._new_optimizer(optimizer, given=True)
        self._write_anatomy()
        self._pending: Pending | None = None
        self._evaluation_trace: Trace | None = None
        self._usual_forwards: int | None = None
        self._any_forward = False
        self._calls_without_step = self._steps_told = self._traced_forwards = 0
        self._stepped = False
        self._eval_inputs: Tensor | None = None
        self._kind = pace.plan(0, time.perf_counter())
        self._typical_busy_s: float | None = None
        self._cost_s = 0.0
        self._ended_at = time.perf_counter()
        self.began_at = self._ended_at
        self._begin_iteration()

    # --- hooks ---------------------------------------------------------------------------------------------------

    def before_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A watched model is about to run."""
        now = time.perf_counter()
        self._any_forward = True
        if torch.is_grad_enabled():
            self._training_forward(model, args, kwargs, now)
        else:
            self._evaluation_forward(model, args, kwargs)
        self._cost_s += time.perf_counter() - now

    def after_forward(self, model: nn.Module, output: Any) -> None:
        """It ran."""
        if not torch.is_grad_enabled():
            self.evaluating.end_forward(model)
            self._eval_output(output)
        elif self._look is not None and self._look.full and self._outputs is None:
            self._outputs = first_tensor((output,), {})

    def before_backward(self, loss: Tensor) -> None:
        """The trace saw backward() begin."""
        self._backwards += 1
        if self._look is not None and len(self._look.entries) < 4:
            self._look.backward_begins([slot.positions for slot in self._slots.all])
        self._traced_loss = loss.detach()

    def after_backward(self, _: Tensor) -> None:
        """It ended."""
        if self._look is not None:
            self._look.backward_ended()

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to step."""
        now = time.perf_counter()
        slot, new = self._slots.find(optimizer)
        if slot is None:
            return
        if new:
            self._describe_optimizer(slot, optimizer, given=False)
        if self._trace is not None and slot.closes:
            self._trace.stop()
        if self._look is not None and not self._look.step_begins(slot.positions) and slot.positions:
            self._without_gradients += 1
        self._cost_s += time.perf_counter() - now

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """It stepped."""
        now = time.perf_counter()
        slot, _ = self._slots.find(optimizer)
        if slot is None:
            return
        if self._look is not None:
            self._look.step_ended()
        if slot.closes:
            self._stepped = True
            self._end_iteration(optimizer, now)
        self._cost_s += time.perf_counter() - now

    # --- what the user tells ---------------------------------------------------------------------------------------

    def told(self, loss: Any, inputs: Any, targets: Any) -> None:
        """watch.step: belongs to the iteration that just ended."""
        now = time.perf_counter()
        if self._steps_told == self.step:
            self._calls_without_step += 1
            if self._stepped or self._calls_without_step < PATIENCE:
                return
            if self._calls_without_step == PATIENCE:
                self._event("steps_without_optimizer", calls=PATIENCE)
            self._end_iteration(None, now)
        self._steps_told = self.step
        loss = loss.detach() if isinstance(loss, Tensor) else loss
        self._recent.set_loss(loss)
        target = first_tensor((targets,), {})
        if target is not None and (self.step <= ALL_TARGETS_UNTIL or self._pending_is_last()):
            self._recent.add_targets(self.step - 1, target)
        if self._pending is not None and self._pending_is_last():
            given = first_tensor((inputs,), {})
            self._pending.inputs = given if self._pending.inputs is None else self._pending.inputs
            self._pending.targets = targets
        self._cost_s += time.perf_counter() - now

    def measured(self, values: dict[str, float], directions: dict[str, str]) -> None:
        """watch.metrics: whatever ran since the last step was an evaluation."""
        if self._forwards and len(self.models) == 1:
            self._forget_forwards()
        self._close_evaluation()
        self._interrupted = True
        self.journal.add({"kind": "metrics", "step": self.step, "values": values, "directions": directions})

    def settle(self) -> None:
        """Read everything that still lies on the device."""
        self._close_evaluation()
        self._read_pending()
        self._flush()

    def stop(self) -> None:
        """End all traces."""
        if self._evaluation_trace is not None:
            self._close_evaluation()
        if self._trace is not None:
            self._trace.stop()
            self._trace = None
        self.settle()
        self.journal.flush()

    # --- iterations --------------------------------------------------------------------------------------------------

    def _begin_iteration(self) -> None:
        full = self._kind == "look"
        self._look = None if self._kind == "count" else ParameterLook(self.parameters, full, self._suspects)
        self._trace: Trace | None = None
        self._outputs: Tensor | None = None
        self._inputs: Tensor | None = None
        self._traced_loss: Tensor | None = None
        self._forwards = self._backwards = self._without_gradients = 0
        self._first_training: bool | None = None
        self._forward_at: float | None = None
        self._interrupted = False
        if full and self.step >= 2 and not self._any_forward and not self.compiled:
            self._trace = self._started_trace()

    def _training_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], now: float) -> None:
        self._forwards += 1
        if self._forward_at is None:
            if self.evaluating.forwards:
                self._interrupted = True
                self._close_evaluation()
            self._forward_at, self._first_training = now, model.training
        if self._kind != "look" or self.compiled:
            return
        usual = self._usual_forwards
        stale = usual is not None and self._traced_forwards >= usual and not self._backwards and len(self.models) == 1
        if self._trace is not None and stale:
            self._trace.stop()
            self._trace = None
        if self._trace is None:
            self._trace = self._started_trace()
            self._inputs, self._outputs, self._first_training = first_tensor(args, kwargs), None, model.training
            self._traced_forwards = 0
        self._traced_forwards += 1
        self._trace.enter(model, args, kwargs)

    def _started_trace(self) -> Trace:
        trace = Trace(self.models, self, self._dead)
        trace.start()
        return trace

    def _end_iteration(self, optimizer: torch.optim.Optimizer | None, now: float) -> None:
        self._close_evaluation()
        self._note_extra_forwards()
        self._read_pending()
        if len(self._recent) >= EVERY or (self.step <= DENSE and self.step % 5 == 0):
            self._flush()
        self._book(optimizer, now)
        if self._without_gradients:
            self._event("no_gradients", optimizers=self._without_gradients)
        if self._look is not None:
            self._pending = self._unread(optimizer)
        self.step += 1
        self._kind = self.pace.plan(self.step, now)
        if self._kind == "look":
            self._check_anatomy()
        self._begin_iteration()
        self._ended_call(self.step)
        self._ended_at = time.perf_counter()

    def _book(self, optimizer: torch.optim.Optimizer | None, now: float) -> None:
        """Times of this step, and what watching it cost."""
        began = self._forward_at if self._forward_at is not None else now
        busy_s, wait_s = now - began, max(0.0, began - self._ended_at)
        plain = self._kind == "count" and not self._interrupted
        if self._kind == "look":
            known = self._typical_busy_s
            cost_s = self._cost_s if known is None else max(self._cost_s, busy_s - known)
        else:
            cost_s = self._cost_s
            own_s = max(0.0, busy_s - cost_s)
            self._typical_busy_s = own_s if self._typical_busy_s is None else 0.9 * self._typical_busy_s + 0.1 * own_s
        self.pace.paid(self._kind, cost_s, self.step)
        self._cost_s = 0.0
        lr = float("nan") if optimizer is None else learning_rate(optimizer)
        self._recent.add(self.step, lr, wait_s if plain else 0.0, busy_s if plain else 0.0)
        if self._traced_loss is not None:
            self._recent.set_loss(self._traced_loss)

    def _unread(self, optimizer: torch.optim.Optimizer | None) -> Pending:
        row: dict[str, Any] = {"kind": "look" if self._look and self._look.full else "norms", "step": self.step}
        if row["kind"] == "look":
            groups = [] if optimizer is None else optimizer.param_groups
            row |= {
                "training": self._first_training,
                "n_forward": self._forwards,
                "n_backward": self._backwards,
                "lr": [plain_number(group["lr"]) for group in groups],
                "state_step": None if optimizer is None else state_step(optimizer),
                "took_s": self._cost_s,
            }
        look = self._look
        if look is None:
            raise RuntimeError("a look that was not begun cannot be kept")
        return Pending(row, look, self._trace, self._inputs, None, self._outputs)

    def _pending_is_last(self) -> bool:
        return self._pending is not None and self._pending.row["step"] == self.step - 1

    def _note_extra_forwards(self) -> None:
        """Forwards with gradients beyond the usual number of a step were somebody's evaluation without no_grad."""
        if len(self.models) > 1 or not self._forwards:
            return
        usual = self._usual_forwards
        if usual is not None and self._forwards > usual:
            extra = self._forwards - usual
            self.journal.add(self.evaluating.unseen(bool(self._first_training), self.step, extra))
            self._interrupted = True
        self._usual_forwards = self._forwards if usual is None else min(usual, self._forwards)

    def _forget_forwards(self) -> None:
        """Forwards with gradients, but metrics came before any step: an evaluation without no_grad."""
        self.journal.add(self.evaluating.unseen(bool(self._first_training), self.step, self._forwards))
        self._forwards, self._forward_at = 0, None
        if self._trace is not None:
            self._trace.stop()
            self._trace = None

    # --- evaluations -------------------------------------------------------------------------------------------------

    def _evaluation_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._finish_evaluation_trace()
        inputs = first_tensor(args, kwargs)
        self.evaluating.begin_forward(model, self.step, inputs, grad=False)
        first = self.evaluating.forwards == 1 and self.evaluating.number < TRACED_EVALUATIONS
        if first and self._traceable_evaluation and self._trace is None and len(self.models) == 1:
            self._evaluation_trace = self._started_evaluation_trace()
            self._evaluation_trace.enter(model, args, kwargs)
        if inputs is not None and self.evaluating.forwards <= EVALUATION_SAMPLES:
            self._eval_inputs = inputs

    def _eval_output(self, output: Any) -> None:
        if self._eval_inputs is not None:
            outputs = first_tensor((output,), {})
            forward = (self.evaluating.number, self.evaluating.forwards)
            self.samples.add_eval(self.step, forward, self._eval_inputs, outputs, None)
            self._eval_inputs = None

    def _started_evaluation_trace(self) -> Trace:
        trace = Trace(self.models, _Deaf(), DeadUnits())
        trace.start()
        return trace

    def _finish_evaluation_trace(self) -> None:
        if self._evaluation_trace is not None:
            trace, self._evaluation_trace = self._evaluation_trace, None
            trace.stop()
            graph, _, extras = trace.read()
            self.evaluating.saw(graph, extras.get("predictions"))

    def _close_evaluation(self) -> None:
        self._finish_evaluation_trace()
        row = self.evaluating.end()
        if row is not None:
            self.journal.add(row)

    # --- reading -----------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        columns, targets = self._recent.take()
        self.journal.add_steps(columns)
        for row in targets:
            self.journal.add(row)

    def _read_pending(self) -> None:
        """One transfer for everything that the last look left."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        row = {**pending.row, **pending.parameters.read()}
        if pending.trace is not None:
            graph, numbers, extras = pending.trace.read(pending.inputs, pending.targets)
            row |= {"graph": self._graph(graph), "numbers": numbers, **extras}
            row["n_forward"], row["n_backward"] = pending.row["n_forward"], pending.row["n_backward"]
        if row["kind"] == "look":
            self._sample(pending, row)
        self.journal.add(row)

    def _sample(self, pending: Pending, row: dict[str, Any]) -> None:
        targets = first_tensor((pending.targets,), {})
        if pending.inputs is not None:
            self.samples.add_train(row["step"], pending.inputs, targets, pending.outputs)

    def _graph(self, graph: dict[str, Any]) -> int | None:
        key = repr(graph["nodes"]) + repr(graph["outputs"]) + repr(graph["roots"])
        known = self._graphs.get(hash(key))
        if known is None and len(self._graphs) < MOST_GRAPHS:
            known = self._graphs[hash(key)] = len(self._graphs)
            self.journal.add({**graph, "kind": "graph", "id": known})
        return known

    # --- anatomy -----------------------------------------------------------------------------------------------------

    def _read_parameters(self) -> list[Tensor]:
        self.parameters: list[Tensor] = [p for _, p in anatomy.named_parameters(self.models)]
        self._signature = anatomy.signature(self.models)
        self._suspects: frozenset[int] = frozenset()
        return self.parameters

    def _write_anatomy(self) -> None:
        row = anatomy.anatomy_row(self.step, self.models, self._slots.living(), self.loss_fn)
        self._suspects = frozenset(
            position
            for position, p in enumerate(row["parameters"])
            if p["row_spread"] is not None and p["row_spread"] < IDENTICAL
        )
        self.journal.add(row)

    def _check_anatomy(self) -> None:
        if anatomy.signature(self.models) != self._signature:
            self._slots.follow(self._read_parameters())
            self._write_anatomy()

    def _new_optimizer(self, optimizer: torch.optim.Optimizer, given: bool) -> None:
        slot = self._slots.add(optimizer)
        if slot is not None:
            self._describe_optimizer(slot, optimizer, given)

    def _describe_optimizer(self, slot: Slot, optimizer: torch.optim.Optimizer, given: bool) -> None:
        self.journal.add(anatomy.optimizer_row(self.step, slot.number, optimizer, given, slot.replaces))

    def _event(self, name: str, **details: Any) -> None:
        self.journal.add({"kind": "event", "step": self.step, "name": name, "details": details})


class _Deaf:
    """Listens to nothing: an evaluation has no backward."""

    def before_backward(self, loss: Tensor) -> None: ...

    def after_backward(self, loss: Tensor) -> None: ...
