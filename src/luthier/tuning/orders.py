"""Jobs on their way to the workers: written down first, then ordered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from luthier.files import to_stored
from luthier.tuning.functions import UNTIL_IT_ENDS
from luthier.tuning.jobs import BASELINE, Continue, Plan, Start
from luthier.tuning.journal import Journal
from luthier.tuning.places import Worker
from luthier.tuning.searched import Searched
from luthier.tuning.state import Trial
from luthier.tuning.strategies import strategy_for
from luthier.tuning.workers import Workers

_LONG = 2000
"""Optimizer steps of a whole training that are worth an examination before its end."""


class Orders:
    """Writes jobs down and sends them.

    Args:
        journal: of the study.
        searched: what is tuned.
        plan: its strategy.
        workers: the processes.
        examines: whether the doctor looks at trainings that go far enough.
    """

    def __init__(self, journal: Journal, searched: Searched, plan: Plan, workers: Workers, examines: bool) -> None:
        self.journal, self.searched, self.plan, self.workers = journal, searched, plan, workers
        self.examines = examines

    def propose(self, job: Start | Continue) -> Start | Continue:
        """Write a new trial down; returns the job with the step to which the trial trains."""
        if not isinstance(job, Start):
            return job
        if self.searched.total_steps(job.values, self.journal.state) is None:
            job = replace(job, until_step=UNTIL_IT_ENDS)
        names = ("number", "kind", "arm", "seed", "of", "total_steps", "source")
        told = {name: getattr(job, name) for name in names}
        self.journal.record("proposed", until=job.until_step, values=to_stored(job.values), **told)
        return job

    def assign(self, job: Start | Continue, **turn: Any) -> None:
        """Write down that a trial is to be trained."""
        self.journal.record("assigned", number=job.number, until=job.until_step, **turn)

    def send(self, worker: Worker, number: int) -> None:
        """Let a worker train a trial to where it was told to go; what was written comes first."""
        self.journal.flush()
        trial = self.journal.state.trials[number]
        examined = self.examines and trial.kind == "search" and trial.until > self._unexamined(trial)
        guarded = trial.kind == "search" and trial.arm != BASELINE  # what these are compared with comes to its end
        told = {"examined": examined, "guarded": guarded, "known": trial.step, "total_steps": trial.total_steps}
        told["seeded"] = self.plan.virtual is not None
        more = told | self.searched.order
        self.workers.train(
            worker, Continue(number, trial.until), self.searched.complete(trial.values), trial.seed, **more
        )

    def _unexamined(self, trial: Trial) -> int:
        """The step up to which the doctor is not called: an examination takes as long as some hundred steps.

        That is the lowest rung of a long trial; a short one is looked at where it goes on to its end.
        """
        if trial.total_steps < _LONG:
            return trial.total_steps - 1
        return strategy_for(self.plan).lowest(trial.number, trial.total_steps)
