"""Writing files so that a crash, a full disk or a second process never leaves half of one."""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""No room, none left of a quota, or not writable any more: `OSError.errno`."""


def disk_error(error: BaseException | None) -> OSError | None:
    """The error of a disk that cannot be written, where it is this one or what this one came from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return error
        error = error.__cause__ or error.__context__
    return None


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a whole file or leave the old one: temporary neighbour, fsync, rename.

    Args:
        path: the file; its folder is created.
        content: bytes, or text to be written as UTF-8.

    Raises:
        OSError: the disk is full or the folder not writable; the old file is untouched.
    """
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path, previous: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write piece by piece, which takes its name only when the block ends without an error.

    Args:
        path: the file; its folder is created.
        previous: where the file that had this name until now is kept; None drops it.

    Yields:
        The open temporary neighbour.

    Raises:
        OSError: the disk is full or the folder not writable; the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:  # it names the temporary file, of which nobody knows
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        _rename(Path(temporary), path, previous)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _rename(temporary: Path, path: Path, previous: Path | None) -> None:
    """Give the new file its name; the old one's second name first, so that a kill in between loses neither."""
    if previous is None or not path.exists():
        temporary.replace(path)
        return
    spare = temporary.with_name(temporary.name + ".old")
    try:
        spare.hardlink_to(path)
    except OSError:  # a file system without hard links: for a moment only `previous` exists
        path.replace(previous)
        temporary.replace(path)
        return
    temporary.replace(path)
    spare.replace(previous)


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON; non-finite numbers become the strings "NaN", "Infinity" and "-Infinity".

    >>> to_json({"loss": float("nan"), "step": 1})
    '{"loss": "NaN", "step": 1}'
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def from_json(text: str | bytes) -> Any:
    """The inverse of `to_json`: the three strings become non-finite numbers again.

    >>> from_json('{"loss": "-Infinity"}')
    {'loss': -inf}
    """
    return _numbers(json.loads(text))


_TUPLE = "tuple"


def to_stored(value: Any) -> Any:
    """A value, or values by name, as JSON can hold them: tuples told from lists.

    >>> to_stored({"layers": (64, 64), "sizes": [3, 5]})
    {'layers': {'tuple': [64, 64]}, 'sizes': [3, 5]}
    """
    if isinstance(value, tuple):
        return {_TUPLE: [to_stored(item) for item in value]}
    if isinstance(value, list):
        return [to_stored(item) for item in value]
    if isinstance(value, Mapping):
        return {name: to_stored(item) for name, item in value.items()}
    return value


def from_stored(value: Any) -> Any:
    """The inverse of `to_stored`."""
    if isinstance(value, list):
        return [from_stored(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_TUPLE} and isinstance(value[_TUPLE], list):
        return tuple(from_stored(item) for item in value[_TUPLE])
    return {name: from_stored(item) for name, item in value.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _numbers(value: Any) -> Any:
    if isinstance(value, str):
        return _NON_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return value
