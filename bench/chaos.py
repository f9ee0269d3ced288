"""kill -9 at random moments over the workers and the parent of deterministic studies: nothing may be lost.

    python bench/chaos.py [--kills 200] [--seed 0] [--trials 24]

Studies run one after the other until so many processes were killed, of a training function and of recipes in turn.
Each is called again whenever its parent died.
Checked: finished trials never disappear, the database stays intact, no worker outlives its parent, no Optuna trial is
left RUNNING, and each study's trials, decisions and values are those of the same study without a kill.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from luthier.tuning.folding import fold
from luthier.tuning.ledger import StudyError, read_events
from luthier.tuning.state import State

FUNCTION = """
import sys, time
import luthier
folder, seed, trials = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def climb(trial):
    step = trial.restore() or 0
    while step < 12:
        step += 1
        time.sleep(0.2 * trial.params["size"])
        trial.save(step)
        trial.report(trial.params["lr"] ** 0.1 * (1 - 0.8**step) / trial.params["size"] ** 0.2, step=step)
space = {"lr": luthier.loguniform(1e-4, 1.0), "size": luthier.choice(1, 2)}
luthier.tune(climb, space=space, steps=12, trials=2 * trials, workers=2, folder=folder, seed=seed, deterministic=True)
"""
RECIPE = """
import sys
import torch
from torch import nn
import luthier
folder, seed, trials = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def net(width=64):
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
from sklearn.datasets import load_digits
data = load_digits()
X, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
task = luthier.Task(net, (X[:1200], y[:1200]), val=(X[1200:], y[1200:]), name="chaos")
recipe = luthier.Recipe(epochs=20, batch_size=32)
luthier.tune(task, recipe, trials=trials, workers=2, folder=folder, seed=seed, repeats=1, deterministic=True)
"""


KINDS = ((FUNCTION, 3.0), (RECIPE, 8.0))
"""Scripts, and the mean seconds between kills: workers without torch start sooner."""


def state_of(folder: Path) -> State:
    """The study as its ledger has it; empty before there is one."""
    try:
        return fold(read_events(folder), folder)
    except StudyError:
        return State(folder)


def outcome(state: State) -> list[Any]:
    """What must not depend on kills."""
    return [(t.number, t.kind, t.arm, t.values, t.state, t.step, t.value, t.source) for t in state.trials]


def workers_of(folder: Path) -> list[int]:
    """Process ids of the study's workers: they print to a log in its folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments, log = (entry / "cmdline").read_bytes(), (entry / "fd" / "2").readlink()
            except OSError:
                continue
            if b"luthier.tuning.worker" in arguments and folder.absolute() in log.parents:
                found.append(int(entry.name))
    return found


def call(folder: Path, seed: int, trials: int) -> subprocess.Popen[bytes]:
    """One call of the study."""
    log = (folder.parent / f"{folder.name}.log").open("ab")
    command = [sys.executable, "-c", KINDS[seed % 2][0], str(folder), str(seed), str(trials)]
    return subprocess.Popen(command, stdout=log, stderr=log)


def survive(folder: Path, seed: int, trials: int, draw: random.Random, kills_left: int) -> dict[str, int]:
    """Run a study to its end through random kills; returns how many hit the parent and the workers."""
    done = {"parents": 0, "workers": 0}
    finished: set[int] = set()
    parent = call(folder, seed, trials)
    every_s = KINDS[seed % 2][1]
    next_kill = time.monotonic() + draw.expovariate(1 / every_s)
    while True:
        if parent.poll() == 0:
            break
        if parent.poll() is not None:
            if parent.returncode != -signal.SIGKILL:
                raise RuntimeError(f"the study ended with code {parent.returncode}: see {folder}.log")
            parent = wait_and_call(folder, seed, trials)
        if time.monotonic() > next_kill and sum(done.values()) < kills_left:
            next_kill = time.monotonic() + draw.expovariate(1 / every_s)
            workers = workers_of(folder)
            hits_parent = not workers or draw.random() < 0.4
            try:
                os.kill(parent.pid if hits_parent else draw.choice(workers), signal.SIGKILL)
            except ProcessLookupError:
                continue
            done["parents" if hits_parent else "workers"] += 1
            now = {trial.number for trial in state_of(folder).trials if trial.state == "finished"}
            if not finished <= now:
                raise RuntimeError(f"finished trials {sorted(finished - now)} were lost")
            finished = now
        time.sleep(0.02)
    check(folder)
    return done


def wait_and_call(folder: Path, seed: int, trials: int) -> subprocess.Popen[bytes]:
    """Call again once the dead parent's workers have left."""
    deadline = time.monotonic() + 10
    while left := workers_of(folder):
        if time.monotonic() > deadline:
            raise RuntimeError(f"workers {left} outlived their parent")
        time.sleep(0.02)
    return call(folder, seed, trials)


def check(folder: Path) -> None:
    """The database is whole, and nothing is left over."""
    with sqlite3.connect(folder / "study.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        states = [state for (state,) in database.execute("SELECT state FROM trials")]
    assert "RUNNING" not in states, states
    assert all(trial.ended for trial in state_of(folder).trials)
    time.sleep(0.2)
    assert not workers_of(folder)


def main() -> None:
    """Run studies until enough was killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=24)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    total = {"parents": 0, "workers": 0}
    began, seed = time.monotonic(), given.seed
    with tempfile.TemporaryDirectory() as place:
        while (left := given.kills - sum(total.values())) > 0:
            calm, wild = Path(place) / f"calm-{seed}", Path(place) / f"wild-{seed}"
            if call(calm, seed, given.trials).wait() != 0:
                raise RuntimeError((calm.parent / f"{calm.name}.log").read_text())
            for name, count in survive(wild, seed, given.trials, draw, left).items():
                total[name] += count
            same = outcome(state_of(calm)) == outcome(state_of(wild))
            print(
                f"study {seed}: {total} killed so far, {len(state_of(wild).trials)} trials, same result: {same}",
                flush=True,
            )
            if not same:
                raise SystemExit(difference(outcome(state_of(calm)), outcome(state_of(wild))))
            seed += 1
    print(f"{sum(total.values())} kills ({total}) over {seed - given.seed} studies in {time.monotonic() - began:.0f} s")


def difference(calm: list[Any], wild: list[Any]) -> str:
    """The first trial that differs."""
    pairs = zip(calm, wild, strict=False)
    first = next((f"{a}\n{b}" for a, b in pairs if a != b), f"{len(calm)} against {len(wild)} trials")
    return f"results differ:\n{first}"


if __name__ == "__main__":
    main()
