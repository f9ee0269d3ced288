from typing import Any

import pytest

from luthier.errors import LuthierError
from luthier.recipe import Recipe
from luthier.tuning.conditions import active, check_conditions, configurations, ordered, resolved
from luthier.tuning.ranges import Range
from luthier.tuning.space import (
    as_space,
    check_space,
    choice,
    fixed,
    integers,
    loguniform,
    parse_range,
    space_from_json,
    space_to_json,
    uniform,
)

SPACE: dict[str, Range] = {
    "optimizer.momentum": uniform(0.0, 0.99).when("optimizer", "sgd", "rmsprop"),
    "optimizer.nesterov": choice(True, False).when("optimizer", "sgd"),
    "optimizer": choice("sgd", "adamw", "rmsprop"),
    "lr": loguniform(1e-4, 1.0),
}


def test_fields_are_present_where_their_conditions_hold() -> None:
    values = {"optimizer.momentum": 0.9, "optimizer.nesterov": True, "optimizer": "sgd", "lr": 0.1}
    assert active(SPACE, values) == values
    assert list(active(SPACE, values)) == list(SPACE)
    assert active(SPACE, {**values, "optimizer": "adamw"}) == {"optimizer": "adamw", "lr": 0.1}
    assert "optimizer.nesterov" not in active(SPACE, {**values, "optimizer": "rmsprop"})
    assert ordered(SPACE).index("optimizer") < ordered(SPACE).index("optimizer.momentum")


def test_a_step_holds_a_condition_however_it_is_written() -> None:
    space = {
        "a": uniform(0.0, 0.5, step=0.1),
        "b": uniform(0, 1).when("a", 0.1 + 0.2),
        "c": uniform(0, 1).when("a", 0.0),
    }
    assert list(active(space, {"a": 0.3, "b": 0.5, "c": 0.5})) == ["a", "b"]
    assert list(active(space, {"a": 3 * 0.1, "b": 0.5, "c": 0.5})) == ["a", "b"]
    assert list(active(space, {"a": 5e-17, "b": 0.5, "c": 0.5})) == ["a", "c"]


def test_chained_conditions_must_all_hold_and_absence_is_handed_down() -> None:
    space = {
        "a": choice(0, 1),
        "b": choice(0, 1).when("a", 1),
        "c": choice(0, 1).when("b", 0, 1),
        "d": fixed(5).when("a", 1).when("b", 1),
    }
    assert active(space, {"a": 0, "b": 1, "c": 1, "d": 5}) == {"a": 0}
    assert active(space, {"a": 1, "b": 0, "c": 1, "d": 5}) == {"a": 1, "b": 0, "c": 1}
    found = list(configurations(space, lambda path: space[path].levels(9)))
    assert len(found) == 5
    assert {"a": 1, "b": 1, "c": 0, "d": 5} in found


def test_an_arm_takes_what_it_leaves_alone_from_the_baseline() -> None:
    momentum = {"optimizer.momentum": SPACE["optimizer.momentum"], "lr": SPACE["lr"]}
    assert list(resolved(momentum, Recipe(optimizer="sgd"))) == ["optimizer.momentum", "lr"]
    assert resolved(momentum, Recipe(optimizer="sgd"))["optimizer.momentum"].conditions == ()
    assert list(resolved(momentum, Recipe(optimizer="adamw"))) == ["lr"]
    assert resolved(SPACE, Recipe()) == SPACE


def test_json_and_text_keep_the_conditions() -> None:
    assert space_from_json(space_to_json(SPACE)) == SPACE
    text = str(SPACE["optimizer.momentum"])
    assert text == "0..0.99 when optimizer=sgd,rmsprop"
    assert parse_range("0.0..0.99 when optimizer = sgd, rmsprop") == SPACE["optimizer.momentum"]
    assert parse_range("1,2 when a=none when b=3") == choice(1, 2).when("a", None).when("b", 3)
    with pytest.raises(LuthierError, match="expected a condition"):
        parse_range("0..1 when sgd")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"a": fixed(1).when("optimiser", 1), "optimizer": choice(1, 2)}, "did you mean 'optimizer'"),
        ({"a": choice(1, 2).when("b", 1), "b": choice(1, 2).when("a", 1)}, "circle"),
        ({"a": choice(1, 2).when("a", 1)}, "circle"),
        ({"a": fixed(1).when("b", 0.5), "b": uniform(0, 1)}, "single values"),
        ({"a": fixed(1).when("b", 9), "b": integers(0, 5)}, "never is"),
    ],
)
def test_conditions_that_cannot_be_asked_are_refused(space: Any, message: str) -> None:
    with pytest.raises(LuthierError, match=message):
        check_conditions(space)


def test_when_needs_a_field_and_values() -> None:
    with pytest.raises(LuthierError, match="at least one of its values"):
        fixed(1).when("optimizer")


def test_a_setting_needs_to_exist_only_where_it_is_present() -> None:
    check_space(SPACE | {"optimizer.nesterov": fixed(False).when("optimizer", "sgd")}, Recipe())
    with pytest.raises(LuthierError, match="momentum"):
        check_space({"optimizer": choice("sgd", "adamw"), "optimizer.momentum": uniform(0, 0.9)}, Recipe())
    with pytest.raises(LuthierError, match="momentum"):
        check_space(SPACE | {"optimizer.momentum": uniform(0, 0.9).when("optimizer", "adamw")}, Recipe())


def test_pairs_with_one_name_twice_are_refused() -> None:
    assert as_space(SPACE) == SPACE
    with pytest.raises(LuthierError, match="'lr' twice"):
        as_space([("lr", uniform(0, 1)), ("lr", uniform(0, 2))])
