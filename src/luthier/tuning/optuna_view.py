"""What a sampler may know, and Optuna's samplers asked over it: an in-memory study, made anew for each question."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.files import to_json
from luthier.tuning.space import Choice, Integers, Range, Space, Uniform

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Seen:
    """What one trial taught.

    Attributes:
        values: by dotted path, all within the arm's ranges.
        state: as in `Trial.state`.
        value: its best reading; None when there is none.
        share: part of its steps that it has trained.
    """

    values: dict[str, Any]
    state: str
    value: float | None
    share: float


@dataclass(frozen=True)
class View:
    """What a sampler may know.

    Attributes:
        space: the arm's ranges.
        seen: its trials so far, in order of their numbers, and the baseline when it lies within the ranges.
        direction: which way values improve, "max" or "min".
        seed: for this question.
    """

    space: Space
    seen: tuple[Seen, ...]
    direction: str
    seed: int


def to_distribution(range_: Range) -> Any:
    """The Optuna distribution of a range."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(range_, Uniform):
        return FloatDistribution(range_.low, range_.high, log=range_.log, step=range_.step)
    if isinstance(range_, Integers):
        return IntDistribution(range_.low, _last_step(range_), log=range_.log, step=range_.step)
    return CategoricalDistribution([to_optuna(option) for option in range_.options])


def to_optuna(value: Any) -> Any:
    """A value as Optuna stores it: lists as their JSON text."""
    return to_json(value) if isinstance(value, (tuple, list)) else value


def from_optuna(range_: Range, value: Any) -> Any:
    """The inverse of `to_optuna`."""
    if isinstance(range_, Choice):
        return next(option for option in range_.options if to_optuna(option) == value)
    return value


def ask(view: View, make: Callable[[int], Any], trials: list[optuna.trial.FrozenTrial]) -> dict[str, Any]:
    """Ask a fresh sampler over an in-memory study of these trials."""
    import optuna

    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental features of Optuna; torch's notes on its GP
        storage = optuna.storages.InMemoryStorage()
        direction = "maximize" if view.direction == "max" else "minimize"
        study = optuna.create_study(storage=storage, sampler=make(view.seed), direction=direction)
        for trial in trials:
            storage.create_new_trial(study._study_id, template_trial=trial)
        asked = study.ask({path: to_distribution(range_) for path, range_ in view.space.items()})
    return {path: from_optuna(range_, asked.params[path]) for path, range_ in view.space.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna's log reports errors only, inside."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def for_tpe(seen: Seen, view: View) -> optuna.trial.FrozenTrial:
    """A trial as TPE reads it: cut short is PRUNED, running RUNNING, failed PRUNED without readings (the worst)."""
    from optuna.trial import TrialState

    if seen.state == "finished" and seen.value is not None:
        return frozen_trial(view.space, seen.values, TrialState.COMPLETE, seen.value)
    if seen.state in ("running", "waiting"):
        return frozen_trial(view.space, seen.values, TrialState.RUNNING)
    if seen.state == "failed" or seen.value is None:
        return frozen_trial(view.space, seen.values, TrialState.PRUNED)  # without readings: behind all others
    readings = {round(1000 * seen.share): seen.value}
    return frozen_trial(view.space, seen.values, TrialState.PRUNED, readings=readings)


def for_gp(seen: Seen, view: View) -> optuna.trial.FrozenTrial | None:
    """A trial as the Gaussian process reads it: completed with its last value, or with the worst one seen."""
    from optuna.trial import TrialState

    known = [other.value for other in view.seen if other.value is not None and other.state != "failed"]
    value = seen.value if seen.state in ("finished", "paused", "stopped") else None
    if value is None:
        if not known:
            return None
        value = min(known) if view.direction == "max" else max(known)
    return frozen_trial(view.space, seen.values, TrialState.COMPLETE, value)


def frozen_trial(
    space: Space,
    values: Mapping[str, Any],
    state: optuna.trial.TrialState,
    value: float | None = None,
    readings: Mapping[int, float] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> optuna.trial.FrozenTrial:
    """An Optuna trial with these values for the ranges that they are given for."""
    import optuna

    given = {path: to_optuna(item) for path, item in values.items()}
    return optuna.trial.create_trial(
        state=state,
        value=value,
        params=given,
        distributions={path: to_distribution(space[path]) for path in given},
        intermediate_values=dict(readings or {}),
        user_attrs=dict(notes or {}),
    )


def _last_step(range_: Integers) -> int:
    return range_.high - (range_.high - range_.low) % range_.step
