"""Running out of memory: told from other failures, ends its trial at once, and the sampler learns where it happens."""

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.tuning import places
from luthier.tuning.memory import oom_kills, shortage
from luthier.tuning.space import integers, loguniform
from luthier.tuning.tune import tune


def raised(make: Any) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        make()
    return caught.value


def wrapped() -> None:
    try:
        torch.empty(10**15)
    except RuntimeError as error:
        raise ValueError("the model cannot take the batch") from error


def test_what_is_a_shortage_of_memory_and_what_is_not() -> None:
    assert shortage(raised(lambda: torch.empty(10**15))) == "out of memory: 4000000000000000 bytes could not be had"
    assert shortage(raised(wrapped)) is not None
    assert shortage(MemoryError()) == "out of memory"
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")
    assert shortage(gpu) == "out of memory: 2.00 GiB could not be had"
    assert shortage(OSError(12, "Cannot allocate memory")) == "out of memory"
    for other in (RuntimeError("shapes differ"), ValueError("out of memory, says my own check"), OSError(28, "full")):
        assert shortage(other) is None


def test_the_kernels_kills_are_counted(tmp_path: Path) -> None:
    assert oom_kills(tmp_path) is None
    files = {
        "proc/vmstat": "pgfault 3\noom_kill 7\n",
        "proc/self/cgroup": "4:cpu,memory:/mine\n0::/yours\n",
        "sys/fs/cgroup/memory/mine/memory.oom_control": "under_oom 0\noom_kill 2\n",
    }
    for number, (name, text) in zip((7, 7, 2), files.items(), strict=True):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        assert oom_kills(tmp_path) == number


def hungry(trial: Any) -> None:
    """A width of 150 is best, and above 300 there is no room."""
    width = trial.params["width"]
    if width > 300:
        torch.empty(10**15)
    trial.report(-abs(math.log(width / 150)) + trial.params["lr"] ** 0.1, step=1)


def test_the_sampler_learns_where_memory_ends(tmp_path: Path) -> None:
    space = {"width": integers(16, 4096, log=True), "lr": loguniform(1e-4, 1e-1)}
    study = tune(hungry, space=space, trials=40, workers=1, folder=tmp_path, sampler="tpe", seed=1)
    failed = [trial for trial in study.trials if trial.state == "failed"]
    assert study.best is not None
    assert {trial.reason for trial in failed} == {"out of memory: 4000000000000000 bytes could not be had"}
    assert all(trial.params["width"] > 300 for trial in failed)
    assert all(trial.crashes == 0 for trial in failed)
    assert sum(trial.number >= 20 for trial in failed) <= 5  # of 20; at random it would be half of them


def killed(trial: Any) -> None:
    """Its process is killed once it is at work."""
    if trial.params["width"] > 300:
        os.kill(os.getpid(), signal.SIGKILL)
    trial.report(trial.params["width"], step=1)


@pytest.mark.parametrize("starved", [True, False])
def test_a_worker_that_the_kernel_killed_for_memory_costs_its_trial_at_once(
    tmp_path: Path, starved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter(range(1000))
    monkeypatch.setattr(places, "oom_kills", lambda: next(counts) if starved else 0)
    space = {"width": integers(200, 400)}
    study = tune(killed, space=space, trials=2, workers=1, folder=tmp_path, start={"width": 200}, sampler=top)
    assert [trial.state for trial in study.trials] == ["finished", "failed"]
    assert study.trials[1].crashes == (0 if starved else 2)
    said = "out of memory: the operating system killed" if starved else "the worker process was killed by SIGKILL"
    assert study.trials[1].reason.startswith(said)


def top(view: Any) -> dict[str, Any]:
    return {"width": 400}
