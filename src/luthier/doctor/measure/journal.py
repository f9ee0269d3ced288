"""The journal: rows of vitals in memory and, when there is a Record, in its `vitals.jsonl`; bounded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.doctor.vitals import Vitals
from luthier.files import from_json, to_json, write_atomic

FULL = 8192
CHUNK = 512
MOST_ROWS = 4000
COLUMNS = ("step", "loss", "lr", "wait_s", "busy_s")


class Journal:
    """Collects rows.

    Steps are columns, not rows: every step up to `FULL` entries, then every second one for as many again, and so on.

    Args:
        path: file to append to; None keeps all in memory only.
        first_step: rows of an earlier file are kept up to this step (a resumed training writes the others again).
    """

    def __init__(self, path: Path | None = None, first_step: int = 0) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.steps: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self._stride = 1
        self._written = 0
        self._counts: dict[str, int] = {}
        if path is not None:
            earlier = _rows_before(path, first_step) if path.exists() and first_step else []
            write_atomic(path, "".join(to_json(row) + "\n" for row in earlier))
            self._take_up(earlier)

    def _take_up(self, earlier: list[dict[str, Any]]) -> None:
        """Begin with what is in the file."""
        for row in earlier:
            if row["kind"] == "steps":
                for name in COLUMNS:
                    self.steps[name] += row[name]
            else:
                self.rows.append(row)
                self._counts[row["kind"]] = self._counts.get(row["kind"], 0) + 1
        self._written = len(self.steps["step"])
        while self._written >= FULL * self._stride.bit_length():
            self._stride *= 2

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a row; of one kind at most `MOST_ROWS` are kept (looks and graphs are rare by themselves)."""
        kind = row["kind"]
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if self._counts[kind] <= MOST_ROWS:
            self.rows.append(dict(row))
            self._append(row)

    def add_steps(self, columns: Mapping[str, list[Any]]) -> None:
        """Keep numbers of consecutive steps (columns of equal length)."""
        kept = [position for position, step in enumerate(columns["step"]) if step % self._stride == 0]
        for name in COLUMNS:
            column = columns[name]
            self.steps[name] += column if len(kept) == len(column) else [column[position] for position in kept]
        if len(self.steps["step"]) >= FULL * (self._stride.bit_length()):
            self._stride *= 2
        if len(self.steps["step"]) - self._written >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write the steps that are not yet in the file."""
        if self.path is not None and len(self.steps["step"]) > self._written:
            self._append({"kind": "steps", **{name: self.steps[name][self._written :] for name in COLUMNS}})
        self._written = len(self.steps["step"])

    def vitals(self, *last: Mapping[str, Any]) -> Vitals:
        """Everything so far, and rows that are true only now (data, spent)."""
        return Vitals.from_rows([*self.rows, {"kind": "steps", **self.steps}, *last])

    def _append(self, row: Mapping[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("ab") as file:
                file.write(to_json(dict(row)).encode() + b"\n")


def _rows_before(path: Path, step: int) -> list[dict[str, Any]]:
    """Rows of an earlier part of the training; a torn last line is left out."""
    lines = path.read_bytes().split(b"\n")[:-1]
    rows = []
    for row in (from_json(line) for line in lines if line):
        if row["kind"] == "steps":
            keep = [position for position, each in enumerate(row["step"]) if each < step]
            rows.append({"kind": "steps", **{name: [row[name][position] for position in keep] for name in COLUMNS}})
        elif row.get("step", 0) <= step and row["kind"] not in ("data", "spent"):
            rows.append(row)
    return rows
