"""Data sets that are fetched, and data sets that are made in memory."""

from __future__ import annotations

import logging
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from luthier.data.cache import cached
from luthier.data.dataset import Arrays, DataSetSource, checksum
from luthier.data.sources import ByHand, Source
from luthier.errors import DataError, DownloadError

log = logging.getLogger(__name__)

BROKEN = (OSError, EOFError, ValueError, KeyError, IndexError, struct.error, zlib.error, tarfile.TarError)
"""What decoding broken, truncated or foreign files raises."""


@dataclass(frozen=True, kw_only=True)
class Fetched(DataSetSource):
    """A data set that is fetched from the first source that serves it, verified, and kept in the cache.

    Attributes:
        checksum: SHA-256 over the decoded arrays (see `luthier.data.dataset.checksum`).
        decode: reads the files in a folder into arrays; finds them at any depth.
        sources: tried in this order, after files placed by hand.
        files: names of the files to place by hand.
    """

    checksum: str
    decode: Callable[[Path], Arrays]
    sources: tuple[Source, ...]
    files: tuple[str, ...]

    def arrays(self, cache: Path) -> Arrays:
        """The arrays from the cache, fetched into it first when need be.

        Raises:
            DownloadError: no source could be reached or verified.
        """
        by_hand = cache / "by-hand" / self.name
        return cached(cache, self.name, self.checksum, lambda folder: self._fetch(by_hand, folder))

    def _fetch(self, by_hand: Path, folder: Path) -> Arrays:
        failures: list[tuple[Source, Exception]] = []
        for number, source in enumerate((ByHand(by_hand), *self.sources)):
            place = folder / str(number)
            place.mkdir()
            try:
                log.info("fetching %s: %s", self.name, source)
                source.fetch(place)
                return verified(self.decode(place), self.checksum)
            except BROKEN as error:
                failures.append((source, error))
            finally:
                shutil.rmtree(place, ignore_errors=True)
        raise DownloadError("\n".join(self._nothing(failures, by_hand)))

    def _nothing(self, failures: list[tuple[Source, Exception]], by_hand: Path) -> Iterator[str]:
        yield f"the data set {self.name!r} could not be fetched, every source failed:"
        for source, error in failures:
            yield f"  - {source}: {error or type(error).__name__}"
        yield f"To place it by hand, put {', '.join(self.files)} into {by_hand} and run again."


@dataclass(frozen=True, kw_only=True)
class Generated(DataSetSource):
    """A data set made in memory, from a seed or from what an installed package bundles.

    Attributes:
        make: gives the arrays.
        checksum: SHA-256 over the arrays, or None where rounding may differ between machines.
    """

    make: Callable[[], Arrays]
    checksum: str | None = None

    def arrays(self, cache: Path) -> Arrays:
        """The arrays, made anew.

        Raises:
            DataError: the bundled data are not the expected ones.
        """
        arrays = self.make()
        return arrays if self.checksum is None else verified(arrays, self.checksum)


def verified(arrays: Arrays, expected: str) -> Arrays:
    """The arrays themselves when their checksum is the expected one.

    Raises:
        DataError: it is not.
    """
    if (found := checksum(arrays)) != expected:
        raise DataError(f"the decoded data have SHA-256 {found}, expected {expected}")
    return arrays
