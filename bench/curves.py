"""Strategies on recorded curves: whole trainings are recorded once and searched many times by a fake clock.

    python bench/curves.py record mnist-cnn --configs 100 --seeds 2 --images 1500 --val 2000 --out cnn.jsonl
    python bench/curves.py simulate cnn.jsonl
    python bench/curves.py simulate cnn.jsonl --strategies auto halves quarters --budgets 6 8 --repetitions 100

`record` trains random configurations of the shared space of bench/tuning, without test data; a training is one line of
the file. It goes on where its file stops, so it may be killed. The worse half of the configurations, by their first
seed, gets no further seeds: they do not win, and if one does, its first seed's value counts.

`simulate` runs the library's scheduler: two workers, a random sampler, a budget of time for so many mean trainings. A
repetition draws a part of the configurations and their order, the same for all strategies and budgets, and searches
the curves of one seed. The winner is the one that a study names its best. Its regret is measured on the other seeds:
how far it is, in points of accuracy, from the best configuration of that part. Errors are standard errors over
repetitions, which share configurations; differences to the first strategy are paired.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tuning.spaces import draw, space_of
from tuning.tasks import TASKS, Task, prepare

from luthier.tuning.budgets import Time
from luthier.tuning.jobs import Outlook, Plan, Proposal
from luthier.tuning.levels import level
from luthier.tuning.simulate import Curve, Simulator
from luthier.tuning.state import State
from luthier.tuning.strategies import STRATEGIES, Auto

WORKERS = 2
TOP_K = "one-epoch-top-k"
LUCKY = " by its best reading"


@dataclass(frozen=True)
class Line:
    """A recorded training.

    Attributes:
        number: of its configuration.
        seed: of the training, from 0 on.
        config: values of the shared space.
        values: validation accuracy after each epoch.
        seconds: of the whole training.
    """

    number: int
    seed: int
    config: dict[str, Any]
    values: list[float]
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    recording = commands.add_parser("record", help="train random configurations of the shared space")
    recording.add_argument("task", choices=TASKS)
    recording.add_argument("--configs", type=int, default=100)
    recording.add_argument("--seeds", type=int, default=2, help="trainings of each; of the worse half only one")
    recording.add_argument("--images", type=int, help="training examples (default: the task's)")
    recording.add_argument("--val", type=int, help="validation examples (default: the task's)")
    recording.add_argument("--out", type=Path, required=True)
    recording.set_defaults(run=lambda a: record(sized(TASKS[a.task], a.images, a.val), a.configs, a.seeds, a.out))
    searching = commands.add_parser("simulate", help="search recorded curves")
    searching.add_argument("files", nargs="+", type=Path)
    searching.add_argument(
        "--strategies", nargs="+", choices=[*STRATEGIES, *VARIANTS], default=["auto", *VARIANTS, TOP_K]
    )
    searching.add_argument("--budgets", nargs="+", type=float, default=[4, 6, 8, 12, 16, 32], help="whole trainings")
    searching.add_argument("--repetitions", type=int, default=100)
    searching.add_argument("--share", type=float, default=0.6, help="of the configurations in a repetition")
    searching.set_defaults(run=lambda a: simulate(a.files, a.strategies, a.budgets, a.repetitions, a.share))
    arguments = parser.parse_args()
    STRATEGIES.update(VARIANTS)
    arguments.run(arguments)


def sized(task: Task, images: int | None, val: int | None) -> Task:
    """The task with other numbers of examples."""
    return replace(task, train=images or task.train, val=val or task.val)


def record(task: Task, configs: int, seeds: int, out: Path) -> None:
    """Train what the file still lacks: the first seed of all configurations, then those of the better half."""
    prepare(task)
    drop_torn(out)
    with ProcessPoolExecutor(WORKERS) as pool:
        _train_all(pool, task, [(number, 0) for number in range(configs)], out)
        _train_all(pool, task, further_seeds(read(out), seeds), out)


def _train_all(pool: ProcessPoolExecutor, task: Task, wanted: list[tuple[int, int]], out: Path) -> None:
    there = {(line.number, line.seed) for line in read(out)}
    for job in as_completed([pool.submit(train, task, *each) for each in wanted if each not in there]):
        with out.open("a") as file:
            file.write(json.dumps(asdict(job.result())) + "\n")


def further_seeds(lines: Sequence[Line], seeds: int) -> list[tuple[int, int]]:
    """(configuration, seed) of the half that ended better with its first seed."""
    ends = {line.number: line.values[-1] for line in lines if line.seed == 0}
    better = sorted(ends, key=lambda number: -ends[number])[: math.ceil(len(ends) / 2)]
    return [(number, seed) for seed in range(1, seeds) for number in better]


def train(task: Task, number: int, seed: int) -> Line:
    """One training over all epochs; a configuration is known by its number."""
    from tuning.training import Training, memory

    config, began = draw(space_of(task), random.Random(f"{task.name} {number}")), time.perf_counter()
    training = Training(task, config, seed, *memory(task))
    values = [training.epoch() for _ in range(task.epochs)]
    return Line(number, seed, config, values, time.perf_counter() - began)


def drop_torn(path: Path) -> None:
    """Take away a last line that a kill has torn."""
    if path.exists():
        text = path.read_text()
        path.write_text(text[: text.rfind("\n") + 1])


def read(path: Path) -> list[Line]:
    """The trainings of a file; none when there is no file yet."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Line(**json.loads(line)) for line in lines]


@dataclass(frozen=True)
class Exploring(Auto):
    """`Auto` with another wait at its lowest rung.

    Attributes:
        all_wait: the rung waits for as many trials as leave one at the end by its own `eta`.
        explore: nobody leaves it before this share of the budget is spent, unless no trial is to begin any more.
    """

    all_wait: bool = False
    explore: float = 0.0

    def needs(self, index: int, outlook: Outlook) -> float:
        """As many as leave one at the end by halves, or half of that; or by its own `eta`."""
        if not index and outlook.more and outlook.share < self.explore:
            return math.inf
        return super().needs(index, outlook) * (self.eta_at(index, outlook) / self.eta if self.all_wait else 1)


VARIANTS: dict[str, Callable[[Plan], Auto]] = {
    "bets at once": lambda _: Auto(),
    "halves": lambda _: Auto(lowest_eta=2, patience=0),
    "thirds": lambda _: Auto(lowest_eta=3, roomy=math.inf, patience=0),
    "quarters": lambda _: Auto(lowest_eta=4, roomy=math.inf, patience=0),
    "quarters to 16": lambda _: Auto(lowest_eta=4, roomy=16, patience=0),
    "quarters of 0.2": lambda _: Auto(brackets=((0.2, 0.4, 0.7),), roomy=math.inf, patience=0),
    "quarters, all wait": lambda _: Exploring(lowest_eta=4, roomy=math.inf, patience=0, all_wait=True),
    "quarters, 0.5 first": lambda _: Exploring(lowest_eta=4, roomy=math.inf, patience=0, all_wait=True, explore=0.5),
    "halves, 0.4 first": lambda _: Exploring(lowest_eta=2, patience=0, explore=0.4),
    "patience 0.5": lambda _: Auto(patience=0.5),
    "patience 2": lambda _: Auto(patience=2),
}
"""What was tried beside the library's own: how many go on from the lowest rung, and when."""


@dataclass(frozen=True)
class Pool:
    """The recorded trainings of a task."""

    name: str
    lines: list[Line]

    @cached_property
    def curves(self) -> dict[int, dict[int, list[float]]]:
        """Values by configuration and seed."""
        found: dict[int, dict[int, list[float]]] = {}
        for line in self.lines:
            found.setdefault(line.number, {})[line.seed] = line.values
        return found

    @cached_property
    def seconds(self) -> dict[int, float]:
        """Of a whole training, by configuration: the mean over its seeds."""
        by_number: dict[int, list[float]] = {}
        for line in self.lines:
            by_number.setdefault(line.number, []).append(line.seconds)
        return {number: statistics.fmean(seconds) for number, seconds in by_number.items()}

    @cached_property
    def seeds(self) -> list[int]:
        """Those that a search may read."""
        return sorted({line.seed for line in self.lines})

    def searched(self, number: int, seed: int) -> Curve:
        """What a search with a seed reads of a configuration: of one without that seed its first."""
        curves = self.curves[number]
        values = curves.get(seed, curves[0])
        return Curve(values, self.seconds[number] / len(values))

    def truth(self, number: int, seed: int) -> float:
        """What a configuration is worth to a search with a seed: the mean level of its other seeds' curves."""
        curves = self.curves[number]
        others = [values for other, values in curves.items() if other != seed] or list(curves.values())
        return statistics.fmean(level_of(values) for values in others)


def level_of(values: Sequence[float]) -> float:
    """The best of the smoothed curve, as the library sees it."""
    return level(list(enumerate(values, 1)), len(values), "max") or 0.0


@dataclass(frozen=True)
class Draw:
    """What a repetition is about: the same for all strategies and budgets.

    Attributes:
        numbers: configurations in the order in which the sampler gives them, each once.
        seed: whose curves are searched.
    """

    numbers: list[int]
    seed: int


def drawn(pool: Pool, repetition: int, share: float) -> Draw:
    """A part of the configurations in a random order; the seeds take turns."""
    numbers = sorted(pool.curves)
    chosen = random.Random(f"{pool.name} {repetition}").sample(numbers, round(share * len(numbers)))
    return Draw(chosen, pool.seeds[repetition % len(pool.seeds)])


def search(pool: Pool, draw: Draw, strategy: str, trainings: float) -> Simulator:
    """One study on recorded curves, with time for so many mean trainings."""
    epochs = len(pool.lines[0].values)
    seconds = trainings * statistics.fmean(pool.seconds.values()) / WORKERS
    settings: dict[str, Any] = {"workers": WORKERS, "repeats": 0, "epochs": epochs, "baseline": False}
    plan = Plan({"all": ["number"]}, budget=Time(seconds), strategy=strategy, **settings)

    def propose(_: State, trial: int, __: str) -> Proposal | None:
        return Proposal({"number": draw.numbers[trial]}, epochs) if trial < len(draw.numbers) else None

    def curve(_: int, values: Mapping[str, Any]) -> Curve:
        return pool.searched(values["number"], draw.seed)

    return Simulator(plan, propose, curve).run()


def winner(made: Simulator, lucky: bool = False) -> int:
    """The configuration that a study names; the one of the best reading if asked, or if no trial came to its end."""
    best = None if lucky else made.state.winner
    if best is None:
        best = max(made.state.trials, key=lambda trial: -math.inf if trial.value is None else trial.value)
    return int(best.values["number"])


def regret(pool: Pool, draw: Draw, number: int) -> float:
    """Points of accuracy between the best configuration of a draw and this one, on seeds that were not searched."""
    return 100 * (max(pool.truth(each, draw.seed) for each in draw.numbers) - pool.truth(number, draw.seed))


Figures = dict[str, list[list[float]]]
"""Row of the table -> for each budget the regrets of all repetitions."""


def regrets(pool: Pool, strategies: Sequence[str], budgets: Sequence[float], draws: Sequence[Draw]) -> Figures:
    """The regrets of all strategies at all budgets, and of one-epoch-top-K also with its best reading as winner."""
    figures: Figures = {}
    for strategy in strategies:
        made = [[search(pool, draw, strategy, budget) for draw in draws] for budget in budgets]
        for lucky in (False, True) if strategy == TOP_K else (False,):
            pairs = [zip(draws, row, strict=True) for row in made]
            rows = [[regret(pool, draw, winner(one, lucky)) for draw, one in row] for row in pairs]
            figures[strategy + LUCKY * lucky] = rows
    return figures


def simulate(files: list[Path], strategies: list[str], budgets: list[float], repetitions: int, share: float) -> None:
    """Print the tables of all files."""
    console = Console(highlight=False, width=160)
    for file in files:
        pool = Pool(file.stem, read(file))
        draws = [drawn(pool, repetition, share) for repetition in range(repetitions)]
        figures = regrets(pool, strategies, budgets, draws)
        title = f"{pool.name}: {len(draws[0].numbers)} of {len(pool.curves)} configurations, {repetitions} repetitions"
        console.print(table(f"{title}; regret, points", figures, budgets))
        first = strategies[0]
        console.print(table(f"{title}; regret less that of {first}, points", against(figures, first), budgets))


def against(figures: Figures, control: str) -> Figures:
    """The differences to a control, repetition by repetition."""
    rows = ((name, zip(row, figures[control], strict=True)) for name, row in figures.items() if name != control)
    return {name: [[a - b for a, b in zip(*pair, strict=True)] for pair in pairs] for name, pairs in rows}


def table(title: str, figures: Figures, budgets: Sequence[float]) -> Table:
    """Means and standard errors."""
    shown = Table(title=title)
    for column in ("budget in trainings", *(f"{budget:g}" for budget in budgets)):
        shown.add_column(column)
    for name, row in figures.items():
        shown.add_row(name, *(f"{mean:.3f} ± {error:.3f}" for mean, error in map(mean_and_error, row)))
    return shown


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


if __name__ == "__main__":
    main()
