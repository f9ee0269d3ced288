from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.tuning.budgets import Time
from luthier.tuning.comparing import compare, paired_interval
from luthier.tuning.endings import check_failures, check_result
from luthier.tuning.folding import apply, fold
from luthier.tuning.jobs import Plan
from luthier.tuning.ledger import StudyError
from luthier.tuning.memory import OUT_OF_MEMORY
from luthier.tuning.objectives import TRAIN_TIME, Objective, best_scores
from luthier.tuning.state import ENDED, OPEN, Event, State, best

FOLDER = Path("study")
CREATED = ("created", {"task": {"metric": "accuracy", "direction": "max"}})


def events(*facts: Any) -> list[Event]:
    return [Event(index + 1, float(index), kind, payload) for index, (kind, payload) in enumerate(facts)]


def proposed(number: int, of: int | None = None, seed: int = 0) -> Any:
    kind = "search" if of is None else "repeat"
    payload = {
        "number": number,
        "kind": kind,
        "arm": "all" if number else "baseline",
        "values": {},
        "seed": seed,
        "of": of,
        "until": 10,
    }
    return ("proposed", {**payload, "total_steps": 10})


def row(number: int, step: int, value: float, kind: str = "epoch") -> Any:
    return ("row", {"number": number, "row": {"kind": kind, "step": step, "time_s": 0.1, "val_accuracy": value}})


def trained(number: int, value: float, of: int | None = None, seed: int = 0) -> list[Any]:
    return [
        proposed(number, of, seed),
        ("assigned", {"number": number, "until": 10}),
        row(number, 10, value),
        ("finished", {"number": number, "step": 10}),
    ]


ABOUT_TRIALS = st.tuples(
    st.sampled_from(["assigned", "row", "paused", "finished", "stopped", "failed", "crashed", "recovered"]),
    st.integers(0, 2),
    st.integers(1, 10),
    st.floats(allow_nan=True),
)


@given(st.lists(ABOUT_TRIALS, max_size=40))
def test_any_order_of_events_and_any_prefix_is_a_valid_state(drawn: Any) -> None:
    facts = [CREATED, proposed(0), proposed(1), proposed(2)]
    for kind, number, step, value in drawn:
        position = {"number": number, "step": step, "reason": "", "until": step}
        facts.append(row(number, step, value) if kind == "row" else (kind, position))
    every = events(*facts)
    state = State(FOLDER)
    for count, event in enumerate(every, 1):
        ended = {trial.number: trial for trial in state.trials if trial.ended}
        apply(state, event)
        assert state == fold(every[:count], FOLDER)
        assert all(trial.state in (*OPEN, *ENDED) for trial in state.trials)
        assert all(state.trials[number] is trial for number, trial in ended.items())
        assert all((trial.ended_s is not None) == trial.ended for trial in state.trials)


def test_a_resumed_training_overwrites_the_rows_it_reads_again() -> None:
    facts = [CREATED, proposed(0), row(0, 2, 0.5), row(0, 4, 0.9), row(0, 6, 0.7), row(0, 4, 0.6)]
    trial = fold(events(*facts), FOLDER).trials[0]
    assert [each["step"] for each in trial.rows] == [2, 4]
    assert (trial.value, trial.step) == (0.6, 4)


def test_readings_between_epochs_count_only_until_the_first_epoch() -> None:
    facts = [CREATED, proposed(0), row(0, 2, 0.8, "rung")]
    assert fold(events(*facts), FOLDER).trials[0].value == 0.8
    assert fold(events(*facts, row(0, 4, 0.6)), FOLDER).trials[0].value == 0.6


READINGS = st.lists(
    st.tuples(
        st.integers(1, 12), st.sampled_from([0.2, 0.5, 0.5, 0.9, float("nan")]), st.sampled_from(["epoch"] * 4 + ["x"])
    ),
    min_size=1,
    max_size=15,
)


@given(READINGS, st.sampled_from([("accuracy",), ("accuracy", TRAIN_TIME)]), st.sampled_from(["max", "min"]))
def test_readings_that_come_one_by_one_leave_the_value_of_all_of_them(
    drawn: Any, names: tuple[str, ...], direction: str
) -> None:
    objectives = {name: direction if name == "accuracy" else "min" for name in names}
    created = ("created", {"task": {"metric": "accuracy", "direction": direction}, "objectives": objectives})
    start = [created, proposed(0), ("assigned", {"number": 0, "until": 10})]
    trial = fold(events(*start, *(row(0, *each) for each in drawn)), FOLDER).trials[0]
    steps = [each["step"] for each in trial.rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == drawn[-1][0]
    counting = [each for each in trial.rows if each["kind"] == "epoch"] or trial.rows
    wanted = best_scores(counting, [Objective(*each) for each in objectives.items()], trial.total_steps)
    assert (trial.value, tuple(trial.scores.values())) == ((None, ()) if wanted is None else (wanted[0], wanted))


def test_the_first_crash_pauses_and_the_second_fails() -> None:
    crash = ("crashed", {"number": 0, "reason": "killed by SIGKILL"})
    once = fold(events(CREATED, proposed(0), crash), FOLDER).trials[0]
    twice = fold(events(CREATED, proposed(0), crash, crash), FOLDER).trials[0]
    assert (once.state, twice.state) == ("paused", "failed")
    assert twice.reason == "killed by SIGKILL"


def test_a_death_after_further_readings_is_a_first_one_again() -> None:
    facts = [CREATED, proposed(0), ("assigned", {"number": 0, "until": 10}), row(0, 3, 0.5)]
    died, again = ("crashed", {"number": 0, "reason": "killed"}), ("assigned", {"number": 0, "until": 10})
    further = [*facts, died, again, row(0, 3, 0.5), row(0, 4, 0.5), died]
    assert [fold(events(*further), FOLDER).trials[0].state] == ["paused"]
    assert fold(events(*further), FOLDER).trials[0].crashes == 2
    assert fold(events(*facts, died, again, row(0, 3, 0.5), died), FOLDER).trials[0].state == "failed"
    anew = [row(0, step, 0.5) for step in (1, 2, 3)]  # without a checkpoint it begins at the first step again
    assert fold(events(*facts, died, again, *anew, died), FOLDER).trials[0].state == "failed"


def test_a_trial_without_any_finite_reading_failed() -> None:
    facts = [CREATED, proposed(0), row(0, 10, float("nan")), ("finished", {"number": 0, "step": 10})]
    trial = fold(events(*facts), FOLDER).trials[0]
    assert (trial.state, trial.value) == ("failed", None)
    assert "no finite validation value" in trial.reason


@pytest.mark.parametrize(("direction", "expected"), [("max", 3.0), ("min", 1.0)])
def test_best_leaves_out_what_is_not_finite(direction: str, expected: float) -> None:
    assert best([None, 2.0, float("nan"), 3.0, float("inf"), 1.0], direction) == expected


def test_the_comparison_pairs_fresh_seeds_and_leaves_the_searchs_own_out() -> None:
    facts = [CREATED, *trained(0, 0.90), *trained(1, 0.95), *trained(2, 0.93)]
    facts += [*trained(3, 0.91, of=0, seed=1), *trained(4, 0.93, of=1, seed=1), *trained(5, 0.92, of=0, seed=2)]
    comparison = compare(fold(events(*facts), FOLDER))
    assert comparison is not None
    assert comparison.winner_number == 1
    assert (comparison.baseline, comparison.winner) == ([0.91], [0.93])
    assert comparison.difference == pytest.approx(0.02)


@pytest.mark.parametrize(("seeds", "repeats", "decides"), [(1, 3, False), (2, 3, True), (1, 1, True), (0, 1, False)])
def test_one_retrained_seed_of_several_decides_nothing(seeds: int, repeats: int, decides: bool) -> None:
    facts = [CREATED, ("opened", {"repeats": repeats}), *trained(0, 0.90), *trained(1, 0.95)]
    numbers = iter(range(2, 9))
    for seed in range(1, 1 + seeds):
        facts += [*trained(next(numbers), 0.93, of=0, seed=seed), *trained(next(numbers), 0.91, of=1, seed=seed)]
    comparison = compare(fold(events(*facts), FOLDER))
    assert comparison is not None
    assert (comparison.retrained, comparison.decides) == (seeds > 0, decides)


def test_gains_are_positive_when_smaller_is_better() -> None:
    created = ("created", {"task": {"metric": "accuracy", "direction": "min"}})
    comparison = compare(fold(events(created, *trained(0, 0.9), *trained(1, 0.4)), FOLDER))
    assert comparison is not None
    assert comparison.difference == pytest.approx(0.5)
    assert comparison.low == -comparison.high == float("-inf")
    assert not comparison.better


def test_no_comparison_before_both_have_finished() -> None:
    assert compare(fold(events(CREATED), FOLDER)) is None
    assert compare(fold(events(CREATED, *trained(0, 0.9)), FOLDER)) is None


def test_the_paired_interval_is_that_of_scipy() -> None:
    from scipy.stats import t, ttest_1samp

    gains = [0.011, 0.018, 0.009, 0.02]
    reference = ttest_1samp(gains, 0).confidence_interval(0.95)
    assert paired_interval(gains)[1:] == pytest.approx((reference.low, reference.high))
    assert t.ppf(0.975, 2) == pytest.approx(4.3027, abs=1e-4)


def failed(number: int, reason: str = "boom") -> list[Any]:
    return [proposed(number), ("failed", {"number": number, "reason": reason})]


def test_the_first_trials_are_judged_when_all_of_them_have_ended() -> None:
    under_way = [proposed(0), ("assigned", {"number": 0, "until": 10})]
    facts = [CREATED, *under_way, *failed(1), *failed(2), *failed(3)]
    check_failures(fold(events(*facts), FOLDER), 3, 2)  # the baseline still trains
    check_failures(fold(events(*facts, row(0, 10, 0.5), ("finished", {"number": 0, "step": 10})), FOLDER), 0, 2)
    over = fold(events(*facts, ("failed", {"number": 0, "reason": "bang"})), FOLDER)
    with pytest.raises(StudyError, match=r"first 3 trials all failed.* trial 0: bang"):
        check_failures(over, 0, 2)
    check_failures(over, 3, 2)  # it was said before: a later call goes on
    check_failures(fold(events(CREATED, *failed(0, OUT_OF_MEMORY), *failed(1), *failed(2)), FOLDER), 2, 2)


def test_failures_are_not_waited_for_by_a_worker_that_is_still_starting() -> None:
    waiting = [proposed(1), ("assigned", {"number": 1, "until": 10})]
    facts = [CREATED, *failed(0), *waiting, *failed(2), *failed(3), *failed(4)]
    check_failures(fold(events(*facts), FOLDER), 4, 2)
    facts += failed(5, "KeyError: 'lr' (line 3 of train.py)")
    told = r"first 5 trials all failed.* trial 5: KeyError: 'lr' \(line 3 of train.py\)\. What .* printed: .*workers"
    with pytest.raises(StudyError, match=told):
        check_failures(fold(events(*facts), FOLDER), 5, 2)
    check_failures(fold(events(*facts), FOLDER), 5, 8)  # so many may have begun at once
    check_failures(fold(events(*facts, row(1, 1, 0.5)), FOLDER), 5, 2)  # one of them learns


def test_no_finite_reading_is_not_blamed_on_the_budget() -> None:
    plan = Plan({"all": ["lr"]}, budget=Time(10.0))
    facts = [CREATED, proposed(0), ("assigned", {"number": 0, "until": 10}), row(0, 1, float("nan"))]
    paused = ("paused", {"number": 0, "step": 1})
    with pytest.raises(StudyError, match="no trial gave a finite validation value of accuracy"):
        check_result(fold(events(*facts, paused), FOLDER), plan)
    with pytest.raises(StudyError, match="budget of 10 s was too small"):
        check_result(fold(events(*facts[:-1], paused), FOLDER), plan)
