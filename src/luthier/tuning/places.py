"""A place at which trainings are done, wherever that is, and the one on this machine: a worker process."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from luthier.tuning.memory import oom_kills
from luthier.tuning.messages import LEAVE_S, Inbox, send
from luthier.tuning.recruits import Recruit


class Place:
    """What the study notes of a worker, wherever that is.

    Attributes:
        index: tells it from the others.
        trial: number of the trial that it trains.
        ready, recalled: whether it has told so; whether its trial was called back before.
        heard, pause_by: when it last told something or was ordered to; when it must have paused, `time.monotonic()`.
        oom_kills: how many processes the kernel had killed for want of memory when the trial began.
        inbox, log: its messages; where its trainings print to.
    """

    def __init__(self, folder: Path, index: int) -> None:
        self.index = index
        self.trial: int | None = None
        self.ready = self.recalled = False
        self.heard, self.pause_by = time.monotonic(), math.inf
        self.oom_kills: int | None = None
        self.inbox = Inbox()
        self.log = folder / "workers" / f"worker-{index}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)

    def take(self, number: int) -> None:
        """Note that it is to train a trial."""
        self.trial, self.pause_by, self.oom_kills = number, math.inf, oom_kills()

    @property
    def words(self) -> str:
        """Where its trainings print to, for messages."""
        return str(self.log)

    @property
    def last_words(self) -> str:
        """The last lines of its log."""
        return _tail(self.log)

    def note_words(self) -> None:
        """Put into the log what was written before the log was known; here nothing was."""


class Worker(Place):
    """One process, and the trial that it trains."""

    def __init__(
        self, folder: Path, index: int, reference: str | None, recruit: Recruit, depot: str | None = None
    ) -> None:
        super().__init__(folder, index)
        self.recruit, self.process = recruit, recruit.process
        self.orders, self.messages = recruit.orders, recruit.messages
        self.log.touch()
        task, log = folder.absolute() / "workers" / "task", self.log.absolute()
        self.order(order="prepare", folder=str(task), log=str(log), reference=reference, depot=depot)

    def order(self, **order: Any) -> None:
        """Send an order; a worker that has just died is noticed soon."""
        self.heard = time.monotonic()
        try:
            send(self.orders.fileno(), order)
        except BrokenPipeError:
            return

    def kill(self) -> None:
        """End the process and those that it forked."""
        self.recruit.kill()

    @property
    def gone(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def dismiss(self) -> None:
        """Let the process end by the end of its input, and do before what others have registered for its end."""
        if self.ready and self.trial is None:
            self.order(order="leave")
        self.orders.close()

    def why_dead(self) -> str:
        """How the process ended, in words."""
        code = self.process.wait()
        if code >= 0:
            return f"the worker process exited with code {code}; see {self.words}"
        name = next((each.name for each in signal.Signals if each == -code), f"signal {-code}")
        return f"the worker process was killed by {name}; see {self.words}"

    @property
    def starved(self) -> bool:
        """Whether the kernel killed the process for want of memory: it counts such kills, those from outside not."""
        now = oom_kills() if self.process.returncode == -signal.SIGKILL else None
        return now is not None and self.oom_kills is not None and now > self.oom_kills

    def close(self, at_once: bool) -> None:
        """End the process: by the end of its input, or by force."""
        if at_once:
            self.kill()
        self.orders.close()
        try:
            self.process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()
        self.messages.close()
        self.recruit.words.close()

    def note_words(self) -> None:
        """Put into the log what it wrote before it knew the log."""
        words = self.recruit.words.fileno()
        with self.log.open("ab") as log:
            log.write(os.pread(words, os.fstat(words).st_size, 0))


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return " | ".join(lines[-3:]) or "none"
