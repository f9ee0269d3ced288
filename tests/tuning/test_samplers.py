from pathlib import Path
from typing import Any

import pytest

from luthier.errors import LuthierError
from luthier.recipe import Recipe
from luthier.tuning.optuna_view import Seen, View, for_gp, for_tpe, to_distribution
from luthier.tuning.samplers import SAMPLERS, arm_seen, n_configurations, propose, sampler_named
from luthier.tuning.space import Range, choice, integers, loguniform, uniform
from luthier.tuning.state import Event, State, fold

SPACE: dict[str, Range] = {
    "lr": loguniform(1e-4, 1.0),
    "batch_size": choice(16, 32, 64),
    "dropout": uniform(0.0, 0.5),
    "model.width": integers(16, 256, log=True),
    "accumulate": integers(1, 6, step=2),
    "augment": choice((), ("flip", "crop")),
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


def ask(name: str, state: State, space: Any = SPACE, number: int | None = None) -> Any:
    return propose(name, state, space, list(space), BASELINE, "all", len(state.trials) if number is None else number)


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
        assert ask(name, state) == ask(name, state)
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


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_model_based_samplers_find_the_better_region(name: str) -> None:
    space = {"dropout": uniform(0.0, 0.5)}
    trials: list[Any] = [({}, "finished", 0.9 - abs(0.1 - 0.4))]
    for _ in range(18):
        values = ask(name, study(*trials), space)
        trials.append((values, "finished", 0.9 - abs(values["dropout"] - 0.4)))
    late = [values["dropout"] for values, _, _ in trials[-6:]]
    assert sum(abs(value - 0.4) < 0.1 for value in late) >= 4


def test_the_grid_covers_every_combination_once() -> None:
    space = {"lr": loguniform(1e-4, 1.0), "batch_size": choice(16, 32)}
    trials: list[Any] = [({}, "finished", 0.5)]
    while (values := ask("grid", study(*trials), space)) is not None:
        trials.append((values, "finished", 0.5))
    points = {(f"{values['lr']:.3g}", values["batch_size"]) for values, _, _ in trials[1:]}
    levels = ["0.0001", "0.001", "0.01", "0.1", "1"]
    assert points == {(lr, size) for lr in levels for size in (16, 32)} - {("0.01", 32)}  # the baseline's own


def test_configurations_are_counted() -> None:
    assert n_configurations({"a": choice(1, 2, 3), "b": integers(0, 4)}) == 15
    assert n_configurations({"a": uniform(0, 1, step=0.25)}) == 5
    assert n_configurations({"a": uniform(0, 1)}) is None
    assert n_configurations({"a": uniform(0, 1), "b": integers(1, 100)}, as_grid=True) == 25


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
    momentum = {"optimizer.momentum": uniform(0, 0.9)}  # the baseline's optimizer has none
    assert arm_seen(study(trials[0]), momentum, BASELINE, "all") == ()


def test_what_tpe_and_gp_are_told() -> None:
    space = {"dropout": uniform(0, 0.5)}

    def seen(state: str, value: float | None, share: float = 1.0) -> Seen:
        return Seen({"dropout": 0.1}, state, value, share)

    view = View(space, (seen("finished", 0.9), seen("paused", 0.4, 1 / 3)), "max", 0)
    states = [for_tpe(each, view).state.name for each in (*view.seen, seen("running", 0.3), seen("failed", 0.8))]
    assert states == ["COMPLETE", "PRUNED", "RUNNING", "PRUNED"]
    assert for_tpe(view.seen[1], view).intermediate_values == {333: 0.4}
    assert for_tpe(seen("failed", 0.8), view).intermediate_values == {}
    values = [for_gp(each, view) for each in (*view.seen, seen("running", 0.3), seen("failed", None))]
    assert [trial.value for trial in values if trial is not None] == [0.9, 0.4, 0.4, 0.4]
    assert for_gp(seen("failed", None), View(space, (), "max", 0)) is None


def test_ranges_become_distributions() -> None:
    assert str(to_distribution(integers(1, 6, step=2))) == "IntDistribution(high=5, log=False, low=1, step=2)"
    assert to_distribution(loguniform(1e-3, 1)).log
    assert to_distribution(choice((), ("flip",))).choices == ("[]", '["flip"]')


def test_unknown_samplers_are_refused() -> None:
    with pytest.raises(LuthierError, match="did you mean 'tpe'"):
        sampler_named("tpee")
