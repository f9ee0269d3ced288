"""When the watch looks, and what it may spend."""

import random
from itertools import pairwise

import pytest

from luthier.doctor.measure import accounts
from luthier.doctor.measure.iteration import Iteration
from luthier.doctor.measure.pace import CREDIT_S, DENSE, SEEN, Pace, StepPace


def run(pace, steps, step_s=1e-3, look_s=1e-3, norms_s=5e-5, count_s=5e-6):
    now, kinds = 0.0, []
    for step in range(steps):
        kind = pace.plan(step, now)
        cost = {"look": look_s, "norms": norms_s, "count": count_s}[kind]
        now += step_s + cost
        pace.paid(kind, cost, step)
        kinds.append(kind)
    return kinds, now


def test_the_first_steps_are_all_measured():
    kinds, _ = run(Pace(0.01), DENSE)
    assert "count" not in kinds
    assert kinds[:6] == ["look"] * 6


def test_short_trainings_are_seen_to_their_end():
    kinds, _ = run(Pace(0.01), 300)
    looks = [step for step, kind in enumerate(kinds) if kind == "look"]
    assert max(after - before for before, after in pairwise(looks)) <= 80
    assert len(looks) <= 40


@pytest.mark.parametrize("overhead", [0.01, 0.03, 0.1])
@pytest.mark.parametrize("look_s", [5e-4, 5e-3])
def test_long_trainings_stay_within_the_share_that_the_clock_sees(overhead, look_s):
    pace = Pace(overhead)
    kinds, now = run(pace, 100_000, look_s=look_s, count_s=1e-6)
    assert pace.spent_s <= SEEN * overhead * now + CREDIT_S
    assert pace.spent_s >= 0.6 * SEEN * overhead * now
    assert pace.looks == kinds.count("look")
    assert pace.norms == kinds.count("norms")


def test_a_training_whose_counting_alone_costs_too_much_gets_the_granted_looks_only():
    kinds, _ = run(Pace(0.001), 3000, count_s=5e-5)
    assert kinds[DENSE:].count("norms") == 0
    assert 5 <= kinds[DENSE:].count("look") <= 30


def test_looks_at_slow_nets_are_few():
    pace = Pace(0.01)
    kinds, _ = run(pace, 200, step_s=0.2, look_s=0.3)
    assert kinds[:6] == ["look"] * 6
    assert kinds.count("look") <= 9


def test_a_pace_by_steps_looks_alike_whatever_things_cost():
    slow, _ = run(StepPace(0.01), 2000, step_s=1.0, look_s=3.0)
    fast, _ = run(StepPace(0.01), 2000, step_s=1e-6, look_s=1e-2)
    assert slow == fast
    looks = [step for step, kind in enumerate(slow) if kind == "look"]
    assert 20 < len(looks) < 50
    assert looks[-1] > 1500


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when a test says so."""
    now = [100.0]
    monkeypatch.setattr(accounts.time, "perf_counter", lambda: now[0])
    return now


def account(pace, clock, kinds, seconds_of):
    """Book iterations of these kinds, each busy for as long as `seconds_of` says."""
    books = accounts.Accounts(pace)
    for step, kind in enumerate(kinds):
        began, seconds = clock[0], seconds_of(step)
        clock[0] += seconds
        books.book(Iteration(step, kind, forward_at=began), clock[0])
        books.ended_at = clock[0]


def test_what_a_look_costs_the_step_after_it_is_its_cost_too(clock):
    kinds = ["count"] * 40
    kinds[20] = kinds[30] = "look"
    pace = Pace(0.01)
    account(pace, clock, kinds, lambda step: {20: 0.013, 21: 0.012, 30: 0.013}.get(step, 0.010))
    assert pace.spent_s == pytest.approx(0.003 + 0.002 + 0.003)
    assert pace.spent_later_s == pace.spent_s
    assert pace.cost_s["look"] == pytest.approx(0.8 * (0.003 + 0.2 * 0.002) + 0.2 * 0.003)


def test_chance_after_a_look_is_not_always_a_cost(clock):
    kinds = ["count"] * 5 + ["look", *["count"] * 9] * 200
    pace, chance = Pace(0.01), random.Random(0)
    account(pace, clock, kinds, lambda step: 0.010 + (0.002 if kinds[step] == "look" else chance.gauss(0, 0.001)))
    assert pace.spent_s == pytest.approx(200 * 0.002, rel=0.12)


def test_granted_looks_are_fewer_when_the_steps_after_them_are_slow():
    looks = []
    for later_s in (0.0, 0.02):
        pace, now, kinds = Pace(0.01), 0.0, []
        for step in range(2000):
            kinds.append(pace.plan(step, now))
            pace.paid(kinds[-1], 1e-3 if kinds[-1] == "look" else 0.0, step)
            if step > DENSE and kinds[-2] == "look":
                pace.paid_later(later_s, step)
            now += 1e-3
        looks.append(kinds[DENSE:].count("look"))
    assert looks[1] < looks[0] / 2
