"""One call of a study at work: ask the scheduler, order the workers, write the ledger, until there is nothing to do.

Every decision is written before it is acted on, and every state follows from what is written.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from luthier.tuning import scheduler
from luthier.tuning.functions import UNTIL_IT_ENDS
from luthier.tuning.jobs import Continue, Plan, Start
from luthier.tuning.ledger import Ledger, StudyError
from luthier.tuning.optuna_store import OptunaStore
from luthier.tuning.proposing import Proposer, space_now
from luthier.tuning.samplers import Constraint
from luthier.tuning.searched import Searched
from luthier.tuning.space import space_to_json
from luthier.tuning.state import State, Trial, apply, fold
from luthier.tuning.steering import widened
from luthier.tuning.strategies import strategy_for
from luthier.tuning.study import Study
from luthier.tuning.tidying import remove_checkpoints
from luthier.tuning.unpausable import at_rung
from luthier.tuning.virtual import ENDS, VirtualWorkers
from luthier.tuning.workers import Worker, Workers

_TICK_S = 0.1
_SAME_FAILURES = 3
_MOST_LOST = 2


class Console(Protocol):
    """What may be told of a study's course; `luthier.show.terminal.TuneConsole` is one."""

    def started(self, study: Study) -> None:
        """The study is open; nothing runs yet."""

    def trial(self, trial: Trial) -> None:
        """A trial's state changed."""

    def progress(self, info: dict[str, Any]) -> None:
        """Time passes: `elapsed_s` and `doing` in words."""

    def finished(self, study: Study) -> None:
        """The call is over."""


class Engine:
    """A study at work.

    Args:
        ledger: claimed by this process.
        folder: of the study.
        searched: what is tuned: lengths of trials, where the search begins, the test data.
        plan: arms, totals, seeds.
        sampler: "auto", a name in `SAMPLERS`, or what `samplers.as_sampler` takes.
        workers: the processes.
        console: told of every change, or None.
        origin: `time.monotonic()` when the call began.
        constraints: what a trial's values must meet.
    """

    def __init__(
        self,
        ledger: Ledger,
        folder: Path,
        searched: Searched,
        plan: Plan,
        sampler: Any,
        workers: Workers,
        console: Console | None,
        origin: float,
        constraints: Sequence[Constraint] = (),
    ) -> None:
        self.ledger, self.searched, self.space = ledger, searched, searched.space
        self.plan, self.workers, self.console = plan, workers, console
        self.propose = Proposer(searched, plan, sampler, constraints)
        self.state: State = fold(ledger.events(), folder)
        self.before_s, self.origin = self.state.clock, origin
        self.interrupts = 0
        self.doing = ""
        self.removed: set[int] = set()
        under_way = {trial.number: trial.ends for trial in self.state.trials if trial.state == "running"}
        self.turns = None if plan.virtual is None else VirtualWorkers(plan.virtual, self.state.virtual, under_way)
        self.decided = plan if plan.virtual is None else replace(plan, budget_s=None, workers=plan.virtual)
        self.queue = deque(under_way if self.turns else ())
        self.lost: Counter[int] = Counter()
        self.optuna = OptunaStore(ledger.store, searched.name, searched.direction, self.space, searched.metric)

    @property
    def clock(self) -> float:
        """Seconds at work, over all calls."""
        return self.before_s + time.monotonic() - self.origin

    def record(self, event: str, /, **payload: Any) -> None:
        """Write an event and take it into the state."""
        apply(self.state, self.ledger.append(event, self.clock, payload))
        if "number" in payload and event != "proposed" and self.console is not None:
            self.console.trial(self.state.trials[payload["number"]])

    def open(self, description: dict[str, Any], settings: dict[str, Any]) -> None:
        """Begin the call: a new study is described, trainings that a crash cut off are paused."""
        if not self.state.description:
            self.record("created", **description)
        for trial in [trial for trial in self.state.trials if trial.state == "running" and self.turns is None]:
            self.record("recovered", number=trial.number, reason="the study was killed; goes on from its checkpoint")
        self.record("opened", **settings)
        self.ledger.flush()
        if self.console is not None:
            self.console.started(Study(self.state))

    def run(self) -> str:
        """Search, retrain winner and baseline, read the test data; returns why it ended."""
        self.doing = "search"
        self.drive(lambda: scheduler.next_job(self.state, self.decided, self.propose, self.clock), self.search_over)
        if not self.interrupts:
            for stop in scheduler.outranked(self.state, self.plan):
                self.record("stopped", number=stop.number, reason=stop.reason)
            self.doing = "repeats"
            self.drive(lambda: scheduler.next_repeat(self.state, self.decided), self.budget_over)
        if self.interrupts:
            return "interrupted"
        self.check_result()
        return "budget" if self.plan.budget_s is not None and self.clock > 0.9 * self.plan.budget_s else "finished"

    def drive(self, next_job: Callable[[], Start | Continue | None], over: Callable[[], bool]) -> None:
        """Keep the workers busy until there is no job and no training; when the time is over, pause them."""
        pausing = False
        while True:
            pausing = self.pause_when_due(pausing, over)
            if not pausing:
                self.give_out(next_job)
            self.ledger.flush()
            if not self.workers.busy:
                return self.wind_up()
            self.optuna.add(self.state.search)
            for message in self.workers.wait(_TICK_S):
                self.hear(message, pausing)
            if self.console is not None:
                self.console.progress({"elapsed_s": self.clock, "doing": self.doing})

    def pause_when_due(self, pausing: bool, over: Callable[[], bool]) -> bool:
        """Ask the workers once to pause, when the time is over or the user interrupts."""
        if pausing or not (self.interrupts or over()):
            return pausing
        self.workers.pause_all()
        return True

    def search_over(self) -> bool:
        """Whether the rest of the budget belongs to the repeats."""
        left = scheduler.search_left(self.state, self.plan, self.clock)
        baseline_open = self.plan.baseline and not any(trial.ended for trial in self.state.trials[:1])
        return self.budget_over() or (left is not None and left <= 0 and not baseline_open)

    def budget_over(self) -> bool:
        """Whether the budget is used up."""
        return self.plan.budget_s is not None and self.clock >= self.plan.budget_s

    def give_out(self, next_job: Callable[[], Start | Continue | None]) -> None:
        """Order what is to be trained next; in a deterministic study a decision is made when its turn has come."""
        if self.turns is None:
            while self.workers.idle and (job := next_job()) is not None:
                self.note(job)
                self.order(self.workers.idle[0], job.number)
            return
        while True:
            while self.turns.free and (job := next_job()) is not None:
                self.note(job)
                self.queue.append(job.number)
            if not (told := self.turns.due()):
                break
            self.record("turn", virtual=self.turns.clock)
            for message in told:
                self.take_in(message)
        while self.queue and self.workers.idle:
            self.order(self.workers.idle[0], self.queue.popleft())

    def wind_up(self) -> None:
        """Nothing trains any more: when the time is over, what a deterministic study has held back is taken in.

        After an interrupt it is not: the next call hears it again, in its turn.
        """
        if self.turns is None or self.interrupts:
            return
        for message in self.turns.rest():
            self.take_in(message)
        for number in self.queue:
            self.record("recovered", number=number, reason="the time was over before it began")
        self.queue.clear()

    def note(self, job: Start | Continue) -> None:
        """Write a job down."""
        if isinstance(job, Start):
            if self.searched.total_steps(job.values, self.state) is None:
                job = replace(job, until_step=UNTIL_IT_ENDS)
            names = ("number", "kind", "arm", "values", "seed", "of", "total_steps", "source")
            self.record("proposed", until=job.until_step, **{name: getattr(job, name) for name in names})
        turn = {}
        if self.turns is not None:
            trial = self.state.trials[job.number]
            turn["ends"] = self.turns.begin(job.number, self.searched.work(trial.values, job.until_step - trial.step))
        self.record("assigned", number=job.number, until=job.until_step, **turn)

    def order(self, worker: Worker, number: int) -> None:
        """Let a worker train a trial to where it was told to go; what was written comes first."""
        self.ledger.flush()
        trial = self.state.trials[number]
        examined = self.propose.auto and trial.kind == "search" and trial.until > self.first_stop(trial)
        more = {"examined": examined, "known": trial.step, "total_steps": trial.total_steps, **self.searched.order}
        self.workers.train(worker, Continue(number, trial.until), trial.values, trial.seed, **more)

    def hear(self, message: dict[str, Any], pausing: bool) -> None:
        """Take in a worker's message, in a deterministic study when its turn has come.

        There a training that was lost with its worker is ordered again: that is no news to the study.
        """
        event, number = message["event"], int(message["number"])
        if self.turns is None:
            self.take_in(message)
        elif event == "asked":
            raise StudyError("a deterministic study needs a function that saves and restores (trial.save, restore)")
        elif pausing or not self.is_lost(message):
            if event in ("row", *ENDS):
                self.turns.hear(message)
        else:
            self.queue.appendleft(number)

    def is_lost(self, message: dict[str, Any]) -> bool:
        """Whether a training must be ordered again: its worker died, at most twice without a new reading."""
        event, number = message["event"], int(message["number"])
        if event == "row":
            self.lost[number] = 0
        self.lost[number] += event == "crashed"
        short = event == "paused" and message.get("step", 0) < self.state.trials[number].until
        return short or (event == "crashed" and self.lost[number] <= _MOST_LOST)

    def take_in(self, message: dict[str, Any]) -> None:
        """Write down what a worker told, and what follows from it."""
        event, number = message["event"], int(message["number"])
        details: dict[str, Any] = {
            name: message[name] for name in ("reason", "step", "total_steps", "time_s") if name in message
        }
        if event == "row":
            self.record("row", number=number, row=message["row"])
        elif event == "asked":
            self.decide(number, details)
        elif event in ("paused", "finished", "failed", "crashed"):
            self.record(event, number=number, **details)
            self.steer(number, message.get("changes", []))
            if self.state.trials[number].ended:
                remove_checkpoints(self.state, self.removed)
            self.check_failures()

    def steer(self, number: int, changes: list[dict[str, Any]]) -> None:
        """Note what the doctor would change in a finished trial, and widen ranges whose end is crowded."""
        if changes:
            self.record("prescribed", number=number, changes=changes)
        trial = self.state.trials[number]
        if self.propose.auto and self.searched.widens and trial.state == "finished" and trial.arm in self.plan.arms:
            ranges = space_now(self.space, self.state)
            if wider := widened({path: ranges[path] for path in self.plan.arms[trial.arm]}, self.state, trial.arm):
                self.record("widened", ranges=space_to_json(wider))

    def decide(self, number: int, details: dict[str, Any]) -> None:
        """Send a trial on that has come to its rung and cannot be paused, or end it: its worker waits for the word."""
        self.record("paused", number=number, reason="at its rung", **details)
        decision = at_rung(self.state, self.plan, number)
        if isinstance(decision, Continue):
            self.record("assigned", number=number, until=decision.until_step)
            self.workers.answer(number, order="go", until=decision.until_step)
        else:
            self.record("stopped", number=number, reason=decision.reason)
            self.workers.answer(number, order="stop", reason=decision.reason)

    def first_stop(self, trial: Trial) -> int:
        """The trial's lowest rung: what ends there is too short to be watched."""
        return strategy_for(self.plan).lowest(trial.number, trial.total_steps)

    def check_failures(self) -> None:
        """Whether the first trials all failed: then so would the rest.

        Raises:
            StudyError: with the last reason.
        """
        ended = list(islice((trial for trial in self.state.trials if trial.ended), _SAME_FAILURES + 1))
        if len(ended) == _SAME_FAILURES and all(trial.state == "failed" for trial in ended):
            raise StudyError(
                f"the first {len(ended)} trials all failed, so the study stops; the last one: {ended[-1].reason}"
            )

    def check_result(self) -> None:
        """Whether the budget sufficed for anything.

        Raises:
            StudyError: not one trial was trained to its end.
        """
        if any(trial.state == "finished" for trial in self.state.search):
            return
        failed = [trial for trial in self.state.search if trial.state == "failed"]
        if failed and all(trial.state == "failed" for trial in self.state.search):
            raise StudyError(f"all {len(failed)} trials failed; the last one: {failed[-1].reason}")
        if self.plan.budget_s is None:
            raise StudyError(f"no trial gave a finite validation value of {self.state.metric}: see {self.state.folder}")
        raise StudyError(
            f"the budget of {self.plan.budget_s:g} s was too small for one whole training: everything is paused in "
            f"{self.state.folder}, raise the budget (a total over all calls) and call again"
        )

    def finish(self, reason: str, test: bool) -> Study:
        """Read the test data, write why the call ended, complete Optuna's trials, and show the result."""
        if test and reason != "interrupted":
            self.test()
        self.record("closed", reason=reason)
        self.ledger.flush()
        self.optuna.add(self.state.search)
        self.optuna.close()
        study = Study(self.state)
        if self.console is not None:
            self.console.finished(study)
        return study

    def test(self) -> None:
        """Read the test data for the winner and the baseline, where they have no reading yet."""
        winner, baseline = self.state.winner, self.state.baseline
        if winner is None or baseline is None or baseline.state != "finished":
            return
        untested = [trial for trial in (baseline, winner) if trial.number not in self.state.tests]
        if untested and (values := self.searched.read_test(untested)) is not None:
            numbers = [str(trial.number) for trial in untested]
            self.record("tested", values=dict(zip(numbers, values, strict=True)))
