"""What the next trial trains with: the baseline's values, known-good settings, what the doctor asks for, a sampler.

The sampler "auto" is all of them: every third trial is what the doctor asks for the best one so far (when it asks for
anything); the others begin with known-good settings (for a function with the middle of its space, see
`starts.centres`) and are then the answers of a sampler over ranges that widen where trials crowd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from luthier.files import to_json
from luthier.tuning import samplers
from luthier.tuning.closing import trainings
from luthier.tuning.conditions import resolved
from luthier.tuning.jobs import BASELINE, Plan, Proposal
from luthier.tuning.ranges import Range
from luthier.tuning.searched import Searched
from luthier.tuning.space import space_from_json
from luthier.tuning.standings import standings
from luthier.tuning.starts import NAMED
from luthier.tuning.state import State
from luthier.tuning.steering import next_change
from luthier.tuning.strategies import Auto

AUTO = "auto"
UNDER_AUTO = "tpe"
DOCTORED = 3
WHOLE = 2

_Known: TypeAlias = tuple[list[tuple[str, dict[str, Any]]], samplers.Constraint]


class Proposer:
    """Proposes trials.

    Args:
        searched: what is tuned.
        plan: its arms.
        sampler: name in `SAMPLERS`, "auto", or an object that `samplers.as_sampler` knows.
        constraints: functions of a trial's values, see `samplers.Constraint`.
    """

    def __init__(
        self, searched: Searched, plan: Plan, sampler: Any, constraints: Sequence[samplers.Constraint] = ()
    ) -> None:
        self.searched, self.plan, self.constraints = searched, plan, constraints
        self.auto = sampler == AUTO
        self.sampler = UNDER_AUTO if self.auto else sampler
        self._by_arm: dict[str, _Known] = {}
        self._first = [(arm, values) for arm, values in plan.first if values != self._baseline(arm)]

    def __call__(self, state: State, number: int, arm: str) -> Proposal | None:
        """Values for a new trial, and how many steps it takes with them; None when the arm's space is exhausted."""
        if arm == BASELINE:
            return self._proposal(state, self.searched.complete(self.searched.start_values or {}), "")
        if (named := self._named(state, arm)) is not None:
            return named
        if self.auto and (steered := self._steered(state, number, arm)) is not None:
            return steered
        fields, space = self.plan.arms.get(arm, []), space_now(self.searched.space, state)
        values = samplers.propose(
            self.sampler, state, space, fields, self.searched.start, arm, number, self.constraints
        )
        return None if values is None else self._proposal(state, values, "")

    def is_exhausted(self, state: State) -> bool:
        """Whether the trials of every arm have had all that there is."""
        space, start = space_now(self.searched.space, state), self.searched.start
        return all(
            samplers.is_exhausted(self.sampler, state, {path: space[path] for path in fields}, start, arm)
            for arm, fields in self.plan.arms.items()
        )

    def _steered(self, state: State, number: int, arm: str) -> Proposal | None:
        if arm not in self._by_arm:
            self._by_arm[arm] = self._known_before(arm)
        starts, fits = self._by_arm[arm]
        change = next_change(state, arm) if number % DOCTORED == 0 else None
        if change is not None and fits(change.values):
            whole = change.whole or (change.first and self._has_room(state))
            return self._proposal(state, change.values, change.reason, whole)
        if standings(state).begun[arm] > len(starts) + sum(arm == each for each, _ in self.plan.first):
            return None
        tried = _tried(state, arm)
        for source, values in starts:
            if _key(values) not in tried:
                return self._proposal(state, values, source, self._goes_whole(state, arm))
        return None

    def _named(self, state: State, arm: str) -> Proposal | None:
        """The next configuration that the call names for this arm, whatever the sampler."""
        if any(each == arm for each, _ in self._first):
            tried = _tried(state, arm)
            self._first = [(each, values) for each, values in self._first if each != arm or _key(values) not in tried]
        values = next((values for each, values in self._first if each == arm), None)
        return None if values is None else self._proposal(state, values, NAMED, self._goes_whole(state, arm))

    def _goes_whole(self, state: State, arm: str) -> bool:
        """Whether an arm's next trial trains to its end at once: the first, and what is likely to be good after it."""
        begun = standings(state).begun[arm]
        return self.plan.strategy == AUTO and (not begun or (begun < WHOLE and self._has_room(state)))

    def _known_before(self, arm: str) -> _Known:
        """What the arm's search begins with, and why; and whether values meet the constraints."""
        ranges, baseline = self._ranges(arm), self._baseline(arm)
        fits = samplers.fitting(self.constraints, self.searched.space.keys() - ranges, self.searched.start)
        return [each for each in self.searched.starts(ranges) if each[1] != baseline and fits(each[1])], fits

    def _ranges(self, arm: str) -> dict[str, Range]:
        return {path: self.searched.space[path] for path in self.plan.arms.get(arm, [])}

    def _baseline(self, arm: str) -> dict[str, Any] | None:
        """What trial 0 has of the arm's fields; None where it lies outside their ranges, or where there is none."""
        start = self.searched.start
        return samplers.inside(resolved(self._ranges(arm), start), start) if self.plan.baseline else None

    def _has_room(self, state: State) -> bool:
        """Whether there is room for trainings to their end of what is likely to be good: readings on the way mislead.

        A network with dropout, say, reads worse at first and better at last. For a function nothing is that likely.
        """
        return self.plan.strategy == AUTO and self.searched.recipes and trainings(state, self.plan) >= Auto.ample

    def _proposal(self, state: State, values: dict[str, Any], source: str, whole: bool = False) -> Proposal:
        return Proposal(values, self.searched.total_steps(values, state) or 1, source, whole)


def space_now(space: dict[str, Range], state: State) -> dict[str, Range]:
    """The space with the ranges that were widened since the study began."""
    return {**space, **space_from_json(state.ranges)} if state.ranges else space


def _tried(state: State, arm: str) -> set[str]:
    """The configurations that the arm's trials have, as keys."""
    return {_key(trial.values) for trial in state.search if trial.arm == arm}


def _key(values: dict[str, Any]) -> str:
    return to_json(dict(sorted(values.items())))
