"""The same trials and decisions on any number of workers, after kills too."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import LuthierError
from luthier.tuning.space import choice, loguniform
from luthier.tuning.tune import tune

ROOT = Path(__file__).parents[2]
SPACE: Any = {"lr": loguniform(1e-4, 1.0), "size": choice(1, 2, 4)}


def climb(trial: Any) -> None:
    """A curve that depends on the values alone; larger sizes take longer, so that workers race."""
    import time

    step = trial.restore() or 0
    while step < 10:
        step += 1
        time.sleep(0.001 * trial.params["size"] * (1 + trial.number % 3))
        trial.save(step)
        trial.report(trial.params["lr"] ** 0.1 * (1 - 0.8**step) / trial.params["size"] ** 0.2, step=step)


def whole(trial: Any) -> None:
    """Never saves, so it cannot pause."""
    for step in range(10):
        trial.report(trial.params["lr"] * (step + 1), step=step + 1)


def outcome(study: Any) -> list[Any]:
    return [(t.number, t.values, t.state, t.reason, t.step, t.value) for t in study.trials]


def call(folder: Path, workers: int, seed: int = 3, **more: Any) -> Any:
    settings: dict[str, Any] = {"steps": 10, "trials": 30, "strategy": "auto", **more}
    return tune(climb, space=SPACE, folder=folder, workers=workers, seed=seed, deterministic=True, **settings)


def test_the_same_on_any_number_of_workers(tmp_path: Path) -> None:
    studies = [call(tmp_path / str(workers), workers) for workers in (1, 2, 3)]
    assert outcome(studies[0]) == outcome(studies[1]) == outcome(studies[2])
    assert {trial.state for trial in studies[0].trials} == {"finished", "stopped"}
    assert outcome(call(tmp_path / "other", 2, seed=4)) != outcome(studies[0])


def test_a_study_is_deterministic_from_its_first_call_on(tmp_path: Path) -> None:
    call(tmp_path, 1, trials=3)
    with pytest.raises(LuthierError, match="virtual: 4 there, None now"):
        tune(climb, space=SPACE, steps=10, trials=30, folder=tmp_path, seed=3, workers=1)


def test_a_function_that_cannot_pause_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LuthierError, match="saves and restores"):
        tune(whole, space=SPACE, steps=10, trials=9, workers=1, folder=tmp_path, deterministic=True)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_kills_change_nothing() -> None:
    command = [sys.executable, str(ROOT / "bench" / "chaos.py"), "--kills", "4", "--trials", "6"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "same result: True" in done.stdout
