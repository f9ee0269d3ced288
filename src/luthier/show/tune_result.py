"""The result of a tuning as blocks for the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from luthier.show.verdict import (
    challenger_text,
    comparison_text,
    headline,
    spread_text,
    unread_text,
    verdict,
    winner_changes,
)
from luthier.show.words import duration_text, metric_text, name_text, read_text, seeds_text, validation_text, value_text

if TYPE_CHECKING:
    from luthier.tuning.study import Comparison, Study, Trial

_MOST_SHOWN = 12
_WELL_SHORT = 0.9

LEVEL_STYLES = {
    "certain": "bold green",
    "rough": "bold green",
    "noise": "bold yellow",
    "worse": "bold red",
    "unknown": "bold yellow",
}


def result(study: Study) -> list[RenderableType]:
    """What the search found: changes, gain, certainty, best per arm, the front or the leading trials, where it is."""
    blocks: list[RenderableType] = [Text()]
    if study.comparison is None:
        blocks.append(Text(headline(study), style="bold"))
    else:
        blocks += _comparison(study, study.comparison)
    if study.groups:
        blocks.append(_arms(study))
    if len(study.objectives) > 1 and study.front:
        blocks.append(_front(study))
    elif ranked := leading(study):
        blocks.append(_trials(study, ranked))
    if study.state.unread:
        blocks.append(Text(unread_text(study), "bold yellow"))
    blocks += [Text(f"range too narrow? {edge}", "bold yellow") for edge in study.crowded]
    if outranked := sum(trial.may_return for trial in study.trials):
        words = "was outranked: a call with larger totals may go on with it"
        if outranked > 1:
            words = "were outranked: a call with larger totals may go on with the best of them"
        blocks.append(Text(f"{outranked} of {len(study.trials)} trials {words}"))
    n = len(study.trials)
    told = f"{n} {'trial' if n == 1 else 'trials'} in {duration_text(study.elapsed_s)} · {study.folder}"
    blocks.append(Text(_ended(study) + told))
    return blocks


def _ended(study: Study) -> str:
    """Why the call ended, where that is not plain."""
    seconds = study.settings.get("budget_s")
    if study.ended == "budget" and (seconds is None or seconds * _WELL_SHORT > study.elapsed_s):
        both = "the winner" if study.state.baseline is None else "winner and baseline"
        kept_for = f" beside the retraining of {both}" if study.settings.get("repeats") else ""
        return f"no further trial fits into the budget{kept_for} · "
    ended = {"target": "the target is reached · ", "interrupted": "interrupted, the same call goes on · "}
    return ended.get(study.ended, "")


def leading(study: Study, n: int = 5) -> list[Trial]:
    """The best trials of the search: the finished ones by their levels, then the others by their values.

    Failed ones and those without a finite value are left out.
    """
    valued = [t for t in study.trials if t.kind == "search" and t.value is not None and math.isfinite(t.value)]
    finished = [trial for trial in valued if trial.state == "finished"]
    others = [trial for trial in valued if trial.state not in ("finished", "failed")]
    return [*study.state.rank(finished), *study.state.rank(others)][:n]


def _comparison(study: Study, comparison: Comparison) -> list[RenderableType]:
    blocks: list[RenderableType] = []
    who = challenger_text(study)
    if changes := winner_changes(study, comparison.winner_number):
        table = _table("field", "baseline", who)
        for path, pair in changes.items():
            table.add_row(path, *(Text(value_text(value)) for value in pair))
        blocks.append(_titled(f"What the {who} (#{comparison.winner_number}) changes", table))
    blocks.append(_scores(study.metric, comparison, who, study.state.test_readings))
    level = verdict(comparison.difference, comparison.low, comparison.high).level
    blocks += [Text(comparison_text(comparison), style=LEVEL_STYLES[level]), Text()]
    return blocks


def _scores(metric: str, comparison: Comparison, who: str, readings: int) -> Table:
    table = _table("", "baseline", who)
    sides = (comparison.baseline, comparison.winner)
    seeds = seeds_text(len(comparison.winner))
    table.add_row(f"{validation_text(metric)}, {seeds}", *(spread_text(metric, side) for side in sides))
    if comparison.test is not None:
        test = comparison.test
        again = f", {read_text(readings)}" if readings > 1 else ""
        table.add_row(
            f"test {name_text(metric)}{again}",
            *(metric_text(metric, test[side].get(metric)) for side in ("baseline", "winner")),
        )
    for other, pair in comparison.others.items():
        table.add_row(name_text(other), *(metric_text(other, value) for value in pair))
    return table


def _arms(study: Study) -> Group:
    """Best value of each arm, and so the ceiling of the space."""
    table = _table("arm", "tuned", validation_text(study.metric), "trial")
    best = study.best_by_arm()
    for arm, trial in best.items():
        fields = ", ".join(study.groups.get(arm, ())) if study.groups else ""
        table.add_row(arm, fields, metric_text(study.metric, trial.value), f"#{trial.number}")
    ceiling = [
        f"ceiling of this space: {metric_text(study.metric, trial.value)}"
        for trial in study.state.rank(best.values())[:1]
    ]
    return _titled("Best per combination tuned", table, *map(Text, ceiling))


def _trials(study: Study, trials: list[Trial]) -> Group:
    table = _table("trial", name_text(study.metric), "state", "steps", "values")
    for trial in trials:
        steps = f"{trial.step:,}/{trial.total_steps:,}"
        table.add_row(
            f"#{trial.number}", metric_text(study.metric, trial.value), trial.state, steps, Text(values_text(trial))
        )
    first, lucky = trials[0].value or 0.0, [trial for trial in trials if trial.state == "finished"]
    sign = 1.0 if study.direction == "min" else -1.0
    if any(sign * (trial.value or 0.0) < sign * first for trial in lucky):
        return _titled("Leading trials", table, Text("ranked by their smoothed curves: a single reading may be lucky"))
    return _titled("Leading trials", table)


def _front(study: Study) -> Group:
    front = study.front
    table = _table("trial", *map(name_text, study.objectives), "values")
    for trial in front[:_MOST_SHOWN]:
        scores = (metric_text(name, trial.scores[name]) for name in study.objectives)
        table.add_row(f"#{trial.number}", *scores, Text(values_text(trial)))
    more = [Text(f"and {len(front) - _MOST_SHOWN} more: study.front")] if len(front) > _MOST_SHOWN else []
    return _titled("The front: no other trial is better in one of these without being worse in another", table, *more)


def values_text(trial: Trial) -> str:
    """What a trial was trained with, in one line."""
    return ", ".join(f"{path} {value_text(value)}" for path, value in trial.values.items()) or "the baseline"


def _titled(title: str, *content: RenderableType) -> Group:
    return Group(Text(title, style="bold"), *content, Text())


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for index, column in enumerate(columns):
        table.add_column(column, header_style="dim", overflow="fold", no_wrap=index == 0)
    return table
