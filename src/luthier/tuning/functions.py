"""The third way in: a training function of one's own. What it is given, in its worker process.

Nothing heavy is imported here: a function that needs no torch never waits for it.
"""

from __future__ import annotations

import math
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import LuthierError
from luthier.files import from_json, from_stored, to_json, write_atomic
from luthier.tuning.objectives import RESULT, as_readings, as_step
from luthier.tuning.saves import Saves

if TYPE_CHECKING:
    from luthier.doctor.findings import Finding
    from luthier.doctor.measure.watching import Watch
    from luthier.tuning.worker import Channel

_FATAL = ("nan_inf", "nan_input")

UNTIL_IT_ENDS = 1 << 31
"""The step to which a trial trains while nobody knows how many steps there are."""


class TrialPaused(Exception):
    """The trial goes no further for now, or never: the only exception of an early stop.

    Raised by `trial.report`, by `trial.save` where that comes after it, and after a crash also by `trial.restore`.

    Let it pass; `finally` blocks and `with` statements do their work. What was saved waits for the trial's return. A
    function that raises it by itself ends its trial, as one that is not worth more; its text is the reason.
    """


class LiveTrial:
    """What a training function is given: values to try, and whom to tell how it goes.

    Attributes:
        params: the values to train with, by name.
        number: of the trial in its study.
        seed: for weights and data order; the same for all trials of a search, so that they differ in `params` only.
    """

    def __init__(self, order: dict[str, Any], channel: Channel) -> None:
        self.params: dict[str, Any] = from_stored(order["values"])
        self.number: int = order["number"]
        self.seed: int = order["seed"]
        self.ending: tuple[str, str] | None = None
        self._until, self._steps = int(order["until"]), order["steps"]
        self._end_step = int(order.get("total_steps") or UNTIL_IT_ENDS)
        self._columns: dict[str, str] = order["reported"]
        self._sign = -1.0 if order.get("direction", "max") == "max" else 1.0
        self._loss, self._best_loss = math.inf, math.inf  # of the first objective: last reported, best with a state
        self._rarely = False  # whether it saves more rarely than it reports
        self._is_best = False  # whether the state taken last has the best one
        self._channel, self._path = channel, Path(order["folder"])
        self._pid, self._began = os.getpid(), time.monotonic()
        self._step, self._before_s = 0, 0.0
        self._from_0 = 0  # 1 for a function that counts its steps from 0
        self._known, self._rows = int(order.get("known", 0)), list[dict[str, Any]]()
        self._saves = Saves(self._path / "checkpoints")
        self._of = from_json(to_json({"seed": self.seed, "params": self.params}))
        self._restores = self._saved = False
        self._kept = False  # whether a state has been saved or restored
        self._saves_first: bool | None = None  # whether a state is saved before its reading is reported
        self._due: str | None = None  # why it pauses as soon as the step just reported is saved
        self._restored_step: int | None = None
        self._guarded: bool = order.get("guarded", True)
        self._watching: Watch | None = None
        self._watched, self._judged = 0, False  # training steps watched before; whether what is seen may end the trial
        self._next_judgement = 1

    @property
    def folder(self) -> Path:
        """A folder of the trial's own, with its values in `params.json`; made when first asked for."""
        if not (self._path / "params.json").exists():
            write_atomic(self._path / "params.json", to_json(self._of, indent=1))
        return self._path

    def report(self, value: float | Mapping[str, float], step: int) -> None:
        """Tell a reading of what is searched for, such as the validation accuracy after an epoch.

        Args:
            value: number, or a tensor or array with a single one. NaN and infinity end the trial as failed. In a study
                with several objectives a dict of them, such as {"accuracy": 0.9, "latency": 3.1}. A dict may hold other
                numbers, too, such as {"accuracy": 0.9, "train_loss": 0.2}: they are kept in `Trial.rows`.
            step: how far the training has come, rising; usually the epochs trained. Whoever counts from 0 may: its
                first step is taken for step 1, its last for step `steps`.

        Raises:
            TrialPaused: the trial pauses or ends here. Let it pass.
            LuthierError: no number, an objective that is missing, or a step that does not rise or lies beyond the last
                one.
        """
        if os.getpid() != self._pid:
            raise LuthierError("report was called in a forked process: report from the one that runs the function")
        if self.ending is not None:
            raise TrialPaused(self.ending[1])
        readings = as_readings(value, list(self._columns), "trial.report expects")
        step = as_step(step)
        if step == self._step == 0:
            self._from_0 = 1
        step += self._from_0
        if self._saves_first is None:
            self._saves_first = self._saved
        elif not self._saved:  # whoever saves now and then may do it before or after: at worst a step is trained again
            self._saves_first = self._rarely = True
        if step == self._restored_step:  # trained once more, from a state that was saved before it
            return
        self._check_step(step)
        self._tell(readings, step)
        saved, self._saved = self._saved and self._saves_first, False
        if saved:
            self._settle()
        if step >= self._next_judgement:
            self._next_judgement = max(step + 1, step * 3 // 2)
            self._judge()
        if step != self._steps:
            self._pause_or_go_on(saved)

    def save(self, state: Any) -> None:
        """Keep all that the training needs to go on; `restore` gives it back.

        Call it either before the `report` of the same step or after it, always in the same order; more often, or not at
        every step, is fine too.

        Args:
            state: nested dicts, lists, tuples, sets, numbers, texts, bytes, tensors and NumPy arrays, such as
                state_dicts and states of random generators. Written whole or not at all, as JSON or safetensors, when
                the trial pauses or ends, and once a second on the way.

        Raises:
            TrialPaused: the trial pauses here, after `report`. Let it pass.
            CheckpointError: the state holds something else; says where.
        """
        self._is_best = False
        self._saves.keep(state, self._note())
        between, self._saved, self._kept = self._saved, True, True
        if self._saves_first is None:
            self._saves_first = True
        if between:
            self._saves.settle(self._note())
        elif not self._saves_first or self._rarely:
            self._settle()
        if between and self._channel.pausing == self.number:
            self._end("paused", "interrupted")
        if self._due is not None and not self._saves_first:
            self._end("paused", self._due)

    def restore(self) -> Any:
        """What was last saved for this trial; None when it begins.

        Raises:
            TrialPaused: it was killed when it had come as far as it was to go. Let it pass.
        """
        self._restores = True
        if (found := self._saves.read()) is None:
            return None
        state, note = found
        if note.get("of", self._of) != self._of:
            raise LuthierError(
                f"{self._path} holds what a trial of another study saved: remove that folder, or choose another one "
                "for the study"
            )
        self._kept = True
        self._step, self._before_s = note["step"], note["time_s"]
        self._from_0 = note.get("from_0", 0)
        self._watched = note.get("watched", 0)
        self._best_loss, self._is_best = note.get("best_loss", math.inf), note.get("is_best", False)
        if self._is_best:  # a kill may have come before it was called so
            self._saves.settle(note, best=True)
        self._restored_step = self._step
        for row in note["rows"]:
            if row["step"] > self._known:  # told before a kill, and never heard by the parent
                self._say(row)
        if self._until <= self._step and self._until < self._end_step:
            self._end("paused", f"at step {self._step}")
        return state

    def watch(self, model: Any, optimizer: Any, loss_fn: Any = None, *, stop: bool = True) -> Watch:
        """Watch the trial's training as `luthier.watch` does; what is measured goes to `vitals.jsonl` in its folder.

        Call it after `restore`: so a trial that goes on is watched as one training.

        Args:
            model, optimizer, loss_fn: as for `luthier.watch`.
            stop: whether a training that cannot become anything ends the trial as failed, by `TrialPaused`: at once
                when numbers became NaN or infinite; when the loss has diverged for good or the network is dead, as soon
                as a finding or a later report (the 1st, 2nd, 3rd, 4th, 6th, 9th, ...) shows it. The baseline ends
                by the former only: the others are compared with it.

        Returns:
            The watch, for a `with` statement.
        """
        from luthier.doctor.measure.watching import watch

        def end(finding: Finding) -> None:
            if finding.symptom in _FATAL and finding.severity == "critical":
                self._end("failed", f"{finding.symptom}: {finding.cause}")
            self._judge()

        path = self.folder / "vitals.jsonl"
        seen, ears = self._watched, end if stop else None
        self._watching = watch(model, optimizer, loss_fn, on_finding=ears, path=path, first_step=seen)
        self._judged = stop and self._guarded
        return self._watching

    def finish(self, result: Any) -> None:
        """Take what the function returned: nothing, or what it might report, which then counts in place of reports."""
        if result is not None:
            readings = as_readings(result, list(self._columns), "the function should return None or")
            kind = RESULT if self._step else "epoch"  # a function that only returns has one reading
            self._tell(readings, self._step or self._steps or 1, kind)
            if kind == RESULT and self._kept:  # what counts was read at the end
                self._is_best = True
                self._saves.settle(self._note(), best=True)
        if not self._step:
            raise LuthierError(
                "the function returned without a report: call trial.report(value, step), or return the value"
            )
        self._saves.write()
        self.ending = ("finished", f"trained to its end, step {self._step}")

    def position(self) -> dict[str, Any]:
        """How far it came; a training that has finished shows how long it is."""
        finished = self.ending is not None and self.ending[0] == "finished"
        total = self._steps or (self._step if finished else None)
        known = {} if total is None else {"total_steps": total}
        return {"step": self._step, "time_s": round(self._time_s(), 4), **known}

    def _judge(self) -> None:
        """End a training as those of recipes are ended, but for steps that are too small: how many come is unknown."""
        if self._watching is None or not self._judged:
            return
        from luthier.doctor.fatal import dead, diverged

        vitals = self._watching.vitals
        if (reason := diverged(vitals) or dead(vitals)) is not None:
            self._end("failed", reason)

    def _tell(self, readings: dict[str, float], step: int, kind: str = "epoch") -> None:
        self._step = step
        for name, value in readings.items():
            if name in self._columns and not math.isfinite(value):
                whose = f" for {name}" if len(self._columns) > 1 else ""
                self._end("failed", f"reported {str(value).replace('nan', 'NaN')}{whose} at step {step}")
        self._loss = self._sign * next(iter(readings.values()))
        columns = {self._columns.get(name, name): value for name, value in readings.items()}
        self._say({"kind": kind, "step": step, "time_s": round(self._time_s(), 4), **columns})

    def _say(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._channel.say("row", number=self.number, row=row)

    def _settle(self) -> None:
        """Note that the state taken last read as was last reported."""
        if self._loss < self._best_loss:
            self._best_loss, self._is_best = self._loss, True
        self._saves.settle(self._note(), self._is_best)

    def _note(self) -> dict[str, Any]:
        """Whose a saved state is and how far, with the readings that the parent may not have stored yet."""
        watched = self._watched if self._watching is None else self._watching.n_steps
        so_far = {"step": self._step, "from_0": self._from_0, "time_s": self._time_s(), "watched": watched}
        so_far |= {"best_loss": self._best_loss, "is_best": self._is_best}
        return {"of": self._of, **so_far, "rows": list(self._rows)}

    def _pause_or_go_on(self, saved: bool) -> None:
        """Pause with what was just saved, or once it is; a function that saves nothing hears whether it goes on."""
        interrupted = self._channel.pausing == self.number
        at_rung = self._until <= self._step and self._until < self._end_step
        if not (interrupted or at_rung):
            return
        if self._restores and not self._saves_first and self._due is None:
            self._due = "interrupted" if interrupted else f"at step {self._step}"
            return
        self._due = None
        if interrupted:
            self._end("paused", "interrupted")
        if saved and self._restores:
            self._end("paused", f"at step {self._step}")
        if self._restores and self._kept:  # it saves more rarely than it reports: it pauses at the next state
            self._due = f"at step {self._step}"
            return
        answer = self._channel.ask("asked", number=self.number, **self.position())
        if answer["order"] == "stop":
            self._end("stopped", answer["reason"])
        self._until = answer["until"]

    def _end(self, state: str, reason: str) -> None:
        if state == "paused":
            self._saves.write()
        self.ending = (state, reason)
        raise TrialPaused(reason)

    def _check_step(self, step: int) -> None:
        if step <= self._step:
            step, before = step - self._from_0, self._step - self._from_0
            restored = f": the state restored is of step {before}, go on after it" if self._restored_step else ""
            raise LuthierError(f"trial.report expects rising steps, got step {step} after step {before}{restored}")
        if self._steps is not None and step > self._steps:
            counted = f"step {step - 1}, counted from 0" if self._from_0 else f"step {step}"
            raise LuthierError(f"trial.report got {counted}, but tune was told steps={self._steps}: make them agree")

    def _time_s(self) -> float:
        return self._before_s + time.monotonic() - self._began


def run_function(
    function: Callable[[LiveTrial], Any], order: dict[str, Any], channel: Channel
) -> tuple[str, dict[str, Any]]:
    """Call the function for one trial; returns how it ended."""
    trial = LiveTrial(order, channel)
    if order.get("seeded"):
        seed_all(trial.seed)
    try:
        result = function(trial)
        if trial.ending is None:
            trial.finish(result)
    except Exception as error:
        if not _is_stop(error):
            raise
        trial.ending = trial.ending or ("stopped", f"by the function: {error}".removesuffix(": "))
    state, reason = trial.ending or ("failed", "")
    return state, {"reason": reason, **trial.position()}


def _is_stop(error: Exception) -> bool:
    """Whether it asks to stop the trial: `TrialPaused`, or Optuna's word for it."""
    optuna = sys.modules.get("optuna")
    return isinstance(error, TrialPaused) or (optuna is not None and isinstance(error, optuna.TrialPruned))


def seed_all(seed: int) -> None:
    """Seed the random numbers of Python, and of NumPy and torch where they are in use."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
