"""eject: the script trains to the identical losses, where Luthier cannot be imported."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from luthier import nets
from luthier.ejecting.eject import eject
from luthier.fitting import fit
from luthier.recipe import Recipe
from luthier.task import Task

RUNNER = """
import json, runpy, sys
sys.modules["luthier"] = None  # importing it raises ImportError
rows = {}
for script in sys.argv[1:]:
    try:
        rows[script] = runpy.run_path(script)["train"]()
    except Exception as error:
        rows[script] = f"{type(error).__name__}: {error}"
assert not [name for name in sys.modules if name.startswith("luthier.")]
print(json.dumps(rows))
"""


def points(n=150, features=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return y[:, None] * 0.7 + torch.randn(n, features, generator=generator), y


def images(n=120, channels=1, seed=0):
    """Bytes [n, channels, 12, 12]: a bright square at one of three places."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randint(120, (n, channels, 12, 12), generator=generator, dtype=torch.uint8), torch.arange(n) % 3
    for i, place in enumerate(y.tolist()):
        x[i, :, 4 * place : 4 * place + 4, 3:9] += 100
    return x, y


def tokens(n=90, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(1, 20, (n, 9), generator=generator)
    x[torch.arange(9) >= torch.randint(3, 10, (n, 1), generator=generator)] = 0
    return x, (x == 7).any(1).long()


def numbers(n=120, seed=0):
    x, _ = points(n, seed=seed)
    return x, (x[:, :1] * x[:, 1:2]).sin()


class Branches(nn.Module):
    """A network of a user's own."""

    def __init__(self, features=6, width=8, classes=3):
        super().__init__()
        self.left, self.right = nn.Linear(features, width), nn.Linear(features, width)
        self.act = nn.ReLU()
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, classes))
        scaled(self.head[0].weight)

    def forward(self, x):
        return self.head(self.act(self.left(x)) + self.right(x) / math.sqrt(WIDTH))


WIDTH = 3.0


def scaled(weight):
    nn.init.xavier_normal_(weight, gain=0.5)


def calls_functions(width=8):
    return FunctionNet(width)


class FunctionNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.second(F.relu(self.first(x)))


def squared(outputs, targets):
    return (outputs - targets).square().mean()


def mlp(width=8, depth=2, **others):
    return nets.MLP(6, 3, width=width, depth=depth, **others)


def cnn(width=4, depth=2, **others):
    return nets.CNN((1, 12, 12), 3, width=width, depth=depth, **others)


def on_points(model=mlp, **others):
    return Task(model, points(), val=0.3, name="points", **others)


def on_images(model=cnn, channels=1, **others):
    return Task(model, images(channels=channels), val=0.3, normalize=True, name="images", **others)


def resnet(**others):
    return nets.ResNet((3, 12, 12), 3, width=4, depth=1, stages=2, **others)


def gru(**others):
    return nets.RNN(20, 2, embedding=6, hidden=5, **others)


def regressor():
    return nets.MLP(6, 1, width=8)


SHORT = {"epochs": 3, "batch_size": 16}
RUNS = {
    "defaults": (on_points, {}),
    "sgd one-cycle dropout clip": (
        on_points,
        {"optimizer": "sgd", "lr": 0.1, "schedule": "one-cycle", "dropout": 0.2, "clip_norm": 1.0},
    ),
    "adamw cosine warm-up decay smoothing": (
        on_points,
        {"schedule": "cosine", "warmup_frac": 0.2, "weight_decay": 0.05, "label_smoothing": 0.1},
    ),
    "batch norm by surgery ema": (on_points, {"norm": "batch", "averaging": "ema", "activation": "gelu"}),
    "mixup l1 clip_value": (on_points, {"mixup": 0.4, "l1": 1e-3, "clip_value": 0.1, "weight_decay": 0.01}),
    "swa plateau stopping": (
        on_points,
        {
            "averaging": {"name": "swa", "start_frac": 0.4},
            "norm": "batch",
            "schedule": {"name": "plateau", "patience": 0},
            "early_stopping": 2,
            "epochs": 8,
            "lr": 0.03,
        },
    ),
    "stopping by min_delta": (
        on_points,
        {"early_stopping": {"name": "patience", "patience": 1, "min_delta": 0.05}, "epochs": 8, "lr": 0.03},
    ),
    "decoupled sgd growing batches": (
        on_points,
        {
            "optimizer": "sgd",
            "weight_decay": 0.1,
            "decoupled": True,
            "schedule": "cyclic",
            "batch_growth": {"name": "grow", "every": 1, "maximum": 50},
        },
    ),
    "adam L2 accumulation step": (
        on_points,
        {"optimizer": "adamw", "decoupled": False, "weight_decay": 0.1, "accumulate": 3, "schedule": "step"},
    ),
    "kaiming zero_last rmsprop": (
        on_points,
        {"init": "kaiming", "zero_last": True, "optimizer": "rmsprop", "schedule": "multi-step", "seed": 7},
    ),
    "orthogonal everything decays nadam": (
        on_points,
        {"init": "orthogonal", "optimizer": "nadam", "weight_decay": 0.1, "decay_norms_and_biases": True},
    ),
    "cnn augmented": (
        on_images,
        {"augment": ["flip", {"name": "crop", "padding": 1}, "affine", "erase", "cutout", "color-jitter"]},
    ),
    "cnn xavier norm cutmix": (on_images, {"init": "xavier", "norm": "group", "cutmix": 1.0, "dropout": 0.1}),
    "cnn both mixes swa": (
        on_images,
        {
            "mixup": 0.3,
            "cutmix": 1.0,
            "averaging": {"name": "swa", "every": "step"},
            "norm": "batch",
            "model": {"pool": "avg"},
        },
    ),
    "cnn channels_last bfloat16": (
        on_images,
        {"memory_format": "channels_last", "precision": "bfloat16", "optimizer": "sgd", "lr": 0.05, "augment": "flip"},
    ),
    "resnet": (
        lambda: on_images(resnet, 3),
        {"schedule": "polynomial", "weight_decay": 5e-4, "optimizer": "sgd", "dropout": 0.1, "norm": "group"},
    ),
    "gru max": (lambda: Task(gru, tokens(), val=0.3), {"model": {"cell": "gru", "pool": "max"}, "dropout": 0.3}),
    "lstm last": (lambda: Task(gru, tokens(), val=0.3), {"model": {"depth": 2, "dropout": 0.2}}),
    "rnn mean": (lambda: Task(gru, tokens(), val=0.3), {"model": {"cell": "rnn", "pool": "mean"}, "init": "torch"}),
    "regression": (
        lambda: Task(regressor, numbers(), val=0.3, loss="mse", normalize=True),
        {"optimizer": "radam", "schedule": "exponential"},
    ),
    "own loss r2": (
        lambda: Task(regressor, numbers(), val=0.3, loss=squared, metric="r2"),
        {"optimizer": "adagrad", "schedule": "cosine-restarts"},
    ),
    "own network": (lambda: on_points(Branches), {"model": {"width": 5}, "optimizer": "adadelta", "lr": 1.0}),
    "own network operated on": (
        lambda: on_points(Branches),
        {"dropout": 0.4, "activation": "silu", "norm": "layer", "init": "kaiming"},
    ),
    "sequential from a lambda": (
        lambda: on_points(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), metric="loss"),
        {"optimizer": "adam", "deterministic": True},
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every run: its record, its script, and what the script gives in a process without Luthier."""
    home = tmp_path_factory.mktemp("runs")
    records, scripts, quiet = {}, {}, {"console": False, "tensorboard": False}
    for number, (name, (make, values)) in enumerate(RUNS.items()):
        task, folder = make(), home / f"{number}"
        watched = number < 3  # the rest without the doctor, to save time
        records[name] = fit(task, Recipe(**{**SHORT, **values}), folder=folder, watch=watched, **quiet)
        scripts[name] = folder / "train.py"
        scripts[name].write_text(eject(folder, task, data=folder / "data.npz"))
    command = [sys.executable, "-W", "error", "-c", RUNNER, *map(str, scripts.values())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    return {name: (records[name], scripts[name], rows[str(scripts[name])]) for name in RUNS}


@pytest.mark.parametrize("name", RUNS)
def test_the_script_gives_the_identical_numbers_of_every_epoch(name, runs):
    record, _, rows = runs[name]
    assert isinstance(rows, list), rows
    names = rows[0]
    expected = [{key: row[key] for key in names} for row in record.rows]
    assert rows == expected
    assert f"val_{record.task['metric']}" in names


def test_scripts_are_formatted_and_clean(runs):
    ruff = Path(sys.executable).with_name("ruff")
    files = [str(script) for _, script, _ in runs.values()]
    rules = ["--isolated", "--line-length", "120"]
    formatted = subprocess.run([ruff, "format", "--diff", *rules, *files], capture_output=True, text=True)
    assert formatted.returncode == 0, formatted.stdout
    checked = subprocess.run([ruff, "check", *rules, "--select", "E,F,W,I,B", *files], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
