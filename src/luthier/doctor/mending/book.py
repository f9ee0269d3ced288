"""What the book would try, whatever the diagnosis; most of it for what is left when its remedies are used up.

`known_good` changes everything at once to what works for most networks, and is tried early. Other patches change one
thing, in the order in which they usually help: `resets` are fields whose value lies outside every recommendation,
`general` is the rest. Nothing here knows which patch will help: trials decide.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from luthier.data.batches import in_memory
from luthier.data.trees import as_tensors
from luthier.errors import LuthierError
from luthier.patch import Patch, Scale, Set
from luthier.recipe import Recipe
from luthier.training.known_good import FOR_ADAPTIVE, SIGNALS, STEPS, UNREGULARISED

if TYPE_CHECKING:
    from luthier.record import Record
    from luthier.task import Task

GAP = 0.03  # of a share, between training and validation
LOSS_GAP = 1.3  # validation loss over training loss
SQUASHING = ("sigmoid", "tanh", "softplus", "relu6")


@dataclass(frozen=True)
class Case:
    """What the book looks at.

    Attributes:
        recipe: how it was trained.
        n_train: training examples; None for data that are not in memory.
        images: inputs are images [N, C, H, W].
        tokens: inputs are whole numbers [N] or [N, L], which cannot be mixed.
        gap: training is clearly better than validation.
        choices: keywords of the model builder with named choices, and those of them that were not left already.
        current: (keyword, option) that the recipe takes now.
        drops: the network has dropout of its own, which a rate of 0 would switch off.
    """

    recipe: Recipe
    n_train: int | None
    images: bool
    tokens: bool
    gap: bool
    choices: dict[str, tuple[Any, ...]]
    current: frozenset[tuple[str, Any]]
    drops: bool


def case_of(task: Task, recipe: Recipe, record: Record | None, left: Collection[tuple[str, Any]] = ()) -> Case:
    """Read the case off a task and the record of its last training.

    Args:
        task: what is trained.
        recipe: the recipe so far.
        record: of its training; None when there is none.
        left: (keyword, option) of the model builder's choices that were given up for a better one.
    """
    tree = in_memory(task.train)
    n_train = None if tree is None else as_tensors(tree)[1]
    inputs = task.train[0] if isinstance(task.train, (tuple, list)) else None
    images = getattr(inputs, "ndim", 0) == 4
    current = frozenset(choices_of(task, recipe))
    choices = {
        name: tuple(option for option in options if (name, option) not in left)
        for name, options in builder_choices(task).items()
    }
    gap = record is not None and has_gap(task, record)
    tokens = isinstance(inputs, torch.Tensor) and inputs.ndim <= 2 and not inputs.is_floating_point()
    return Case(recipe, n_train, images, tokens, gap, choices, current, has_dropout(task, recipe))


def choices_of(task: Task, recipe: Recipe) -> set[tuple[str, Any]]:
    """(keyword, option) that a recipe takes of the model builder's named choices."""
    defaults = builder_defaults(task)
    return {(name, recipe.model.get(name, defaults.get(name))) for name in builder_choices(task)}


def has_gap(task: Task, record: Record) -> bool:
    """Whether training ended clearly better than validation."""
    rows = [row for row in record.rows if row["kind"] == "epoch"]
    if not rows:
        return False
    train, val = rows[-1].get(f"train_{task.metric.name}"), rows[-1].get(f"val_{task.metric.name}")
    if task.metric.minimise or train is None or val is None:
        train_loss, val_loss = rows[-1].get("train_loss"), rows[-1].get("val_loss")
        return bool(train_loss is not None and val_loss is not None and val_loss > LOSS_GAP * train_loss)
    return bool(train - val > GAP)


def has_dropout(task: Task, recipe: Recipe) -> bool:
    """Whether the network drops units though no recipe asks for it; one that cannot be traced may."""
    from luthier.training.building import build_model
    from luthier.training.run import example_of

    off = Recipe(model=recipe.model, dropout=0.0, batch_size=recipe.batch_size)
    with torch.random.fork_rng():
        try:
            _, report = build_model(task, off, lambda: example_of(task, off, task.batches(off.batch_size, 0)))
        except LuthierError:
            return True
    return bool(report.changes)


def builder_choices(task: Task) -> dict[str, tuple[Any, ...]]:
    """Keywords of the model builder that are annotated as Literal, such as `arch: Literal["mlp", "cnn"]`."""
    call = task.model.__init__ if inspect.isclass(task.model) else task.model
    try:
        hints = typing.get_type_hints(call)
    except (NameError, TypeError):
        return {}
    return {name: typing.get_args(hint) for name, hint in hints.items() if typing.get_origin(hint) is Literal}


def builder_defaults(task: Task) -> dict[str, Any]:
    """What the model builder takes when the recipe does not say otherwise: its numbers and names."""
    try:
        parameters = inspect.signature(task.model).parameters
    except (TypeError, ValueError):
        return {}
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    return {name: value for name, value in defaults.items() if type(value) in (int, float, str)}


def known_good(case: Case) -> Iterator[Patch]:
    """Settings that work for most networks, all at once: a trial of each cures whatever fault lies in them.

    With normalised hidden layers, which bear a higher learning rate, and without. What regularises stays where the
    training fits its data and not others.
    """
    higher, plain = FOR_ADAPTIVE[:2]
    common = STEPS | SIGNALS | ({} if case.gap else UNREGULARISED) | _fair_batch(case)
    for settings, norm, told in ((higher, "batch", "batch normalisation, "), (plain, None, "")):
        values = {**common, "lr": settings["lr"], "schedule": settings["schedule"], "norm": norm}
        reason = f"known-good settings: AdamW, {settings['schedule']} up to lr {settings['lr']:g}, {told}ReLU, Kaiming"
        yield Patch(reason=reason, operations=tuple(Set(field=name, value=value) for name, value in values.items()))


def _fair_batch(case: Case) -> dict[str, int]:
    """A batch size when the recipe's is far from the usual: an epoch is to make some twenty steps."""
    size = case.recipe.batch_size
    if case.n_train is not None and size > max(32, case.n_train // 8):
        return {"batch_size": min(64, 2 ** max(3, (case.n_train // 20).bit_length() - 1))}
    if size < 8 and (case.n_train is None or case.n_train >= 64):
        return {"batch_size": 32}
    return {}


def general(case: Case) -> Iterator[Patch]:
    """What is generally worth trying, in this order; what the gap between training and validation asks for first."""
    first, second = (generalise, fit_better) if case.gap else (fit_better, generalise)
    yield from first(case)
    yield from second(case)


def resets(case: Case) -> Iterator[Patch]:
    """Fields outside every recommendation, back to the usual; where there are several, all at once first."""
    odd = dict(_odd(case))
    if len(odd) > 1:
        together = tuple(operation for operations in odd.values() for operation in operations)
        yield Patch(reason="bring every unusual setting back to the usual", operations=together)
    for reason, operations in odd.items():
        yield Patch(reason=reason, operations=operations)


def _odd(case: Case) -> Iterator[tuple[str, tuple[Set, ...]]]:
    recipe = case.recipe
    if recipe.clip_norm is not None and recipe.clip_norm < 0.1:
        yield "clip gradients at the usual norm of 1", (Set(field="clip_norm", value=1.0),)
    if recipe.clip_value is not None and recipe.clip_value < 0.01:
        yield "do not clip single gradient entries", (Set(field="clip_value", value=None),)
    if recipe.weight_decay > 0.2:
        yield "use the usual weight decay of 0.01", (Set(field="weight_decay", value=0.01),)
    if recipe.l1 > 1e-3:
        yield "leave the L1 penalty out", (Set(field="l1", value=0.0),)
    if recipe.dropout is not None and recipe.dropout > 0.6:
        yield "lower dropout to 0.2", (Set(field="dropout", value=0.2),)
    if recipe.label_smoothing > 0.25:
        yield "lower label smoothing to 0.1", (Set(field="label_smoothing", value=0.1),)
    if recipe.activation in SQUASHING:
        yield "use ReLU in the hidden layers", (Set(field="activation", value="relu"),)
    if recipe.init is not None and recipe.init != "kaiming":
        yield "initialise with Kaiming", (Set(field="init", value="kaiming"),)
    if recipe.warmup_frac > 0.4:
        yield "warm up over a twentieth of the steps", (Set(field="warmup_frac", value=0.05),)
    if recipe.schedule.name in ("step", "multi-step", "exponential", "plateau"):
        yield "follow a cosine instead of dropping the learning rate", (Set(field="schedule", value="cosine"),)
    for field, size in _fair_batch(case).items():
        yield f"average each step over {size} examples", (Set(field=field, value=size),)


def fit_better(case: Case) -> Iterator[Patch]:
    """For a training that does not fit its data."""
    recipe = case.recipe
    if not _adaptive(recipe):
        adam = (Set(field="optimizer", value="adamw"), Set(field="lr", value=2e-3))
        yield Patch(
            reason="take AdamW with lr 0.002, whose steps do not depend on the scale of the loss", operations=adam
        )
    if recipe.norm in (None, "none"):
        yield _set("norm", "batch", "normalise the hidden layers by batch")
    for factor in (3.0, 1 / 3):
        yield Patch(reason=_lr_text(recipe.lr * factor), operations=(Scale(field="lr", factor=factor),))
    if recipe.schedule.name == "constant":
        yield _set("schedule", "one-cycle", "let the learning rate rise and fall once")
    yield Patch(reason="train twice as long", operations=(Scale(field="epochs", factor=2.0),))
    if "width" in recipe.model:
        yield Patch(reason="double the width", operations=(Scale(field="model.width", factor=2.0),))
    if recipe.init is None:
        yield _set("init", "kaiming", "initialise with Kaiming")
    yield from architectures(case)
    for factor in (10.0, 0.1):
        yield Patch(reason=_lr_text(recipe.lr * factor), operations=(Scale(field="lr", factor=factor),))
    if recipe.augment:
        yield _set("augment", (), "leave augmentation out")
    if recipe.dropout:
        yield _set("dropout", 0.0, "leave dropout out")


def generalise(case: Case) -> Iterator[Patch]:
    """For a training that fits its data and not others."""
    recipe = case.recipe
    yield from architectures(case)
    if case.images:
        for degrees, translate, scale, shear in ((10.0, 0.1, 0.1, 0.0), (15.0, 0.1, 0.15, 15.0)):
            part = {"name": "affine", "degrees": degrees, "translate": translate, "scale": scale, "shear": shear}
            told = f"turn by up to {degrees:g} degrees, shift, resize" + (
                f", shear by {shear:g} degrees" if shear else ""
            )
            yield _set("augment", (part,), f"augment: {told}")
    if case.images:
        longer = (Scale(field="epochs", factor=3.0), Set(field="schedule", value="one-cycle"))
        yield Patch(reason="train three times as long, the learning rate rising and falling once", operations=longer)
    yield _set("dropout", 0.3, "drop 30% of the hidden units")
    yield _set("label_smoothing", 0.1, "smooth the labels by 0.1")
    if recipe.weight_decay < 0.05:
        yield _set("weight_decay", 0.05, "decay the weights by 0.05")
    if not case.tokens:
        yield _set("mixup", 0.2, "mix examples (mixup, alpha 0.2)")
    if recipe.averaging is None:
        yield _set("averaging", "ema", "average the weights over the last steps")
    yield _set("dropout", 0.5, "drop half of the hidden units")


def architectures(case: Case) -> Iterator[Patch]:
    """The other named choices of the model builder; sizes go back to its own, since they mean something else there."""
    for name, options in case.choices.items():
        for option in options:
            if (name, option) not in case.current:
                yield _set("model", {name: option}, f"build the network with {name}={option}")


def _adaptive(recipe: Recipe) -> bool:
    """Whether steps are scaled by Adam or one of its kin, for which the usual learning rates hold."""
    return recipe.optimizer.name in ("adam", "adamw", "nadam", "radam", "muon")


def _set(field: str, value: Any, reason: str) -> Patch:
    return Patch(reason=reason, operations=(Set(field=field, value=value),))


def _lr_text(lr: float) -> str:
    return f"set the learning rate to {lr:.2g}"
