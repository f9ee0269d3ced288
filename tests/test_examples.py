"""The examples run as they are written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SIGNS = {
    "own_data.py": "moons.html",
    "own_function.py": "'lr': 0.",
    "own_loop.py": "softmax_before_ce",
    "small_and_good.py": "front.html",
}


def run(path, folder):
    done = subprocess.run([sys.executable, str(path)], cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SIGNS)


@pytest.mark.parametrize("name", SIGNS)
def test_an_example_runs(name, tmp_path):
    told = run(EXAMPLES / name, tmp_path)
    assert SIGNS[name] in told or (tmp_path / SIGNS[name]).exists()


def test_the_guide_to_tuning_runs_as_written(tmp_path):
    guide = (ROOT / "docs" / "tuning.md").read_text()
    (loading,) = re.findall(r"`(optuna\.load_study\(.*?\))`", guide)
    blocks = [
        *re.findall(r"```python\n(.*?)```", guide, re.S),
        "print({row['source'] for row in rows})",
        f"import optuna\nprint(len({loading}.trials))",
    ]
    (tmp_path / "guide.py").write_text("\n".join(blocks))
    told = run(tmp_path / "guide.py", tmp_path)
    assert "until 99.00%" in told
    assert "named by the call" in told.splitlines()[-2]
    assert int(told.splitlines()[-1]) >= 30
    assert (tmp_path / "report.html").exists()
