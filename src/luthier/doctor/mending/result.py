"""What a mending leaves: every step tried with its effect, the patches kept, the diagnosis before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from luthier.doctor.findings import Diagnosis
from luthier.doctor.mending.judging import Effect
from luthier.files import from_json, to_json, write_atomic
from luthier.patch import Patch
from luthier.recipe import Recipe
from luthier.record import Record

Outcome = Literal["kept", "dropped", "not applicable"]
Ending = Literal["healthy", "budget", "nothing left", "interrupted"]


@dataclass(frozen=True)
class Step:
    """One patch that was tried.

    Attributes:
        round: which round of diagnosis it belongs to, from 1.
        patch: what was changed.
        source: the symptom that it was for; "book" or "again" when it was tried anyway.
        outcome: "kept", "dropped" or "not applicable".
        reason: why, in words.
        effect: paired gains of the validation metric; None when no full training was made.
        values: validation value with the patch, one per seed.
        without: validation value of the same seeds without it.
        steps: optimizer steps that it cost.
    """

    round: int
    patch: Patch
    source: str
    outcome: Outcome
    reason: str
    effect: Effect | None = None
    values: tuple[float | None, ...] = ()
    without: tuple[float | None, ...] = ()
    steps: int = 0


@dataclass(frozen=True)
class Mended:
    """The result of a mending.

    Attributes:
        task, metric, direction: what was trained, what is compared, which way is better.
        folder: where everything stands: mend.json and the record of every trial.
        start, recipe: the recipe before, and with all patches kept.
        first, record: their trainings with the recipe's own seed.
        steps: every patch tried, in order.
        before, after: diagnosis of these trainings.
        values_before, values_after: best validation value of each seed.
        spent, limit: optimizer steps used, and those allowed.
        ended: why it ended.
        elapsed_s: seconds in all.
        test: the one reading of the test data, for "before" and "after"; None when it was not made.
    """

    task: str
    metric: str
    direction: str
    folder: Path
    start: Recipe
    recipe: Recipe
    first: Record
    record: Record
    steps: tuple[Step, ...]
    before: Diagnosis
    after: Diagnosis
    values_before: tuple[float | None, ...]
    values_after: tuple[float | None, ...]
    spent: int
    limit: int
    ended: Ending
    elapsed_s: float
    test: Mapping[str, Mapping[str, float]] | None = None

    @property
    def kept(self) -> tuple[Step, ...]:
        """The steps that were kept, in order."""
        return tuple(step for step in self.steps if step.outcome == "kept")

    @property
    def patches(self) -> tuple[Patch, ...]:
        """The patches that were kept, in order."""
        return tuple(step.patch for step in self.kept)

    def __str__(self) -> str:
        """The whole story as plain text."""
        from luthier.show.mend_terminal import text_of_mending

        return text_of_mending(self)

    def save(self) -> None:
        """Write mend.json, and the mended recipe as recipe.json, into the folder."""
        write_atomic(self.folder / "mend.json", to_json(self.to_dict(), indent=2) + "\n")
        self.recipe.save(self.folder / "recipe.json")

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        plain = ("task", "metric", "direction", "spent", "limit", "ended", "elapsed_s", "test")
        return {
            **{name: getattr(self, name) for name in plain},
            "values": {"before": list(self.values_before), "after": list(self.values_after)},
            "records": {"before": str(self.first.path), "after": str(self.record.path)},
            "diagnosis": {"before": _plain(self.before), "after": _plain(self.after)},
            "recipe": self.recipe.model_dump(mode="json"),
            "steps": [_step(step) for step in self.steps],
        }


def _plain(diagnosis: Diagnosis) -> Any:
    from luthier.doctor import wording

    return from_json(wording.to_json(diagnosis))


def _step(step: Step) -> dict[str, Any]:
    plain = ("round", "source", "outcome", "reason", "steps")
    return {
        **{name: getattr(step, name) for name in plain},
        "patch": step.patch.model_dump(mode="json"),
        "gains": None if step.effect is None else list(step.effect.gains),
        "spread": None if step.effect is None else step.effect.spread,
        "values": list(step.values),
        "without": list(step.without),
    }
