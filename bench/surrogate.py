"""Sampler and strategy together on curves that a forest makes up from recorded ones: whole studies in a second each.

    python bench/curves.py record review-gru --configs 60 --seeds 4 --out gru.jsonl
    python bench/surrogate.py gru.jsonl review-gru
    python bench/surrogate.py gru.jsonl review-gru --ways auto random/auto auto/one-epoch-top-k --trainings 21

Extremely randomised trees learn the mean curve and the seconds of a configuration; what a training reads beside it are
the deviations of a recorded one of several seeds, drawn by the configuration among those with the most similar mean
curves: good ones deviate less than those that learn late or not at all. A way is
SAMPLER/STRATEGY, or a strategy alone with the sampler "auto"; variants are those of bench/curves.py. Two workers, the
bench's own space as a training function. "Truth" is the best of the winner's mean curve; the forest flattens peaks, so
compare ways, not numbers. Differences to the first way are paired by seed; errors are standard errors.

Source: Geurts et al. 2006, Extremely Randomized Trees; Eggensperger et al. 2015, Efficient Benchmarking of
Hyperparameter Optimizers via Surrogates.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from curves import VARIANTS, WORKERS, Line, mean_and_error, read
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import ExtraTreesRegressor
from tuning.spaces import draw, for_luthier, space_of
from tuning.tasks import TASKS, Task

from luthier.tuning.budgets import Time
from luthier.tuning.function_search import function_search
from luthier.tuning.jobs import Plan
from luthier.tuning.proposing import Proposer
from luthier.tuning.simulate import Curve, Simulator
from luthier.tuning.strategies import STRATEGIES

ALIKE = 3
"""Recorded configurations whose mean curves are nearest: one of their deviations is drawn."""

SEVERAL = 2
"""Seeds of a configuration from which on its deviations are used."""


class Surrogate:
    """Curves for any configuration of a task's space.

    Args:
        lines: recorded trainings, some with several seeds.
        task: the one that was recorded.
    """

    def __init__(self, lines: list[Line], task: Task) -> None:
        groups: dict[int, list[Line]] = defaultdict(list)
        for line in lines:
            groups[line.number].append(line)
        self.space = space_of(task)
        x = np.array([self.features(group[0].config) for group in groups.values()])
        means = np.array([np.mean([line.values for line in group], axis=0) for group in groups.values()])
        seconds = [math.log(statistics.fmean(line.seconds for line in group)) for group in groups.values()]
        self.curves = ExtraTreesRegressor(400, max_features=0.7, random_state=0).fit(x, means)
        self.seconds = ExtraTreesRegressor(200, random_state=0).fit(x, seconds)
        self.deviations = [
            (mean, [(np.array(line.values) - mean) * math.sqrt(len(group) / (len(group) - 1)) for line in group])
            for group, mean in zip(groups.values(), means, strict=True)  # the mean is of few
            if len(group) >= SEVERAL
        ]
        if not self.deviations:
            raise SystemExit(f"no configuration has {SEVERAL} seeds: record with --seeds {SEVERAL} or more")
        chance = random.Random(0)
        x = np.array([self.features(draw(self.space, chance)) for _ in range(1000)])
        self.typical_s = float(np.exp(self.seconds.predict(x)).mean())

    def features(self, config: Mapping[str, Any]) -> list[float]:
        """A configuration as numbers: options one by one, ranges on their scale."""
        found: list[float] = []
        for name, item in self.space.items():
            value = config[name]
            if isinstance(item, tuple):
                found += [float(value == option) for option in item]
            else:
                found.append(math.log(value) if item.log else float(value))
        return found

    def mean(self, config: Mapping[str, Any]) -> NDArray[np.float64]:
        """The mean curve of a configuration."""
        curve: NDArray[np.float64] = self.curves.predict(np.array([self.features(config)]))[0]
        return curve

    def training(self, config: Mapping[str, Any], seed: int) -> Curve:
        """One training, the same for the same configuration and seed."""
        mean = self.mean(config)
        chance = random.Random(f"{seed} {json.dumps(dict(config), sort_keys=True)}")
        alike = sorted(self.deviations, key=lambda each: float(np.abs(each[0] - mean).mean()))[:ALIKE]
        values = np.clip(mean + chance.choice(chance.choice(alike)[1]), 0.0, 1.0)
        whole_s = math.exp(float(self.seconds.predict(np.array([self.features(config)]))[0]))
        return Curve([float(value) for value in values], whole_s / len(mean))


def study(surrogate: Surrogate, task: Task, way: str, trainings: float, seed: int) -> Simulator:
    """One search with time for so many mean trainings."""
    sampler, _, strategy = way.rpartition("/")

    def unused(trial: Any) -> None: ...

    search = function_search(unused, for_luthier(surrogate.space), None, task.epochs, None, None, None)
    time = Time(trainings * surrogate.typical_s / WORKERS)
    more: dict[str, Any] = {"workers": WORKERS, "repeats": 0, "epochs": task.epochs, "baseline": False, "seed": seed}
    plan = Plan({"all": list(search.space)}, budget=time, strategy=strategy, **more)
    made: dict[int, Curve] = {}

    def curve(number: int, values: Mapping[str, Any]) -> Curve:
        if number not in made:
            made[number] = surrogate.training(values, seed)
        return made[number]

    return Simulator(plan, Proposer(search, plan, sampler or "auto"), curve).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="recorded curves")
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--ways", nargs="+", default=["auto", "random/auto", "halves", "one-epoch-top-k"])
    parser.add_argument("--trainings", type=float, default=20, help="what the budget holds")
    parser.add_argument("--seeds", type=int, default=30)
    arguments = parser.parse_args()
    STRATEGIES.update(VARIANTS)
    task = TASKS[arguments.task]
    surrogate = Surrogate(read(arguments.file), task)
    shown = Table(title=f"{arguments.file.stem}: {arguments.seeds} studies of {arguments.trainings:g} trainings")
    for column in ("way", "winner's truth, points", "less the first way's", "its reading", "trials"):
        shown.add_column(column)
    first: list[float] = []
    for way in arguments.ways:
        made = [study(surrogate, task, way, arguments.trainings, seed) for seed in range(arguments.seeds)]
        winners = [each.state.winner or each.state.rank(each.state.trials)[0] for each in made]
        truth = [100 * float(surrogate.mean(winner.values).max()) for winner in winners]
        first = first or truth
        differences = [a - b for a, b in zip(truth, first, strict=True)]
        cells = ["{:.2f} ± {:.2f}".format(*mean_and_error(column)) for column in (truth, differences)]
        reading = 100 * statistics.fmean(winner.value or 0.0 for winner in winners)
        trials = statistics.fmean(len(each.state.trials) for each in made)
        shown.add_row(way, *cells, f"{reading:.2f}", f"{trials:.0f}")
    Console(highlight=False, width=120).print(shown)


if __name__ == "__main__":
    main()
