import math
from typing import Any

import pytest

from luthier.tuning.evolving import _generations, cmaes
from luthier.tuning.space import choice, loguniform, uniform
from luthier.tuning.views import Seen, View

SPACE = {"lr": loguniform(1e-4, 1.0), "dropout": uniform(0.0, 1.0), "kind": choice("a", "b", "c")}


def view(*seen: Seen, seed: int = 0, **defaults: Any) -> View:
    return View(SPACE, seen, ("min",), seed, defaults=defaults)


def loss(values: dict[str, Any]) -> float:
    return (math.log10(values["lr"]) + 2.5) ** 2 + 4 * (values["dropout"] - 0.7) ** 2 + (values["kind"] != "b")


def test_the_strategy_closes_in_on_the_optimum() -> None:
    seen: list[Seen] = []
    for number in range(120):
        values = cmaes(view(*seen, seed=number))
        seen.append(Seen(values, "finished", (loss(values),)))
    late = [each.values for each in seen[-20:]]
    assert sum(abs(math.log10(values["lr"]) + 2.5) < 0.3 for values in late) >= 15
    assert sum(abs(values["dropout"] - 0.7) < 0.15 for values in late) >= 15
    assert sum(values["kind"] == "b" for values in late) >= 15


def test_it_starts_at_the_known_good_values() -> None:
    answers = [cmaes(view(seed=seed, dropout=0.9, lr=0.1)) for seed in range(200)]
    assert sum(answer["dropout"] for answer in answers) / 200 == pytest.approx(0.82, abs=0.06)  # truncated at 1


def test_generations_are_complete_best_first_and_without_running_trials() -> None:
    values = {"lr": 0.1, "dropout": 0.5, "kind": "a"}
    states = ["finished", "running", "failed", "paused", "finished", "finished", "finished"]
    seen = [Seen(values, state, None if state == "failed" else (float(index),)) for index, state in enumerate(states)]
    found = [[each.scores for each in generation] for generation in _generations(view(*seen), 3)]
    assert found == [[(0.0,), (3.0,), None], [(4.0,), (5.0,), (6.0,)]]
