"""luthier.watch: attach to anyone's training loop."""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from luthier.doctor.measure.attaching import Attachment, Ears
from luthier.doctor.measure.directions import direction_of
from luthier.doctor.measure.journal import Journal
from luthier.doctor.measure.loop import Loop
from luthier.doctor.measure.pace import Pace, StepPace
from luthier.doctor.measure.patient import Patient
from luthier.errors import LuthierError

if TYPE_CHECKING:
    from luthier.doctor.findings import Diagnosis, Finding
    from luthier.doctor.vitals import Vitals

OnFinding = Literal["print", "raise"] | Callable[["Finding"], None]

_WATCHED: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Watch]] = weakref.WeakKeyDictionary()


class SickTraining(LuthierError):
    """Raised by `watch(..., on_finding="raise")` at the first warning or critical finding.

    Attributes:
        finding: what was found.
    """

    def __init__(self, finding: Finding) -> None:
        super().__init__(f"{finding.symptom}: {finding.cause}")
        self.finding = finding


class Watch:
    """Watches a training; made by `luthier.watch`. Leaving the `with` block or `close()` removes every trace of it."""

    def __init__(
        self,
        models: Sequence[nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        loss_fn: Any,
        overhead: float,
        on_finding: OnFinding | None,
        path: Path | None = None,
        first_step: int = 0,
        by_steps: bool = False,
    ) -> None:
        self.closed: bool = False
        for model in models:
            earlier = _WATCHED.get(model, lambda: None)()
            if earlier is not None and not earlier.closed:
                raise LuthierError(
                    f"this {type(model).__name__} is watched already: use that watch, or close() it before a new one"
                )
        self.on_finding = on_finding
        self._pace = (StepPace if by_steps else Pace)(overhead)
        self._journal = Journal(path, first_step)
        self._idle = _is_follower()
        self._reported: set[str] = set()
        patient = Patient(models, optimizers, loss_fn)
        for row in patient.describe(first_step):
            self._journal.add(row)
        report = None if on_finding is None else self._after_iteration
        ears = Ears()
        self._loop = Loop(patient, self._pace, self._journal, ears, report, first_step)
        self._stretch = self._loop.stretch
        self._attachment = Attachment(self._loop, () if self._idle else models, ears)
        for model in models:
            _WATCHED[model] = weakref.ref(self)

    def step(self, loss: Tensor | float | None = None, inputs: Any = None, targets: Any = None) -> None:
        """Tell of one training step, after optimizer.step(); optional, but it sharpens the diagnosis.

        Args:
            loss: scalar; it stays on its device and is detached.
            inputs: what the model was given, first dimension the batch.
            targets: what the loss compared with.
        """
        if self._stretch.told(loss) or self.closed or self._idle:
            return
        if loss is not None and not isinstance(loss, (Tensor, float, int)):
            raise LuthierError(f"watch.step expects the loss as a tensor or a number, got {type(loss).__name__}")
        self._loop.told(loss, inputs, targets)

    def metrics(self, directions: Mapping[str, str] | None = None, /, **values: Any) -> None:
        """Tell the numbers of an evaluation, such as `watch.metrics(train_loss=0.3, val_loss=0.4, val_accuracy=0.9)`.

        Args:
            directions: "min" or "max" for names that do not tell (loss, error, perplexity: min; accuracy, f1: max).
            values: numbers or scalar tensors by name; train_... and val_... belong together.

        Raises:
            LuthierError: a value that is no number, or an unknown direction.
        """
        if self.closed or self._idle:
            return
        numbers = {name: _number(name, value) for name, value in values.items()}
        known = dict(directions or {})
        for name, direction in known.items():
            if direction not in ("min", "max"):
                raise LuthierError(f"expected 'min' or 'max' as the direction of {name}, got {direction!r}")
        self.evaluated()
        directions = {name: known.get(name) or direction_of(name) for name in numbers}
        self._journal.add({"kind": "metrics", "step": self._loop.step, "values": numbers, "directions": directions})

    def evaluated(self) -> None:
        """Tell that whatever the model computed since the last step was an evaluation; `metrics` includes it."""
        if not (self.closed or self._idle):
            self._loop.evaluated()

    @property
    def n_steps(self) -> int:
        """Training steps made, those before watching began included where it was told of them."""
        return self._loop.step

    @property
    def vitals(self) -> Vitals:
        """Everything measured so far."""
        if not self.closed:
            self._loop.settle()
        return self._journal.vitals(*self._last_rows())

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Warnings and critical findings so far."""
        return tuple(finding for finding in self.diagnose().findings if finding.severity != "info")

    def diagnose(self) -> Diagnosis:
        """What is wrong, root cause first; what is healthy; what could not be looked at."""
        from luthier.doctor.diagnosing import diagnose

        return diagnose(self.vitals)

    def close(self) -> None:
        """Stop watching; the diagnosis stays available."""
        if self.closed:
            return
        self._attachment.remove()
        self._loop.stop()
        for row in self._last_rows():
            self._journal.add(row)
        self.closed = True

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self._journal.add(
                {
                    "kind": "event",
                    "step": self._loop.step,
                    "name": "exception",
                    "details": {"type": type(error).__name__, "text": str(error)[:500]},
                }
            )
        self.close()
        if error is not None and not isinstance(error, SickTraining):
            error.add_note(f"Luthier's diagnosis up to here:\n{self.diagnose()}")

    def __deepcopy__(self, _: dict[int, Any]) -> Watch:
        return self

    def _last_rows(self) -> list[dict[str, Any]]:
        if self.closed:
            return []
        pace = self._pace
        spent = {
            "kind": "spent",
            "steps": self._loop.step,
            "elapsed_s": time.perf_counter() - self._loop.accounts.began_at,
            "spent_s": pace.spent_s,
            "spent_later_s": pace.spent_later_s,
            "looks": pace.looks,
            "norms": pace.norms,
        }
        return [*self._examined(), spent]

    def _examined(self) -> list[dict[str, Any]]:
        """The row `data`; a fault of the examination is an event, and costs the rules about data only."""
        try:
            return [{"kind": "data", **self._loop.samples.examine()}]
        except Exception as error:
            details = {"type": type(error).__name__, "text": str(error)[:500]}
            return [{"kind": "event", "step": self._loop.step, "name": "examination_failed", "details": details}]

    def _after_iteration(self, step: int) -> None:
        """Report what shows early."""
        from luthier.doctor.diagnosing import diagnose_early

        for finding in diagnose_early(self.vitals).findings:
            if finding.severity != "info" and finding.symptom not in self._reported:
                self._reported.add(finding.symptom)
                self._report(finding)

    def _report(self, finding: Finding) -> None:
        if self.on_finding == "raise":
            raise SickTraining(finding)
        if self.on_finding == "print":
            line = f"luthier, step {self._loop.step}: {finding.severity}: {finding.symptom}: {finding.cause}"
            print(line, file=sys.stderr, flush=True)  # noqa: T201
        elif callable(self.on_finding):
            self.on_finding(finding)


def watch(
    model: nn.Module | Sequence[nn.Module],
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    loss_fn: Any = None,
    *,
    overhead: float = 0.01,
    on_finding: OnFinding | None = None,
    path: Path | None = None,
    first_step: int = 0,
) -> Watch:
    """Watch a training for its health: `with luthier.watch(model, optimizer, loss_fn) as watch:` around any loop.

    The training's results stay bitwise the same. Hooks count every step; gradients, weights, activations and updates
    are measured at some of them, chosen so that the whole stays within `overhead` of the time (after an examination of
    the first 20 steps).

    Args:
        model: what is trained; several for a GAN and the like.
        optimizer: what steps it; optimizers that the loop creates later are noticed.
        loss_fn: the loss, module or function; optional.
        overhead: share of the training's time that watching may take, above 0 and at most 1.
        on_finding: "print", "raise" or a callable: called with each warning and critical finding as soon as it shows.
        path: file that what is measured goes to, as in a record's `vitals.jsonl`; None keeps it in memory.
        first_step: training steps made before, where a training is resumed (`watch.n_steps` when it was saved): what
            the file holds of them is kept.

    Returns:
        The watch: `step`, `metrics`, `findings`, `diagnose()`, `close()`.

    Raises:
        LuthierError: arguments of the wrong type, or a model that is watched already or has no data (meta).
    """
    models = _sequence(model, nn.Module, "model")
    optimizers = _sequence(optimizer, torch.optim.Optimizer, "optimizer")
    if any(parameter.is_meta for each in models for parameter in each.parameters()):
        raise LuthierError("the model lies on the meta device, where there are no numbers: watch it after to_empty()")
    if loss_fn is not None and not callable(loss_fn):
        raise LuthierError(f"expected loss_fn as a module or function, got {loss_fn!r}; leave it out if there is none")
    if isinstance(overhead, bool) or not isinstance(overhead, (int, float)) or not 0 < overhead <= 1:
        raise LuthierError(
            f"expected overhead as a share above 0 and at most 1 (0.01 is one percent), got {overhead!r}"
        )
    if not (on_finding is None or on_finding in ("print", "raise") or callable(on_finding)):
        raise LuthierError(f"expected on_finding 'print', 'raise' or a callable, got {on_finding!r}")
    if isinstance(first_step, bool) or not isinstance(first_step, int) or first_step < 0:
        raise LuthierError(f"expected first_step as a number of training steps, 0 or more, got {first_step!r}")
    return Watch(models, optimizers, loss_fn, overhead, on_finding, path, first_step)


def _sequence(value: Any, kind: type, name: str) -> list[Any]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    wrong = next((item for item in values if not isinstance(item, kind)), None)
    if not values or wrong is not None:
        wanted = "torch.nn.Module" if kind is nn.Module else "torch.optim.Optimizer"
        got = "nothing" if not values else type(wrong).__name__
        raise LuthierError(f"watch expects {name} as a {wanted} or a sequence of them, got {got}")
    return values


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise LuthierError(
            f"watch.metrics expects numbers, got {name}={value!r}: pass each as a number or scalar tensor"
        ) from None


def _is_follower() -> bool:
    """In distributed training only the process of rank 0 watches."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_rank() != 0
