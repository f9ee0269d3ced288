"""Samplers: values for the next trial from those seen. Grid is ours; random, TPE and GP are Optuna's.

A sampler sees a `View`: one arm's ranges and what its trials showed. For Optuna the view becomes an in-memory study,
anew for each question, with a fresh sampler seeded by (seed, trial number): so the answer depends on the ledger only.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from luthier.errors import LuthierError, unknown
from luthier.files import to_json
from luthier.tuning.optuna_view import Seen, View, ask, for_gp, for_tpe
from luthier.tuning.space import Choice, Range, Space, Uniform
from luthier.tuning.state import State, Trial

if TYPE_CHECKING:
    from luthier.recipe import Recipe

GRID_LEVELS = 5
"""Levels that the grid takes of a range without steps (both ends included); whole numbers: at most as many."""

RANDOM_SHARE = 0.25
"""Share of TPE's answers that are drawn at random instead."""

_MOST_SEEN = 1000  # TPE's question costs 91 ms at 5,000 trials
_REDRAWS = 20


Sampler: TypeAlias = Callable[[View], dict[str, Any]]


def propose(
    sampler: str, state: State, space: Space, fields: list[str], baseline: Recipe, arm: str, number: int
) -> dict[str, Any] | None:
    """Values for a new trial of an arm that no trial of the arm has had; None when there are none left.

    A repeated answer is asked for again, then drawn at random, then looked for in order.
    """
    ranges = {path: space[path] for path in fields}
    seen = arm_seen(state, ranges, baseline, arm)
    taken = {_key(trial.values) for trial in seen}
    if (size := n_configurations(ranges, sampler == "grid")) is not None and len(taken) >= size:
        return next((v for v in _every(ranges, sampler == "grid") if _key(v) not in taken), None)
    question = f"{state.description.get('seed', 0)} {number}"
    for attempt, name in enumerate([sampler] * 3 + ["grid" if sampler == "grid" else "random"] * _REDRAWS):
        view = View(ranges, seen[-_MOST_SEEN:], state.direction, derived_seed(f"{question} {attempt}"))
        values = sampler_named(name)(view)
        if _key(values) not in taken:
            return values
    return next((v for v in _every(ranges, sampler == "grid") if _key(v) not in taken), None)


def arm_seen(state: State, ranges: Space, baseline: Recipe, arm: str) -> tuple[Seen, ...]:
    """The baseline, when it lies within the ranges, and the arm's own trials."""
    seen = []
    for trial in state.search:
        values = inside(ranges, baseline) if trial.number == 0 else trial.values if trial.arm == arm else None
        if values is not None:
            seen.append(_seen(trial, values))
    return tuple(seen)


def inside(ranges: Space, recipe: Recipe) -> dict[str, Any] | None:
    """The recipe's own values at these paths; None when one lies outside its range or is not set."""
    try:
        values = {path: recipe.value(path) for path in ranges}
    except LuthierError:  # a setting of a part that the recipe does not have
        return None
    return values if all(range_.contains(values[path]) for path, range_ in ranges.items()) else None


def _seen(trial: Trial, values: dict[str, Any]) -> Seen:
    return Seen(values, trial.state, trial.value, trial.step / trial.total_steps)


def grid(view: View) -> dict[str, Any]:
    """One point of the grid, by its seed: in random order, so that a grid cut short is no corner of itself.

    A range without steps counts as `GRID_LEVELS` levels.
    """
    levels = {path: range_.levels(_n_levels(range_)) for path, range_ in view.space.items()}
    index = random.Random(view.seed).randrange(math.prod(len(values) for values in levels.values()))
    return _at(levels, index)


def uniform_random(view: View) -> dict[str, Any]:
    """Optuna's random sampler: every range drawn on its own scale."""
    import optuna

    return ask(view, lambda seed: optuna.samplers.RandomSampler(seed=seed), [])


def tpe(view: View) -> dict[str, Any]:
    """Optuna's tree-structured Parzen estimator, all dimensions jointly; a quarter of the answers is drawn at random.

    Paused and outranked trials are PRUNED at their share of the budget, running ones count as bad (constant liar),
    failed ones as worse than every other. Without the random share the estimator settles on the first options of the
    choices that did well, and never looks at the others again.

    Source: Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization; the random share: Falkner et al. 2018,
    BOHB (there a third).
    """
    if random.Random(view.seed).random() < RANDOM_SHARE:
        return uniform_random(view)
    import optuna

    def make(seed: int) -> Any:
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=8)

    return ask(view, make, [for_tpe(seen, view) for seen in view.seen])


def gp(view: View) -> dict[str, Any]:
    """Optuna's Gaussian process: for costly trials and few of them.

    It reads completed trials only, so paused ones are completed with their last value, and running and failed ones
    with the worst value seen.
    """
    import optuna

    known = [for_gp(seen, view) for seen in view.seen]
    return ask(view, lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=8), [t for t in known if t])


SAMPLERS: dict[str, Sampler] = {"grid": grid, "random": uniform_random, "tpe": tpe, "gp": gp}


def sampler_named(name: str) -> Sampler:
    """A sampler by its name.

    Raises:
        LuthierError: an unknown name.
    """
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    return SAMPLERS[name]


def n_configurations(space: Space, as_grid: bool = False) -> int | None:
    """How many different configurations there are; None when a range is continuous (and not taken as a grid)."""
    sizes = []
    for range_ in space.values():
        if isinstance(range_, Uniform) and range_.step is None and not as_grid:
            return None
        sizes.append(len(range_.levels(_n_levels(range_) if as_grid else _all_levels(range_))))
    return math.prod(sizes)


def derived_seed(text: str) -> int:
    """A seed from a text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def _every(space: Space, as_grid: bool) -> Iterator[dict[str, Any]]:
    """All configurations in order; nothing for a continuous space."""
    if (size := n_configurations(space, as_grid)) is None:
        return
    levels = {path: r.levels(_n_levels(r) if as_grid else _all_levels(r)) for path, r in space.items()}
    for index in range(size):
        yield _at(levels, index)


def _at(levels: Mapping[str, list[Any]], index: int) -> dict[str, Any]:
    """The configuration at an index of the product of all levels."""
    values = {}
    for path, options in levels.items():
        index, place = divmod(index, len(options))
        values[path] = options[place]
    return values


def _n_levels(range_: Range) -> int:
    return _all_levels(range_) if isinstance(range_, Uniform) and range_.step is not None else GRID_LEVELS


def _all_levels(range_: Range) -> int:
    """The count that makes `levels` give every value."""
    if isinstance(range_, Choice):
        return len(range_.options)
    return int((range_.high - range_.low) / (range_.step or 1) + 1e-9) + 1


def _key(values: Mapping[str, Any]) -> str:
    rounded = {path: float(f"{item:.9g}") if isinstance(item, float) else item for path, item in values.items()}
    return to_json(dict(sorted(rounded.items())))
