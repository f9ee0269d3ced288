"""Worker processes as such, without a study."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from luthier.tuning.ledger import StudyError
from luthier.tuning.workers import Workers


def listen(pool: Workers, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        list(pool.wait(0.1))


def test_workers_that_never_start_are_said_and_closed_cleanly(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    pool = Workers(tmp_path, 2)
    with pytest.raises(StudyError, match="die before they are ready: the worker process exited with code 1"):
        listen(pool, 30)
    pool.close(at_once=True)
    pool.close(at_once=True)  # after an interrupt in the first
    assert all(worker.gone for worker in pool.all)
