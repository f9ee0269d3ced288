"""Checkpoints of ended trials go, except those of the best three and the baseline."""

from __future__ import annotations

import shutil
from itertools import islice

from luthier.tuning.standings import Follower, standings
from luthier.tuning.state import BASELINE, State, Trial

KEPT = 3


class Checkpoints(Follower):
    """Checkpoints of the ended trials that may be there."""

    def __init__(self) -> None:
        super().__init__()
        self._there: set[int] = set()

    def take(self, state: State, trial: Trial) -> None:
        """Take in how a trial stands now."""
        is_baseline = trial.arm == BASELINE and trial.kind == "search"
        if trial.ended and not is_baseline:
            self._there.add(trial.number)

    def tidy(self, state: State) -> None:
        """Remove those of trials that are not among the best three."""
        self.follow(state)
        for number in self._there.difference(islice(standings(state).finished, KEPT)):
            shutil.rmtree(state.trials[number].folder / "checkpoints", ignore_errors=True)
            self._there.remove(number)
