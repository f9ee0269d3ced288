"""Decisions on recorded curves with a fake clock: the scheduler that runs here is the one that runs studies."""

import heapq
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import LuthierError
from luthier.tuning.jobs import BASELINE, Continue, Plan, Proposal, Start
from luthier.tuning.scheduler import next_job, next_repeat, outranked, reserve_s, search_left
from luthier.tuning.state import Event, State, apply, fold
from luthier.tuning.strategies import STRATEGIES, Halving, strategy_for

TOTAL = 90
DESCRIPTION = {"task": {"metric": "accuracy", "direction": "max"}, "seed": 0}


class Simulator:
    """Trains recorded curves on virtual workers; `curve(number, share)` is a trial's accuracy after a share of it."""

    def __init__(self, plan: Any, curve: Any, step_s: Any = 0.1, options: Any = 10_000, events: Any = ()) -> None:
        self.plan, self.curve, self.step_s, self.options = plan, curve, step_s, options
        self.events: list[Event] = list(events)
        self.state = fold(self.events, Path("study"))
        self.clock = self.state.clock
        self.decisions: list[Any] = []
        self.running: list[tuple[float, int]] = []
        if not self.events:
            self.record("created", **DESCRIPTION)

    def record(self, kind: Any, /, **payload: Any) -> Any:
        event = Event(len(self.events) + 1, self.clock, kind, payload)
        self.events.append(event)
        apply(self.state, event)

    def propose(self, state: Any, number: Any, arm: Any) -> Any:
        if arm == BASELINE:
            return Proposal({}, TOTAL)
        return Proposal({"lr": number / self.options}, TOTAL) if number < self.options else None

    def run(self, decisions: Any = 10_000, next_: Any = None) -> Any:
        choose = next_ or (lambda: next_job(self.state, self.plan, self.propose, self.clock))
        while len(self.decisions) < decisions:
            job = choose() if len(self.running) < self.plan.workers else None
            if job is not None:
                self.start(job)
            elif self.running:
                self.end_first()
            else:
                return self
        return self

    def start(self, job: Any) -> Any:
        self.decisions.append(job)
        if isinstance(job, Start):
            names = ("number", "arm", "values", "kind", "seed", "of", "total_steps")
            self.record("proposed", until=job.until_step, **{name: getattr(job, name) for name in names})
        self.record("assigned", number=job.number, until=job.until_step, worker=0)
        steps = job.until_step - self.state.trials[job.number].step
        heapq.heappush(self.running, (self.clock + steps * self.step_s, job.number))

    def end_first(self) -> Any:
        self.clock, number = heapq.heappop(self.running)
        trial = self.state.trials[number]
        value = self.curve(number, trial.until / trial.total_steps)
        kind = "epoch" if trial.until == trial.total_steps else "rung"
        if value is None:
            self.record("failed", number=number, reason="diverged", step=trial.until)
            return
        row = {"kind": kind, "step": trial.until, "time_s": trial.until * self.step_s, "val_accuracy": value}
        self.record("row", number=number, row=row)
        self.record("finished" if kind == "epoch" else "paused", number=number, step=trial.until)


def plan(**changes: Any) -> Any:
    return Plan(**{"arms": {"all": ["lr"]}, "trials": 10, "workers": 1, **changes})


def by_number(number: Any, share: Any) -> Any:
    """The higher the number the better, at every share."""
    return 0.1 + 0.01 * number + 0.1 * share


def started(simulator: Any) -> Any:
    return [job.number for job in simulator.decisions if isinstance(job, Start)]


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("workers", [1, 2, 7])
class TestEveryStrategy:
    def test_the_baseline_is_first_and_whole(self, name: Any, workers: Any) -> None:
        first = Simulator(plan(strategy=name, workers=workers), by_number).run().decisions[0]
        assert (first.number, first.arm, first.values, first.until_step) == (0, BASELINE, {}, TOTAL)

    def test_trials_is_the_total(self, name: Any, workers: Any) -> None:
        assert started(Simulator(plan(strategy=name, workers=workers), by_number).run()) == list(range(10))

    def test_something_beside_the_baseline_finishes(self, name: Any, workers: Any) -> None:
        state = Simulator(plan(strategy=name, workers=workers, trials=2), by_number).run().state
        assert state.winner is not None

    def test_nothing_is_trained_beyond_its_end_or_twice(self, name: Any, workers: Any) -> None:
        simulator = Simulator(plan(strategy=name, workers=workers, trials=40), by_number).run()
        reached: dict[int, int] = {}
        for job in simulator.decisions:
            assert reached.get(job.number, 0) < job.until_step <= TOTAL
            reached[job.number] = job.until_step

    def test_a_budget_is_kept(self, name: Any, workers: Any) -> None:
        simulator = Simulator(plan(strategy=name, workers=workers, trials=None, budget_s=120), by_number).run()
        repeats = simulator.run(next_=lambda: next_repeat(simulator.state, simulator.plan))
        assert repeats.clock <= 120
        assert repeats.clock > 60
        assert len([trial for trial in simulator.state.trials if trial.kind == "repeat"]) == 6

    def test_an_exhausted_space_ends_the_search(self, name: Any, workers: Any) -> None:
        simulator = Simulator(plan(strategy=name, workers=workers, trials=50), by_number, options=6).run()
        assert started(simulator) == list(range(6))

    def test_failures_do_not_stop_the_search(self, name: Any, workers: Any) -> None:
        simulator = Simulator(plan(strategy=name, workers=workers), lambda n, share: None if n % 2 else n + share).run()
        assert len(started(simulator)) == 10
        assert simulator.state.winner is not None

    @pytest.mark.parametrize("cut", [1, 5, 11, 17])
    def test_a_resumed_study_decides_as_it_would_have(self, name: Any, workers: Any, cut: Any) -> None:
        whole = Simulator(plan(strategy=name, workers=workers), by_number).run()
        part = Simulator(plan(strategy=name, workers=workers), by_number).run(decisions=cut)
        resumed = Simulator(part.plan, by_number, events=part.events)
        resumed.running = part.running
        resumed.run()
        assert part.decisions + resumed.decisions == whole.decisions


def test_halving_by_hand() -> None:
    """One worker, trials of 90 steps, rungs at 10 and 30, values rising with the number: each third one goes on."""
    decisions = Simulator(plan(), by_number).run().decisions
    told = [(job.number, job.until_step) for job in decisions]
    assert told[:5] == [(0, 90), (1, 10), (2, 10), (3, 10), (3, 30)]  # the best of three goes on
    assert told[5:7] == [(4, 10), (4, 30)]  # the best of four; the second rung holds two
    assert told[7:10] == [(5, 10), (5, 30), (5, 90)]  # the best of three at the second rung too
    assert told[10:] == [(number, stop) for number in range(6, 10) for stop in (10, 30, 90)]


def test_halving_leaves_the_worse_two_thirds_at_the_rung() -> None:
    falling = lambda number, share: 0.9 - 0.01 * number + 0.05 * share  # noqa: E731
    state = Simulator(plan(trials=10), falling).run().state
    steps = {trial.number: trial.step for trial in state.search[1:]}
    assert steps == {1: 90, 2: 30, 3: 30, **dict.fromkeys(range(4, 10), 10)}


def test_failed_trials_count_as_the_worst_of_the_lowest_rung() -> None:
    curve = lambda number, share: None if number in (2, 3) else 0.5  # noqa: E731
    simulator = Simulator(plan(trials=4), curve).run()
    assert simulator.decisions[4] == Continue(1, 30)


def test_a_schedule_that_pays_late_is_ranked_among_its_own() -> None:
    class WithSchedules(Simulator):
        def propose(self, state: Any, number: int, arm: str) -> Any:
            proposal = super().propose(state, number, arm)
            schedule = {"schedule": "one-cycle" if number % 2 else "constant"} if number else {}
            return Proposal({**proposal.values, **schedule}, TOTAL)

    def curve(number: int, share: float) -> float:
        return 0.8 if number % 2 == 0 else 0.9 if share == 1 else 0.1

    state = WithSchedules(plan(trials=25), curve).run().state
    finished = {trial.values["schedule"] for trial in state.search[1:] if trial.state == "finished"}
    assert finished == {"constant", "one-cycle"}
    assert state.winner is not None
    assert state.winner.values["schedule"] == "one-cycle"


def test_rungs_are_fractions_of_each_trials_own_steps() -> None:
    halving = Halving()
    assert [halving.first_stop(1, total) for total in (1, 5, 90, 900)] == [1, 1, 10, 100]


def test_outranked_trials_end_and_cut_off_ones_go_on() -> None:
    simulator = Simulator(plan(trials=4), by_number).run()
    stops = {stop.number: stop.reason for stop in outranked(simulator.state, plan(trials=4))}
    assert set(stops) == {1, 2}
    assert stops[1] == "outranked: place 3 of 3 after 11% of its steps"
    simulator.record("recovered", number=1, reason="", step=4)
    cut_off = fold(simulator.events, Path("study"))
    assert 1 not in [stop.number for stop in outranked(cut_off, plan(trials=4))]
    assert next_job(cut_off, plan(trials=4), simulator.propose, 0.0) == Continue(1, 10)


def test_trials_are_dealt_over_the_arms_in_turn() -> None:
    arms = {"lr": ["lr"], "lr + dropout": ["lr", "dropout"]}
    state = Simulator(plan(arms=arms, trials=9, strategy="full"), by_number).run().state
    assert [trial.arm for trial in state.search] == [BASELINE, *["lr", "lr + dropout"] * 4]


def test_every_arm_finishes_a_trial() -> None:
    arms = {"a": ["lr"], "b": ["lr"], "c": ["lr"]}
    state = Simulator(plan(arms=arms, trials=7), by_number).run().state
    assert {trial.arm for trial in state.search if trial.state == "finished"} == {BASELINE, *arms}


def test_repeats_take_the_same_further_seeds_for_both() -> None:
    simulator = Simulator(plan(trials=4, repeats=3), by_number).run()
    simulator.run(next_=lambda: next_repeat(simulator.state, simulator.plan))
    repeats = [(trial.of, trial.seed) for trial in simulator.state.trials if trial.kind == "repeat"]
    assert repeats == [(0, 1), (3, 1), (0, 2), (3, 2), (0, 3), (3, 3)]


def test_the_longer_training_is_repeated_first() -> None:
    simulator = Simulator(plan(trials=4), by_number).run()
    slow = replace(simulator.state.trials[3], time_s=100.0)
    simulator.state.trials[3] = slow
    job = next_repeat(simulator.state, simulator.plan)
    assert isinstance(job, Start)
    assert (job.of, job.seed) == (3, 1)


def test_without_a_finished_baseline_nothing_is_repeated() -> None:
    curve = lambda number, share: None if number == 0 else by_number(number, share)  # noqa: E731
    simulator = Simulator(plan(trials=4), curve).run()
    assert simulator.state.winner is not None
    assert next_repeat(simulator.state, simulator.plan) is None


def test_the_reserve_is_what_the_repeats_take() -> None:
    simulator = Simulator(plan(trials=4, repeats=3, workers=2, budget_s=1000), by_number).run()
    assert reserve_s(simulator.state, simulator.plan) == pytest.approx(5 + 1.15 * 6 * 9 / 2)
    assert search_left(simulator.state, simulator.plan, 100) == pytest.approx(1000 - 36.05 - 100)


def test_many_workers_and_trials() -> None:
    simulator = Simulator(plan(trials=300, workers=100), lambda number, share: (number * 37 % 101) / 101 + share).run()
    finished = [trial for trial in simulator.state.search if trial.state == "finished"]
    assert 10 < len(finished) < 100
    assert simulator.state.winner is not None


def test_unknown_strategies_are_refused() -> None:
    with pytest.raises(LuthierError, match="did you mean 'halving'"):
        strategy_for(plan(strategy="halfing"))


def test_an_empty_study_is_a_state() -> None:
    assert fold([], Path("study")) == State(Path("study"))
