"""From curves of other tools to vitals: a dense training loss becomes steps, values of evaluations become metrics."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from luthier.doctor.logs.names import Meaning
from luthier.doctor.measure.directions import direction_of
from luthier.doctor.vitals import Metrics, Steps, Vitals

Points = list[tuple[int, float]]
_WINDOWS = 20  # means of a dense curve that has no evaluations beside it


@dataclass(frozen=True)
class Curve:
    """One curve: what it is, and (step, value) in order of steps."""

    meaning: Meaning
    points: Points


def vitals_of(curves: Iterable[Curve], source: str) -> Vitals:
    """Vitals that hold curves only.

    Args:
        curves: of one training, steps counted from 0 or 1.
        source: what was read, for the line on what the diagnosis rests on.
    """
    metrics, lr = _chosen(curves)
    val = {key: points for key, points in metrics.items() if key[0] == "val"}
    dense = {key: points for key, points in metrics.items() if _is_dense(key, points, val.values())}
    last = max((points[-1][0] for points in dense.values()), default=None)
    ends = _ends(val, last)
    rows: dict[int, dict[str, float]] = {}
    for (side, quantity, per), points in metrics.items():
        if (side, quantity, per) in dense:
            points = [] if (side, quantity, "epoch") in metrics else _means(points, ends or _windows(points))
        elif side == "val" and ends:
            points = [(ends.get(step, step), value) for step, value in points]
        elif ends and per != "step":
            points = _beside(points, sorted(ends.values()))
        for step, value in points:
            rows.setdefault(step, {})[f"{side}_{quantity}"] = value
    return Vitals(
        steps=_steps(metrics, dense, lr), metrics=[_row(step, rows[step]) for step in sorted(rows)], source=source
    )


def _row(step: int, values: dict[str, float]) -> Metrics:
    return Metrics(step, values, {name: direction_of(name) for name in values})


def _chosen(curves: Iterable[Curve]) -> tuple[dict[tuple[str, str, str], Points], Points]:
    """Metrics by (side, quantity, per) and the learning rate; of two that mean the same the longer one."""
    metrics: dict[tuple[str, str, str], Points] = {}
    lr: Points = []
    for curve in curves:
        if not curve.points:
            continue
        if curve.meaning.kind == "lr":
            lr = lr or curve.points
        elif curve.meaning.kind == "metric":
            said = curve.meaning
            key = (said.side or "train", said.quantity, said.per)
            metrics[key] = max(metrics.get(key, []), curve.points, key=len)
    return _sides(metrics), lr


def _sides(metrics: dict[tuple[str, str, str], Points]) -> dict[tuple[str, str, str], Points]:
    """A test curve stands for validation where there is none; of validation curves only one per quantity."""
    known: dict[tuple[str, str, str], Points] = {}
    for side in ("train", "val", "test"):
        for (of, quantity, per), points in metrics.items():
            key = (of, quantity, per) if side == "train" else ("val", quantity, "")
            if of == side and (key not in known or (side == "val" and len(points) < len(known[key]))):
                known[key] = points
    return known


def _is_dense(key: tuple[str, str, str], points: Points, val: Iterable[Points]) -> bool:
    """Whether a training curve is taken every few steps, not once per evaluation."""
    side, _, per = key
    if side == "val" or per == "epoch":
        return False
    n = max((len(each) for each in val), default=0)
    return per == "step" or n == 0 or len(points) >= 2 * n


def _ends(val: dict[tuple[str, str, str], Points], last: int | None) -> dict[int, int]:
    """Steps of the evaluations, by the number under which they were logged.

    Evaluations that were numbered by epochs beside a loss numbered by steps are spread over those.
    """
    steps = sorted({step for points in val.values() for step, _ in points})
    by_epoch = len(steps) > 1 and last is not None and steps == list(range(steps[0], steps[0] + len(steps)))
    if by_epoch and last is not None and steps[-1] * 2 < last:
        return {step: round(last * (i + 1) / len(steps)) for i, step in enumerate(steps)}
    return {step: step for step in steps}


def _means(points: Points, ends: dict[int, int]) -> Points:
    """Means of a dense curve between evaluations."""
    means, begin = [], -1
    for end in sorted(ends.values()):
        values = [value for step, value in points if begin < step <= end]
        if values:
            means.append((end, fmean(values)))
        begin = end
    return means


def _windows(points: Points) -> dict[int, int]:
    every = max(1, len(points) // _WINDOWS)
    return {step: step for step, _ in points[every - 1 :: every]}


def _beside(points: Points, ends: Sequence[int]) -> Points:
    """Training values moved to the evaluations that they belong to: the same number of them, or the latest before."""
    if len(points) == len(ends):
        return [(end, value) for end, (_, value) in zip(ends, points, strict=True)]
    steps = [step for step, _ in points]
    pairs = [(end, bisect_right(steps, end) - 1) for end in ends]
    return [(end, points[i][1]) for end, i in pairs if i >= 0]


def _steps(metrics: dict[tuple[str, str, str], Points], dense: Collection[tuple[str, str, str]], lr: Points) -> Steps:
    """Training loss (the dense one before the one per evaluation) and learning rate.

    Steps without a loss are left out: a row whose loss is unknown looks like one whose loss was lost to NaN.
    """
    losses = [key for key in metrics if key[:2] == ("train", "loss")]
    losses.sort(key=lambda key: key not in dense)
    points = metrics[losses[0]] if losses else [(step, math.nan) for step, _ in lr]
    zeros = (0.0,) * len(points)
    return Steps(
        step=tuple(step for step, _ in points),
        loss=tuple(value for _, value in points),
        lr=tuple(_latest(lr, step) for step, _ in points),
        wait_s=zeros,
        busy_s=zeros,
    )


def _latest(points: Points, step: int) -> float:
    """The value at a step or the last before it; the first one where there is none before."""
    if not points:
        return math.nan
    return points[max(bisect_right(points, (step, math.inf)) - 1, 0)][1]


def counted_from_one(curves: Sequence[Curve]) -> list[Curve]:
    """Epochs numbered from 0 become numbered from 1, since their values were taken at their ends."""
    first = min((curve.points[0][0] for curve in curves if curve.points), default=1)
    if first > 0:
        return list(curves)
    return [replace(curve, points=[(step + 1, value) for step, value in curve.points]) for curve in curves]
