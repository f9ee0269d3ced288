"""CSV logs: Lightning's and Keras's CSVLogger, exports of Weights & Biases, any table with a step or epoch column."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from luthier.doctor.logs.curves import Curve, counted_from_one, vitals_of
from luthier.doctor.logs.names import meaning
from luthier.doctor.vitals import Vitals
from luthier.errors import RecordError

Row = Mapping[str, float]
_MISSING = {"", "-", "none", "null", "na", "n/a"}


def read_table(path: Path) -> Vitals:
    """Vitals of a CSV file.

    Raises:
        RecordError: it is empty, no text, holds several runs, no column with numbers that has a known name, or
            something else than a number in one that has.
    """
    names, cells = _cells(path)
    axes = {name: said.kind for name in names if (said := meaning(name)) is not None}
    rows = [_numbers(names, row) for row in cells]
    _only_numbers(path, names, cells, rows)
    axis = _axis(axes, rows)
    curves = [Curve(said, _points(name, axis, rows)) for name in names if (said := meaning(_bare(name))) is not None]
    curves = [curve for curve in curves if curve.points and curve.meaning.kind in ("metric", "lr")]
    if not any(curve.meaning.kind == "metric" for curve in curves):
        raise RecordError(
            f"{path} has no column that says how a training went: expected names such as train_loss, val_loss, "
            f"val_accuracy with numbers below, got {', '.join(names[:8])}"
        )
    if axis is not None and axes[axis] == "step":
        return vitals_of(curves, str(path))
    one = "a row" if axis is None else "an epoch"
    return vitals_of(counted_from_one(curves), f"{path}, where one step is {one}")


def _cells(path: Path) -> tuple[list[str], list[list[str]]]:
    """Column names and the rows below them."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RecordError(f"{path} is no text: expected a CSV file with a line of column names") from None
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        what = "is empty" if not lines else "has a line of column names and nothing below"
        raise RecordError(f"{path} {what}: expected one line for each step or epoch")
    delimiter = max(",;\t", key=lines[0].count)
    names, *rows = csv.reader(lines, delimiter=delimiter)
    names = [name.strip() for name in names]
    _one_run(path, names)
    return names, rows


def _one_run(path: Path, names: Sequence[str]) -> None:
    """Weights & Biases exports name columns `run - metric`, of as many runs as were chosen."""
    runs = sorted({name.rpartition(" - ")[0] for name in names if " - " in name})
    if len(runs) > 1:
        raise RecordError(f"{path} holds {len(runs)} runs ({', '.join(runs[:4])}): export one run only")


def _bare(name: str) -> str:
    """A column's name without the run; "" for the smallest and largest values that exports add."""
    return "" if name.endswith(("__MIN", "__MAX")) else name.rpartition(" - ")[2]


def _numbers(names: Iterable[str], row: Iterable[str]) -> Row:
    numbers = {}
    for name, cell in zip(names, row, strict=False):
        try:
            numbers[name] = float(cell)
        except ValueError:
            continue
    return numbers


def _only_numbers(path: Path, names: Sequence[str], cells: Sequence[Sequence[str]], rows: Sequence[Row]) -> None:
    """Words in a column of numbers are an error, but for the names repeated, and for a last line that may be torn."""
    known = {name for name in names if meaning(_bare(name)) is not None}
    for i, (row, numbers) in enumerate(zip(cells[:-1], rows, strict=False)):
        for name, cell in zip(names, row, strict=False):
            if name in known and name not in numbers and cell.strip().lower() not in _MISSING | {name.lower()}:
                raise RecordError(
                    f"{path} has {cell!r} as {name} in row {i + 1} below the names: expected a number such as 0.5, "
                    "or nothing where there is none"
                )


def _axis(axes: Mapping[str, str], rows: Sequence[Row]) -> str | None:
    """The column that counts: steps before epochs; one that never moves does not count."""
    for kind in ("step", "epoch"):
        for name, of in axes.items():
            values = {row[name] for row in rows if math.isfinite(row.get(name, math.nan))}
            if of == kind and values and (len(values) > 1 or len(rows) == 1):
                return name
    return None


def _points(name: str, axis: str | None, rows: Sequence[Row]) -> list[tuple[int, float]]:
    """(step, value) of a column; of two values at one step the later stays, as after a resumed training."""
    points: dict[int, float] = {}
    for i, row in enumerate(rows):
        at = i + 1 if axis is None else row.get(axis, math.nan)
        if name in row and name != axis and math.isfinite(at):
            points[int(at)] = row[name]
    return sorted(points.items())
