"""Rows of vitals in memory and in a file."""

import math

from luthier.doctor.measure.journal import FULL, Journal
from luthier.doctor.vitals import Vitals


def columns(start, stop):
    steps = list(range(start, stop))
    zeros = [0.0] * len(steps)
    return {"step": steps, "loss": [1.0 / (1 + s) for s in steps], "lr": zeros, "wait_s": zeros, "busy_s": zeros}


def test_what_is_written_is_what_is_read(tmp_path):
    path = tmp_path / "vitals.jsonl"
    journal = Journal(path)
    journal.add({"kind": "anatomy", "step": 0, "model_types": ["Net"], "parameters": [{"name": "w", "shape": [2]}]})
    journal.add_steps(columns(0, 700))
    journal.add({"kind": "look", "step": 3, "grad": [1.0, None], "weight": [math.inf]})
    journal.flush()
    read, kept = Vitals.load(path), journal.vitals()
    assert read.steps == kept.steps
    assert read.looks[0].weight[0] == math.inf
    assert read.looks == kept.looks
    assert read.anatomy.parameters[0].name == "w"
    assert read.n_steps == 700


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "vitals.jsonl"
    journal = Journal(path)
    journal.add_steps(columns(0, 600))
    journal.flush()
    with path.open("ab") as file:
        file.write(b'{"kind": "look", "st')
    assert Vitals.load(path).n_steps == 600


def test_a_resumed_training_writes_later_rows_again(tmp_path):
    path = tmp_path / "vitals.jsonl"
    first = Journal(path)
    first.add_steps(columns(0, 100))
    for step in (10, 60, 90):
        first.add({"kind": "norms", "step": step})
    first.flush()
    second = Journal(path, first_step=60)
    second.add_steps(columns(60, 120))
    second.flush()
    vitals = Vitals.load(path)
    assert vitals.steps.step == tuple(range(120))
    assert [row.step for row in vitals.norms] == [10, 60]
    assert second.vitals().steps == vitals.steps
    assert second.vitals().norms == vitals.norms


def test_very_long_trainings_are_thinned():
    journal = Journal()
    for start in range(0, 20 * FULL, 1000):
        journal.add_steps(columns(start, start + 1000))
    assert FULL < len(journal.steps["step"]) < 6 * FULL
    assert journal.steps["step"][:10] == list(range(10))
    assert journal.steps["step"][-1] > 19.5 * FULL
