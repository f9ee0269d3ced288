"""What other tools (and Luthier itself) left on disk, read as vitals. What a log does not hold stays empty in them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from luthier.doctor.logs.curves import Curve, vitals_of
from luthier.doctor.logs.names import meaning
from luthier.doctor.vitals import Optimizer, Vitals
from luthier.errors import RecordError
from luthier.record import Record

VITALS = "vitals.jsonl"
_EXPECTED = "the folder of a training, TensorBoard event files, or a CSV log"


def read_logs(path: str | Path) -> Vitals:
    """The vitals of what stands at a path.

    Args:
        path: a Record's folder, a vitals.jsonl, a TensorBoard event file or the folder of one run, a CSV file (of
            Lightning's or Keras's CSVLogger, an export of Weights & Biases, or any with a step or epoch column) or a
            folder with one.

    Raises:
        RecordError: nothing there, nothing that can be read, several runs at once, or no curve with a known name.
    """
    path = Path(path)
    if not path.exists():
        raise RecordError(f"there is nothing at {path}: expected {_EXPECTED}")
    return _of_folder(path) if path.is_dir() else _of_file(path)


def _of_folder(path: Path) -> Vitals:
    from luthier.doctor.logs.events import PATTERN, read_events

    if Record.exists(path):
        return read_record(Record(path))
    if (path / VITALS).is_file():
        return Vitals.load(path / VITALS)
    if any(path.rglob(PATTERN)):
        return read_events(path)
    tables = sorted(path.rglob("*.csv"))
    if len(tables) == 1:
        return _of_file(tables[0])
    if tables:
        raise RecordError(f"{path} holds {len(tables)} CSV files ({', '.join(map(str, tables[:4]))}): name one of them")
    raise RecordError(f"the folder {path} holds no log that can be read: expected {_EXPECTED}")


def _of_file(path: Path) -> Vitals:
    from luthier.doctor.logs.events import read_events
    from luthier.doctor.logs.tables import read_table

    if "tfevents" in path.name:
        return read_events(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        return read_table(path)
    if path.name.endswith(VITALS):
        return Vitals.load(path)
    raise RecordError(f"{path.name} is no log that can be read: expected {_EXPECTED}")


def read_record(record: Record) -> Vitals:
    """The vitals of a Record: what the doctor's probe measured, its rows of metrics, its recipe's optimizer.

    Raises:
        RecordError: the training has left no numbers yet.
    """
    probed = (record.path / VITALS).is_file()
    vitals = Vitals.load(record.path / VITALS) if probed else Vitals(source=str(record.path))
    rows = [row for row in record.rows if row["kind"] == "epoch"] or record.rows
    curves = vitals_of(_curves(rows), vitals.source)
    vitals.metrics = vitals.metrics or curves.metrics
    if not vitals.steps.step:
        vitals.steps = curves.steps
    if not vitals.optimizers:
        vitals.optimizers = [_optimizer(record)]
    if not (vitals.metrics or vitals.steps.step or vitals.looks):
        raise RecordError(f"{record.path} has left no numbers yet: nothing can be diagnosed before the first epoch")
    return vitals


def _curves(rows: list[dict[str, object]]) -> list[Curve]:
    """The columns of the rows as curves; a row's step is the number of steps made before it."""
    curves = []
    for name in dict.fromkeys(name for row in rows for name in row):
        said = meaning(name)
        if said is None or said.kind not in ("metric", "lr"):
            continue
        points = [(int(str(row["step"])), _float(row[name])) for row in rows if row.get(name) is not None]
        per = "" if said.side == "val" else "epoch"
        curves.append(Curve(replace(said, per=per), points))
    return curves


def _float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _optimizer(record: Record) -> Optimizer:
    """The optimizer that the recipe names."""
    recipe = record.recipe
    group = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, **recipe.optimizer.settings()}
    return Optimizer(step=0, id=0, type=recipe.optimizer.name, groups=(group,))
