"""The doctor and the best trials steer what is tried next."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luthier.doctor.findings import Diagnosis, Finding, Remedy
from luthier.files import from_json, to_json
from luthier.patch import Patch, Scale, Set
from luthier.recipe import Recipe
from luthier.task import Task
from luthier.tuning.budgets import Time
from luthier.tuning.edges import KNOWN_GOOD
from luthier.tuning.folding import apply
from luthier.tuning.jobs import Plan, Proposal
from luthier.tuning.optuna_store import as_optuna, stretched
from luthier.tuning.proposing import Proposer
from luthier.tuning.searched import recipe_search
from luthier.tuning.space import choice, loguniform, uniform
from luthier.tuning.state import Event, State
from luthier.tuning.steering import next_change, prescriptions, widened

NOW = datetime(2026, 1, 2, 3, 4, 5)


def study(*trials: tuple[dict[str, Any], float], arm: str = "all", source: str = "") -> State:
    """A study of finished trials: values and value."""
    state = State(Path("study"), {"task": {"metric": "value", "direction": "max"}})
    for number, (values, value) in enumerate(trials):
        given = {
            "number": number,
            "kind": "search",
            "arm": arm,
            "values": values,
            "seed": 0,
            "of": None,
            "source": source,
        }
        events: list[tuple[str, dict[str, Any]]] = [
            ("proposed", {**given, "total_steps": 10, "until": 10}),
            ("assigned", {"number": number, "until": 10}),
            ("row", {"number": number, "row": {"kind": "epoch", "step": 10, "time_s": 1.0, "val_value": value}}),
            ("finished", {"number": number, "step": 10}),
        ]
        for kind, payload in events:
            apply(state, Event(0, 0.0, kind, payload))
    return state


class Sick:
    """A record with a given diagnosis."""

    def __init__(self, *patches: Patch) -> None:
        remedies = tuple(Remedy("do it", patch) for patch in patches)
        self.diagnosis = Diagnosis(findings=(Finding("overfitting", "warning", "the gap is large", remedies=remedies),))

    def diagnose(self) -> Diagnosis:
        return self.diagnosis


def test_patches_become_settings_by_path() -> None:
    record: Any = Sick(
        Patch(reason="half the step", operations=(Scale(field="lr", factor=0.5),)),
        Patch(reason="longer", operations=(Scale(field="epochs", factor=2),)),
        Patch(reason="again", operations=(Set(field="lr", value=0.05),)),
        Patch(reason="impossible", operations=(Set(field="optimizer.momentum", value=0.9),)),
        Patch(reason="noise", operations=(Set(field="dropout", value=0.2),)),
    )
    found = prescriptions(record, Recipe(lr=0.1))
    assert found == [
        {"symptom": "overfitting", "reason": "half the step", "values": {"lr": 0.05}},
        {"symptom": "overfitting", "reason": "noise", "values": {"dropout": 0.2}},
    ]


def test_what_the_doctor_asks_for_can_be_written_down() -> None:
    parts = [{"name": "affine", "degrees": 10.0}]
    record: Any = Sick(
        Patch(reason="turn", operations=(Set(field="augment", value=parts),)),
        Patch(reason="mirror", operations=(Set(field="augment", value=["flip"]),)),
    )
    changes = prescriptions(record, Recipe())
    assert from_json(to_json(changes)) == changes
    asked = [Recipe().replace(change["values"]).augment for change in changes]
    assert asked == [Recipe(augment=parts).augment, Recipe(augment=["flip"]).augment]
    assert not choice((), ("flip", "crop")).contains(changes[0]["values"]["augment"])
    assert stretched(choice((), ("flip", "crop")), changes[0]["values"]["augment"]) is None


def test_the_best_trials_changes_are_asked_for_once() -> None:
    state = study(({"lr": 0.1}, 0.7), ({"lr": 0.2}, 0.9))
    assert next_change(state, "all") is None
    changes = [{"symptom": "overfitting", "reason": "noise", "values": {"dropout": value}} for value in (0.2, 0.4)]
    for number in (0, 1):
        apply(state, Event(0, 0.0, "prescribed", {"number": number, "changes": changes}))
    asked = next_change(state, "all")
    assert asked is not None
    assert asked.values == {"lr": 0.2, "dropout": 0.2}
    assert asked.reason == "the doctor, for overfitting of trial 1: noise"
    assert next_change(state, "another") is None
    tried = study(({"lr": 0.2}, 0.9), ({"lr": 0.2, "dropout": 0.2}, 0.1), ({"dropout": 0.4, "lr": 0.2}, 0.1))
    apply(tried, Event(0, 0.0, "prescribed", {"number": 0, "changes": changes}))
    assert next_change(tried, "all") is None


@pytest.mark.parametrize(("lrs", "end"), [((0.1, 0.098, 0.099), "high"), ((1e-4, 1.01e-4, 1.1e-4), "low")])
def test_a_range_whose_end_is_crowded_is_widened(lrs: tuple[float, ...], end: str) -> None:
    space = {"lr": loguniform(1e-4, 0.1), "dropout": uniform(0.0, 0.5), "schedule": choice("cosine", "constant")}
    state = study(*[({"lr": lr, "dropout": 0.5, "schedule": "cosine"}, 0.9) for lr in lrs], ({"lr": 3e-3}, 0.1))
    wider = widened(space, state, "all")
    assert list(wider) == ["lr"]
    assert (wider["lr"].low, wider["lr"].high) == pytest.approx((1e-4, 0.4) if end == "high" else (2.5e-5, 0.1))
    for _ in range(2):
        apply(state, Event(0, 0.0, "widened", {"ranges": {"lr": {}}}))
    assert widened(space, state, "all") == {}


def test_a_range_is_left_alone_without_enough_to_go_by() -> None:
    space = {"lr": loguniform(1e-4, 0.1)}
    assert widened(space, study(({"lr": 0.1}, 0.9), ({"lr": 0.1}, 0.8)), "all") == {}
    assert widened(space, study(*[({"lr": lr}, 0.9) for lr in (0.1, 0.1, 0.05)]), "all") == {}


def test_a_range_is_widened_to_where_the_doctor_was_right_and_not_to_where_the_search_began() -> None:
    space = {"lr": loguniform(1e-4, 0.1)}
    crowd = [({"lr": lr}, 0.9) for lr in (0.1, 0.098, 0.099)]
    assert widened(space, study(*crowd, source=KNOWN_GOOD), "all") == {}
    beyond = study(({"lr": 1.0}, 0.9), ({"lr": 0.01}, 0.8), source="the doctor, for underfitting of trial 1")
    assert widened(space, beyond, "all") == {"lr": loguniform(1e-4, 4.0)}
    assert widened(space, study(({"lr": 1.0}, 0.7), ({"lr": 0.01}, 0.8), source="the doctor"), "all") == {}


def test_what_the_doctor_asks_for_where_nothing_was_learnt_trains_to_its_end() -> None:
    record: Any = Sick(Patch(reason="higher", operations=(Scale(field="lr", factor=10),)))
    nothing = Finding("no_learning", "warning", "nothing was learnt")
    record.diagnosis = replace(record.diagnosis, findings=(*record.diagnosis.findings, nothing))
    changes = prescriptions(record, Recipe(lr=1e-6))
    assert changes[0]["whole"]
    state = study(({"lr": 1e-6}, 0.1))
    apply(state, Event(0, 0.0, "prescribed", {"number": 0, "changes": changes}))
    asked = next_change(state, "all")
    assert asked is not None
    assert asked.whole


def told_next(state: State, number: int, budget_s: float | None, strategy: str = "auto") -> Proposal:
    """What the next trial of a recipe's search on two workers is; whole trainings take a second."""
    space: Any = {"lr": loguniform(1e-4, 1e-1), "batch_size": choice(32, 64, 128), "dropout": uniform(0.0, 0.5)}
    data = (torch.zeros(128, 2), torch.zeros(128))
    search = recipe_search(Task(lambda: nn.Linear(2, 2), data), Recipe(optimizer="adamw"), space, None, 0)
    plan = Plan({"all": list(space)}, budget=None if budget_s is None else Time(budget_s), workers=2, strategy=strategy)
    proposal = Proposer(search, plan, "auto")(state, number, "all")
    assert proposal is not None
    return proposal


STARTS = [{"lr": lr, "batch_size": size, "dropout": 0.0} for lr, size in ((1e-2, 128), (3e-3, 64), (1e-3, 32))]


@pytest.mark.parametrize(
    ("budget_s", "strategy", "whole"),
    [(None, "auto", True), (4, "auto", True), (3, "auto", False), (4, "halving", False)],
)
def test_with_room_two_starts_train_to_their_end(budget_s: float | None, strategy: str, whole: bool) -> None:
    wholes = []
    for begun in range(3):
        state = study(*[(values, 0.9) for values in STARTS[:begun]])
        proposal = told_next(state, begun + 1, budget_s, strategy)
        assert proposal.values == STARTS[begun]
        wholes.append(proposal.whole)
    assert wholes == [strategy == "auto", whole, False]


@pytest.mark.parametrize(("budget_s", "whole"), [(None, True), (4, True), (3, False)])
def test_the_doctors_first_request_comes_before_the_last_start_and_trains_to_its_end(
    budget_s: float | None, whole: bool
) -> None:
    state = study(*[(values, 0.9 - 0.1 * place) for place, values in enumerate(STARTS[:2])])
    changes = [{"symptom": "overfitting", "reason": "noise", "values": {"dropout": rate}} for rate in (0.2, 0.4)]
    apply(state, Event(0, 0.0, "prescribed", {"number": 0, "changes": changes}))
    first = told_next(state, 3, budget_s)
    assert (first.values, first.whole) == ({**STARTS[0], "dropout": 0.2}, whole)
    assert first.source == "the doctor, for overfitting of trial 0: noise"
    begun = study(*[(values, 0.9 - 0.1 * place) for place, values in enumerate([*STARTS[:2], first.values])])
    assert told_next(begun, 4, budget_s).values == STARTS[2]

    assert not told_next(state, 3, budget_s, "halving").whole

    state = study((STARTS[0], 0.9), (STARTS[1], 0.8), (first.values, 0.1), (STARTS[2], 0.7))
    apply(state, Event(0, 0.0, "prescribed", {"number": 0, "changes": changes}))
    second = told_next(state, 6, budget_s)
    assert (second.values, second.whole) == ({**STARTS[0], "dropout": 0.4}, False)
    assert told_next(state, 7, budget_s).source == ""


def test_settings_of_a_part_that_the_doctor_replaces_are_dropped() -> None:
    state = study(({"lr": 0.1, "optimizer.momentum": 0.7, "optimizer.nesterov": True, "schedule.gamma": 0.5}, 0.9))
    patch = {"optimizer": "adamw", "lr": 0.001, "optimizer.eps": 1e-7}
    changes = [{"symptom": "underfitting", "reason": "steps", "values": patch}]
    apply(state, Event(0, 0.0, "prescribed", {"number": 0, "changes": changes}))
    asked = next_change(state, "all")
    assert asked is not None
    assert asked.values == {**patch, "schedule.gamma": 0.5}


def test_optuna_takes_trials_from_beyond_the_space() -> None:
    space = {"lr": loguniform(1e-4, 0.1), "schedule": choice("cosine", "constant")}
    state = study(({"lr": 0.4, "schedule": "one-cycle", "dropout": 0.2}, 0.9))
    trial = as_optuna(state.trials[0], space, state.objectives, NOW)
    assert trial.params == {"lr": 0.4}
    assert trial.user_attrs["also"] == '{"schedule": "one-cycle", "dropout": 0.2}'
    assert stretched(space["lr"], 0.4) == loguniform(1e-4, 0.4)
    assert stretched(space["lr"], 0.0) is None  # no log scale holds it
    without = as_optuna(
        study(({"lr": 0.0, "schedule": "cosine"}, 0.9)).trials[0], space, state.objectives, datetime.now()
    )
    assert (without.params, without.user_attrs["also"]) == ({"schedule": "cosine"}, '{"lr": 0.0}')
