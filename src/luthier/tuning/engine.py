"""One call of a study at work: ask the scheduler, order the workers, write the ledger, until there is nothing to do.

Every decision is written before it is acted on, and every state follows from what is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from luthier.tuning import scheduler
from luthier.tuning.depot import Depot
from luthier.tuning.endings import check_result, read_test
from luthier.tuning.homing import Homing
from luthier.tuning.intake import Intake
from luthier.tuning.jobs import Plan
from luthier.tuning.journal import Journal
from luthier.tuning.optuna_store import OptunaStore
from luthier.tuning.orders import Orders
from luthier.tuning.pace import Freely, InTurn, NextJob, Pace
from luthier.tuning.proposing import Proposer
from luthier.tuning.samplers import Constraint
from luthier.tuning.searched import Searched
from luthier.tuning.state import State
from luthier.tuning.study import Study
from luthier.tuning.tidying import Checkpoints
from luthier.tuning.workers import Workers

_TICK_S = 0.1
_SPENT = 0.9
_SLOW_S = 0.1


class Engine:
    """A study at work.

    Args:
        journal: of the study.
        searched: what is tuned: lengths of trials, where the search begins, the test data.
        plan: arms, totals, seeds.
        sampler: "auto", a name in `SAMPLERS`, or what `samplers.as_sampler` takes.
        workers: the processes.
        constraints: what a trial's values must meet.
        depot: from where the folders of ended trials come to the study's; None: they are there.
    """

    def __init__(
        self,
        journal: Journal,
        searched: Searched,
        plan: Plan,
        sampler: Any,
        workers: Workers,
        constraints: Sequence[Constraint] = (),
        depot: Depot | None = None,
    ) -> None:
        self.journal, self.searched, self.plan, self.workers = journal, searched, plan, workers
        self.decided = plan
        if plan.virtual is not None:  # a time budget only truncates
            follows = plan.budget if plan.budget is not None and plan.budget.exact else None
            self.decided = replace(plan, budget=follows, workers=plan.virtual)
        self.propose = Proposer(searched, self.decided, sampler, constraints)
        orders = Orders(journal, searched, plan, workers, examines=self.propose.auto)
        intake = Intake(journal, searched, plan, workers, steers=self.propose.auto)
        virtual = plan.virtual
        self.pace: Pace = Freely(orders, intake) if virtual is None else InTurn(orders, intake, virtual)
        self.optuna = OptunaStore(journal.ledger.store, searched.name, searched.objectives, searched.space)
        self.checkpoints, self.homing = Checkpoints(), Homing(depot)
        self.interrupts = self._told = 0
        self._slow = False
        self._leaving: set[int] = set()  # trials that have ended, whose workers may not be through with them
        self.doing = ""

    @property
    def state(self) -> State:
        """All that the study knows."""
        return self.journal.state

    def open(self, description: dict[str, Any], settings: dict[str, Any]) -> None:
        """Begin the call: a new study is described, trainings that a crash cut off are taken up."""
        if not self.state.description:
            self.journal.record("created", **description)
        self.pace.recover()
        self.journal.record("opened", **settings)
        self.journal.flush()
        self.journal.begun()

    def run(self) -> str:
        """Search, retrain winner and baseline; returns why it ended."""
        self.doing = "search"
        journal, budget = self.journal, self.plan.budget
        self.drive(lambda: scheduler.next_job(self.state, self.decided, self.propose, journal.clock), self.search_over)
        narrow = scheduler.narrow(self.state, self.plan, journal.clock) and not self.propose.is_exhausted(self.state)
        if not self.interrupts:
            for stop in scheduler.outranked(self.state, self.plan):
                journal.record("stopped", number=stop.number, reason=stop.reason, may_return=stop.may_return)
            self.doing = "repeats"
            self.drive(lambda: scheduler.next_repeat(self.state, self.decided), self.budget_over)
        if self.interrupts:
            return "interrupted"
        check_result(self.state, self.plan)
        if scheduler.reached(self.state, self.plan):
            return "target"
        used = 0.0 if budget is None else budget.used(self.state, journal.clock) / budget.total
        return "budget" if used > _SPENT or narrow else "finished"

    def drive(self, next_job: NextJob, over: Callable[[], bool]) -> None:
        """Keep the workers busy until there is no job and no training; when the time is over, pause them."""
        pausing = False
        while True:
            pausing = self.pause_when_due(pausing, over)
            if not pausing:
                self.give_out(next_job)
            self.settle()
            if not self.workers.busy:
                break
            for message in self.workers.wait(_TICK_S):
                self.pace.hear(message, pausing)
            self.journal.progress(self.doing, self.plan.budget)
        if not self.interrupts:  # after an interrupt the next call hears again, in its turn, what was held back
            self.pace.wind_up()
        self.settle()

    def give_out(self, next_job: NextJob) -> None:
        """Order what is next, in one commit with what it follows from; that does not wait for a slow sampler."""
        if self._slow:
            self.settle()
        began_s = time.monotonic()
        self.pace.give_out(next_job)
        self._slow |= time.monotonic() - began_s > _SLOW_S

    def pause_when_due(self, pausing: bool, over: Callable[[], bool]) -> bool:
        """Ask the workers once to pause, when the time is over or the user interrupts."""
        if self.interrupts:
            self.doing = "stopping"
        if pausing or not (self.interrupts or over()):
            return pausing
        self.workers.pause_all()
        return True

    def search_over(self) -> bool:
        """Whether the rest of the budget belongs to the repeats."""
        return scheduler.search_over(self.state, self.plan, self.journal.clock)

    def budget_over(self) -> bool:
        """Whether the budget is used up."""
        return scheduler.budget_over(self.state, self.plan, self.journal.clock)

    def settle(self) -> None:
        """Make durable what has happened, then act on it: checkpoints of ended trials go, Optuna gets to know them."""
        self.journal.flush_when_due()
        changed = [self.state.trials[number] for number in dict.fromkeys(self.state.changed[self._told :])]
        self._told = len(self.state.changed)
        self.optuna.add(changed)
        self._leaving |= {trial.number for trial in changed if trial.ended}
        if self._leaving and (left := self._leaving - {worker.trial for worker in self.workers.busy}):
            self._leaving -= left
            self.homing.bring([self.state.trials[number] for number in sorted(left)])
            self.tidy()

    def tidy(self) -> None:
        """Remove checkpoints that nobody will need, where the trial's folder has come home."""
        removed = self.checkpoints.tidy(self.state, self.homing.away | self._leaving)
        self.homing.drop(self.state.trials[number] for number in removed)

    def finish(self, reason: str, test: bool) -> Study:
        """Read the test data, write why the call ended, complete Optuna's trials, and show the result.

        Raises:
            StudyError: what has ended cannot be brought here.
        """
        self.settle()
        self.homing.wait()
        self.tidy()
        if test and reason != "interrupted":
            read_test(self.journal, self.searched)
        self.journal.record("closed", reason=reason)
        self.settle()
        self.homing.wait()
        self.optuna.close()
        return self.journal.over()
