"""What a study's best trials suffer from steers what it tries next.

Two ways: the doctor's patches for the best trial become trials themselves, also outside the ranges; and a range on a
log scale is widened when the best trials crowd at one of its ends, or the best one, asked for by the doctor, lies
beyond it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from luthier.files import to_json
from luthier.tuning.edges import best_of, end_of
from luthier.tuning.ranges import Range, Uniform
from luthier.tuning.standings import standings
from luthier.tuning.state import State

if TYPE_CHECKING:
    from luthier.recipe import Recipe
    from luthier.record import Record

_MOST = 3
_KEPT_FIELDS = ("epochs", "seed")  # a longer training would not be compared at equal budgets
_WIDER = 4.0
_MOST_WIDENINGS = 2


@dataclass(frozen=True)
class Change:
    """A trial that the doctor asks for.

    Attributes:
        values: all of its values by dotted path.
        reason: what it is for, in words.
        whole: whether it trains to its end at once.
        first: whether it is the most promising thing that the doctor asks for that trial.
    """

    values: dict[str, Any]
    reason: str
    whole: bool = False
    first: bool = False


def prescriptions(record: Record, recipe: Recipe) -> list[dict[str, Any]]:
    """What the doctor would change in a finished trial, most promising first; made where the trial was trained.

    Args:
        record: of the trial, with its vitals.
        recipe: as it was trained.

    Returns:
        At most three changes: the settings by dotted path, the symptom, and the reason in words; "whole" where the
        trial has learnt nothing: readings on the way of one that begins to learn would be lost in the others' noise.
    """
    from luthier.doctor.mending.candidates import prescribed
    from luthier.patch import NotApplicable

    changes: list[dict[str, Any]] = []
    diagnosis = record.diagnose()
    stuck = any(finding.symptom == "no_learning" and finding.severity != "info" for finding in diagnosis.findings)
    for _, symptom, patch in sorted(prescribed(diagnosis), key=lambda found: found[0]):
        fields = [operation.field for operation in patch.operations]
        patched = patch.apply(recipe)
        if isinstance(patched, NotApplicable) or any(field.split(".")[0] in _KEPT_FIELDS for field in fields):
            continue
        values = {field: _as_json(patched.value(field)) for field in fields}
        if values not in [change["values"] for change in changes]:
            changes.append({"symptom": symptom, "reason": patch.reason, "values": values})
            changes[-1] |= {"whole": True} if stuck else {}
    return changes[:_MOST]


def next_change(state: State, arm: str) -> Change | None:
    """What the doctor asks for the arm's best finished trial and nobody has tried; None when there is nothing."""
    best = next((n for n in standings(state).finished if state.trials[n].arm == arm), None)
    asked = state.changes.get(best, []) if best is not None else []
    if best is None or not asked:
        return None
    tried = {to_json(dict(sorted(trial.values.items()))) for trial in state.search}
    for change in asked:
        values = {**_kept(state.trials[best].values, change["values"]), **change["values"]}
        if to_json(dict(sorted(values.items()))) not in tried:
            reason = f"the doctor, for {change['symptom']} of trial {best}: {change['reason']}"
            return Change(values, reason, change.get("whole", False), first=change is asked[0])
    return None


def _kept(values: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a trial without the settings of parts that are replaced: another optimizer has others."""
    return {path: value for path, value in values.items() if path in change or path.split(".")[0] not in change}


def widened(space: Mapping[str, Range], state: State, arm: str) -> dict[str, Uniform]:
    """Ranges that should be wider: on a log scale, with the arm's three best trials at the same end or beyond it.

    That known-good settings lie there says nothing, so the sampler or the doctor must have asked for one of the three;
    and the best one is enough, where it lies beyond.

    Returns:
        The new ranges by path, four times as far at that end as it was, or as the best trial is; empty when all is
        well.
    """
    best, found = best_of(state, arm), dict[str, Uniform]()
    for path, range_ in space.items():
        if not isinstance(range_, Uniform) or not range_.log or state.widenings.get(path, 0) >= _MOST_WIDENINGS:
            continue
        end = end_of(path, range_, best)
        if end == "lower":
            found[path] = replace(range_, low=min(best[0].values[path], range_.low) / _WIDER)
        elif end == "upper":
            found[path] = replace(range_, high=max(best[0].values[path], range_.high) * _WIDER)
    return found


def _as_json(value: Any) -> Any:
    """A recipe's value as the ledger keeps it: parts, such as those of an augmentation, as dicts."""
    from luthier.parts import Part

    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    return value.model_dump(mode="json") if isinstance(value, Part) else value
