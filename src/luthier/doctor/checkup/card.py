"""The health card: one line per organ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

State = Literal["green", "amber", "red", "could not look"]


@dataclass(frozen=True)
class Organ:
    """What one part of the examination found.

    Attributes:
        name: which part.
        state: green: in order; amber: the result will suffer; red: training as it is would be in vain.
        reason: what was measured, with numbers; of "could not look": what was missing.
        remedy: what to do; "" when green.
    """

    name: str
    state: State
    reason: str
    remedy: str = ""


@dataclass(frozen=True)
class HealthCard:
    """The outcome of `luthier.check`.

    Attributes:
        task: name of the task.
        organs: in the order of the examination.
        suggested: values worth trying, such as {"lr": 0.003}.
        took_s: seconds.
    """

    task: str
    organs: tuple[Organ, ...]
    suggested: Mapping[str, Any] = field(default_factory=dict)
    took_s: float = 0.0

    @property
    def worst(self) -> State:
        """red, amber or green: the worst organ that could be looked at."""
        states = {organ.state for organ in self.organs}
        return "red" if "red" in states else "amber" if "amber" in states else "green"

    @property
    def is_healthy(self) -> bool:
        """No organ is amber or red."""
        return self.worst == "green"

    def __getitem__(self, name: str) -> Organ:
        """The organ of this name.

        Raises:
            LuthierError: no such organ; close matches are named.
        """
        from luthier.errors import unknown

        by_name = {organ.name: organ for organ in self.organs}
        if name not in by_name:
            raise unknown("organ", name, by_name)
        return by_name[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "worst": self.worst}

    def __str__(self) -> str:
        """One line per organ."""
        lines = [f"{organ.name:<16}{organ.state:<16}{organ.reason}" for organ in self.organs]
        return "\n".join([f"health of {self.task}: {self.worst}", *lines])
