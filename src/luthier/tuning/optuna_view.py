"""Optuna's samplers asked over a view: an in-memory study, made anew for each question.

So the answer follows from the view alone. A trial goes into the study without Optuna's checks and copies, which take
most of the time of a question otherwise.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

from luthier.files import to_json
from luthier.tuning.conditions import active, ordered, present
from luthier.tuning.ranges import Choice, Integers, Range, Space, Uniform
from luthier.tuning.views import Seen, View

if TYPE_CHECKING:
    import optuna

DIRECTIONS = {"max": "maximize", "min": "minimize"}


def to_distribution(range_: Range) -> Any:
    """The Optuna distribution of a range."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(range_, Uniform):
        with nullcontext() if range_.step is None else quiet():  # it warns that the end is on no step
            return FloatDistribution(range_.low, _above_steps(range_), log=range_.log, step=range_.step)
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


def ask(view: View, sampler: optuna.samplers.BaseSampler, trials: list[optuna.trial.FrozenTrial]) -> dict[str, Any]:
    """Ask a sampler over an in-memory study of these trials: field by field, those present only."""
    import optuna

    with quiet():
        storage = optuna.storages.InMemoryStorage()
        directions = [DIRECTIONS[direction] for direction in view.directions]
        study = optuna.create_study(storage=storage, sampler=sampler, directions=directions)
        for trial in trials:
            storage.create_new_trial(study._study_id, template_trial=trial)
        asked = study.ask()
        values: dict[str, Any] = {}
        for path in ordered(view.space):
            if present(view.space[path], values):
                values[path] = _suggest(asked, path, view.space[path])
    return active(view.space, values | dict.fromkeys(set(view.space) - set(values)))


def _suggest(asked: optuna.Trial, path: str, range_: Range) -> Any:
    if isinstance(range_, Uniform):
        value = asked.suggest_float(path, range_.low, _above_steps(range_), log=range_.log, step=range_.step)
        return value if range_.step is None else range_.at(range_.position(value))
    if isinstance(range_, Integers):
        return asked.suggest_int(path, range_.low, _last_step(range_), log=range_.log, step=range_.step)
    return from_optuna(range_, asked.suggest_categorical(path, [to_optuna(option) for option in range_.options]))


@contextmanager
def _silence() -> Iterator[None]:
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


class Quiet:
    """Optuna's log reports errors only, and nothing warns (experimental features; torch's notes on the GP), inside.

    These are settings of the whole process: the first thread to come in makes them, the last to leave resets them.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._silence = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._silence.enter_context(_silence())
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._silence.close()


_QUIET = Quiet()


def quiet() -> Quiet:
    """See `Quiet`."""
    return _QUIET


class Translation:
    """Trials of one view as Optuna reads them.

    Args:
        view: what is known; its distributions are made once.
        attributes: further system attributes of the completed trial at a place among them.
    """

    def __init__(self, view: View, attributes: Callable[[int], dict[str, Any]] = lambda _: {}) -> None:
        self.view, self.attributes = view, attributes
        self.distributions = {path: to_distribution(range_) for path, range_ in view.space.items()}
        self.lists = {path for path, range_ in view.space.items() if isinstance(range_, Choice)}
        self.any_violated = any(seen.violated for seen in view.seen)
        self.worst = view.worst()

    def unfinished(self, seen: Seen) -> optuna.trial.FrozenTrial:
        """For TPE, one objective: cut short is PRUNED at its share, running RUNNING, failed a violated constraint."""
        from optuna.trial import TrialState

        if seen.violated or seen.scores is None:
            state = TrialState.RUNNING if seen.state in ("running", "waiting") else TrialState.PRUNED
            return self._template(seen, state, constraint=1.0 if state == TrialState.PRUNED else None)
        if seen.state == "finished":
            return self._template(seen, TrialState.COMPLETE, seen.scores)
        if seen.state in ("running", "waiting"):
            return self._template(seen, TrialState.RUNNING)
        return self._template(seen, TrialState.PRUNED, readings={round(1000 * seen.share): seen.scores[0]})

    def completed(self, trials: tuple[Seen, ...]) -> list[optuna.trial.FrozenTrial]:
        """For samplers that read completed trials only.

        Paused and outranked ones are completed with their last values, failed ones with the worst values seen and a
        violated constraint, running ones are RUNNING; while nothing has been read, nothing but these is told.
        """
        from optuna.trial import TrialState

        told = []
        n_completed = 0
        for seen in trials:
            scores = None if seen.state in ("running", "waiting") else self.worst if seen.violated else seen.scores
            if scores is not None:
                constraint = (1.0 if seen.violated else -1.0) if self.any_violated else None
                attributes = self.attributes(n_completed)
                told.append(self._template(seen, TrialState.COMPLETE, scores, None, constraint, attributes))
                n_completed += 1
            elif seen.state in ("running", "waiting"):
                told.append(self._template(seen, TrialState.RUNNING))
        return told

    def _template(
        self,
        seen: Seen,
        state: optuna.trial.TrialState,
        scores: tuple[float, ...] | None = None,
        readings: dict[int, float] | None = None,
        constraint: float | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> optuna.trial.FrozenTrial:
        params = {path: to_optuna(v) if path in self.lists else v for path, v in seen.values.items()}
        system = {} if constraint is None else dict(_constraint(constraint))
        return _template_class()(
            number=-1,
            trial_id=-1,
            state=state,
            value=None,
            values=scores,
            datetime_start=None,
            datetime_complete=None,
            params=params,
            distributions={path: self.distributions[path] for path in params},
            user_attrs={},
            system_attrs=system | dict(attributes or {}),
            intermediate_values=readings or {},
        )


@cache
def _template_class() -> Any:
    """Optuna's trial, but a deep copy of it is a shallow one: nobody writes into what it holds."""
    from optuna.trial import FrozenTrial

    class Template(FrozenTrial):  # type: ignore[misc]
        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            return copy.copy(self)

    return Template


@cache
def _constraint(value: float) -> Any:
    """How Optuna keeps a constraint in a trial: above zero is violated."""
    import optuna

    return optuna.trial.create_trial(value=0.0, constraints={"trains": value}).system_attrs


def frozen_trial(
    space: Space,
    values: Mapping[str, Any],
    state: optuna.trial.TrialState,
    scores: tuple[float, ...] | None = None,
    readings: Mapping[int, float] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> optuna.trial.FrozenTrial:
    """An Optuna trial to be stored, checked by Optuna, with these values for the ranges that they are given for."""
    import optuna

    ranges = {path: to_distribution(space[path]) for path in values}
    given = {path: _on_its_grid(ranges[path], to_optuna(item)) for path, item in values.items()}
    return optuna.trial.create_trial(
        state=state,
        values=scores,
        params=given,
        distributions=ranges,
        intermediate_values=dict(readings or {}),
        user_attrs=dict(notes or {}),
    )


def _above_steps(range_: Uniform) -> float:
    """Where a range ends for Optuna, which rounds down to the last step: half a step above that, since a third has no
    last digit."""
    if range_.step is None or range_.size is None:
        return range_.high
    return range_.low + (range_.size - 0.5) * range_.step


def _on_its_grid(range_: Any, value: Any) -> Any:
    """The value as Optuna's own sum of steps, which is strict about it."""
    from optuna.distributions import FloatDistribution

    if not isinstance(range_, FloatDistribution) or range_.step is None:
        return value
    return min(range_.low + round((value - range_.low) / range_.step) * range_.step, range_.high)


def _last_step(range_: Integers) -> int:
    return range_.high - (range_.high - range_.low) % range_.step
