"""Recipe: validation, dotted paths, JSON round trip, identity."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.augmentation import AUGMENTATIONS
from luthier.errors import LuthierError
from luthier.recipe import Recipe
from luthier.training.averaging import AVERAGINGS
from luthier.training.optimizers import OPTIMIZERS, SGD
from luthier.training.schedules import SCHEDULES, Step

KEYWORDS = st.recursive(
    st.integers(1, 99) | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
)


@st.composite
def recipes(draw):
    return Recipe(
        optimizer=draw(st.sampled_from(sorted(OPTIMIZERS))),
        lr=draw(st.floats(1e-8, 10)),
        weight_decay=draw(st.floats(0, 1)),
        schedule=draw(st.sampled_from(sorted(set(SCHEDULES) - {"multi-step"}))),
        augment=draw(st.lists(st.sampled_from(sorted(AUGMENTATIONS)), max_size=3)),
        averaging=draw(st.none() | st.sampled_from(sorted(AVERAGINGS))),
        early_stopping=draw(st.none() | st.integers(1, 9)),
        dropout=draw(st.none() | st.floats(0, 0.9)),
        model=draw(st.dictionaries(st.sampled_from(["width", "layers"]), KEYWORDS)),
        batch_size=draw(st.integers(1, 4096)),
        seed=draw(st.integers(0, 2**63 - 1)),
    )


@given(recipes())
def test_json_round_trip_is_exact(recipe):
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert again.key() == recipe.key()


@given(recipes())
def test_every_flat_value_can_be_read_by_its_path(recipe):
    for path, value in recipe.flat().items():
        assert recipe.value(path) == value


def test_key_ignores_seed_device_and_compile_and_nothing_else():
    recipe = Recipe()
    assert recipe.replace({"seed": 5, "device": "cpu", "compile": True}).key() == recipe.key()
    others = {"lr": 0.5, "precision": "bfloat16", "deterministic": True, "model.width": 3, "schedule": "cosine"}
    assert all(recipe.replace({path: value}).key() != recipe.key() for path, value in others.items())


def test_plain_name_stands_for_the_part_with_its_defaults():
    assert Recipe(optimizer="sgd", schedule="step") == Recipe(optimizer=SGD(), schedule=Step())
    assert Recipe(schedule={"name": "step", "gamma": 0.5}).schedule == Step(gamma=0.5)


def test_one_augmentation_stands_for_a_tuple_of_one():
    assert Recipe(augment="flip") == Recipe(augment=["flip"])
    assert Recipe(augment=None) == Recipe()


def test_replace_sets_whole_fields_before_their_settings():
    recipe = Recipe().replace({"schedule.gamma": 0.5, "schedule": "step", "model.width": 7})
    assert recipe.schedule == Step(gamma=0.5)
    assert recipe.model == {"width": 7}


def test_differences_name_both_values():
    assert Recipe(lr=0.1).differences(Recipe(lr=0.2)) == {"lr": (0.1, 0.2)}
    changed = Recipe(schedule="step").differences(Recipe(schedule="constant"))
    assert changed["schedule"] == ("step", "constant")
    assert changed["schedule.gamma"] == (0.1, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lrr": 1}, "unknown recipe field 'lrr': did you mean 'lr'"),
        ({"lr": 0}, "recipe.lr: expected greater than 0, got 0"),
        ({"lr": float("nan")}, "recipe.lr: expected a finite number"),
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg': did you mean 'sgd'"),
        ({"optimizer": 3}, "optimizer must be a name, a part"),
        ({"schedule": {"name": "step", "gama": 1}}, "unknown step field 'gama': did you mean 'gamma'"),
        ({"activation": "rleu"}, "unknown recipe.activation 'rleu': did you mean 'relu'"),
        ({"epochs": 0}, "recipe.epochs: expected greater than or equal to 1, got 0"),
        ({"batch_size": "many"}, "recipe.batch_size: expected a valid integer"),
        ({"accumulate": 99, "batch_size": 8}, "lower accumulate or raise batch_size"),
        ({"dropout": 1.0}, "recipe.dropout: expected less than 1"),
    ],
)
def test_bad_input_says_what_was_expected_and_what_came(fields, message):
    with pytest.raises(LuthierError, match=message.replace("(", r"\(")):
        Recipe(**fields)


def test_unknown_setting_of_a_part_names_close_matches():
    with pytest.raises(LuthierError, match="did you mean 'gamma'"):
        Recipe(schedule="step").replace({"schedule.gama": 0.5})
    with pytest.raises(LuthierError, match="has no settings"):
        Recipe().replace({"lr.peak": 0.5})


def halving(progress):
    return 0.5**progress.epoch


def test_a_callable_is_stored_as_name_and_hash_and_asked_for_again():
    recipe = Recipe(schedule=halving)
    loaded = Recipe.from_json(recipe.to_json())
    assert loaded == recipe
    with pytest.raises(LuthierError, match="pass it again"):
        loaded.schedule.call(None)
    again = Recipe.from_json(recipe.to_json(), callables={"halving": halving})
    assert again.schedule.call is not None


def test_another_callable_under_the_same_name_is_refused():
    def other(progress):
        return 0.25**progress.epoch

    with pytest.raises(LuthierError, match="is not the one that the recipe was made with"):
        Recipe.from_json(Recipe(schedule=halving).to_json(), callables={"halving": other})


def test_broken_file_is_a_clear_error(tmp_path):
    (tmp_path / "r.json").write_text('{"lr": ')
    with pytest.raises(LuthierError, match="expected a recipe in JSON"):
        Recipe.load(tmp_path / "r.json")
    with pytest.raises(LuthierError, match="cannot be read"):
        Recipe.load(tmp_path / "missing.json")
