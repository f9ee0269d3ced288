"""What a study writes is durable before anything follows from it; readings may wait for each other a moment."""

import time
from pathlib import Path
from typing import Any

from luthier.tuning.journal import Journal
from luthier.tuning.ledger import Ledger, read_events

TASK = {"metric": "accuracy", "direction": "max"}
TRIAL: Any = {"number": 0, "kind": "search", "arm": "all", "values": {}, "seed": 0, "of": None}


def kinds(folder: Path) -> list[str]:
    return [event.kind for event in read_events(folder)]


def test_readings_wait_for_each_other_and_nothing_else_does(tmp_path: Path) -> None:
    journal = Journal(Ledger(tmp_path), tmp_path, None, time.monotonic())
    journal.record("created", task=TASK)
    journal.record("proposed", total_steps=9, until=9, **TRIAL)
    journal.record("assigned", number=0, until=9)
    journal.flush()
    for step in (1, 2, 3):
        journal.record("row", number=0, row={"kind": "epoch", "step": step, "time_s": 1.0, "val_accuracy": 0.5})
        journal._flushed_at = time.monotonic()
        journal.flush_when_due()
    assert kinds(tmp_path) == ["created", "proposed", "assigned"]
    assert journal.state.trials[0].step == 3
    journal._flushed_at -= 1.0
    journal.flush_when_due()
    assert kinds(tmp_path)[3:] == ["row"] * 3
    journal.record("finished", number=0)
    journal.flush_when_due()
    assert kinds(tmp_path)[-1] == "finished"
    journal.ledger.close()
