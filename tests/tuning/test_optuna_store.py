"""What is written in one transaction is what Optuna itself would have written."""

from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from luthier.tuning.folding import apply, fold
from luthier.tuning.ledger import Ledger, StudyError
from luthier.tuning.objectives import Objective
from luthier.tuning.optuna_store import Opened, OptunaStore, as_optuna
from luthier.tuning.optuna_view import ask, frozen_trial
from luthier.tuning.space import uniform
from luthier.tuning.state import Event
from luthier.tuning.store_sqlite import SqliteDatabase
from luthier.tuning.views import View

RANGES = {
    "lr": FloatDistribution(1e-4, 1.0, log=True),
    "width": IntDistribution(8, 64),
    "schedule": CategoricalDistribution(["cosine", None]),
}


def trial(number: int) -> FrozenTrial:
    state = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)[number % 3]
    return create_trial(
        state=state,
        values=[float("inf") if number == 3 else 0.5] if state == TrialState.COMPLETE else None,
        params={"lr": 0.01 * (number + 1), "width": 16, "schedule": None},
        distributions=RANGES,
        intermediate_values={0: float("nan"), 10: 0.25 * number, 20: -float("inf")},
        user_attrs={"luthier_number": number, "arm": "all", "reason": ""},
    )


def read(path: Path) -> list[Any]:
    study = optuna.load_study(study_name="both", storage=f"sqlite:///{path}")
    parts = [(t.number, t.state, t.values, t.params, t.distributions, t.user_attrs, t.duration) for t in study.trials]
    return [*parts, *[sorted((step, repr(v)) for step, v in t.intermediate_values.items()) for t in study.trials]]


def test_the_rows_are_those_of_add_trial(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.db", tmp_path / "theirs.db"
    trials = [trial(number) for number in range(7)]
    opened = Opened(SqliteDatabase(ours), "both", [Objective("value", "max")])
    opened.add(trials[:5])
    opened.add(trials[5:])
    opened.add([])
    assert set(opened.keys) == set(range(7))
    opened.close()
    other = Opened(SqliteDatabase(theirs), "both", [Objective("value", "max")])
    for each in trials:
        other.study.add_trial(each)
    other.close()
    assert read(ours) == read(theirs)


def test_a_trial_that_ended_again_keeps_its_place(tmp_path: Path) -> None:
    def stored(*trials: FrozenTrial) -> dict[int, str]:
        opened = Opened(SqliteDatabase(tmp_path / "study.db", shared=False), "both", [Objective("value", "max")])
        opened.add(trials)
        opened.close()
        return opened.reasons

    assert stored(*(trial(number) for number in (4, 5, 2))) == {}
    again = create_trial(
        state=TrialState.COMPLETE, value=0.9, user_attrs={"luthier_number": 5, "reason": "went on"}, params={}
    )
    assert stored(again, trial(7)) == dict.fromkeys((4, 5, 2), "")
    assert stored() == {4: "", 5: "went on", 2: "", 7: ""}
    found = optuna.load_study(study_name="both", storage=f"sqlite:///{tmp_path / 'study.db'}").trials
    assert [(each.number, each.user_attrs["luthier_number"]) for each in found] == [(0, 4), (1, 5), (2, 2), (3, 7)]
    assert (found[1].state, found[1].values, found[1].intermediate_values) == (TrialState.COMPLETE, [0.9], {})
    assert found[2].intermediate_values.keys() == {0, 10, 20}


def test_a_study_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "shared.db")
    theirs = optuna.create_study(storage=database.optuna_url, study_name="mnist", direction="minimize")
    with pytest.raises(StudyError, match=r"another study of Optuna's with the name 'mnist' \(minimize; 0 trials\)"):
        Opened(database, "mnist", [Objective("accuracy", "max")])
    theirs.add_trial(create_trial(value=0.5))
    with pytest.raises(StudyError, match="choose another name for the study's folder"):
        Opened(database, "mnist", [Objective("loss", "min")])
    assert len(theirs.trials) == 1
    for _ in range(2):
        opened = Opened(database, "ours", [Objective("loss", "min")])
        opened.add([trial(number) for number in range(3) if number not in opened.keys])
        opened.close()
    assert len(optuna.load_study(study_name="ours", storage=database.optuna_url).trials) == 3


@pytest.mark.parametrize(
    "range_",
    [
        uniform(0, 1, step=1 / 3),
        uniform(0, 2, step=1 / 3),
        uniform(0, 6.283185307, step=0.78539816339),
        uniform(1000, 1010, step=1 / 7),
        uniform(100, 101, step=1 / 300),
        uniform(-0.3, 0.3, step=0.1),
    ],
)
def test_every_step_of_a_range_can_be_stored_and_is_proposed(range_: Any) -> None:
    found = []
    for value in (*range_.every(), range_.low + range_.step * (1 - 1e-7)):
        assert range_.contains(value)
        stored = frozen_trial({"x": range_}, {"x": value}, TrialState.COMPLETE, (0.5,))
        assert stored.params["x"] == pytest.approx(value, abs=1e-6 * range_.step)
        found.append(stored)
    assert len({trial.params["x"] for trial in found}) == range_.size
    if range_.size > 12:
        return
    views = [View({"x": range_}, (), ("max",), seed=number) for number in range(12 * range_.size)]
    asked = {ask(view, optuna.samplers.RandomSampler(seed=view.seed), [])["x"] for view in views}
    assert asked == set(range_.every())


def test_a_stored_trial_lasts_as_long_as_it_trained() -> None:
    payload = {"number": 0, "kind": "search", "arm": "all", "values": {"x": 1}, "seed": 0, "of": None}
    state = fold(
        [
            Event(1, 0.0, "created", {"task": {"metric": "value", "direction": "max"}}),
            Event(2, 0.0, "proposed", {**payload, "total_steps": 9, "until": 9}),
            Event(3, 40.0, "failed", {"number": 0, "reason": "", "time_s": 30.0}),
        ],
        Path("study"),
    )
    stored = as_optuna(state.trials[0], {"x": uniform(0, 1)}, state.objectives, ended := datetime(2026, 1, 2, 3, 4, 5))
    assert (stored.duration.total_seconds(), stored.datetime_complete) == (30.0, ended)


def test_after_an_interrupt_nothing_is_stored_any_more(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    task = {"metric": "value", "direction": "max"}
    state = fold([Event(1, 0.0, "created", {"task": task})], tmp_path)
    values: Any = {"number": 0, "kind": "search", "arm": "all", "values": {}, "seed": 0, "of": None}
    apply(state, Event(2, 0.0, "proposed", {**values, "total_steps": 1, "until": 1}))
    apply(state, Event(3, 0.0, "failed", {"number": 0, "reason": "on purpose"}))
    with OptunaStore(ledger.store, "left", state.objectives, {}) as store:
        store.add(state.trials)
    assert store._thread is not None
    store._thread.join()
    with pytest.raises(KeyError):
        optuna.load_study(study_name="left", storage=store.database.optuna_url)
    ledger.close()
