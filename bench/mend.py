"""mend against random search over the same fields, at equal training steps, on the scoring patients.

Each patient is mended and searched with several seeds, twice: over all that the fields may be (`random`), and over the
few values that somebody with experience would try (`narrow`). All get the same number of optimizer steps, in which
every training, repeat, proof and diagnosis run is counted. What each of them ends with is then trained anew with a
fresh seed and read on the test data, as are the sick and the healthy recipe. The share of the healthy gap recovered is
(result - sick) / (healthy - sick), cut to -1 .. 1: what lies beyond healthy is no part of the gap.

    python bench/mend.py [--side scoring] [--seeds 5] [--trials 8] [--only NAME ...] [--out FILE]
    python bench/mend.py --sides random narrow --out controls.json      the controls apart from mend
    python bench/mend.py --also controls.json                           only what the file has not, one table of all

What the file has already (a patient, a seed and a side) is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from mend_controls import anything, search, what_experts_try

import luthier
from luthier.doctor.findings import Diagnosis
from luthier.doctor.mend import explicit, mend
from luthier.errors import LuthierError
from luthier.files import write_atomic
from luthier.fitting import fit, total_steps
from luthier.recipe import Recipe
from luthier.task import Task
from luthier.tasks.patients import PATIENTS, Patient
from luthier.training.loop import evaluate
from luthier.training.run import Run, evaluation_batches
from luthier.tuning.comparing import paired_interval

CONTROLS = {"random": anything, "narrow": what_experts_try}
SIDES = ("mend", *CONTROLS)
GAP = ("sick", "healthy")
FRESH = 10_000  # seeds of the final trainings lie beyond those of the search
LOWEST, HIGHEST = -1.0, 1.0

Reading = dict[str, Any]
"""What one side made of one patient with one seed: patient, seed, side, commit, value (on the test data; None: the
training failed), minimise, seconds; of mend and its controls also limit and spent (optimizer steps), of mend before
(symptoms) and kept (source and reason)."""


def read(patient: Patient, seed: int, side: str, trials: int, blind: bool) -> Reading:
    """Run one side on one patient with one seed, train what it ends with, and read the test data."""
    folder = Path(tempfile.mkdtemp(prefix="luthier-mend-"))
    sick, host, began = patient.make(), patient.host(), time.monotonic()
    task, start = sick.task, explicit(sick.task, sick.recipe).replace({"seed": seed * 100})
    trials = round(trials * total_steps(host.task, host.recipe) / total_steps(task, start))
    limit, told = trials * total_steps(task, start), {}
    try:
        if side == "mend":
            doctor = (lambda _: Diagnosis()) if blind else None
            mended = mend(
                task, start, trials=trials, folder=folder / side, console=False, diagnose=doctor, patience=10**6
            )
            recipe, told = mended.recipe, {"limit": mended.limit, "spent": mended.spent}
            told["before"] = [finding.symptom for finding in mended.before.findings if finding.severity != "info"]
            told["kept"] = [(step.source, step.patch.reason) for step in mended.kept]
        elif side in CONTROLS:
            recipe, spent = search(task, start, limit, seed, folder / side, CONTROLS[side])
            told = {"limit": limit, "spent": spent}
        else:
            recipe = start if side == "sick" else host.recipe
        seconds = time.monotonic() - began
        value = final(task, recipe.replace({"seed": FRESH + seed}), folder / "final")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"value": value, "minimise": task.metric.minimise, "seconds": seconds, **told}


def final(task: Task, recipe: Recipe, folder: Path) -> float | None:
    """Train with a fresh seed, and read the best weights on the test data; None when the training fails."""
    test = task.test.open("the bench's readings") if task.test is not None else task.val
    try:
        record = fit(task, recipe, folder=folder, console=False, tensorboard=False, watch=False)
    except LuthierError:
        return None
    run = Run(task, recipe)
    return evaluate(run, record.load_best(task), evaluation_batches(test, recipe, "test"))[task.metric.name]


def share(result: float | None, sick: float | None, healthy: float | None, minimise: bool) -> float:
    """Share of the gap between sick and healthy that a result recovers; a failed training counts as the lowest."""
    if result is None or not math.isfinite(result):
        return LOWEST if sick is not None else 0.0
    if healthy is None:
        raise RuntimeError("a healthy training failed: there is no gap to share")
    if sick is None or not math.isfinite(sick):
        sick = 5 * healthy if minimise else 0.0
    return min(max((result - sick) / (healthy - sick), LOWEST), HIGHEST)


def table(readings: Sequence[Reading], sides: Sequence[str]) -> str:
    """The sides side by side, a line for each patient, over the seeds that all of them have; and paired intervals."""
    at = {(reading["patient"], reading["seed"], reading["side"]): reading for reading in readings}
    shares: dict[str, list[dict[str, float]]] = {}
    for name, seed in dict.fromkeys(key[:2] for key in at):
        if all((name, seed, side) in at for side in (*GAP, *sides)):
            sick, healthy = (at[name, seed, end] for end in GAP)
            ends = sick["value"], healthy["value"], healthy["minimise"]
            row = {side: share(at[name, seed, side]["value"], *ends) for side in sides}
            shares.setdefault(name, []).append(row)
    firsts = {reading["patient"]: reading["before"][0] for reading in readings if reading.get("before")}
    lines = [f"{'patient':24}{'first finding':26}" + "".join(f"{side:>16}" for side in sides)]
    for name, rows in shares.items():
        cells = [[row[side] for row in rows] for side in sides]
        texts = [f"{fmean(cell):.2f} ± {stdev(cell) if len(cell) > 1 else 0:.2f}" for cell in cells]
        lines.append(f"{name:24}{firsts.get(name, '-'):26}" + "".join(f"{text:>16}" for text in texts))
    controls = [side for side in sides if side in CONTROLS] if "mend" in sides else []
    return "\n".join([*lines, *(against(list(shares.values()), control) for control in controls)])


def against(shares: Sequence[list[dict[str, float]]], control: str) -> str:
    """The paired difference to a control, over all pairs and with each patient as one observation."""
    by_patient = [[row["mend"] - row[control] for row in rows] for rows in shares]
    text = f"share of the healthy gap, mend minus {control}:"
    every, each = [difference for rows in by_patient for difference in rows], [fmean(rows) for rows in by_patient]
    for pairs, name in ((every, "pairs"), (each, "patients")):
        if len(pairs) > 1:
            mean, low, high = paired_interval(pairs)
            text += f" {mean:+.3f}, 95% interval {low:+.3f} to {high:+.3f} over {len(pairs)} {name};"
    return text.rstrip(";")


def commit() -> str:
    """The commit of the package that is measured."""
    command = ["git", "-C", str(Path(luthier.__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def stored(path: Path, settings: dict[str, Any]) -> list[Reading]:
    """The readings of a file; none when there is no file.

    Raises:
        SystemExit: they were made with other settings.
    """
    if not path.exists():
        return []
    kept = json.loads(path.read_text())
    if kept["settings"] != settings:
        raise SystemExit(f"{path} was made with {kept['settings']}, not with {settings}: choose another --out")
    return list(kept["readings"])


def main() -> None:
    """Run the bench and print the table; results so far are always in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", default="scoring", choices=["scoring", "tuning"], help="of the patients")
    parser.add_argument("--sides", nargs="*", default=SIDES, choices=SIDES, help="what is compared")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=8, help="budget in trainings of the healthy recipe")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--blind", action="store_true", help="mend without a diagnosis: by the book alone")
    parser.add_argument("--out", type=Path, default=Path("bench/results/mend.json"))
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="files of other runs, whose results count too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {n: p for n, p in PATIENTS.items() if p.side == given.side and (not given.only or n in given.only)}
    settings = {"side": given.side, "trials": given.trials, "blind": given.blind}
    here, also = stored(given.out, settings), [reading for path in given.also for reading in stored(path, settings)]
    done = {(reading["patient"], reading["seed"], reading["side"]) for reading in [*here, *also]}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    measured = commit()
    for seed in range(given.seeds):  # a bench cut short has seen every patient equally often
        for name, patient in chosen.items():
            for side in (*GAP, *given.sides):
                if (name, seed, side) in done:
                    continue
                what = {"patient": name, "seed": seed, "side": side, "commit": measured}
                here.append(what | read(patient, seed, side, given.trials, given.blind))
                write_atomic(given.out, json.dumps({"settings": settings, "readings": here}, indent=1))
                print(f"seed {seed} {name} {side}: {here[-1]['value']}", flush=True)
    print(table([*also, *here], given.sides))


if __name__ == "__main__":
    main()
