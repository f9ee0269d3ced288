"""A call with larger totals takes up what the last call's end had outranked."""

from pathlib import Path
from typing import Any

import optuna
import pytest

from luthier.tuning.budgets import Work
from luthier.tuning.jobs import BASELINE, Plan, Proposal
from luthier.tuning.optuna_store import NUMBER, url
from luthier.tuning.scheduler import outranked
from luthier.tuning.simulate import Curve, Simulator
from luthier.tuning.space import uniform
from luthier.tuning.tidying import Checkpoints
from luthier.tuning.tune import tune

TOTAL = 90


def plan(**changes: Any) -> Plan:
    return Plan(**{"arms": {"all": ["lr"]}, "trials": 4, **changes})


def simulated(wish: Plan, events: Any = ()) -> Simulator:
    """A call of a study on recorded curves: the earlier a trial the better it is."""

    def propose(state: Any, number: int, arm: str) -> Proposal:
        return Proposal({} if arm == BASELINE else {"lr": number / 1000}, TOTAL)

    def curve(number: int, values: Any) -> Curve:
        return Curve([0.9 - 0.01 * number + 0.0001 * step for step in range(TOTAL)], 0.1)

    made = Simulator(wish, propose, curve, events=events)
    made.record("opened", trials=wish.trials, budget=str(wish.budget), strategy=wish.strategy)
    made.run()
    for stop in outranked(made.state, wish):
        made.record("stopped", number=stop.number, reason=stop.reason, may_return=True)
    return made


def steps_of(made: Simulator) -> dict[int, int]:
    return {trial.number: trial.step for trial in made.state.search}


def test_more_trials_promote_earlier_ones() -> None:
    first = simulated(plan())
    assert steps_of(first) == {0: 90, 1: 90, 2: 10, 3: 10}
    assert {trial.state for trial in first.state.search} == {"finished", "stopped"}
    second = simulated(plan(trials=10), first.events)
    assert [job.number for job in second.decisions if job.number < 4] == [2, 3]
    assert steps_of(second) == {0: 90, 1: 90, 2: 30, 3: 30, **dict.fromkeys(range(4, 10), 10)}
    assert second.state.trials[4].reason == "outranked: place 4 of 9 after 11% of its steps"
    assert steps_of(second) == steps_of(simulated(plan(trials=10)))  # as if all had been asked for at once


def test_a_larger_budget_goes_on_with_what_had_earned_more() -> None:
    first = simulated(plan(trials=10, budget=Work(200), repeats=0))
    second = simulated(plan(trials=10, budget=Work(10_000), repeats=0), first.events)
    assert steps_of(second) == steps_of(simulated(plan(trials=10)))


def test_the_same_call_again_takes_up_nothing() -> None:
    first = simulated(plan())
    again = simulated(plan(), first.events)
    assert [event.kind for event in again.events[len(first.events) :]] == ["opened"]
    assert again.state.trials == first.state.trials


def test_a_trial_that_could_not_pause_has_ended_for_good() -> None:
    made = simulated(plan())
    made.record("proposed", number=4, kind="search", arm="all", values={}, seed=0, of=None, total_steps=9, until=3)
    made.record("stopped", number=4, reason="it had to end there")
    made.record("opened", trials=99)
    states = [trial.state for trial in made.state.trials]
    assert states == ["finished", "finished", "paused", "paused", "stopped"]
    assert made.state.trials[2].reason == "so far outranked: place 2 of 3 after 11% of its steps"
    assert made.state.trials[2].ended_s is None


def test_checkpoints_of_the_next_in_line_are_kept(tmp_path: Path) -> None:
    made = simulated(plan(trials=12))
    made.state.folder = tmp_path
    for number, trial in enumerate(made.state.trials):
        folder = tmp_path / f"{number}"
        (folder / "checkpoints").mkdir(parents=True)
        made.state.trials[number] = type(trial)(**{**vars(trial), "folder": folder})
    stopped = [trial for trial in made.state.search if trial.state == "stopped"]
    line = sorted(stopped, key=lambda trial: (-trial.step, trial.number))[:3]
    finished = {trial.number for trial in made.state.search if trial.state == "finished"}
    Checkpoints().tidy(made.state)
    kept = {trial.number for trial in made.state.trials if (trial.folder / "checkpoints").exists()}
    assert kept == finished | {trial.number for trial in line}


def climb(trial: Any) -> None:
    """The smaller x the better; notes where it begins."""
    done = trial.restore() or 0
    with (trial.folder / "begun").open("a") as file:
        file.write(f"{done} ")
    for step in range(done + 1, 10):
        trial.save(step)
        trial.report(step / 10 - trial.params["x"], step=step)


@pytest.mark.parametrize("sampler", ["random", "tpe", "sobol"])
def test_a_study_draws_the_same_when_its_ranges_come_in_another_order(tmp_path: Path, sampler: str) -> None:
    def call(name: str, trials: int, ranges: str) -> Any:
        space = {path: uniform(0, 1) for path in ranges}
        more: Any = {"trials": trials, "workers": 1, "deterministic": True, "sampler": sampler, "strategy": "full"}
        return tune(lambda trial: trial.params["b"] - trial.params["a"], space=space, folder=tmp_path / name, **more)

    call("again", 3, "abc")
    assert [trial.params for trial in call("again", 8, "cab").trials] == [
        trial.params for trial in call("whole", 8, "abc").trials
    ]


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_study_goes_on_in_the_folder_and_in_optuna(tmp_path: Path, deterministic: bool) -> None:
    def call(trials: int) -> Any:
        return tune(
            climb,
            space={"x": uniform(0, 1)},
            steps=9,
            trials=trials,
            workers=1,
            sampler=lambda view: {"x": 0.01 * len(view.seen)},
            strategy="halving",
            folder=tmp_path,
            deterministic=deterministic,
        )

    first, second = call(9), call(30)
    went_on = [old for old in first.trials if second.trials[old.number].step > old.step]
    assert went_on
    assert {trial.state for trial in second.trials} == {"finished", "stopped"}
    begun = [[int(each) for each in (old.folder / "begun").read_text().split()] for old in went_on]
    assert all(each in (0, 1, 3) for steps in begun for each in steps)  # at a rung, or anew without a checkpoint
    assert {steps.count(0) for steps in begun} == {1, 2}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    loaded = optuna.load_study(study_name="climb", storage=url(tmp_path))
    stored = {trial.user_attrs[NUMBER]: trial for trial in loaded.trials}
    assert len(loaded.trials) == len(second.trials) == 30
    assert [trial.number for trial in loaded.trials] == list(range(30))
    for trial in second.trials:
        assert stored[trial.number].user_attrs["reason"] == trial.reason
        assert list(stored[trial.number].intermediate_values) == [row["step"] for row in trial.rows]
        assert stored[trial.number].state.name == {"finished": "COMPLETE", "stopped": "PRUNED"}[trial.state]
