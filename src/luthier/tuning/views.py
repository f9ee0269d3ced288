"""What a sampler may know: a `View` is one arm's ranges and what its trials showed, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple, TypeAlias

from luthier.tuning.pareto import by_front
from luthier.tuning.ranges import Range, Space

SCHEDULE = "schedule"
"""The field whose values tell how the learning rate goes over a training."""


class Seen(NamedTuple):
    """What one trial taught.

    Attributes:
        values: by dotted path, of the fields that were present; all within the arm's ranges.
        state: as in `Trial.state`; or "refused", for values that a constraint keeps from being a trial.
        scores: its best reading of each objective; None when there is none.
        share: part of its steps that it has trained.
    """

    values: dict[str, Any]
    state: str
    scores: tuple[float, ...] | None
    share: float = 1.0

    @property
    def open(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("running", "waiting")

    @property
    def violated(self) -> bool:
        """Whether the values cannot be trained: refused, or failed (out of memory, crash, divergence)."""
        return self.state in ("failed", "refused")


@dataclass(frozen=True)
class View:
    """What a sampler may know.

    Attributes:
        space: the arm's ranges; conditions are on fields of the arm only.
        seen: its trials so far, in order of their numbers, and the baseline when it lies within the ranges.
        directions: which way each objective improves, "max" or "min".
        seed: for this question.
        stream: seed of the arm's sequence, for samplers whose n-th answer is the n-th point of one sequence.
        index: the n of this question.
        defaults: values known to be good, by path; those of the baseline.
    """

    space: Space
    seen: tuple[Seen, ...]
    directions: tuple[str, ...]
    seed: int
    stream: int = 0
    index: int = 0
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def rng(self, purpose: str) -> random.Random:
        """Random numbers for one purpose of this question, the same with each call."""
        return random.Random(f"{self.seed} {purpose}")

    @property
    def signs(self) -> tuple[float, ...]:
        """For each objective the factor that makes smaller better."""
        return tuple(-1.0 if direction == "max" else 1.0 for direction in self.directions)

    def losses(self, seen: Seen) -> tuple[float, ...]:
        """A trial's scores, smaller is better; none without scores."""
        return tuple(s * value for s, value in zip(self.signs, seen.scores or (), strict=False))

    def ranked(self, most: int | None = None) -> list[int]:
        """Indices of the trials that do not run, best first; failed and unread ones last, in their order.

        By value: one that reads better after less training is better. But where schedules are tuned, those trained
        further first (a scheduler gave the better ones more), since readings on the way mislead there. With several
        objectives those trained further first, too, then by front and crowding.

        Args:
            most: of the best; None: all.
        """
        read = [(index, each) for index, each in enumerate(self.seen) if not each.open]
        good = [(index, each) for index, each in read if each.scores is not None and not each.violated]
        rest = [index for index, each in read if each.scores is None or each.violated]
        if len(self.directions) > 1:
            return list(islice(chain(self._by_front(good), rest), most))
        sign, far = self.signs[0], -1.0 if SCHEDULE in self.space else 0.0
        keys = [(far * each.share, sign * each.scores[0], index) for index, each in good if each.scores is not None]
        return ([index for _, _, index in sorted(keys)] + rest)[:most]

    def _by_front(self, good: list[tuple[int, Seen]]) -> Iterator[int]:
        """Indices of trials with scores, those of one share ranked among each other."""
        for share in sorted({each.share for _, each in good}, reverse=True):
            peers = [(index, each) for index, each in good if each.share == share]
            yield from (peers[place][0] for place in by_front([self.losses(each) for _, each in peers]))

    def worst(self) -> tuple[float, ...] | None:
        """The worst score of each objective among the trials that did not fail; None without any."""
        known = [each.scores for each in self.seen if each.scores is not None and not each.violated]
        ends = [max if direction == "min" else min for direction in self.directions]
        return tuple(end(column) for end, column in zip(ends, zip(*known, strict=True), strict=True)) if known else None


Sampler: TypeAlias = Callable[[View], dict[str, Any]]
"""Values for the next trial: one for each field that is present, in the order of the space."""


def start(range_: Range, path: str, view: View) -> float:
    """Where the known good value of a field lies on its scale, in [0, 1]; the middle when there is none."""
    value: Any = view.defaults.get(path)
    return range_.position(value) if range_.contains(value) else 0.5
