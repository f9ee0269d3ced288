"""The report of a single training."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.doctor.findings import Diagnosis, Finding, Remedy
from luthier.errors import RecordError
from luthier.patch import Patch, Scale
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


def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, diagnosis: Diagnosis) -> str:
    record = Record.create(tmp_path / "run", Recipe(), TASK)
    monkeypatch.setattr(Record, "diagnose", lambda _: diagnosis)
    html, _ = page(record, tmp_path)
    found = re.search(r"<h2>Diagnosis</h2>.*?</section>", html, re.DOTALL)
    assert found is not None
    return found[0]


def test_what_the_doctor_found_root_first_with_remedies_and_consequences(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dead = Finding("dead_relu", "warning", "98% of the units give 0", where=("hidden.<0>",), onset=5)
    patch = Patch(reason="", operations=[Scale(field="lr", factor=0.1)])
    remedy = Remedy("Lower the rate.", patch, "- lr = 30\n+ lr = 3")
    root = Finding(
        "lr_too_high", "critical", "the rate is too high", ("ratio: 0.25 > 0.01",), onset=1, remedies=(remedy,)
    )
    note = Finding("plateau", "info", "the loss stands still")
    findings = (replace(root, consequences=(dead,)), dead, note)
    told = shown(monkeypatch, tmp_path, Diagnosis(findings, ("nan_inf",), {"label_noise": "no targets were seen"}))
    assert told.index("lr_too_high") < told.index("dead_relu") < told.index("plateau")
    for part in (
        '<article class="finding critical">',
        "from step 1, likely",
        "The rate is too high.",
        "ratio: 0.25 &gt; 0.01",
        "in hidden.&lt;0&gt;: 98% of the units give 0.",
        '<span class="removed">- lr = 30</span>\n<span class="added">+ lr = 3</span>',
        "recipe: lr x 0.1",
        "In order: 1 check.",
        "Could not look for label_noise: no targets were seen.",
    ):
        assert part in told
    assert told.count("dead_relu") == 1
    assert told.count("<article") == 1


def test_a_healthy_training_is_one_line_and_what_is_worth_knowing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    note = Finding("plateau", "info", "the loss stands still")
    told = shown(monkeypatch, tmp_path, Diagnosis((note,), ("nan_inf", "dead_relu")))
    assert "Healthy: 2 checks in order; worth knowing: plateau" in told
    assert "The loss stands still." in told
    assert "<article" not in told


def test_a_diagnosis_that_cannot_be_made_does_not_cost_the_report(tmp_path: Path) -> None:
    record = Record.create(tmp_path / "run", Recipe(), TASK)
    (record.path / "vitals.jsonl").write_text('{"kind": "look"}\n')
    html, _ = page(record, tmp_path)
    assert "Could not be made:" in html
    assert "vitals.jsonl is damaged" in html


def test_damaged_metrics_are_said_with_their_file(tmp_path: Path) -> None:
    record = Record.create(tmp_path / "run", Recipe(), TASK)
    (record.path / "metrics.jsonl").write_text("{broken\n")
    with pytest.raises(RecordError, match=r"metrics\.jsonl is damaged"):
        write_report(record, tmp_path / "report.html")
