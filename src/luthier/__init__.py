"""Luthier: train, diagnose, mend and tune PyTorch models.

Names are imported on first use, so that `import luthier` is quick and does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from luthier.doctor.checkup.checking import check
    from luthier.doctor.findings import Diagnosis, Finding, Remedy
    from luthier.doctor.measure.watching import SickTraining, Watch, watch
    from luthier.doctor.mend import mend
    from luthier.doctor.verdicts import assert_healthy
    from luthier.ejecting.eject import eject
    from luthier.errors import LuthierError
    from luthier.fitting import evaluate_test, fit
    from luthier.patch import NotApplicable, Patch, Scale, Set
    from luthier.recipe import Recipe
    from luthier.record import Record
    from luthier.task import Step, Task
    from luthier.training.finders import find_batch_size, find_lr
    from luthier.tuning.functions import TrialPaused
    from luthier.tuning.pareto import pareto_front
    from luthier.tuning.space import choice, fixed, integers, loguniform, uniform
    from luthier.tuning.study import Study
    from luthier.tuning.tune import tune

_HOMES = {
    "Diagnosis": "luthier.doctor.findings",
    "Finding": "luthier.doctor.findings",
    "LuthierError": "luthier.errors",
    "NotApplicable": "luthier.patch",
    "Patch": "luthier.patch",
    "Recipe": "luthier.recipe",
    "Record": "luthier.record",
    "Remedy": "luthier.doctor.findings",
    "Scale": "luthier.patch",
    "Set": "luthier.patch",
    "SickTraining": "luthier.doctor.measure.watching",
    "Step": "luthier.task",
    "Study": "luthier.tuning.study",
    "Task": "luthier.task",
    "TrialPaused": "luthier.tuning.functions",
    "Watch": "luthier.doctor.measure.watching",
    "assert_healthy": "luthier.doctor.verdicts",
    "check": "luthier.doctor.checkup.checking",
    "choice": "luthier.tuning.space",
    "eject": "luthier.ejecting.eject",
    "evaluate_test": "luthier.fitting",
    "find_batch_size": "luthier.training.finders",
    "find_lr": "luthier.training.finders",
    "fit": "luthier.fitting",
    "fixed": "luthier.tuning.space",
    "integers": "luthier.tuning.space",
    "loguniform": "luthier.tuning.space",
    "mend": "luthier.doctor.mend",
    "pareto_front": "luthier.tuning.pareto",
    "tune": "luthier.tuning.tune",
    "uniform": "luthier.tuning.space",
    "watch": "luthier.doctor.measure.watching",
}

__all__ = [
    "Diagnosis",
    "Finding",
    "LuthierError",
    "NotApplicable",
    "Patch",
    "Recipe",
    "Record",
    "Remedy",
    "Scale",
    "Set",
    "SickTraining",
    "Step",
    "Study",
    "Task",
    "TrialPaused",
    "Watch",
    "__version__",
    "assert_healthy",
    "check",
    "choice",
    "eject",
    "evaluate_test",
    "find_batch_size",
    "find_lr",
    "fit",
    "fixed",
    "integers",
    "loguniform",
    "mend",
    "pareto_front",
    "tune",
    "uniform",
    "watch",
]


_ROOMS = ("data", "tasks")
"""Subpackages that are used by their own names: `luthier.data.load("mnist")`."""


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"luthier.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'luthier' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, *_ROOMS]
