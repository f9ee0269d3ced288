import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import LuthierError
from luthier.files import to_json
from luthier.recipe import Recipe
from luthier.tuning.derived import derive_space
from luthier.tuning.space import (
    Choice,
    Integers,
    Uniform,
    check_space,
    choice,
    integers,
    loguniform,
    parse_range,
    space_from_json,
    space_to_json,
    uniform,
)

TEXT: Any = "a"
BROKEN: Any = 2.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.0001..0.1 log", Uniform(0.0001, 0.1, log=True)),
        ("0..1 step 0.25", Uniform(0, 1, step=0.25)),
        ("1..8", Integers(1, 8)),
        ("-3..8", Integers(-3, 8)),
        ("16..512 log", Integers(16, 512, log=True)),
        ("2..8 step 2", Integers(2, 8, step=2)),
        ("16,32,64", Choice((16, 32, 64))),
        ("relu, none,true", Choice(("relu", None, True))),
        ("1e-3..1", Uniform(1e-3, 1)),
    ],
)
def test_parse_reads_every_form(text: Any, expected: Any) -> None:
    assert parse_range(text) == expected


@pytest.mark.parametrize("text", ["", "1..", "..2", "1,,2", "1..x", "0.1..nan", "1..8 log log"])
def test_parse_refuses_other_texts_with_the_forms(text: Any) -> None:
    with pytest.raises(LuthierError, match="such as"):
        parse_range(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform(1, 0), "lower to a higher bound"),
        (lambda: uniform(1, 1), "lower to a higher bound"),
        (lambda: integers(8, 1), "lower to a higher bound"),
        (lambda: loguniform(0, 1), "above zero"),
        (lambda: loguniform(-1, 1), "above zero"),
        (lambda: integers(0, 8, log=True), "above zero"),
        (lambda: uniform(float("nan"), 1), "finite"),
        (lambda: uniform(0, float("inf")), "finite"),
        (lambda: uniform(0, TEXT), "finite number"),
        (lambda: uniform(0, 1, step=2), "step"),
        (lambda: integers(1, BROKEN), "whole number"),
        (lambda: integers(1, 8, step=0), "step"),
        (lambda: choice(), "at least one"),
        (lambda: choice(1, 2, 1), "differ"),
        (lambda: choice(float("nan")), "finite"),
        (lambda: choice(object()), "option must be"),
        (lambda: choice("mean", "NaN"), "cannot be the text 'NaN'"),
        (lambda: choice(np.zeros(2)), "option must be"),
    ],
)
def test_impossible_ranges_are_refused(make: Any, message: Any) -> None:
    with pytest.raises(LuthierError, match=message):
        make()


RANGES = st.one_of(
    st.tuples(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6)).map(lambda pair: uniform(pair[0], pair[0] + pair[1])),
    st.tuples(st.floats(1e-8, 1.0), st.floats(1.5, 1e6)).map(lambda pair: loguniform(pair[0], pair[0] * pair[1])),
    st.tuples(st.integers(-50, 50), st.integers(3, 99), st.integers(1, 3)).map(
        lambda three: integers(three[0], three[0] + three[1], step=three[2])
    ),
    st.tuples(st.integers(1, 50), st.integers(1, 99)).map(lambda pair: integers(pair[0], sum(pair), log=True)),
    st.lists(st.text(max_size=5), min_size=1, max_size=4, unique=True).map(lambda names: choice(*names)),
)


@given(st.dictionaries(st.text(min_size=1, max_size=5), RANGES, min_size=1, max_size=3))
def test_json_round_trip(space: Any) -> None:
    assert space_from_json(space_to_json(space)) == space


@given(RANGES, st.integers(1, 9))
def test_levels_lie_inside_and_differ(range_: Any, count: Any) -> None:
    levels = range_.levels(count)
    assert all(range_.contains(level) for level in levels)
    assert len(set(levels)) == len(levels) >= 1
    assert isinstance(range_, Choice) or len(levels) <= count


@given(RANGES, st.floats(0, 1))
def test_values_and_positions_on_the_scale_go_together(range_: Any, position: float) -> None:
    value = range_.at(position)
    assert range_.contains(value)
    assert 0 <= range_.position(value) <= 1
    again = range_.at(range_.position(value))
    assert again == (pytest.approx(value, rel=1e-6, abs=1e-6) if isinstance(range_, Uniform) else value)


def test_every_part_of_a_scale_is_alike() -> None:
    assert loguniform(1e-4, 1).at(0.5) == pytest.approx(1e-2)
    assert [integers(1, 3).at(part) for part in (0, 0.34, 0.67, 1)] == [1, 2, 3, 3]
    assert uniform(0, 1, step=0.5).at(0.99) == 1
    assert choice("a", "b").position("b") == 0.75


def test_levels_of_a_log_range_are_geometric() -> None:
    assert loguniform(1e-4, 1).levels(5) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "empty"),
        ({"lrr": loguniform(1e-4, 1)}, "did you mean 'lr'"),
        ({"epochs": integers(1, 9)}, "length is fixed"),
        ({"dropout": uniform(0, 1)}, "refuses 1.0"),
        ({"optimizer": choice("adamw", "sdg")}, "did you mean 'sgd'"),
        ({"optimizer.momentum": uniform(0, 0.9)}, "momentum"),
        ({"optimizer": choice("sgd", "adam"), "optimizer.momentum": uniform(0, 0.9)}, "momentum"),
        ({"batch_size": uniform(16, 64.5)}, "batch_size"),
        ({"lr": 0.1}, "must be a range"),
    ],
)
def test_spaces_that_do_not_fit_the_recipe_are_refused(space: Any, message: Any) -> None:
    with pytest.raises(LuthierError, match=message):
        check_space(space, Recipe())


def test_a_setting_is_possible_when_every_option_has_it() -> None:
    check_space({"optimizer": choice("sgd", "rmsprop"), "optimizer.momentum": uniform(0, 0.9)}, Recipe())
    check_space({"model.width": integers(16, 512, log=True)}, Recipe())


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop", "adagrad", "adadelta", "muon"])
@pytest.mark.parametrize("n_train", [None, 50, 300, 60_000])
def test_derived_spaces_fit_and_contain_the_baseline(optimizer: Any, n_train: Any) -> None:
    recipe = Recipe(optimizer=optimizer, lr=3.0, batch_size=100, weight_decay=1e-3, dropout=0.7, label_smoothing=0.1)
    space = derive_space(recipe, n_train)
    check_space(space, recipe)
    assert 5 <= len(space) <= 8
    assert "epochs" not in space
    assert all(range_.contains(recipe.value(path)) for path, range_ in space.items())


def test_label_smoothing_is_only_derived_for_cross_entropy() -> None:
    assert "label_smoothing" not in derive_space(Recipe(), loss="mse")


def test_importing_the_space_imports_neither_torch_nor_optuna() -> None:
    code = "import sys, luthier.tuning.space; print('torch' in sys.modules or 'optuna' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_numbers_of_numpy_are_numbers() -> None:
    assert choice(*np.array([1, 2, 3])) == choice(1, 2, 3)
    assert to_json(space_to_json({"n": choice(np.float64(0.5), np.str_("a"))}))
    assert uniform(np.float32(0.5), np.int64(2)) == uniform(0.5, 2)
    assert integers(np.int64(1), np.int32(9), step=np.int8(2)) == integers(1, 9, step=2)
    assert type(integers(np.int64(1), 9).low) is int


def test_steps_are_written_as_people_write_them_and_stay_inside() -> None:
    range_ = uniform(0.0, 0.3, step=0.1)
    assert [range_.at(position) for position in (0.0, 0.3, 0.6, 1.0)] == [0.0, 0.1, 0.2, 0.3]
    assert range_.levels(4) == [0.0, 0.1, 0.2, 0.3]
    assert list(range_.every()) == [0.0, 0.1, 0.2, 0.3]
    assert list(uniform(-0.3, 0.3, step=0.1).every()) == [-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3]
    thirds = uniform(1 / 3, 2 / 3, step=1 / 9)
    assert all(thirds.contains(thirds.at(position)) for position in (0.0, 0.4, 0.6, 1.0))
    assert thirds.at(0.0) == 1 / 3
