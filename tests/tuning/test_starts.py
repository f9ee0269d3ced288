"""Known-good first trials."""

import pytest

from luthier.recipe import Recipe
from luthier.tuning.derived import derive_space
from luthier.tuning.space import choice, loguniform, uniform
from luthier.tuning.starts import known_good


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(optimizer="sgd", lr=0.1), Recipe(dropout=0.9, weight_decay=5.0)])
def test_starts_lie_within_the_derived_space(recipe: Recipe) -> None:
    space = derive_space(recipe, 20_000, "cross_entropy")
    starts = list(known_good(space, recipe))
    assert starts
    assert all(space[path].contains(value) for start in starts for path, value in start.items())
    assert all(set(start) == set(space) for start in starts)
    assert all(recipe.replace(start) != recipe for start in starts)


def test_what_no_start_knows_stays_as_it_is() -> None:
    assert list(known_good({"dropout": loguniform(0.01, 0.5)}, Recipe(dropout=0.2))) == []
    (first, *_) = known_good({"lr": loguniform(1e-4, 1e-1), "clip_norm": choice(None, 1.0)}, Recipe())
    assert first == {"lr": 3e-3, "clip_norm": None}


def test_a_value_that_is_no_option_becomes_the_middle_one() -> None:
    space = {"lr": loguniform(1e-4, 1e-1), "batch_size": choice(8, 16, 24), "model.width": choice(128, 256, 512)}
    (first, *_) = known_good(space, Recipe(batch_size=512, model={"width": 64}))
    assert first == {"lr": 3e-3, "batch_size": 16, "model.width": 256}


def test_a_range_that_the_recipe_does_not_have_gives_none() -> None:
    assert list(known_good({"optimizer.momentum": loguniform(0.5, 0.99), "lr": loguniform(1e-4, 1)}, Recipe())) == []


SGD_ONLY = uniform(0.0, 0.98).when("optimizer", "sgd")


def test_a_field_whose_condition_does_not_hold_is_left_out() -> None:
    space = {"lr": loguniform(1e-4, 1.0), "optimizer": choice("adamw", "sgd"), "optimizer.momentum": SGD_ONLY}
    adaptive = list(known_good(space, Recipe(optimizer="adamw")))
    assert adaptive
    assert all(set(start) == {"lr", "optimizer"} for start in adaptive)
    sgd = Recipe(optimizer="sgd").replace({"optimizer.momentum": 0.5})
    assert [start["optimizer.momentum"] for start in known_good(space, sgd)] == [0.5, 0.5]


def test_a_field_of_a_part_that_the_start_brings_in_takes_its_default() -> None:
    space = {
        "schedule": choice("constant", "cosine"),
        "lr": loguniform(1e-4, 1e-1),
        "optimizer.momentum": SGD_ONLY,
        "optimizer": choice("sgd", "muon"),
    }
    starts = list(known_good(space, Recipe(optimizer="adam")))  # adam is no option: the middle one is sgd
    assert [start["optimizer"] for start in starts] == ["sgd"] * 3
    assert all(start["optimizer.momentum"] == Recipe(optimizer="sgd").value("optimizer.momentum") for start in starts)


def test_a_condition_on_a_field_of_another_arm_is_the_baselines_affair() -> None:
    arm = {"lr": loguniform(1e-4, 1.0), "optimizer.momentum": SGD_ONLY}
    assert [list(start) for start in known_good(arm, Recipe(optimizer="adamw"))] == [["lr"]] * 3
    assert [list(start) for start in known_good(arm, Recipe(optimizer="sgd"))] == [["lr", "optimizer.momentum"]] * 2
