"""Folders of trials on their way between machines: through storage that all of them reach, at any fsspec address.

A folder is one uncompressed tar whose name tells its version and its size:

    ADDRESS/0007/000002000031-000004-81920.tar      trial 7: second call, its 31st order, put for the 4th time

A version is never written twice, the newest whole one counts, and what is shorter than its name says is half written.
So no rename is needed, which object stores do not have, and a worker that was taken for dead cannot overwrite what
its successor has put.
"""

from __future__ import annotations

import itertools
import os
import re
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from luthier.errors import LuthierError, close_matches
from luthier.tuning.store import StudyError

WAITS_S: tuple[float, ...] = (1, 2, 4, 8, 15, 30)
"""Pauses between attempts to reach an address that does not answer."""
_ORDERS = 10**6  # of one call
_NAME = re.compile(r"(\d{12}-\d{6})-(\d+)\.tar")
_NOTE = ".version"
_T = TypeVar("_T")


class DepotError(StudyError):
    """An address that cannot be reached, read or written."""


@dataclass(frozen=True, order=True)
class Archive:
    """A folder as it was put once; the newest is the greatest."""

    version: str
    is_whole: bool
    path: str


class Depot:
    """Where the folders of a study's trials are kept for whoever trains them next.

    Args:
        address: of the study's own place, see `checked_address`.
        call: the how manieth call of the study this is: what a later one puts is newer.

    Attributes:
        before, turns: numbers for what was trained before this call, and, rising, for its orders.

    Raises:
        LuthierError: no file system is known for the address, or a package is missing; says which.
        DepotError: it cannot be reached. All methods raise this.
    """

    def __init__(self, address: str, call: int = 0) -> None:
        self.address, self.call, self.before = address, call, call * _ORDERS
        self.turns = itertools.count(self.before + 1)
        self._connected, self._root = _opened(address)

    @property
    def _files(self) -> Any:
        """The file system; connected anew after what went wrong, since a connection that broke stays so."""
        if self._connected is None:
            self._connected, _ = _opened(self.address)
        return self._connected

    def put(self, name: str, folder: Path, turn: int, nth: int = 0) -> None:
        """Keep a folder as it is now, without files whose names begin with a dot; older versions of it go.

        Args:
            name: of the trial.
            folder: nothing is kept where there is none.
            turn: number of the order that it is trained by.
            nth: counts what is put in this turn.
        """
        if not folder.exists():
            return
        version = f"{turn:012d}-{nth:06d}"
        with self._saying("written"), tempfile.NamedTemporaryFile(dir=folder.parent, prefix=f".{name}.") as archive:
            pack(folder, Path(archive.name))
            self._make(f"{self._root}/{name}")
            size = Path(archive.name).stat().st_size
            self._files.put_file(archive.name, f"{self._root}/{name}/{version}-{size}.tar")
            (folder / _NOTE).write_text(version)
            for older in self._archives(name):
                if older.version < version:
                    self._files.rm_file(older.path)

    def fetch(self, name: str, folder: Path) -> None:
        """Have the newest version in a folder, whole or not at all; one that is as new already stays as it is."""
        with self._saying("read"):
            newest = max((each for each in self._archives(name) if each.is_whole), default=None)
            if newest is None or newest.version <= version_of(folder):
                return
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}.") as space:
                archive, fetched = Path(space) / "archive.tar", Path(space) / "fetched"
                self._files.get_file(newest.path, str(archive))
                unpack(archive, fetched)
                (fetched / _NOTE).write_text(newest.version)
                if folder.exists():
                    folder.rename(Path(space) / "older")
                fetched.rename(folder)

    def remove(self, name: str, upto: str | None = None) -> None:
        """Keep nothing of a trial any more, or what is newer than a version only."""
        with self._saying("removed"):
            for archive in self._archives(name):
                if upto is None or archive.version <= upto:
                    self._files.rm_file(archive.path)
            self._unmake(f"{self._root}/{name}")

    def clear(self) -> None:
        """Keep nothing at all."""
        for name in self.names():
            self.remove(name)
        with self._saying("removed"):
            for path in self._entries(self._root):
                self._files.rm_file(path)
            self._unmake(self._root)

    def names(self) -> set[str]:
        """Trials of which something may be kept."""
        with self._saying("read"):
            return {name for name in map(_last_part, self._entries(self._root)) if name.isdigit()}

    def probe(self) -> None:
        """Write something, read it and remove it."""
        with self._saying("written"):
            self._make(self._root)
            path = f"{self._root}/probe-{uuid.uuid4().hex}"
            self._files.pipe_file(path, path.encode())
            if self._files.cat_file(path) != path.encode():
                raise OSError("what was written there is not what is read")
            self._files.rm_file(path)

    def write_call(self, text: str) -> None:
        """Leave a word, by which nodes see that they reach the same storage."""
        with self._saying("written"):
            self._files.pipe_file(f"{self._root}/call", text.encode())

    def read_call(self) -> str:
        """The word that was left; empty where there is none."""
        with self._saying("read"):
            self._files.invalidate_cache()
            try:
                return str(self._files.cat_file(f"{self._root}/call").decode())
            except FileNotFoundError:
                return ""

    def _archives(self, name: str) -> list[Archive]:
        found = []
        for path, entry in self._entries(f"{self._root}/{name}").items():
            if (match := _NAME.fullmatch(_last_part(path))) is not None:
                found.append(Archive(match[1], int(match[2]) == entry["size"], path))
        return found

    def _entries(self, path: str) -> dict[str, dict[str, Any]]:
        self._files.invalidate_cache()
        try:
            return {entry["name"]: entry for entry in self._files.ls(path, detail=True)}
        except FileNotFoundError:
            return {}

    def _make(self, path: str) -> None:
        """Make a folder; object stores have none, and would make a bucket."""
        if not self._files.async_impl:
            self._files.makedirs(path, exist_ok=True)

    def _unmake(self, path: str) -> None:
        if not self._files.async_impl:
            with suppress(OSError):
                self._files.rmdir(path)

    @contextmanager
    def _saying(self, done: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each file system has its own
            text = " ".join(str(error).split())[:300]
            if self._connected is not None:
                type(self._connected).clear_instance_cache()
                self._connected = None
            raise DepotError(
                f"checkpoints in {self.address} cannot be {done} from {os.uname().nodename} "
                f"({type(error).__name__}: {text})"
            ) from error


def insist(action: Callable[[], _T]) -> _T:
    """Do something with a depot, again and again for a minute when it does not succeed.

    Raises:
        DepotError: it never did.
    """
    for wait_s in WAITS_S:
        try:
            return action()
        except DepotError:
            time.sleep(wait_s)
    return action()


def version_of(folder: Path) -> str:
    """The version that a folder was last put or fetched as; empty when it never was."""
    try:
        return (folder / _NOTE).read_text()
    except OSError:
        return ""


def pack(folder: Path, archive: Path) -> None:
    """Write a folder that may be at work to a tar file, so that it can be gone on with.

    The state of a training is written last, after the weights and rows that it refers to: so it is read first.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    with tarfile.open(archive, "w", dereference=True) as tar:
        for path in sorted(files, key=lambda path: not path.name.startswith("last")):
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue
            with file:
                tar.addfile(tar.gettarinfo(arcname=str(path.relative_to(folder)), fileobj=file), file)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar file; nothing of it gets out of the folder."""
    folder.mkdir()
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")


def checked_address(address: str) -> str:
    """An address as all nodes understand it.

    >>> checked_address("file:///mnt/depot/")
    'file:///mnt/depot'

    Raises:
        LuthierError: it is none, no file system is known for it, a package is missing, or it shows a password; or
            this Python cannot unpack tar files safely.
        DepotError: it cannot be reached.
    """
    if not isinstance(address, str) or not address:
        raise LuthierError(f"checkpoints must be an address such as s3://bucket/folder, got {address!r}")
    if re.search(r"://[^/@]*:[^/@]*@", address):
        raise LuthierError(
            "the address of checkpoints is noted in the study: leave the password out of it, and have it in the "
            "environment or in fsspec's configuration, here and on all nodes"
        )
    files, root = _opened(address)
    return f"file://{root}" if "file" in files.protocol else address.rstrip("/")


def _opened(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path there."""
    from fsspec import available_protocols, get_filesystem_class
    from fsspec.core import url_to_fs

    if not hasattr(tarfile, "data_filter"):
        raise LuthierError("checkpoints= needs Python 3.11.4 or newer, here and on all nodes")
    protocol = address.partition("://")[0].rpartition("::")[2] if "://" in address else "file"
    try:
        get_filesystem_class(protocol)
    except ValueError:
        close = close_matches(protocol, available_protocols())
        raise LuthierError(f"checkpoints: no file system is known for {protocol}://, {close}") from None
    except ImportError as error:
        raise _missing(address, error) from None
    try:
        files, root = url_to_fs(address)
    except ImportError as error:
        raise _missing(address, error) from None
    except Exception as error:
        raise DepotError(f"checkpoints: {address} cannot be reached ({type(error).__name__}: {error})") from error
    return files, str(root).rstrip("/")


def _missing(address: str, error: ImportError) -> LuthierError:
    return LuthierError(f"checkpoints in {address} need another package, here and on all nodes: {error}")


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
