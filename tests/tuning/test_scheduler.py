"""Decisions on recorded curves with a fake clock: the scheduler that runs here is the one that runs studies."""

import math
import random
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import LuthierError
from luthier.tuning.budgets import Time
from luthier.tuning.folding import fold
from luthier.tuning.jobs import BASELINE, Continue, Outlook, Plan, Proposal, Start
from luthier.tuning.ladders import ladders_of, rung_step
from luthier.tuning.scheduler import next_job, next_repeat, outranked, reserve, search_left
from luthier.tuning.simulate import Curve, Simulator
from luthier.tuning.state import State
from luthier.tuning.strategies import STRATEGIES, Auto, Halving, strategy_for

TOTAL = 90


def simulator(plan: Any, curve: Any, options: int = 10_000, events: Any = (), propose: Any = None) -> Simulator:
    """`curve(number, share)` is a trial's accuracy after a share of it; None: it fails. A step takes 0.1 s."""

    def recorded(number: int, _: Any) -> Curve:
        failed = curve(number, 1.0) is None
        return Curve([] if failed else [curve(number, (step + 1) / TOTAL) for step in range(TOTAL)], 0.1)

    def proposed(state: Any, number: int, arm: str) -> Any:
        if arm == BASELINE:
            return Proposal({}, TOTAL)
        return Proposal({"lr": number / options}, TOTAL) if number < options else None

    return Simulator(plan, propose or proposed, recorded, events=events)


def plan(**changes: Any) -> Any:
    return Plan(**{"arms": {"all": ["lr"]}, "trials": 10, "workers": 1, **changes})


def by_number(number: Any, share: Any) -> Any:
    """The higher the number the better, at every share."""
    return 0.1 + 0.01 * number + 0.1 * share


def started(made: Any) -> Any:
    return [job.number for job in made.decisions if isinstance(job, Start)]


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("workers", [1, 2, 7])
class TestEveryStrategy:
    def test_the_baseline_is_first_and_whole(self, name: Any, workers: Any) -> None:
        first = simulator(plan(strategy=name, workers=workers), by_number).run().decisions[0]
        assert (first.number, first.arm, first.values, first.until_step) == (0, BASELINE, {}, TOTAL)

    def test_trials_is_the_total(self, name: Any, workers: Any) -> None:
        assert started(simulator(plan(strategy=name, workers=workers), by_number).run()) == list(range(10))

    def test_something_beside_the_baseline_finishes(self, name: Any, workers: Any) -> None:
        state = simulator(plan(strategy=name, workers=workers, trials=2), by_number).run().state
        assert state.winner is not None

    def test_nothing_is_trained_beyond_its_end_or_twice(self, name: Any, workers: Any) -> None:
        made = simulator(plan(strategy=name, workers=workers, trials=40), by_number).run()
        reached: dict[int, int] = {}
        for job in made.decisions:
            assert reached.get(job.number, 0) < job.until_step <= TOTAL
            reached[job.number] = job.until_step

    def test_a_budget_is_kept(self, name: Any, workers: Any) -> None:
        made = simulator(plan(strategy=name, workers=workers, trials=None, budget=Time(120, 5)), by_number).run()
        made.repeat()
        assert 60 < made.clock <= 120
        assert len([trial for trial in made.state.trials if trial.kind == "repeat"]) == 6

    def test_an_exhausted_space_ends_the_search(self, name: Any, workers: Any) -> None:
        made = simulator(plan(strategy=name, workers=workers, trials=50), by_number, options=6).run()
        assert started(made) == list(range(6))

    def test_failures_do_not_stop_the_search(self, name: Any, workers: Any) -> None:
        made = simulator(plan(strategy=name, workers=workers), lambda n, share: None if n % 2 else n + share).run()
        assert len(started(made)) == 10
        assert made.state.winner is not None

    @pytest.mark.parametrize("cut", [1, 5, 11, 17])
    def test_a_resumed_study_decides_as_it_would_have(self, name: Any, workers: Any, cut: Any) -> None:
        whole = simulator(plan(strategy=name, workers=workers), by_number).run()
        part = simulator(plan(strategy=name, workers=workers), by_number).run(decisions=cut)
        resumed = simulator(part.plan, by_number, events=part.events)
        resumed.running = part.running
        resumed.run()
        assert part.decisions + resumed.decisions == whole.decisions


def test_halving_by_hand() -> None:
    """One worker, trials of 90 steps, rungs at 10 and 30, values rising with the number: each third one goes on."""
    decisions = simulator(plan(), by_number).run().decisions
    told = [(job.number, job.until_step) for job in decisions]
    assert told[:5] == [(0, 90), (1, 10), (2, 10), (3, 10), (3, 30)]  # the best of three goes on
    assert told[5:7] == [(4, 10), (4, 30)]  # the best of four; the second rung holds two
    assert told[7:10] == [(5, 10), (5, 30), (5, 90)]  # the best of three at the second rung too
    assert told[10:] == [(number, stop) for number in range(6, 10) for stop in (10, 30, 90)]


def test_halving_leaves_the_worse_two_thirds_at_the_rung() -> None:
    falling = lambda number, share: 0.9 - 0.01 * number + 0.05 * share  # noqa: E731
    state = simulator(plan(trials=10), falling).run().state
    steps = {trial.number: trial.step for trial in state.search[1:]}
    assert steps == {1: 90, 2: 30, 3: 30, **dict.fromkeys(range(4, 10), 10)}


def test_failed_trials_count_as_the_worst_of_the_lowest_rung() -> None:
    curve = lambda number, share: None if number in (2, 3) else 0.5  # noqa: E731
    made = simulator(plan(trials=4), curve).run()
    assert made.decisions[4] == Continue(1, 30)


def test_a_schedule_that_pays_late_is_ranked_among_its_own() -> None:
    def propose(state: Any, number: int, arm: str) -> Any:
        schedule = {"schedule": "one-cycle" if number % 2 else "constant"} if number else {}
        return Proposal({"lr": number, **schedule}, TOTAL)

    def curve(number: int, share: float) -> float:
        return 0.8 if number % 2 == 0 else 0.9 if share > 0.8 else 0.1

    state = simulator(plan(trials=25), curve, propose=propose).run().state
    finished = {trial.values["schedule"] for trial in state.search[1:] if trial.state == "finished"}
    assert finished == {"constant", "one-cycle"}
    assert state.winner is not None
    assert state.winner.values["schedule"] == "one-cycle"


def test_rungs_are_fractions_of_each_trials_own_steps() -> None:
    halving = Halving()
    assert [halving.first_stop(1, total) for total in (1, 5, 90, 900)] == [1, 1, 10, 100]


def test_outranked_trials_end_and_cut_off_ones_go_on() -> None:
    made = simulator(plan(trials=4), by_number).run()
    stops = {stop.number: stop.reason for stop in outranked(made.state, plan(trials=4))}
    assert set(stops) == {1, 2}
    assert stops[1] == "outranked: place 3 of 3 after 11% of its steps"
    made.record("recovered", number=1, reason="", step=4)
    cut_off = fold(made.events, Path("study"))
    assert 1 not in [stop.number for stop in outranked(cut_off, plan(trials=4))]
    assert next_job(cut_off, plan(trials=4), made.propose, 0.0) == Continue(1, 10)


def test_trials_are_dealt_over_the_arms_in_turn() -> None:
    arms = {"lr": ["lr"], "lr + dropout": ["lr", "dropout"]}
    state = simulator(plan(arms=arms, trials=9, strategy="full"), by_number).run().state
    assert [trial.arm for trial in state.search] == [BASELINE, *["lr", "lr + dropout"] * 4]


def test_every_arm_finishes_a_trial() -> None:
    arms = {"a": ["lr"], "b": ["lr"], "c": ["lr"]}
    state = simulator(plan(arms=arms, trials=7), by_number).run().state
    assert {trial.arm for trial in state.search if trial.state == "finished"} == {BASELINE, *arms}


def test_repeats_take_the_same_further_seeds_for_both() -> None:
    made = simulator(plan(trials=4, repeats=3), by_number).run()
    made.repeat()
    repeats = [(trial.of, trial.seed) for trial in made.state.trials if trial.kind == "repeat"]
    assert repeats == [(0, 1), (3, 1), (0, 2), (3, 2), (0, 3), (3, 3)]


def test_the_longer_training_is_repeated_first() -> None:
    made = simulator(plan(trials=4), by_number).run()
    slow = replace(made.state.trials[3], time_s=100.0)
    made.state.trials[3] = slow
    job = next_repeat(made.state, made.plan)
    assert isinstance(job, Start)
    assert (job.of, job.seed) == (3, 1)


def test_without_a_finished_baseline_nothing_is_repeated() -> None:
    curve = lambda number, share: None if number == 0 else by_number(number, share)  # noqa: E731
    made = simulator(plan(trials=4), curve).run()
    assert made.state.winner is not None
    assert next_repeat(made.state, made.plan) is None


def test_the_reserve_is_what_the_repeats_take() -> None:
    made = simulator(plan(trials=4, repeats=3, workers=2, budget=Time(1000, 5)), by_number).run()
    assert reserve(made.state, made.plan) == pytest.approx(5 + 1.15 * 6 * 9 / 2)
    assert search_left(made.state, made.plan, 100) == pytest.approx(1000 - 36.05 - 100)


def test_many_workers_and_trials() -> None:
    made = simulator(plan(trials=300, workers=100), lambda number, share: (number * 37 % 101) / 101 + share).run()
    finished = [trial for trial in made.state.search if trial.state == "finished"]
    assert 10 < len(finished) < 100
    assert made.state.winner is not None


def test_unknown_strategies_are_refused() -> None:
    with pytest.raises(LuthierError, match="did you mean 'halving'"):
        strategy_for(plan(strategy="halfing"))


def test_an_empty_study_is_a_state() -> None:
    assert fold([], Path("study")) == State(Path("study"))


def naive_promotion(state: State, halving: Halving, outlook: Outlook) -> set[int]:
    """Who may go on at each rung, by a walk over all trials: the definition that the ladders keep up to date."""
    found = set()
    rungs = [*halving.brackets[0], 1.0]
    readings = [losses_at(state, rung_step(fraction, TOTAL)) for fraction in rungs]
    for index in range(len(rungs) - 1):
        lower, upper = readings[index : index + 2]
        failed = [trial for trial in state.search[1:] if trial.state == "failed" and trial.number not in lower]
        came = len(lower) + len(failed) * (index == 0)
        quota, ranked = int(came / halving.eta_at(index, outlook)), sorted(lower, key=lambda n: (lower[n], n))
        gains = [lower[n] - upper[n] for n in upper] if index < len(rungs) - 2 else []
        middle = statistics.median(gains or [0.0])
        scatter = 1.4826 * statistics.median([abs(gain - middle) for gain in gains]) if len(gains) > 3 else 0.0
        close = halving.patience_at(index, outlook) * scatter
        behind = [lower[n] - lower[ranked[quota - 1]] if 0 < quota <= len(ranked) else math.inf for n in ranked]
        allowed = [n for place, n in enumerate(ranked) if place < quota or behind[place] < close]
        if came >= halving.needs(index, outlook):
            found |= {n for n in allowed if state.trials[n].state == "paused" and n not in upper}
    return found


def losses_at(state: State, step: int) -> dict[int, float]:
    """Search trials but the first that have come to a step with a reading: what they read there, smaller is better."""
    there = [trial for trial in state.search[1:] if trial.step >= step]
    scores = {trial.number: trial.scores_until(step, state.objectives) for trial in there}
    return {number: -score[0] for number, score in scores.items() if score is not None}


@pytest.mark.parametrize(
    ("halving", "outlook"), [(Halving(), Outlook(0.0, None)), (Auto(), Outlook(0.0, None, trainings=16))]
)
@pytest.mark.parametrize("seed", range(8))
def test_ladders_agree_with_a_walk_over_all_trials(seed: int, halving: Halving, outlook: Outlook) -> None:
    draw = random.Random(seed)
    levels = [draw.choice([None, *[draw.random() for _ in range(6)]]) for _ in range(60)]
    levels[0] = 0.5
    curve = lambda n, share: None if levels[n] is None else round(levels[n] * share**0.3, 2)  # noqa: E731
    made = simulator(plan(trials=60, workers=5, strategy="auto" if isinstance(halving, Auto) else "halving"), curve)
    for cut in range(1, 140, 3):
        made.run(decisions=cut)
        promoted = halving.promote(made.state, "all", outlook)
        allowed = naive_promotion(made.state, halving, outlook)
        assert (promoted is None) == (not allowed)
        assert promoted is None or promoted.number in allowed


@pytest.mark.parametrize("differ", [False, True])
def test_a_rung_is_patient_where_trials_gain_differently(differ: bool) -> None:
    """Trial 9 reads a little less than the others at first, and most at last: it begins to learn late."""

    def curve(number: int, share: float) -> float:
        late = number == 9
        gain = (2.0 if late else 0.01 * (number % 7) if differ else 0.03) if share > 0.15 else 0.0
        return 0.5 + 0.001 * (number * 7 % 16) - 0.006 * late + gain

    made = simulator(plan(trials=16, strategy="auto", baseline=False, budget=Time(14 * TOTAL * 0.1)), curve).run()
    trial = made.state.trials[9]
    quarter = sorted((curve(n, 0.1) for n in range(16)), reverse=True)[3]
    assert curve(9, 0.1) < quarter
    assert (made.state.winner is trial) == differ
    assert differ or trial.step == rung_step(0.1, TOTAL)


@pytest.mark.parametrize("known", [False, True])
def test_who_starts_from_nothing_looks_around_first(known: bool) -> None:
    total_s, lowest = 200.0, rung_step(0.1, TOTAL)
    settings = {"strategy": "auto", "trials": None, "budget": Time(total_s), "baseline": known, "repeats": 0}
    made = simulator(plan(**settings, workers=2), lambda number, share: 0.1 + 0.001 * (number * 37 % 101) + share).run()
    climbs: list[tuple[float, float]] = []  # of each order above the lowest rung: when, which part went there before
    until: dict[int, int] = {}
    for event in made.events:
        if event.kind == "assigned":
            above, low = (
                sum(part(each) for each in until.values())
                for part in (lambda each: max(0, each - lowest), lambda each: min(each, lowest))
            )
            if event.payload["until"] > lowest and event.payload["number"] in until:
                climbs.append((event.clock / total_s, above / (above + low)))
            until[event.payload["number"]] = event.payload["until"]
    early = [part for share, part in climbs if share < 0.5]
    assert len(early) > 5
    assert (max(early) <= 1 / 3) is not known
    assert any(part > 1 / 3 for share, part in climbs if share >= 0.5)
    again = simulator(made.plan, by_number, events=made.events)
    ladders = ladders_of(again.state, strategy_for(made.plan))
    assert ladders.climbed == pytest.approx(ladders_of(made.state, strategy_for(made.plan)).climbed)


def test_readings_beyond_measure_make_a_rung_neither_fail_nor_endlessly_patient() -> None:
    def curve(number: int, share: float) -> float:
        return -(1e308 if share < 0.15 else -1e308) if number == 1 else 0.5 + 0.001 * (number * 7 % 32) + 0.1 * share

    made = simulator(plan(trials=32, strategy="auto", budget=Time(14 * TOTAL * 0.1)), curve).run()
    went_on = [trial.number for trial in made.state.search if trial.step > rung_step(0.1, TOTAL)]
    assert 3 <= len(went_on) <= 2 + len(made.state.search) // 4 + 1


def test_hyperband_judges_some_trials_late_and_some_never() -> None:
    made = simulator(plan(trials=18, strategy="hyperband"), by_number).run()
    first = {job.number: job.until_step for job in reversed(made.decisions)}
    assert sorted(first.values()) == [10] * 9 + [30] * 5 + [TOTAL] * 4  # one of them the baseline


def test_one_epoch_top_k_trains_everything_briefly_and_the_best_to_their_end() -> None:
    made = simulator(plan(trials=37, strategy="one-epoch-top-k", epochs=10), by_number).run()
    stops = [job.until_step for job in made.decisions[1:]]
    assert stops == [9] * 36 + [TOTAL] * 4  # 36 epochs each: 4 go on for 9
    assert [job.number for job in made.decisions[-4:]] == [36, 35, 34, 33]


def test_a_slow_starter_is_not_cut_by_hyperband() -> None:
    late = lambda n, share: (0.9 if share > 0.8 else 0.1) if n == 10 else 0.3 + 0.2 * share  # noqa: E731
    states = [simulator(plan(trials=17, strategy=name), late).run().state for name in ("hyperband", "halving")]
    assert [state.winner and state.winner.number == 10 for state in states] == [True, False]


def test_ten_thousand_trials_on_a_thousand_workers() -> None:
    settings = plan(trials=10_000, workers=1000, baseline=False)
    curve = lambda n, _: Curve([(n * 37 % 101) / 101 + epoch for epoch in range(5)])  # noqa: E731
    made = Simulator(settings, lambda state, n, arm: Proposal({"lr": n}, 5), curve).run()
    assert len(started(made)) == 10_000
    assert made.busy_s > 0.5 * 1000 * made.clock  # most of the time all of them train


def test_no_search_ends_with_a_paused_trial_that_reads_better_than_its_winner() -> None:
    rising = lambda n, share: 0.1 * n + 0.01 * share if n else 0.5  # noqa: E731
    made = simulator(plan(trials=6, strategy="auto", baseline=True), rising).run()
    assert made.state.winner is not None
    assert made.state.winner.number == 5
    best_paused = [trial.value or 0.0 for trial in made.state.search if trial.state == "paused"]
    assert all(value <= (made.state.winner.value or 0.0) for value in best_paused)


@pytest.mark.parametrize("budget", [None, Time(1000)])
@pytest.mark.parametrize("number", [0, 3])
def test_a_training_that_took_its_last_step_and_did_not_tell_is_ended(number: int, budget: Any) -> None:
    """Killed after its last reading, before it could say that it has finished."""
    made = simulator(plan(trials=4, strategy="full", budget=budget, repeats=2), by_number).run()
    events = [event for event in made.events if (event.kind, event.payload.get("number")) != ("finished", number)]
    again = Simulator(made.plan, made.propose, made.curve, events=events)
    again.record("recovered", number=number, reason="the study was killed")
    assert outranked(again.state, made.plan) == []
    assert next_job(again.state, made.plan, made.propose, 0.0) == Continue(number, TOTAL)
    again.record("finished", number=number, step=TOTAL)
    again.repeat()
    repeats = [event for event in again.events if (event.kind, event.payload.get("number")) != ("finished", 4)]
    cut = Simulator(made.plan, made.propose, made.curve, events=repeats)
    cut.record("recovered", number=4, reason="the study was killed")
    assert next_repeat(cut.state, made.plan) == Continue(4, TOTAL)


def test_a_trial_that_begins_anew_waits_at_no_rung() -> None:
    """Its checkpoint was gone: after its first reading it is far below the rung that it was sent on from."""
    halves = plan(trials=30, strategy="auto")
    made = simulator(halves, by_number).run()
    ladders = ladders_of(made.state, strategy_for(halves))
    waiting = [trial for trial in made.state.search if trial.state == "paused" and trial.step > 0.3 * TOTAL]
    assert waiting
    number = waiting[0].number
    ladder = ladders.of(waiting[0])
    assert any(number in rung.waiting for rung in ladder.rungs[2:])
    made.record("assigned", number=number, until=TOTAL)
    made.record("row", number=number, row={"kind": "epoch", "step": 3, "time_s": 0.1, "val_value": 0.1})
    assert not any(number in rung.waiting for rung in ladders_of(made.state, strategy_for(halves)).of(waiting[0]).rungs)


def test_trials_are_ranked_among_their_schedule_whatever_names_it() -> None:
    def proposed(state: State, number: int, arm: str) -> Proposal:
        return Proposal({} if arm == BASELINE else {"schedule": [10, 20 + number % 2]}, TOTAL)

    made = simulator(plan(trials=9), by_number, propose=proposed).run()
    assert len(ladders_of(made.state, strategy_for(made.plan)).by_arm["all"]) == 2


def test_nothing_is_kept_for_repeats_that_never_come() -> None:
    curve = lambda number, share: None if number == 0 else by_number(number, share)  # noqa: E731
    made = simulator(plan(trials=4, repeats=3, budget=Time(1000, 5)), curve).run()
    assert reserve(made.state, made.plan) == 5
