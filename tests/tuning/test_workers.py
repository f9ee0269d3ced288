"""Worker processes as such, without a study."""

import errno
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.errors import RecordError
from luthier.tuning import failures, workers
from luthier.tuning.ledger import StudyError
from luthier.tuning.memory import OUT_OF_MEMORY
from luthier.tuning.messages import encode
from luthier.tuning.recruits import Recruit, _early, called_early, recruited
from luthier.tuning.worker import Channel, obey
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


def test_processes_begin_before_their_study_is_known_and_go_when_it_does_not_come(tmp_path: Path) -> None:
    with called_early(2):
        with recruited(1, recipes=True) as recruits:
            early = [*recruits, *_early]
        assert [recruit.process.returncode for recruit in early] == [-9, None]
    assert [recruit.process.returncode for recruit in early] == [-9, -9]
    with recruited(1, recipes=False) as recruits:
        (recruit,) = recruits
        pool = Workers(tmp_path, 1, recruits=recruits)
        assert pool.all[0].process is recruit.process
        with pytest.raises(StudyError, match=r"cannot get the task: FileNotFoundError"):
            listen(pool, 60)
        assert "things.pkl" in pool.all[0].log.read_text()
    assert not recruits
    assert recruit.process.returncode is None
    pool.close()


def test_what_a_process_says_before_it_knows_its_log_is_in_the_log(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Recruit, "__init__", failing(Recruit.__init__))
    pool = Workers(tmp_path, 1)
    with pytest.raises(StudyError, match=r"Its last words: .*no module"):
        listen(pool, 60)
    pool.close(at_once=True)


def failing(begin: Any) -> Any:
    """Begin a process that dies with a word on its standard error."""

    def begun(self: Recruit, recipes: bool) -> None:
        begin(self, recipes)
        self.dismiss()
        self.words = tempfile.TemporaryFile("a+b", buffering=0)  # noqa: SIM115
        command = [sys.executable, "-c", "raise SystemExit('no module')"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.words, start_new_session=True
        )
        self.orders, self.messages = self.process.stdin, self.process.stdout

    return begun


class Told(Channel):
    """A channel that keeps what could be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[dict[str, Any]] = []

    def say(self, event: str, **details: Any) -> None:
        encode(message := {"event": event, **details})
        self.messages.append(message)


def outcome(folder: Path, train: Any) -> dict[str, Any]:
    """What a worker tells of a training."""
    obey({"number": 3, "folder": str(folder)}, train, told := Told())
    (message,) = told.messages
    assert message.pop("number") == 3
    return message


def test_what_cannot_be_told_fails_its_trial_and_not_the_worker(tmp_path: Path) -> None:
    message = outcome(tmp_path, lambda order, channel: ("finished", {"reason": "", "changes": [Path]}))
    assert message["event"] == "failed"
    assert "TypeError" in message["reason"]


def raising(error: BaseException, cause: BaseException | None = None) -> Any:
    def train(order: Any, channel: Any) -> Any:
        raise error from cause

    return train


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_stops_the_study_and_not_its_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = raising(RecordError("trials/0003 cannot be written (No space left on device)"), FULL)
    assert outcome(tmp_path, kept) == {
        "event": "stranded",
        "reason": "trials/0003 cannot be written (No space left on device)",
    }
    assert outcome(tmp_path, raising(FULL))["event"] == "failed"  # some other disk: the study's has room
    assert outcome(tmp_path, raising(RecordError("it is damaged")))["event"] == "failed"
    assert list(tmp_path.iterdir()) == []

    def full(path: Path, content: bytes) -> None:
        raise FULL

    monkeypatch.setattr(failures, "write_atomic", full)
    assert outcome(tmp_path, raising(FULL))["event"] == "stranded"
    assert outcome(tmp_path, raising(KeyError("lr"), FULL))["event"] == "stranded"
    assert outcome(tmp_path, raising(KeyError("lr")))["event"] == "failed"


def test_what_ran_out_of_memory_is_let_go(tmp_path: Path) -> None:
    class Model:
        pass

    def hungry(order: Any, channel: Any) -> Any:
        model: Any = Model()
        model.itself = model
        alive.append(weakref.ref(model))
        raise torch.OutOfMemoryError("no memory")

    alive: list[Any] = []
    assert outcome(tmp_path, hungry)["reason"].startswith(OUT_OF_MEMORY)
    assert alive[0]() is None


def test_a_parent_that_stood_still_takes_nobody_for_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(workers.time, "monotonic", lambda: clock[0])
    pool = Workers(tmp_path, 1, timeout_s=60.0)
    try:
        worker = pool.all[0]
        worker.ready, worker.trial, worker.pause_by = True, 0, 30.0
        clock[0] = 500.0
        assert list(pool.wait(0.0)) == []
        assert worker.pause_by == 530.0
        clock[0] = 501.0
        list(pool.wait(0.0))
        for _ in range(70):
            clock[0] += 1.0
            if told := list(pool.wait(0.0)):
                break
        assert [message["event"] for message in told] == ["paused"]
    finally:
        monkeypatch.undo()
        pool.close(at_once=True)


@pytest.mark.parametrize("broken", [True, False])
def test_a_worker_that_has_lost_its_accelerator_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    def synchronize() -> None:
        if broken:
            raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    message = outcome(tmp_path, raising(RuntimeError("CUDA error: device-side assert triggered")))
    assert (message["event"], message.get("leaves")) == ("failed", True if broken else None)
