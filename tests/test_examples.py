"""The examples run as they are written."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SIGNS = {
    "own_data.py": "moons.html",
    "own_function.py": "'lr': 0.",
    "own_loop.py": "softmax_before_ce",
    "small_and_good.py": "front.html",
}


def run(name, folder):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], cwd=folder, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SIGNS)


@pytest.mark.parametrize("name", SIGNS)
def test_an_example_runs(name, tmp_path):
    told = run(name, tmp_path)
    assert SIGNS[name] in told or (tmp_path / SIGNS[name]).exists()
