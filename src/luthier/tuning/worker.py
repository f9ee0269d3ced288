"""A worker process: `python -m luthier.tuning.worker [recipes]`, started by the study only.

It reads orders from its standard input and writes messages to its standard output; both are moved away first, so that
whatever a task prints goes to the log. A thread watches the input: when the parent is gone the process ends at
once, in the middle of a step too (checkpoints are written whole or not at all).

Orders: first {"order": "prepare", folder, reference, log}, the folder to which what is tuned was shipped, and depot,
if the folders of trials go through one; then {"order": "train", number, folder, values, seed, until}, with a depot also
turn, {"order": "pause", number}, and as answer to a training function that has come to its rung {"order": "go", until}
or {"order": "stop", reason}; at last {"order": "leave"}, for what others have registered for the end of a process.
Messages: ready, broken, started, row, progress, asked, carrying, and one of paused, finished, stopped, failed, stranded
for each order to train. A failed one that leaves has lost its accelerator, so that the process must be replaced.
"""

from __future__ import annotations

import atexit
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
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

from luthier.tuning.failures import is_stranded, leaves, make_room, reason_of
from luthier.tuning.messages import LEAVE_S, Inbox, send
from luthier.tuning.spawning import by_value, restore_python_path

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
        self.leaving = False

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
            self.pausing, self.leaving = None, order["order"] == "leave"
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
        if self.leaving:
            time.sleep(LEAVE_S)  # for what others do at the end of a process
        leave()


def leave() -> None:
    """End this process and those that it forked, at once."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def stand_fast() -> None:
    """Leave it to the parent what happens at a signal that asks to end: whoever stops a job sends it to all of it.

    The parent has the trainings save and pause; it ends workers by force, or by the end of their input. Processes that
    a training forks end as they would: no such signal is lost while they are made.
    """
    asking, before = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT), threading.local()

    def hold(number: int, frame: FrameType | None) -> None:
        """Nothing."""

    def block() -> None:
        before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, asking)

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)

    def release() -> None:
        for number in asking:
            if signal.getsignal(number) is hold:
                signal.signal(number, signal.SIG_DFL)
        unblock()

    for number in asking:
        signal.signal(number, hold)
    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=release)


def serve(channel: Channel, get_ready: Callable[[], Train]) -> None:
    """Prepare, then train what is ordered until the parent is gone."""
    try:
        train = get_ready()
    except BaseException as error:
        traceback.print_exc()
        channel.say("broken", reason=f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None
    channel.say("ready", pid=os.getpid())
    while (order := channel.orders.get())["order"] != "leave":
        obey(order, train, channel)
    try:
        atexit._run_exitfuncs()  # the interpreter's own end takes long: it looks through all of torch
    finally:
        leave()


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

    by_value()
    things = unship(folder)
    if "function" in things:
        from luthier.tuning.functions import run_function

        if "torch" in sys.modules:
            set_threads()
        return partial(run_function, things["function"])
    import_ahead()
    from luthier.tuning.recipes import run_recipe

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
        return
    except BaseException as error:  # a function's SystemExit too, and what cannot be told
        with suppress(OSError):  # the log may be on a disk that is full
            traceback.print_exc()
        reason, stranded = reason_of(error), is_stranded(error, Path(order["folder"]))
    make_room(reason)  # not before the error is gone, whose frames hold the model
    if stranded:
        channel.say("stranded", number=number, reason=reason)
    else:
        channel.say("failed", number=number, reason=reason, **leaves())


if __name__ == "__main__":
    restore_python_path()
    stand_fast()
    pipes = Pipes()
    serve(pipes, partial(enlist, pipes, "recipes" in sys.argv[1:]))
