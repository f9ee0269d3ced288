"""Search against search: `make bench-tune` runs this. What is compared, and how fairly: see bench/tuning/__init__.py.

    python bench/tune.py                                        everything: 4 tasks, all contenders, 3 seeds, hours
    python bench/tune.py --task fashion-mlp --seconds 60 --seeds 1
    python bench/tune.py --contender luthier --again            run it anew, keep the others' results
    python bench/tune.py --report                               only tables and pictures of what is there

Contenders take turns. What the folder has already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from subprocess import run as call
from typing import Any

from rich.console import Console
from tuning.curves import curve
from tuning.one import CONTENDERS, readings
from tuning.report import report
from tuning.retrain import winner
from tuning.tasks import TASKS, prepare

from luthier.files import write_atomic
from tuning import processes

BENCH = Path(__file__).resolve().parent
RETRAINING_S = 1800.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=TASKS, help="default: all")
    parser.add_argument("--contender", action="append", choices=CONTENDERS, help="default: all")
    parser.add_argument("--seconds", type=float, default=300.0, help="of each run, start-up included")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each contender on each task")
    parser.add_argument("--folder", type=Path, default=BENCH / "results" / "tune", help="results go here")
    parser.add_argument("--again", action="store_true", help="run anew what the folder has already")
    parser.add_argument("--report", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    if missing := [name for name in ("ray", "matplotlib") if find_spec(name) is None]:
        parser.error(
            f"{', '.join(missing)} not installed: pip install -c constraints.txt -e '.[bench]' (make bench-tune does)"
        )
    (arguments.folder / "runs").mkdir(parents=True, exist_ok=True)
    failures = [] if arguments.report else run_all(console, arguments)
    report(console, arguments.folder)
    call([sys.executable, "-m", "tuning.picture", arguments.folder], env=child_environment(), check=True)
    for failure in failures:
        console.print(failure, style="red", markup=False)
    return 1 if failures else 0


def run_all(console: Console, arguments: argparse.Namespace) -> list[str]:
    """All turns: seed by seed, so that a run that is cut short has compared all; returns what went wrong."""
    tasks, contenders = arguments.task or list(TASKS), arguments.contender or list(CONTENDERS)
    for task in tasks:
        prepare(TASKS[task])
    failures = []
    for seed in range(arguments.seeds):
        for task in tasks:
            for contender in contenders:
                path = arguments.folder / "runs" / f"{task}-{arguments.seconds:g}s-{contender}-{seed}.json"
                if path.exists() and not arguments.again:
                    continue
                try:
                    result = turn(contender, task, seed, arguments.seconds)
                except RuntimeError as error:
                    failures.append(f"{contender} on {task}, seed {seed}: {error}")
                    console.print(failures[-1], style="red", markup=False)
                    continue
                write_atomic(path, json.dumps(result) + "\n")
                console.print(line_of(result))
    return failures


def turn(contender: str, task: str, seed: int, seconds: float) -> dict[str, Any]:
    """One contender's turn: search, then its winner retrained.

    Raises:
        RuntimeError: it read nothing, or its winner could not be retrained; the log's end is in the message.
    """
    folder = Path(tempfile.mkdtemp(prefix="bench-tune-"))
    load = os.getloadavg()[0]  # of what else the machine did: above 1 a run tells little
    log, surroundings = folder / "log", child_environment(threads=None if contender == "optuna-tutorial" else 1)
    try:
        command = [sys.executable, "-m", "tuning.one", contender, task, str(seed), f"{seconds:g}", str(folder)]
        processes.run([*command, str(time.time())], seconds + processes.GRACE_S, log, surroundings)
        found = [reading for reading in readings(folder) if reading["t"] <= seconds]
        if not found:
            raise RuntimeError(f"no reading within {seconds:g} s. Its log ends: {tail(log)}")
        command = [sys.executable, "-m", "tuning.retrain", contender, task, str(folder), f"{seconds:g}"]
        if processes.run(command, RETRAINING_S, log, child_environment(threads=1)) != 0:
            raise RuntimeError(f"its winner could not be retrained. The log ends: {tail(log)}")
        retrained = json.loads((folder / "retrained.json").read_text())
        named = {"contender": contender, "task": task, "seed": seed, "seconds": seconds, "load": load}
        return {**named, **summary(found, retrained, folder)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def summary(found: list[dict[str, Any]], retrained: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What is kept of a run's readings."""
    longest: dict[str, float] = {}
    for reading in found:
        longest[reading["trial"]] = max(reading["epoch"], longest.get(reading["trial"], 0.0))
    return {
        "first_s": found[0]["t"],
        "trials": len(longest),
        "epochs": sum(longest.values()),
        "winner": winner(found, found[-1]["t"], folder),
        "retrained": retrained,
        "curve": curve(found, found[-1]["t"]),
    }


def child_environment(threads: int | None = None) -> dict[str, str]:
    """This environment, with our modules; torch's threads set or left to it."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    chosen = {} if threads is None else dict.fromkeys(names, str(threads))
    return {**kept, **chosen, "PYTHONPATH": os.pathsep.join([str(BENCH), str(BENCH.parent / "src")])}


def tail(log: Path) -> str:
    """The last lines of a log."""
    return " | ".join(log.read_text(errors="replace").strip().splitlines()[-6:])


def line_of(result: dict[str, Any]) -> str:
    """One run in a line."""
    val, test = (100 * sum(result["retrained"][part]) / len(result["retrained"][part]) for part in ("val", "test"))
    return (
        f"{result['task']:12} {result['contender']:16} seed {result['seed']}: first at {result['first_s']:.1f} s, "
        f"{result['trials']:4} trials, {result['epochs']:6.1f} epochs, best {100 * result['curve'][-1][1]:.2f} %, "
        f"retrained {val:.2f} %, test {test:.2f} %"
    )


if __name__ == "__main__":
    raise SystemExit(main())
