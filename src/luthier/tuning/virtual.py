"""The virtual clock of deterministic studies: what workers tell is taken in by its turn there, not by its arrival.

A fixed number of virtual workers trains at a fixed pace (see `work`). A decision is made when one of them becomes
free, and sees what has ended before that on the virtual clock. So the same seed gives the same trials and decisions
with any number of real workers, however fast they are; a worker that is ahead of its turn waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VIRTUAL_WORKERS = 4
ENDS = ("paused", "finished", "stopped", "failed", "crashed")


@dataclass
class _Training:
    ends: float
    told: list[dict[str, Any]] = field(default_factory=list)
    over: bool = False


class VirtualWorkers:
    """Holds back what workers tell until its turn.

    Args:
        count: virtual workers, at least 1.
        clock: virtual time so far.
        under_way: trainings that an earlier call gave out and that have not ended: trial -> its virtual end.
    """

    def __init__(self, count: int, clock: float = 0.0, under_way: Mapping[int, float] | None = None) -> None:
        self.count, self.clock = count, clock
        self._trainings = {number: _Training(ends) for number, ends in (under_way or {}).items()}

    @property
    def free(self) -> bool:
        """Whether a virtual worker waits for a training."""
        return len(self._trainings) < self.count

    def begin(self, number: int, work: float) -> float:
        """A training begins now; returns its virtual end. It keeps its worker until then, also when it fails early."""
        ends = self.clock + work
        self._trainings[number] = _Training(ends)
        return ends

    def hear(self, message: dict[str, Any]) -> None:
        """Keep what a worker tells of its training."""
        training = self._trainings[int(message["number"])]
        training.told.append(message)
        training.over = training.over or message["event"] in ENDS

    def due(self) -> list[dict[str, Any]]:
        """What the training that ends first has told, once it is over; moves the clock to its end.

        Its worker is free then: decide what it does before asking again.
        """
        if not self._trainings:
            return []
        number = min(self._trainings, key=lambda each: (self._trainings[each].ends, each))
        if not self._trainings[number].over:
            return []
        training = self._trainings.pop(number)
        self.clock = max(self.clock, training.ends)
        return training.told

    def rest(self) -> list[dict[str, Any]]:
        """What is left when the study is interrupted, in the order of the virtual ends: nothing is lost."""
        order = sorted(self._trainings, key=lambda each: (self._trainings[each].ends, each))
        return [message for number in order for message in self._trainings.pop(number).told]


def work(n_examples: float, n_parameters: float) -> float:
    """Virtual time of a training: examples seen times parameters, in units of 1e9 (about a second on a CPU core).

    >>> work(20_000, 100_000)
    2.0
    """
    return n_examples * n_parameters / 1e9
