"""Where an interval becomes a word."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.patch import Patch, Set
from luthier.show.mend_terminal import brief
from luthier.show.verdict import comparison_text, verdict

finite = st.floats(-1, 1)


@pytest.mark.parametrize(
    ("difference", "low", "high", "level"),
    [
        (0.09, 0.089, 0.093, "certain"),
        (0.02, 0.001, 0.039, "rough"),
        (0.01, -0.01, 0.03, "noise"),
        (0.01, 0.0, 0.02, "noise"),
        (-0.02, -0.03, -0.01, "worse"),
        (0.02, -math.inf, math.inf, "unknown"),
        (math.nan, math.nan, math.nan, "unknown"),
    ],
)
def test_levels(difference: float, low: float, high: float, level: str) -> None:
    assert verdict(difference, low, high).level == level


@given(st.lists(finite, min_size=3, max_size=3).map(sorted))
def test_nothing_is_called_better_whose_interval_holds_zero(ends: list[float]) -> None:
    low, difference, high = ends
    called_better = verdict(difference, low, high).level in ("certain", "rough")
    assert called_better == (low > 0)


def comparison(**changes: Any) -> Any:
    values = {"metric": "accuracy", "winner": [0.9, 0.9, 0.9], "difference": 0.091, "low": 0.089, "high": 0.093}
    return SimpleNamespace(**{"baseline": [0.8, 0.8, 0.8], **values, **changes})


def test_a_gain_in_words() -> None:
    assert comparison_text(comparison()) == "+9.10 points, 95% interval 8.90 to 9.30 over 3 seeds: certain"
    assert "over 3 seeds: within noise" in comparison_text(comparison(low=-0.01))
    one = comparison_text(comparison(winner=[0.9], low=-math.inf, high=math.inf))
    assert one == "+9.10 points over 1 seed: one seed says nothing about the spread"


def test_plain_metrics_have_no_points() -> None:
    hundred = comparison(baseline=[90.0] * 3, winner=[90.5] * 3, difference=0.5, low=0.4, high=0.6)
    assert comparison_text(hundred) == "+0.5, 95% interval 0.4 to 0.6 over 3 seeds: certain"
    assert comparison_text(comparison(metric="mse")) == "+0.091, 95% interval 0.089 to 0.093 over 3 seeds: certain"


def test_a_patch_too_long_for_its_column_is_told_by_name():
    changes = {"optimizer": "adamw", "weight_decay": 0.01, "clip_norm": 1.0, "activation": "relu"}
    operations = [Set(field=field, value=value) for field, value in changes.items()]
    assert brief(Patch(reason="known-good settings: AdamW and more", operations=operations)) == "known-good settings"
    assert brief(Patch(reason="no name", operations=operations)).endswith("...")
    assert brief(Patch(reason="slower: steps are too large", operations=operations[1:2])) == "weight_decay = 0.01"
