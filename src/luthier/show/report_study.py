"""The sections of a tuning's report."""

from __future__ import annotations

import shlex
from statistics import fmean
from typing import TYPE_CHECKING, Any

from luthier.files import from_json, to_json
from luthier.show.html import bar, cell, chart, code, facts, section, table, text, tile, tiles
from luthier.show.report_data import best_over_time, finite, role, steps_name, winner_number
from luthier.show.verdict import (
    challenger_text,
    comparison_text,
    gain_text,
    headline,
    spread_text,
    unread_text,
    verdict,
    winner_changes,
)
from luthier.show.words import (
    budget_text,
    duration_text,
    is_share,
    metric_text,
    name_text,
    read_text,
    target_text,
    validation_text,
    value_text,
)

if TYPE_CHECKING:
    from pathlib import Path

    from luthier.tuning.study import Comparison, Study, Trial


def study_sections(study: Study) -> str:
    """Everything between the page's head and foot."""
    return "".join(
        (
            _opening(study),
            _changes(study),
            _front(study),
            _search(study),
            _importances(study),
            _parameters(study),
            _arms(study),
            _trials(study),
            _reproduce(study),
            environment_section([trial.folder for trial in study.trials]),
        )
    )


def _opening(study: Study) -> str:
    comparison = study.comparison
    level = verdict(comparison.difference, comparison.low, comparison.high).level if comparison else "unknown"
    words = f'<p class="headline {level}">{text(headline(study))}</p>'
    if study.state.unread:
        words += f'<p class="note">{text(unread_text(study))}</p>'
    return f"<header><p class='kind'>Tuning</p><h1>{text(study.name)}</h1>{_meta(study)}</header>" + (
        f'<section class="card hero">{words}{_figures(study, comparison)}</section>'
    )


def _meta(study: Study) -> str:
    settings = study.settings
    parts = [
        f"{len(study.trials)} trials",
        duration_text(study.elapsed_s),
        budget_text(settings),
        target_text(settings, study.metric) + (", reached" if study.ended == "target" else ""),
        *(str(settings[name]) for name in ("sampler", "strategy") if settings.get(name)),
        f"{settings['workers']} workers" if settings.get("workers") else "",
        f"seed {settings['seed']}" if settings.get("seed") is not None else "",
    ]
    return f'<p class="meta">{text(" · ".join(part for part in parts if part))}</p>'


def _figures(study: Study, comparison: Comparison | None) -> str:
    metric, name = study.metric, validation_text(study.metric)
    if comparison is None:
        best = study.best
        return tiles(tile(f"Best {name}", metric_text(metric, best.value), f"trial {best.number}")) if best else ""
    n, values = len(comparison.winner), [*comparison.baseline, *comparison.winner]
    seeds = f"{name}, {n} seeds" if n > 1 else name
    each = [
        tile("Baseline", spread_text(metric, comparison.baseline), seeds, "baseline"),
        tile(
            f"{challenger_text(study).capitalize()}, trial {comparison.winner_number}",
            spread_text(metric, comparison.winner),
            seeds,
            "winner",
        ),
        tile("Gain", gain_text(metric, comparison.difference, values), comparison_text(comparison).partition(", ")[2]),
    ]
    if comparison.test is not None:
        before, after = (metric_text(metric, comparison.test[side].get(metric)) for side in ("baseline", "winner"))
        each.append(tile(f"Test, {read_text(study.state.test_readings)}", after, f"baseline {before}"))
    return tiles(*each)


def _changes(study: Study) -> str:
    comparison = study.comparison
    if comparison is None:
        return ""
    changes = winner_changes(study, comparison.winner_number)
    rows = [
        [cell(path, "field"), cell(value_text(old), "before"), cell(value_text(new), "after")]
        for path, (old, new) in changes.items()
    ]
    who = challenger_text(study)
    changed = section(f"What the {who} changes", table(["field", "baseline", who], rows))
    return f'<div class="columns">{changed}{_seeds(comparison, who)}</div>'


def _seeds(comparison: Comparison, who: str) -> str:
    """Both sides, seed by seed."""
    metric, sign = comparison.metric, 1 if comparison.direction == "max" else -1
    pairs = list(zip(comparison.baseline, comparison.winner, strict=True))
    values = comparison.baseline + comparison.winner
    rows = [
        [
            cell(f"seed {index + 1}"),
            *_values(metric, pair),
            _gain(metric, sign * (pair[1] - pair[0]), values),
        ]
        for index, pair in enumerate(pairs)
    ]
    if len(pairs) > 1:
        means = [fmean(side) for side in (comparison.baseline, comparison.winner)]
        rows.append([cell("mean"), *_values(metric, means), _gain(metric, comparison.difference, values)])
    head = [
        validation_text(metric),
        ">baseline",
        f">{who}",
        ">points" if is_share(metric, values) else ">gain",
    ]
    css = [""] * len(pairs) + ["total"]
    rows += [
        [cell(f"mean {name_text(other)}"), *_values(other, pair), cell("")] for other, pair in comparison.others.items()
    ]
    blocks = [table(head, rows, row_css=css)]
    if comparison.test is not None:
        test = comparison.test
        names = list(dict.fromkeys([metric, *test["winner"]]))
        read = [
            [cell(name_text(name)), *_values(name, [test[side].get(name) for side in ("baseline", "winner")])]
            for name in names
        ]
        blocks.append(table(["test", ">baseline", f">{who}"], read))
    return section("Retrained on the same seeds" if comparison.retrained else "As the search read them", *blocks)


def _values(metric: str, values: Any) -> list[str]:
    return [cell(metric_text(metric, value), "number") for value in values]


def _gain(metric: str, gain: float, values: list[float]) -> str:
    return cell(gain_text(metric, gain, values).removesuffix(" points"), "number")


def _front(study: Study) -> str:
    """With several objectives: who is not beaten in all of them, drawn and as a table."""
    others = [name for name in study.objectives if name != study.metric]
    if not others or not study.front:
        return ""
    name = name_text(study.metric)
    charts = "".join(chart(f"front:{other}", f"{name} against {name_text(other)}", "small") for other in others)
    head = [">trial", *(f">{name_text(each)}" for each in study.objectives), *study.space]
    rows = [
        [
            cell(f"#{trial.number}", "number", trial.number),
            *(cell(metric_text(each, trial.scores[each]), "number", trial.scores[each]) for each in study.objectives),
            *(_value_cell(path, study.full_values(trial).get(path), trial) for path in study.space),
        ]
        for trial in study.front
    ]
    css = [role(trial, winner_number(study)) for trial in study.front]
    note = (
        "These trials came to their end, and none is better than another in all objectives. Rungs rank by all of them; "
        f"{challenger_text(study)} and baseline are compared in {name}."
    )
    drawn = f'<div class="grid">{charts}</div>' if len(others) > 1 else charts.replace("small", "")
    return section("The front", drawn, table(head, rows, "sortable", css), note=note)


def _search(study: Study) -> str:
    if not any(trial.rows for trial in study.trials):
        return ""
    name = validation_text(study.metric)
    anytime = section(
        "Best so far",
        chart("anytime", f"{name} of each trial and the best so far, over time"),
        note="One dot per trial, at its end (if stopped: its start plus training time). The line is the best by then.",
    )
    curves = section(
        "Learning curves",
        '<div class="choices" data-choices="curves"></div>',
        chart("curves", f"{name} of all trials over {steps_name(study)}", "tall"),
        note=f"{challenger_text(study).capitalize()} and baseline stand out; hover or tap a curve to see its trial.",
    )
    if all(len(trial.rows) < 2 for trial in study.trials):
        curves = ""  # dots over one step, which the other charts show better
    return anytime + curves if best_over_time(study) else curves


def _importances(study: Study) -> str:
    """Which fields make the best trials, those that chance may have made marked."""
    found = study.importances()
    rows = [
        [
            cell(each.path),
            bar(each.share, "" if each.clear else "faint"),
            cell(f"{each.share:.0%}", "number", each.share),
            cell("clear" if each.clear else "within chance", "" if each.clear else "faint"),
        ]
        for each in found
    ]
    note = (
        "How far the values of the best tenth of the trials (at least five) differ from those of all. Within chance: "
        "random orders of the trials give as much in more than 5% of cases. What was hardly varied cannot show here."
    )
    return section("What matters", table(["field", "", ">importance", ""], rows), note=note) if found else ""


def _parameters(study: Study) -> str:
    if not any(finite(trial.value) is not None for trial in study.trials):
        return ""
    name = name_text(study.metric)
    parallel = section(
        "Values against result",
        chart("parallel", f"values of each trial against {name}", "tall parallel"),
        note="One line per trial; drag along an axis to keep only the trials that pass there. "
        f"None, and zero on a log scale, stand at the lower end.{_widened(study)}",
    )
    charts = "".join(chart(f"scatter:{path}", f"{path} against {name}", "small") for path in study.space)
    return parallel + section("Each parameter against the result", f'<div class="grid">{charts}</div>')


def _widened(study: Study) -> str:
    wider = "; ".join(f"{path} {range_}" for path, range_ in study.widened.items())
    told = f" Widened during the search, where the best trials lay at the end of a range: {wider}." if wider else ""
    return told + "".join(f" Range too narrow? {edge}." for edge in study.crowded)


def _arms(study: Study) -> str:
    """Best of each combination of tuned fields."""
    best = study.best_by_arm()
    if not study.groups or not best:
        return ""
    ceiling = study.state.rank(best.values())[0]
    rows = [
        [
            cell(arm),
            cell(", ".join(study.groups.get(arm, ()))),
            cell(metric_text(study.metric, trial.value), "number", finite(trial.value)),
            cell(f"#{trial.number}", "number"),
            cell(", ".join(f"{path} {value_text(value)}" for path, value in trial.values.items())),
        ]
        for arm, trial in best.items()
    ]
    head = ["arm", "tuned", ">" + validation_text(study.metric), ">trial", "values"]
    css = ["winner" if trial is ceiling else "" for trial in best.values()]
    note = f"The best of all, {metric_text(study.metric, ceiling.value)}, is the ceiling of this space."
    return section("Best per combination tuned", table(head, rows, row_css=css), note=note)


def _trials(study: Study) -> str:
    if not study.trials:
        return ""
    head = [">trial", "arm", "state", f">{name_text(study.metric)}", ">steps", ">time", *study.space]
    rows = [_trial_row(study, trial) for trial in study.trials]
    winner = winner_number(study)
    css = [role(trial, winner) for trial in study.trials]
    note = "Click a column's name to sort by it."
    return section(f"All {len(study.trials)} trials", table(head, rows, "sortable trials", css), note=note)


def _trial_row(study: Study, trial: Trial) -> list[str]:
    arm = trial.arm if trial.kind == "search" else f"trial {trial.of} again, seed {trial.seed}"
    arm += f" ({trial.source})" if trial.source else ""
    values = study.full_values(trial) if trial.kind == "search" else {}
    return [
        cell(f"#{trial.number}", "number", trial.number),
        cell(arm),
        _state_cell(trial),
        cell(metric_text(study.metric, trial.value), "number", finite(trial.value)),
        cell(f"{trial.step:,} / {trial.total_steps:,}", "number", trial.step),
        cell(duration_text(trial.time_s), "number", finite(trial.time_s)),
        *(_value_cell(path, values.get(path), trial) for path in study.space),
    ]


def _state_cell(trial: Trial) -> str:
    told = trial.state + (f": {trial.reason}" if trial.reason else "")
    mark = f'<i class="{text(trial.state)}"></i>'
    return f'<td class="state" title="{text(told)}" data-sort="{text(trial.state)}">{mark}{text(told)}</td>'


def _value_cell(path: str, value: Any, trial: Trial) -> str:
    """A value that the trial sampled; faint where it is the baseline's."""
    if trial.kind != "search":
        return cell("")
    sort = finite(value)
    return cell(value_text(value), "" if path in trial.values else "faint", "" if sort is None else sort)


def _reproduce(study: Study) -> str:
    if study.best is None:
        return ""
    number = study.best.number
    if study.baseline is None:
        values = to_json(study.trials[number].params, indent=1)
        return section("Train it again", code(f"Parameters of trial {number}, for {study.name}", values))
    path, reference = f"{study.trials[number].folder}/recipe.json", study.settings.get("reference")
    again = (
        code("Command line", fit_command(reference, path))
        if reference
        else code("Python, with your task", f"luthier.fit(task, luthier.Recipe.load({path!r}))")
    )
    recipe = code(f"Recipe of trial {number}, for luthier.Recipe.load", study.recipe(number).to_json())
    return section("Train it again", again, recipe)


def fit_command(reference: str, recipe: str) -> str:
    """The command that trains the winner again.

    >>> fit_command("mnist", "studies/mnist/trials/0029/recipe.json")
    'luthier fit mnist --recipe studies/mnist/trials/0029/recipe.json'
    """
    return shlex.join(["luthier", "fit", reference, "--recipe", recipe])


def environment_section(folders: list[Path]) -> str:
    """Versions and machine, from the first folder that tells them."""
    for folder in folders:
        path = folder / "environment.json"
        if path.is_file():
            known = from_json(path.read_bytes())
            return section("Environment", facts((name, value_text(value)) for name, value in known.items()))
    return ""
