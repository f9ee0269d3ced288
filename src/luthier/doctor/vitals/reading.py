"""All rows of one training, read from memory or from `vitals.jsonl`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from luthier.doctor.vitals.anatomy import Anatomy, Optimizer
from luthier.doctor.vitals.course import BatchTargets, Evaluation, Event, Metrics, Norms, Spent, Steps
from luthier.doctor.vitals.looks import Look
from luthier.doctor.vitals.rows import Row
from luthier.errors import RecordError
from luthier.files import from_json

_LISTS: dict[str, tuple[str, type[Row]]] = {
    "anatomy": ("anatomies", Anatomy),
    "optimizer": ("optimizers", Optimizer),
    "norms": ("norms", Norms),
    "targets": ("targets", BatchTargets),
    "evaluation": ("evaluations", Evaluation),
    "metrics": ("metrics", Metrics),
    "event": ("events", Event),
}
"""Kinds of rows that come any number of times: where they are listed, and their type."""


@dataclass
class Vitals:
    """All rows of one training in order of time. `data` is the last examination of sampled examples (see samples)."""

    anatomies: list[Anatomy] = field(default_factory=list)
    optimizers: list[Optimizer] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    norms: list[Norms] = field(default_factory=list)
    steps: Steps = field(default_factory=Steps)
    targets: list[BatchTargets] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    metrics: list[Metrics] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    spent: Spent | None = None
    source: str = "watch"

    @property
    def anatomy(self) -> Anatomy | None:
        """The latest."""
        return self.anatomies[-1] if self.anatomies else None

    @property
    def n_steps(self) -> int:
        """Optimizer steps made."""
        return self.steps.step[-1] + 1 if self.steps.step else 0

    def named(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of one metric."""
        return [(row.step, row.values[name]) for row in self.metrics if name in row.values]

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Vitals:
        """Read plain rows; a graph row gives the structure for the looks that name it, which hold numbers only."""
        vitals = cls()
        graphs: dict[int, Mapping[str, Any]] = {}
        columns: dict[str, list[Any]] = {item.name: [] for item in fields(Steps)}
        for row in rows:
            kind = row["kind"]
            if kind == "graph":
                graphs[row["id"]] = row
            elif kind == "look":
                vitals.looks.append(look_of(row, graphs.get(row.get("graph", -1))))
            elif kind == "steps":
                for name, column in columns.items():
                    column.extend(row.get(name, ()))
            elif kind in _LISTS:
                name, typed = _LISTS[kind]
                getattr(vitals, name).append(typed.of(row))
            elif kind == "data":
                vitals.data = dict(row)
            elif kind == "spent":
                vitals.spent = Spent.of(row)
        vitals.steps = Steps(**{name: tuple(column) for name, column in columns.items()})
        return vitals

    @classmethod
    def load(cls, path: str | Path) -> Vitals:
        """Read `vitals.jsonl`; a torn last line is left out.

        Raises:
            RecordError: a row is none that a watch wrote.
        """
        lines = Path(path).read_bytes().split(b"\n")
        try:
            return cls.from_rows(from_json(line) for line in lines[:-1] if line)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RecordError(
                f"{path} is damaged, a row is none that a watch wrote ({type(error).__name__}: {error}): restore the "
                "file, or move it away, and the diagnosis rests on the metrics alone"
            ) from None


def look_of(row: Mapping[str, Any], graph: Mapping[str, Any] | None) -> Look:
    """A look with the structure of its graph; row["numbers"] maps the index of a node (as text) to its numbers."""
    if graph is None:
        return Look.of(row)
    numbers = row.get("numbers", {})
    nodes = [_with_numbers(node, numbers.get(str(node["index"]), {})) for node in graph["nodes"]]
    return Look.of({**row, "nodes": nodes, "outputs": graph["outputs"], "roots": graph["roots"]})


def _with_numbers(node: Mapping[str, Any], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """A node of a graph row with the numbers of one look: {"stats": ..., "arguments": {position: stats}}."""
    of_arguments = numbers.get("arguments", {})
    arguments = [
        {**argument, "stats": of_arguments.get(str(position))}
        for position, argument in enumerate(node.get("arguments", ()))
    ]
    return {**node, "arguments": arguments, "stats": numbers.get("stats")}
