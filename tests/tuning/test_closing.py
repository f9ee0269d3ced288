"""Studies that end soon: they have looked at many, and what looked best has come to its end."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from luthier.tuning import closing
from luthier.tuning.budgets import Time, Work
from luthier.tuning.jobs import Continue, Plan, Proposal, Start
from luthier.tuning.scheduler import outranked, search_left
from luthier.tuning.simulate import Curve, Simulator

TOTAL = 10
EPOCH_S = 1.0


def quality(number: int) -> float:
    """The same few good ones among many, in no order."""
    return (number * 37 % 101) / 101


def simulator(options: int = 10_000, epoch_s: Any = lambda _: EPOCH_S, **changes: Any) -> Simulator:
    plan = Plan(
        **{"arms": {"all": ["lr"]}, "workers": 2, "strategy": "auto", "baseline": False, "repeats": 0, **changes}
    )
    rising = lambda n, _: Curve([quality(n) + 0.01 * epoch for epoch in range(TOTAL)], epoch_s(n))  # noqa: E731
    propose = lambda _, n, __: Proposal({"lr": n}, TOTAL) if n < options else None  # noqa: E731
    return Simulator(plan, propose, rising)


def begun(made: Simulator) -> list[int]:
    return [job.number for job in made.decisions if isinstance(job, Start)]


def first_promotion(made: Simulator) -> int:
    """How many trials had begun."""
    place = next(place for place, job in enumerate(made.decisions) if isinstance(job, Continue))
    return len([job for job in made.decisions[:place] if isinstance(job, Start)])


@pytest.mark.parametrize("budget", [Time(4 * TOTAL * EPOCH_S / 2), Work(4 * TOTAL)])
def test_a_budget_of_four_trainings_looks_at_many_and_finishes_one_of_the_best_two(budget: Any) -> None:
    made = simulator(budget=budget).run()
    finished = [trial.number for trial in made.state.trials if trial.state == "finished"]
    assert len(begun(made)) >= 12
    assert finished
    assert made.state.winner is not None
    assert made.state.winner.number in sorted(begun(made), key=quality)[-2:]  # the other may be under way to a rung


@pytest.mark.parametrize("whole", [3, 4, 6, 9, 17, 40])
def test_the_best_that_began_comes_to_its_end(whole: int) -> None:
    made = simulator(budget=Time(whole * TOTAL * EPOCH_S / 2)).run()
    assert made.state.winner is not None
    better = [n for n in begun(made) if quality(n) > quality(made.state.winner.number)]
    assert len(better) <= 1


def test_the_time_is_used_to_its_end() -> None:
    made = simulator(budget=Time(20.0)).run()
    assert made.busy_s > 0.9 * 2 * 20


def test_a_slow_favourite_leaves_the_end_to_others() -> None:
    slow = max(range(12), key=quality)
    made = simulator(budget=Time(20.0), epoch_s=lambda n: 5.0 if n == slow else EPOCH_S).run()
    assert made.state.winner is not None
    assert made.state.winner.number != slow


def test_no_rung_sends_on_before_it_can_tell() -> None:
    assert first_promotion(simulator(trials=100, workers=1).run()) == 8
    assert first_promotion(simulator(trials=100, workers=4).run()) == 8 + 3  # the others are under way then


@pytest.mark.parametrize(("whole", "first"), [(6, 16), (20, 8)])
def test_a_small_budget_waits_for_more(whole: int, first: int) -> None:
    assert first_promotion(simulator(budget=Time(whole * TOTAL * EPOCH_S), workers=1).run()) == first
    assert first_promotion(simulator(budget=Work(whole * TOTAL), workers=1).run()) == first


@pytest.mark.parametrize(
    ("limit", "share"), [({"budget": Time(80.0)}, 0.25), ({"budget": Work(480)}, 0.5), ({"trials": 200}, 0.5)]
)
def test_only_a_small_budget_sends_no_more_than_a_quarter_on(limit: Any, share: float) -> None:
    made = simulator(**limit, workers=2).run()
    on = [trial for trial in made.state.trials if trial.step > 1]
    assert len(on) / len(made.state.trials) == pytest.approx(share, abs=0.05)
    above = [trial for trial in on if trial.step > 2]
    assert len(above) / len(on) == pytest.approx(0.5, abs=0.1)


def test_who_comes_behind_the_best_quarter_of_a_small_budget_is_outranked() -> None:
    made = simulator(budget=Time(60.0)).run()
    waits = [trial.number for trial in made.state.trials if trial.step == 1]
    best = min(waits, key=lambda number: -quality(number))
    reasons = {stop.number: stop.reason for stop in outranked(made.state, made.plan)}
    place, count = (int(word) for word in re.findall(r"place (\d+) of (\d+)", reasons[best])[0])
    assert count / 4 < place < count / 2
    assert reasons[best].startswith("outranked")


@pytest.mark.parametrize("limit", [{"trials": 6}, {"options": 6}])
def test_fewer_trials_than_a_rung_waits_for_are_halved_when_all_have_begun(limit: Any) -> None:
    made = simulator(**limit, workers=1).run()
    told = [(job.number, job.until_step) for job in made.decisions]
    assert told[:6] == [(number, 1) for number in range(6)]
    assert {number for number, until in told if until == 2} == set(sorted(range(6), key=quality)[3:])
    assert made.state.winner is not None
    assert made.state.winner.number == max(range(6), key=quality)


def test_room_is_without_limit_where_nothing_waits_or_nothing_limits() -> None:
    made = simulator(budget=Time(20.0)).run(decisions=1)
    assert closing.room(made.state, made.plan, 20.0) == float("inf")
    made.run(decisions=6)
    assert closing.room(made.state, made.plan, 18.0) == pytest.approx(18 / 9)
    assert closing.room(made.state, Plan({}), None) == float("inf")


def test_a_later_call_with_a_larger_budget_goes_on() -> None:
    made = simulator(budget=Time(20.0)).run()
    longer = Simulator(simulator(budget=Time(60.0)).plan, made.propose, made.curve, events=made.events).run()
    assert len(longer.state.trials) > len(made.state.trials)
    assert (search_left(longer.state, longer.plan, longer.clock) or 0.0) < 10


def test_trainings_too_short_to_be_timed_leave_room() -> None:
    made = simulator(budget=Time(100.0)).run(decisions=12)
    first = closing.standings(made.state).paused.first
    assert first is not None
    made.state.trials[first] = replace(made.state.trials[first], time_s=0.0)
    assert closing.room(made.state, made.plan, 50.0) == math.inf
