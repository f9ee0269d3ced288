"""Shipping what is tuned to worker processes: cloudpickle for its code, memory-mapped files for its tensors.

Only the study's own workers read these files, and the parent writes them anew at each call; nothing else loads them.
Torch and NumPy are imported where something of theirs is shipped, and only then.
"""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from luthier.errors import LuthierError
from luthier.files import write_atomic

if TYPE_CHECKING:
    from luthier.task import Task

_LARGE_BYTES = 1 << 16
_REFUSALS = (TypeError, AttributeError, ValueError, RuntimeError, NotImplementedError, pickle.PicklingError)


def ship(folder: Path, **things: Any) -> None:
    """Write things for the workers; large tensors go to files that the workers map instead of reading.

    Args:
        folder: emptied first.
        things: by name, such as task= and recipe=, or function=.

    Raises:
        LuthierError: something cannot be pickled; the message names it.
        OSError: the folder cannot be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        content = _pickled(folder, things)
    except _REFUSALS as error:
        raise LuthierError(
            f"{_blamed(folder, things)} cannot be sent to the worker processes ({error}): keep open files, locks and "
            "generators out of it, or make them where they are used"
        ) from error
    write_atomic(folder / "things.pkl", content)


def unship(folder: Path) -> dict[str, Any]:
    """What `ship` wrote, its large tensors memory-mapped."""
    things: dict[str, Any] = _Unpickler(io.BytesIO((folder / "things.pkl").read_bytes()), folder).load()
    return things


def without_test(task: Task) -> Task:
    """The task as workers get it: its test data stays with the parent."""
    shipped = copy.copy(task)
    shipped.test = None
    return shipped


def _pickled(folder: Path, things: Any) -> bytes:
    """The bytes of a pickle; large tensors and arrays go into files of their own, each once."""
    import cloudpickle

    for thing in things.values() if isinstance(things, dict) else ():
        module = sys.modules.get(getattr(thing, "__module__", None) or "")
        if module is not None and inspect.isfunction(thing) and not _is_importable(module):
            cloudpickle.register_pickle_by_value(module)
    stored: dict[int, tuple[Any, tuple[Any, ...]]] = {}  # the object is kept, so that its id stays its own

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, value: Any) -> Any:
            if not _is_large(value):
                return None
            if id(value) not in stored:
                stored[id(value)] = (value, _store(value, folder / f"{len(stored)}.bin"))
            return stored[id(value)][1]

    buffer = io.BytesIO()
    Pickler(buffer).dump(things)
    return buffer.getvalue()


def _is_importable(module: ModuleType) -> bool:
    """Whether another process finds this very module by its name on the same path."""
    path: Sequence[str] | None = None
    found = None
    for name in accumulate(module.__name__.split("."), "{}.{}".format):
        found = PathFinder.find_spec(name, path)
        path = None if found is None else found.submodule_search_locations
        if path is None:
            break
    file = getattr(module, "__file__", None)
    return file is None or (found is not None and found.name == module.__name__ and found.origin == file)


def _store(value: Any, path: Path) -> tuple[Any, ...]:
    import numpy as np

    if isinstance(value, np.ndarray):
        np.ascontiguousarray(value).tofile(path)
        return ("array", path.name, value.dtype.str, value.shape)
    import torch

    flat = value.detach().contiguous().view(-1)
    flat.view(torch.uint8).numpy().tofile(path)
    return ("tensor", path.name, str(value.dtype).removeprefix("torch."), tuple(value.shape))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, folder: Path) -> None:
        super().__init__(file)
        self.folder = folder

    def persistent_load(self, pid: tuple[Any, ...]) -> Any:
        kind, name, dtype, shape = pid
        path = str(self.folder / name)
        if kind == "array":
            import numpy as np

            return np.memmap(path, dtype=np.dtype(dtype), mode="c", shape=shape)
        import torch

        # A private mapping: pages are shared between workers until one of them writes.
        return torch.from_file(path, shared=False, size=math.prod(shape), dtype=getattr(torch, dtype)).view(shape)


def _is_large(value: Any) -> bool:
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and type(value) is torch.Tensor:
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.requires_grad or not value.numel():
            return False
        return bool(
            value.untyped_storage().nbytes() >= _LARGE_BYTES
        )  # a view is pickled with the whole memory behind it
    if numpy is not None and type(value) in (numpy.ndarray, numpy.memmap):
        plain = value.dtype.kind != "V" and not value.dtype.hasobject  # a record's fields have names
        return plain and bool(value.nbytes >= _LARGE_BYTES)
    return False


def _blamed(folder: Path, things: dict[str, Any]) -> str:
    """What of these things cannot be pickled, as precisely as it can be told."""
    for kind, thing in things.items():
        for name, part in _parts(thing):
            try:
                _pickled(folder, part)
            except _REFUSALS:
                return f"{name} ({type(part).__name__}), which the {kind} uses,"
    return f"the {next(iter(things))}"


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    """What a function reaches by name: variables around it and globals."""
    if inspect.isfunction(thing):
        used = inspect.getclosurevars(thing)
        yield from {**used.globals, **used.nonlocals}.items()
