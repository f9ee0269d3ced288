"""Patches: operations as data, applied or refused with a reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.patch import NotApplicable, Patch, Scale, Set
from luthier.recipe import Recipe


def patch(*operations):
    return Patch(reason="a test", operations=operations)


def test_set_and_scale():
    patched = patch(Scale(field="lr", factor=0.1), Set(field="schedule", value="cosine")).apply(Recipe(lr=0.5))
    assert isinstance(patched, Recipe)
    assert patched.lr == pytest.approx(0.05)
    assert patched.schedule.name == "cosine"


def test_scaling_an_integer_gives_an_integer():
    patched = patch(Scale(field="batch_size", factor=1.5)).apply(Recipe(batch_size=33))
    assert patched.batch_size == 50


@given(st.floats(1e-6, 1), st.floats(0.01, 0.99), st.floats(1e-6, 1))
def test_scaling_down_never_passes_low_and_never_goes_up(lr, factor, low):
    patched = patch(Scale(field="lr", factor=factor, low=low)).apply(Recipe(lr=lr))
    if isinstance(patched, NotApplicable):
        assert lr <= low
    else:
        assert min(low, lr) <= patched.lr < lr


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (Set(field="schedule.gamma", value=0.5), "unknown setting of schedule 'constant'"),
        (Set(field="lr", value=-1), "greater than 0"),
        (Set(field="epochs", value=10), "nothing would change"),
        (Scale(field="optimizer", factor=2), "not a number to scale"),
        (Scale(field="dropout", factor=2), "not a number to scale"),
        (Set(field="lrr", value=1), "did you mean 'lr'"),
    ],
)
def test_not_applicable_says_why_and_changes_nothing(operation, reason):
    recipe = Recipe()
    outcome = patch(operation).apply(recipe)
    assert isinstance(outcome, NotApplicable)
    assert reason in outcome.reason
    assert recipe == Recipe()


def test_json_round_trip():
    made = patch(Scale(field="lr", factor=0.1, low=1e-5), Set(field="augment", value=["flip"]))
    assert Patch.model_validate_json(made.model_dump_json()) == made
