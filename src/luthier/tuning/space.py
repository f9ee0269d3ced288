"""Search spaces: ranges for fields of a recipe, by dotted path; how they are written, read and checked.

Importable without torch and without Optuna, since the command line reads it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from luthier.errors import LuthierError, close_matches
from luthier.files import from_stored, to_stored
from luthier.tuning.conditions import check_conditions
from luthier.tuning.ranges import Choice, Condition, Integers, Uniform
from luthier.tuning.ranges import Range as Range
from luthier.tuning.ranges import Space as Space
from luthier.tuning.values import plain

if TYPE_CHECKING:
    from luthier.recipe import Recipe

_KINDS: dict[str, type[Range]] = {"uniform": Uniform, "integers": Integers, "choice": Choice}


def uniform(low: float, high: float, step: float | None = None) -> Uniform:
    """Real numbers from `low` to `high`, every value (or every step) equally likely.

    >>> uniform(0, 0.5)
    Uniform(low=0.0, high=0.5, log=False, step=None)
    """
    return Uniform(low, high, step=step)


def loguniform(low: float, high: float) -> Uniform:
    """Real numbers from `low` > 0 to `high`, every order of magnitude equally likely: for learning rates.

    >>> str(loguniform(1e-4, 0.1))
    '0.0001..0.1 log'
    """
    return Uniform(low, high, log=True)


def integers(low: int, high: int, step: int = 1, log: bool = False) -> Integers:
    """Whole numbers from `low` to `high`.

    >>> integers(2, 8, step=2).levels(10)
    [2, 4, 6, 8]
    """
    return Integers(low, high, log=log, step=step)


def choice(*options: Any) -> Choice:
    """One of these values.

    >>> choice(16, 32, 64).contains(32)
    True
    """
    return Choice(options)


def fixed(value: Any) -> Choice:
    """A field that has this one value in every trial: a choice of one.

    >>> str(fixed(0.1).when("optimizer", "sgd"))
    '0.1 when optimizer=sgd'
    """
    return Choice((value,))


def as_space(ranges: Space | Iterable[tuple[str, Range]]) -> dict[str, Range]:
    """A space from a mapping or from pairs.

    >>> as_space([("lr", loguniform(1e-4, 1)), ("lr", loguniform(1e-3, 1))])
    Traceback (most recent call last):
    luthier.errors.LuthierError: the space names 'lr' twice: give each field one range

    Raises:
        LuthierError: a path comes twice.
    """
    space: dict[str, Range] = {}
    pairs = [*ranges.items()] if isinstance(ranges, Mapping) else ranges
    if isinstance(pairs, (Uniform, Integers, Choice, str)) or not isinstance(pairs, Iterable):
        raise LuthierError(f"a space is ranges by name, such as {{'lr': luthier.loguniform(1e-4, 1e-1)}}, got {ranges}")
    for path, range_ in pairs:
        if not isinstance(path, str):
            raise LuthierError(f"a space names its ranges by text, such as 'lr', got {path!r}")
        if path in space:
            raise LuthierError(f"the space names {path!r} twice: give each field one range")
        space[path] = range_
    return space


_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_INTERVAL = re.compile(rf"\s*({_NUMBER})\s*\.\.\s*({_NUMBER})\s*(?:(log)|step\s+({_NUMBER}))?\s*")
_WORDS: dict[str, Any] = {"true": True, "false": False, "none": None}


_CONDITION = re.compile(r"\s*([\w.-]+)\s*=\s*(.*\S)\s*")


def parse_range(text: str) -> Range:
    """A range as written on the command line.

    Forms: `0.0..0.5`, `0.0001..0.1 log`, `0..1 step 0.1` (real numbers as soon as one bound has a point or an
    exponent), `1..8`, `16..512 log`, `2..8 step 2` (whole numbers otherwise), `16,32,64` or `adam,sgd` (options;
    `true`, `false` and `none` are the values). Each may end in conditions: `0..0.99 when optimizer=sgd,rmsprop`.

    >>> parse_range("1e-4..0.1 log")
    Uniform(low=0.0001, high=0.1, log=True, step=None)
    >>> parse_range("relu,none")
    Choice(options=('relu', None))

    Raises:
        LuthierError: the text is none of these forms, or its range is not possible.
    """
    text, *conditions = re.split(r"\s+when\s+", text)
    range_ = _parse_plain(text)
    for condition in conditions:
        if (match := _CONDITION.fullmatch(condition)) is None:
            raise LuthierError(f"expected a condition such as when optimizer=sgd,rmsprop, got {condition!r}")
        range_ = range_.when(match[1].replace("-", "_"), *_parse_options(match[2]))
    return range_


def _parse_plain(text: str) -> Range:
    if match := _INTERVAL.fullmatch(text):
        numbers = [_scalar(part) for part in (match[1], match[2], match[4] or "1")]
        if all(isinstance(number, int) for number in numbers):
            return Integers(numbers[0], numbers[1], log=bool(match[3]), step=numbers[2])
        return Uniform(numbers[0], numbers[1], log=bool(match[3]), step=numbers[2] if match[4] else None)
    if ".." in text or not text.strip():
        raise LuthierError(f"expected a range such as 0.0001..0.1 log, 1..8, 0..1 step 0.1 or 16,32,64, got {text!r}")
    return Choice(_parse_options(text))


def _parse_options(text: str) -> tuple[Any, ...]:
    options = [option.strip() for option in text.split(",")]
    if "" in options:
        raise LuthierError(f"expected options between the commas, such as 16,32,64, got {text!r}")
    return tuple(_scalar(option) for option in options)


def space_to_json(space: Space) -> dict[str, Any]:
    """The space as plain values; the order of the paths is kept.

    >>> space_from_json(space_to_json({"lr": loguniform(1e-4, 1)})) == {"lr": loguniform(1e-4, 1)}
    True
    """
    return {path: _range_to_json(range_) for path, range_ in space.items()}


def space_from_json(stored: Mapping[str, Any]) -> dict[str, Range]:
    """The inverse of `space_to_json`."""
    space: dict[str, Range] = {}
    for path, content in stored.items():
        settings = {name: from_stored(value) for name, value in content.items() if name not in ("kind", "conditions")}
        conditions = tuple(Condition(field, plain(values)) for field, values in content.get("conditions", ()))
        space[path] = _KINDS[content["kind"]](**settings, conditions=conditions)
    return space


def check_ranges(space: Space) -> None:
    """Whether the space is one, whatever it is for.

    Raises:
        LuthierError: an empty space, something that is no range, a condition that can never be asked.
    """
    if not isinstance(space, Mapping) or not space:
        raise LuthierError(
            f"the space is empty: give at least one range, such as lr=loguniform(1e-4, 1), got {space!r}"
        )
    for path, range_ in space.items():
        if not isinstance(range_, (Uniform, Integers, Choice)):
            raise LuthierError(f"space[{path!r}] must be a range such as uniform(0, 1) or choice(...), got {range_!r}")
    check_conditions(space)


def check_space(space: Space, recipe: Recipe) -> None:
    """Whether every range fits the recipe: known paths, and ends that the recipe accepts.

    Raises:
        LuthierError: as `check_ranges`; an unknown path (close matches are named), `epochs` or `seed`, a value refused.
    """
    check_ranges(space)
    for path, range_ in space.items():
        if path in _NEVER:
            raise LuthierError(f"space[{path!r}]: {_NEVER[path]}")
        for base in _bases(space, path, recipe):
            for value in range_.ends():
                _check_value(path, value, base)


_NEVER = {
    "epochs": "a trial's length is fixed by the recipe, so that schedules span the whole of it; set it there",
    "seed": "the seed is no choice to search over; the winner is retrained on several seeds",
    "device": "the device is set in the recipe",
}


def _bases(space: Space, path: str, recipe: Recipe) -> Iterator[Recipe]:
    """The recipes that a path's values must fit: one for each option of the part that the path is a setting of.

    Options with which a condition takes the path out of the space are left out.
    """
    field = path.partition(".")[0]
    parent = space.get(field) if "." in path else None
    if not isinstance(parent, Choice):
        yield recipe
        return
    for option in parent.options:
        if all(condition.holds(option) for condition in space[path].conditions if condition.path == field):
            yield recipe.replace({field: option})


def _check_value(path: str, value: Any, recipe: Recipe) -> None:
    try:
        recipe.replace({path: value})
    except LuthierError as error:
        field = path.partition(".")[0]
        unknown_field = str(error).startswith("unknown recipe field") or f"{field!r}" in str(error)
        if field not in type(recipe).model_fields and unknown_field:
            hint = close_matches(field, [*type(recipe).model_fields])
            raise LuthierError(f"space[{path!r}]: there is no recipe field {field!r}; {hint}") from None
        raise LuthierError(f"space[{path!r}]: the recipe refuses {value!r}: {error}") from None


def powers_of_two(low: int, high: int) -> Choice:
    """The powers of two from `low` to `high` as options.

    >>> powers_of_two(16, 100).options
    (16, 32, 64)
    """
    first = max(0, math.ceil(math.log2(max(1, low))))
    return Choice(tuple(2**power for power in range(first, max(first, int(math.log2(max(1, high)))) + 1)))


def _range_to_json(range_: Range) -> dict[str, Any]:
    kind = next(name for name, known in _KINDS.items() if isinstance(range_, known))
    settings = [each.name for each in fields(range_) if each.init and each.name != "conditions"]
    content = {name: getattr(range_, name) for name in settings}
    if isinstance(range_, Choice):
        content["options"] = [to_stored(option) for option in range_.options]
    if range_.conditions:
        content["conditions"] = [[condition.path, list(condition.values)] for condition in range_.conditions]
    return {"kind": kind, **content}


def _scalar(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
