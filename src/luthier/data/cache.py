"""The cache of decoded data: one folder of `.npy` files a data set, written whole or not at all.

A folder `<cache>/<name>` holds the arrays and `manifest.json` with their checksum. It appears by one rename, so no
reader ever sees half of it, and a lock keeps a second process from fetching what the first one fetches.
The SHA-256 over all bytes is compared once in every process (0.03 s for MNIST, 0.1 s for CIFAR-10 with hardware
SHA), and again when a file's size or time of change is another.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from luthier.data.dataset import Arrays, checksum
from luthier.errors import DataError, DownloadError

log = logging.getLogger(__name__)
Stamp = tuple[tuple[str, int, int], ...]
_VERIFIED: dict[tuple[Path, str], Stamp] = {}


class CorruptedError(DataError):
    """A cached data set whose bytes are not those that were verified when it was written."""


def cache_folder(cache: str | Path | None = None) -> Path:
    """The folder for data: the argument, else the environment's LUTHIER_DATA, else the user's cache directory."""
    if cache is None:
        cache = os.environ.get("LUTHIER_DATA") or None
    if cache is not None:
        return Path(cache).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("luthier"))


def cached(cache: Path, name: str, expected: str, fetch: Callable[[Path], Arrays]) -> Arrays:
    """The arrays of a data set from the cache, fetched into it first when they are missing or corrupted.

    Args:
        cache: the folder for data.
        name: the data set's folder in it.
        expected: checksum that the arrays must have.
        fetch: gives verified arrays; its argument is an empty folder to work in.

    Returns:
        Memory-mapped arrays, private copies on write.

    Raises:
        DownloadError: nothing could be fetched, or the cache folder cannot be written.
    """
    entry = cache / name
    try:
        return read(entry, expected)
    except (FileNotFoundError, CorruptedError):
        pass
    with _locked(cache, name):
        try:
            return read(entry, expected)
        except FileNotFoundError:
            pass
        except CorruptedError as error:
            warnings.warn(f"{error}; it is removed and fetched again", stacklevel=4)
        with _working(cache, name) as folder:
            arrays = fetch(folder)
        with _working(cache, name) as folder:
            _write(folder, arrays, expected)
            shutil.rmtree(entry, ignore_errors=True)
            folder.rename(entry)
        return read(entry, expected)


def read(entry: Path, expected: str) -> Arrays:
    """Map the arrays of one cached data set into memory.

    Raises:
        FileNotFoundError: it is not in the cache.
        CorruptedError: it is, but its bytes are not the expected ones.
    """
    if not entry.is_dir():
        raise FileNotFoundError(entry)
    try:
        made = json.loads((entry / "manifest.json").read_text())
        arrays: Arrays = {file: np.load(entry / f"{file}.npy", mmap_mode="c") for file in made["arrays"]}
        stamp = _stamp(entry)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise CorruptedError(f"the cached data set {entry} cannot be read ({error})") from error
    if made["checksum"] != expected:
        raise CorruptedError(f"the cached data set {entry} was decoded by another version of Luthier")
    if _VERIFIED.get((entry, expected)) != stamp:
        if (found := checksum(arrays)) != expected:
            raise CorruptedError(
                f"the cached data set {entry} is corrupted (SHA-256 {found[:12]}, not {expected[:12]})"
            )
        _VERIFIED[entry, expected] = stamp
    return arrays


def _stamp(entry: Path) -> Stamp:
    stats = sorted((path.name, path.stat()) for path in entry.iterdir())
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _write(folder: Path, arrays: Arrays, expected: str) -> None:
    for name, array in arrays.items():
        with (folder / f"{name}.npy").open("wb") as file:
            np.save(file, np.ascontiguousarray(array), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
    with (folder / "manifest.json").open("w") as text:
        json.dump({"checksum": expected, "arrays": sorted(arrays)}, text)
        text.flush()
        os.fsync(text.fileno())


@contextmanager
def _locked(cache: Path, name: str) -> Iterator[None]:
    """Hold the data set's lock; folders that a killed process left are removed under it."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / f".{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("another process is fetching %s: waiting for it", name)
            lock.acquire()
    except OSError as error:
        raise _unwritable(cache, error) from error
    try:
        for left in cache.glob(f".{name}.*.part"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        lock.release()


@contextmanager
def _working(cache: Path, name: str) -> Iterator[Path]:
    """An empty folder inside the cache that is gone afterwards, however that comes (a renamed one stays)."""
    try:
        folder = Path(tempfile.mkdtemp(dir=cache, prefix=f".{name}.", suffix=".part"))
        try:
            folder.chmod(0o755)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise _unwritable(cache, error) from error


def _unwritable(cache: Path, error: OSError) -> DownloadError:
    return DownloadError(
        f"the folder for data {cache} cannot be written ({error.strerror or error}): "
        "make room or give another one in the environment variable LUTHIER_DATA"
    )
