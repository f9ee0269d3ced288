"""The examination before a long training."""

import json

import pytest
import torch
from torch import nn

import luthier
from luthier.cli import main
from luthier.doctor.checkup.organs import ORGANS
from luthier.errors import LuthierError


class Softmaxed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, x):
        return self.layers(x).softmax(1)


def plain():
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))


def data(n=400, seed=0, shuffled=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=generator)
    y = (x[:, :3] + 0.1 * torch.randn(n, 3, generator=generator)).argmax(1)
    return x, y[torch.randperm(n, generator=generator)] if shuffled else y


RECIPE = luthier.Recipe(optimizer="adam", lr=3e-3, epochs=20, batch_size=32)


@pytest.fixture(scope="module")
def healthy():
    return luthier.check(luthier.Task(plain, data(), val=data(seed=1), name="three"), RECIPE)


def test_a_healthy_task_is_green(healthy):
    assert {organ.name: organ.state for organ in healthy.organs if organ.state != "green"} == {}
    assert [organ.name for organ in healthy.organs] == list(ORGANS)
    assert healthy.is_healthy
    assert 1e-4 < healthy.suggested["lr"] < 1
    assert healthy.took_s < 60


def test_the_card_is_plain_data_and_plain_text(healthy):
    row = json.loads(json.dumps(healthy.to_dict()))
    assert row["worst"] == "green"
    assert len(row["organs"]) == len(str(healthy).splitlines()) - 1
    with pytest.raises(LuthierError, match="learning rate"):
        healthy["learning rates"]


def test_each_fault_turns_its_organ():
    x, y = data()
    cases = {
        "loss": luthier.Task(Softmaxed, (x, y), val=data(seed=1)),
        "split": luthier.Task(plain, (x, y), val=(x[:100], y[:100])),
        "labels matter": luthier.Task(plain, data(shuffled=True), val=data(seed=1, shuffled=True)),
        "inputs": luthier.Task(plain, (x * 1000 + 5000, y), val=(x * 1000 + 5000, y)),
    }
    for organ, task in cases.items():
        assert luthier.check(task, RECIPE)[organ].state in ("amber", "red"), organ


def test_a_learning_rate_beyond_divergence_is_red():
    recipe = luthier.Recipe(optimizer="sgd", lr=1000.0, epochs=20, batch_size=32)
    card = luthier.check(luthier.Task(plain, data(), val=data(seed=1)), recipe)
    assert card.worst == "red"


def test_what_does_not_fit_into_the_time_could_not_be_looked_at():
    card = luthier.check(luthier.Task(plain, data(), val=data(seed=1)), RECIPE, limit_s=1e-6)
    assert card["one batch"].state == "could not look"
    assert "limit_s" in card["one batch"].reason


def test_test_data_stay_sealed():
    task = luthier.Task(plain, data(), val=data(seed=1), test=data(seed=2))
    luthier.check(task, RECIPE)
    assert task.test.open("afterwards") is not None


@pytest.mark.parametrize(("given", "words"), [(("mnist",), "luthier.Task"), (None, "limit_s")])
def test_wrong_use_is_told(given, words):
    with pytest.raises(LuthierError, match=words):
        luthier.check(*given) if given else luthier.check(luthier.Task(plain, data()), RECIPE, limit_s=0)


def run(*tokens):
    with pytest.raises(SystemExit) as left:
        main(list(tokens))
    return left.value.code


def test_the_command_prints_the_card_and_fails_on_demand(capsys):
    assert run("check", "digits", "--json") == 0
    card = json.loads(capsys.readouterr().out)
    assert card["worst"] in ("green", "amber")
    assert run("check", "digits", "--lr", "1000", "--optimizer", "sgd", "--fail-on", "critical") == 1
    assert "learning rate" in capsys.readouterr().out
