"""Strategies on recorded curves: what is recorded, what a search may read, and what a winner is measured by."""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import curves
import pytest
import torch
from curves import VARIANTS, Draw, Exploring, Line, Pool, drawn, further_seeds, read, record, regret, search, winner
from tuning.tasks import TASKS

from luthier.tuning.jobs import Continue, Start
from luthier.tuning.simulate import Simulator
from luthier.tuning.strategies import STRATEGIES
from tuning import training

TASK = replace(TASKS["digits-mlp"], epochs=2)
EPOCHS = 10


@pytest.fixture(autouse=True)
def _variants(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, variant in VARIANTS.items():
        monkeypatch.setitem(STRATEGIES, name, variant)


def line(number: int, seed: int, quality: float, seconds: float = 10.0) -> Line:
    """A curve that rises to its quality."""
    return Line(number, seed, {"lr": 1.0}, [quality - 0.02 * (EPOCHS - epoch) for epoch in range(1, 11)], seconds)


def pool(count: int = 40) -> Pool:
    """Qualities in no order; the second seed reads a little worse, and the worse half has none."""
    qualities = {number: 0.3 + 0.6 * (number * 37 % 101) / 101 for number in range(count)}
    first = [line(number, 0, quality) for number, quality in qualities.items()]
    further = [line(number, 1, qualities[number] - 0.01) for number, _ in further_seeds(first, 2)]
    return Pool("fake", first + further)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Which trainings a recording asks for; none of them is real."""
    asked: list[tuple[int, int]] = []

    def train(_: object, number: int, seed: int) -> Line:
        asked.append((number, seed))
        return line(number, seed, 0.1 * number)

    monkeypatch.setattr(curves, "train", train)
    monkeypatch.setattr(curves, "prepare", lambda _: None)
    monkeypatch.setattr(curves, "ProcessPoolExecutor", ThreadPoolExecutor)
    return asked


def test_a_recording_gives_further_seeds_to_the_better_half(trained: list[tuple[int, int]], tmp_path: Path) -> None:
    record(TASK, 5, 3, tmp_path / "curves.jsonl")
    assert sorted(trained) == sorted([*((n, 0) for n in range(5)), *((n, s) for n in (2, 3, 4) for s in (1, 2))])
    assert sorted((one.number, one.seed) for one in read(tmp_path / "curves.jsonl")) == sorted(trained)


def test_a_recording_goes_on_where_its_file_stops(trained: list[tuple[int, int]], tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    whole = [json.dumps(asdict(line(number, 0, 0.1 * number))) for number in (0, 3)]
    path.write_text("\n".join([*whole, whole[0][:40]]))  # the last one was torn by a kill
    record(TASK, 4, 2, path)
    assert sorted(trained) == [(1, 0), (2, 0), (2, 1), (3, 1)]
    assert sorted((one.number, one.seed) for one in read(path)) == [(0, 0), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]


def test_a_training_is_known_by_its_number_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    data = torch.randn(200, 64), torch.randint(0, 10, (200,))
    monkeypatch.setattr(training, "memory", lambda _: (data, data))
    one, same, reseeded, other = (curves.train(TASK, *each) for each in ((3, 0), (3, 0), (3, 1), (4, 0)))
    assert one.config == same.config == reseeded.config != other.config
    assert one.values == same.values != reseeded.values
    assert len(one.values) == TASK.epochs
    assert one.seconds > 0


def test_a_winner_is_measured_by_the_seeds_that_were_not_searched() -> None:
    lucky, solid, single = ([0.9] * EPOCHS, [0.5] * EPOCHS), ([0.8] * EPOCHS, [0.7] * EPOCHS), ([0.1] * EPOCHS,)
    made = Pool(
        "fake", [Line(n, s, {}, v, 10.0) for n, all_ in enumerate((lucky, solid, single)) for s, v in enumerate(all_)]
    )
    assert [made.truth(0, 0), made.truth(0, 1), made.truth(1, 0)] == pytest.approx([0.5, 0.9, 0.7])
    assert made.truth(2, 0) == made.truth(2, 1) == pytest.approx(0.1)
    assert list(made.searched(0, 1).values) == [0.5] * EPOCHS
    assert list(made.searched(2, 1).values) == [0.1] * EPOCHS
    draw = Draw([0, 1, 2], 0)
    assert [regret(made, draw, n) for n in (0, 1, 2)] == pytest.approx([20, 0, 60])


def test_a_repetition_draws_its_own_part_once_and_the_seeds_take_turns() -> None:
    made = pool()
    draws = [drawn(made, repetition, 0.6) for repetition in range(4)]
    assert [draw.seed for draw in draws] == [0, 1, 0, 1]
    assert all(len(set(draw.numbers)) == len(draw.numbers) == 24 for draw in draws)
    assert len({tuple(draw.numbers) for draw in draws}) == 4
    assert draws[2] == drawn(made, 2, 0.6)


def test_a_budget_is_so_many_mean_trainings_on_two_workers() -> None:
    made = Pool("fake", [line(n, 0, 0.5 + n / 1000, seconds=(8.0, 12.0)[n % 2]) for n in range(80)])
    found = search(made, drawn(made, 0, 1.0), "full", 6)
    assert found.clock == pytest.approx(30, abs=6)
    assert 4 <= sum(trial.state == "finished" for trial in found.state.trials) <= 7


def test_the_winner_is_what_a_study_names_unless_its_luck_is_asked_for() -> None:
    steady, jumpy = [0.7] * EPOCHS, [0.5] * 4 + [0.95] + [0.5] * 5
    made = Pool("fake", [Line(0, 0, {}, steady, 10.0), Line(1, 0, {}, jumpy, 10.0)])
    found = search(made, Draw([0, 1], 0), "full", 8)
    assert (winner(found), winner(found, lucky=True)) == (0, 1)


def test_a_study_without_a_finished_trial_is_measured_by_its_best_reading() -> None:
    made = pool()
    found = search(made, drawn(made, 0, 1.0), "full", 0.5)
    assert found.state.winner is None
    assert winner(found) in {trial.values["number"] for trial in found.state.trials}


def left_lowest(found: Simulator) -> float:
    """Share of the trials that have left the lowest rung."""
    return sum(trial.step > 1 for trial in found.state.trials) / len(found.state.trials)


def test_a_sharper_rung_lets_fewer_go_on() -> None:
    made = pool(400)
    draw = drawn(made, 0, 1.0)
    halves, quarters = (search(made, draw, name, 16) for name in ("halves", "quarters"))
    assert 0.4 < left_lowest(halves) < 0.6
    assert 0.2 < left_lowest(quarters) < 0.3
    assert len(quarters.state.trials) > len(halves.state.trials)


def begun_before_a_promotion(found: Simulator) -> int:
    place = next(place for place, job in enumerate(found.decisions) if isinstance(job, Continue))
    return sum(isinstance(job, Start) for job in found.decisions[:place])


def test_a_sharper_rung_waits_for_as_many_as_leave_one_at_the_end_or_not() -> None:
    made = pool(400)
    draw = drawn(made, 0, 1.0)
    names = ("halves", "quarters", "quarters, all wait")
    counts = [begun_before_a_promotion(search(made, draw, name, 16)) for name in names]
    assert counts[0] == counts[1]
    assert counts[2] >= 2 * counts[0] - 1


def test_a_rung_that_explores_sends_nobody_on_before_its_share_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STRATEGIES, "patient", lambda _: Exploring(explore=0.4))
    made = pool(400)
    found = search(made, drawn(made, 0, 1.0), "patient", 32)  # 40 % of 32 trainings are 128 first epochs
    assert begun_before_a_promotion(found) == pytest.approx(128, abs=3)


def test_strategies_are_compared_repetition_by_repetition() -> None:
    figures = {"auto": [[1.0, 3.0], [0.0, 0.0]], "other": [[2.0, 5.0], [1.0, -1.0]]}
    assert curves.against(figures, "auto") == {"other": [[1.0, 2.0], [1.0, -1.0]]}
    assert curves.mean_and_error([1.0, 2.0, 3.0, 6.0]) == pytest.approx((3.0, 2.1602 / 2), abs=1e-4)


def test_the_tables_have_every_strategy_and_a_control_with_its_luck(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fake.jsonl"
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in random.Random(0).sample(pool().lines, 60)))
    asked = ["simulate", str(path), "--strategies", "auto", "halves", "one-epoch-top-k"]
    monkeypatch.setattr("sys.argv", ["curves.py", *asked, "--budgets", "4", "8", "--repetitions", "3"])
    curves.main()
    regrets, differences = capsys.readouterr().out.split("regret less that of auto")
    names = ["auto", "halves", "one-epoch-top-k", "one-epoch-top-k by its best reading"]
    shown = [[row.split("│")[1].strip() for row in part.splitlines() if "±" in row] for part in (regrets, differences)]
    assert shown == [names, names[1:]]
