"""What the commands ask for: options for every field of a recipe, and the values that their texts stand for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import field, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from luthier.errors import LuthierError
from luthier.parts import Part
from luthier.recipe import Recipe
from luthier.tasks import Subject, load


def _recipe_options() -> type:
    """A dataclass with one option for every field of Recipe (but `model`, a dict), all None unless given."""
    options: list[tuple[str, Any, Any]] = []
    for name, info in Recipe.model_fields.items():
        if name == "model":
            continue
        kind = bool | None if info.annotation in (bool, bool | None) else str | None
        help_text = f"{info.description} [{_default(info.default)}]"
        options.append((name, Annotated[kind, Parameter(help=help_text, show_default=False)], field(default=None)))
    return make_dataclass("RecipeOptions", options, kw_only=True, namespace={"__module__": __name__})


def _default(value: Any) -> str:
    return value.name if isinstance(value, Part) else "unset" if value in (None, (), {}) else str(value)


_Options = _recipe_options()
if TYPE_CHECKING:
    RecipeOptions = Any
else:
    RecipeOptions = Annotated[_Options, Parameter(name="*", group="Recipe")]
UNSET = _Options()
Settings = Annotated[
    list[str],
    Parameter(
        name="--set",
        negative=(),
        help="any dotted setting: --set model.width=256; in short --model.width 256, --schedule.gamma 0.5",
    ),
]
RecipeFile = Annotated[
    Path | None,
    Parameter(
        name="--recipe",
        help="start from this recipe, not from the task's own: a file, or the folder of a training or of a study (its "
        "best trial's)",
    ),
]
Folder = Annotated[Path | None, Parameter(help="where the result goes; default: a new one under runs/ or studies/")]


def whole(_: Any, tokens: Sequence[Any]) -> int:
    """A whole number from the command line; the parser itself would round.

    Raises:
        ValueError: it is none.
    """
    try:
        return int(tokens[0].value.replace("_", ""))
    except ValueError:
        raise ValueError(f"expected a whole number, got {tokens[0].value!r}") from None


def subject_of(task: str, settings: list[str], options: Any, recipe_file: Path | None = None) -> Subject:
    """A task with the recipe to begin with: its own, or the one that was left, changed by the options given."""
    subject = load(task)
    recipe = subject.recipe if recipe_file is None else recipe_at(recipe_file)
    return replace(subject, recipe=recipe.replace(recipe_values(options, settings)))


def recipe_at(path: Path) -> Recipe:
    """The recipe in a file, of a training's folder, or of the best trial in a study's folder.

    Raises:
        LuthierError: there is none.
    """
    if not path.is_dir() or (path / "recipe.json").is_file():
        return Recipe.load(path / "recipe.json" if path.is_dir() else path)
    from luthier.tuning.study import Study

    study = Study.open(path)
    if study.best is None:
        raise LuthierError(f"no trial of the study {path} has finished: go on with it, or give one's recipe.json")
    return study.recipe(study.best.number)


def recipe_values(options: Any, settings: list[str]) -> dict[str, Any]:
    """Recipe values by dotted path, from the options given and `--set` pairs."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    values = {name: parse_value(value) if isinstance(value, str) else value for name, value in given.items()}
    return values | assignments(settings)


def assignments(texts: list[str]) -> dict[str, Any]:
    """Values by name, of NAME=VALUE each."""
    return {name: parse_value(text) for name, text in map(assignment, texts)}


def assignment(text: str) -> tuple[str, str]:
    """Name and value of NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals:
        raise LuthierError(f"expected FIELD=VALUE, got {text!r}")
    return name.strip().replace("-", "_"), value.strip()


def parse_value(text: str) -> Any:
    """A value from the command line: JSON where it is JSON, "none", comma-separated lists, else the text itself.

    >>> parse_value("1e-3"), parse_value("none"), parse_value("0.9,0.99"), parse_value("flip,crop"), parse_value("relu")
    (0.001, None, [0.9, 0.99], ['flip', 'crop'], 'relu')
    """
    if text.lower() == "none":
        return None
    try:
        return json.loads(text)
    except ValueError:
        pass
    if "," in text:
        return [parse_value(item.strip()) for item in text.split(",")]
    return text
