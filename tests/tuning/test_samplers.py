from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.errors import LuthierError
from luthier.files import from_json, to_json, to_stored
from luthier.recipe import Recipe
from luthier.tuning.folding import fold
from luthier.tuning.function_search import Values
from luthier.tuning.ranges import Range
from luthier.tuning.samplers import SAMPLERS, arm_seen, as_sampler, fitting, propose, sampler_label
from luthier.tuning.space import choice, fixed, integers, loguniform, uniform
from luthier.tuning.state import Event, State
from luthier.tuning.views import View

SPACE: dict[str, Range] = {
    "lr": loguniform(1e-4, 1.0),
    "batch_size": choice(16, 32, 64),
    "dropout": uniform(0.0, 0.5),
    "model.width": integers(16, 256, log=True),
    "accumulate": integers(1, 6, step=2),
    "augment": choice((), ("flip", "crop")),
}
CONDITIONAL: dict[str, Range] = {
    "optimizer.momentum": uniform(0.0, 0.99).when("optimizer", "sgd", "rmsprop"),
    "optimizer": choice("sgd", "adamw", "rmsprop"),
    "lr": loguniform(1e-4, 1.0),
    "weight_decay": fixed(1e-4).when("optimizer", "adamw"),
}
BASELINE = Recipe(lr=0.01, batch_size=32, dropout=0.1, model={"width": 64})


def study(*trials: Any, arm: str = "all") -> State:
    """A state with trials of (values, state, value); the first is the baseline."""
    events = [("created", {"task": {"metric": "accuracy", "direction": "max"}, "seed": 3})]
    for number, (values, state, value) in enumerate(trials):
        payload = {"number": number, "kind": "search", "arm": "baseline" if number == 0 else arm, "values": values}
        events.append(("proposed", {**payload, "seed": 0, "of": None, "total_steps": 90, "until": 90}))
        if value is not None:
            row = {"kind": "epoch", "step": 30, "time_s": 1.0, "val_accuracy": value}
            events.append(("row", {"number": number, "row": row}))
        if state != "waiting":
            kind = {"running": "assigned"}.get(state, state)
            events.append((kind, {"number": number, "until": 90, "reason": ""}))
    return fold([Event(index, 0.0, kind, payload) for index, (kind, payload) in enumerate(events)], Path("study"))


def some_trials(n: int) -> list[Any]:
    trials: list[Any] = [({}, "finished", 0.5)]
    for index in range(n):
        state = ["finished", "paused", "stopped", "running", "failed"][index % 5]
        values = dict(
            zip(SPACE, [0.001 * (index + 1), 16, index / 40, 20 + index, 3, ()], strict=True)  # distinct
        )
        trials.append((values, state, None if state == "running" else 0.5 + index / 100))
    return trials


def ask(name: Any, state: State, space: Any = SPACE, number: int | None = None, constraints: Any = ()) -> Any:
    number = len(state.trials) if number is None else number
    return propose(name, state, space, list(space), BASELINE, "all", number, constraints)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("n", [0, 12])
class TestEverySampler:
    def test_values_lie_in_the_space_and_make_a_recipe(self, name: str, n: int) -> None:
        values = ask(name, study(*some_trials(n)))
        assert list(values) == list(SPACE)
        assert all(range_.contains(values[path]) for path, range_ in SPACE.items())
        assert BASELINE.replace(values).lr == values["lr"]

    def test_the_answer_follows_from_ledger_seed_and_number(self, name: str, n: int) -> None:
        state = study(*some_trials(n))
        restarted = study(*from_json(to_json([(to_stored(values), *rest) for values, *rest in some_trials(n)])))
        assert ask(name, state) == ask(name, state) == ask(name, restarted)
        if name not in ("sobol", "halton"):  # their next point follows from how many the arm had
            assert ask(name, state) != ask(name, state, number=99)

    def test_no_configuration_comes_twice_and_a_small_space_is_exhausted(self, name: str, n: int) -> None:
        small = {"batch_size": choice(16, 32), "accumulate": integers(1, 3)}
        trials: list[Any] = [({}, "finished", 0.5)]
        for _ in range(5):
            values = ask(name, study(*trials), small)
            assert values not in [seen for seen, _, _ in trials]
            assert values != {"batch_size": 32, "accumulate": 1}  # the baseline's own
            trials.append((values, "finished", 0.5))
        assert ask(name, study(*trials), small) is None

    def test_fields_whose_conditions_do_not_hold_are_absent(self, name: str, n: int) -> None:
        trials: list[Any] = [({}, "finished", 0.5)]
        for index in range(n):
            values = ask("random", study(*trials), CONDITIONAL)
            trials.append((values, "finished", index / 20))
        kinds = set()
        for number in range(50, 62):
            values = ask(name, study(*trials), CONDITIONAL, number)
            assert ("optimizer.momentum" in values) == (values["optimizer"] != "adamw")
            assert values.get("weight_decay") == (1e-4 if values["optimizer"] == "adamw" else None)
            assert BASELINE.replace(values).optimizer.name == values["optimizer"]
            kinds.add(values["optimizer"])
        assert len(kinds) > 1 or name in ("sobol", "halton", "gp")  # their answer hardly depends on the number

    def test_constraints_hold_for_every_answer(self, name: str, n: int) -> None:
        def small(values: dict[str, Any]) -> float:
            return float(values["model.width"] * values["batch_size"] - 4000)

        state = study(*some_trials(n))
        for number in (91, 92, 93):
            values = ask(name, state, number=number, constraints=[small, lambda values: values["dropout"] < 0.4])
            assert small(values) <= 0
            assert values["dropout"] < 0.4


@pytest.mark.parametrize("name", ["tpe", "gp", "prior"])
def test_model_based_samplers_find_the_better_region(name: str) -> None:
    space = {"dropout": uniform(0.0, 0.5)}
    trials: list[Any] = [({}, "finished", 0.9 - abs(0.1 - 0.4))]
    for _ in range(18):
        values = ask(name, study(*trials), space)
        trials.append((values, "finished", 0.9 - abs(values["dropout"] - 0.4)))
    late = [values["dropout"] for values, _, _ in trials[-6:]]
    assert sum(abs(value - 0.4) < 0.1 for value in late) >= 4


@pytest.mark.parametrize("name", SAMPLERS)
def test_ranges_of_very_many_steps_are_searched_like_others(name: str) -> None:
    space = {"a": integers(0, 10**12, step=10), "b": uniform(0.0, 1.0, step=1e-9), "c": integers(1, 10**12, log=True)}
    trials: list[Any] = [({}, "finished", 0.5)]
    for _ in range(10):
        values = ask(name, study(*trials), space)
        assert all(range_.contains(values[path]) for path, range_ in space.items())
        assert {path: type(value) for path, value in values.items()} == {"a": int, "b": float, "c": int}
        trials.append((values, "finished", 0.9 - abs(values["a"] / 10**12 - 0.7)))
    values = [values["a"] for values, _, _ in trials[1:]]
    assert name == "grid" or len(set(values)) == 10
    if name == "gp":
        assert min(abs(value / 10**12 - 0.7) for value in values[-2:]) < 0.1


def test_the_grid_covers_every_combination_once() -> None:
    space = {"lr": loguniform(1e-4, 1.0), "batch_size": choice(16, 32)}
    trials: list[Any] = [({}, "finished", 0.5)]
    while (values := ask("grid", study(*trials), space)) is not None:
        trials.append((values, "finished", 0.5))
    points = {(f"{values['lr']:.3g}", values["batch_size"]) for values, _, _ in trials[1:]}
    levels = ["0.0001", "0.001", "0.01", "0.1", "1"]
    assert points == {(lr, size) for lr in levels for size in (16, 32)} - {("0.01", 32)}  # the baseline's own


def test_an_arm_sees_its_own_trials_and_the_baseline_where_it_lies_inside() -> None:
    trials = [({}, "finished", 0.5), ({"dropout": 0.3}, "finished", 0.6)]
    ranges = {"dropout": uniform(0, 0.5)}
    assert [seen.values for seen in arm_seen(study(*trials), ranges, BASELINE, "all")] == [
        {"dropout": 0.1},
        {"dropout": 0.3},
    ]
    assert [seen.values for seen in arm_seen(study(*trials), ranges, BASELINE, "other")] == [{"dropout": 0.1}]
    outside = BASELINE.replace({"dropout": 0.9})
    assert [seen.values for seen in arm_seen(study(*trials), ranges, outside, "other")] == []
    state = study(({}, "finished", 0.5), *[({"dropout": value}, "finished", 0.6) for value in (0.2, 0.9)])
    state.trials[1:] = [replace(trial, source="the doctor") for trial in state.trials[1:]]
    assert [seen.values for seen in arm_seen(state, ranges, BASELINE, "all")] == [{"dropout": 0.1}, {"dropout": 0.2}]
    momentum = {"optimizer.momentum": uniform(0, 0.9)}  # the baseline's optimizer has none
    assert arm_seen(study(trials[0]), momentum, BASELINE, "all") == ()


def test_sequences_go_on_where_they_were_after_a_restart() -> None:
    space = {"lr": loguniform(1e-4, 1.0), "dropout": uniform(0.0, 0.5)}
    for name in ("sobol", "halton"):
        trials: list[Any] = []
        for _ in range(32):
            trials.append((ask(name, study(*trials), space), "finished", 0.5))
        quarters = [sum(low <= values["dropout"] < low + 0.125 for values, _, _ in trials) for low in (0, 0.125, 0.25)]
        assert all(7 <= quarter <= 9 for quarter in quarters)  # evener than chance: 8 in each
        assert len({values["lr"] for values, _, _ in trials}) == 32


def test_the_prior_mixture_begins_around_the_baseline_and_leaves_it() -> None:
    space = {"dropout": uniform(0.0, 0.9)}

    def near(trials: list[Any]) -> int:
        answers = [ask("prior", study(*trials), space, number)["dropout"] for number in range(100, 140)]
        return sum(abs(answer - 0.1) < 0.25 for answer in answers)

    late = [({}, "finished", 0.1)] + [({"dropout": 0.6 + index / 999}, "finished", 0.5 + index) for index in range(120)]
    assert near([({}, "finished", 0.5)]) > 30
    assert near(late) < 12


class TestConstraints:
    def test_when_nothing_passes_it_is_said(self) -> None:
        with pytest.raises(LuthierError, match="refuse all of 1008 draws"):
            ask("random", study(), constraints=[lambda _: False])
        with pytest.raises(LuthierError, match="refuse all of the first 3 configurations"):
            ask("random", study(), {"batch_size": choice(16, 32, 64)}, constraints=[lambda _: 1.0])

    def test_the_last_configurations_that_pass_are_found(self) -> None:
        space = {"batch_size": choice(*range(1, 300))}
        one = [lambda values: values["batch_size"] == 7]
        assert ask("tpe", study(), space, constraints=one) == {"batch_size": 7}
        assert (
            ask("tpe", study(({}, "failed", None), ({"batch_size": 7}, "finished", 0.5)), space, constraints=one)
            is None
        )

    def test_an_arm_is_checked_with_the_baseline_s_other_values(self) -> None:
        fits = [lambda values: values["batch_size"] == 32]
        assert propose("random", study(), SPACE, ["lr"], BASELINE, "all", 0, fits) is not None

    @pytest.mark.parametrize(
        ("constraint", "message"),
        [
            (lambda _: "yes", "gave 'yes'"),
            (lambda values: values["lrr"], "raised KeyError"),
            (lambda _: None, "gave None"),
        ],
    )
    def test_answers_that_are_none_are_refused(self, constraint: Any, message: str) -> None:
        with pytest.raises(LuthierError, match=message):
            ask("random", study(), constraints=[constraint])

    def test_nan_does_not_pass(self) -> None:
        with pytest.raises(LuthierError, match="refuse all"):
            ask("random", study(), constraints=[lambda _: float("nan")])


class TestOwnSamplers:
    def test_a_function_of_the_view(self) -> None:
        def middle(view: View) -> dict[str, Any]:
            return {path: range_.at(0.5) for path, range_ in view.space.items()}

        assert ask(middle, study())["dropout"] == 0.25
        assert sampler_label(middle).endswith("middle")

    @pytest.mark.parametrize(
        ("answer", "message"),
        [({"lr": 0.1}, "wrong or missing"), ({"lr": 9.0, "dropout": 0.1}, "outside of"), (None, "values by path")],
    )
    def test_a_wrong_answer_is_refused(self, answer: Any, message: str) -> None:
        space = {"lr": loguniform(1e-4, 1.0), "dropout": uniform(0.0, 0.5)}
        with pytest.raises(LuthierError, match=message):
            ask(lambda view: answer, study(), space)

    def test_none_of_these(self) -> None:
        with pytest.raises(LuthierError, match="did you mean 'tpe'"):
            as_sampler("tpee")
        wrong: Any = 3
        with pytest.raises(LuthierError, match="must be a name"):
            as_sampler(wrong)


@pytest.mark.parametrize("name", ["random", "tpe", "gp", "nsgaii", "cmaes", "sobol", "prior"])
def test_steps_stay_on_their_grid_and_bring_in_what_depends_on_them(name: str) -> None:
    space: Any = {"a": uniform(-0.3, 0.3, step=0.1), "b": uniform(0, 1).when("a", 0.0, 0.3, -0.1)}
    grid = {-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3}
    trials: list[Any] = [({}, "finished", 0.5)]
    for number in range(1, 25):
        values = ask(name, study(*trials), space, number)
        assert values["a"] in grid
        assert ("b" in values) == (values["a"] in (0.0, 0.3, -0.1))
        trials.append((values, "finished", 0.5))
    assert {"b" in values for values, _, _ in trials[1:]} == {True, False}


@pytest.mark.parametrize("name", ["prior", "tpe"])
def test_none_may_be_an_option_and_a_known_good_one(name: str) -> None:
    space: Any = {"lr": loguniform(1e-4, 1), "norm": choice(None, "batch"), "clip_norm": choice(0.5, 1.0)}
    found = [ask(name, study(({}, "finished", 0.5)), space, number)["norm"] for number in range(1, 30)]
    assert set(found) == {None, "batch"}


def test_large_ranges_with_conditions_are_not_written_out() -> None:
    space: Any = {"by": choice("sgd", "adam"), "buffer": integers(1, 10**12).when("by", "sgd")}
    state = study(
        ({}, "finished", 0.5), ({"by": "adam"}, "finished", 0.5), ({"by": "sgd", "buffer": 1}, "finished", 0.5)
    )
    assert ask("random", state, space)["by"] == "sgd"
    few: Any = {"by": choice("sgd", "adam"), "n": integers(1, 10**12)}
    assert ask("random", study(({}, "finished", 0.5)), few, constraints=[lambda values: values["n"] == 3])["n"] == 3


def test_a_whole_number_in_a_real_range_is_the_same_as_the_real_one() -> None:
    space: Any = {"lr": uniform(0, 1, step=0.5)}
    taken = [({"lr": value}, "finished", 0.5) for value in (0.0, 0.5)]
    state = study(({}, "finished", 0.5), *taken)
    assert propose("random", state, space, ["lr"], Values({"lr": 1}), "all", 3) is None


def test_no_configuration_with_lists_is_tried_twice() -> None:
    space: Any = {"l": choice([64, 64], [32], [8, 8]), "n": integers(1, 3), "b": choice(True, False)}
    start = Values({"l": [64, 64], "n": 2, "b": 1})
    for name in ("prior", lambda view: {"l": [64, 64], "n": 2.0, "b": 1}):
        trials: list[Any] = [({}, "finished", 0.5)]
        for number in range(1, 13):
            values = propose(name, study(*trials), space, list(space), start, "all", number)
            assert values is not None
            assert [type(each) for each in values.values()] == [list, int, bool]
            trials.append((values, "finished", 0.5))
        assert len({repr(values) for values, _, _ in trials}) == len(trials)


@pytest.mark.parametrize("name", ["random", "tpe"])
def test_all_configurations_are_tried_where_a_child_stands_before_its_parent(name: str) -> None:
    space: Any = {"x": integers(0, 5).when("p", 0, 1, 2), "p": integers(0, 5), "q": integers(0, 5).when("p", 3, 4, 5)}
    trials: list[Any] = [({}, "finished", 0.5)]
    while (values := ask(name, study(*trials), space)) is not None:
        trials.append((values, "finished", 0.5))
    assert len(trials) == 1 + 36


def test_a_samplers_numbers_may_be_numpys() -> None:
    def own(view: View) -> dict[str, Any]:
        return {"n": np.int64(7), "x": np.float32(0.5)}

    values = ask(own, study(({}, "finished", 0.5)), {"n": integers(1, 8), "x": uniform(0, 1)})
    assert to_json(values) == to_json({"n": 7, "x": 0.5})


def test_a_constraint_sees_the_fields_that_are_present() -> None:
    """Those of other arms too, where the baseline has them: none is None because it is absent."""
    asked: list[dict[str, Any]] = []
    constraint: Any = lambda values: asked.append(values) is None  # noqa: E731
    fits = fitting([constraint], ["optimizer.momentum", "clip_norm", "lr"], Recipe(optimizer="adamw", lr=0.1))
    assert fits({"dropout": 0.2})
    assert asked == [{"clip_norm": None, "lr": 0.1, "dropout": 0.2}]


def test_trials_that_ended_early_rank_with_those_that_trained_to_their_end() -> None:
    state = study(({}, "finished", 0.5), ({"lr": 0.01}, "finished", 0.9), ({"lr": 0.1}, "paused", 0.6))
    early = replace(state.trials[1], step=45)
    state.trials[1] = early
    state.trials[2] = replace(state.trials[2], step=80)
    seen = arm_seen(state, {"lr": SPACE["lr"]}, BASELINE, "all")
    assert [each.share for each in seen] == [1.0, 1.0, 80 / 90]
