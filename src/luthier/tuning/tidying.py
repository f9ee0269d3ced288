"""Checkpoints of ended trials go, but for the best three, the front, the next three in line and the baseline."""

from __future__ import annotations

import shutil
from collections.abc import Collection
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

    def tidy(self, state: State, away: Collection[int] = ()) -> list[int]:
        """Remove those of trials that are not among the best three, nor on the front, nor the next three in line.

        One that a later call takes up without its checkpoint begins anew.

        Args:
            state: of the study.
            away: trials whose folders are still to come; theirs go another time.

        Returns:
            The trials that have none any more.
        """
        self.follow(state)
        waiting = state.rank(state.trials[number] for number in self._there if state.trials[number].may_return)
        waiting.sort(key=lambda trial: -trial.step / trial.total_steps)  # the furthest first, of these the best
        kept = {*islice(standings(state).finished, KEPT), *(trial.number for trial in waiting[:KEPT])}
        if len(state.objectives) > 1:
            kept.update(trial.number for trial in state.front)
        removed = sorted(self._there - kept - set(away))
        for number in removed:
            shutil.rmtree(state.trials[number].folder / "checkpoints", ignore_errors=True)
            self._there.remove(number)
        return removed
