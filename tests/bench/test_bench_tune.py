"""The bench of searches: what it reads off runs, and that no contender gets another space, winner or data."""

import copy
import io
import json
import math
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from rich.console import Console
from tuning.curves import Pair, at, curve, figures, load, pairs, reached_s, targets, times
from tuning.one import CHOICE, CONTENDERS, Job, readings
from tuning.report import report, seeds_table
from tuning.retrain import Best, winner
from tuning.spaces import Range, draw, for_luthier, for_ray, space_of, suggest
from tuning.tasks import TASKS
from tuning.training import Training

from luthier.tuning.ranges import Choice, Integers, Uniform
from tuning import processes, retrain

TASK = TASKS["digits-mlp"]


def reading(t: float, value: float, trial: str = "0", epoch: float = 1) -> dict[str, Any]:
    return {"t": t, "value": value, "trial": trial, "epoch": epoch, "config": {"lr": value}}


def run(contender: str, seed: int, points: list[tuple[float, float]], retrained: list[float]) -> dict[str, Any]:
    return {
        **{"contender": contender, "task": "digits-mlp", "seed": seed, "seconds": 10.0, "load": 0.0},
        **{"first_s": points[0][0], "trials": 2, "epochs": 3.0, "winner": reading(*points[-1])},
        **{"retrained": {"val": retrained, "last": retrained, "test": retrained}, "curve": points},
    }


def test_a_curve_rises_only_and_ends_with_the_time() -> None:
    found = [reading(1, 0.5), reading(2, 0.4), reading(3, 0.6), reading(9, 0.9)]
    points = curve(found, 5.0)
    assert points == [(1, 0.5), (3, 0.6)]
    assert (reached_s(points, 0.5), reached_s(points, 0.55), reached_s(points, 0.9)) == (1, 3, math.inf)
    assert math.isnan(at(points, 0.5))
    assert (at(points, 1), at(points, 2.9), at(points, 99)) == (0.5, 0.5, 0.6)


def test_times_to_the_tutorials_value_are_medians_over_all_pairs_of_seeds() -> None:
    tutorial = [
        run("optuna-tutorial", seed, [(2, 0.5), (8, best)], [0.5, 0.75]) for seed, best in enumerate((0.7, 0.8))
    ]
    ours = [run("luthier", seed, [(1, 0.6), (2 + seed, 0.75)], [0.7, 0.7]) for seed in (0, 1)]
    assert targets(tutorial, lambda one: one["curve"][-1][1]) == [(0.7, 8), (0.8, 8)]
    assert times(ours, [(0.7, 8.0)]) == (2.5, 2.5 / 8)
    assert times(ours, [(0.8, 8.0)]) == (math.inf, math.inf)
    found = figures(ours, tutorial)
    assert (found.seeds, found.val, found.first_s) == (2, (pytest.approx(0.7), pytest.approx(0)), 1)
    assert found.to_best_s == math.inf  # of four pairs two never came to it: their middle did not either
    assert (found.to_retrained_s, found.to_retrained) == (2.5, 2.5 / 8)  # to 0.625
    assert figures(tutorial, tutorial).to_best == 1  # of the pairs that it reached, each takes as long as it did


def test_by_seed_each_run_stands_beside_the_tutorials_with_that_seed() -> None:
    tutorial = [run("optuna-tutorial", seed, [(2, 0.5), (8, best)], [0.6]) for seed, best in enumerate((0.7, 0.8))]
    ours = [run("luthier", seed, [(1, 0.6), (4, 0.75)], [0.7, 0.72]) for seed in (0, 1, 2)]
    found = pairs(ours, tutorial)
    assert found == {
        0: Pair(pytest.approx(0.71), (4, 0.5), (1, 1 / 8)),
        1: Pair(pytest.approx(0.71), (math.inf, math.inf), (1, 1 / 8)),
    }
    shown = io.StringIO()
    Console(file=shown, width=200).print(seeds_table({"luthier": found, "random": {}}))
    assert "71.00, 4 0.50, 1 0.12" in shown.getvalue()
    assert "71.00, never, 1 0.12" in shown.getvalue()


def test_a_value_that_the_tutorial_never_read_gives_no_share() -> None:
    tutorial = [run("optuna-tutorial", 0, [(2, 0.5)], [0.9])]  # better when retrained than it ever read
    found = figures([run("luthier", 0, [(1, 0.95)], [0.9])], tutorial)
    assert found.to_retrained_s == 1
    assert math.isnan(found.to_retrained)


def test_the_report_tells_what_is_there_and_its_file_holds_plain_numbers(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for seed, contender in enumerate(("optuna-tutorial", "luthier", "luthier")):
        one = run(contender, seed, [(1, 0.5), (5, 0.7 + seed / 100)], [0.7])
        (tmp_path / "runs" / f"{contender}-{seed}.json").write_text(json.dumps(one))
    assert {name: len(runs) for name, runs in load(tmp_path)[("digits-mlp", 10.0)].items()} == {
        "luthier": 2,
        "optuna-tutorial": 1,
    }
    shown = io.StringIO()
    report(Console(file=shown, width=200), tmp_path)
    assert "digits-mlp, 10 s" in shown.getvalue()
    assert "random" not in shown.getvalue()
    summary = json.loads((tmp_path / "summary.json").read_text())["digits-mlp-10s"]
    assert summary["luthier"]["to_best"] == 1
    assert summary["luthier"]["trials"] == 2
    assert summary["optuna-tutorial"]["by_seed"]["0"]["to_best"] == [5, 1]
    assert summary["luthier"]["by_seed"] == {}  # there is no tutorial with its seeds


def test_a_winner_is_the_first_of_the_best_within_the_time_or_what_was_chosen(tmp_path: Path) -> None:
    found = [reading(1, 0.5, "a"), reading(2, 0.8, "b"), reading(3, 0.8, "c"), reading(9, 0.9, "late")]
    assert winner(found, 5.0, tmp_path)["trial"] == "b"
    (tmp_path / CHOICE).write_text("a")
    assert winner(found, 5.0, tmp_path)["trial"] == "a"


def test_of_a_retraining_the_weights_of_the_first_best_epoch_count() -> None:
    best, model = Best(), {"epoch": 0}
    for epoch, value in enumerate((0.5, 0.8, 0.8, 0.7)):
        model["epoch"] = epoch
        best(epoch, value, model)
    assert (best.value, best.last, best.model) == (0.8, 0.7, {"epoch": 1})


def test_each_contender_is_retrained_by_its_own_means(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for way in ("recipe", "tutorial", "function"):
        monkeypatch.setattr(retrain, f"_by_{way}", lambda *_, way=way: way)
    ways = {name: retrain.retrain(name, TASK, {}, 1, tmp_path) for name in CONTENDERS}
    own = {"luthier": "recipe", "optuna-tutorial": "tutorial"}
    assert ways == {name: own.get(name, "function") for name in CONTENDERS}
    assert len(set(retrain.SEEDS)) == 4


def test_readings_are_in_the_order_of_time_and_half_a_line_is_left_out(tmp_path: Path) -> None:
    job = Job("random", "digits-mlp", 0, 10.0, tmp_path, time.time())
    job.tell("a", 2, 0.5, {}, t=2.0)
    job.tell("b", 1, 0.4, {}, t=1.0)
    with (tmp_path / "readings.jsonl").open("a") as file:
        file.write('{"t": 3.0, "tri')
    assert [each["trial"] for each in readings(tmp_path)] == ["b", "a"]


def test_no_two_trainings_of_a_contender_share_their_seed(tmp_path: Path) -> None:
    jobs = [Job("random", "digits-mlp", seed, 1, tmp_path, 0, rank) for seed in (0, 1, 2) for rank in (0, 1)]
    assert len({job.trial_seed(number) for job in jobs for number in (0, 9_999)}) == 12


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_all_engines_search_the_same_space(task: Any) -> None:
    space, chance = space_of(task), random.Random(0)
    ours = for_luthier(space)
    assert list(ours) == list(space)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    suggested = [study.ask() for _ in range(2)]
    configs = [suggest(space, trial) for trial in suggested]
    for name, distribution in suggested[0].distributions.items():
        item, range_ = space[name], ours[name]
        if isinstance(item, Range):
            assert isinstance(range_, Integers if item.whole else Uniform)
            assert (range_.low, range_.high, range_.log) == (item.low, item.high, item.log)
            assert (distribution.low, distribution.high, distribution.log) == (item.low, item.high, item.log)
        else:
            assert isinstance(range_, Choice)
            assert range_.options == distribution.choices == item
    for config in (*configs, *(draw(space, chance) for _ in range(200))):
        assert list(config) == list(space)
        assert all(ours[name].contains(value) for name, value in config.items())


def test_ray_searches_the_same_space_too() -> None:
    pytest.importorskip("ray")
    space = space_of(TASK)
    ours, rays = for_luthier(space), for_ray(space)
    assert list(rays) == list(space)
    for name, domain in rays.items():
        drawn = [domain.sample() for _ in range(300)]
        assert all(ours[name].contains(value) for value in drawn)
        if isinstance(ours[name], Integers) and ours[name].size < 10:
            assert set(drawn) == set(ours[name].levels(10))  # the upper end too


def test_a_training_goes_on_as_if_it_had_never_stopped() -> None:
    x, y = torch.randn(64, 64), torch.randint(0, 10, (64,))
    config = draw(space_of(TASK), random.Random(1)) | {"optimizer": "adamw", "dropout": 0.2}
    whole = Training(TASK, config, 3, (x, y), (x, y))
    read = [whole.epoch() for _ in range(3)]
    first = Training(TASK, config, 3, (x, y), (x, y))
    assert [first.epoch()] == read[:1]
    second = Training(TASK, config, 3, (x, y), (x, y))
    second.load(copy.deepcopy(first.state()))
    assert [second.epoch(), second.epoch()] == read[1:]
    assert all(torch.equal(a, b) for a, b in zip(second.model.parameters(), whole.model.parameters(), strict=True))


def test_what_a_contender_starts_ends_with_it(tmp_path: Path) -> None:
    sleeper = "[sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True"
    child = f"import subprocess, sys; subprocess.Popen({sleeper})"
    before = set(Path("/proc").glob("[0-9]*"))
    assert processes.run([sys.executable, "-c", child], 30, tmp_path / "log", dict(os.environ)) == 0
    left = [path for path in set(Path("/proc").glob("[0-9]*")) - before if b"time.sleep(60)" in words_of(path)]
    assert left == []


def words_of(path: Path) -> bytes:
    try:
        return (path / "cmdline").read_bytes()
    except OSError:
        return b""
