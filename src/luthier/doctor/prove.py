"""Proof: what a patch does to the same training, over the same batches, in seconds.

The training forks: from the checkpoint before the onset where the record has one and the patch leaves the network and
the optimizer's state as they are, else from the start. Both branches see the same batches, augmentation and dropout
draws; from the start this is repeated with a few seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from luthier.data.batches import BatchSource
from luthier.doctor.findings import Finding
from luthier.errors import LuthierError, NonFiniteLoss
from luthier.patch import NotApplicable, Patch
from luthier.recipe import Recipe
from luthier.training.checkpoints import load
from luthier.training.loop import evaluate, take_step
from luthier.training.preflight import preflight
from luthier.training.run import Run, evaluation_batches

if TYPE_CHECKING:
    from luthier.record import Record
    from luthier.task import Task

PROBE_BATCHES = 2  # of at least 512 examples, on which the fit is measured
SEEDS = 3
KEEPS_STATE = frozenset(
    {
        "lr",
        "schedule",
        "warmup_frac",
        "clip_norm",
        "clip_value",
        "l1",
        "dropout",
        "label_smoothing",
        "mixup",
        "cutmix",
        "augment",
    }
)
"""Fields that change neither weights nor what the optimizer remembers, so that a checkpoint still fits."""


class Reading(NamedTuple):
    """Where a branch stands at its end, everything measured in evaluation mode; infinite losses when it diverged.

    Attributes:
        train_loss: on the first training examples, without augmentation, mixing and smoothing.
        val_loss, value: loss and metric on the validation part.
    """

    train_loss: float
    val_loss: float
    value: float


@dataclass(frozen=True)
class Proof:
    """The same steps with and without a patch.

    Attributes:
        patch: what was changed.
        from_step: where the training was forked; 0 is the start.
        steps: optimizer steps of each branch.
        seeds: of the repetitions.
        without, with_patch: readings at the end, one for each seed.
    """

    patch: Patch
    from_step: int
    steps: int
    seeds: tuple[int, ...]
    without: tuple[Reading, ...]
    with_patch: tuple[Reading, ...]

    @property
    def gains(self) -> tuple[float, ...]:
        """By how much the validation loss is lower with the patch, one for each seed."""
        return tuple(_gain(a.val_loss, b.val_loss) for a, b in zip(self.without, self.with_patch, strict=True))

    @property
    def fit_gains(self) -> tuple[float, ...]:
        """By how much the training loss is lower with the patch, one for each seed."""
        return tuple(_gain(a.train_loss, b.train_loss) for a, b in zip(self.without, self.with_patch, strict=True))

    @property
    def effect(self) -> float:
        """Mean gain in validation loss; positive is better."""
        return fmean(self.gains) if -math.inf not in self.gains else -math.inf

    @property
    def spread(self) -> float:
        """Standard deviation of the gains over seeds; NaN when there is only one, or one branch diverged."""
        return stdev(self.gains) if len(self.gains) > 1 and all(map(math.isfinite, self.gains)) else math.nan

    @property
    def helps(self) -> bool:
        """The loss is lower with the patch for every seed, and by more than its spread in the mean."""
        return all(gain > 0 for gain in self.gains) and not self.effect <= self.spread

    @property
    def harms(self) -> bool:
        """The loss is higher with the patch for every seed, and by more than its spread in the mean."""
        return all(gain < 0 for gain in self.gains) and not -self.effect <= self.spread

    def __str__(self) -> str:
        """One line: what, how much, how sure.

        >>> reading = Reading(1.0, 1.0, 0.5)
        >>> better = Reading(0.5, 0.6, 0.7)
        >>> patch = Patch(reason="Lower the learning rate.", operations=[{"op": "scale", "field": "lr", "factor": 0.1}])
        >>> print(Proof(patch, 0, 100, (0, 1), (reading, reading), (better, better)))
        helps: validation loss 1 to 0.6 after 100 steps (2 seeds, gain 0.4 ± 0). Lower the learning rate.
        """
        before, after = (fmean(r.val_loss for r in side) for side in (self.without, self.with_patch))
        word = "helps" if self.helps else "harms" if self.harms else "undecided"
        n = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        spread = "" if math.isnan(self.spread) else f" ± {self.spread:.2g}"
        where = f" from step {self.from_step:,}" if self.from_step else ""
        told = f"after {self.steps} steps{where} ({n}, gain {self.effect:.2g}{spread})"
        return f"{word}: validation loss {before:.4g} to {after:.4g} {told}. {self.patch.reason}"


def prove(
    record: Record, cure: Finding | Patch, task: Task, *, steps: int = 100, seeds: Sequence[int] | None = None
) -> Proof:
    """Train the same steps with and without a cure: does it do what it is prescribed for?

    Args:
        record: of the sick training.
        cure: a patch, or a finding, whose first remedy that applies is taken.
        task: the task of the record.
        steps: optimizer steps of each branch; 50 to 200 show most causes, but not those of generalisation.
        seeds: of the repetitions when forking from the start; None takes the recipe's and the two after it. A fork
            from a checkpoint has one.

    Returns:
        Readings of both branches.

    Raises:
        LuthierError: no remedy of the finding is a patch that applies, or fewer than one step.
    """
    if steps < 1:
        raise LuthierError(f"a proof needs at least 1 step, got {steps}")
    patch, patched = applied(record.recipe, cure)
    onset = cure.onset if isinstance(cure, Finding) else None
    state = fork_state(record, patch, onset)
    if state is not None:
        try:
            return _from_checkpoint(task, record.recipe, patched, patch, steps, state)
        except LuthierError:
            pass  # the optimizer groups its parameters otherwise: prove it from the start
    return from_start(task, record.recipe, patched, patch, steps, seeds)


def from_start(
    task: Task, recipe: Recipe, patched: Recipe, patch: Patch, steps: int = 100, seeds: Sequence[int] | None = None
) -> Proof:
    """Prove a patch from the first step on, paired over seeds.

    Args:
        task: what is trained.
        recipe, patched: the recipe without and with the patch.
        patch: what was changed.
        steps: optimizer steps of each branch.
        seeds: None takes the recipe's and the two after it.
    """
    chosen = tuple(range(recipe.seed, recipe.seed + SEEDS) if seeds is None else seeds)
    sides = ([branch(task, side.replace({"seed": seed}), steps) for seed in chosen] for side in (recipe, patched))
    without, with_patch = (tuple(side) for side in sides)
    return Proof(patch, 0, steps, chosen, without, with_patch)


def applied(recipe: Recipe, cure: Finding | Patch) -> tuple[Patch, Recipe]:
    """The patch of a cure and the patched recipe.

    Raises:
        LuthierError: none applies; the reasons are told.
    """
    found = [cure] if isinstance(cure, Patch) else [r.patch for r in cure.remedies if r.patch is not None]
    reasons = []
    for patch in found:
        patched = patch.apply(recipe)
        if not isinstance(patched, NotApplicable):
            return patch, patched
        reasons.append(patched.reason)
    what = "the patch" if isinstance(cure, Patch) else f"no remedy of {cure.symptom!r}"
    why = "; ".join(reasons) or "its remedies are changes of the program, not of the recipe"
    raise LuthierError(f"{what} can be applied to this recipe, so there is nothing to prove: {why}")


def fork_state(record: Record, patch: Patch, onset: int | None) -> dict[str, Any] | None:
    """The last checkpoint, when it lies before the onset (and after the start) and still fits the patched training."""
    path = record.checkpoints / "last.safetensors"
    fits = all(operation.field.partition(".")[0] in KEEPS_STATE for operation in patch.operations)
    if onset is None or not fits or not path.exists():
        return None
    state, note = load(path)
    return dict(state) if 0 < int(note.get("step", 0)) <= onset else None


def _from_checkpoint(
    task: Task, recipe: Recipe, patched: Recipe, patch: Patch, steps: int, state: dict[str, Any]
) -> Proof:
    without, with_patch = (branch(task, side, steps, state) for side in (recipe, patched))
    return Proof(patch, int(state["position"]["step"]), steps, (recipe.seed,), (without,), (with_patch,))


def branch(task: Task, recipe: Recipe, steps: int, state: dict[str, Any] | None = None) -> Reading:
    """Train so many steps, at most to the recipe's end, and measure.

    Args:
        task: what is trained.
        recipe: how; its schedule spans the whole training as ever.
        steps: optimizer steps.
        state: a checkpoint to go on from; None starts anew.
    """
    with torch.random.fork_rng():
        run = Run(task, recipe)
        preflight(run)
        if state is not None:
            run.load_state_dict(state)
        try:
            for batch in itertools.islice(_batches(run), steps):
                take_step(run, batch)
            run.totals.read()
        except NonFiniteLoss:
            return Reading(math.inf, math.inf, math.nan)
        model = run.evaluated_model
        fit = evaluate(run, model, _First(evaluation_batches(task.train, recipe, "train"), PROBE_BATCHES))
        val = evaluate(run, model, run.val)
    finite = [value if math.isfinite(value) else math.inf for value in (fit["loss"], val["loss"])]
    return Reading(finite[0], finite[1], val.get(task.metric.name, math.nan))


def _batches(run: Run) -> Iterator[Any]:
    """Batches from where the run stands to its last epoch; without the evaluations in between."""
    while run.epoch < run.recipe.epochs:
        yield from run.batches()
        run.epoch, run.batch = run.epoch + 1, 0


@dataclass(frozen=True)
class _First:
    """The first batches of a source."""

    source: BatchSource
    n: int

    def epoch(self, epoch: int) -> Iterator[Any]:
        """Its first n batches."""
        return itertools.islice(self.source.epoch(epoch), self.n)


def _gain(without: float, with_patch: float) -> float:
    """Difference of two losses of which either may be infinite."""
    if math.isinf(with_patch):
        return 0.0 if math.isinf(without) else -math.inf
    return without - with_patch
