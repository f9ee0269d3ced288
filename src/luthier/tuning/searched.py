"""What a study searches over, as the parent sees it: here recipes for a task; for functions see `function_search`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from luthier.errors import LuthierError, close_matches
from luthier.files import to_json
from luthier.tasks import Subject, as_subject
from luthier.training.known_good import PARAMETERS_PER_EXAMPLE
from luthier.tuning.conditions import Baseline
from luthier.tuning.derived import derive_space
from luthier.tuning.edges import KNOWN_GOOD
from luthier.tuning.objectives import MEASURED, Objective, Objectives, described, task_objectives
from luthier.tuning.ranges import Range, Space
from luthier.tuning.space import as_space, check_space
from luthier.tuning.starts import filled, known_good
from luthier.tuning.state import State, Trial
from luthier.tuning.virtual import work

if TYPE_CHECKING:
    from luthier.recipe import Recipe
    from luthier.task import Task

_TESTING_S, _CLOSING_S = 5.0, 2.0  # for the end of a study that reads test data, and of one without any


class Searched(Protocol):
    """What tune and its engine ask.

    Attributes:
        name: of the task or function.
        objectives: what is searched for; the first leads.
        start: where the search begins.
        start_values: what the ledger notes as the values of the baseline; None: there is no baseline.
        space: ranges by name.
        groups: fields that are tuned together, by name; None: all are.
        repeats: retrainings at the end, unless told.
        seed: of the search, unless told.
        epochs: of a whole training.
        closing_s: seconds of a budget to set aside for reading the test data and closing.
        reference: by which workers find it; None: it is sent to them.
        description: what identifies it in a ledger.
        widens: whether ranges may be widened: those that nobody has set.
        order: what a worker must know besides values, seed and the step to train to.
        recipes: whether recipes are trained, which need torch.
    """

    name: str
    objectives: tuple[Objective, ...]
    start_values: dict[str, Any] | None
    space: dict[str, Range]
    groups: Mapping[str, Any] | None
    repeats: int
    seed: int
    epochs: int
    closing_s: float
    reference: str | None
    description: dict[str, Any]
    widens: bool
    order: dict[str, Any]
    recipes: bool

    @property
    def start(self) -> Baseline:
        """Where the search begins."""

    def total_steps(self, values: Mapping[str, Any], state: State) -> int | None:
        """Steps of a whole training with these values; None while nobody knows."""

    def complete(self, values: dict[str, Any]) -> dict[str, Any]:
        """What a worker must be told of a trial with these values."""

    def work(self, values: Mapping[str, Any], steps: int) -> float:
        """How long so many steps take on a virtual clock, whatever they take on the real one."""

    def read_test(self, trials: list[Trial]) -> list[dict[str, float]] | None:
        """Readings of the test data for these trials; None when there is nothing to read."""

    @property
    def why_unread(self) -> str:
        """Why there is nothing to read, where there are test data."""

    def starts(self, ranges: Mapping[str, Range]) -> list[tuple[str, dict[str, Any]]]:
        """What values of these ranges the search begins with, and why these."""

    def filled(self, ranges: Mapping[str, Range], values: dict[str, Any]) -> dict[str, Any]:
        """These values, and what the others of the ranges that are present begin with."""

    def things(self) -> dict[str, Any]:
        """What is sent to the workers, by name."""


@dataclass
class RecipeSearch:
    """A task, and recipes for it; see `Searched`."""

    recipes = True

    subject: Subject
    start: Recipe
    space: dict[str, Range]
    groups: Mapping[str, Any] | None
    objectives: tuple[Objective, ...]
    repeats: int = 3
    widens: bool = False
    start_values: dict[str, Any] | None = field(default_factory=dict)  # values say what differs from the recipe

    def __post_init__(self) -> None:
        task = self.subject.task
        self.name = task.name
        self.order: dict[str, Any] = {"measured": [each.name for each in self.objectives if each.name in MEASURED]}
        self._sizes: dict[str, int] = {}
        self.closing_s = _CLOSING_S if task.test is None else _TESTING_S
        self.reference, self.epochs, self.seed = self.subject.reference, self.start.epochs, self.start.seed
        self.description: dict[str, Any] = {
            "task": task.describe(),
            "recipe": self.start.to_json(),
            "objectives": described(self.objectives),
        }

    def total_steps(self, values: Mapping[str, Any], state: State) -> int | None:
        """Steps of the recipe with these values."""
        from luthier.fitting import total_steps

        try:
            return total_steps(self.subject.task, self.start.replace(dict(values)))
        except LuthierError:
            return 1  # the worker will meet the same error, and its trial fails with it

    def complete(self, values: dict[str, Any]) -> dict[str, Any]:
        """What differs from the recipe, which the workers have."""
        return values

    def work(self, values: Mapping[str, Any], steps: int) -> float:
        """Examples seen times parameters; values that make no recipe or network take no time."""
        try:
            recipe = self.start.replace(dict(values))
            key = to_json(recipe.model)
            if key not in self._sizes:
                self._sizes[key] = n_parameters(self.subject.task.model, recipe.model)
        except Exception:  # whatever a builder raises: the worker meets it too, and its trial fails with it
            return 0.0
        return work(steps * recipe.batch_size, self._sizes[key])

    def read_test(self, trials: list[Trial]) -> list[dict[str, float]] | None:
        """A task whose test data were opened in this process before stays unread: there is no second look."""
        task = self.subject.task
        if task.test is None or task.test.opened is not None:
            return None
        from luthier.fitting import evaluate_test
        from luthier.record import Record

        records = [Record(trial.folder) for trial in trials]
        if fresh := [record for record in records if record.test is None]:  # a crash left the others' in the records
            evaluate_test(task, fresh)
        return [record.test or {} for record in records]

    @property
    def why_unread(self) -> str:
        """That somebody has read them in this process."""
        test = self.subject.task.test
        return "" if test is None or test.opened is None else f"this task's were read before, for {test.opened}"

    def starts(self, ranges: Mapping[str, Range]) -> list[tuple[str, dict[str, Any]]]:
        """Settings that work for most networks."""
        few = has_few_examples(self.subject.task, self.start)
        return [(KNOWN_GOOD, values) for values in known_good(ranges, self.start, few)]

    def filled(self, ranges: Mapping[str, Range], values: dict[str, Any]) -> dict[str, Any]:
        """The others as in the baseline, or at the edge of their range that is nearest to it."""
        return filled(values, ranges, self.start)

    def things(self) -> dict[str, Any]:
        """The recipe, and the task without its test data unless it has a reference."""
        from luthier.tuning.shipping import without_test

        recipe = {"recipe": self.start}
        return recipe if self.reference else {**recipe, "task": without_test(self.subject.task)}


def recipe_search(
    task: Any,
    recipe: Recipe | None,
    space: Space | None,
    groups: Mapping[str, Any] | None,
    seed: int | None,
    objectives: Objectives | None = None,
) -> RecipeSearch:
    """A search for recipes; see `tune` for the arguments.

    Raises:
        LuthierError: they do not fit.
    """
    subject = as_subject(
        task,
        "task must be a Task, a Subject, a reference ('mnist', 'file.py:function') or a function of one argument, "
        "the trial",
    )
    start = recipe or subject.recipe
    baseline = start if seed is None else start.replace({"seed": seed})
    own_groups = subject.groups if groups is None and space is None else groups
    derived = space is None and subject.space is None
    sought = task_objectives(objectives, subject.task.metric.name, subject.task.metric.direction)
    return RecipeSearch(subject, baseline, chosen_space(subject, baseline, space), own_groups, sought, widens=derived)


def chosen_space(subject: Subject, baseline: Recipe, space: Space | None) -> dict[str, Any]:
    """The given space, else the subject's own, else one derived from recipe and task; checked against the recipe."""
    given = space if space is not None else subject.space
    chosen = derived_for(subject.task, baseline) if given is None else as_space(given)
    check_space(chosen, baseline)
    _check_keywords(subject.task.model, chosen)
    return chosen


def _check_keywords(builder: Callable[..., Any], space: Mapping[str, Range]) -> None:
    """Whether the model's builder has the keywords that are searched.

    Raises:
        LuthierError: it has not; close ones are named.
    """
    try:
        known = inspect.signature(builder).parameters
    except (TypeError, ValueError):  # built in: the workers will see
        return
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values()):
        return
    for path in space:
        part, _, keyword = path.partition(".")
        if part == "model" and keyword not in known:
            name = getattr(builder, "__name__", type(builder).__name__)
            raise LuthierError(f"space[{path!r}]: {name} has no keyword {keyword!r}: {close_matches(keyword, known)}")


def derived_for(task: Task, baseline: Recipe) -> dict[str, Any]:
    """The derived space without what this task would not feel: a DataLoader keeps its batches, a step its loss."""
    from torch.utils.data import DataLoader

    loss = task.loss.name if task.own_step is None else "own"
    space = derive_space(baseline, n_examples(task), loss)
    if isinstance(task.train, DataLoader):
        del space["batch_size"]
    return space


def has_few_examples(task: Task, recipe: Recipe) -> bool:
    """Whether the network is so large for its training examples that it is likely to learn them by heart.

    Not where the number of examples is unknown, or where the recipe makes no network: the workers will say so.
    """
    examples = n_examples(task)
    try:
        return (
            examples is not None
            and n_parameters(task.model, recipe.model, trained=True) > PARAMETERS_PER_EXAMPLE * examples
        )
    except Exception:  # whatever a builder raises
        return False


def n_parameters(builder: Callable[..., Any], settings: Mapping[str, Any], trained: bool = False) -> int:
    """Parameters of a network, or the trained ones of them; building it leaves the random generator as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        return sum(each.numel() for each in builder(**settings).parameters() if each.requires_grad or not trained)


def n_examples(task: Task) -> int | None:
    """Training examples, where the data know it."""
    from torch.utils.data import DataLoader

    if task.steps_per_epoch is not None:
        return None
    if isinstance(task.train, DataLoader):  # which counts batches
        dataset = task.train.dataset
        return len(dataset) if isinstance(dataset, Sized) else None
    return int(task.batches(1, 0).steps(1))
