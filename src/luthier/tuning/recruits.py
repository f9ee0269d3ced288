"""Worker processes before they know their study: they import what any training needs while the parent gets ready."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.tuning.spawning import OWN_PYTHON_PATH
from luthier.tuning.store import StudyError

THREADS = 1
"""Of torch in each process: two processes of one thread do more than one of two."""

_early: list[Recruit] = []


class Recruit:
    """A process that will be a worker.

    Args:
        recipes: whether it will train recipes, which need torch and the doctor; a function may need neither.

    Attributes:
        process: in a session of its own, with pipes as its input and output.
        words: what it writes to standard error until it knows where its log is.
    """

    def __init__(self, recipes: bool) -> None:
        self.recipes = recipes
        self.words = tempfile.TemporaryFile("a+b", buffering=0)  # noqa: SIM115 - open as long as the process
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
        here = str(Path.cwd())
        environment[OWN_PYTHON_PATH] = environment.get("PYTHONPATH", "")
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*(path or here for path in sys.path), here]))
        command = [sys.executable, "-P", "-m", "luthier.tuning.worker"]  # -P: this folder does not come first
        self.process = subprocess.Popen(
            [*command, "recipes"] if recipes else command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.words,
            env=environment,
            start_new_session=True,
            bufsize=0,
        )
        if self.process.stdin is None or self.process.stdout is None:
            raise StudyError("a worker process came without its pipes")
        self.orders, self.messages = self.process.stdin, self.process.stdout

    def kill(self) -> None:
        """End the process and those that it forked, which would keep its pipe open."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def dismiss(self) -> None:
        """It is not needed."""
        self.kill()
        self.process.wait()
        for file in (self.orders, self.messages, self.words):
            file.close()


@contextmanager
def called_early(count: int) -> Iterator[None]:
    """Begin processes for the next study of recipes in this process, before its task is loaded."""
    try:
        _early.extend(Recruit(recipes=True) for _ in range(count))
        yield
    finally:
        while _early:
            _early.pop().dismiss()


@contextmanager
def recruited(count: int, recipes: bool) -> Iterator[list[Recruit]]:
    """So many processes, those that were called early among them; those left in the list at the end are dismissed."""
    recruits: list[Recruit] = []
    try:
        while recipes and _early and len(recruits) < count:
            recruits.append(_early.pop())
        while len(recruits) < count:
            recruits.append(Recruit(recipes))
        yield recruits
    finally:
        while recruits:
            recruits.pop().dismiss()
