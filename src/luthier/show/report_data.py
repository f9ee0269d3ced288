"""What the report's charts are drawn from, as plain JSON values; a number that is not finite becomes None."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.show.verdict import challenger_text
from luthier.show.words import is_share, name_text, value_text
from luthier.tuning.objectives import RESULT
from luthier.tuning.ranges import Choice, Range

if TYPE_CHECKING:
    from luthier.record import Record
    from luthier.tuning.study import Study, Trial

_POINTS = 40_000  # of all curves together; above that curves are thinned


def study_data(study: Study) -> dict[str, Any]:
    """Trials with curves and values, the space, the best value over time, what to call the trial that stands out."""
    longest = max(2, _POINTS // max(1, len(study.trials)))
    search = [trial for trial in study.trials if trial.kind == "search"]
    winner = winner_number(study)
    return {
        "kind": "study",
        "metric": _metric(study.metric, study.direction, [finite(trial.value) for trial in study.trials])
        | {"column": study.state.objectives[0].column},
        "costs": [_metric(name, way) for name, way in study.objectives.items() if name != study.metric],
        "compared": challenger_text(study),
        "front": [trial.number for trial in study.front],
        "trials": [_trial(study, trial, winner, longest) for trial in search],
        "best": best_over_time(study),
        "steps": steps_name(study),
        "space": [_axis(path, range_) for path, range_ in study.space.items()],
    }


def steps_name(study: Study) -> str:
    """What its trials count: a function reports steps of its own."""
    return "optimizer steps" if study.baseline is not None else "steps"


def record_data(record: Record) -> dict[str, Any]:
    """The curves of one training."""
    metric = str(record.task.get("metric", "loss"))
    return {
        "kind": "record",
        "metric": _metric(metric, str(record.task.get("direction", "min"))) | {"column": f"val_{metric}"},
        "curve": curve(record.rows, (f"train_{metric}", f"val_{metric}"), _POINTS),
        "best_step": record.status.get("best_step"),
    }


def finite(value: Any) -> Any:
    """A number rounded to seven significant digits; None for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, int):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None


def curve(rows: Sequence[Mapping[str, Any]], columns: Iterable[str], longest: int) -> dict[str, list[Any]]:
    """The losses, the rate and these columns of rows, thinned evenly to at most `longest` points, the last one kept."""
    stride = max(1, math.ceil(len(rows) / longest))
    kept = list(rows[::-1][::stride][::-1])
    names = dict.fromkeys(["step", "epoch", "lr", "train_loss", "val_loss", *columns])
    read = {name: [finite(row.get(name)) for row in kept] for name in names}
    return {name: values for name, values in read.items() if any(value is not None for value in values)}


def best_over_time(study: Study) -> list[list[float]]:
    """Best validation value so far against seconds since the start, at each improvement and at the end."""
    sign = 1.0 if study.direction == "min" else -1.0
    points: list[list[float]] = []
    for when, value in sorted(_results(study.trials)):
        if not points or sign * value < sign * points[-1][1]:
            points.append([when, value])
    if points:
        points.append([max(finite(study.elapsed_s) or 0.0, points[-1][0]), points[-1][1]])
    return points


def ended_s(trial: Trial) -> float | None:
    """When a trial's value was known, in seconds since the study's start; None when it has not started."""
    if trial.started_s is None or (trial.state == "finished" and trial.ended_s is not None):
        return trial.ended_s
    known = trial.started_s + trial.time_s  # a stopped trial may be told so long after its last reading
    return known if trial.ended_s is None else min(known, trial.ended_s)


def winner_number(study: Study) -> int | None:
    """The trial that stands out: the one compared with the baseline, else the best so far."""
    if (comparison := study.comparison) is not None:
        return comparison.winner_number
    return None if (best := study.best) is None else best.number


def role(trial: Trial, winner: int | None) -> str:
    """Whether a trial is drawn as the winner, as the baseline or as neither."""
    return "winner" if trial.number == winner else "baseline" if trial.arm == "baseline" else ""


def _results(trials: Sequence[Trial]) -> list[tuple[float, float]]:
    results = []
    for trial in trials:
        when, value = finite(ended_s(trial)), finite(trial.value)
        if trial.kind == "search" and trial.state != "failed" and when is not None and value is not None:
            results.append((when, value))
    return results


def _metric(name: str, direction: str, values: Iterable[float | None] = ()) -> dict[str, Any]:
    return {"name": name, "label": name_text(name), "share": is_share(name, values), "direction": direction}


def _trial(study: Study, trial: Trial, winner: int | None, longest: int) -> dict[str, Any]:
    values, first = study.full_values(trial), study.state.objectives[0]
    reported = [row for row in trial.rows if row["kind"] != RESULT]
    return {
        "number": trial.number,
        "role": role(trial, winner),
        "arm": trial.arm,
        "state": trial.state,
        "value": finite(trial.value),
        "scores": {name: finite(value) for name, value in trial.scores.items()},
        "when": finite(ended_s(trial)),
        "values": {
            path: _option_text(range_, values[path]) if isinstance(range_, Choice) else finite(values[path])
            for path, range_ in study.space.items()
        },
        "own": {path: value_text(value) for path, value in trial.values.items()},
        "curve": curve(reported, (f"train_{first.name}", first.column), longest),
    }


def _axis(path: str, range_: Range) -> dict[str, Any]:
    if isinstance(range_, Choice):
        return {"path": path, "options": [_option_text(range_, option) for option in range_.options]}
    return {"path": path, "low": range_.low, "high": range_.high, "log": range_.log}


def _option_text(range_: Choice, value: Any) -> str:
    """An option as text; as Python writes it where another one has the same text (None and "none", 1 and "1")."""
    told = value_text(value)
    return told if sum(value_text(option) == told for option in range_.options) < 2 else repr(value)
