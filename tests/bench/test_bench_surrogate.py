"""Studies on curves that are made up from recorded ones."""

import json
import math
import random
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import surrogate
from curves import Line
from surrogate import Surrogate, study
from tuning.spaces import draw, space_of
from tuning.tasks import TASKS

TASK = TASKS["digits-mlp"]


def quality(config: dict[str, Any]) -> float:
    """The nearer the learning rate to 1e-3 the better."""
    return 0.9 - 0.1 * abs(math.log10(config["lr"]) + 3)


def recorded(count: int = 60, seeds: int = 2) -> list[Line]:
    """Curves that rise to the quality; the second seed reads less, of good ones little; wide networks take longer."""
    lines = []
    for number in range(count):
        config = draw(space_of(TASK), random.Random(number))
        for seed in range(seeds if number % 2 else 1):
            less = seed * (0.02 if quality(config) > 0.78 else 0.08)
            values = [quality(config) - less - 0.01 * (TASK.epochs - epoch) for epoch in range(TASK.epochs)]
            lines.append(Line(number, seed, config, values, config["width"] / 10))
    return lines


def test_it_follows_what_was_recorded_and_scatters_as_seeds_do() -> None:
    made = Surrogate(recorded(), TASK)
    good, bad = ({**recorded()[0].config, "lr": lr} for lr in (1e-3, 1e-5))
    assert made.mean(good).max() > made.mean(bad).max() + 0.05
    assert made.training(good, 3) == made.training(good, 3)
    for config, less in ((good, 0.02), (bad, 0.08)):  # as those that read alike
        ends = {made.training(config, seed).values[-1] - float(made.mean(config)[-1]) for seed in range(40)}
        scatter = less / 2 * math.sqrt(2)  # half of the difference between two seeds, as they are two
        assert (min(ends), max(ends)) == pytest.approx((-scatter, scatter))
    narrow, wide = ({**good, "width": width} for width in (32, 256))
    assert made.training(wide, 0).epoch_s > 2 * made.training(narrow, 0).epoch_s


def test_without_a_second_seed_nobody_knows_how_trainings_scatter() -> None:
    with pytest.raises(SystemExit, match="record with --seeds"):
        Surrogate(recorded(seeds=1), TASK)


def test_a_study_keeps_to_its_budget_and_is_the_same_again() -> None:
    made = Surrogate(recorded(), TASK)
    found = study(made, TASK, "random/auto", 6, 1)
    assert 0.9 < found.clock / (6 * made.typical_s / 2) <= 1
    assert found.state.winner is not None
    again = study(made, TASK, "random/auto", 6, 1)
    assert [trial.values for trial in found.state.trials] == [trial.values for trial in again.state.trials]
    other = study(made, TASK, "random/auto", 6, 2)
    assert found.state.trials[0].values != other.state.trials[0].values


def test_the_table_compares_the_ways(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "digits.jsonl"
    path.write_text("".join(json.dumps(asdict(line)) + "\n" for line in recorded()))
    more = ["--ways", "auto", "random/full", "--trainings", "3", "--seeds", "2"]
    monkeypatch.setattr(surrogate, "STRATEGIES", {})  # variants stay out of the library's own
    monkeypatch.setattr(sys, "argv", ["surrogate.py", str(path), TASK.name, *more])
    surrogate.main()
    told = capsys.readouterr().out
    assert "digits: 2 studies of 3 trainings" in told
    assert "random/full" in told
