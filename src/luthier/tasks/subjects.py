"""Subjects: a task with its starting recipe and, where it has one, a search space of its own.

A subject is found by reference: a built-in name (`mnist`) or `path/to/file.py:function`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from luthier.errors import LuthierError, unknown
from luthier.recipe import Recipe

if TYPE_CHECKING:
    from luthier.task import Task


@dataclass(frozen=True)
class Subject:
    """A task and where to start from.

    Attributes:
        task: what is trained.
        recipe: the starting recipe, the baseline of a search.
        space: dotted recipe fields and their ranges; None lets the tuner derive one.
        groups: names and the fields that are tuned together, the others kept at the baseline; None is one group of all.
        reference: how it was found, so that worker processes find it too; None when it exists in this process only.
    """

    task: Task
    recipe: Recipe = field(default_factory=Recipe)
    space: Mapping[str, Any] | None = None
    groups: Mapping[str, tuple[str, ...]] | None = None
    reference: str | None = None


TASKS: dict[str, str] = {
    "mnist": "luthier.tasks.images:mnist",
    "mnist-overfit": "luthier.tasks.images:mnist_overfit",
    "fashion-mnist": "luthier.tasks.images:fashion_mnist",
    "cifar10": "luthier.tasks.images:cifar10",
    "digits": "luthier.tasks.images:digits",
    "movie-reviews": "luthier.tasks.texts:movie_reviews",
    "linear": "luthier.tasks.tables:linear",
    "mnist-overfit-sigmoid": "luthier.tasks.patients:mnist_overfit_sigmoid",
    "mnist-lr-high": "luthier.tasks.patients:mnist_lr_high",
    "mnist-lr-low": "luthier.tasks.patients:mnist_lr_low",
    "mnist-dropout": "luthier.tasks.patients:mnist_dropout",
    "mnist-decay": "luthier.tasks.patients:mnist_decay",
    "mnist-deep-uniform": "luthier.tasks.patients:mnist_deep_uniform",
    "spirals-narrow": "luthier.tasks.patients:spirals_narrow",
    "spirals-schedule": "luthier.tasks.patients:spirals_schedule",
    "spirals-clip": "luthier.tasks.patients:spirals_clip",
    "spirals-batch-large": "luthier.tasks.patients:spirals_batch_large",
    "fashion-lr-high": "luthier.tasks.patients:fashion_lr_high",
    "fashion-lr-low": "luthier.tasks.patients:fashion_lr_low",
    "fashion-deep-sigmoid": "luthier.tasks.patients:fashion_deep_sigmoid",
    "digits-few-overfit": "luthier.tasks.patients:digits_few_overfit",
    "digits-clip": "luthier.tasks.patients:digits_clip",
    "digits-dropout": "luthier.tasks.patients:digits_dropout",
    "digits-batch-large": "luthier.tasks.patients:digits_batch_large",
    "digits-no-norm": "luthier.tasks.patients:digits_no_norm",
    "friedman-lr-high": "luthier.tasks.patients:friedman_lr_high",
    "friedman-decay": "luthier.tasks.patients:friedman_decay",
    "friedman-narrow": "luthier.tasks.patients:friedman_narrow",
    "friedman-raw": "luthier.tasks.patients:friedman_raw",
    "signs-schedule": "luthier.tasks.patients:signs_schedule",
    "signs-short": "luthier.tasks.patients:signs_short",
    "signs-bad-init": "luthier.tasks.patients:signs_bad_init",
}


def load(reference: str) -> Subject:
    """The subject of a reference.

    Args:
        reference: a built-in name, or `path/to/file.py:function` whose function takes no argument and returns a
            `Task`, a pair (Task, Recipe) or a `Subject`.

    Raises:
        LuthierError: unknown name (close matches are named), unreadable file, missing function, wrong result.
    """
    if ".py" in reference or "/" in reference:
        return replace(_subject(_made_by_file(reference), reference), reference=_absolute(reference))
    if reference not in TASKS:
        error = unknown("task", reference, TASKS)
        raise LuthierError(f"{error}; a task of your own is given as path/to/file.py:function")
    module, _, function = TASKS[reference].partition(":")
    made = getattr(importlib.import_module(module), function)()
    return replace(_subject(made, reference), reference=reference)


def as_subject(task: Any, expected: str) -> Subject:
    """A Subject, or the one of a Task or reference.

    Args:
        task: any of these.
        expected: how the message begins when it is none of them.

    Raises:
        LuthierError: it is none of them, or see `load`.
    """
    from luthier.task import Task

    if isinstance(task, str):
        return load(task)
    if isinstance(task, Task):
        return Subject(task)
    if isinstance(task, Subject):
        return task
    raise LuthierError(f"{expected}, got {task!r}")


def _subject(made: Any, reference: str) -> Subject:
    from luthier.task import Task

    if isinstance(made, Subject):
        return made
    if isinstance(made, Task):
        return Subject(made)
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Task) and isinstance(made[1], Recipe):
        return Subject(*made)
    raise LuthierError(f"{reference} must return a Task, a pair (Task, Recipe) or a Subject, got {type(made).__name__}")


def _made_by_file(reference: str) -> Any:
    function = _function_of_file(reference)
    _check_callable_alone(function, reference)
    try:
        return function()
    except LuthierError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"line {last.lineno} of {Path(last.filename).name}"
        raise LuthierError(f"{reference} failed: {type(error).__name__}: {error} ({where})") from error


def _check_callable_alone(function: Callable[..., Any], reference: str) -> None:
    """Whether it can be called without arguments.

    Raises:
        LuthierError: it wants some, as a training function does.
    """
    try:
        inspect.signature(function).bind()
    except TypeError:
        name = reference.rpartition(":")[2]
        raise LuthierError(
            f"{reference} takes arguments, where a function without any should return a Task; a training function "
            f"of one's own is tuned in Python: luthier.tune({name}, space=...)"
        ) from None
    except ValueError:  # built in
        return


def _function_of_file(reference: str) -> Callable[[], Any]:
    path, _, name = reference.partition(":")
    if not name:
        raise LuthierError(f"which function of {path} makes the task? Write {path}:function")
    module = _module_of(Path(path))
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown(f"function in {path}", name, known)
    return function  # type: ignore[no-any-return]


def _module_of(path: Path) -> ModuleType:
    if not path.is_file():
        raise LuthierError(f"the task file {path} does not exist (looked in {Path.cwd()})")
    name = f"luthier_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LuthierError(f"the task file {path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise LuthierError(f"the task file {path} cannot be loaded: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _absolute(reference: str) -> str:
    path, _, name = reference.partition(":")
    return f"{Path(path).resolve()}:{name}"
