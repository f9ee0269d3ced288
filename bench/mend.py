"""mend against random search over the same fields, at equal training steps, on the scoring patients.

Each patient is mended and searched with several seeds, twice: over all that the fields may be (`random`), and over the
few values that somebody with experience would try (`narrow`). All get the same number of optimizer steps, in which
every training, repeat, proof and diagnosis run is counted. What each of them ends with is then trained anew with a
fresh seed and read on the test data, as are the sick and the healthy recipe. The share of the healthy gap recovered is
(result - sick) / (healthy - sick), cut to -1 .. 1: what lies beyond healthy is no part of the gap.

    python bench/mend.py [--side scoring] [--seeds 5] [--trials 8] [--only NAME ...] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import tempfile
import time
import typing
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from luthier.data.batches import in_memory
from luthier.data.trees import as_tensors
from luthier.doctor.findings import Diagnosis
from luthier.doctor.mend import explicit, mend
from luthier.doctor.mending.book import builder_choices, choices_of
from luthier.errors import LuthierError
from luthier.files import write_atomic
from luthier.fitting import fit, total_steps
from luthier.recipe import Recipe
from luthier.task import Task
from luthier.tasks.patients import PATIENTS, Patient
from luthier.training.choices import ActivationName, InitName, NormName
from luthier.training.loop import evaluate
from luthier.training.run import Run, evaluation_batches
from luthier.training.schedules import SCHEDULES
from luthier.tuning.comparing import paired_interval

SIDES = ("mend", "random", "narrow")
FRESH = 10_000  # seeds of the final trainings lie beyond those of the search
LOWEST, HIGHEST = -1.0, 1.0


def random_recipe(task: Task, start: Recipe, draw: random.Random) -> Recipe:
    """A draw from all the fields that mending changes, by one who does not know what is wrong.

    Named choices come from the whole room; numbers from the usual bounds, widened to hold the recipe's own value, as
    `luthier.tuning.derived` does. What makes a training longer is bounded so that a draw is never over twice as long.
    """
    tree = in_memory(task.train)
    n = as_tensors(tree)[1] if tree is not None else 1024
    classes = task.loss.kind == "classes"

    def log(low: float, high: float, own: float | None) -> float:
        low, high = (min(low, own), max(high, own)) if own else (low, high)
        return 10 ** draw.uniform(math.log10(low), math.log10(high))

    values: dict[str, Any] = {
        "optimizer": draw.choice(["adamw", "adam", "rmsprop", {"name": "sgd", "momentum": 0.9}, start.optimizer]),
        "lr": log(1e-4, 1.0, start.lr),
        "weight_decay": draw.choice([0.0, log(1e-5, 1e-1, start.weight_decay)]),
        "schedule": draw.choice([*SCHEDULES, start.schedule]),
        "warmup_frac": draw.choice([0.0, 0.1]),
        "dropout": draw.choice([0.0, draw.uniform(0.05, max(0.6, start.dropout or 0.0))]),
        "label_smoothing": draw.choice([0.0, draw.uniform(0.0, 0.2)]) if classes else 0.0,
        "mixup": draw.choice([0.0, 0.2]) if classes else 0.0,
        "clip_norm": draw.choice([None, log(0.1, 10.0, start.clip_norm)]),
        "averaging": draw.choice([None, "ema"]),
        "norm": draw.choice([None, *typing.get_args(NormName)]),
        "activation": draw.choice([None, *typing.get_args(ActivationName)]),
        "init": draw.choice([None, *typing.get_args(InitName)]),
        "batch_size": draw.choice([size for size in (16, 32, 64, 128, 256) if size <= n] + [start.batch_size]),
        "epochs": round(start.epochs * draw.choice([1, 2])),
    }
    if task.train[0].ndim == 4:
        parts = {"name": "affine", "degrees": 10.0, "translate": 0.1, "scale": 0.1}
        values["augment"] = draw.choice([(), (parts,)])
    return with_model(task, start, start.replace(values), draw)


def narrow_recipe(task: Task, start: Recipe, draw: random.Random) -> Recipe:
    """A draw from what somebody with experience would try at any patient, whatever is wrong with it."""
    tree = in_memory(task.train)
    n = as_tensors(tree)[1] if tree is not None else 1024
    classes = task.loss.kind == "classes"
    optimizer, rates = draw.choice([("adamw", (3e-4, 1e-2)), ({"name": "sgd", "momentum": 0.9}, (1e-2, 3e-1))])
    values: dict[str, Any] = {
        "optimizer": optimizer,
        "lr": 10 ** draw.uniform(math.log10(rates[0]), math.log10(rates[1])),
        "weight_decay": draw.choice([0.0, 1e-4, 1e-2]),
        "schedule": draw.choice(["cosine", "one-cycle"]),
        "warmup_frac": 0.1,
        "dropout": draw.choice([0.0, 0.2, 0.5]),
        "label_smoothing": draw.choice([0.0, 0.1]) if classes else 0.0,
        "mixup": draw.choice([0.0, 0.2]) if classes else 0.0,
        "clip_norm": draw.choice([None, 1.0]),
        "averaging": None,
        "norm": draw.choice([None, "batch"]),
        "activation": draw.choice([None, "relu"]),
        "init": draw.choice([None, "kaiming"]),
        "batch_size": draw.choice([size for size in (32, 64, 128) if size <= n] or [start.batch_size]),
        "epochs": round(start.epochs * draw.choice([1, 2])),
    }
    if task.train[0].ndim == 4:
        parts = {"name": "affine", "degrees": 10.0, "translate": 0.1, "scale": 0.1}
        values["augment"] = draw.choice([(), (parts,)])
    return with_model(task, start, start.replace(values), draw)


def with_model(task: Task, start: Recipe, recipe: Recipe, draw: random.Random) -> Recipe:
    """The recipe with a draw of the architecture and its sizes."""
    choices = {name: draw.choice(options) for name, options in builder_choices(task).items()}
    if not set(choices.items()) <= choices_of(task, start):
        return recipe.replace({"model": choices})  # sizes mean something else in another architecture
    sizes = {name: size for name, size in start.model.items() if isinstance(size, int)}
    factors = {"width": [0.5, 1, 2, 4], "depth": [0.5, 1, 2]}
    return recipe.replace(
        {f"model.{name}": max(1, round(size * draw.choice(factors[name]))) for name, size in sizes.items()}
    )


def search(
    task: Task,
    start: Recipe,
    limit: int,
    seed: int,
    folder: Path,
    drawn: Callable[[Task, Recipe, random.Random], Recipe],
) -> tuple[Recipe, int]:
    """Random search: the starting recipe, then draws until the steps are used up; the best validation value wins."""
    draw = random.Random(seed)
    best, best_value, spent = start, None, 0
    recipe = start
    number = 0
    while True:
        cost = total_steps(task, recipe)
        if spent + cost > limit:
            if number > 0 and limit - spent < total_steps(task, start):
                return best, spent
        else:
            value, steps = value_of(task, recipe.replace({"seed": seed}), folder / f"random-{number}")
            spent += steps
            if value is not None and task.metric.better(value, best_value):
                best, best_value = recipe, value
        number += 1
        if number > 1000:
            return best, spent
        recipe = drawn(task, start, draw)


def value_of(task: Task, recipe: Recipe, folder: Path) -> tuple[float | None, int]:
    """Best validation value and the steps that it took; none for a training that fails."""
    try:
        record = fit(task, recipe, folder=folder, console=False, tensorboard=False, watch=False)
    except LuthierError:
        from luthier.record import Record

        steps = int(Record(folder).status.get("step", 0)) if Record.exists(folder) else 0
        return None, steps
    return record.best, int(record.status["step"])


def final(task: Task, test: Any, recipe: Recipe, seed: int, folder: Path) -> float | None:
    """Train with a fresh seed, and read the best weights on the test data; None when the training fails."""
    recipe = recipe.replace({"seed": FRESH + seed})
    try:
        record = fit(task, recipe, folder=folder, console=False, tensorboard=False, watch=False)
    except LuthierError:
        return None
    run = Run(task, recipe)
    values = evaluate(run, record.load_best(task), evaluation_batches(test, recipe, "test"))
    return values[task.metric.name]


def one(patient: Patient, seed: int, trials: int, blind: bool) -> dict[str, Any]:
    """Mend and search one patient with one seed."""
    folder = Path(tempfile.mkdtemp(prefix="luthier-mend-"))
    sick, host = patient.make(), patient.host()
    task = sick.task
    test = task.test.open("the bench's readings") if task.test is not None else task.val
    start = explicit(task, sick.recipe).replace({"seed": seed * 100})
    limit = trials * total_steps(host.task, host.recipe)
    doctor: Callable[[Any], Diagnosis] | None = (lambda _: Diagnosis()) if blind else None
    began = time.monotonic()
    try:
        share = limit / total_steps(task, start)
        mended = mend(
            task, start, trials=round(share), folder=folder / "mend", console=False, diagnose=doctor, patience=10**6
        )
        mend_s, began = time.monotonic() - began, time.monotonic()
        found, searched = search(task, start, mended.limit, seed, folder / "wide", random_recipe)
        random_s, began = time.monotonic() - began, time.monotonic()
        narrow, narrowed = search(task, start, mended.limit, seed, folder / "narrow", narrow_recipe)
        ends = {"mend": mended.recipe, "random": found, "narrow": narrow}
        recipes = {"sick": start, "healthy": host.recipe, **ends}
        values = {name: final(task, test, recipe, seed, folder / f"final-{name}") for name, recipe in recipes.items()}
        return {
            "seed": seed,
            "values": values,
            "shares": {name: share_of(task, values, name) for name in SIDES},
            "steps": {"limit": mended.limit, "mend": mended.spent, "random": searched, "narrow": narrowed},
            "seconds": {"mend": mend_s, "random": random_s, "narrow": time.monotonic() - began},
            "before": [finding.symptom for finding in mended.before.findings if finding.severity != "info"],
            "kept": [(step.source, step.patch.reason) for step in mended.kept],
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def share_of(task: Task, values: dict[str, float | None], name: str) -> float:
    """Share of the gap between sick and healthy that a result recovers; a failed training counts as the lowest."""
    result, sick, healthy = values[name], values["sick"], values["healthy"]
    if result is None or not math.isfinite(result):
        return LOWEST if sick is not None else 0.0
    if healthy is None:
        raise RuntimeError(f"the healthy training of {task.name} failed")
    if sick is None or not math.isfinite(sick):
        sick = 0.0 if not task.metric.minimise else 5 * healthy
    return min(max((result - sick) / (healthy - sick), LOWEST), HIGHEST)


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Both side by side, a line for each patient, and the paired interval over patients and seeds."""
    lines = [f"{'patient':24}{'first finding':24}" + "".join(f"{side:>16}" for side in SIDES)]
    for name, rows in results.items():
        cells = [[row["shares"][side] for row in rows] for side in SIDES]
        texts = [f"{fmean(cell):.2f} ± {stdev(cell) if len(cell) > 1 else 0:.2f}" for cell in cells]
        found = rows[0]["before"][0] if rows[0]["before"] else "-"
        lines.append(f"{name:24}{found:24}" + "".join(f"{text:>16}" for text in texts))
    return "\n".join([*lines, *(against(results, side) for side in SIDES[1:])])


def against(results: dict[str, list[dict[str, Any]]], control: str) -> str:
    """The paired difference to a control, over all pairs and with each patient as one observation."""
    by_patient = [[row["shares"]["mend"] - row["shares"][control] for row in rows] for rows in results.values()]
    text = f"share of the healthy gap, mend minus {control}:"
    for pairs, name in (([each for rows in by_patient for each in rows], "pairs"), (means(by_patient), "patients")):
        if len(pairs) > 1:
            mean, low, high = paired_interval(pairs)
            text += f" {mean:+.3f}, 95% interval {low:+.3f} to {high:+.3f} over {len(pairs)} {name};"
    return text.rstrip(";")


def means(rows: list[list[float]]) -> list[float]:
    """The mean of each."""
    return [fmean(row) for row in rows]


def main() -> None:
    """Run the bench and print the table; results so far are always in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", default="scoring", choices=["scoring", "tuning"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=8, help="budget in trainings of the healthy recipe")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--blind", action="store_true", help="mend without a diagnosis: by the book alone")
    parser.add_argument("--out", type=Path, default=Path("bench/results/mend.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {
        name: patient
        for name, patient in PATIENTS.items()
        if patient.side == given.side and (not given.only or name in given.only)
    }
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(given.seeds):  # a bench cut short has seen every patient equally often
        for name, patient in chosen.items():
            results[name].append(one(patient, seed, given.trials, given.blind))
            print(f"seed {seed} {name}: {results[name][-1]['shares']}", flush=True)
            write_atomic(given.out, json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
