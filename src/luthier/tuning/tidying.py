"""Checkpoints of ended trials go, except those of the best three and the baseline."""

from __future__ import annotations

import shutil

from luthier.tuning.state import BASELINE, State

KEPT = 3


def remove_checkpoints(state: State, removed: set[int]) -> None:
    """Remove the checkpoints of trials that have ended and are neither the baseline nor among the best three.

    Args:
        state: of the study.
        removed: numbers of trials whose checkpoints are gone already; those removed now are added.
    """
    finished = state.rank(trial for trial in state.search if trial.state == "finished" and trial.arm != BASELINE)
    kept = {
        *(trial.number for trial in state.trials[:1] if trial.arm == BASELINE),
        *(trial.number for trial in finished[:KEPT]),
    }
    for trial in state.trials:
        if trial.ended and trial.number not in kept and trial.number not in removed:
            removed.add(trial.number)
            shutil.rmtree(trial.folder / "checkpoints", ignore_errors=True)
