"""How a plain row becomes a typed one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self


class Row:
    """A row with types: unknown keys are ignored, so that newer files stay readable.

    Attributes:
        nested: of the fields that hold a row, or several: their types.
    """

    nested: ClassVar[Mapping[str, type[Row]]] = {}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """The typed row of a plain one."""
        known = {item.name for item in fields(cls)}  # type: ignore[arg-type]
        return cls(**{key: _typed(value, cls.nested.get(key)) for key, value in row.items() if key in known})


def _typed(value: Any, kind: type[Row] | None) -> Any:
    """JSON has lists only; rows hold tuples."""
    if isinstance(value, (list, tuple)):
        return tuple(_typed(item, kind) for item in value)
    return value if kind is None or value is None else kind.of(value)
