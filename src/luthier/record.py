"""A record: the folder that one training leaves. Readers need the folder only, never the model.

recipe.json  task.json  environment.json  metrics.jsonl  vitals.jsonl  findings.json  status.json  test.json
checkpoints/  tensorboard/
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import CheckpointError, LuthierError, RecordError
from luthier.files import from_json, to_json, write_atomic
from luthier.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from luthier.doctor.findings import Diagnosis, Finding
    from luthier.doctor.prove import Proof
    from luthier.patch import Patch
    from luthier.task import Task


class Record:
    """One training on disk: what was trained, how, every number on the way, and the weights.

    Attributes:
        path: the folder.
        recipe: how it was trained.
        task: what identifies the task: name, metric, direction, hashes of data and model source.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.task: dict[str, Any] = self._read("task.json")
        self.recipe = Recipe.load(self.path / "recipe.json")
        self._trained: Task | None = None

    @classmethod
    def create(cls, path: str | Path, recipe: Recipe, task: Mapping[str, Any]) -> Record:
        """Start a new record.

        Raises:
            RecordError: the folder already holds a record, or cannot be written.
        """
        path = Path(path)
        if (path / "recipe.json").exists():
            raise RecordError(f"{path} already holds a training: choose another folder, or resume it (resume=True)")
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            write_atomic(path / "task.json", to_json(dict(task), indent=2))
            write_atomic(path / "environment.json", to_json(environment(), indent=2))
            recipe.save(path / "recipe.json")
        except OSError as error:
            raise RecordError(f"the folder {path} cannot be written: {error.strerror or error}") from None
        return cls(path)

    @classmethod
    def exists(cls, path: str | Path) -> bool:
        """Whether a folder holds a record."""
        return (Path(path) / "recipe.json").is_file()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl in order; a torn last line (a crash while writing) is left out.

        Each row: `kind` ("epoch", or "rung" for a reading between epochs), `step`, `epoch`, `examples`, `time_s`,
        `lr`, `train_loss`, `val_loss` and the metric as `train_<metric>`, `val_<metric>`.
        """
        try:
            lines = (self.path / "metrics.jsonl").read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        try:
            return [from_json(line) for line in lines[:-1] if line]
        except ValueError as error:
            raise RecordError(f"{self.path / 'metrics.jsonl'} is damaged, restore it: {error}") from None

    @property
    def metrics(self) -> dict[str, list[Any]]:
        """The rows of whole epochs as columns, such as `record.metrics["val_accuracy"]`."""
        rows = [row for row in self.rows if row["kind"] == "epoch"]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name) for row in rows] for name in names}

    @property
    def status(self) -> dict[str, Any]:
        """How the training stands: `state` (running, paused, finished, interrupted, failed), `reason`, best value."""
        return self._read("status.json") if (self.path / "status.json").exists() else {"state": "running"}

    @property
    def best(self) -> float | None:
        """Best validation value of the metric so far; None before the first evaluation."""
        value = self.status.get("best_value")
        return None if value is None else float(value)

    @property
    def test(self) -> dict[str, float] | None:
        """The one reading of the test data, if it was made."""
        return self._read("test.json") if (self.path / "test.json").exists() else None

    @property
    def findings(self) -> dict[str, Any] | None:
        """The diagnosis made when a watched training ended, as findings.json has it; `diagnose()` looks anew.

        `is_healthy`, `findings` (symptom, severity, cause, evidence, where, onset, remedies, consequences, ...),
        `healthy` (what was in order), `not_seen` (what could not be looked at, and why), `watched`, `version`.
        """
        return self._read("findings.json") if (self.path / "findings.json").exists() else None

    @property
    def checkpoints(self) -> Path:
        """The folder of best and last checkpoint."""
        return self.path / "checkpoints"

    def append(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("ab") as file:
            file.write(to_json(dict(row)).encode() + b"\n")

    def truncate(self, step: int) -> None:
        """Drop rows after a step: a resumed training writes them again."""
        kept = [row for row in self.rows if row["step"] <= step]
        write_atomic(self.path / "metrics.jsonl", "".join(to_json(row) + "\n" for row in kept))

    def write_status(self, state: str, **details: Any) -> None:
        """Replace status.json."""
        write_atomic(self.path / "status.json", to_json({"state": state, "time": time.time(), **details}, indent=2))

    def write_test(self, values: Mapping[str, float]) -> None:
        """Store the reading of the test data.

        Raises:
            LuthierError: there is one already; test data is read once.
        """
        if self.test is not None:
            raise LuthierError(f"{self.path} already has its test reading: {self.test}; test data is read once")
        write_atomic(self.path / "test.json", to_json(dict(values), indent=2))

    def write_findings(self, diagnosis: Diagnosis) -> None:
        """Replace findings.json."""
        from luthier.doctor.wording import to_json

        write_atomic(self.path / "findings.json", to_json(diagnosis))

    def remember(self, task: Task) -> None:
        """Keep the task that was trained in memory, so that findings can be proved without passing it."""
        self._trained = task

    def diagnose(self) -> Diagnosis:
        """What is wrong with this training, root cause first, from its vitals and metrics.

        Each finding can be proved: `record.diagnose().findings[0].prove()`.
        """
        from luthier.doctor.diagnosing import diagnose
        from luthier.doctor.logs import read_logs

        return diagnose(read_logs(self.path)).of(self)

    def prove(
        self, cure: Finding | Patch, task: Task | None = None, steps: int = 100, seeds: Sequence[int] | None = None
    ) -> Proof:
        """Train the same steps with and without the cure of a finding (or a patch): does it help?

        Args:
            cure: a finding, whose first remedy that applies is taken, or a patch.
            task: the task that was trained; None when `luthier.fit` returned this record in this process.
            steps: optimizer steps of each branch, from the checkpoint before the onset where there is one.
            seeds: of the repetitions from the start; None takes the recipe's and the two after it.

        Raises:
            LuthierError: the task is not known, or nothing can be applied.
        """
        from luthier.doctor.prove import prove

        task = task or self._trained
        if task is None:
            raise LuthierError(
                f"a proof trains anew, and the task of {self.path} is not in memory (luthier.fit did not return this "
                "record in this process): pass the task that was trained, finding.prove(task)"
            )
        return prove(self, cure, task, steps=steps, seeds=seeds)

    def load_best(self, task: Task) -> nn.Module:
        """The network of this record with its best weights, in evaluation mode on the CPU.

        Args:
            task: the task that was trained (its model builder makes the network).

        Raises:
            CheckpointError: no checkpoint, a corrupted one, or one of another model.
        """
        from luthier.training.building import build_model
        from luthier.training.checkpoints import load, load_into
        from luthier.training.run import example_of

        if not (self.checkpoints / "best.safetensors").exists():
            raise CheckpointError(f"{self.path} holds no best checkpoint: the training had no evaluation yet")
        state, _ = load(self.checkpoints / "best.safetensors")
        source = task.batches(self.recipe.batch_size, 0)  # any batch shows surgery the same places
        model, _ = build_model(task, self.recipe, lambda: example_of(task, self.recipe, source))
        load_into(model, state["model"])
        return model.eval()

    def _read(self, name: str) -> Any:
        try:
            return from_json((self.path / name).read_bytes())
        except FileNotFoundError:
            raise RecordError(f"{self.path} is not the folder of a training: it has no {name}") from None
        except (OSError, ValueError) as error:
            raise RecordError(f"{self.path / name} cannot be read: {error}") from None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles name the folder; the task stays behind."""
        return {**vars(self), "_trained": None}

    def __repr__(self) -> str:
        return f"Record({str(self.path)!r}, state={self.status['state']!r}, best={self.best})"


def environment() -> dict[str, Any]:
    """Versions and machine that a result depends on."""
    import numpy
    import torch

    from luthier import __version__

    return {
        "luthier": __version__,
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
