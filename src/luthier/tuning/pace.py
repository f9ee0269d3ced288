"""When jobs are given out and messages taken in: at once, or each in its turn on a deterministic study's clock."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, TypeAlias

from luthier.tuning.intake import Intake
from luthier.tuning.jobs import Continue, Start
from luthier.tuning.ledger import StudyError
from luthier.tuning.orders import Orders
from luthier.tuning.virtual import ENDS, VirtualWorkers

_MOST_LOST = 2

NextJob: TypeAlias = Callable[[], Start | Continue | None]


class Pace(ABC):
    """Between the scheduler and the workers.

    Args:
        orders: what goes out.
        intake: what comes in.
    """

    def __init__(self, orders: Orders, intake: Intake) -> None:
        self.orders, self.intake = orders, intake
        self.journal, self.workers = orders.journal, orders.workers

    @abstractmethod
    def recover(self) -> None:
        """Take up what a crash cut off."""

    @abstractmethod
    def give_out(self, next_job: NextJob) -> None:
        """Order what is to be trained next."""

    @abstractmethod
    def hear(self, message: dict[str, Any], pausing: bool) -> None:
        """Take in a worker's message; `pausing`: the workers have been asked to pause."""

    @abstractmethod
    def wind_up(self) -> None:
        """Nothing trains any more, and nothing is to begin."""


class Freely(Pace):
    """A worker that is free gets the next job, and what it tells counts at once."""

    def recover(self) -> None:
        """Trainings that were cut off are paused; the scheduler sends them on."""
        for trial in [trial for trial in self.journal.state.trials if trial.state == "running"]:
            reason = "the study was killed; goes on from its checkpoint"
            self.journal.record("recovered", number=trial.number, reason=reason)

    def give_out(self, next_job: NextJob) -> None:
        """Give every idle worker a job, while there are jobs."""
        while self.workers.idle and (job := next_job()) is not None:
            self.orders.assign(self.orders.propose(job))
            self.orders.send(self.workers.idle[0], job.number)

    def hear(self, message: dict[str, Any], pausing: bool) -> None:
        """Take it in."""
        self.intake.take(message)

    def wind_up(self) -> None:
        """Nothing is held back."""


class InTurn(Pace):
    """A decision is made when its turn has come on the virtual clock, and sees what has ended before that.

    Args:
        orders: what goes out.
        intake: what comes in.
        count: virtual workers.
    """

    def __init__(self, orders: Orders, intake: Intake, count: int) -> None:
        super().__init__(orders, intake)
        state = self.journal.state
        under_way = {trial.number: trial.ends for trial in state.trials if trial.state == "running"}
        self._turns = VirtualWorkers(count, state.virtual, under_way)
        self._queue = deque(under_way)
        self._lost: Counter[int] = Counter()
        self._furthest: Counter[int] = Counter()

    def recover(self) -> None:
        """Trainings that were cut off are ordered again: that is no news to the study."""

    def give_out(self, next_job: NextJob) -> None:
        """Decide all that the virtual clock allows, then order what is decided as real workers become free."""
        while True:
            while self._turns.free and (job := next_job()) is not None:
                self._begin(self.orders.propose(job))
            if not (told := self._turns.due()):
                break
            self.journal.record("turn", virtual=self._turns.clock)
            for message in told:
                self.intake.take(message)
        self.journal.flush()
        while self._queue and self.workers.idle:
            self.orders.send(self.workers.idle[0], self._queue.popleft())

    def _begin(self, job: Start | Continue) -> None:
        trial = self.journal.state.trials[job.number]
        work = self.orders.searched.work(trial.values, job.until_step - trial.step)
        self.orders.assign(job, ends=self._turns.begin(job.number, work))
        self._queue.append(job.number)

    def hear(self, message: dict[str, Any], pausing: bool) -> None:
        """Keep it until its turn; a training that was lost with its worker is ordered again."""
        event, number = message["event"], int(message["number"])
        if event == "asked":
            raise StudyError("a deterministic study needs a function that saves and restores (trial.save, restore)")
        if not pausing and self._is_lost(message):
            self._queue.appendleft(number)
        elif event in ("row", *ENDS):
            self._turns.hear(message)

    def _is_lost(self, message: dict[str, Any]) -> bool:
        """Whether a training must be ordered again: its worker died, at most twice before it gets further."""
        event, number = message["event"], int(message["number"])
        if event == "row" and (step := int(message["row"]["step"])) > self._furthest[number]:
            self._lost[number], self._furthest[number] = 0, step
        self._lost[number] += event == "crashed"
        short = event == "paused" and message.get("step", 0) < self.journal.state.trials[number].until
        return short or (event == "crashed" and self._lost[number] <= _MOST_LOST)

    def wind_up(self) -> None:
        """When the time is over, what was held back is taken in."""
        for message in self._turns.rest():
            self.intake.take(message)
        for number in self._queue:
            self.journal.record("recovered", number=number, reason="the time was over before it began")
        self._queue.clear()
