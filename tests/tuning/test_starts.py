"""First trials: known-good settings, or the middle of the space."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from luthier.recipe import Recipe
from luthier.task import Task
from luthier.tuning.derived import derive_space
from luthier.tuning.function_search import function_search
from luthier.tuning.jobs import Plan, Proposal
from luthier.tuning.proposing import Proposer
from luthier.tuning.searched import n_examples, recipe_search
from luthier.tuning.simulate import Curve, Simulator
from luthier.tuning.space import choice, integers, loguniform, uniform
from luthier.tuning.starts import centres, known_good, named
from luthier.tuning.state import State


def test_what_a_configuration_leaves_out_is_as_in_the_baseline() -> None:
    task = Task(lambda: nn.Linear(2, 2), (torch.randn(8, 2), torch.zeros(8, dtype=torch.long)), val=0.5, name="t")
    space: Any = {"lr": loguniform(1e-3, 1.0), "optimizer": choice("adamw", "sgd"), "optimizer.momentum": SGD_ONLY}
    search = recipe_search(task, Recipe(lr=1e-5, optimizer="adamw"), space, None, 0)
    arms = {"all": list(space)}
    assert named([{"lr": torch.tensor(0.25)}, {"optimizer": "sgd"}], search, arms) == [
        ("all", {"lr": 0.25, "optimizer": "adamw"}),
        ("all", {"lr": 0.001, "optimizer": "sgd", "optimizer.momentum": 0.9}),
    ]


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(optimizer="sgd", lr=0.1), Recipe(dropout=0.9, weight_decay=5.0)])
def test_starts_lie_within_the_derived_space(recipe: Recipe) -> None:
    space = derive_space(recipe, 20_000, "cross_entropy")
    starts = list(known_good(space, recipe))
    assert starts
    assert all(space[path].contains(value) for start in starts for path, value in start.items())
    assert all(set(start) == set(space) for start in starts)
    assert all(recipe.replace(start) != recipe for start in starts)


def test_what_no_start_knows_stays_as_it_is() -> None:
    assert list(known_good({"dropout": loguniform(0.01, 0.5)}, Recipe(dropout=0.2))) == []
    (first, *_) = known_good({"lr": loguniform(1e-4, 1e-1), "clip_norm": choice(None, 1.0)}, Recipe())
    assert first == {"lr": 1e-2, "clip_norm": None}


def test_a_value_that_is_no_option_becomes_the_middle_one() -> None:
    space = {"lr": loguniform(1e-4, 1e-1), "batch_size": choice(8, 16, 24), "model.width": choice(128, 256, 512)}
    (first, *_) = known_good(space, Recipe(batch_size=512, model={"width": 64}))
    assert first == {"lr": 1e-2, "batch_size": 16, "model.width": 256}


@pytest.mark.parametrize(
    ("width", "frozen", "recipe", "dropouts"),
    [
        (800, False, Recipe(), [0.3, 0.0, 0.0]),  # 10 parameters for each unit, 128 examples: 62.5
        (500, False, Recipe(), [0.0, 0.0, 0.0]),
        (800, True, Recipe(), [0.0, 0.0, 0.0]),
        (800, False, Recipe(dropout=0.5), [0.5, 0.5, 0.5]),
        (800, False, Recipe(optimizer="sgd", lr=0.1), [0.0, 0.0]),
    ],
)
def test_a_network_with_many_parameters_for_each_example_begins_with_dropout(
    width: int, frozen: bool, recipe: Recipe, dropouts: list[float]
) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(7, width).requires_grad_(not frozen), nn.ReLU(), nn.Linear(width, 2))

    data = torch.randn(128, 7), torch.zeros(128, dtype=torch.long)
    search = recipe_search(Task(build, data, val=data, name="t"), recipe, None, None, 0)
    assert [values["dropout"] for _, values in search.starts(search.space)] == dropouts


def test_the_examples_of_a_loader_count_and_not_its_batches() -> None:
    data = torch.randn(128, 7), torch.zeros(128, dtype=torch.long)
    loader = DataLoader(TensorDataset(*data), batch_size=64)  # two of them, for 142 parameters
    search = recipe_search(Task(lambda: nn.Linear(70, 2), loader, val=data, name="t"), Recipe(), None, None, 0)
    assert n_examples(search.subject.task) == 128
    assert [values["dropout"] for _, values in search.starts(search.space)] == [0.0, 0.0, 0.0]


def test_a_builder_that_fails_is_left_to_the_workers() -> None:
    def build() -> nn.Module:
        raise ValueError("no weights here")

    data = torch.randn(128, 7), torch.zeros(128, dtype=torch.long)
    search = recipe_search(Task(build, data, val=data, name="t"), Recipe(), None, None, 0)
    assert len(search.starts(search.space)) == 3


def test_a_range_that_the_recipe_does_not_have_gives_none() -> None:
    assert list(known_good({"optimizer.momentum": loguniform(0.5, 0.99), "lr": loguniform(1e-4, 1)}, Recipe())) == []


SGD_ONLY = uniform(0.0, 0.98).when("optimizer", "sgd")


def test_a_field_whose_condition_does_not_hold_is_left_out() -> None:
    space = {"lr": loguniform(1e-4, 1.0), "optimizer": choice("adamw", "sgd"), "optimizer.momentum": SGD_ONLY}
    adaptive = list(known_good(space, Recipe(optimizer="adamw")))
    assert adaptive
    assert all(set(start) == {"lr", "optimizer"} for start in adaptive)
    sgd = Recipe(optimizer="sgd").replace({"optimizer.momentum": 0.5})
    assert [start["optimizer.momentum"] for start in known_good(space, sgd)] == [0.5, 0.5]


def test_a_field_of_a_part_that_the_start_brings_in_takes_its_default() -> None:
    space = {
        "schedule": choice("constant", "cosine"),
        "lr": loguniform(1e-4, 1e-1),
        "optimizer.momentum": SGD_ONLY,
        "optimizer": choice("sgd", "muon"),
    }
    starts = list(known_good(space, Recipe(optimizer="adam")))  # adam is no option: the middle one is sgd
    assert [start["optimizer"] for start in starts] == ["sgd"] * 3
    assert all(start["optimizer.momentum"] == Recipe(optimizer="sgd").value("optimizer.momentum") for start in starts)


def test_a_condition_on_a_field_of_another_arm_is_the_baselines_affair() -> None:
    arm = {"lr": loguniform(1e-4, 1.0), "optimizer.momentum": SGD_ONLY}
    assert [list(start) for start in known_good(arm, Recipe(optimizer="adamw"))] == [["lr"]] * 3
    assert [list(start) for start in known_good(arm, Recipe(optimizer="sgd"))] == [["lr", "optimizer.momentum"]] * 2


def test_the_centre_is_the_middle_on_each_scale_and_keeps_conditions() -> None:
    space = {
        "optimizer": choice("adamw", "sgd"),
        "optimizer.momentum": SGD_ONLY,
        "lr": loguniform(1e-5, 1e-1),
        "depth": integers(1, 5),
        "width": integers(16, 256, log=True),
        "batch_size": choice(256, 32, 64, 128),
        "nesterov": choice(False, True),
    }
    middle = {"optimizer": "adamw", "lr": 1e-3, "depth": 3, "width": 63, "batch_size": 64, "nesterov": False}
    assert dict(centres(space))["the middle of the space"] == pytest.approx(middle)
    by_sgd = {"optimizer": choice("sgd", "adamw"), "optimizer.momentum": SGD_ONLY}
    assert [values.get("optimizer.momentum") for _, values in centres(by_sgd)] == [0.0, 0.49]


def first_of(
    strategy: str = "auto", start: Any = None, sampler: str = "auto", constraints: Any = ()
) -> Proposal | None:
    """The first proposal of a search over one parameter of a function."""
    search = function_search(lambda trial: None, {"lr": loguniform(1e-4, 1e-2)}, None, 9, None, None, start)
    plan = Plan({"all": ["lr"]}, strategy=strategy, baseline=start is not None)
    return Proposer(search, plan, sampler, constraints)(State(Path("nowhere"), search.description), 0, "all")


def test_a_function_begins_in_the_middle_of_its_space_and_trains_that_whole() -> None:
    assert first_of() == Proposal({"lr": pytest.approx(1e-3)}, 9, "the middle of the space", whole=True)
    assert first_of("halving") == Proposal({"lr": pytest.approx(1e-3)}, 9, "the middle of the space", whole=False)


@pytest.mark.parametrize(
    "told", [{"start": {"lr": 2e-3}}, {"sampler": "random"}, {"constraints": (lambda values: values["lr"] > 2e-3,)}]
)
def test_the_middle_is_for_searches_that_know_nothing_better(told: dict[str, Any]) -> None:
    first = first_of(**told)
    assert first is not None
    assert (first.source, first.whole) == ("", False)
    assert first.values != pytest.approx({"lr": 1e-3})


@pytest.mark.parametrize(
    ("name", "range_", "largest"),
    [
        ("width", integers(16, 256, log=True), 256),
        ("model.hidden_size", choice(64, 256, 128), 256),
        ("nHidden", integers(1, 99, step=2), 99),
        ("n_units_l0", integers(4, 128), 128),
        ("width", integers(16, 100, step=32), 80),
        ("embed_dims", choice(8, 16), 16),
        ("hidden_layers", integers(1, 4), None),
        ("batch_size", choice(32, 64), None),
        ("bandwidth", integers(1, 9), None),
        ("width", uniform(0.5, 2.0), None),
        ("hidden", choice(False, True), None),
        ("hidden", choice((64, 64), (128,)), None),
    ],
)
def test_the_largest_network_is_known_by_the_name_of_its_whole_numbers(name: str, range_: Any, largest: Any) -> None:
    starts = {reason: values[name] for reason, values in centres({name: range_})}
    assert starts.get("the middle of the space with the largest network") == largest
    assert starts.keys() >= {"the middle of the space"}


def test_a_function_begins_with_the_plain_middle_and_looks_at_the_others_up_to_a_rung() -> None:
    space = {"lr": loguniform(1e-4, 1e-2), "dropout": uniform(0.0, 0.5), "beta": uniform(0.5, 0.9), "n": integers(0, 4)}
    space["width"] = integers(4, 64, log=True)
    search = function_search(lambda trial: None, space, None, 9, None, None, None)
    proposer = Proposer(search, Plan({"all": list(space)}, strategy="auto", baseline=False), "auto", ())
    made = Simulator(proposer.plan, proposer, lambda number, values: Curve([0.5] * 9)).run(decisions=4)
    assert [source for source, _ in search.starts(space)] == [
        "the middle of the space without what may be left out",
        "the middle of the space",
        "the middle of the space with the largest network",
    ]
    plain, middle, large, fourth = (trial.values for trial in made.state.trials[:4])
    assert (plain["dropout"], middle["dropout"], middle["width"], large["width"]) == (0.0, 0.25, 15, 64)
    assert middle == {**plain, "dropout": 0.25} == {**large, "width": 15}
    assert [job.until_step for job in made.decisions] == [9, 1, 1, 1]
    assert fourth not in (plain, middle, large)


def test_constraints_of_a_conditional_space_are_asked_with_what_is_present() -> None:
    space: Any = {"optimizer": choice("adamw", "sgd"), "momentum": uniform(0.0, 0.98).when("optimizer", "sgd")}
    search = function_search(lambda trial: None, space, None, 9, None, None, None)
    plan = Plan({"all": list(space)}, strategy="auto", baseline=False)
    calm = lambda values: values.get("momentum", 0.0) <= 0.9  # noqa: E731
    first = Proposer(search, plan, "auto", (calm,))(State(Path("nowhere"), search.description), 0, "all")
    assert first is not None
    assert first.values == {"optimizer": "adamw"}


def test_no_start_repeats_the_baseline() -> None:
    space: Any = {"lr": loguniform(1e-4, 1e-1), "schedule": choice("constant", "cosine", "one-cycle")}
    recipe = Recipe(schedule="cosine")
    own = {"lr": recipe.lr, "schedule": "cosine"}
    assert own in list(known_good(space, recipe))
    search = recipe_search(Task(lambda: nn.Linear(2, 2), (torch.zeros(8, 2), torch.zeros(8))), recipe, space, None, 0)
    plan = Plan({"all": list(space)}, strategy="auto")
    made = Simulator(plan, Proposer(search, plan, "auto"), lambda number, values: Curve([0.5] * 99)).run(decisions=6)
    assert made.state.trials[0].arm == "baseline"
    assert len(made.state.trials) > 3
    assert own not in [trial.values for trial in made.state.trials]
