"""Trains patients in worker processes, keeps the vitals of every run, and scores diagnoses of them."""

from __future__ import annotations

import importlib
import json
import math
import multiprocessing
import os
import statistics
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from patients.case import Case

WORKERS = 2
HALVES = ("tuning", "scoring")
HEALTHY_SEEDS = 5
CHECKPOINTS = (3, 5, 10, 20, 40, 80, 160, 320, 640)


def cases_of(half: str) -> tuple[Case, ...]:
    """All cases of one half."""
    cases: tuple[Case, ...] = importlib.import_module(f"patients.{half}").CASES
    names = [case.name for case in cases]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ValueError(f"names of cases repeat: {', '.join(sorted(repeated))}")
    return cases


@dataclass(frozen=True)
class Run:
    """One training of one case."""

    half: str
    name: str
    seed: int

    def path(self, cache: Path) -> Path:
        return cache / self.half / f"{self.name}.{self.seed}.jsonl"


def runs_of(half: str, cases: Iterable[Case], seeds: int) -> list[Run]:
    """Every case with its seeds; healthy ones with five at least."""
    return [
        Run(half, case.name, seed)
        for case in cases
        for seed in range(max(seeds, HEALTHY_SEEDS) if case.symptom is None else seeds)
    ]


# ---------------------------------------------------------------- recording


class Bare:
    """What programs are given as `watch` for bare timing: it does nothing."""

    def __init__(self, *_: Any) -> None:
        self.began = time.perf_counter()
        self.last = self.began
        self.steps = 0

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def step(self, *_: Any, **__: Any) -> None:
        self.last = time.perf_counter()
        self.steps += 1

    def metrics(self, **_: float) -> None:
        pass

    def close(self) -> None:
        pass


def prepare_worker() -> None:
    """One thread, and what trainings import late is imported now."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = torch.nn.Linear(2, 2)
    torch.optim.Adam(model.parameters()).step()
    importlib.import_module("luthier.doctor.measure.watching")


def record_run(run: Run, cache: Path) -> str:
    """Train once under the watch and keep its vitals; returns the error of the program, if any."""
    import luthier

    case = next(case for case in cases_of(run.half) if case.name == run.name)
    kept: list[Any] = []

    def watch(*arguments: Any, **named: Any) -> Any:
        kept.append(luthier.watch(*arguments, **named))
        return kept[-1]

    error = ""
    try:
        case.program(watch, run.seed)
    except Exception:
        error = traceback.format_exc(limit=-4)
    path = run.path(cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    for each in kept:
        each.close()
    path.write_text("".join(to_line(row) for row in rows_of(kept[0])) if kept else "")
    path.with_suffix(".error").write_text(error)
    return error


def rows_of(watch: Any) -> list[dict[str, Any]]:
    """The rows of a closed watch, as in `vitals.jsonl`."""
    journal = watch._journal
    return [*journal.rows, {"kind": "steps", **journal.steps}]


def to_line(row: dict[str, Any]) -> str:
    from luthier.files import to_json

    return to_json(row) + "\n"


def pool() -> ProcessPoolExecutor:
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(WORKERS, mp_context=context, initializer=prepare_worker)


def record(runs: list[Run], cache: Path) -> dict[Run, str]:
    """Train all; returns errors."""
    errors: dict[Run, str] = {}
    with pool() as workers:
        waiting = {workers.submit(record_run, run, cache): run for run in runs}
        for done, future in enumerate(as_completed(waiting), 1):
            errors[waiting[future]] = future.result()
            if done % 25 == 0 or done == len(runs):
                print(f"  {done} of {len(runs)} trained", flush=True)
    return {run: error for run, error in errors.items() if error}


# ---------------------------------------------------------------- overhead


def overhead(cases: Iterable[Case], rounds: int = 3) -> list[tuple[str, float, float, float]]:
    """(host, ms a step, whole overhead, what the watch says it spent) of the healthy hosts, taking turns with bare."""
    import luthier

    prepare_worker()
    rows = []
    for case in cases:
        if case.symptom is not None or case.name != case.host:
            continue
        times: dict[str, list[float]] = {"bare": [], "watched": []}
        steps, told = 0, []
        for turn in range(rounds):
            for kind in ("bare", "watched") if turn % 2 else ("watched", "bare"):
                seconds, steps, spent = timed(case, turn, luthier.watch if kind == "watched" else None)
                times[kind].append(seconds)
                told += [spent] if kind == "watched" else []
        bare = statistics.median(times["bare"])
        paired = statistics.median(b / a for a, b in zip(times["bare"], times["watched"], strict=True)) - 1
        rows.append((case.name, 1000 * bare / max(1, steps), paired, statistics.median(told)))
    return rows


def timed(case: Case, seed: int, watch: Any) -> tuple[float, int, float]:
    """Seconds from watch() to the last step, steps, and the share that the watch says it spent."""
    clock: list[Bare] = []
    kept: list[Any] = []

    def start(*arguments: Any, **named: Any) -> Any:
        clock.append(Bare())
        if watch is None:
            return clock[0]
        kept.append(watch(*arguments, **named))
        told = kept[0].step

        def step(*values: Any, **more: Any) -> None:
            told(*values, **more)
            clock[0].step()

        kept[0].step = step
        return kept[0]

    case.program(start, seed)
    share = 0.0
    if kept:
        kept[0].close()
        spent = kept[0].vitals.spent
        share = spent.spent_s / spent.elapsed_s if spent else 0.0
    return clock[0].last - clock[0].began, clock[0].steps, share


# ---------------------------------------------------------------- scoring


@dataclass(frozen=True)
class Answer:
    """What was said of one run.

    Attributes:
        ids: of warnings and critical findings, in their order. severities: of the same.
        first_right: earliest step of `CHECKPOINTS` (or the end) from which vitals give the right first answer.
        baselines: answers of each published tool.
    """

    run: Run
    symptom: str | None
    accepts: tuple[str, ...]
    family: str
    spelling: str
    ids: tuple[str, ...] = ()
    severities: tuple[str, ...] = ()
    first_right: int | None = None
    baselines: dict[str, tuple[str, ...]] = field(default_factory=dict)
    steps: int = 0
    took_s: float = 0.0
    error: str = ""

    def right(self, ids: tuple[str, ...], within: int) -> bool:
        return any(name == self.symptom or name in self.accepts for name in ids[:within])


def score_run(run: Run, cache: Path, early: bool = True) -> Answer:
    """Diagnose one recorded run."""
    from luthier.doctor.vitals import Vitals
    from patients.naive import BASELINES

    case = next(case for case in cases_of(run.half) if case.name == run.name)
    empty = Answer(run, case.symptom, case.accepts, case.family, case.spelling)
    try:
        vitals = Vitals.load(run.path(cache))
        began = time.perf_counter()
        found = serious(vitals)
        took = time.perf_counter() - began
        answer = replace(
            empty,
            ids=tuple(item.symptom for item in found),
            severities=tuple(item.severity for item in found),
            steps=vitals.n_steps,
            took_s=took,
            baselines={name: tuple(tool(vitals)) for name, tool in BASELINES.items()},
        )
        if early and case.symptom is not None and answer.right(answer.ids, 1):
            answer = replace(answer, first_right=first_right(vitals, answer))
    except Exception:
        return replace(empty, error=traceback.format_exc(limit=-4))
    return answer


def serious(vitals: Any) -> list[Any]:
    """Warnings and critical findings, in order."""
    from luthier.doctor.diagnosing import diagnose

    return [finding for finding in diagnose(vitals).findings if finding.severity != "info"]


def first_right(vitals: Any, answer: Answer) -> int:
    """The first checkpoint at which what had been measured gives the right first answer."""
    for step in CHECKPOINTS:
        if step >= vitals.n_steps:
            break
        if answer.right(tuple(item.symptom for item in serious(until(vitals, step))), 1):
            return step
    return int(vitals.n_steps)


def until(vitals: Any, step: int) -> Any:
    """What had been measured by a step (the examination of sampled examples is made at the end only)."""
    rows: dict[str, Any] = {}
    for name in ("anatomies", "optimizers", "looks", "norms", "targets", "evaluations", "metrics", "events"):
        rows[name] = [row for row in getattr(vitals, name) if row.step < step]
    columns = {item.name: getattr(vitals.steps, item.name) for item in fields(vitals.steps)}
    keep = [i for i, each in enumerate(vitals.steps.step) if each < step]
    steps = replace(
        vitals.steps, **{name: tuple(column[i] for i in keep) for name, column in columns.items() if column}
    )
    return replace(vitals, **rows, steps=steps, data={})


def score(runs: list[Run], cache: Path, early: bool) -> list[Answer]:
    """Diagnose all recorded runs."""
    recorded = [run for run in runs if run.path(cache).exists()]
    if len(recorded) < len(runs):
        print(f"  {len(runs) - len(recorded)} runs are not recorded and left out")
    if not recorded:
        return []
    with pool() as workers:
        return list(workers.map(score_run, recorded, [cache] * len(recorded), [early] * len(recorded), chunksize=4))


@dataclass(frozen=True)
class Totals:
    """Figures of one half for one set of rules (shares 0-1)."""

    sick: int
    healthy: int
    detected: float
    first: float
    second: float
    precision: float
    false_alarms: float
    critical_alarms: float = 0.0
    named: float = 0.0


def totals(answers: list[Answer], tool: str | None = None) -> Totals:
    """Detection, root cause @1 and @2, precision and false alarms.

    Precision: of all runs with an alarm (sick and healthy), the share whose first answer is right.
    """

    def ids(answer: Answer) -> tuple[str, ...]:
        return answer.ids if tool is None else answer.baselines.get(tool, ())

    sick = [answer for answer in answers if answer.symptom is not None]
    healthy = [answer for answer in answers if answer.symptom is None]
    alarms = [answer for answer in answers if ids(answer)]
    return Totals(
        sick=len(sick),
        healthy=len(healthy),
        detected=mean(bool(ids(answer)) for answer in sick),
        first=mean(answer.right(ids(answer), 1) for answer in sick),
        second=mean(answer.right(ids(answer), 2) for answer in sick),
        precision=mean(answer.symptom is not None and answer.right(ids(answer), 1) for answer in alarms),
        false_alarms=mean(bool(ids(answer)) for answer in healthy),
        critical_alarms=mean("critical" in answer.severities for answer in healthy) if tool is None else math.nan,
        named=mean(len(ids(answer)) for answer in sick),
    )


def mean(values: Iterable[float]) -> float:
    kept = [float(value) for value in values]
    return sum(kept) / len(kept) if kept else math.nan


def by_symptom(answers: list[Answer]) -> Iterator[tuple[str, Totals]]:
    """Figures of every symptom."""
    for symptom in sorted({answer.symptom for answer in answers if answer.symptom is not None}):
        yield symptom, totals([answer for answer in answers if answer.symptom == symptom])


def save(answers: list[Answer], path: Path) -> None:
    """Answers as JSON, for whoever tunes the rules."""
    rows = [
        {"name": a.run.name, "seed": a.run.seed, "symptom": a.symptom, "ids": a.ids, "severities": a.severities}
        for a in answers
    ]
    path.write_text(json.dumps(rows, indent=1))
