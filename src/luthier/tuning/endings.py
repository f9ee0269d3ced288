"""How a study ends: with the reading of the test data, or with the reason why there is no result."""

from __future__ import annotations

from luthier.tuning.jobs import Plan
from luthier.tuning.journal import Journal
from luthier.tuning.ledger import StudyError
from luthier.tuning.memory import OUT_OF_MEMORY
from luthier.tuning.searched import Searched
from luthier.tuning.state import State

_SAME_FAILURES = 3


def check_failures(state: State, number: int) -> None:
    """Whether the first trials all failed, now that one of them has ended: then so would the rest.

    Others may need less memory than these.

    Raises:
        StudyError: with the last reason.
    """
    first = state.trials[:_SAME_FAILURES]
    failed = [trial for trial in first if trial.state == "failed" and not trial.reason.startswith(OUT_OF_MEMORY)]
    if number < len(failed) == _SAME_FAILURES:
        raise StudyError(
            f"the first {len(first)} trials all failed, so the study stops; the last one: {first[-1].reason}"
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
        raise StudyError(f"all {len(failed)} trials failed; the last one: {failed[-1].reason}")
    read = any(trial.rows for trial in state.search)
    if plan.budget is None or (read and all(trial.value is None for trial in state.search)):
        raise StudyError(f"no trial gave a finite validation value of {state.metric}: see {state.folder}")
    raise StudyError(
        f"the budget of {plan.budget} was too small for one whole training: what has begun waits in {state.folder}, "
        "raise the budget (a total over all calls) and call again"
    )


def read_test(journal: Journal, searched: Searched) -> None:
    """Read the test data for the winner and the baseline, where they have no reading yet."""
    winner, baseline = journal.state.winner, journal.state.baseline
    if winner is None or baseline is None or baseline.state != "finished":
        return
    untested = [trial for trial in (baseline, winner) if trial.number not in journal.state.tests]
    if untested and (values := searched.read_test(untested)) is not None:
        numbers = [str(trial.number) for trial in untested]
        journal.record("tested", values=dict(zip(numbers, values, strict=True)))
