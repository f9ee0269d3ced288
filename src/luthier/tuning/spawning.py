"""Processes that a training starts: what they need of a script or notebook goes with what they are sent."""

from __future__ import annotations

import os
import sys
from multiprocessing.reduction import ForkingPickler
from types import FunctionType
from typing import Any

OWN_PYTHON_PATH = "LUTHIER_OWN_PYTHONPATH"
"""Variable with the parent's own PYTHONPATH; a worker's is where the parent looks for modules."""


def restore_python_path() -> None:
    """Let the programs that a training starts look where they would anyway: they may be of another Python."""
    if own := os.environ.pop(OWN_PYTHON_PATH, ""):
        os.environ["PYTHONPATH"] = own
    else:
        os.environ.pop("PYTHONPATH", None)


def by_value() -> None:
    """Let the code of a script or notebook go on to processes that a training spawns, such as a DataLoader's.

    Here it has no module that they could import. As in loky, which joblib runs on.
    """
    import cloudpickle

    def reduce(_: ForkingPickler, thing: Any) -> Any:
        if not isinstance(thing, (type, FunctionType)) or is_importable(thing):
            return NotImplemented
        return cloudpickle.loads, (cloudpickle.dumps(thing),)

    setattr(ForkingPickler, "reducer_override", reduce)  # noqa: B010 - mypy takes it for a mistake


def is_importable(thing: Any) -> bool:
    """Whether a class or function is found by its name in its module."""
    found: Any = sys.modules.get(thing.__module__)
    for name in thing.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is thing
