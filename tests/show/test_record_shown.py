"""The report of a single training."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import RecordError
from luthier.recipe import Recipe
from luthier.record import Record
from luthier.show.report import write_report
from luthier.show.words import value_text

TASK = {"name": "toy", "metric": "accuracy", "direction": "max", "loss": "cross_entropy"}


def row(step: int, value: float | None) -> dict[str, Any]:
    return {"kind": "epoch", "step": step, "epoch": step / 10, "examples": 0, "time_s": 1.0, "lr": 0.1} | {
        "train_loss": value,
        "train_accuracy": value,
        "val_loss": value,
        "val_accuracy": value,
    }


def page(record: Record, tmp_path: Path) -> tuple[str, Any]:
    html = write_report(record, tmp_path / "report.html").read_text()
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert data is not None
    return html, json.loads(data[1], parse_constant=pytest.fail)


def test_a_finished_training(tmp_path: Path) -> None:
    record = Record.create(tmp_path / "run", Recipe(lr=0.037, dropout=0.25), TASK)
    for step, value in ((10, 0.5), (20, 0.75)):
        record.append(row(step, value))
    record.write_status(
        "finished", reason="all 2 epochs trained", step=20, total_steps=20, best_value=0.75, best_step=20
    )
    record.write_test({"loss": 0.4, "accuracy": 0.7219})
    html, data = page(record, tmp_path)
    for figure in ("Finished: all 2 epochs trained", "75.00%", "72.19%", "in epoch 2", "0.037", "cross_entropy"):
        assert figure in html
    assert data["curve"]["val_accuracy"] == [0.5, 0.75]
    assert data["best_step"] == 20


def test_a_training_that_diverged(tmp_path: Path) -> None:
    record = Record.create(tmp_path / "run", Recipe(), TASK)
    record.append(row(10, math.nan))
    record.append(row(20, math.inf))
    record.write_status("failed", reason="NonFiniteLoss: <lr>", step=20, total_steps=40, best_value=None, best_step=0)
    html, data = page(record, tmp_path)
    assert "Failed: NonFiniteLoss: &lt;lr&gt;" in html
    assert data["curve"]["step"] == [10, 20]
    assert "val_accuracy" not in data["curve"]


def test_a_training_that_has_only_begun(tmp_path: Path) -> None:
    html, data = page(Record.create(tmp_path / "run", Recipe(), TASK), tmp_path)
    assert "Running." in html
    assert data["curve"] == {}


def test_an_old_report_survives_a_failure(tmp_path: Path) -> None:
    record = Record.create(tmp_path / "run", Recipe(), TASK)
    path = write_report(record, tmp_path / "report.html")
    before = path.read_bytes()
    (record.path / "status.json").write_text("{")
    with pytest.raises(RecordError):
        write_report(record, path)
    assert path.read_bytes() == before


def test_values_of_every_kind_are_readable() -> None:
    assert value_text(Recipe(optimizer=lambda params, lr: None).flat()["optimizer.call"]) == "<lambda>"
    assert value_text({"width": 64}) == "width 64"
