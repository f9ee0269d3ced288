"""How an iteration begins: whether it is looked at, and what listens during it."""

from __future__ import annotations

import time
from typing import Any

from torch import nn

from luthier.doctor.measure.attaching import first_tensor
from luthier.doctor.measure.evaluating import Usual
from luthier.doctor.measure.iteration import Iteration
from luthier.doctor.measure.journal import Journal
from luthier.doctor.measure.looking import ParameterLook
from luthier.doctor.measure.pace import Pace
from luthier.doctor.measure.patient import Patient
from luthier.doctor.measure.resting import Resting
from luthier.doctor.measure.rows import DeadUnits
from luthier.doctor.measure.tracing import Listener, Trace


class Beginning:
    """Begins iterations.

    Args:
        patient: what is watched.
        pace: tells which iterations are looked at.
        resting: told of those that only count.
        journal: given the rows of what has changed about the patient.
        usual: how many forwards a step takes.
    """

    def __init__(self, patient: Patient, pace: Pace, resting: Resting, journal: Journal, usual: Usual) -> None:
        self._patient, self._pace, self._resting, self._journal = patient, pace, resting, journal
        self._usual = usual
        self._dead = DeadUnits()

    def begin(self, step: int, at_once: Listener | None) -> Iteration:
        """The iteration after so many steps.

        Args:
            step: optimizer steps made.
            at_once: hears the backward passes of a trace that begins here, for models whose parts are called by hand;
                None for those that run, which are traced from their forward on.
        """
        kind = self._pace.plan(step, time.perf_counter())
        self._resting.plan(kind == "count")
        if kind == "count":
            return Iteration(step, kind)
        if kind == "look":
            for row in self._patient.changes(step):
                self._journal.add(row)
        look = ParameterLook(self._patient.parameters, kind == "look", self._patient.suspects)
        unknown = step < 2 and not self._patient.in_parts  # whether they run by themselves
        if at_once is None or kind != "look" or unknown or self._patient.compiled:
            return Iteration(step, kind, look)
        return Iteration(step, kind, look, self._trace(at_once))

    def traced_forward(
        self, now: Iteration, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], listener: Listener
    ) -> None:
        """A forward of an iteration that is looked at; one beyond the usual number begins the trace anew."""
        usual = self._usual.forwards
        if not self._patient.several and usual is not None and now.traced >= usual and not now.backwards:
            now.drop_trace()
        if now.trace is None:
            now.trace, now.traced = self._trace(listener), 0
            now.inputs, now.outputs, now.training = first_tensor(args, kwargs), None, model.training
        now.traced += 1
        now.trace.enter(model, args, kwargs)

    def _trace(self, listener: Listener) -> Trace:
        trace = Trace(self._patient.models, listener, self._dead)
        trace.start()
        return trace
