"""The doctor's hooks of `fit`: one watches and leaves vitals.jsonl in the record, one diagnoses into findings.json."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from luthier.doctor.measure.watching import Watch
from luthier.errors import RecordError
from luthier.record import Record
from luthier.training.hooks import Hook

if TYPE_CHECKING:
    from luthier.training.run import Run

VITALS = "vitals.jsonl"


class Probe(Hook):
    """Watches one training.

    Args:
        path: folder of the record.
        overhead: share of the training's time.
        by_steps: look at the same steps in every run, whatever they take.
    """

    def __init__(self, path: Path, overhead: float = 0.01, by_steps: bool = False) -> None:
        self.path = path
        self.overhead, self.by_steps = overhead, by_steps
        self.watch: Watch | None = None
        self._batch: Any = None
        self._loss: Tensor | None = None

    def start(self, run: Run) -> None:
        """Attach; a resumed training goes on in the same file."""
        self.watch = Watch(
            [run.model],
            [run.optimizer],
            None,
            self.overhead,
            None,
            path=self.path / VITALS,
            first_step=run.step,
            by_steps=self.by_steps,
        )

    def step_start(self, run: Run, batch: Any) -> None:
        """Keep the batch until the step's end."""
        self._batch = batch

    def after_backward(self, run: Run, loss: Tensor) -> None:
        """Keep the loss until the step's end."""
        self._loss = loss

    def step_end(self, run: Run) -> None:
        """Tell the watch."""
        if self.watch is not None:
            pair = self._batch if isinstance(self._batch, (tuple, list)) and len(self._batch) == 2 else (None, None)
            self.watch.step(self._loss, *pair)
            self._batch = self._loss = None

    def evaluated(self, run: Run, row: dict[str, Any]) -> None:
        """Whatever ran since the last step was an evaluation; its numbers are in metrics.jsonl."""
        if self.watch is not None:
            self.watch.evaluated()

    def end(self, run: Run, state: str, reason: str) -> None:
        """Detach."""
        if self.watch is not None:
            self.watch.close()
            self.watch = None


class Examiner(Hook):
    """Diagnoses the training when it ends, however it ends; comes after the probe.

    Args:
        path: folder of the record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def end(self, run: Run, state: str, reason: str) -> None:
        """Write findings.json."""
        record = Record(self.path)
        with suppress(RecordError):  # it ended before there was a number to look at
            record.write_findings(record.diagnose())
