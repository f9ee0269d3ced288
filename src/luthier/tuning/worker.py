"""A worker process: `python -m luthier.tuning.worker [recipes]`, started by the study only.

It reads orders from its standard input and writes messages to its standard output; both are moved away first, so that
whatever a task prints goes to the log. A thread watches the input: when the parent is gone the process ends at
once, in the middle of a step too (checkpoints are written whole or not at all).

Orders: first {"order": "prepare", folder, reference, log}, the folder to which what is tuned was shipped, and depot,
if the folders of trials go through one; then {"order": "train", number, folder, values, seed, until}, with a depot also
turn, {"order": "pause", number}, and as answer to a training function that has come to its rung {"order": "go", until}
or {"order": "stop", reason}.
Messages: ready, broken, started, row, progress, asked, carrying, and one of paused, finished, stopped, failed, stranded
for each order to train.
"""

from __future__ import annotations

import gc
import os
import queue
import signal
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from luthier.tuning.memory import OUT_OF_MEMORY, shortage
from luthier.tuning.messages import Inbox, send

if TYPE_CHECKING:
    from luthier.recipe import Recipe
    from luthier.task import Task

_PROGRESS_EVERY_S = 0.25
_FOR_RECIPES = (
    "luthier.fitting",
    "luthier.doctor.guard",
    "luthier.doctor.probe",
    "luthier.doctor.diagnosing",
    "luthier.doctor.mending.candidates",
    "luthier.tuning.steering",
)

Train: TypeAlias = "Callable[[dict[str, Any], Channel], tuple[str, dict[str, Any]]]"
"""Trains a trial as ordered; returns how it ended (paused, finished, stopped, failed) and the details."""


class Channel(ABC):
    """What a training tells its parent, and what it hears."""

    def __init__(self) -> None:
        self.orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.pausing: int | None = None

    @abstractmethod
    def say(self, event: str, **details: Any) -> None:
        """Send a message."""

    def ask(self, event: str, **details: Any) -> dict[str, Any]:
        """Send a message that has an answer, and wait for it."""
        self.say(event, **details)
        return self.answers.get()

    def take(self, order: dict[str, Any]) -> None:
        """Take in an order, for the training that it concerns."""
        if order["order"] == "pause":
            self.pausing = order["number"]
        elif order["order"] in ("go", "stop"):
            self.answers.put(order)
        else:
            self.pausing = None
            self.orders.put(order)


class Pipes(Channel):
    """The two pipes to the parent, out of reach of the task's prints; a parent that is gone ends the process."""

    def __init__(self) -> None:
        super().__init__()
        self._input, self._output = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)  # standard error is the log
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, daemon=True, name="orders").start()

    def say(self, event: str, **details: Any) -> None:
        """Send a message."""
        try:
            with self._lock:
                send(self._output, {"event": event, **details})
        except OSError:
            leave()

    def _listen(self) -> None:
        inbox = Inbox()
        while piece := os.read(self._input, 1 << 16):
            for order in inbox.feed(piece):
                self.take(order)
        leave()


def leave() -> None:
    """End this process and those that it forked, at once."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def serve(channel: Channel, get_ready: Callable[[], Train]) -> None:
    """Prepare, then train what is ordered until the parent is gone."""
    try:
        train = get_ready()
    except BaseException as error:
        traceback.print_exc()
        channel.say("broken", reason=f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None
    channel.say("ready", pid=os.getpid())
    while True:
        obey(channel.orders.get(), train, channel)


def enlist(channel: Channel, recipes: bool) -> Train:
    """Import what is sure to be needed, hear of the study, and get ready for it."""
    from luthier.training.uncompiled import spare_compiler

    spare_compiler()
    if recipes:
        import_ahead()
    told = channel.orders.get()
    log = os.open(told["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    train = prepare(Path(told["folder"]), told["reference"])
    if told.get("depot") is None:
        return train
    from luthier.tuning.carrying import carried
    from luthier.tuning.depot import Depot

    return carried(train, Depot(told["depot"]))


def prepare(folder: Path, reference: str | None) -> Train:
    """Get what is to be trained."""
    from luthier.tuning.shipping import unship

    things = unship(folder)
    if "function" in things:
        from luthier.tuning.functions import run_function

        if "torch" in sys.modules:
            set_threads()
        return partial(run_function, things["function"])
    import_ahead()
    if reference is None:
        return partial(run_recipe, things["task"], things["recipe"])
    from luthier.tasks import load

    return partial(run_recipe, load(reference).task, things["recipe"])


def import_ahead() -> None:
    """Import torch and what the first training would wait for."""
    gc.disable()  # it would look through all of torch again and again
    for name in _FOR_RECIPES:
        import_module(name)
    set_threads()
    gc.freeze()
    gc.enable()


def set_threads() -> None:
    """Let torch use as many threads as this process was given."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def obey(order: dict[str, Any], train: Train, channel: Channel) -> None:
    """Train one trial to its step, and say how it ended."""
    number = order["number"]
    try:
        state, details = train(order, channel)
        make_room(details["reason"])
        channel.say(state, number=number, **details)
    except BaseException as error:  # a function's SystemExit too, and what cannot be told
        traceback.print_exc()
        make_room(reason := reason_of(error))
        channel.say("failed", number=number, reason=reason)


def make_room(reason: str) -> None:
    """Let go of what a training that ran out of memory held, before the next one begins."""
    if not reason.startswith(OUT_OF_MEMORY):
        return
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()  # nothing where no accelerator is in use


def run_recipe(task: Task, recipe: Recipe, order: dict[str, Any], channel: Channel) -> tuple[str, dict[str, Any]]:
    """Train through `fit`, from the trial's checkpoint where there is one."""
    from luthier.doctor.guard import Guard, Hopeless
    from luthier.doctor.probe import Probe
    from luthier.fitting import Interrupted, fit
    from luthier.record import Record
    from luthier.tuning.steering import prescriptions

    trial = recipe.replace({**order["values"], "seed": order["seed"]})
    reporter = reporter_for(order, channel)
    guards = [Guard()] if order["guarded"] else []
    probes = [Probe(Path(order["folder"]), by_steps=True)] if order["examined"] else []
    try:
        fit(
            task,
            trial,
            folder=order["folder"],
            resume=True,
            until=order["until"],
            hooks=[reporter, *guards, *probes],
            watch=False,
            console=False,
            tensorboard=False,
            signals=False,
        )
    except Interrupted:
        pass  # paused by the parent: everything is saved
    except Exception as error:
        if reporter.ending is None:  # it never began
            raise
        if not isinstance(error, Hopeless):
            traceback.print_exc()
        return "failed", {"reason": reason_of(error), **position(reporter.ending[2])}
    state, reason, run = reporter.ending
    if state != "finished":
        return "paused", {"reason": reason, **position(run)}
    changes = prescriptions(Record(order["folder"]), trial) if order["examined"] else []
    return "finished", {"reason": reason, "changes": changes, **position(run)}


def position(run: Any) -> dict[str, Any]:
    """How far a training has come."""
    return {"step": run.step, "total_steps": run.total_steps, "time_s": round(run.time_s, 3)}


def reporter_for(order: dict[str, Any], channel: Channel) -> Any:
    """A hook that tells the parent what happens, and lets it pause the training."""
    from luthier.record import Record
    from luthier.training.hooks import Hook
    from luthier.tuning.measuring import measured

    number = order["number"]

    class Reporter(Hook):
        ending: tuple[str, str, Any] | None = None
        told_at = 0.0

        def start(self, run: Any) -> None:
            self.costs = measured(run, order["measured"])
            channel.say("started", number=number, step=run.step, total_steps=run.total_steps)
            for row in Record(order["folder"]).rows:
                if order["known"] < row["step"] <= run.step:  # read before a crash, and never heard by the parent
                    channel.say("row", number=number, row=row | self.costs)

        def step_end(self, run: Any) -> None:
            run.interrupted |= channel.pausing == number
            if (now := time.monotonic()) - self.told_at > _PROGRESS_EVERY_S:
                self.told_at = now
                channel.say("progress", number=number, epoch=run.epoch, epochs=run.recipe.epochs, **position(run))

        def evaluated(self, run: Any, row: dict[str, Any]) -> None:
            channel.say("row", number=number, row=row | self.costs)

        def end(self, run: Any, state: str, reason: str) -> None:
            self.ending = (state, reason, run)

    return Reporter()


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    from luthier.errors import LuthierError, NonFiniteLoss

    if (short := shortage(error)) is not None:
        return short
    text = " ".join(str(error).split())
    if isinstance(error, NonFiniteLoss):
        return f"diverged: {text}"
    return text if isinstance(error, LuthierError) else f"{type(error).__name__}: {text}".removesuffix(": ")


if __name__ == "__main__":
    pipes = Pipes()
    serve(pipes, partial(enlist, pipes, "recipes" in sys.argv[1:]))
