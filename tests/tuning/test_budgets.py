"""Budgets of time, steps and epochs: read, followed by the ledger, and kept by every strategy."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luthier.errors import LuthierError
from luthier.recipe import Recipe
from luthier.task import Task
from luthier.tuning.budgets import Time, Work, read_budget, seconds
from luthier.tuning.jobs import BASELINE, Continue, Plan, Proposal, Start
from luthier.tuning.scheduler import budget_left, budget_over, next_job, next_repeat, outranked, reserve
from luthier.tuning.simulate import Curve, Simulator
from luthier.tuning.space import choice, loguniform, uniform
from luthier.tuning.state import State
from luthier.tuning.strategies import STRATEGIES
from luthier.tuning.tune import tune

TOTAL = 90


def simulator(plan: Plan, lengths: Any = (TOTAL,), events: Any = ()) -> Simulator:
    """Trials of these lengths in turn, the better the higher their number; the baseline has the first one's."""

    def propose(state: Any, number: int, arm: str) -> Proposal:
        return Proposal({} if arm == BASELINE else {"lr": number / 1000}, lengths[number % len(lengths)])

    def curve(number: int, values: Any) -> Curve:
        return Curve([0.001 * number + 0.0001 * step for step in range(max(lengths))], 0.1)

    return Simulator(plan, propose, curve, events=events)


def plan(budget: Any, **changes: Any) -> Plan:
    return Plan(**{"arms": {"all": ["lr"]}, "trials": None, "budget": budget, **changes})


def steps_of(made: Simulator) -> int:
    return sum(trial.step for trial in made.state.trials)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("workers", [1, 7])
def test_a_budget_is_never_exceeded_and_nearly_used(strategy: str, workers: int) -> None:
    for budget in (Work(3000), Work(300, "epochs", 10)):
        made = simulator(plan(budget, strategy=strategy, workers=workers), (90, 45, 180, 90)).run().repeat()
        assert 0.8 * budget.total < budget.used(made.state, 0.0) <= budget.total
        repeats = [trial for trial in made.state.trials if trial.kind == "repeat"]
        assert len(repeats) == 6 or (budget.unit == "steps" and len(repeats) in (2, 4))  # a late winner took more
        assert all(trial.step == trial.until for trial in made.state.trials)  # nothing was cut


@pytest.mark.parametrize("cut", [1, 5, 11, 17])
def test_a_killed_study_decides_as_it_would_have(cut: int) -> None:
    wish = plan(Work(200, "epochs", 10), workers=3)
    whole = simulator(wish, (90, 30)).run()
    part = simulator(wish, (90, 30)).run(decisions=cut)
    resumed = simulator(wish, (90, 30), events=part.events)
    resumed.running = part.running
    resumed.run()
    assert part.decisions + resumed.decisions == whole.decisions


def test_an_epoch_counts_the_same_for_every_length() -> None:
    made = simulator(plan(Work(30, "epochs", 10), strategy="full", repeats=0), (90, 30, 900)).run()
    assert [trial.step for trial in made.state.trials] == [90, 30, 900]
    made = simulator(plan(Work(130, "steps"), strategy="full", repeats=0), (90, 30, 900)).run()
    assert [trial.step for trial in made.state.trials] == [90, 30]


def test_epochs_that_a_trial_sets_itself_are_its_own() -> None:
    budget = Work(100, "epochs", 10)
    assert budget.price(Start(1, "all", {"epochs": 5}, 10, 50)) == 0.1
    assert budget.price(Start(1, "all", {}, 10, 50)) == 0.2


def test_a_larger_budget_goes_on() -> None:
    first = simulator(plan(Work(1000), workers=2)).run().repeat()
    more = simulator(plan(Work(2000), workers=2), events=first.events).run().repeat()
    assert 800 < steps_of(first) <= 1000
    assert 1700 < steps_of(more) <= 2000
    assert len(more.state.search) > len(first.state.search)


def test_what_was_cut_off_goes_on_if_it_fits() -> None:
    made = simulator(plan(Work(400), workers=1, strategy="full", repeats=0)).run(decisions=2)
    made.record("recovered", number=1, reason="killed", step=20)
    made.running.clear()
    assert next_job(made.state, made.plan, made.propose, 0.0) == Continue(1, TOTAL)
    small = plan(Work(150), workers=1, strategy="full", repeats=0)
    assert next_job(made.state, small, made.propose, 0.0) is None  # 110 are spent, and 70 are missing


@pytest.mark.parametrize(("steps", "until"), [(20, 20), (19, 2), (1, None)])
def test_what_is_to_train_to_its_end_begins_with_its_lowest_rung_where_only_that_fits(
    steps: int, until: int | None
) -> None:
    asked = Plan({"all": ["x"]}, strategy="auto", budget=Work(steps), baseline=False, repeats=0)
    state = State(Path("nowhere"), {"task": {"metric": "value", "direction": "max"}})
    job = next_job(state, asked, lambda *_: Proposal({"x": 1}, 20, "likely", whole=True), 0.0)
    assert (None if job is None else job.until_step) == until


def test_a_budget_too_small_begins_nothing() -> None:
    assert simulator(plan(Work(89))).run().decisions == []
    assert len(simulator(plan(Work(90))).run().decisions) == 1


def test_the_repeats_get_what_is_reserved_and_only_whole_pairs_begin() -> None:
    made = simulator(plan(Work(1200), trials=4, repeats=3)).run()
    assert reserve(made.state, made.plan) == 6 * TOTAL
    small = plan(Work(steps_of(made) + 3 * TOTAL), trials=4, repeats=3)
    made.plan = small
    made.repeat()
    assert [(trial.of, trial.seed) for trial in made.state.trials if trial.kind == "repeat"] == [(0, 1), (3, 1)]
    assert reserve(made.state, small) == 4 * TOTAL
    made.record("recovered", number=len(made.state.trials) - 1, reason="", step=10)
    assert next_repeat(made.state, plan(Work(1200), trials=4)) is not None


def test_trainings_of_unknown_length_pause_when_the_budget_is_spent() -> None:
    budget = Work(100)
    made = simulator(plan(budget, workers=2, baseline=False))
    for number in (0, 1):
        values = {"number": number, "kind": "search", "arm": "all", "values": {}, "seed": 0, "of": None}
        made.record("proposed", total_steps=1, until=1 << 31, **values)
        made.record("assigned", number=number, until=1 << 31)
        made.record("row", number=number, row={"kind": "epoch", "step": 49 + number, "time_s": 1.0, "val_value": 0.5})
    assert budget_left(made.state, made.plan, 0.0) == 1
    assert not budget_over(made.state, made.plan, 0.0)
    made.record("row", number=0, row={"kind": "epoch", "step": 51, "time_s": 1.0, "val_value": 0.5})
    assert budget_over(made.state, made.plan, 0.0)
    assert not budget_over(made.state, plan(budget, virtual=4), 0.0)


def test_words() -> None:
    made = simulator(plan(Work(20_000))).run(decisions=1)
    assert made.plan.budget is not None
    assert made.plan.budget.spent(made.state) == "90 of 20,000 steps"
    assert [str(budget) for budget in (Time(90.0), Work(0.5, "epochs"))] == ["90 s", "0.5 epochs"]
    assert Time(90.0).spent(made.state) == ""


@pytest.mark.parametrize(("text", "expected"), [("5min", 300), ("90s", 90), (2.5, 2.5), ("1 h", 3600), (".5m", 30)])
def test_times_are_read(text: Any, expected: float) -> None:
    assert seconds(text) == expected
    assert read_budget(text) == (expected, "s")


@pytest.mark.parametrize(("text", "expected"), [("20_000 Steps", 20_000), ("1step", 1), ("7.5 steps", 7.5)])
def test_steps_are_read(text: str, expected: float) -> None:
    assert read_budget(text) == (expected, "steps")


@pytest.mark.parametrize("text", ["0 steps", "5 parsecs", "-3 epochs", "steps", "", True, "1 2 s", "nan", "inf epochs"])
def test_what_is_no_budget_is_refused(text: Any) -> None:
    with pytest.raises(LuthierError, match=r"a budget is a time above zero .*, steps .* or epochs"):
        read_budget(text)


@pytest.mark.parametrize("text", ["3 epochs", "0s", None])
def test_what_is_no_time_is_refused(text: Any) -> None:
    with pytest.raises(LuthierError, match="expected a time above zero"):
        seconds(text)


def climb(trial: Any) -> None:
    for step in range((trial.restore() or 0) + 1, 11):
        trial.save(step)
        trial.report(trial.params["x"] * step, step=step)


def endless(trial: Any) -> None:
    trial.restore()
    for step in range(1, 1_000_000):
        trial.report(step, step=step)


def test_a_deterministic_study_follows_a_budget_of_steps_exactly(tmp_path: Path) -> None:
    def call(folder: str, budget: str, workers: int) -> list[Any]:
        space = {"x": uniform(0, 1)}
        study = tune(
            climb, space=space, steps=10, budget=budget, workers=workers, folder=tmp_path / folder, deterministic=True
        )
        assert study.settings["budget"] == budget
        assert study.ended == "budget"
        return [(trial.values, trial.step, trial.state, trial.reason) for trial in study.trials]

    one, two = [(call(f"{n}", "60 steps", n), call(f"{n}", "150 steps", n)) for n in (1, 2)]
    assert one == two
    assert [50 <= sum(step for _, step, *_ in one[0]) <= 60, 130 <= sum(step for _, step, *_ in one[1]) <= 150] == [
        True
    ] * 2
    assert [values for values, *_ in one[1]][: len(one[0])] == [values for values, *_ in one[0]]


def test_a_function_of_unknown_length_is_paused_soon_after_the_budget(tmp_path: Path) -> None:
    with pytest.raises(LuthierError, match="budget of 50 steps was too small for one whole training"):
        tune(endless, space={"x": uniform(0, 1)}, budget="50 steps", workers=1, folder=tmp_path)


def test_epochs_of_a_function_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LuthierError, match="give the budget as time or steps, such as '300 steps'"):
        tune(climb, space={"x": uniform(0, 1)}, budget="300 epochs", folder=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_epochs_of_a_task_are_counted_over_search_and_repeats(tmp_path: Path) -> None:
    x = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
    data = (x, x[:, :3].argmax(1))
    task, recipe = Task(lambda: nn.Linear(4, 3), data, val=data, name="tiny"), Recipe(epochs=3, batch_size=32)
    space: Any = {"lr": loguniform(1e-3, 1.0), "batch_size": choice(16, 32, 48)}
    study = tune(task, recipe, space, budget="30 epochs", workers=1, folder=tmp_path, repeats=1)
    epochs = [3 * trial.step / trial.total_steps for trial in study.trials]
    assert {trial.total_steps for trial in study.trials} > {9}
    assert 24 <= sum(epochs) <= 30 + 1e-9
    assert [trial.kind for trial in study.trials].count("repeat") == 2
    assert study.comparison is not None


def unpausable(trial: Any) -> None:
    for step in range(1, 11):
        trial.report(trial.params["x"] * step, step=step)


def test_a_function_that_cannot_pause_keeps_its_budget(tmp_path: Path) -> None:
    study = tune(unpausable, space={"x": uniform(0, 1)}, steps=10, budget="33 steps", workers=2, folder=tmp_path)
    assert 25 <= sum(trial.step for trial in study.trials) <= 33
    assert all(trial.ended for trial in study.trials)


def test_what_had_earned_more_when_the_budget_ended_is_not_called_outranked() -> None:
    made = simulator(plan(Work(1000), strategy="halving")).run(decisions=4)
    made._end_first()
    told = {stop.number: (stop.reason, stop.may_return) for stop in outranked(made.state, made.plan)}
    assert told[3] == ("out of budget: place 1 of 3 after 11% of its steps", True)
    assert told[2] == ("outranked: place 2 of 3 after 11% of its steps", True)
