import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from luthier.training.stopping import EarlyStopping, EarlyStoppingChoice

NAN = math.nan


class Holder(BaseModel):
    early_stopping: EarlyStoppingChoice | None


@pytest.mark.parametrize(
    ("history", "minimise", "best", "since"),
    [
        ([], True, None, 0),
        ([0.5], True, 0, 0),
        ([0.5, 0.4, 0.45, 0.4], True, 1, 2),
        ([0.5, 0.6, 0.55, 0.6], False, 1, 2),
        ([NAN, NAN], True, None, 2),
        ([0.5, NAN, 0.6], True, 0, 2),
        ([NAN, 0.5], False, 1, 0),
        ([math.inf, 0.5], True, 1, 0),
        ([-math.inf, 0.5], False, 1, 0),
    ],
)
def test_fold_by_hand(history: list[float], minimise: bool, best: int | None, since: int) -> None:
    assert EarlyStopping().best_index(history, minimise) == best
    for patience in (1, 2, 3):
        assert EarlyStopping(patience=patience).stops(history, minimise) is (since >= patience)


def test_min_delta_must_be_passed() -> None:
    stopping = EarlyStopping(patience=2, min_delta=0.1)
    assert stopping.best_index([1.0, 0.95, 0.92], minimise=True) == 0
    assert stopping.stops([1.0, 0.95, 0.92], minimise=True)
    assert not stopping.stops([1.0, 0.95, 0.85], minimise=True)
    assert EarlyStopping(min_delta=0.5).best_index([1.0, 1.5, 2.0], minimise=False) == 2


@given(st.lists(st.floats(allow_nan=True), max_size=20), st.integers(1, 5))
def test_directions_mirror_and_stopping_means_a_stale_best(history: list[float], patience: int) -> None:
    stopping = EarlyStopping(patience=patience)
    best = stopping.best_index(history, minimise=True)
    assert best == stopping.best_index([-value for value in history], minimise=False)
    finite = [value for value in history if value < math.inf]
    assert (best is None) is (not finite)
    if best is not None:
        assert history[best] == min(finite)
        assert stopping.stops(history, minimise=True) is (len(history) - 1 - best >= patience)


@pytest.mark.parametrize(
    "given_as", [7, {"name": "patience", "patience": 7}, EarlyStopping(patience=7), '{"name":"patience","patience":7}']
)
def test_an_integer_is_a_patience(given_as: Any) -> None:
    if isinstance(given_as, str):
        held = Holder.model_validate_json(f'{{"early_stopping":{given_as}}}')
    else:
        held = Holder.model_validate({"early_stopping": given_as})
    assert held.early_stopping == EarlyStopping(patience=7)
    assert Holder.model_validate_json(held.model_dump_json()) == held
    assert Holder.model_validate({"early_stopping": "patience"}).early_stopping == EarlyStopping()
    assert Holder.model_validate({"early_stopping": None}).early_stopping is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "greater than or equal to 1"),
        (True, "early stopping must be"),
        ("patient", "did you mean 'patience'"),
        ({"name": "patience", "min_delta": -1}, "greater than or equal to 0"),
    ],
)
def test_wrong_values_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Holder.model_validate({"early_stopping": value})


def test_the_json_schema_exists() -> None:
    assert "early_stopping" in Holder.model_json_schema()["properties"]
