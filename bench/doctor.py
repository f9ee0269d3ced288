"""How well the doctor names root causes: `make bench-doctor` runs this.

    python bench/doctor.py                       train, diagnose and print (both halves)
    python bench/doctor.py record --half tuning  only train, and keep the vitals
    python bench/doctor.py score --half tuning   only diagnose what was kept: seconds
    python bench/doctor.py overhead              only the cost of watching

Of the scoring half only totals are printed: rules must not be tuned on it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import Counter
from pathlib import Path

from patients.case import Case
from patients.harness import (
    HALVES,
    Answer,
    Run,
    Totals,
    by_symptom,
    cases_of,
    overhead,
    record,
    runs_of,
    save,
    score,
    totals,
)
from patients.naive import BASELINES
from rich.console import Console
from rich.table import Table

from luthier.data.cache import cache_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", nargs="?", choices=("record", "score", "overhead", "all"), default="all")
    parser.add_argument("--half", choices=(*HALVES, "both"), default="both")
    parser.add_argument("--only", action="append", default=[], help="cases whose name or symptom contains this")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each sick case (healthy ones: 5 at least)")
    parser.add_argument("--cache", type=Path, default=None, help="folder of the recorded vitals")
    parser.add_argument("--no-early", action="store_true", help="do not search the first step of a correct report")
    arguments = parser.parse_args()
    cache = arguments.cache or cache_folder(None) / "bench-doctor"
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    for half in HALVES if arguments.half == "both" else (arguments.half,):
        cases = chosen(cases_of(half), arguments.only if half == "tuning" else [])
        runs = runs_of(half, cases, arguments.seeds)
        console.rule(f"{half}: {sum(case.symptom is not None for case in cases)} patients, {len(runs)} trainings")
        if arguments.verb in ("record", "all"):
            show_errors(console, half, record(runs, cache))
        if arguments.verb in ("score", "all"):
            answers = score(runs, cache, not arguments.no_early)
            if half == "tuning":
                save(answers, cache / "tuning.json")
            report(console, half, answers)
        if arguments.verb in ("overhead", "all"):
            show_overhead(console, half, cases)


def chosen(cases: tuple[Case, ...], only: list[str]) -> tuple[Case, ...]:
    """Cases whose name or symptom contains one of the words ("healthy" for those without symptom)."""
    if not only:
        return cases
    return tuple(
        case for case in cases if any(word in case.name or word in (case.symptom or "healthy") for word in only)
    )


def report(console: Console, half: str, answers: list[Answer]) -> None:
    """All that may be told of one half."""
    show_errors(console, half, {answer.run: answer.error for answer in answers if answer.error})
    answers = [answer for answer in answers if not answer.error]
    if not answers:
        return
    table = Table(
        "", "detected", "root @1", "root @2", "precision", "false alarms", "critical ones", "named", title=half
    )
    table.add_row("luthier", *figures(totals(answers)))
    for tool in BASELINES:
        table.add_row(tool, *figures(totals(answers, tool)))
    console.print(table)
    show_steps(console, answers)
    if half == "tuning":
        show_symptoms(console, answers)
        show_confusions(console, answers)
        show_alarms(console, answers)


def figures(found: Totals) -> list[str]:
    shares = (found.detected, found.first, found.second, found.precision, found.false_alarms, found.critical_alarms)
    return [*("" if math.isnan(share) else f"{share:.1%}" for share in shares), f"{found.named:.1f}"]


def show_steps(console: Console, answers: list[Answer]) -> None:
    """When the right answer could first be given, and what a diagnosis costs."""
    steps = [answer.first_right for answer in answers if answer.first_right is not None]
    if steps:
        soon = sum(step <= 10 for step in steps) / len(steps)
        console.print(
            f"first correct report: step {statistics.median(steps):.0f} (median), within 10 steps {soon:.0%} of them"
        )
    console.print(f"a diagnosis takes {1000 * statistics.median(answer.took_s for answer in answers):.0f} ms (median)")


def show_symptoms(console: Console, answers: list[Answer]) -> None:
    table = Table("symptom", "runs", "detected", "root @1", "root @2", title="by symptom (tuning half)")
    for symptom, found in by_symptom(answers):
        table.add_row(symptom, str(found.sick), f"{found.detected:.0%}", f"{found.first:.0%}", f"{found.second:.0%}")
    console.print(table)


def show_confusions(console: Console, answers: list[Answer]) -> None:
    """What was named in place of the root (tuning half)."""
    console.print("\nnot named first: expected -> got")
    for answer in answers:
        if answer.symptom is not None and not answer.right(answer.ids, 1):
            got = ", ".join(answer.ids[:3]) or "nothing"
            rank = next((i for i in range(len(answer.ids)) if answer.right(answer.ids[i : i + 1], 1)), None)
            place = "" if rank is None else f"  (at {rank + 1})"
            console.print(f"  {answer.symptom} -> {got}{place}   [dim]{answer.run.name} seed {answer.run.seed}[/dim]")


def show_alarms(console: Console, answers: list[Answer]) -> None:
    """Healthy runs with an alarm (tuning half)."""
    alarms: dict[str, Counter[str]] = {}
    for answer in answers:
        if answer.symptom is None and answer.ids:
            alarms.setdefault(answer.run.name, Counter()).update(answer.ids)
    console.print("\nfalse alarms on healthy programs (id x runs of 5)")
    for name, ids in alarms.items():
        console.print(f"  {name}: " + ", ".join(f"{symptom} x{count}" for symptom, count in ids.most_common()))


def show_errors(console: Console, half: str, errors: dict[Run, str]) -> None:
    """Programs or rules that raised; of the scoring half the errors only, not the cases."""
    if not errors:
        return
    console.print(f"{len(errors)} raised:", style="red")
    if half == "tuning":
        for run, error in errors.items():
            console.print(f"{run.name} seed {run.seed}:\n{error}", markup=False)
        return
    for error, count in Counter(error.strip().splitlines()[-1] for error in errors.values()).items():
        console.print(f"{count} x {error}", markup=False)


def show_overhead(console: Console, half: str, cases: tuple[Case, ...]) -> None:
    """Cost of watching whole short trainings, the dense first 20 steps included."""
    table = Table("host", "ms a step", "overhead, by the clock", "overhead, as reported", title=f"{half}: overhead")
    for name, step_ms, measured, told in overhead(cases):
        table.add_row(name, f"{step_ms:.2f}", f"{measured:+.1%}", f"{told:.1%}")
    console.print(table)


if __name__ == "__main__":
    main()
