"""Readers of data that are not in memory: a `Dataset`, a `DataLoader`, a stream."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate

from luthier.data.memory import bounds, checked_batch_size, epoch_order, epoch_seed
from luthier.data.trees import Tree
from luthier.errors import DataError


class DatasetBatches:
    """Batches of a map-style `Dataset`: read sample by sample, in an order that seed and epoch determine.

    Args:
        dataset: with `__len__` and `__getitem__`.
        batch_size: examples in a batch.
        shuffle: a new order every epoch.
        seed: of that order.
        drop_last: leave out a last batch that would be smaller.
        name: what messages call the data.
    """

    def __init__(
        self, dataset: Any, batch_size: int, *, shuffle: bool, seed: int, drop_last: bool = False, name: str = "data"
    ) -> None:
        self.dataset, self.batch_size, self.name = dataset, batch_size, name
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.n = len(dataset)
        if self.n == 0:
            raise DataError(f"{name} is empty: give at least one example")
        self.steps()

    def steps(self, batch_size: int | None = None) -> int:
        """Batches per epoch, of this size or of the usual one."""
        size = checked_batch_size(self.batch_size if batch_size is None else batch_size, self.n, self.name)
        return self.n // size if self.drop_last else math.ceil(self.n / size)

    def epoch(self, index: int, start: int = 0, batch_size: int | None = None) -> Iterator[Tree]:
        """Batches of one epoch from the `start`-th on; skipped samples are never loaded."""
        size = self.batch_size if batch_size is None else batch_size
        first, stop = bounds(self, start, size)
        order = epoch_order(self.n, self.seed, index).tolist() if self.shuffle else range(self.n)
        chosen = [list(order[low : min(low + size, stop)]) for low in range(first, stop, size)]
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, index))
        return iter(DataLoader(self.dataset, batch_sampler=chosen, generator=generator))


class LoaderBatches:
    """Batches of a ready `DataLoader`, with its own batch size, order and workers.

    Its generators (a new one where it has none) are seeded by (seed, epoch) at the start of every epoch, so that a
    shuffling loader has an order that can be resumed; `start` skips by reading.

    Args:
        loader: over a `Dataset` with a length.
        batch_size: the recipe's, which is not heeded; any third size asked for later is refused.
        seed: of the order.
        name: what messages call the data.
    """

    def __init__(self, loader: DataLoader[Any], batch_size: int, *, seed: int, name: str = "data") -> None:
        self.loader, self.batch_size, self.seed, self.name = loader, batch_size, seed, name
        self.n = len(loader.dataset)  # type: ignore[arg-type]
        if len(loader) == 0:
            raise DataError(f"{name} is empty: its DataLoader gives no batch")

    def steps(self, batch_size: int | None = None) -> int:
        """Batches per epoch."""
        self._own(batch_size)
        return len(self.loader)

    def epoch(self, index: int, start: int = 0, batch_size: int | None = None) -> Iterator[Tree]:
        """Batches of one epoch from the `start`-th on."""
        self._own(batch_size)
        _seed_loader(self.loader, epoch_seed(self.seed, index))
        if hasattr(self.loader.sampler, "set_epoch"):
            self.loader.sampler.set_epoch(index)
        return islice(self.loader, start, None)

    def _own(self, batch_size: int | None) -> None:
        _refuse_other_size(self.loader, self.batch_size, batch_size, self.name)


class StreamBatches:
    """Batches of a stream, cut into epochs of a fixed number of steps; the stream goes on from epoch to epoch.

    A stream that ends begins anew. Reading goes on where the last batch left off when that is what is asked for;
    otherwise the stream is begun anew and read up to there, which gives the same batches if it gives the same examples.

    Args:
        stream: an `IterableDataset`, or a `DataLoader` over one (which makes its own batches).
        batch_size: examples in a batch.
        steps_per_epoch: batches that make an epoch.
        seed: of a `DataLoader`'s generator, which its workers' generators follow.
        drop_last: leave out a smaller batch at the stream's end.
        name: what messages call the data.
    """

    n = None

    def __init__(
        self,
        stream: Any,
        batch_size: int,
        steps_per_epoch: int,
        *,
        seed: int = 0,
        drop_last: bool = False,
        name: str = "data",
    ) -> None:
        self.stream, self.batch_size, self.seed, self.name = stream, batch_size, seed, name
        self.steps_per_epoch, self.drop_last = steps_per_epoch, drop_last
        self._live: Iterator[Any] | None = None
        self._place = self._begun = 0
        self.epoch(0)

    def steps(self, batch_size: int | None = None) -> int:
        """Batches per epoch, whatever their size."""
        return self.steps_per_epoch

    def epoch(self, index: int, start: int = 0, batch_size: int | None = None) -> Iterator[Tree]:
        """Batches of one epoch from the `start`-th on."""
        size = self.batch_size if batch_size is None else batch_size
        if isinstance(self.stream, DataLoader):
            _refuse_other_size(self.stream, self.batch_size, batch_size, self.name)
        checked_batch_size(size, size, self.name)
        return self._read(index * self.steps_per_epoch, start, size)

    def _read(self, base: int, start: int, size: int) -> Iterator[Tree]:
        if self._live is None or self._place != base + start:
            self._live, self._place, self._begun = None, 0, 0
            while self._place < base + start:
                self._next(size)
        while self._place < base + self.steps_per_epoch:
            yield self._next(size)

    def _next(self, size: int) -> Tree:
        """The next batch; at its end the stream is begun anew."""
        for _ in range(2):
            if self._live is None:
                self._live = self._begin()
            batch = self._batch(self._live, size)
            if batch is not None:
                self._place += 1
                return batch
            self._live = None
        raise DataError(f"{self.name} is empty: its stream, begun anew, gives no batch")

    def _begin(self) -> Iterator[Any]:
        if isinstance(self.stream, DataLoader):
            _seed_loader(self.stream, epoch_seed(self.seed, self._begun))
        self._begun += 1
        return iter(self.stream)

    def _batch(self, live: Iterator[Any], size: int) -> Tree | None:
        if isinstance(self.stream, DataLoader):
            return next(live, None)
        examples = list(islice(live, size))
        if not examples or (self.drop_last and len(examples) < size):
            return None
        return default_collate(examples)


def _refuse_other_size(loader: DataLoader[Any], usual: int, asked: int | None, name: str) -> None:
    """A `DataLoader` keeps its own batch size; a size that changes in the course of training cannot be had from it."""
    if asked not in (None, usual, loader.batch_size):
        raise DataError(
            f"{name} is a DataLoader with its own batch size {loader.batch_size}, and cannot be read in batches of "
            f"{asked}: give its Dataset instead"
        )


def _seed_loader(loader: DataLoader[Any], seed: int) -> None:
    """Seed the generators of a loader and of its sampler; a missing one is made, since the global one would serve."""
    sampler: Any = loader.sampler
    for owner in (loader, sampler):
        if getattr(owner, "generator", owner) is None:
            owner.generator = torch.Generator()
        if isinstance(getattr(owner, "generator", None), torch.Generator):
            owner.generator.manual_seed(seed)
