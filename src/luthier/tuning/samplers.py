"""Samplers by name, and what they are asked for: values for the next trial that no trial of its arm has had."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from luthier.errors import LuthierError, unknown
from luthier.tuning.conditions import Baseline, active, configurations, is_conditional, known, resolved, value_or_none
from luthier.tuning.drawing import grid, grid_levels, halton, sobol, uniform_random
from luthier.tuning.evolving import cmaes
from luthier.tuning.modelling import from_optuna_object, gp, nsgaii, prior
from luthier.tuning.parzen import tpe
from luthier.tuning.ranges import Space
from luthier.tuning.state import BASELINE, State, Trial
from luthier.tuning.values import plain, unwrapped
from luthier.tuning.views import Sampler, Seen, View

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

Constraint: TypeAlias = Callable[[dict[str, Any]], bool | float]
"""Values of all present fields of the space by path -> True, or a number of at most 0, where they may be trained."""

SAMPLERS: dict[str, Sampler] = {
    "grid": grid,
    "random": uniform_random,
    "sobol": sobol,
    "halton": halton,
    "tpe": tpe,
    "gp": gp,
    "cmaes": cmaes,
    "nsgaii": nsgaii,
    "prior": prior,
}

_FOR_ONE = ("cmaes",)

_ASKS = 3  # of the sampler; then random draws, then all configurations in order
_DRAWS = 20
_CONSTRAINED_ASKS = 8
_CONSTRAINED_DRAWS = 1000
_LOOKED_THROUGH = 100_000


def as_sampler(sampler: str | Sampler | BaseSampler) -> Sampler:
    """A sampler by name, one of Optuna's objects, or a function from a `View` to values.

    Raises:
        LuthierError: an unknown name, or none of these.
    """
    if isinstance(sampler, str):
        if sampler not in SAMPLERS:
            raise unknown("sampler", sampler, SAMPLERS)
        return SAMPLERS[sampler]
    from optuna.samplers import BaseSampler

    if isinstance(sampler, BaseSampler):
        return from_optuna_object(sampler)
    if callable(sampler) and not isinstance(sampler, type):
        return lambda view: _checked(sampler(view), view)
    raise LuthierError(
        f"sampler must be a name ({', '.join(SAMPLERS)}), one of Optuna's sampler objects, or a function from a View "
        f"to values, got {sampler!r}"
    )


def check_sampler(sampler: str | Sampler | BaseSampler, n_objectives: int) -> None:
    """Whether the sampler knows what to do with so many objectives.

    Raises:
        LuthierError: there are several, and it searches for one optimum.
    """
    if n_objectives > 1 and sampler in _FOR_ONE:
        others = ", ".join(name for name in SAMPLERS if name not in _FOR_ONE)
        raise LuthierError(f"the sampler {sampler!r} searches for one objective, for several take auto, {others}")


def sampler_label(sampler: str | Sampler | BaseSampler) -> str:
    """What a study notes of its sampler: the name, or the name of the class or function."""
    return sampler if isinstance(sampler, str) else getattr(sampler, "__qualname__", type(sampler).__qualname__)


def propose(
    sampler: str | Sampler | BaseSampler,
    state: State,
    space: Space,
    fields: list[str],
    baseline: Baseline,
    arm: str,
    number: int,
    constraints: Sequence[Constraint] = (),
) -> dict[str, Any] | None:
    """Values for a new trial of an arm that no trial of the arm has had; None when there are none left.

    A repeated or refused answer is asked for again, then drawn at random, then looked for in order. Refused values
    are told to the sampler as violated constraints.

    Raises:
        LuthierError: the constraints refuse everything; a sampler's or a constraint's answer is none.
    """
    view = arm_view(state, {path: space[path] for path in fields}, baseline, arm, number)
    if not view.space:
        return None
    fits = fitting(constraints, [path for path in space if path not in fields], baseline)
    if not _exhausted(view.space, len(view.seen), sampler == "grid"):
        for values in _answers(sampler, view, fits, bool(constraints)):
            if not any(_same(values, seen.values) for seen in view.seen):
                return values
    return _in_order(view, sampler == "grid", fits)


def is_exhausted(
    sampler: str | Sampler | BaseSampler, state: State, ranges: Space, baseline: Baseline, arm: str
) -> bool:
    """Whether an arm's trials have had all configurations of its ranges (as a grid: all of the grid)."""
    view = arm_view(state, ranges, baseline, arm, len(state.trials))
    return _exhausted(view.space, len(view.seen), sampler == "grid")


def arm_view(state: State, ranges: Space, baseline: Baseline, arm: str, number: int) -> View:
    """What the sampler may know when it is asked for a trial with this number."""
    seed = state.description.get("seed", 0)
    space = resolved(ranges, baseline)
    seen = arm_seen(state, space, baseline, arm)
    return View(
        space=space,
        seen=seen,
        directions=tuple(objective.direction for objective in state.objectives),
        seed=derived_seed(f"{seed} {number}"),
        stream=derived_seed(f"{seed} {arm}"),
        index=len(seen),
        defaults={
            path: space[path].own(value) if space[path].contains(value) else value
            for path, value in known(baseline, space).items()
            if value is not None or space[path].contains(None)
        },
    )


def arm_seen(state: State, ranges: Space, baseline: Baseline, arm: str) -> tuple[Seen, ...]:
    """The arm's own trials, and the baseline, as far as they lie within the ranges.

    Trials that no sampler proposed (known-good settings, the doctor's changes) may lie outside.
    """
    seen = []
    for trial in state.search:
        if trial.arm == BASELINE:
            values = inside(ranges, baseline)
        elif trial.arm == arm:
            values = _within(ranges, trial.values) if trial.source else trial.values
        else:
            continue
        if values is not None:
            seen.append(_seen(trial, values))
    return tuple(seen)


def _within(ranges: Space, values: dict[str, Any]) -> dict[str, Any] | None:
    """The values of the fields that are present; None when one is missing, outside its range, or of another field."""
    if not set(values) <= set(ranges):
        return None
    own = active(ranges, {**dict.fromkeys(ranges), **values})
    if not all(ranges[path].contains(value) for path, value in own.items()):
        return None
    return {path: ranges[path].own(value) for path, value in own.items()}


def inside(ranges: Space, baseline: Baseline) -> dict[str, Any] | None:
    """The baseline's own values of the fields that are present; None when one lies outside its range or is not set."""
    return _within(ranges, {path: value_or_none(baseline, path) for path in ranges})


def _seen(trial: Trial, values: dict[str, Any]) -> Seen:
    scores = tuple(trial.scores.values()) or None
    share = 1.0 if trial.state == "finished" else min(1.0, trial.step / trial.total_steps)  # some stop early
    return Seen(values, trial.state, scores, share)


def _answers(
    sampler: str | Sampler | BaseSampler, view: View, fits: Constraint, constrained: bool
) -> Iterator[dict[str, Any]]:
    """Answers that the constraints let pass: the sampler's own first, then random ones.

    Raises:
        LuthierError: no constraint let anything pass.
    """
    n_asks, n_draws = (_CONSTRAINED_ASKS, _CONSTRAINED_DRAWS) if constrained else (_ASKS, _DRAWS)
    samplers = [as_sampler(sampler)] * n_asks + [SAMPLERS["grid" if sampler == "grid" else "random"]] * n_draws
    refused: list[Seen] = []
    passed = False
    for attempt, each in enumerate(samplers):
        seen = view.seen + tuple(refused if attempt < n_asks else ())
        seed, stream = (derived_seed(f"{number} {attempt}") for number in (view.seed, view.stream))
        values = each(replace(view, seen=seen, seed=seed, stream=stream if attempt else view.stream))
        if fits(values):
            passed = True
            yield values
        else:
            refused.append(Seen(values, "refused", None))
    if not passed and _n_configurations(view.space, False) is None:
        raise LuthierError(_nothing_passes(f"{len(samplers)} draws from the space"))


def fitting(constraints: Sequence[Constraint], others: Iterable[str], baseline: Baseline) -> Constraint:
    """All constraints as one; they read the baseline's values for `others`, the fields that an arm leaves alone."""
    elsewhere = known(baseline, others)

    def fits(values: dict[str, Any]) -> bool:
        return all(_holds(constraint, {**elsewhere, **values}) for constraint in constraints)

    return fits


def _holds(constraint: Constraint, values: dict[str, Any]) -> bool:
    name = getattr(constraint, "__name__", repr(constraint))
    try:
        answer = constraint(values)
    except Exception as error:
        raise LuthierError(f"the constraint {name} raised {type(error).__name__}: {error}, for {values}") from error
    answer = answer.item() if hasattr(answer, "item") else answer
    if isinstance(answer, bool):
        return answer
    if not isinstance(answer, (int, float)):
        raise LuthierError(
            f"a constraint gives True, or a number of at most 0, for good values; {name} gave {answer!r}"
        )
    return answer <= 0


def _nothing_passes(tried: str) -> str:
    return f"the constraints refuse all of {tried}: loosen them, or narrow the ranges to where they hold"


def _in_order(view: View, as_grid: bool, fits: Constraint) -> dict[str, Any] | None:
    """The first configuration that is not taken and passes; None for a continuous space, or when none is left.

    Raises:
        LuthierError: there is none that passes, taken or not.
    """
    space, passed = view.space, False
    taken = {_key(seen.values) for seen in view.seen}
    for values in itertools.islice(_every(space, as_grid), _LOOKED_THROUGH):
        if fits(values):
            passed = True
            if _key(values) not in taken:
                return values
    if not passed and (size := _n_configurations(space, as_grid)) is not None:
        raise LuthierError(_nothing_passes(f"the first {min(size, _LOOKED_THROUGH)} configurations"))
    return None


def _exhausted(space: Space, n_taken: int, as_grid: bool) -> bool:
    """Whether there are no more configurations than were taken."""
    size = _n_configurations(space, as_grid)
    if size is None or not is_conditional(space):
        return size is not None and size <= n_taken
    return sum(1 for _ in itertools.islice(_every(space, as_grid), n_taken + 1)) <= n_taken


def _n_configurations(space: Space, as_grid: bool) -> int | None:
    """How many configurations there are at most; None when a range is continuous (and not taken as a grid)."""
    sizes = [len(grid_levels(range_)) if as_grid else range_.size for range_ in space.values()]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def _every(space: Space, as_grid: bool) -> Iterator[dict[str, Any]]:
    """All configurations in order; nothing for a continuous space."""
    if _n_configurations(space, as_grid) is None:
        return iter(())
    return configurations(space, lambda path: grid_levels(space[path]) if as_grid else space[path].every())


def derived_seed(text: str) -> int:
    """A seed from a text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def _checked(values: Any, view: View) -> dict[str, Any]:
    """The answer of a caller's own sampler.

    Raises:
        LuthierError: not one value, within its range, for each field that is present.
    """
    if not isinstance(values, Mapping):
        raise LuthierError(f"a sampler gives values by path, such as {{'lr': 0.1}}, got {values!r}")
    values = {path: unwrapped(value) for path, value in values.items()}
    missing = dict.fromkeys(path for path in view.space if path not in values)
    wanted = active(view.space, {**values, **missing})
    if wrong := set(wanted) ^ set(values) or set(wanted) & set(missing):
        raise LuthierError(f"the sampler's values should be for {', '.join(wanted)}; wrong or missing: {sorted(wrong)}")
    for path, value in wanted.items():
        if not view.space[path].contains(value):
            raise LuthierError(f"the sampler gave {value!r} for {path!r}, outside of {view.space[path]}")
    return {path: view.space[path].own(value) for path, value in wanted.items()}


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two configurations are one, to nine digits: quick, since most differ in the first field."""
    for path, item in one.items():
        value = other.get(path)
        if item != value and not (
            item.__class__ is value.__class__ is float and math.isclose(item, value, rel_tol=1e-9)
        ):
            return False
    return len(one) == len(other)


def _key(values: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells configurations apart: which fields are present, and their values to nine digits."""
    return (*values, *map(_hashable, values.values()))


def _hashable(item: Any) -> Any:
    return f"{item:.9g}" if item.__class__ is float else plain(item) if item.__class__ in (list, tuple) else item
