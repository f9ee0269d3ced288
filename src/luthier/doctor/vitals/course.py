"""How a training goes: its steps, batches, evaluations, metrics and events, and what watching them costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from luthier.doctor.vitals.looks import Argument, Predictions
from luthier.doctor.vitals.rows import Row


@dataclass(frozen=True)
class Norms(Row):
    """Gradient (as stepped) and weight L2 norms per parameter, without a full look."""

    step: int
    grad: tuple[float | None, ...] = ()
    weight: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Steps(Row):
    """One entry per optimizer step (thinned evenly in very long trainings).

    Attributes:
        step: numbers. loss: NaN when unknown. lr: of the first group.
        wait_s: from the end of the last step to the start of the next forward. busy_s: from there to the step's end;
            both 0 where a look distorted them.
    """

    step: tuple[int, ...] = ()
    loss: tuple[float, ...] = ()
    lr: tuple[float, ...] = ()
    wait_s: tuple[float, ...] = ()
    busy_s: tuple[float, ...] = ()


@dataclass(frozen=True)
class BatchTargets(Row):
    """The targets of one batch: class counts (whole numbers, at most 256 distinct) or mean and std of each."""

    step: int
    n: int
    counts: Mapping[str, int] | None = None
    mean: float | None = None
    std: float | None = None


@dataclass(frozen=True)
class Evaluation(Row):
    """Forwards without a training step that belong together (from one training step to the next).

    Attributes:
        training: mode of the model. grad: gradients were enabled. forwards: number of them.
        random: the forwards drew random numbers on the CPU (dropout at work). n: examples.
        stochastic: operations that ran in training mode although the model was in eval mode ("dropout", "batch_norm").
        norm_statistics_moved: running statistics of batch norm changed.
        inputs: of the first batch. predictions: summed over the batches whose targets were seen.
    """

    nested: ClassVar[Mapping[str, type[Row]]] = {"inputs": Argument, "predictions": Predictions}
    step: int
    training: bool
    grad: bool
    forwards: int
    n: int = 0
    random: bool | None = None
    stochastic: tuple[str, ...] = ()
    norm_statistics_moved: bool | None = None
    inputs: Argument | None = None
    predictions: Predictions | None = None


@dataclass(frozen=True)
class Metrics(Row):
    """What was passed to watch.metrics (or a row of a Record): name -> value, and name -> "min" or "max"."""

    step: int
    values: Mapping[str, float]
    directions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Event(Row):
    """Something that happened: step_skipped (GradScaler), no_gradients (the optimizer stepped with none), exception,
    step_without_backward, steps_without_optimizer, model_never_called, ...; `details` says more."""

    step: int
    name: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Spent(Row):
    """Steps seen, seconds between first and last, seconds spent watching (all, and after the first 20 steps)."""

    steps: int
    elapsed_s: float
    spent_s: float
    spent_later_s: float = 0.0
    looks: int = 0
    norms: int = 0
