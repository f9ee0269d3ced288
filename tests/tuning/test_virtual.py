"""Decisions that do not depend on how fast the workers are."""

import random
from typing import Any

import pytest

from luthier.tuning.virtual import VirtualWorkers


def study(n_real: int, seed: int, n_virtual: int = 4, n: int = 40) -> list[tuple[int, float, tuple[int, ...]]]:
    """Trials of different length on real workers of random speed; a decision: trial, virtual time, what was known."""
    speed = random.Random(seed)
    virtual, known, decisions, waiting = VirtualWorkers(n_virtual), [], [], []
    running: dict[int, float] = {}
    while True:
        told = None
        while told != []:
            while virtual.free and len(decisions) < n:
                number = len(decisions)
                decisions.append((number, virtual.clock, tuple(known)))
                virtual.begin(number, 1 + (7 * number + 3 * len(known)) % 5)
                waiting.append(number)
            told = virtual.due()
            known += [message["number"] for message in told[-1:]]
        while waiting and len(running) < n_real:
            running[waiting.pop(0)] = speed.random()
        if not running:
            return decisions
        first = min(running, key=lambda each: running[each])
        for other in running:
            running[other] -= running[first] * (other != first)
        del running[first]
        virtual.hear({"event": "row", "number": first})
        virtual.hear({"event": "paused", "number": first})


@pytest.mark.parametrize("n_real", [1, 2, 3, 9])
@pytest.mark.parametrize("seed", range(5))
def test_decisions_are_the_same_for_any_workers(n_real: int, seed: int) -> None:
    assert study(n_real, seed) == study(1, 99)


def test_what_ends_first_on_the_virtual_clock_is_taken_in_first() -> None:
    virtual = VirtualWorkers(2)
    assert (virtual.begin(0, 5), virtual.begin(1, 3)) == (5, 3)
    assert not virtual.free
    virtual.hear({"event": "finished", "number": 0})
    assert virtual.due() == []  # trial 1 ends before it
    virtual.hear({"event": "failed", "number": 1})
    assert [virtual.due()[0]["number"], virtual.due()[0]["number"], virtual.due()] == [1, 0, []]
    assert (virtual.clock, virtual.free) == (5, True)


def test_equal_ends_go_by_number_and_the_rest_is_never_lost() -> None:
    virtual = VirtualWorkers(3, clock=2.0, under_way={7: 4.0, 3: 4.0})
    messages: list[Any] = [
        {"event": "row", "number": 7},
        {"event": "paused", "number": 7},
        {"event": "row", "number": 3},
    ]
    for message in messages:
        virtual.hear(message)
    assert virtual.due() == []
    assert virtual.rest() == [messages[2], *messages[:2]]
    assert virtual.due() == []
