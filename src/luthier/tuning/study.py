"""A study as readers see it: a folder, while the search runs and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.tuning.comparing import Comparison, compare
from luthier.tuning.conditions import Baseline, active, value_or_none
from luthier.tuning.edges import Edge, crowded
from luthier.tuning.folding import fold
from luthier.tuning.function_search import Values
from luthier.tuning.jobs import BASELINE
from luthier.tuning.ledger import StudyError, read_events
from luthier.tuning.objectives import COLUMNS
from luthier.tuning.pareto import by_front
from luthier.tuning.saves import read_best, read_state
from luthier.tuning.space import Range, space_from_json
from luthier.tuning.state import State, Trial

if TYPE_CHECKING:
    from collections.abc import Callable

    from luthier.recipe import Recipe
    from luthier.record import Record
    from luthier.tuning.importance import Importance

__all__ = ["Comparison", "Study", "Trial"]


class Study:
    """What a search has found so far.

    Attributes:
        folder: its folder.
        name: of the task.
        metric, direction: what is searched for, of several objectives the first.
        objectives: which way each improves, "max" or "min", by name; the first leads.
        task: as `Task.describe()` gives it.
        baseline: the recipe that the search started from; None for a training function.
        start: values by name that the search started from: the recipe, or those given for a function.
        space: ranges by dotted path.
        widened: ranges that were widened during the search, as they are now.
        groups: arms of the search and their fields; None: one arm over the whole space.
        trials: in order of their numbers.
        best: the trial to go with: of winner and baseline the one that retrains better, where both have been retrained
            with two seeds at least (or with all that were asked for); else the search trial over its full budget that
            ranks first by its level, the best of its smoothed curve, the baseline included. `best.value` is its best
            single reading, or what its function returned. None before one has finished.
        comparison: winner against baseline; None before both have finished.
        settings: sampler, strategy, trials, budget, workers, seed, repeats of the last call, and where it keeps what
            trials save, if not in its folder (checkpoints).
        elapsed_s: seconds at work, over all calls.
        ended: why the last call ended: "finished", "budget" (used up, or no further trial fits into the rest),
            "target" (reached), "interrupted", "" while it runs (or after a crash).
    """

    def __init__(self, state: State, callables: Mapping[str, Callable[..., Any]] | None = None) -> None:
        if not state.description:
            raise StudyError(f"{state.folder} holds a study that was never begun: remove it, or tune again")
        self.folder = state.folder
        self.state = state
        self.name: str = state.description["name"]
        self.metric, self.direction = state.metric, state.direction
        self.objectives = {objective.name: objective.direction for objective in state.objectives}
        self.task: dict[str, Any] = state.description["task"]
        recipe = state.description["recipe"]
        self.baseline = None if recipe is None else _recipe(recipe, callables)
        self.start: Baseline = self.baseline or Values(state.start)
        self.space: dict[str, Range] = space_from_json(state.description["space"])
        self.widened: dict[str, Range] = space_from_json(state.ranges)
        self.groups: dict[str, list[str]] | None = state.description["groups"]
        self.settings = state.settings
        self.trials = list(state.trials)
        self.elapsed_s = state.clock
        self.ended = state.ended

    @classmethod
    def open(
        cls,
        folder: str | Path,
        callables: Mapping[str, Callable[..., Any]] | None = None,
        storage: str | None = None,
    ) -> Study:
        """Read a study from its folder; another process may be at work on it.

        Args:
            folder: of the study.
            callables: functions that the baseline recipe names, if it names any.
            storage: address of a database that several studies share; None: where the folder says, which knows no
                password.

        Raises:
            StudyError: there is no study in the folder, or its database is damaged.
        """
        folder = Path(folder).expanduser()
        return cls(fold(read_events(folder, storage=storage), folder), callables)

    @property
    def best(self) -> Trial | None:
        """The trial to go with; another one may have a luckier single reading."""
        comparison, baseline = self.comparison, self.state.baseline
        if comparison is not None and comparison.decides and baseline is not None:
            return self.trials[comparison.winner_number] if comparison.difference > 0 else baseline
        return next(iter(self.state.rank(t for t in self.trials if t.kind == "search" and t.state == "finished")), None)

    @property
    def front(self) -> list[Trial]:
        """The search trials over their full budget that no other one beats in all objectives: the Pareto front.

        As the search read them, best first in the first objective; `trial.scores` has all objectives.
        """
        return self.state.front

    @property
    def crowded(self) -> list[Edge]:
        """Ranges at whose end the best trials lie, as they are now: wider ones may hold better values.

        A range that was given is never widened, and of the derived ones only some are, a few times.
        """
        return crowded({**self.space, **self.widened}, self.state, self.groups or {"all": list(self.space)})

    @property
    def comparison(self) -> Comparison | None:
        """Winner against baseline over their common seeds."""
        return compare(self.state)

    def recipe(self, number: int) -> Recipe:
        """The recipe of a trial, seed included.

        Raises:
            StudyError: there is no such trial, or the study is one of a training function, which has no recipes.
        """
        if self.baseline is None:
            raise StudyError(f"{self.name} is a training function, which has no recipe: read study.best.params")
        trial = self._trial(number)
        return self.baseline.replace({**trial.values, "seed": trial.seed})

    def record(self, number: int | None = None) -> Record:
        """What the training of a trial left; `study.record().load_best(task)` is the best trial's network.

        Args:
            number: of the trial; None: the best one. Checkpoints are kept of the best three only, and of the front.

        Raises:
            StudyError: there is no such trial, none has finished, or the study is one of a training function.
        """
        from luthier.record import Record

        trial = self._trial(number)
        if self.baseline is None:
            raise StudyError(f"{self.name} is a training function, which leaves no record: call study.saved()")
        return Record(trial.folder)

    def saved(self, number: int | None = None, last: bool = False) -> Any:
        """What a trial of a training function gave to `trial.save`, its weights, say: at its best reading.

        That is the best one of the first objective among the readings that were reported directly before or after a
        state; of a function that returns a number the state at its end.

        Args:
            number: of the trial; None: the best one. States are kept of the best three only, and of the front.
            last: what it gave last, from which it would go on.

        Raises:
            StudyError: there is no such trial, none has finished, it saved nothing or it is not kept.
        """
        trial = self._trial(number)
        if self.baseline is not None:
            raise StudyError(f"{self.name} is a task: study.record().load_best(task) is the network of the best trial")
        if (found := (read_state if last else read_best)(trial.folder / "checkpoints")) is None:
            raise StudyError(
                f"nothing that trial {trial.number} saved is there: it never called trial.save, or it is not among the "
                "best three, whose states are kept"
            )
        return found[0]

    def table(self) -> list[dict[str, Any]]:
        """The trials as rows of plain values, for `pandas.DataFrame(study.table())`.

        Each has number, kind, arm, state, reason, source, seed, step, total_steps and time_s; the best reading of each
        objective by its name; and `full_values`, each as "params.<path>".
        """
        return [
            {name: getattr(trial, name) for name in COLUMNS}
            | {name: trial.scores.get(name) for name in self.objectives}
            | {f"params.{path}": value for path, value in self.full_values(trial).items()}
            for trial in self.trials
        ]

    def full_values(self, trial: Trial) -> dict[str, Any]:
        """A trial's value for each field of the space: where the search starts if it leaves it alone, None without."""
        return dict.fromkeys(self.space) | self._present(trial)

    def importances(self) -> list[Importance]:
        """Which fields matter for being among the best tenth of the trials (at least five), the largest first.

        Trials are compared by their values, those that were stopped early too; with several objectives front by front.
        Failed ones are left out, and those with values outside of the ranges, which the doctor may ask for. See
        `importance.importances`; fewer than 20 trials tell nothing.
        """
        from luthier.tuning.importance import importances

        space = {**self.space, **self.widened}
        trials = [trial for trial in self.trials if trial.kind == "search" and trial.state != "failed" and trial.scores]
        if len(self.objectives) > 1:
            losses = [self.state.losses(trial) for trial in trials]
            trials = [trials[place] for place in by_front(losses)]
        else:
            trials = self.state.rank(trials)
        ranked = (self._present(trial) for trial in trials)
        inside = [values for values in ranked if all(space[path].contains(value) for path, value in values.items())]
        return importances(space, inside)

    def _present(self, trial: Trial) -> dict[str, Any]:
        """A trial's values of the fields of the space that are present, those of the start included."""
        return active(self.space, {path: value_or_none(self.start, path) for path in self.space} | trial.values)

    def _trial(self, number: int | None) -> Trial:
        if number is None:
            if self.best is None:
                raise StudyError(f"no trial of the study {self.folder} has finished: name one by its number")
            return self.best
        if not isinstance(number, int) or not 0 <= number < len(self.trials):
            raise StudyError(f"the study {self.folder} has trials 0 to {len(self.trials) - 1}, got {number!r}")
        return self.trials[number]

    def best_by_arm(self) -> dict[str, Trial]:
        """For each arm its best trial over the full budget; arms without one are left out."""
        best = {}
        for arm in self.groups or {"all": list(self.space)}:
            ranked = self.state.rank(t for t in self.trials if t.arm == arm and t.state == "finished" and t.of is None)
            if ranked:
                best[arm] = ranked[0]
        return best

    def report(self, path: str | Path) -> Path:
        """Write the study as one HTML file; returns its path."""
        from luthier.show.report import write_report

        return write_report(self, Path(path))

    def __repr__(self) -> str:
        best = self.best
        shown = "none" if best is None else f"{best.value:.4g} (trial {best.number})"
        return f"Study({str(self.folder)!r}, trials={len(self.trials)}, best={shown})"


def _recipe(content: str, callables: Mapping[str, Callable[..., Any]] | None) -> Recipe:
    from luthier.recipe import Recipe  # half a second, which a study of a function can do without

    return Recipe.from_json(content, callables)


def arms(groups: Mapping[str, Any] | None, space: Mapping[str, Range]) -> dict[str, list[str]]:
    """The arms of a study: its groups, or one arm over the whole space.

    Raises:
        StudyError: an empty group, a field that the space does not have, or the baseline's name.
    """
    if groups is None:
        return {"all": list(space)}
    if not isinstance(groups, Mapping) or not all(isinstance(each, (list, tuple)) for each in groups.values()):
        raise StudyError(f"groups are lists of fields by name, such as {{'rate': ['lr', 'schedule']}}, got {groups!r}")
    if not groups:
        raise StudyError("groups is empty: name at least one group of fields, or leave groups out")
    for name, fields in groups.items():
        if name == BASELINE:
            raise StudyError(f"a group cannot be called {BASELINE!r}, the name of trial 0: choose another name")
        if missing := [field for field in fields if field not in space]:
            raise StudyError(f"group {name!r} names {', '.join(missing)}, which the space does not have: {list(space)}")
        if not fields:
            raise StudyError(f"group {name!r} has no fields: name those that it tunes")
    return {name: list(fields) for name, fields in groups.items()}
