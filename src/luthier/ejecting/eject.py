"""eject: a run, or the best trial of a study, as one plain PyTorch script without Luthier."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from luthier import __version__
from luthier.data.augmentation import CustomAugmentation
from luthier.ejecting.comparing import check
from luthier.ejecting.evaluation import write_evaluate
from luthier.ejecting.facts import Facts, read_facts
from luthier.ejecting.inputs import ORDER, write_augment, write_data, write_mixing, write_scale
from luthier.ejecting.loop import prepared, write_train
from luthier.ejecting.modules import literal
from luthier.ejecting.networks import write_network
from luthier.ejecting.schedules import write_schedule
from luthier.ejecting.sources import EjectError
from luthier.ejecting.updates import write_functions
from luthier.fitting import deterministic
from luthier.recipe import Recipe
from luthier.record import Record
from luthier.task import Task
from luthier.tasks import TASKS, Subject, as_subject
from luthier.training.run import example_of
from luthier.tuning.study import Study


@dataclass(frozen=True)
class Origin:
    """Where a script comes from.

    Attributes:
        recipe: how it was trained.
        task: as `Task.describe()` gave it.
        words: the run in words.
        value: best validation value, None when there is none.
        environment: torch's version and threads in the training, on which rounding depends.
        reference: how the task is found, None when that is not known.
    """

    recipe: Recipe
    task: dict[str, Any]
    words: str
    value: float | None
    environment: dict[str, Any]
    reference: str | None


def eject(
    run: str | Path | Record | Study,
    task: Task | Subject | str | None = None,
    *,
    trial: int | None = None,
    data: str | Path | None = None,
) -> str:
    """Write a run as one plain PyTorch script that trains to the identical losses, without Luthier.

    Only what the recipe uses stands in the script. Before it is handed out its first steps are compared with
    Luthier's, to the bit.

    Args:
        run: a record or a study, or the folder of one; of a study its best trial is taken, be it the baseline.
        task: the task that was trained, or its reference; None finds built-in tasks and those of studies by themselves.
            A `Subject` gives with its recipe the augmentations of your own, of which a file holds the names only.
        trial: another trial of the study.
        data: a file that the data are written to (.npz) and the script reads. Only built-in data sets need none: the
            script reads their files in the cache.

    Returns:
        The script.

    Raises:
        EjectError: something of the run cannot stand in a script: says what, and what to do.
        LuthierError: no such run, or another task than the one that was trained.
    """
    origin = find(run, trial)
    subject = find_subject(origin, task)
    recipe = joined(origin.recipe, subject.recipe)
    with as_then(origin):
        return write(read_facts(subject.task, recipe), origin, None if data is None else Path(data))


@contextmanager
def as_then(origin: Origin) -> Iterator[None]:
    """Torch's threads and kernels as they were in the training; as before afterwards."""
    threads = torch.get_num_threads()
    with deterministic(origin.recipe.deterministic):
        torch.set_num_threads(origin.environment["threads"])
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def find(run: str | Path | Record | Study, trial: int | None) -> Origin:
    """The run that is meant.

    Raises:
        EjectError: the folder holds neither, or the study has no finished trial yet.
    """
    if isinstance(run, (str, Path)):
        if not Path(run).is_dir():
            raise EjectError(f"there is no folder {run}: give that of a training or of a study")
        run = Record(run) if Record.exists(run) else Study.open(run)
    if isinstance(run, Record):
        if trial is not None:
            raise EjectError(f"{run.path} is one training and has no trial {trial}: leave trial out")
        name = run.task["name"]
        reference = name if name in TASKS else None
        words = f"the training {run.path}"
        return Origin(run.recipe, run.task, words, run.best, _environment(run.path), reference)
    if trial is None and run.best is None:
        raise EjectError(f"the study {run.folder} has no finished trial yet: go on with it, or name a trial")
    number = run.best.number if trial is None and run.best is not None else int(trial or 0)
    recipe = run.recipe(number)
    chosen, which = run.trials[number], "the best one, trial" if trial is None else "trial"
    words = f"{which} {number} of the study {run.folder}"
    return Origin(recipe, run.task, words, chosen.value, _environment(chosen.folder), run.settings.get("reference"))


def find_subject(origin: Origin, task: Task | Subject | str | None) -> Subject:
    """The task that was trained, with the recipe that it was begun with where that is known.

    Raises:
        EjectError: it is not known, or the given one is another.
    """
    task = origin.reference if task is None else task
    if task is None:
        raise EjectError(
            f"{origin.words} trained the task {origin.task['name']!r}, which is not built in: "
            "give it, --task path/to/file.py:function (in Python: task=...)"
        )
    found = as_subject(task, "expected a task or its reference")
    now = found.task.describe()
    changes = [name for name in now if now[name] != origin.task.get(name)]
    if changes:
        raise EjectError(
            f"{origin.words} trained another task ({', '.join(changes)} differ): give the task as it was then"
        )
    return found


def joined(recipe: Recipe, known: Recipe) -> Recipe:
    """A recipe with the user's augmentations that another one holds; a file holds their names only.

    Raises:
        LuthierError: one of these was changed since.
    """
    own = [part.call for part in known.augment if isinstance(part, CustomAugmentation)]
    calls = {function.function: function._call for function in own if function._call is not None}
    return Recipe.from_json(recipe.to_json(), calls) if calls else recipe


def write(facts: Facts, origin: Origin, data: Path | None) -> str:
    """The whole script, its first steps compared with Luthier's."""
    recipe, task = facts.recipe, facts.task
    network = write_network(task, recipe, example_of(task, recipe, facts.run.train))
    facts.own, facts.refused = network.own, network.refused
    rate = write_schedule(recipe, facts.steps, task.metric.minimise)
    mixers, mixing = write_mixing(facts)
    augment = write_augment(facts)
    draws = network.draws or bool(augment) or mixing is not None
    path, what, loading = write_data(facts, data)
    evaluating = write_evaluate(facts, prepared(facts))
    training = write_train(facts, rate, mixing, draws)
    blocks = [_SEEDS, loading, ORDER, *network.blocks, *rate.blocks, *_growth(facts), *facts.sources.blocks.values()]
    blocks += [*augment, *write_scale(facts), *mixers, *write_functions(facts), evaluating, training, _MAIN]
    body = "\n\n\n".join(dict.fromkeys(blocks))
    constants = _constants(facts, path, origin.environment["threads"], body)
    try:
        imports = _imports("\n".join([constants, body]), {*network.imports, *facts.sources.imports})
        script = "\n\n".join([_header(facts, origin, what), imports, constants]) + f"\n\n\n{body}\n"
        refuse_twice(script)
    except SyntaxError as error:
        raise EjectError(f"the script cannot be read ({error}); please report this") from error
    check(script, facts, path)
    return script


def refuse_twice(script: str) -> None:
    """Refuse a user's function that has the name of one of the script's own.

    Raises:
        EjectError: naming it.
    """
    names: list[str] = []
    modules: set[str] = set()  # whose parts may be imported one by one
    for node in ast.parse(script).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, ast.Import):
            names += [alias.asname for alias in node.names if alias.asname]
            modules |= {alias.name.partition(".")[0] for alias in node.names if not alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names += [alias.asname or alias.name for alias in node.names]
        elif isinstance(node, ast.Assign):
            names += [each.id for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Name)]
    names += modules
    for name in set(names):
        if names.count(name) > 1 and name != "torch":
            raise EjectError(f"your code and the script both have something called {name!r}: rename yours")


def _header(facts: Facts, origin: Origin, what: str) -> str:
    metric = facts.task.metric.name.replace("_", " ")
    reached = "" if origin.value is None else f", to a best validation {metric} of {origin.value:.6g}"
    return f'''"""Trains {_in_docstring(facts.task.name)} as recorded{reached}.

Run: {_in_docstring(origin.words)}, seed {facts.recipe.seed}
Written by Luthier {__version__}, which is not needed to run it. With torch {origin.environment["torch"]} on the same
kind of processor all losses are the same to the last bit.

python train.py [DATA]
    DATA: {what}; see below for the default
"""'''


def _in_docstring(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"""', r"\"\"\"")


def _environment(folder: Path) -> dict[str, Any]:
    """What the record says of the machine; of the one here where a record is gone."""
    try:
        there = json.loads((folder / "environment.json").read_text())
        return {"torch": str(there["torch"]), "threads": int(there["threads"])}
    except (OSError, ValueError, KeyError):
        return {"torch": str(torch.__version__), "threads": torch.get_num_threads()}


def _constants(facts: Facts, path: str, threads: int, body: str) -> str:
    recipe = facts.recipe
    lines = [f"DATA = {literal(path)}", 'BEST = "best.pt"', f"SEED = {recipe.seed}", f"EPOCHS = {recipe.epochs}"]
    lines += [f"BATCH_SIZE = {recipe.batch_size}", f"LR = {recipe.lr!r}"]
    streams = {"WEIGHTS": 1, "ORDER": 2, "STEPS": 3, "EVALUATION": 4}
    used = {name: number for name, number in streams.items() if re.search(rf"derived_seed\({name}\b", body)}
    lines.append(f"{', '.join(used)} = {', '.join(map(str, used.values()))}  # what random numbers are drawn for")
    lines.append(f"torch.set_num_threads({threads})")
    if recipe.deterministic:
        lines.append("torch.use_deterministic_algorithms(True)")
    return "\n".join(lines)


_KNOWN = {
    r"copy\.": "import copy",
    r"hashlib\.": "import hashlib",
    r"math\.": "import math",
    r"sys\.": "import sys",
    r"np\.": "import numpy as np",
    r"torch\.": "import torch",
    r"F\.": "import torch.nn.functional as F",
}


def _imports(code: str, others: set[str]) -> str:
    """The import statements that the code needs, the standard library's first."""
    found = {line for name, line in _KNOWN.items() if re.search(rf"(?<![\w.]){name}", code)} | others
    names = [name for name, use in (("Tensor", r"Tensor\b"), ("nn", r"nn\.")) if re.search(rf"(?<![\w.]){use}", code)]
    found -= {f"from torch import {name}" for name in names}
    found -= {"import torch.nn as nn"} if "nn" in names else set()
    if names:
        found.add(f"from torch import {', '.join(names)}")
    packed = [name for name in ("pack_padded_sequence", "pad_packed_sequence") if name in code]
    if packed:
        found.add(f"from torch.nn.utils.rnn import {', '.join(packed)}")
    standard = sorted(line for line in found if line.split()[1].partition(".")[0] in _standard())
    foreign = sorted(
        found - set(standard), key=lambda line: (line.split()[1].split(".")[0], line.startswith("from"), line)
    )
    plain = sorted(foreign, key=lambda line: line.startswith("from"))
    future = ["from __future__ import annotations"] if others or _is_annotated(code) else []
    return "\n\n".join("\n".join(group) for group in (future, standard, plain) if group)


def _is_annotated(code: str) -> bool:
    """Whether there are annotations, whose names may not be there."""
    return any(
        getattr(node, "annotation", None) is not None or getattr(node, "returns", None) is not None
        for node in ast.walk(ast.parse(code))
    )


def _standard() -> frozenset[str]:
    import sys

    return frozenset(sys.stdlib_module_names)


def _growth(facts: Facts) -> list[str]:
    growth = facts.recipe.batch_growth
    if growth is None:
        return []
    sizes = [growth.batch_size(facts.recipe.batch_size, epoch) for epoch in range(facts.recipe.epochs)]
    starts = [epoch for epoch, size in enumerate(sizes) if epoch == 0 or size != sizes[epoch - 1]]
    table = ", ".join(f"{epoch}: {sizes[epoch]}" for epoch in starts)
    return [
        f'''def batch_size(epoch):
    """Batches grow (Smith et al. 2018)."""
    sizes = {{{table}}}  # from which epoch on
    return sizes[max(start for start in sizes if start <= epoch)]'''
    ]


_SEEDS = '''def derived_seed(stream, step=0):
    """A seed of its own for every use and step (SplitMix64): no draw depends on those before."""
    golden, mask, state = 0x9E3779B97F4A7C15, (1 << 64) - 1, SEED
    for word in (stream, 0):
        state = (state + golden * (word + 1)) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return ((state + step * golden) & mask) >> 1'''
_MAIN = """if __name__ == "__main__":
    train(*sys.argv[1:2])"""
