"""Ranges: the values that one field may take, alone or where another field has a given value.

A range knows its values, its two ends and its own scale (`at` and `position` go between values and [0, 1]); what a
sampler makes of it is the sampler's business. Importable without torch and without Optuna.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeAlias

from luthier.errors import LuthierError
from luthier.tuning.values import GRAIN, checked, is_number, is_same, plain, unwrapped, word


@dataclass(frozen=True)
class Condition:
    """That a field of the space has one of some values.

    Attributes:
        path: of the field.
        values: with these the condition holds.
    """

    path: str
    values: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        """Whether it holds with this value of the field."""
        return any(is_same(plain(value), each) for each in self.values)

    def __str__(self) -> str:
        return f"{self.path}={','.join(map(word, self.values))}"


@dataclass(frozen=True, kw_only=True)
class _Conditional:
    """What all ranges share: the conditions under which their field is present at all."""

    conditions: tuple[Condition, ...] = field(default=(), repr=False)

    def when(self, path: str, *values: Any) -> Self:
        """The same range, present only where the field at `path` has one of these values; chained, all must hold.

        >>> str(uniform_range := Uniform(0.0, 0.99).when("optimizer", "sgd"))
        '0..0.99 when optimizer=sgd'

        Raises:
            LuthierError: no path, or no value.
        """
        if not isinstance(path, str) or not path or not values:
            raise LuthierError(f"when() needs a field and at least one of its values, got {path!r} and {values}")
        condition = Condition(path, tuple(plain(value) for value in values))
        return replace(self, conditions=(*self.conditions, condition))

    def _when(self) -> str:
        return "".join(f" when {condition}" for condition in self.conditions)


@dataclass(frozen=True)
class Uniform(_Conditional):
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

    @property
    def size(self) -> int | None:
        """How many values there are; None for a continuum."""
        return None if self.step is None else int((self.high - self.low) / self.step + 1e-9) + 1

    def contains(self, value: Any) -> bool:
        """Whether a value lies in the range (on one of its steps)."""
        if not is_number(value) or not self.low <= value <= self.high:
            return False
        if self.step is None:
            return True
        steps = (value - self.low) / self.step
        return bool(abs(steps - round(steps)) < 1e-6)

    def levels(self, count: int) -> list[Any]:
        """At most `count` evenly spaced values (on the range's scale), both ends included."""
        if self.size is not None and self.step is not None:
            return [self._stepped(index) for index in _spread(self.size - 1, count)]
        return _levels(self.low, self.high, self.log, count)

    def own(self, value: Any) -> float:
        """A value that it contains, as a real number."""
        return float(value)

    def every(self) -> Iterable[float]:
        """All values, one by one; none of a continuum."""
        return map(self._stepped, range(self.size or 0))

    def at(self, position: float) -> float:
        """The value at a position in [0, 1], every part of the range's scale alike."""
        if self.size is not None and self.step is not None:
            return self._stepped(_slot(position, self.size))
        value = self.low * (self.high / self.low) ** position if self.log else self._linear(position)
        return min(max(value, self.low), self.high)

    def position(self, value: float) -> float:
        """The inverse of `at`: for steps the middle of the step's part."""
        if self.size is not None and self.step is not None:
            return (round((value - self.low) / self.step) + 0.5) / self.size
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ends(self) -> tuple[Any, ...]:
        """The values that a recipe must accept for the whole range to be possible."""
        return (self.low, self.high)

    def _stepped(self, index: int) -> float:
        """As it would be written: 0.3, where 3 times 0.1 is 0.30000000000000004."""
        step = self.step or 0.0
        written = float(f"{self.low + index * step:.12g}")
        return 0.0 if abs(written) < GRAIN * step else min(max(written, self.low), self.high)

    def _linear(self, position: float) -> float:
        return self.low + position * (self.high - self.low)

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}" + _suffix(self.log, self.step) + self._when()


@dataclass(frozen=True)
class Integers(_Conditional):
    """Whole numbers from `low` to `high`, both included; on a log scale, or in steps from `low`."""

    low: int
    high: int
    log: bool = False
    step: int = 1

    def __post_init__(self) -> None:
        for name in ("low", "high", "step"):
            value = unwrapped(getattr(self, name))
            if not is_number(value) or value != value or math.isinf(value) or int(value) != value:
                raise LuthierError(f"{name} of a range of integers must be a whole number, got {value!r}")
            object.__setattr__(self, name, int(value))
        _check_bounds(self.low, self.high, self.log)
        if self.step < 1 or self.step > self.high - self.low:
            raise LuthierError(f"step must be at least 1 and fit between {self.low} and {self.high}, got {self.step}")
        if self.log and self.step != 1:
            raise LuthierError(f"a range is either on a log scale or in steps, got log=True and step={self.step}")

    @property
    def size(self) -> int:
        """How many values there are."""
        return (self.high - self.low) // self.step + 1

    def contains(self, value: Any) -> bool:
        """Whether a value lies in the range (on one of its steps)."""
        whole = is_number(value) and math.isfinite(value) and int(value) == value
        return whole and self.low <= value <= self.high and (value - self.low) % self.step == 0

    def levels(self, count: int) -> list[Any]:
        """At most `count` evenly spaced values (on the range's scale), both ends included; all if there are no more."""
        if self.log and count < self.size:
            return list(dict.fromkeys(round(value) for value in _levels(self.low, self.high, True, count)))
        return [self.low + index * self.step for index in _spread(self.size - 1, count)]

    def own(self, value: Any) -> int:
        """A value that it contains, as a whole number."""
        return int(value)

    def every(self) -> Iterable[int]:
        """All values, one by one."""
        return range(self.low, self.high + 1, self.step)

    def at(self, position: float) -> int:
        """The value at a position in [0, 1], every part of the range's scale alike."""
        if not self.log:
            return self.low + _slot(position, self.size) * self.step
        low, high = self.low - 0.5, self.high + 0.5
        return min(max(round(math.exp(math.log(low) + position * math.log(high / low))), self.low), self.high)

    def position(self, value: int) -> float:
        """The inverse of `at`: the middle of the value's part."""
        if not self.log:
            return ((value - self.low) // self.step + 0.5) / self.size
        low, high = self.low - 0.5, self.high + 0.5
        return math.log(value / low) / math.log(high / low)

    def ends(self) -> tuple[Any, ...]:
        """The values that a recipe must accept for the whole range to be possible."""
        return (self.low, self.high)

    def __str__(self) -> str:
        return f"{self.low}..{self.high}" + _suffix(self.log, None if self.step == 1 else self.step) + self._when()


@dataclass(frozen=True)
class Choice(_Conditional):
    """One of several values without order: names, numbers, booleans, None, or lists or tuples of these.

    They come back as they were given; a list and a tuple of the same values count as one.
    """

    options: tuple[Any, ...] = field(hash=False)
    _compared: tuple[Any, ...] = field(init=False, repr=False, compare=False, hash=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(checked(option) for option in self.options))
        compared = tuple(plain(option) for option in self.options)
        object.__setattr__(self, "_compared", compared)
        if not compared:
            raise LuthierError("a choice needs at least one option, got none")
        for index, option in enumerate(compared):
            if option in compared[:index]:
                raise LuthierError(
                    f"the options of a choice must differ, got {self.options[index]!r} twice in {list(self.options)}"
                )

    @property
    def size(self) -> int:
        """How many options there are."""
        return len(self.options)

    def contains(self, value: Any) -> bool:
        """Whether a value is one of the options."""
        try:
            return plain(value) in self._compared
        except LuthierError:  # what no option can be
            return False

    def levels(self, count: int) -> list[Any]:
        """All options, whatever the count."""
        return list(self.options)

    def own(self, value: Any) -> Any:
        """A value that it contains, as it stands among the options."""
        return self.options[self._compared.index(plain(value))]

    def every(self) -> Iterable[Any]:
        """All options."""
        return self.options

    def at(self, position: float) -> Any:
        """The option at a position in [0, 1]."""
        return self.options[_slot(position, self.size)]

    def position(self, value: Any) -> float:
        """The inverse of `at`: the middle of the option's part."""
        return (self._compared.index(plain(value)) + 0.5) / self.size

    def ends(self) -> tuple[Any, ...]:
        """The values that a recipe must accept: all options."""
        return self.options

    def __str__(self) -> str:
        return ",".join(map(word, self.options)) + self._when()


Range: TypeAlias = Uniform | Integers | Choice
Space: TypeAlias = Mapping[str, Range]


def _number(name: str, value: Any) -> float:
    value = unwrapped(value)
    if not is_number(value) or not math.isfinite(value):
        raise LuthierError(f"{name} of a range must be a finite number, got {value!r}")
    return float(value)


def _check_bounds(low: float, high: float, log: bool) -> None:
    if low >= high:
        raise LuthierError(f"a range goes from its lower to a higher bound, got {low:g}..{high:g}: swap or widen them")
    if log and low <= 0:
        raise LuthierError(f"a log scale needs a lower bound above zero, got {low:g}: raise it, or drop log")


def _slot(position: float, size: int) -> int:
    """Which of `size` equal parts of [0, 1] a position lies in."""
    return min(int(position * size), size - 1)


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
