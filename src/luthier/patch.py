"""A patch: a remedy as data. Applied to a recipe it gives a new recipe, or says why it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from luthier.errors import LuthierError
from luthier.parts import Frozen
from luthier.recipe import Recipe


class Set(Frozen):
    """Put a value at a dotted path of the recipe."""

    op: Literal["set"] = "set"
    field: str
    value: Any

    def new_value(self, old: Any) -> Any:
        """The value after this operation."""
        return self.value


class Scale(Frozen):
    """Multiply a number at a dotted path, never past `low` (downwards) or `high` (upwards); integers stay integers."""

    op: Literal["scale"] = "scale"
    field: str
    factor: float = Field(gt=0)
    low: float | None = None
    high: float | None = None

    def new_value(self, old: Any) -> Any:
        """The value after this operation.

        Raises:
            LuthierError: there is no number to scale.
        """
        if isinstance(old, bool) or not isinstance(old, (int, float)):
            raise LuthierError(f"{self.field} is {old!r}, not a number to scale")
        new = old * self.factor
        if self.factor < 1 and self.low is not None:
            new = max(new, min(self.low, old))
        if self.factor > 1 and self.high is not None:
            new = min(new, max(self.high, old))
        return round(new) if isinstance(old, int) else new


@dataclass(frozen=True)
class NotApplicable:
    """Why a patch cannot be applied to a recipe."""

    reason: str


class Patch(Frozen):
    """Operations on a recipe with the reason for them.

    >>> patch = Patch(reason="divergence", operations=[Scale(field="lr", factor=0.1)])
    >>> patch.apply(Recipe(lr=0.5)).lr
    0.05
    >>> Patch(reason="finer steps", operations=[Set(field="schedule.gamma", value=0.5)]).apply(Recipe())
    NotApplicable(reason="unknown setting of schedule 'constant' 'gamma': there are none")
    """

    reason: str
    operations: tuple[Annotated[Set | Scale, Field(discriminator="op")], ...] = Field(min_length=1)

    def apply(self, recipe: Recipe) -> Recipe | NotApplicable:
        """The patched recipe; `NotApplicable` when a field is not there, out of range, or nothing would change."""
        patched = recipe
        try:
            for operation in self.operations:
                new = operation.new_value(patched.value(operation.field))
                patched = patched.replace({operation.field: new})
        except LuthierError as error:
            return NotApplicable(str(error))
        if patched == recipe:
            fields = ", ".join(operation.field for operation in self.operations)
            return NotApplicable(f"nothing would change: {fields} already has this value")
        return patched
