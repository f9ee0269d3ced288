"""The sections of a single training's report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.recipe import Recipe
from luthier.show.html import cell, chart, code, facts, section, table, text, tile, tiles
from luthier.show.report_data import finite
from luthier.show.report_diagnosis import diagnosis_section
from luthier.show.report_study import environment_section
from luthier.show.words import duration_text, metric_text, name_text, number_text, validation_text, value_text

if TYPE_CHECKING:
    from luthier.record import Record


def record_sections(record: Record) -> str:
    """Everything between the page's head and foot."""
    rows = record.rows
    return "".join(
        (
            _opening(record, rows),
            diagnosis_section(record),
            _curves(record, rows),
            _epochs(record, rows),
            '<div class="columns">',
            _recipe(record.recipe),
            f"<div>{_task(record)}{environment_section([record.path])}</div></div>",
            section("Recipe as JSON", code("For luthier.Recipe.load", record.recipe.to_json())),
        )
    )


def _metric(record: Record) -> str:
    return str(record.task.get("metric", "loss"))


def _opening(record: Record, rows: list[dict[str, Any]]) -> str:
    status, metric = record.status, _metric(record)
    state, reason = str(status["state"]), str(status.get("reason", ""))
    level = {"finished": "certain", "failed": "worse"}.get(state, "noise")
    told = f"{state.capitalize()}: {reason}" if reason else f"{state.capitalize()}."
    title = f"<header><p class='kind'>Training</p><h1>{text(record.task.get('name', record.path.name))}</h1>"
    step, total = status.get("step", 0), status.get("total_steps", 0)
    each = [
        tile(f"Best {validation_text(metric)}", metric_text(metric, record.best), _where(status, rows), "winner"),
        tile("Steps", f"{step:,}", f"of {total:,}"),
        tile("Training time", duration_text(status.get("time_s"))),
    ]
    if record.test is not None:
        each.insert(1, tile("Test, read once", metric_text(metric, record.test.get(metric))))
    hero = f'<section class="card hero"><p class="headline {level}">{text(told)}</p>{tiles(*each)}</section>'
    return f'{title}<p class="meta">{text(record.path)}</p></header>{hero}'


def _where(status: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    epochs = [row["epoch"] for row in rows if row["step"] == status.get("best_step")]
    return f"in epoch {epochs[0]:g}" if epochs else ""


def _curves(record: Record, rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    metric = name_text(_metric(record))
    blocks = [section("Loss", chart("loss", "training and validation loss over steps"))]
    if metric != "loss":
        blocks.append(section(metric.capitalize(), chart("metric", f"training and validation {metric} over steps")))
    blocks.append(section("Learning rate", chart("lr", "learning rate over steps", "low")))
    return f'<div class="columns">{"".join(blocks)}</div>'


def _epochs(record: Record, rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    metric, best = _metric(record), record.status.get("best_step")
    names = ["train_loss", f"train_{metric}", "val_loss", f"val_{metric}"]
    names = list(dict.fromkeys(name for name in names if any(name in row for row in rows)))
    cells = [
        [
            cell(f"{row['epoch']:.4g}", "number"),
            cell(f"{row['step']:,}", "number", row["step"]),
            *(_number(name, metric, row.get(name)) for name in names),
            cell(number_text(row.get("lr")), "number", finite(row.get("lr"))),
            cell(duration_text(row.get("time_s")), "number", finite(row.get("time_s"))),
        ]
        for row in rows
    ]
    head = [">epoch", ">step", *(f">{name_text(name)}" for name in names), ">lr", ">time"]
    css = ["winner" if row["step"] == best else "" for row in rows]
    return section("Every evaluation", table(head, cells, "sortable", css), note="The best one stands out.")


def _number(name: str, metric: str, value: float | None) -> str:
    shown = number_text(value) if name.endswith("_loss") else metric_text(metric, value)
    return cell(shown, "number", finite(value))


def _recipe(recipe: Recipe) -> str:
    defaults = Recipe().flat()
    rows = [[cell(path, "field"), cell(value_text(value))] for path, value in recipe.flat().items()]
    css = ["" if path in defaults and defaults[path] == value else "winner" for path, value in recipe.flat().items()]
    note = "Fields that differ from the defaults stand out."
    return section("Recipe", table(["field", "value"], rows, "dense", css), note=note)


def _task(record: Record) -> str:
    return section("Task", facts((name_text(name), value) for name, value in record.task.items()))
