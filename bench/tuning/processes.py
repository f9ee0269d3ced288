"""Run a contender with all that it starts, and leave nothing of it behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from pathlib import Path

MARK = "LUTHIER_BENCH_RUN"
GRACE_S = 15.0


def run(command: list[str], seconds: float, log: Path, environment: dict[str, str]) -> int | None:
    """Run a command for at most so many seconds; all processes that it started are ended with it.

    They are found by a mark in their environment, so that daemons with a session of their own are found too.

    Returns:
        The exit code; None when its time was over.
    """
    mark = uuid.uuid4().hex
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env={**environment, MARK: mark}, stdout=output, stderr=output, start_new_session=True
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return _ask(process)
        finally:
            end(mark)
            process.wait()


def _ask(process: subprocess.Popen[bytes]) -> int | None:
    """Ask once to leave; some have servers to shut down."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    return None


def end(mark: str) -> None:
    """Kill whatever carries the mark, until nothing does."""
    while found := marked(mark):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def marked(mark: str) -> list[int]:
    """Live processes that carry the mark."""
    found, wanted = [], f"{MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found
