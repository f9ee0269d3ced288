"""Shipping a task or recipe to worker processes: cloudpickle for its code, memory-mapped files for its tensors.

Only the study's own workers read these files, and the parent writes them anew at each call; nothing else loads them.
"""

from __future__ import annotations

import copy
import io
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import torch

from luthier.errors import LuthierError
from luthier.files import write_atomic

if TYPE_CHECKING:
    from luthier.task import Task

_LARGE_BYTES = 1 << 16


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Puts large tensors and arrays into files of their own, each once."""

    def __init__(self, file: io.BytesIO, folder: Path) -> None:
        super().__init__(file)
        self.folder = folder
        self.stored: dict[int, tuple[Any, tuple[Any, ...]]] = {}  # the object is kept, so that its id stays its own

    def persistent_id(self, value: Any) -> Any:
        if not _is_large(value):
            return None
        if id(value) not in self.stored:
            self.stored[id(value)] = (value, self._store(value))
        return self.stored[id(value)][1]

    def _store(self, value: Any) -> tuple[Any, ...]:
        path = self.folder / f"{len(self.stored)}.bin"
        if isinstance(value, np.ndarray):
            np.ascontiguousarray(value).tofile(path)
            return ("array", path.name, value.dtype.str, value.shape)
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
            return np.memmap(path, dtype=np.dtype(dtype), mode="c", shape=shape)
        size = int(np.prod(shape))
        # A private mapping: pages are shared between workers until one of them writes.
        return torch.from_file(path, shared=False, size=size, dtype=getattr(torch, dtype)).view(shape)


def ship(folder: Path, **things: Any) -> None:
    """Write things for the workers; large tensors go to files that the workers map instead of reading.

    Args:
        folder: emptied first.
        things: by name, such as task= and recipe=.

    Raises:
        LuthierError: something cannot be pickled; the message names it.
        OSError: the folder cannot be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, folder).dump(things)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise LuthierError(
            f"the task cannot be sent to the worker processes ({error}): keep open files, locks and generators out of "
            "it, or put it into a function in a file and tune 'file.py:function'"
        ) from error
    write_atomic(folder / "things.pkl", buffer.getvalue())


def unship(folder: Path) -> dict[str, Any]:
    """What `ship` wrote, its large tensors memory-mapped."""
    things: dict[str, Any] = _Unpickler(io.BytesIO((folder / "things.pkl").read_bytes()), folder).load()
    return things


def without_test(task: Task) -> Task:
    """The task as workers get it: its test data stays with the parent."""
    shipped = copy.copy(task)
    shipped.test = None
    return shipped


def _pickled_bytes(tensor: torch.Tensor) -> int:
    """A view is pickled with the whole memory behind it."""
    return tensor.untyped_storage().nbytes()


def _is_large(value: Any) -> bool:
    if type(value) is torch.Tensor:
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        return plain and not value.requires_grad and value.numel() > 0 and _pickled_bytes(value) >= _LARGE_BYTES
    return type(value) in (np.ndarray, np.memmap) and not value.dtype.hasobject and value.nbytes >= _LARGE_BYTES
