"""eject: the script trains to the identical losses, where Luthier cannot be imported."""

import itertools
import json
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from luthier import nets
from luthier.cli import main
from luthier.data.dataset import checksum
from luthier.data.fetching import Fetched
from luthier.data.sets import DATA_SETS, load
from luthier.ejecting.eject import eject
from luthier.ejecting.sources import EjectError
from luthier.fitting import fit
from luthier.recipe import Recipe
from luthier.task import Step, Task
from luthier.tuning.space import choice
from luthier.tuning.tune import tune

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


def by_scripts(home, scripts):
    """What the scripts give in a process that cannot import Luthier."""
    command = [sys.executable, "-W", "error", "-c", RUNNER, *map(str, scripts.values())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    return {name: rows[str(script)] for name, script in scripts.items()}


def complaints(files):
    """What ruff finds to change."""
    ruff, rules = Path(sys.executable).with_name("ruff"), ["--isolated", "--line-length", "120"]
    formatted = subprocess.run([ruff, "format", "--diff", *rules, *files], capture_output=True, text=True).stdout
    checks = [ruff, "check", "--quiet", *rules, "--select", "E,F,W,I,B", *files]
    return formatted + subprocess.run(checks, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_scripts_give_the_identical_numbers_of_every_epoch(tmp_path):
    expected, scripts = {}, {}
    for number, (name, (make, values)) in enumerate(RUNS.items()):
        task, folder, watched = make(), tmp_path / f"{number}", number < 3  # the rest without the doctor, to save time
        recipe = Recipe(**{**SHORT, **values})
        record = fit(task, recipe, folder=folder, watch=watched, console=False, tensorboard=False)
        metrics = dict.fromkeys(["train_loss", "val_loss", f"val_{task.metric.name}"])
        expected[name] = [{metric: row[metric] for metric in metrics} for row in record.rows]
        scripts[name] = folder / "train.py"
        scripts[name].write_text(eject(folder, task, data=folder / "data.npz"))
    got = by_scripts(tmp_path, scripts)
    assert {name: got[name] for name in RUNS if got[name] != expected[name]} == {}
    assert complaints(scripts.values()) == ""


def trained(tmp_path, task, **values):
    recipe = Recipe(**{**SHORT, "epochs": 1, **values})
    return fit(task, recipe, folder=tmp_path / "run", console=False, tensorboard=False, watch=False)


def two_inputs(model, batch):
    x, y = batch
    loss = F.cross_entropy(model(x), y)
    return Step(loss, model(x), y, len(y))


def gated():
    class Hidden(nn.Linear):
        def forward(self, x):
            return super().forward(x).tanh() * GATE

    return Hidden(6, 3)


GATE = torch.ones(())


def named_like_the_script():
    return batches()


def batches():
    return nn.Sequential(nn.Linear(6, 3), nn.Softplus())


def draws_anew():
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.weight.fill_(next(COUNT))
    return model


COUNT = itertools.count()


@pytest.mark.parametrize(
    ("make", "values", "said"),
    [
        (lambda: on_points(step=two_inputs), {}, "the task has a step of its own"),
        (on_points, {"optimizer": "muon", "model": {"depth": 3}}, "recipe field optimizer='muon'"),
        (on_points, {"schedule": lambda progress: 1.0}, "recipe field schedule='custom' is a function of your own"),
        (on_images, {"augment": "rand-augment"}, "recipe field augment='rand-augment'"),
        (lambda: Task(gru, tokens(), val=0.3), {"init": "kaiming"}, "recipe field init='kaiming'"),
        (lambda: on_points(gated), {}, "refers to GATE"),
        (lambda: on_points(calls_functions), {"activation": "gelu"}, "make these functions modules"),
        (lambda: on_points(named_like_the_script), {}, "both have something called 'batches'"),
        (lambda: on_points(draws_anew), {}, "refers to COUNT"),
        (lambda: on_points(loss=nn.CrossEntropyLoss(torch.ones(3))), {}, "the task's loss is an object"),
        (lambda: Task(mlp, DataLoader(TensorDataset(*points())), val=points(seed=1)), {}, "train data are DataLoader"),
    ],
)
def test_what_no_script_can_hold_is_refused_with_its_name(make, values, said, tmp_path):
    task = make()
    record = trained(tmp_path, task, **values)
    with pytest.raises(EjectError, match=re.escape(said)):
        eject(record, task, data=tmp_path / "data.npz")


def test_the_task_must_be_known_and_the_one_that_was_trained(tmp_path):
    record = trained(tmp_path, on_points())
    with pytest.raises(EjectError, match="'points', which is not built in: give it, --task"):
        eject(record)
    with pytest.raises(EjectError, match=r"trained another task \(model, model_source differ\)"):
        eject(record, on_points(Branches))
    with pytest.raises(EjectError, match=r"not the files of a built-in data set: give a file .* --data"):
        eject(record, on_points())
    with pytest.raises(EjectError, match="one training and has no trial 3"):
        eject(record, on_points(), trial=3)
    with pytest.raises(EjectError, match=r"no folder .*nothing"):
        eject(tmp_path / "nothing")


def test_built_in_data_are_read_from_the_cache_and_split_again(tmp_path, monkeypatch):
    x, y = images(200)
    arrays = {"train_inputs": x, "train_targets": y, "test_inputs": x[:9], "test_targets": y[:9]}
    arrays = {name: tensor.numpy() for name, tensor in arrays.items()}
    source = Fetched(name="toy", checksum=checksum(arrays), decode=lambda _: arrays, sources=(NoFiles(),), files=())
    monkeypatch.setitem(DATA_SETS, "toy", source)
    monkeypatch.setenv("LUTHIER_DATA", str(tmp_path))
    task = Task(cnn, load("toy").train, val=0.2, name="toy")
    script = eject(trained(tmp_path, task), task)  # compares what load_data gives with the task's data
    assert f'DATA = "{tmp_path / "toy"}"' in script
    counts = task.val[1].bincount().tolist()
    assert f"VAL_COUNTS = ({', '.join(map(str, counts))})" in script


class NoFiles:
    def fetch(self, folder):
        pass


TASK_FILE = """
import torch
from luthier import Recipe, Task

def task():
    x = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] + x[:, 1] > 0).long()
    def net(width=8):
        return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))
    return Task(net, (x, y), val=0.25, name="mine"), Recipe(lr=0.01, batch_size=16, epochs=3)
"""


@pytest.mark.slow
def test_the_command_writes_the_winner_of_a_study(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(TASK_FILE)
    space = {"lr": choice(0.003, 0.03), "model.width": choice(4, 16)}
    study = tune("mine.py:task", space=space, trials=3, workers=1, repeats=1, folder="study", sampler="random")
    assert study.best is not None
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main(["eject", "study", "--data", "data.npz"])
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"Run: the best one, trial {study.best.number} of the study study, seed 0" in captured.out
    Path("train.py").write_text(captured.out)
    rows = runpy.run_path("train.py")["train"]()
    trained_rows = [row for row in study.best.rows if row["kind"] == "epoch"]
    assert [row["val_loss"] for row in rows] == [row["val_loss"] for row in trained_rows]
    with pytest.raises(SystemExit, match="2"):
        main(["eject", "study", "--data", "data.npz", "--trial", "99"])
    assert "has trials 0 to" in capsys.readouterr().err
