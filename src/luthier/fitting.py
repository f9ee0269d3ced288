"""fit: the loop, the record, checkpoints, console and logs, composed."""

from __future__ import annotations

import contextlib
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from luthier.errors import LuthierError, RecordError
from luthier.files import disk_error
from luthier.recipe import Recipe
from luthier.record import Record
from luthier.task import Task
from luthier.training.checkpoints import load, save
from luthier.training.hooks import Hook
from luthier.training.loop import evaluate, train
from luthier.training.preflight import preflight
from luthier.training.run import Evaluator, Run, evaluation_batches

SAVE_EVERY_S = 15.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a training; everything is saved and `fit(..., resume=True)` goes on.

    Attributes:
        record: the record so far.
    """

    def __init__(self, record: Record) -> None:
        super().__init__(f"interrupted; resume with resume=True, folder={str(record.path)!r}")
        self.record = record


def fit(
    task: Task,
    recipe: Recipe | None = None,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    until: int | None = None,
    hooks: Sequence[Hook] = (),
    console: bool = True,
    tensorboard: bool = True,
    test: bool = False,
    signals: bool = True,
    watch: bool = True,
) -> Record:
    """Train a task by a recipe and leave a record.

    Args:
        task: what is trained.
        recipe: how; the default recipe when None.
        folder: where the record goes; None makes a new one under `runs`.
        resume: continue the training in `folder`, bitwise as if it had never stopped (on the CPU); starts anew when
            the folder holds none.
        until: pause at this optimizer step; schedules span the whole recipe all the same.
        hooks: listeners of your own.
        console: show progress on the terminal.
        tensorboard: write scalars for TensorBoard into the record.
        test: measure the best weights on the test data at the end; test data can be opened once only.
        signals: on Ctrl-C and SIGTERM save and leave after the current step, an epoch's last one with its evaluation.
        watch: let the doctor watch, for a small share of the time: `record.diagnose()` reads what it saw, findings.json
            holds what it found at the end.

    Returns:
        The record: metrics, status, best weights.

    Raises:
        LuthierError: task, recipe or folder do not fit; nothing is lost.
        NonFiniteLoss: the loss became NaN or infinite; the record holds everything up to there.
        Interrupted: Ctrl-C (a KeyboardInterrupt); SystemExit(143) after SIGTERM.
    """
    if not isinstance(task, Task):
        raise LuthierError(f"expected a luthier.Task, got {task!r}; built-in ones: luthier.tasks.load('mnist').task")
    recipe = Recipe() if recipe is None else recipe
    if test and task.test is None:
        raise LuthierError("test=True needs a task with test data: pass Task(test=...) or leave test out")
    path = Path(folder).expanduser() if folder is not None else new_folder(task.name)
    resumed = resume and Record.exists(path)
    with torch.random.fork_rng(enabled=True), deterministic(recipe.deterministic):
        record = reopen(path, task, recipe) if resumed else None
        writer = Writer(path, record)
        run = Run(task, recipe, [writer, *listeners(path, console, tensorboard, watch), *hooks])
        preflight(run)
        record = record or Record.create(path, recipe, task.describe())
        writer.record = record
        record.remember(task)
        if resumed:
            restore(run, record)
        state = _train(run, writer, until, signals)
    if state == "interrupted":
        raise SystemExit(143) if writer.signal == signal.SIGTERM else Interrupted(record)
    if test and state == "finished":
        evaluate_test(task, [record])
    return record


def _train(run: Run, writer: Writer, until: int | None, signals: bool) -> str:
    """Run the loop between the hooks' start and end, whatever happens."""
    state, reason = "failed", ""
    try:
        with catch_signals(run, writer, signals):
            run.began = time.perf_counter()
            run.hooks.start(run)
            state, reason = train(run, until)
            writer.save(run)
    except BaseException as error:
        state, reason = "failed", f"{type(error).__name__}: {error}"
        if isinstance(error, OSError) and disk_error(error) is error:
            raise RecordError(
                f"the record {writer.path} cannot be written ({error.strerror}); everything saved before stands: "
                "make room and go on with resume"
            ) from error
        raise
    finally:
        run.hooks.end(run, state, reason)
    return state


class Writer(Hook):
    """Writes the record: rows, status and checkpoints."""

    def __init__(self, path: Path, record: Record | None) -> None:
        self.path = path
        self.record: Record | None = record
        self.signal: int | None = None
        self.saved_at = time.monotonic()

    @property
    def open_record(self) -> Record:
        """The record; it exists from before the hooks' start."""
        if self.record is None:
            raise RecordError(f"the record {self.path} is not open yet")
        return self.record

    def start(self, run: Run) -> None:
        """Mark the training as running."""
        self.open_record.write_status("running", **position(run))

    def evaluated(self, run: Run, row: dict[str, Any]) -> None:
        """Append the row; at the end of an epoch save when it is time."""
        self.open_record.append(row)
        if row["kind"] == "epoch" and time.monotonic() - self.saved_at > SAVE_EVERY_S:
            self.save(run)

    def end(self, run: Run, state: str, reason: str) -> None:
        """Write the final state."""
        self.open_record.write_status(state, reason=reason, **position(run))

    def save(self, run: Run) -> None:
        """Write the best weights if they are new, then the whole state."""
        folder = self.open_record.checkpoints
        if run.best_weights is not None:
            note = {"step": run.best_step, "value": run.best_value}
            save(folder / "best.safetensors", {"model": run.best_weights}, note)
            run.best_weights = None
        save(folder / "last.safetensors", run.state_dict(), {"step": run.step, "epoch": run.epoch})
        self.saved_at = time.monotonic()


def position(run: Run) -> dict[str, Any]:
    """Where a run stands, for status.json."""
    return {
        "step": run.step,
        "total_steps": run.total_steps,
        "epoch": run.epoch,
        "time_s": round(run.time_s, 3),
        "best_value": run.best_value,
        "best_step": run.best_step,
    }


def listeners(path: Path, console: bool, tensorboard: bool, watch: bool) -> list[Hook]:
    """The hooks that come with fit; imported only when asked for."""
    hooks: list[Hook] = []
    if tensorboard:
        from luthier.show.tensorboard import TensorBoardLog

        hooks.append(TensorBoardLog(path / "tensorboard"))
    if watch:
        from luthier.doctor.probe import Examiner, Probe

        hooks += [Probe(path), Examiner(path)]
    if console:
        from luthier.show.terminal import FitConsole

        hooks.append(FitConsole(path))
    return hooks


def reopen(path: Path, task: Task, recipe: Recipe) -> Record:
    """The record to go on with, checked to be of this very task and recipe.

    Raises:
        RecordError: it is of another task, data or recipe; says which values differ.
    """
    record = Record(path)
    if record.recipe.model_dump(mode="json") != recipe.model_dump(mode="json"):
        changes = [
            f"{name}: {old!r} there, {new!r} now" for name, (old, new) in record.recipe.differences(recipe).items()
        ]
        raise RecordError(
            f"{path} was trained by another recipe ({'; '.join(changes)}): use that one or another folder"
        )
    now = task.describe()
    changes = [
        f"{name}: {record.task.get(name)!r} there, {now[name]!r} now"
        for name in now
        if record.task.get(name) != now[name]
    ]
    if changes:
        raise RecordError(f"{path} is the training of another task ({'; '.join(changes)}): choose another folder")
    return record


def restore(run: Run, record: Record) -> None:
    """Load the last checkpoint into a run; without one it starts from the beginning."""
    path = record.checkpoints / "last.safetensors"
    if path.exists():
        state, _ = load(path)
        run.load_state_dict(state)
    record.truncate(run.step)


def evaluate_test(task: Task, records: Record | Sequence[Record]) -> list[dict[str, float]]:
    """Open the sealed test data once, and measure the best weights of each record on it.

    Args:
        task: with test data that has not been opened.
        records: a training of this task, or several; their reading is stored in test.json.

    Returns:
        For each record `loss` and the metric.

    Raises:
        LuthierError: no test data, or it has been opened before.
        CheckpointError: a record has no best weights, or not of this task's model; the seal stays unbroken.
    """
    if task.test is None:
        raise LuthierError(f"the task {task.name!r} has no test data: pass Task(test=...)")
    records = [records] if isinstance(records, Record) else records
    for record in records:
        if record.test is not None:
            raise LuthierError(f"{record.path} already has its test reading {record.test}: test data is read once")
    models = [record.load_best(task) for record in records]  # one that fails must not break the seal
    data = task.test.open("the final reading")
    readings = []
    for record, model in zip(records, models, strict=True):
        evaluator = Evaluator(task, record.recipe)  # no Run: for an optimizer torch imports its compiler
        values = evaluate(evaluator, model.to(evaluator.device), evaluation_batches(data, record.recipe, "test"))
        record.write_test(values)
        readings.append(values)
    return readings


def total_steps(task: Task, recipe: Recipe) -> int:
    """Optimizer steps of a whole training, without building the model."""
    batches = task.batches(recipe.batch_size, 0)
    growth = recipe.batch_growth
    sizes = [
        recipe.batch_size if growth is None else growth.batch_size(recipe.batch_size, e) for e in range(recipe.epochs)
    ]
    return sum(batches.steps(size) for size in sizes)


def new_folder(name: str) -> Path:
    """A folder under `runs` for a new training: name, time and four random hex digits, so that none meet."""
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


@contextlib.contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Only deterministic kernels inside; the caller's setting outside. Where it is the same torch is not asked.

    Its switch imports the compiler, which takes as long as torch itself.
    """
    if not enabled or torch.are_deterministic_algorithms_enabled():
        yield
        return
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def catch_signals(run: Run, writer: Writer, enabled: bool) -> Iterator[None]:
    """On the first Ctrl-C or SIGTERM ask the loop to save and leave; a second one acts at once."""
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _: FrameType | None) -> None:
        run.interrupted, writer.signal = True, number
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
