"""Learning-rate and batch-size schedules: pure functions of progress, without state.

A schedule answers "which multiple of `recipe.lr` at this point of the training", so a resumed run, a plot and a
simulation all ask the same function. Each part equals its namesake in `torch.optim.lr_scheduler`.
Lengths that are left open (None) follow the length of the training, so that a plain name fits any budget.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import SerializeAsAny

from luthier.parts import resolve
from luthier.training.schedules.batch_growth import BATCH_SCHEDULES, BatchGrowth, BatchGrowthChoice
from luthier.training.schedules.cycles import CosineRestarts, Cyclic, OneCycle
from luthier.training.schedules.decays import Constant, Cosine, Exponential, MultiStep, Plateau, Polynomial, Step
from luthier.training.schedules.schedule import CustomSchedule, Progress, Schedule
from luthier.training.schedules.warmup import lr_factor, momentum_at

__all__ = [
    "BATCH_SCHEDULES",
    "SCHEDULES",
    "BatchGrowth",
    "BatchGrowthChoice",
    "Constant",
    "Cosine",
    "CosineRestarts",
    "CustomSchedule",
    "Cyclic",
    "Exponential",
    "MultiStep",
    "OneCycle",
    "Plateau",
    "Polynomial",
    "Progress",
    "Schedule",
    "ScheduleChoice",
    "Step",
    "lr_factor",
    "momentum_at",
]

SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "step": Step,
    "multi-step": MultiStep,
    "exponential": Exponential,
    "polynomial": Polynomial,
    "cosine": Cosine,
    "cosine-restarts": CosineRestarts,
    "one-cycle": OneCycle,
    "cyclic": Cyclic,
    "plateau": Plateau,
}

ScheduleChoice = Annotated[SerializeAsAny[Schedule], resolve(SCHEDULES, "schedule", CustomSchedule)]
