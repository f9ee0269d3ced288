"""eject with what users write around their networks: names, imports, decorators, printing, odd paths."""

import re
import subprocess
import sys

import pytest

from luthier.cli import main
from luthier.ejecting.eject import eject
from luthier.ejecting.sources import EjectError
from luthier.errors import LuthierError
from luthier.fitting import fit
from luthier.recipe import Recipe
from luthier.tasks import load

HEAD = """
import torch
from torch import nn
from torch.nn import functional as F
from luthier import Task

def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(150, 8, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
"""
NET = """
class MyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b, self.c = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 3)
        {more}
    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.n(self.a(x))))))

def make():
    return Task(MyNet, data(), val=0.2, name='t', {task})
"""
DICT = """
class MyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.m = nn.ModuleDict({"in": nn.Linear(8, 8), "my-act": nn.ReLU(), "2": nn.ReLU(), "out": nn.Linear(8, 3)})
    def forward(self, x):
        m = self.m
        return m["out"](m["2"](m["my-act"](m["in"](x))))

def make():
    return Task(MyNet, data(), val=0.2, name='t')
"""
NESTED = """
def build():
    class MyNet(nn.Sequential):
        '''Two layers,
as many as that.
'''
        def __init__(self):
            super().__init__(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    return MyNet()

if True:
    def inner():
        '''Flush
left.'''
        return nn.Linear(8, 3)

def make():
    return Task(inner, data(), val=0.2, name='t')
"""
COMMON = """
import torch
from torch import nn
from luthier import Recipe, Task

def augment(images):
    return images + 0.1 * torch.randn_like(images)

def build_model(width=4):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.Softplus(), nn.Flatten(), nn.Linear(width * 12, 3))

def task():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(150, 1, 4, 8, generator=generator)
    data = x, (x[:, 0, 0, 0] > 0).long() + (x[:, 0, 1, 1] > 0).long()
    return Task(build_model, data, val=0.2, name='t')

def make():
    return task(), Recipe(epochs=3, batch_size=16, device='cpu', augment=augment)
"""


def net(more="pass", task="", before=""):
    return before + HEAD + NET.format(more=more, task=task)


DECORATED = """
@torch.autocast('cpu', enabled=False)
def wrapped(outputs, targets):
    return F.cross_entropy(outputs, targets)
"""
LOSS = """
def my_loss(outputs, targets) -> Optional[float]:
    return F.cross_entropy(outputs, targets) * Head.scale
"""

RUNS = {
    "tied weights, buffers and averages": (net("self.b.weight = self.a.weight"), {"averaging": "swa", "lr": 0.01}),
    "tied weights and a moving average": (net("self.b.weight = self.a.weight"), {"averaging": "ema", "lr": 0.01}),
    "the module's own name": (net("self.log = __import__('logging').getLogger(__name__)"), {}),
    "annotations and a file beside it": (
        net(task="loss=my_loss", before="from typing import Optional\nfrom blocks import Head\n").replace(
            "\nclass", LOSS + "\nclass"
        ),
        {},
    ),
    "a submodule": (
        net("self.k = xml.dom.minidom.Node.ELEMENT_NODE", before="import xml.dom.minidom\n"),
        {},
    ),
    "a decorated loss": (
        net(task="loss=wrapped").replace(
            "\nclass",
            "\n@torch.autocast('cpu', enabled=False)\ndef wrapped(o, t):\n    return F.cross_entropy(o, t)\n\nclass",
        ),
        {},
    ),
    "names that are none": (HEAD + DICT, {"activation": "gelu"}),
    "a docstring at the left": (HEAD + NESTED, {}),
    'a folder \\new\\Ux """ \U0001f600': (net(), {}),
}
RUNNER = """
import runpy, sys
sys.modules["luthier"] = None
script = sys.argv.pop()
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(autouse=True)
def no_blocks_of_another_test(monkeypatch):
    monkeypatch.delitem(sys.modules, "blocks", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("blocks", None)


def trained(folder, text, **values):
    """A record and its task, which is in a file of the folder."""
    folder.mkdir()
    (folder / "blocks.py").write_text("class Head:\n    scale = 2.0\n")
    (folder / "own.py").write_text(text)
    sys.path.insert(0, str(folder))
    task = load(f"{folder / 'own.py'}:make").task
    recipe = Recipe(**{"epochs": 3, "batch_size": 16, "device": "cpu", **values})
    return fit(task, recipe, folder=folder / "run", console=False, tensorboard=False, watch=False), task


@pytest.mark.parametrize("name", RUNS)
def test_a_script_runs_alone_and_gives_the_same(name, tmp_path):
    text, values = RUNS[name]
    folder = tmp_path / (name if "folder" in name else "own")
    record, task = trained(folder, text, **values)
    script = tmp_path / "train.py"
    script.write_text(eject(record, task, data=folder / "data.npz"))
    (neutral := tmp_path / "neutral").mkdir()
    command = [sys.executable, "-I", "-c", RUNNER, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=neutral)
    assert done.returncode == 0, done.stderr[-2000:]
    _same_losses(record, done)


def test_names_that_are_common_and_an_augmentation_from_the_task_s_file(tmp_path):
    (tmp_path / "own.py").write_text(COMMON)
    subject = load(f"{tmp_path / 'own.py'}:make")
    record = fit(subject.task, subject.recipe, folder=tmp_path / "run", console=False, tensorboard=False, watch=False)
    with pytest.raises(EjectError, match=r"the name of 'augment' only: give the task by a function"):
        eject(tmp_path / "run", f"{tmp_path / 'own.py'}:task", data=tmp_path / "data.npz")
    script = tmp_path / "train.py"
    script.write_text(eject(tmp_path / "run", f"{tmp_path / 'own.py'}:make", data=tmp_path / "data.npz"))
    command = [sys.executable, "-I", "-c", RUNNER, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    _same_losses(record, done)
    (tmp_path / "own.py").write_text(COMMON.replace("0.1", "0.2"))
    with pytest.raises(LuthierError, match="'augment' is not the one that the recipe was made with"):
        eject(tmp_path / "run", f"{tmp_path / 'own.py'}:make", data=tmp_path / "data.npz")


def _same_losses(record, done):
    losses = [row["val_loss"] for row in record.rows]
    told = [float(found) for found in re.findall(r"val_loss[ =:]+([\d.e-]+)", done.stdout)]
    assert len(told) == 3, done.stdout
    assert told == pytest.approx(losses, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (net("from luthier.nets import MLP; self.c = MLP(8, 3)"), "imports luthier.nets in its body"),
        (net("self.where = __file__"), "refers to __file__, which is another one in a script"),
    ],
)
def test_what_would_not_run_alone_is_refused(text, said, tmp_path):
    record, task = trained(tmp_path / "own", text)
    with pytest.raises(EjectError, match=re.escape(said)):
        eject(record, task, data=tmp_path / "data.npz")


def test_data_go_to_a_file(tmp_path):
    record, task = trained(tmp_path / "own", net())
    with pytest.raises(EjectError, match=r"cannot be written to .*own \(Is a directory\): give the name of a file"):
        eject(record, task, data=tmp_path / "own")


def test_what_a_task_prints_is_no_part_of_the_script(tmp_path, capsys):
    record, _ = trained(tmp_path / "own", net(before="print('loading data')\n"))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main(
            [
                "eject",
                str(record.path),
                "--task",
                f"{tmp_path / 'own' / 'own.py'}:make",
                "--data",
                str(tmp_path / "d.npz"),
            ]
        )
    told = capsys.readouterr()
    assert told.out.startswith('"""Trains t as recorded')
    assert "loading data" in told.err
