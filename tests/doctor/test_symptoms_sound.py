"""Sound trainings that look like faults from one side: small runs, each of which one rule once took for sick."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import luthier
from luthier.doctor.symptoms import curves, data, gradients, harm, noise, regularising, schedules, underfit
from luthier.doctor.symptoms.paths import Graph
from luthier.doctor.vitals import (
    Anatomy,
    Argument,
    BatchTargets,
    Look,
    Metrics,
    Node,
    Optimizer,
    Parameter,
    Stats,
    Steps,
    Vitals,
)


class Heads(nn.Module):
    """A class and a number from one body."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.kind, self.size = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 1)

    def forward(self, x):
        h = torch.relu(self.body(x))
        return self.kind(h), self.size(h)[:, 0]


class Tagger(nn.Module):
    """Returns its own loss, of labels that it flattens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(5, 8), nn.Linear(8, 5)

    def forward(self, x, y):
        scores = self.head(self.tokens(x))
        return F.cross_entropy(scores.flatten(0, 1), y.flatten())


def symptoms(watch) -> set[str]:
    return {finding.symptom for finding in watch.diagnose().findings if finding.severity != "info"}


def step(optimizer, loss) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_numbers_beside_classes_are_no_classes():
    net = Heads()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    with luthier.watch(net, optimizer) as watch:
        for _ in range(30):
            x = torch.randn(32, 6)
            y, z = x[:, :3].argmax(1), x[:, 3]
            kind, size = net(x)
            loss = F.cross_entropy(kind, y) + F.mse_loss(size, z)
            step(optimizer, loss)
            watch.step(loss, inputs=x, targets=y)
        watch.metrics(val_accuracy=0.9)
    assert "wrong_loss" not in symptoms(watch)


def test_labels_that_the_model_itself_flattens_are_seen():
    net = Tagger()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    with luthier.watch(net, optimizer) as watch:
        for _ in range(30):
            x = torch.randint(5, (16, 7))
            loss = net(x, x.roll(1, 1))
            step(optimizer, loss)
            watch.step(loss, inputs=x, targets=x.roll(1, 1))
    assert "wrong_loss" not in symptoms(watch)


@pytest.mark.parametrize("frozen", [True, False])
def test_norms_of_a_frozen_part_rest_on_purpose(frozen):
    body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2)).eval()
    net = nn.Sequential(body, nn.Linear(16, 3))
    body.requires_grad_(not frozen)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    with luthier.watch(net, optimizer) as watch:
        for _ in range(30):
            net.train()
            body.eval()
            x = torch.randn(32, 6)
            loss = F.cross_entropy(net(x), x[:, :3].argmax(1))
            step(optimizer, loss)
            watch.step(loss)
    assert ("train_eval_slip" in symptoms(watch)) is not frozen


@pytest.mark.parametrize("masked", ["picked", "multiplied", ""])
def test_rows_that_the_loss_leaves_out_are_not_trained_on(masked):
    x = torch.randn(120, 6)
    y, train = x[:, :3].argmax(1), torch.arange(120) < 60
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    with luthier.watch(net, optimizer) as watch:
        for i in range(40):
            answers = net(x)
            loss = F.cross_entropy(answers, y)
            if masked == "picked":
                loss = F.cross_entropy(answers[train], y[train])
            elif masked:
                loss = (F.cross_entropy(answers, y, reduction="none") * train.float()).sum() / train.sum()
            step(optimizer, loss)
            watch.step(loss, inputs=x, targets=y)
            if i % 10 == 9:
                net.eval()
                with torch.no_grad():
                    right = (net(x).argmax(1) == y)[~train]
                net.train()
                watch.metrics(val_accuracy=right.double().mean())
    assert ("data_leakage" in symptoms(watch)) is (not masked)


def test_targets_that_the_training_itself_moves_are_no_order():
    states, net = torch.eye(8), nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer, slow = torch.optim.Adam(net.parameters(), lr=1e-2), copy.deepcopy(net)
    with luthier.watch(net, optimizer) as watch:
        for i in range(120):
            at = torch.randint(8, (32,))
            with torch.no_grad():
                y = (at == 7).float() + 0.9 * slow(states[(at + 1).clamp(max=7)])[:, 0] * (at < 7)
            loss = F.smooth_l1_loss(net(states[at])[:, 0], y)
            step(optimizer, loss)
            watch.step(loss, inputs=states[at], targets=y)
            if i % 10 == 9:
                slow.load_state_dict(net.state_dict())
    assert "unshuffled_data" not in symptoms(watch)
    ordered = copy.copy(watch.vitals)
    ordered.data = {**ordered.data, "repeats": {}}
    assert data.unshuffled_data(ordered), "without equal inputs of other targets an order is left"


def look(at: int, nodes: tuple[Node, ...], width: int = 1, **changes) -> Look:
    n = len(changes.get("weight", (1.0,)))
    plain = {"grad": (0.1,) * n, "weight": (1.0,) * n, "update": (1e-3,) * n, "outputs": (len(nodes) - 2,)}
    return Look(at, True, nodes=nodes, roots=(len(nodes) - 1,), **(plain | changes))


def linear(index: int, name: str, source: str) -> Node:
    return Node(
        index, "linear", name, (Argument(source, (8, 4)), Argument(f"param:{name}.weight", (4, 4))), shape=(8, 4)
    )


def steps(values: list[float]) -> Steps:
    n = len(values)
    return Steps(tuple(range(n)), tuple(values), (1e-3,) * n, (0.0,) * n, (0.0,) * n)


def test_the_losses_of_a_game_need_not_fall():
    chain = tuple(linear(i, f"{i}", f"n{i - 1}" if i else "input:0") for i in range(6))
    loss = Node(6, "mean", None, (Argument("n5", (8, 4)),))
    fading = tuple(10.0 ** (i / 2 - 3) for i in range(6))
    weights = tuple(
        Parameter(f"{i}.weight", (4, 4), "float32", 16, layer=str(i), layer_type="Linear") for i in range(6)
    )
    looks = [look(at, (*chain, loss), grad=fading, weight=(1.0,) * 6, update=(1e-3,) * 6) for at in range(6)]
    alone = Vitals(
        anatomies=[Anatomy(model_types=("Net",), parameters=weights)], looks=looks, steps=steps([1.0, 1.1] * 50)
    )
    assert gradients.vanishing_gradient(alone)
    alone.anatomies = [Anatomy(model_types=("Generator", "Critic"), parameters=weights)]
    assert gradients.vanishing_gradient(replace(alone)) == []


@pytest.mark.parametrize("loss", ["poisson_nll_loss", "mse_loss"])
def test_the_level_of_a_likelihood_does_not_tell_its_noise(loss):
    values = [2.0 - min(i, 40) / 25 + 0.5 * (-1) ** i for i in range(200)]
    node = Node(1, loss, None, (Argument("n0", (64, 1)), Argument("target", (64, 1))))
    seen = Vitals(
        looks=[look(at, (linear(0, "fc", "input:0"), node), batch_size=64) for at in range(3)],
        steps=steps(values),
        targets=[BatchTargets(at, 64, mean=0.0, std=1.3) for at in range(3)],
    )
    assert bool(curves.oscillating_loss(seen)) is (loss == "mse_loss")


@pytest.mark.parametrize("possible", [0.5, 0.9])
def test_weight_decay_hinders_only_where_there_is_more_to_learn(possible):
    values = [0.5 + 0.5 * 0.95**i for i in range(200)]
    node = Node(1, "mse_loss", None, (Argument("n0", (64, 1)), Argument("target", (64, 1))), stats=Stats(mean=0.5))
    weight = Parameter("fc.weight", (4, 4), "float32", 16, layer="fc", layer_type="Linear")
    seen = Vitals(
        anatomies=[Anatomy(model_types=("Net",), parameters=(weight,))],
        optimizers=[Optimizer(0, 0, "AdamW", groups=({"lr": 1e-3, "weight_decay": 1.0},))],
        looks=[
            look(at, (linear(0, "fc", "input:0"), node), weight=(0.996**at,), update=(1e-3,), lr=(1e-3,))
            for at in (0, 5, 20, 50, 100, 150, 199)
        ],
        steps=steps(values),
        targets=[BatchTargets(at, 64, mean=0.0, std=1.0) for at in range(3)],
        data={"features": 4.0, "learn": {"n": 400, "correlation": 0.7, "z": 14.0, "r2": possible}},
        metrics=[Metrics(199, {"val_loss": 0.5}, {"val_loss": "min"})],
    )
    assert bool(regularising.too_much_regularisation(seen)) is (possible > 0.6)
    epochs = [Metrics(at, {"val_loss": 0.5}, {"val_loss": "min"}) for at in (39, 79, 119, 159, 199)]
    for decay, found in ((1.0, possible > 0.6), (100.0, True)):  # one epoch of 40 steps: all is forgotten in 10 of them
        adam = Optimizer(0, 0, "AdamW", groups=({"lr": 1e-3, "weight_decay": decay},))
        assert bool(regularising.too_much_regularisation(replace(seen, optimizers=[adam], metrics=epochs))) is found


@pytest.mark.parametrize("beside", [True, False])
def test_an_expert_of_one_unit_beside_others_is_no_bottleneck(beside):
    wide = Parameter("out.weight", (4, 4), "float32", 16, layer="out", layer_type="Linear")
    thin = Parameter("thin.weight", (1, 4), "float32", 4, layer="thin", layer_type="Linear")
    add = (Argument("n0", (8, 1)), *([Argument("input:0", (8, 4))] if beside else []))
    nodes = (linear(0, "thin", "input:0"), Node(1, "add", "", add), linear(2, "out", "n1"), Node(3, "mse_loss"))
    seen = Vitals(anatomies=[Anatomy(parameters=(thin, wide))], looks=[look(0, nodes, weight=(1.0, 1.0))])
    assert bool(underfit._bottleneck(seen)) is not beside


@pytest.mark.parametrize("chased", ["n0", "target"])
def test_a_term_between_two_answers_may_rise(chased):
    values = [1.0, 1.0, 1.0, *[2.0] * 10, *[0.3] * 60]
    calls = Node(1, "mse_loss", None, (Argument("n0", (8, 4)), Argument(chased, (8, 4))), requires_grad=True)
    seen = Vitals(looks=[look(0, (linear(0, "fc", "input:0"), calls))], steps=steps(values))
    assert ("shot up" in harm.harm(seen)) is (chased == "target")


def test_two_losses_keep_their_targets_apart():
    whole, real = Stats(n=8, min=0, max=2, integral=True), Stats(n=8, min=-1.5, max=2.0, integral=False)
    one = Node(0, "cross_entropy", None, (Argument("n9", (8, 3)), Argument("target", (8,), "int64", stats=whole)))
    other = Node(1, "mse_loss", None, (Argument("n9", (8,)), Argument("target", (8,), "float32", stats=real)))
    graph = Graph.of([look(0, (one, other))])
    assert graph.numbers_of(other.arguments[1]) == [real]
    assert graph.numbers_of(one.arguments[1]) == [whole]


@pytest.mark.parametrize(("end", "noisy"), [(0.02, False), (0.6, True)])
def test_changing_labels_that_the_net_foretells_are_no_noise(end, noisy):
    seen = Vitals(
        steps=steps([end + (1.1 - end) * 0.9**i for i in range(100)]),
        targets=[BatchTargets(at, 15, {"0": 5, "1": 5, "2": 5}) for at in range(5)],
        looks=[look(0, (linear(0, "fc", "input:0"), Node(1, "cross_entropy", None, (Argument("n0", (8, 3)),))))],
        data={
            "learn": {"n": 400, "correlation": 0.7, "z": 14.0, "accuracy": 0.8},
            "repeats": {"conflict": 0.5, "pairs": 200, "twins": 0.0},
        },
    )
    found = noise.label_noise(seen)
    assert bool(found) is noisy


@pytest.mark.parametrize(("update", "severity"), [(1e-2, "info"), (1e-5, "warning")])
def test_adam_does_not_mind_a_clipped_gradient_while_its_steps_are_whole(update, severity):
    nodes = (
        linear(0, "fc", "input:0"),
        Node(1, "mse_loss", None, (Argument("n0", (8, 4)), Argument("target", (8, 4)))),
    )
    weight = Parameter("fc.weight", (4, 4), "float32", 16, layer="fc", layer_type="Linear")
    sizes = {at: {"grad_before_clip": (200.0 + 9 * at,), "grad": (1.0,), "update": (update,)} for at in range(6)}
    seen = Vitals(
        anatomies=[Anatomy(parameters=(weight,))],
        optimizers=[Optimizer(0, 0, "Adam", groups=({"lr": 1e-3},))],
        looks=[look(at, nodes, **changes) for at, changes in sizes.items()],
        steps=steps([1.0] * 6),
    )
    assert [finding.severity for finding in schedules.grad_clip_too_small(seen)] == [severity]


@pytest.mark.parametrize("size", [16, 512])
def test_large_batches_take_their_time_to_gather(size):
    n = 40
    waits = Steps(tuple(range(n)), (1.0,) * n, (1e-3,) * n, (8e-3,) * n, (2e-3,) * n)
    seen = Vitals(steps=waits, looks=[look(0, (linear(0, "fc", "input:0"), Node(1, "mean")), batch_size=size)])
    assert bool(schedules.input_bottleneck(seen)) is (size == 16)
