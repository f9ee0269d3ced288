"""What a curve of readings is worth, and that a lucky reading does not win a study."""

import random
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from luthier.tuning.folding import fold
from luthier.tuning.levels import level
from luthier.tuning.standings import standings
from luthier.tuning.state import Event

TOTAL = 10


def curve(*values: float) -> list[tuple[int, float]]:
    return list(enumerate(values, 1))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("total", [1, 7, 10, 35, 100])
def test_the_level_is_the_best_mean_over_a_tenth_to_both_sides(seed: int, total: int) -> None:
    draw = random.Random(seed)
    read = [(step, draw.random()) for step in range(1, total + 1) if draw.random() < 0.8 or step == total]
    means = [fmean(value for at, value in read if abs(at - step) <= total / 10) for step, _ in read]
    assert level(read, total, "max") == pytest.approx(max(means))
    assert level(read, total, "min") == pytest.approx(min(means))


def test_few_readings_of_a_training_are_not_smoothed() -> None:
    assert level(curve(0.2, 0.6, 0.9), 3, "max") == 0.9
    assert level([(1, 0.4)], TOTAL, "max") == 0.4
    assert level([], TOTAL, "max") is None


def test_what_diverged_does_not_drown_the_rest() -> None:
    assert level(curve(1e308, 1e308, 1e308, 0.5, 0.5, 0.5), TOTAL, "min") == 0.5
    assert level(curve(1e30, 0.5, 0.5, 0.5), TOTAL, "min") == pytest.approx(0.5)


def study(*curves: list[float], direction: str = "max") -> Any:
    facts: list[tuple[str, Any]] = [("created", {"task": {"metric": "score", "direction": direction}})]
    for number, values in enumerate(curves, 1):
        told = {"number": number - 1, "kind": "search", "arm": "all", "values": {}, "seed": 0, "of": None}
        facts.append(("proposed", {**told, "until": TOTAL, "total_steps": TOTAL}))
        for step, value in enumerate(values, 1):
            row = {"kind": "epoch", "step": step, "time_s": 1.0 * step, "val_score": value}
            facts.append(("row", {"number": number - 1, "row": row}))
        ended = "finished" if len(values) == TOTAL else "paused"
        facts.append((ended, {"number": number - 1, "step": len(values)}))
    return fold([Event(at, float(at), kind, payload) for at, (kind, payload) in enumerate(facts)], Path("study"))


STEADY = [0.5, 0.7, 0.8, 0.85, 0.88, 0.9, 0.9, 0.91, 0.91, 0.91]
LUCKY = [0.5, 0.7, 0.8, 0.82, 0.95, 0.82, 0.83, 0.82, 0.83, 0.82]


def test_a_lucky_reading_does_not_win() -> None:
    state = study(LUCKY, STEADY)
    assert state.winner.number == 1
    assert [trial.value for trial in state.trials] == [0.95, 0.91]  # as they were told
    assert list(standings(state).finished) == [1, 0]


def test_nor_where_smaller_is_better() -> None:
    state = study([1 - value for value in LUCKY], [1 - value for value in STEADY], direction="min")
    assert state.winner.number == 1


def test_one_that_learns_late_wins() -> None:
    late = [0.1] * 6 + [0.3, 0.7, 0.93, 0.95]
    assert study(STEADY, late).winner.number == 1


def test_one_that_overfits_is_worth_its_best_stretch() -> None:
    over = [0.6, 0.9, 0.95, 0.95, 0.94, 0.9, 0.8, 0.7, 0.6, 0.5]
    assert study(STEADY, over).winner.number == 1


def test_equal_levels_go_by_the_best_reading_then_by_number() -> None:
    flat = [0.8] * TOTAL
    jump = [0.2] * 3 + [0.9] + [0.2] * 2 + [0.8] * 4
    assert list(standings(study(flat, jump, flat)).finished) == [1, 0, 2]


def test_readings_that_are_no_numbers_do_not_count() -> None:
    state = study([float("nan")] * 3 + [0.6] * 7, STEADY[:4])
    assert [trial.level for trial in state.trials] == pytest.approx([0.6, 0.825])
