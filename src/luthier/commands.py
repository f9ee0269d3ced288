"""The commands behind the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.table import Table

from luthier.errors import LuthierError
from luthier.options import (
    UNSET,
    Folder,
    RecipeFile,
    RecipeOptions,
    Settings,
    assignment,
    assignments,
    subject_of,
    whole,
)
from luthier.parts import Part
from luthier.show.console import open_console
from luthier.tasks import TASKS


def fit(
    task: str,
    /,
    *,
    recipe_file: RecipeFile = None,
    folder: Folder = None,
    resume: Annotated[bool, Parameter(negative=(), help="go on with the training in --folder")] = False,
    test: Annotated[bool, Parameter(negative=(), help="measure the best weights on the test data at the end")] = False,
    quiet: Annotated[bool, Parameter(negative=(), help="no progress on the terminal")] = False,
    settings: Settings = [],  # noqa: B006 - cyclopts never mutates it
    options: RecipeOptions = UNSET,
) -> None:
    """Train a task by a recipe; every field of the recipe is an option, unset ones come from the task."""
    from luthier.fitting import fit as train

    if resume and folder is None:
        raise LuthierError("--resume needs the folder of the training to go on with: --folder runs/...")
    subject = subject_of(task, settings, options, recipe_file)
    record = train(subject.task, subject.recipe, folder=folder, resume=resume, test=test, console=not quiet)
    if record.test is not None:
        from luthier.show.words import named_values

        open_console().print(f"test       {named_values(record.test)}")


def tune(
    task: str,
    /,
    *,
    trials: Annotated[
        int | None,
        Parameter(converter=whole, help="trials in all, resumed ones counted; default: until the budget ends, else 30"),
    ] = None,
    budget: Annotated[
        str | None, Parameter(help="time, steps or epochs of all trials together: 5min, 20000steps, 300epochs")
    ] = None,
    space: Annotated[
        list[str], Parameter(negative=(), help="FIELD=RANGE, repeatable: lr=1e-4..1e-1 log, batch_size=16,32,64")
    ] = [],  # noqa: B006 - cyclopts never mutates it
    first: Annotated[
        list[str],
        Parameter(negative=(), help='a configuration to try before any other, repeatable: "lr=0.01 batch_size=64"'),
    ] = [],  # noqa: B006 - cyclopts never mutates it
    target: Annotated[
        float | None, Parameter(help="end the search when a trial over its full budget reads this value")
    ] = None,
    sampler: Annotated[
        str, Parameter(help="auto, grid, random, sobol, halton, tpe, gp, cmaes, nsgaii or prior")
    ] = "auto",
    objective: Annotated[
        list[str],
        Parameter(
            negative=(),
            help="repeatable, the metric first, then loss, parameters, latency_ms or train_time_s: search for all, and "
            "show the front",
        ),
    ] = [],  # noqa: B006 - cyclopts never mutates it
    strategy: Annotated[str, Parameter(help="auto, full, halving, hyperband or one-epoch-top-k")] = "auto",
    workers: Annotated[int | None, Parameter(converter=whole, help="worker processes; default: one per core")] = None,
    on: Annotated[str | None, Parameter(help="ray or ray://host:10001: workers on a Ray cluster")] = None,
    resources: Annotated[
        list[str], Parameter(negative=(), help="of each worker on Ray, repeatable: num_gpus=1, num_cpus=2")
    ] = [],  # noqa: B006 - cyclopts never mutates it
    checkpoints: Annotated[
        str | None,
        Parameter(help="with --on, for nodes that do not share the folder: s3://bucket/path, or any fsspec address"),
    ] = None,
    repeats: Annotated[
        int, Parameter(converter=whole, help="further seeds that winner and baseline are trained with; 0: none")
    ] = 3,
    recipe_file: RecipeFile = None,
    folder: Folder = None,
    storage: Annotated[
        str | None,
        Parameter(help="of many studies: sqlite:///all.db or postgresql://...; default: a file in the folder"),
    ] = None,
    edited: Annotated[
        bool, Parameter(negative=(), help="go on with the study though the code of the model has changed since")
    ] = False,
    report: Annotated[
        Path | None, Parameter(help="path of the HTML report; default: report.html in the folder")
    ] = None,
    quiet: Annotated[bool, Parameter(negative=(), help="no progress on the terminal")] = False,
    settings: Settings = [],  # noqa: B006 - cyclopts never mutates it
    options: RecipeOptions = UNSET,
) -> None:
    """Search for a better recipe. The baseline is the task's recipe with the options given here."""
    from luthier.tuning.asking import n_cores
    from luthier.tuning.identity import EDITED
    from luthier.tuning.recruits import called_early
    from luthier.tuning.space import as_space, parse_range
    from luthier.tuning.tune import tune as search

    early = 0 if on is not None else min(workers or n_cores(), n_cores())
    with called_early(early):  # they import torch while the task is loaded here
        subject = subject_of(task, settings, options, recipe_file)
        ranges = as_space((name, parse_range(text)) for name, text in map(assignment, space))
        study = search(
            subject,
            space=ranges or None,
            trials=trials,
            budget=budget,
            first=[assignments(each.split()) for each in first],
            target=target,
            sampler=sampler,
            strategy=strategy,
            objectives=objective or None,
            deterministic=subject.recipe.deterministic,
            workers=workers,
            on=on,
            resources=assignments(resources) or None,
            checkpoints=checkpoints,
            repeats=repeats,
            folder=folder,
            storage=storage,
            resume=EDITED if edited else True,
            console=not quiet,
        )
    path = study.report(report or study.folder / "report.html")
    open_console().print(f"report     {path}", soft_wrap=True)
    if study.ended == "interrupted":
        raise SystemExit(130)


def mend(
    task: str,
    /,
    *,
    trials: Annotated[
        int, Parameter(converter=whole, help="budget in optimizer steps, as trainings of the starting recipe")
    ] = 40,
    budget: Annotated[str | None, Parameter(help="time in all as well, such as 90s, 5min, 1h")] = None,
    seeds: Annotated[int, Parameter(converter=whole, help="trainings that a kept patch rests on")] = 2,
    until_healthy: Annotated[bool, Parameter(negative=(), help="stop at the first healthy diagnosis")] = False,
    recipe_file: RecipeFile = None,
    folder: Folder = None,
    test: Annotated[bool, Parameter(help="read the test data once at the end, if the task has any")] = True,
    quiet: Annotated[bool, Parameter(negative=(), help="no progress on the terminal")] = False,
    settings: Settings = [],  # noqa: B006 - cyclopts never mutates it
    options: RecipeOptions = UNSET,
) -> None:
    """Diagnose a training, try the prescribed patches, keep what is shown to help, diagnose again."""
    from luthier.doctor.mend import mend as cure

    subject = subject_of(task, settings, options, recipe_file)
    mended = cure(
        subject,
        trials=trials,
        budget=budget,
        seeds=seeds,
        folder=folder,
        console=not quiet,
        until_healthy=until_healthy,
        test=test and subject.task.test is not None,
    )
    if mended.ended == "interrupted":
        raise SystemExit(130)


def report(
    folder: Path, /, *, to: Annotated[Path | None, Parameter(help="default: report.html in the folder")] = None
) -> None:
    """Write the HTML report of a training or study that stands in FOLDER."""
    from luthier.record import Record
    from luthier.show.report import write_report
    from luthier.tuning.study import Study

    source = Record(folder) if Record.exists(folder) else Study.open(folder)
    open_console().print(f"report     {write_report(source, to or folder / 'report.html')}", soft_wrap=True)


def check(
    task: str,
    /,
    *,
    settings: Settings = [],  # noqa: B006
    options: RecipeOptions = UNSET,
    limit_s: Annotated[float, Parameter(help="seconds for the whole examination")] = 60.0,
    as_json: Annotated[bool, Parameter(name="--json", negative=(), help="print the health card as JSON")] = False,
    fail_on: Annotated[
        Literal["warning", "critical"] | None, Parameter(help="exit with 1 at amber (warning) or red (critical) organs")
    ] = None,
) -> None:
    """Examine TASK before a long training: model, loss, gradients, data, labels, learning rate, speed."""
    from luthier.doctor.checkup.checking import check as examine
    from luthier.files import to_json
    from luthier.show.health_card import print_health_card

    subject = subject_of(task, settings, options)
    card = examine(subject.task, subject.recipe, limit_s=limit_s)
    if as_json:
        print(to_json(card.to_dict(), indent=2))  # noqa: T201
    else:
        print_health_card(card)
    failing = {"warning": ("amber", "red"), "critical": ("red",), None: ()}[fail_on]
    if card.worst in failing:
        raise SystemExit(1)


def diagnose(
    path: Path,
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative=(), help="print the diagnosis as JSON")] = False,
    fail_on: Annotated[
        Literal["warning", "critical"] | None, Parameter(help="exit with 1 at findings of this severity or worse")
    ] = None,
) -> None:
    """Say what a training suffers from: the folder of a training, TensorBoard event files, or a CSV log at PATH."""
    from luthier.doctor.verdicts import diagnosis_of, grave
    from luthier.doctor.wording import to_json
    from luthier.show.diagnosis_terminal import print_diagnosis

    diagnosis = diagnosis_of(path)
    if as_json:
        open_console().print(to_json(diagnosis), soft_wrap=True)
    else:
        print_diagnosis(diagnosis)
    if fail_on is not None and grave(diagnosis, fail_on):
        raise SystemExit(1)


def find_lr(task: str, /, *, settings: Settings = [], options: RecipeOptions = UNSET) -> None:  # noqa: B006
    """Learning-rate range test (Smith 2017): loss over a rising lr, and the lr to start with."""
    from luthier.show.terminal import print_lr_range
    from luthier.training.finders import find_lr as search

    subject = subject_of(task, settings, options)
    print_lr_range(search(subject.task, subject.recipe))


def find_batch_size(task: str, /, *, settings: Settings = [], options: RecipeOptions = UNSET) -> None:  # noqa: B006
    """Examples per second for rising batch sizes, up to the largest that fits."""
    from luthier.show.terminal import print_batch_sizes
    from luthier.training.finders import find_batch_size as search

    subject = subject_of(task, settings, options)
    print_batch_sizes(search(subject.task, subject.recipe))


def tasks() -> None:
    """List the built-in tasks."""
    import importlib
    import inspect

    table = Table(box=None, header_style="bold")
    table.add_column("task")
    table.add_column("what it is")
    for name, home in TASKS.items():
        module, _, function = home.partition(":")
        text = inspect.getdoc(getattr(importlib.import_module(module), function)) or ""
        table.add_row(name, text.splitlines()[0])
    open_console().print(table)


def parts() -> None:
    """List what a recipe's named fields can be, with the settings of each and their defaults."""
    from luthier.data.augmentation import AUGMENTATIONS
    from luthier.training.averaging import AVERAGINGS
    from luthier.training.optimizers import OPTIMIZERS
    from luthier.training.schedules import SCHEDULES

    rooms: dict[str, Mapping[str, type[Part]]] = {
        "optimizer": OPTIMIZERS,
        "schedule": SCHEDULES,
        "augment": AUGMENTATIONS,
        "averaging": AVERAGINGS,
    }
    for field_name, room in rooms.items():
        table = Table(title=f"--{field_name}", box=None, title_justify="left", title_style="bold", show_header=False)
        for name, part in room.items():
            defaults = {key: info.default for key, info in part.model_fields.items() if key != "name"}
            table.add_row(name, "  ".join(f"{key}={value}" for key, value in defaults.items()))
        open_console().print(table)


def fetch(name: str, /) -> None:
    """Fetch a data set, verify it, and keep it in the cache."""
    from luthier.data import load as load_data

    data = load_data(name)
    shapes = ", ".join(f"{part} {len(getattr(data, part)[1]):,}" for part in ("train", "test"))
    open_console().print(f"{name}: {shapes} examples, verified")
