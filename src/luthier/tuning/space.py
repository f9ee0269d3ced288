"""Search spaces: ranges for fields of a recipe, by dotted path.

A range knows its values, its two ends and its JSON; what a sampler makes of it is the sampler's business.
Importable without torch and without Optuna, since the command line reads it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from luthier.errors import LuthierError, close_matches

if TYPE_CHECKING:
    from luthier.recipe import Recipe


@dataclass(frozen=True)
class Uniform:
    """Real numbers from `low` to `high`, both included; on a log scale, or in steps from `low`."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high", "step"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _number(name, value))
        _check_bounds(self.low, self.high, self.log)
        if self.step is not None and self.log:
            raise LuthierError(f"a range is either on a log scale or in steps, got log=True and step={self.step}")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise LuthierError(f"step must be positive and fit between {self.low} and {self.high}, got {self.step}")

    def contains(self, value: Any) -> bool:
        """Whether a value lies in the range (on one of its steps)."""
        if not _is_number(value) or not self.low <= value <= self.high:
            return False
        if self.step is None:
            return True
        steps = (value - self.low) / self.step
        return bool(abs(steps - round(steps)) < 1e-6)

    def levels(self, count: int) -> list[Any]:
        """At most `count` evenly spaced values (on the range's scale), both ends included."""
        if self.step is not None:
            steps = int((self.high - self.low) / self.step + 1e-9)
            return [self.low + index * self.step for index in _spread(steps, count)]
        return _levels(self.low, self.high, self.log, count)

    def ends(self) -> tuple[Any, ...]:
        """The values that a recipe must accept for the whole range to be possible."""
        return (self.low, self.high)

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}" + _suffix(self.log, self.step)


@dataclass(frozen=True)
class Integers:
    """Whole numbers from `low` to `high`, both included; on a log scale, or in steps from `low`."""

    low: int
    high: int
    log: bool = False
    step: int = 1

    def __post_init__(self) -> None:
        for name in ("low", "high", "step"):
            value = getattr(self, name)
            if not _is_number(value) or value != value or math.isinf(value) or int(value) != value:
                raise LuthierError(f"{name} of a range of integers must be a whole number, got {value!r}")
            object.__setattr__(self, name, int(value))
        _check_bounds(self.low, self.high, self.log)
        if self.step < 1 or self.step > self.high - self.low:
            raise LuthierError(f"step must be at least 1 and fit between {self.low} and {self.high}, got {self.step}")
        if self.log and self.step != 1:
            raise LuthierError(f"a range is either on a log scale or in steps, got log=True and step={self.step}")

    def contains(self, value: Any) -> bool:
        """Whether a value lies in the range (on one of its steps)."""
        whole = _is_number(value) and int(value) == value
        return whole and self.low <= value <= self.high and (value - self.low) % self.step == 0

    def levels(self, count: int) -> list[Any]:
        """At most `count` evenly spaced values (on the range's scale), both ends included."""
        if self.log:
            return list(dict.fromkeys(round(value) for value in _levels(self.low, self.high, True, count)))
        return [self.low + index * self.step for index in _spread((self.high - self.low) // self.step, count)]

    def ends(self) -> tuple[Any, ...]:
        """The values that a recipe must accept for the whole range to be possible."""
        return (self.low, self.high)

    def __str__(self) -> str:
        return f"{self.low}..{self.high}" + _suffix(self.log, None if self.step == 1 else self.step)


@dataclass(frozen=True)
class Choice:
    """One of several values without order: names, numbers, booleans, None, or lists of these."""

    options: tuple[Any, ...]

    def __post_init__(self) -> None:
        options = tuple(_plain(option) for option in self.options)
        object.__setattr__(self, "options", options)
        if not options:
            raise LuthierError("a choice needs at least one option, got none")
        for index, option in enumerate(options):
            if option in options[:index]:
                raise LuthierError(f"the options of a choice must differ, got {option!r} twice in {list(options)}")

    def contains(self, value: Any) -> bool:
        """Whether a value is one of the options."""
        return _plain(value) in self.options

    def levels(self, count: int) -> list[Any]:
        """All options, whatever the count."""
        return list(self.options)

    def ends(self) -> tuple[Any, ...]:
        """The values that a recipe must accept: all options."""
        return self.options

    def __str__(self) -> str:
        return ",".join("none" if option is None else str(option) for option in self.options)


Range: TypeAlias = Uniform | Integers | Choice
Space: TypeAlias = Mapping[str, Range]
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


_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_INTERVAL = re.compile(rf"\s*({_NUMBER})\s*\.\.\s*({_NUMBER})\s*(?:(log)|step\s+({_NUMBER}))?\s*")
_WORDS: dict[str, Any] = {"true": True, "false": False, "none": None}


def parse_range(text: str) -> Range:
    """A range as written on the command line.

    Forms: `0.0..0.5`, `0.0001..0.1 log`, `0..1 step 0.1` (real numbers as soon as one bound has a point or an
    exponent), `1..8`, `16..512 log`, `2..8 step 2` (whole numbers otherwise), `16,32,64` or `adam,sgd` (options;
    `true`, `false` and `none` are the values).

    >>> parse_range("1e-4..0.1 log")
    Uniform(low=0.0001, high=0.1, log=True, step=None)
    >>> parse_range("relu,none")
    Choice(options=('relu', None))

    Raises:
        LuthierError: the text is none of these forms, or its range is not possible.
    """
    if match := _INTERVAL.fullmatch(text):
        numbers = [_scalar(part) for part in (match[1], match[2], match[4] or "1")]
        if all(isinstance(number, int) for number in numbers):
            return Integers(numbers[0], numbers[1], log=bool(match[3]), step=numbers[2])
        return Uniform(numbers[0], numbers[1], log=bool(match[3]), step=numbers[2] if match[4] else None)
    if ".." in text or not text.strip():
        raise LuthierError(f"expected a range such as 0.0001..0.1 log, 1..8, 0..1 step 0.1 or 16,32,64, got {text!r}")
    options = [option.strip() for option in text.split(",")]
    if "" in options:
        raise LuthierError(f"expected options between the commas, such as 16,32,64, got {text!r}")
    return Choice(tuple(_scalar(option) for option in options))


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
        settings = {name: value for name, value in content.items() if name != "kind"}
        if content["kind"] == "choice":
            settings = {"options": tuple(settings["options"])}
        space[path] = _KINDS[content["kind"]](**settings)
    return space


def check_space(space: Space, recipe: Recipe) -> None:
    """Whether every range fits the recipe: known paths, and ends that the recipe accepts.

    Raises:
        LuthierError: an empty space, an unknown path (close matches are named), `epochs` or `seed`, a value refused.
    """
    if not space:
        raise LuthierError("the space is empty: give at least one range, such as lr=loguniform(1e-4, 1e-1)")
    for path, range_ in space.items():
        if not isinstance(range_, (Uniform, Integers, Choice)):
            raise LuthierError(f"space[{path!r}] must be a range such as uniform(0, 1) or choice(...), got {range_!r}")
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
    """The recipes that a path's values must fit: one for each option of the part that the path is a setting of."""
    parent = space.get(path.partition(".")[0]) if "." in path else None
    if not isinstance(parent, Choice):
        yield recipe
        return
    for option in parent.options:
        yield recipe.replace({path.partition(".")[0]: option})


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
    content = {name: getattr(range_, name) for name in range_.__dataclass_fields__}
    if kind == "choice":
        content["options"] = [list(option) if isinstance(option, tuple) else option for option in content["options"]]
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


def _plain(option: Any) -> Any:
    """Lists become tuples, so that options can be compared after a JSON round trip."""
    if isinstance(option, (list, tuple)):
        return tuple(_plain(item) for item in option)
    if isinstance(option, float) and not math.isfinite(option):
        raise LuthierError(f"an option must be finite, got {option}")
    if option is None or isinstance(option, (bool, int, float, str)):
        return option
    raise LuthierError(f"an option must be a name, a number, a boolean, None or a list of these, got {option!r}")


def _number(name: str, value: Any) -> float:
    if not _is_number(value) or not math.isfinite(value):
        raise LuthierError(f"{name} of a range must be a finite number, got {value!r}")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_bounds(low: float, high: float, log: bool) -> None:
    if low >= high:
        raise LuthierError(f"a range goes from its lower to a higher bound, got {low:g}..{high:g}: swap or widen them")
    if log and low <= 0:
        raise LuthierError(f"a log scale needs a lower bound above zero, got {low:g}: raise it, or drop log")


def _levels(low: float, high: float, log: bool, count: int) -> list[Any]:
    if count == 1:
        return [math.sqrt(low * high) if log else (low + high) / 2]
    scale = [index / (count - 1) for index in range(count)]
    inner = [low * (high / low) ** part if log else low + (high - low) * part for part in scale[1:-1]]
    return [low, *inner, high]


def _spread(last: int, count: int) -> list[int]:
    """At most `count` evenly spread indices from 0 to `last`."""
    if count == 1:
        return [last // 2]
    return sorted({round(index * last / (count - 1)) for index in range(count)})


def _suffix(log: bool, step: float | None) -> str:
    return " log" if log else "" if step is None else f" step {step:g}"
