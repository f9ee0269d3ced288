"""How a study ends: with the reading of the test data, or with the reason why there is no result."""

from __future__ import annotations

from luthier.tuning.jobs import Plan
from luthier.tuning.journal import Journal
from luthier.tuning.ledger import StudyError
from luthier.tuning.memory import OUT_OF_MEMORY
from luthier.tuning.searched import Searched
from luthier.tuning.state import State, Trial

_SAME_FAILURES = 3


def check_failures(state: State, number: int, workers: int) -> None:
    """Whether the first trials all failed, now that one has ended: then so would the rest.

    The first three, or more while one of those waits for a worker that is still starting. Others may need less memory
    than these.

    Raises:
        StudyError: with the last reason, and where more is to be read.
    """
    early = state.trials[: 3 * workers + _SAME_FAILURES]  # no more have begun when so many of them have failed
    if number >= len(early):
        return
    failed = [trial for trial in early if trial.state == "failed" and not trial.reason.startswith(OUT_OF_MEMORY)]
    first = sum(trial.number < _SAME_FAILURES for trial in failed)
    alone = len(failed) > 2 * workers and len(failed) == sum(trial.ended for trial in early)
    if number < first == _SAME_FAILURES or (alone and not any(trial.rows for trial in early)):
        raise StudyError(
            f"the first {max(first, alone * len(failed))} trials all failed, so the study stops; {_last(state, failed)}"
        )


def check_result(state: State, plan: Plan) -> None:
    """Whether the budget sufficed for anything.

    Raises:
        StudyError: not one trial was trained to its end.
    """
    if any(trial.state == "finished" for trial in state.search):
        return
    failed = [trial for trial in state.search if trial.state == "failed"]
    if failed and all(trial.state == "failed" for trial in state.search):
        raise StudyError(f"all {len(failed)} trials failed; {_last(state, failed)}")
    read = any(trial.rows for trial in state.search)
    if plan.budget is None and any(trial.value is not None for trial in state.search):
        raise StudyError(
            f"no trial was trained to its end, each one stopped before: see study.table() of {state.folder}"
        )
    if plan.budget is None or (read and all(trial.value is None for trial in state.search)):
        told = f": {_last(state, failed)}" if failed else f": see {state.folder}"
        raise StudyError(f"no trial gave a finite validation value of {state.metric}{told}")
    raise StudyError(
        f"the budget of {plan.budget} was too small for one whole training: what has begun waits in {state.folder}, "
        "raise the budget (a total over all calls) and call again"
    )


def _last(state: State, failed: list[Trial]) -> str:
    trial = max(failed, key=lambda each: each.ended_s or 0.0)
    return f"trial {trial.number}: {trial.reason}. What the trainings printed: {state.folder / 'workers'}"


def read_test(journal: Journal, searched: Searched) -> None:
    """Read the test data for the winner and the baseline, where they have no reading yet."""
    winner, baseline = journal.state.winner, journal.state.baseline
    if winner is None or baseline is None or baseline.state != "finished":
        return
    untested = [trial for trial in (baseline, winner) if trial.number not in journal.state.tests]
    if not untested:
        return
    if (values := searched.read_test(untested)) is not None:
        numbers = [str(trial.number) for trial in untested]
        journal.record("tested", values=dict(zip(numbers, values, strict=True)))
    elif searched.why_unread:
        journal.record("unread", reason=searched.why_unread)
