"""What a study knows: its trials and where they stand, as `folding` makes it of the events."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from luthier.files import from_stored
from luthier.tuning.conditions import completed
from luthier.tuning.objectives import RESULT, Objective, best_scores, losses
from luthier.tuning.pareto import pareto_front
from luthier.tuning.space import Range, space_from_json

BASELINE = "baseline"
OPEN = ("waiting", "running", "paused")
ENDED = ("finished", "stopped", "failed")


@dataclass(frozen=True)
class Event:
    """One fact of a study.

    Attributes:
        id: position in the ledger, rising.
        clock: seconds that the study has been at work, over all calls.
        kind: what happened; see `folding.apply`.
        payload: the details, JSON values.
    """

    id: int
    clock: float
    kind: str
    payload: dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """One training of a study.

    Attributes:
        number: its number in the study; 0 is the baseline recipe.
        kind: "search", or "repeat" (a recipe retrained with another seed).
        arm: name of the group of fields that it varies; "baseline" for trial 0.
        values: sampled values by dotted path.
        seed: of weights, data order and dropout.
        state: "waiting", "running", "paused", "finished", "stopped" (outranked, or by itself) or "failed".
        reason: why it stands so.
        value: best validation value of the metric so far, the first objective: one reading, as it was told.
        level: what its curve is worth (see `levels`), by which trials of one objective are ranked; None while it trains
            for the first time.
        step, total_steps: optimizer steps taken, and those of the whole recipe.
        time_s: seconds of training.
        started_s, ended_s: when, in seconds since the study began.
        rows: rows of metrics as in `Record.rows`; of a function that reports and returns a number the last row, of the
            kind "result", is that number, and `value` with it.
        folder: its record.
        of: for a repeat, the search trial that is retrained (0: the baseline).
        until: the step that it was last told to train to.
        crashes, deaths: how often its worker died, in all and since it last got further than ever.
        furthest: the last step that it ever read at, also where a resumed training begins before it.
        ends: in a deterministic study: when its present training ends on the virtual clock.
        may_return: whether it was stopped because its call ended, so that a later call may go on with it.
        scores: readings of all objectives by name, where the first of them was best; empty before there are any.
        source: who asked for it, when it was not the sampler: known-good settings, or the doctor and what for.
        params: what a training function is called with: its values, and where it starts for those of other groups.
    """

    number: int
    kind: str
    arm: str
    values: dict[str, Any]
    seed: int
    state: str
    reason: str
    value: float | None
    step: int
    total_steps: int
    time_s: float
    started_s: float | None
    ended_s: float | None
    rows: list[dict[str, Any]]
    folder: Path
    of: int | None
    until: int = 0
    crashes: int = 0
    deaths: int = 0
    furthest: int = 0
    source: str = ""
    ends: float = 0.0
    may_return: bool = False
    scores: dict[str, float] = field(default_factory=dict)
    level: float | None = None
    params: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        value = "none" if self.value is None else f"{self.value:.6g}"
        return f"Trial({self.number}, {self.state}, value={value}, step={self.step}, values={self.values})"

    @property
    def ended(self) -> bool:
        """Whether it is trained no further, at least in this call."""
        return self.state in ENDED

    @property
    def expected_s(self) -> float | None:
        """Seconds that the whole training takes at the pace so far; None before the first reading."""
        return self.time_s / self.step * self.total_steps if self.step and self.time_s else None

    def scores_until(self, step: int, objectives: Sequence[Objective]) -> tuple[float, ...] | None:
        """Readings of all objectives up to a step, where the first of them was best; None when there are none.

        What a function returns at last is none of them: on the way others have nothing like it.
        """
        rows = (row for row in self.rows if row["step"] <= step and row["kind"] != RESULT)
        return best_scores(rows, objectives, self.total_steps)


@dataclass
class State:
    """All that a study knows; changed by `folding.apply` only.

    Attributes:
        folder: of the study.
        description: name, task, recipe, space, groups, seed: what identifies the study.
        settings: of the last call: sampler, strategy, trials, budget (budget_s: of time), workers, seed, repeats; with
            a depot its address (checkpoints), and how many calls have used it (calls).
        trials: in the order of their numbers.
        clock: seconds at work up to the last event.
        tests: readings of the test data: trial number -> values.
        test_readings: how often test data was opened.
        unread: why the last call did not read it, where that is not plain.
        ended: why the last call ended ("" while one is at work or after a crash).
        virtual: a deterministic study's virtual clock.
        changes: what the doctor would change in a finished trial: its number -> changes, best first.
        ranges: ranges that were widened since the study began, by path (as JSON).
        widenings: how often, by path.
        changed: numbers of trials in the order of their changes.
        followers: what others have worked out from the state, and keep up to date with it (see `standings`).
    """

    folder: Path
    description: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    clock: float = 0.0
    tests: dict[int, dict[str, float]] = field(default_factory=dict)
    test_readings: int = 0
    unread: str = ""
    ended: str = ""
    virtual: float = 0.0
    changes: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    ranges: dict[str, Any] = field(default_factory=dict)
    widenings: dict[str, int] = field(default_factory=dict)
    changed: list[int] = field(default_factory=list)
    followers: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def begin(self, description: dict[str, Any]) -> None:
        """Be of a study with this description, in which nothing has happened."""
        before = self.clock
        self.__dict__ = vars(State(self.folder, description))
        self.clock = before

    @cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """What is searched for; the first leads: rungs apart, the best is the best in it."""
        task = self.description["task"]
        named = self.description.get("objectives") or {task["metric"]: task["direction"]}
        reported = self.description.get("recipe") is None
        return tuple(Objective(name, direction, reported) for name, direction in named.items())

    def completed(self, values: dict[str, Any]) -> dict[str, Any]:
        """What a trial with these values is called with: of a function whose parameters are tuned in groups, all."""
        return completed(self._space, self.start, values) if self.description.get("groups") and self.start else values

    @cached_property
    def start(self) -> dict[str, Any]:
        """The values that the search of a function started from; none where it started from nowhere."""
        values: dict[str, Any] = from_stored(self.description.get("start") or {})
        return values

    @cached_property
    def _space(self) -> dict[str, Range]:
        return space_from_json(self.description["space"])

    @property
    def metric(self) -> str:
        """Name of the first objective."""
        return self.objectives[0].name

    @property
    def direction(self) -> str:
        """Which way the first objective improves: "max" or "min"."""
        return self.objectives[0].direction

    @property
    def sign(self) -> float:
        """The factor that makes a better value of the first objective smaller."""
        return self.objectives[0].sign

    @property
    def search(self) -> list[Trial]:
        """The trials of the search, the baseline first."""
        return [trial for trial in self.trials if trial.kind == "search"]

    def repeats(self, of: int) -> list[Trial]:
        """Retrainings of a search trial with other seeds, in the order of their seeds."""
        return sorted((trial for trial in self.trials if trial.of == of), key=lambda trial: trial.seed)

    def rank(self, trials: Iterable[Trial]) -> list[Trial]:
        """Trials with a value, best first by `losses`, then by their numbers."""
        valued = (trial for trial in trials if trial.value is not None)
        return sorted(valued, key=lambda trial: (*self.losses(trial), trial.number))

    def losses(self, trial: Trial) -> tuple[float, ...]:
        """What a trial is ranked by, smaller is better: its level, then its value; of several objectives its scores."""
        scores = losses(trial.scores.values(), self.objectives)
        return scores if len(scores) > 1 or trial.level is None else (self.sign * trial.level, *scores)

    @property
    def front(self) -> list[Trial]:
        """The finished search trials that no other one beats in all objectives; of one objective the best."""
        if len(self.objectives) == 1:
            return self.rank(trial for trial in self.search if trial.state == "finished")[:1]
        return self.undominated(trial for trial in self.search if trial.state == "finished")

    def undominated(self, trials: Iterable[Trial]) -> list[Trial]:
        """Those with scores that no other one beats in all objectives, in the order of `rank`."""
        ranked = self.rank(trials)
        directions = [objective.direction for objective in self.objectives]
        return [ranked[index] for index in pareto_front([tuple(each.scores.values()) for each in ranked], directions)]

    @property
    def baseline(self) -> Trial | None:
        """The trial of what the study began from; None before it is proposed, or where there is none."""
        return next((trial for trial in self.trials[:1] if trial.arm == BASELINE), None)

    @property
    def winner(self) -> Trial | None:
        """The search trial over the full budget that ranks first, the baseline left out.

        By its level, not by its best reading: that is one of many, and the luckiest (see `levels`).
        """
        ranked = self.rank(t for t in self.search if t.state == "finished" and t.arm != BASELINE)
        return ranked[0] if ranked else None


def best(readings: Iterable[float | None], direction: str) -> float | None:
    """The best finite reading; None when there is none.

    >>> best([0.5, float("nan"), 0.7, None], "max")
    0.7
    """
    finite = [float(value) for value in readings if value is not None and math.isfinite(value)]
    return (max if direction == "max" else min)(finite) if finite else None


def trial_folder(study: Path, number: int) -> Path:
    """Where a trial's record goes.

    >>> trial_folder(Path("studies/mnist"), 7).as_posix()
    'studies/mnist/trials/0007'
    """
    return study / "trials" / f"{number:04d}"
