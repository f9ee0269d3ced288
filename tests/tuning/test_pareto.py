import math
import random
from typing import Any

import pytest

from luthier.errors import LuthierError
from luthier.tuning.pareto import by_front, dominates, pareto_front


def test_the_front_is_what_nothing_dominates() -> None:
    rng = random.Random(0)
    points = [(rng.randrange(8) / 8, rng.randrange(8) / 8, rng.randrange(8) / 8) for _ in range(120)]
    front = pareto_front(points, ["max", "min", "max"])
    losses = [(-a, b, -c) for a, b, c in points]
    beaten = {i for i, one in enumerate(losses) if any(dominates(other, one) for other in losses)}
    assert set(front) == set(range(120)) - beaten
    assert front == sorted(front)


def test_equal_points_stay_and_nan_never_does() -> None:
    assert pareto_front([(1.0, 2.0), (1.0, 2.0), (math.nan, 0.0), (1.0, 3.0)], ["min", "min"]) == [0, 1]
    assert pareto_front([(0.5,), (0.7,), (0.7,)], ["max"]) == [1, 2]
    assert pareto_front([], ["max"]) == []


@pytest.mark.parametrize("directions", [[], ["up"], "max"])
def test_directions_are_checked(directions: Any) -> None:
    with pytest.raises(LuthierError, match="'max' or 'min'"):
        pareto_front([(1.0,)], directions)
    with pytest.raises(LuthierError, match="expected 2 objectives"):
        pareto_front([(1.0,)], ["max", "min"])


def test_the_order_goes_front_by_front_and_the_ends_of_a_front_come_first() -> None:
    losses = [(2.0, 2.0), (0.0, 1.0), (1.0, 0.0), (0.4, 0.6), (0.45, 0.5), (3.0, 3.0)]
    assert list(by_front(losses)) == [1, 2, 4, 3, 0, 5]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_fronts_are_what_is_left_undominated_again_and_again(k: int) -> None:
    rng = random.Random(k)
    losses = [tuple(rng.choice([0.0, 0.25, 0.5, 1.0, math.inf, math.nan]) for _ in range(k)) for _ in range(90)]
    losses += [tuple(rng.random() for _ in range(k)) for _ in range(60)]
    order, left = list(by_front(losses)), set(range(len(losses)))
    assert sorted(order) == sorted(left)
    while left:
        front = {i for i in left if not any(dominates(losses[other], losses[i]) for other in left)}
        assert set(order[: len(front)]) == front
        order, left = order[len(front) :], left - front
