"""Parts of a recipe: named choices with settings of their own.

An optimiser, a schedule, an augmentation is a `Part`: a small frozen model whose `name` tells its kind.
Each room keeps an explicit dict from names to parts; `resolve` turns what a user may write
(a name, a dict, a part, a callable) into a part.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PrivateAttr, ValidationError

from luthier.errors import LuthierError, unknown
from luthier.hashing import source_hash


class Frozen(BaseModel):
    """A frozen value object that refuses unknown fields, with errors a user can read."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    if not TYPE_CHECKING:  # the generated signature stays visible to type checkers and editors

        def __init__(self, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise readable(error, type(self)) from None


class Part(Frozen):
    """One named choice with its settings; frozen, compared by value, JSON round trip."""

    name: str

    def settings(self, brief: bool = False) -> dict[str, Any]:
        """Everything but the name; brief: only what is not at its default."""
        fields = type(self).model_fields
        return {key: item for key, item in self if key != "name" and not (brief and item == fields[key].default)}

    def __repr_args__(self) -> Any:
        return [(key, value) for key, value in super().__repr_args__() if key != "name"]


def readable(error: ValidationError, kind: type[BaseModel]) -> LuthierError:
    """One sentence per fault of a failed validation: the field, what was expected, what came."""
    what = kind.__name__
    sentences = []
    for fault in error.errors():
        path = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            sentences.append(str(unknown(f"{what.lower()} field", path, kind.model_fields)))
        elif fault["type"] == "literal_error":
            known = re.findall(r"'([^']*)'", fault["ctx"]["expected"])
            sentences.append(str(unknown(f"{what.lower()}.{path}", fault["input"], known)))
        elif fault["type"] == "value_error":
            prefix = f"{path}: " if path else ""
            sentences.append(f"{prefix}{fault['ctx']['error']}")
        else:
            expected = (
                fault["msg"].replace("Input should be", "expected").replace("Field required", "a value is required")
            )
            sentences.append(f"{what.lower()}.{path}: {expected}, got {fault['input']!r}")
    return LuthierError("; ".join(sentences))


class Function(BaseModel):
    """A user's callable inside a recipe: stored as its name and a hash of its source, never imported.

    Loading a recipe from a file asks for the callable again (`Recipe.load(path, callables={name: f})`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    function: str
    source_hash: str
    _call: Callable[..., Any] | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, call: Callable[..., Any]) -> Function:
        """Describe a callable by its name and the hash of its source (of its bytecode without one)."""
        made = cls(function=getattr(call, "__name__", type(call).__name__), source_hash=source_hash(call))
        made._call = call
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Function) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        return hash((self.function, self.source_hash))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it; asks for it again when only its name is here."""
        if self._call is None:
            raise LuthierError(
                f"the recipe uses the callable {self.function!r}, and a file cannot hold it: "
                f"pass it again, Recipe.load(path, callables={{{self.function!r}: {self.function}}})"
            )
        return self._call(*args, **kwargs)


_given: ContextVar[Mapping[str, Callable[..., Any]] | None] = ContextVar("callables given again", default=None)


@contextlib.contextmanager
def callables_given(callables: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """While parts are read from a file: the callables that stand behind the names in it."""
    token = _given.set(callables)
    try:
        yield
    finally:
        _given.reset(token)


def resolve(known: Mapping[str, type[Part]], what: str, custom: type[Part] | None = None) -> BeforeValidator:
    """A validator that accepts a part, its name, its dict, or (with `custom`) a callable.

    Args:
        known: the room's dict from names to parts.
        what: the noun for messages, such as "optimizer".
        custom: the part with a field `call: Function` that holds a user's callable.
    """

    def validate(value: Any) -> Any:
        if isinstance(value, Part) or value is None:
            return value
        if isinstance(value, str):
            value = {"name": value}
        if isinstance(value, Mapping):
            return from_mapping(dict(value))
        if custom is not None and callable(value):
            return custom(name="custom", call=Function.of(value))  # type: ignore[call-arg]
        accepted = "a name, a part, a dict with 'name'" + (" or a callable" if custom else "")
        raise LuthierError(f"{what} must be {accepted}, got {value!r}")

    def from_mapping(settings: dict[str, Any]) -> Part:
        name = str(settings.get("name"))
        if name == "custom" and custom is not None:
            return _with_callable(custom(**settings), custom)
        if name not in known:
            raise unknown(what, name, known)
        return known[name](**settings)

    return BeforeValidator(validate)


def _with_callable(part: Part, custom: type[Part]) -> Part:
    """A custom part read from a file, joined with the callable given for it; refused when the source differs."""
    stored: Function = part.call  # type: ignore[attr-defined]
    call = (_given.get() or {}).get(stored.function)
    if call is None:
        return part
    given = Function.of(call)
    if given.source_hash != stored.source_hash:
        raise LuthierError(
            f"the callable {stored.function!r} is not the one that the recipe was made with "
            f"(source {given.source_hash}, recorded {stored.source_hash}): pass the recorded one, or make a new recipe"
        )
    return custom(name="custom", call=given)  # type: ignore[call-arg]
