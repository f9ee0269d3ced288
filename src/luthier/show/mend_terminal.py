"""What a mending shows: diagnosis, every patch tried with its effect, diagnosis again, the result."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from luthier.show.console import open_console, symbol
from luthier.show.diagnosis_layout import named, patch_text
from luthier.show.terminal import own_choices
from luthier.show.verdict import gain_text, recipe_changes, spread_text
from luthier.show.words import (
    duration_text,
    is_share,
    metric_text,
    name_text,
    number_text,
    seeds_text,
    validation_text,
    value_text,
)

if TYPE_CHECKING:
    from luthier.doctor.findings import Diagnosis, Finding
    from luthier.doctor.mending.judging import Effect
    from luthier.doctor.mending.result import Mended, Step
    from luthier.patch import Patch
    from luthier.recipe import Recipe

_SEVERITIES = {"critical": "bold red", "warning": "bold yellow", "info": "cyan"}
_OUTCOMES = {"kept": "bold green", "dropped": "dim", "not applicable": "dim"}
_PATCH, _SOURCE, _EFFECT = 48, 22, 34  # columns
_ENDINGS = {
    "healthy": "healthy, and nothing else helped",
    "budget": "the budget is used up",
    "nothing left": "nothing is left to try",
    "interrupted": "interrupted",
}


class MendConsole:
    """Tells how a mending goes, a line for each patch as soon as it was tried.

    Args:
        console: where to write; standard output when None.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = open_console() if console is None else console

    def began(self, task: str, recipe: Recipe, limit: int, folder: Path) -> None:
        """Say what is mended and within which budget."""
        self._print(Text.assemble("mending ", (task, "bold"), f" within {limit:,} steps; records in {folder}"))
        self._print(Text.assemble(("recipe: ", "dim"), own_choices(recipe) or "all defaults"))

    def diagnosed(self, round_number: int, diagnosis: Diagnosis, metric: str, value: float | None) -> None:
        """Head of a round: the value so far, and what is wrong with it."""
        reading = f"{validation_text(metric)} {metric_text(metric, value)}"
        self._print(Text())
        self._print(Text.assemble((f"round {round_number}  ", "bold"), (reading, "bold")))
        for line in findings_lines(diagnosis):
            self._print(line)

    def tried(self, step: Step, metric: str) -> None:
        """One line: the patch, what it was for, its effect, and what became of it."""
        self._print(step_line(step, metric, self.console))

    def ended(self, mended: Mended) -> None:
        """What changed and what it brought."""
        self._print(Text())
        for line in result_lines(mended):
            self._print(line)

    def _print(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True)


def text_of_mending(mended: Mended) -> str:
    """The whole story of a mending as plain text."""
    console = Console(file=io.StringIO(), width=120, no_color=True, force_terminal=False, markup=False, emoji=False)
    told = MendConsole(console)
    told.began(mended.task, mended.start, mended.limit, mended.folder)
    told.diagnosed(1, mended.before, mended.metric, mended.values_before[0])
    for step in mended.steps:
        told.tried(step, mended.metric)
    told.ended(mended)
    return str(console.file.getvalue()).rstrip(os.linesep)  # type: ignore[attr-defined]


def findings_lines(diagnosis: Diagnosis) -> Iterator[Text]:
    """A diagnosis in a few lines: each warning with its cause and first evidence, what hangs under it."""
    if diagnosis.is_healthy:
        notes = ", ".join(finding.symptom for finding in diagnosis.findings)
        told = f"{len(diagnosis.healthy)} checks in order" + (f"; worth knowing: {notes}" if notes else "")
        yield Text.assemble("  ", ("healthy", "bold green"), f"  {told}")
        return
    for finding in diagnosis.findings:
        if finding.severity != "info":
            yield from _finding_lines(finding)


def _finding_lines(finding: Finding) -> Iterator[Text]:
    where = f" in {named(finding.where)}" if finding.where else ""
    onset = f" from step {finding.onset:,}" if finding.onset else ""
    head = (f"{finding.severity}  ", _SEVERITIES[finding.severity])
    yield Text.assemble("  ", head, (finding.symptom, "bold"), f"{where}{onset}: {finding.cause}")
    for sentence in finding.evidence[:2]:
        yield Text(f"           {sentence}", style="dim")
    if finding.consequences:
        names = ", ".join(child.symptom for child in finding.consequences)
        yield Text(f"           because of it: {names}", style="dim")


def step_line(step: Step, metric: str, console: Console) -> Text:
    """A patch that was tried, in columns."""
    good = step.outcome == "kept"
    mark = symbol(console, "✓", "+") if good else symbol(console, "·", "-")
    source = (
        step.source if step.source not in ("book", "again") else {"book": "by the book", "again": "again"}[step.source]
    )
    patch = brief(step.patch)
    effect = effect_text(step.effect, metric)
    style = "" if good else "dim"
    outcome = "kept" if good else f"{step.outcome}: {step.reason}"
    return Text.assemble(
        (f"  {mark} ", _OUTCOMES[step.outcome]),
        (f"{patch:<{_PATCH}}  ", "bold" if good else style),
        (f"{source:<{_SOURCE}}", style),
        (f"{effect:<{_EFFECT}}", "green" if good else style),
        (outcome, _OUTCOMES[step.outcome]),
    )


def brief(patch: Patch) -> str:
    """A patch that fits its column: what it changes, else how its reason begins ("known-good settings: ...")."""
    told = change_text(patch)
    if len(told) > _PATCH:
        name, colon, _ = patch.reason.partition(":")
        told = name if colon and len(name) <= _PATCH else told[: _PATCH - 3] + "..."
    return told


def change_text(patch: Patch) -> str:
    """A patch as few words; of an augmentation also its settings, by which two of one kind are told apart.

    >>> from luthier.patch import Patch, Set
    >>> change_text(Patch(reason="", operations=[Set(field="augment", value=[{"name": "rotate", "degrees": 5.0}])]))
    'augment = rotate (degrees 5)'
    """
    only = patch.operations[0]
    if len(patch.operations) > 1 or only.op != "set" or only.field != "augment":
        return patch_text(patch)
    parts = [part for part in only.value or () if isinstance(part, dict)]
    settings = ({name: value for name, value in part.items() if name != "name"} for part in parts)
    words = (", ".join(f"{name} {value_text(value)}" for name, value in each.items()) for each in settings)
    named_parts = [
        f"{part['name']} ({told})" if told else str(part["name"]) for part, told in zip(parts, words, strict=True)
    ]
    return f"augment = {', '.join(named_parts)}" if parts else patch_text(patch)


def effect_text(effect: Effect | None, metric: str) -> str:
    """Mean gain, its spread over seeds, and their number.

    The spread is the standard deviation of the paired gains; with one seed there is none.
    """
    if effect is None:
        return ""
    n = len(effect.gains)
    seeds = seeds_text(n)
    if not math.isfinite(effect.mean):
        return "trains at all" if effect.mean > 0 else ""
    if n == 1:
        return f"{gain_text(metric, effect.mean)} ({seeds})"
    gain = gain_text(metric, effect.mean).removesuffix(" points")
    middle = effect.mean
    spread = math.sqrt(sum((item - middle) ** 2 for item in effect.gains) / (n - 1))
    bare = f"{100 * spread:.2f} points" if is_share(metric) else number_text(spread)
    return f"{gain} ± {bare} ({seeds})"


def result_lines(mended: Mended) -> Iterator[Text]:
    """What was kept, validation and test before and after, and where everything stands."""
    metric = mended.metric
    yield Text(f"mended: {_ENDINGS[mended.ended]}", style="bold")
    changes = recipe_changes(mended.start, mended.recipe)
    width = max([len("validation"), *map(len, changes)])
    for path, (old, new) in changes.items():
        yield Text.assemble(f"  {path:<{width}}  ", (value_text(old), "dim"), " to ", (value_text(new), "bold"))
    if not changes:
        yield Text("  nothing that was tried is shown to help: the recipe stays as it was")
    sides = " to ".join(_side(metric, values) for values in (mended.values_before, mended.values_after))
    yield Text.assemble(f"  {'validation':<{width}}  ", f"{name_text(metric)} {sides}")
    if mended.test is not None:
        read = " to ".join(
            metric_text(metric, mended.test[side].get(metric)) if side in mended.test else "no weights"
            for side in ("before", "after")
        )
        yield Text.assemble(f"  {'test':<{width}}  ", (f"{name_text(metric)} {read}, read once", "bold"))
    yield from findings_lines(mended.after)
    kept = len(mended.kept)
    tried = sum(step.effect is not None for step in mended.steps)
    told = (
        f"{kept} of {tried} patches kept, {mended.spent:,} of {mended.limit:,} steps, {duration_text(mended.elapsed_s)}"
    )
    yield Text(f"  {told} · {mended.folder}", style="dim")


def _side(metric: str, values: Sequence[float | None]) -> str:
    """Mean and spread over the seeds that ended; how many did not is said."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    lost = len(values) - len(finite)
    told = spread_text(metric, finite) if finite else "none"
    return told + (f" ({lost} of {len(values)} did not end well)" if lost else "")
