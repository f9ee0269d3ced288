import copy
import json
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from luthier.errors import LuthierError
from luthier.training.optimizers import (
    OPTIMIZERS,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    AdamW,
    Muon,
    NAdam,
    OptimizerChoice,
    OptimizerPart,
    RAdam,
    RMSprop,
    build_optimizer,
    set_lr,
)

STEPS = 20


class Holder(BaseModel):
    optimizer: OptimizerChoice


def net(channels_last: bool = False) -> nn.Module:
    """A convolution, a norm, two matrices: every kind of parameter.

    No bias before the norm: its gradient is rounding noise alone, which Adam would blow up.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 6),
        nn.Tanh(),
        nn.Linear(6, 2),
    )
    return model.to(memory_format=torch.channels_last) if channels_last else model  # type: ignore[call-overload]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = STEPS, first: int = 0) -> nn.Module:
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 3, 5, 5, generator=generator), torch.randn(8, 2, generator=generator)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    return model


def distance(a: nn.Module, b: nn.Module) -> float:
    return max(float((p - q).detach().abs().max()) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def split(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    exempt = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]


# Our part, torch's class with its settings, lr.
PAIRS: list[tuple[OptimizerPart, type[torch.optim.Optimizer], dict[str, Any], float]] = [
    (SGD(momentum=0), torch.optim.SGD, {}, 0.1),
    (SGD(), torch.optim.SGD, {"momentum": 0.9}, 0.05),
    (SGD(nesterov=True), torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, 0.05),
    (SGD(momentum=0.8, dampening=0.3), torch.optim.SGD, {"momentum": 0.8, "dampening": 0.3}, 0.05),
    (Adam(), torch.optim.Adam, {}, 1e-2),
    (Adam(betas=(0.8, 0.9), eps=1e-4), torch.optim.Adam, {"betas": (0.8, 0.9), "eps": 1e-4}, 1e-2),
    (Adam(amsgrad=True), torch.optim.Adam, {"amsgrad": True}, 1e-2),
    (AdamW(), torch.optim.AdamW, {}, 1e-2),
    (AdamW(amsgrad=True), torch.optim.AdamW, {"amsgrad": True}, 1e-2),
    (RMSprop(), torch.optim.RMSprop, {}, 1e-3),
    (RMSprop(alpha=0.9, momentum=0.5), torch.optim.RMSprop, {"alpha": 0.9, "momentum": 0.5}, 1e-3),
    (RMSprop(centered=True, eps=1e-3), torch.optim.RMSprop, {"centered": True, "eps": 1e-3}, 1e-3),
    (Adadelta(rho=0.8), torch.optim.Adadelta, {"rho": 0.8}, 1.0),
    (Adagrad(lr_decay=0.1), torch.optim.Adagrad, {"lr_decay": 0.1}, 0.05),
    (Adagrad(initial_accumulator_value=0.01), torch.optim.Adagrad, {"initial_accumulator_value": 0.01}, 0.05),
    (NAdam(momentum_decay=0.01), torch.optim.NAdam, {"momentum_decay": 0.01}, 1e-2),
    (RAdam(), torch.optim.RAdam, {}, 1e-2),
]


def label(x: object) -> str:
    return repr(x) if isinstance(x, OptimizerPart) else ""


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("part", "reference", "settings", "lr"), PAIRS, ids=lambda x: repr(x) if isinstance(x, OptimizerPart) else ""
)
def test_equals_torch(part: OptimizerPart, reference: Any, settings: Any, lr: float, weight_decay: float) -> None:
    ours, theirs = net(), net()
    train(ours, build_optimizer(ours, part, lr=lr, weight_decay=weight_decay))
    train(theirs, reference(split(theirs, weight_decay), lr=lr, **settings, foreach=False))
    assert distance(ours, net()) > 1e-3  # it did train
    assert distance(ours, theirs) < 2e-6


def test_every_optimizer_but_muon_is_compared_with_torch() -> None:
    assert {part.name for part, *_ in PAIRS} == set(OPTIMIZERS) - {"muon"}


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_muon_is_torchs_muon_on_hidden_matrices_and_adamw_on_the_rest(adjust: Any) -> None:
    ours, theirs = net(), net()
    part = Muon(adjust_lr=adjust, adamw_lr_factor=0.5)
    optimizer = build_optimizer(ours, part, lr=0.02, weight_decay=0.1)
    assert [(group["kind"], group["decayed"], len(group["params"])) for group in optimizer.param_groups] == [
        ("muon", True, 1),
        ("adamw", True, 2),
        ("adamw", False, 4),
    ]
    train(ours, optimizer)

    hidden = [theirs[4].weight]  # type: ignore[index]
    groups = [dict(g, params=[p for p in g["params"] if p is not hidden[0]]) for g in split(theirs, 0.1)]
    muon = torch.optim.Muon(hidden, lr=0.02, weight_decay=0.1, adjust_lr_fn=adjust)
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))
    for step in range(STEPS):
        adamw.zero_grad()
        muon.zero_grad()
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 3, 5, 5, generator=generator), torch.randn(8, 2, generator=generator)
        (theirs(x) - y).square().mean().backward()
        muon.step()  # type: ignore[no-untyped-call]
        adamw.step()
    assert distance(ours, theirs) < 1e-4  # Newton-Schulz runs in bfloat16


def test_muon_keeps_out_embeddings_norms_and_output() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm((3, 4)), nn.Linear(4, 4), nn.LSTM(4, 4), nn.Linear(4, 2))
    muon = build_optimizer(model, Muon(), lr=0.1).param_groups[0]
    lstm = model[3]
    assert isinstance(lstm, nn.LSTM)
    assert {id(p) for p in muon["params"]} == {id(p) for p in (model[2].weight, lstm.weight_ih_l0, lstm.weight_hh_l0)}
    with pytest.raises(LuthierError, match="muon needs a trainable hidden 2-D weight, got 1"):
        build_optimizer(nn.Linear(3, 2), Muon(), lr=0.1)


def test_decoupled_sgd_equals_a_hand_written_loop() -> None:
    ours, theirs = net(), net()
    train(ours, build_optimizer(ours, SGD(momentum=0.9), lr=0.05, weight_decay=0.2, decoupled=True))
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9)

    def decay(*_: Any) -> None:
        with torch.no_grad():
            for p in theirs.parameters():
                if p.ndim > 1:
                    p.mul_(1 - 0.05 * 0.2)

    sgd.register_step_pre_hook(decay)
    train(theirs, sgd)
    assert distance(ours, theirs) < 1e-6


def test_l2_adamw_is_adam() -> None:
    ours, theirs = net(), net()
    train(ours, build_optimizer(ours, AdamW(), lr=0.01, weight_decay=0.2, decoupled=False))
    train(theirs, torch.optim.Adam(split(theirs, 0.2), lr=0.01))
    assert distance(ours, theirs) < 1e-6


def test_decoupled_adam_is_adamw() -> None:
    ours, theirs = net(), net()
    train(ours, build_optimizer(ours, Adam(), lr=0.01, weight_decay=0.2, decoupled=True))
    train(theirs, torch.optim.AdamW(split(theirs, 0.2), lr=0.01))
    assert distance(ours, theirs) < 1e-6


class Odd(nn.Module):
    """Parameters that decay must not take by their number of dimensions alone."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)  # bias_k has three dimensions
        self.norm = nn.LayerNorm((3, 4))  # a weight of two
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embedding.weight  # tied
        self.temperature = nn.Parameter(torch.ones(()))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def names_of(model: nn.Module, params: list[Tensor]) -> set[str]:
    ids = {id(p) for p in params}
    return {name for name, p in model.named_parameters() if id(p) in ids}


def test_exemption_and_shared_parameters() -> None:
    model = Odd()
    decayed, exempt = build_optimizer(model, SGD(), lr=0.1, weight_decay=0.1).param_groups
    assert names_of(model, decayed["params"]) == {
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "embedding.weight",
    }
    assert {"norm.weight", "attention.bias_k", "head.bias", "temperature"} < names_of(model, exempt["params"])
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(exempt["params"]) == sum(p.requires_grad for p in model.parameters())
    (only,) = build_optimizer(model, SGD(), lr=0.1, weight_decay=0.1, decay_norms_and_biases=True).param_groups
    assert only["weight_decay"] == 0.1
    assert only["decayed"]


@pytest.mark.parametrize("decoupled", [None, True, False])
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_state_dict_round_trip_continues_identically(name: str, decoupled: bool | None) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(model, OPTIMIZERS[name](name=name), lr=0.01, weight_decay=0.1, decoupled=decoupled)

    whole = net()
    train(whole, make(whole))
    first, second = net(), net()
    stopped = make(first)
    train(first, stopped, 7)
    saved = copy.deepcopy(stopped.state_dict())
    saved["param_groups"] = json.loads(json.dumps(saved["param_groups"]))  # as a checkpoint in JSON keeps it
    second.load_state_dict(first.state_dict())
    resumed = make(second)
    resumed.load_state_dict(saved)
    train(second, resumed, STEPS - 7, first=7)
    assert distance(second, whole) == 0


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_converges_on_a_quadratic(name: str) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    x = torch.randn(64, 4)
    y = x @ torch.randn(4, 3)
    optimizer = build_optimizer(
        model, OPTIMIZERS[name](name=name), lr={"adadelta": 1.0, "adagrad": 0.1}.get(name, 0.01)
    )
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize("part", [part for part, *_ in PAIRS] + [Muon(adamw_lr_factor=0.3)], ids=repr)
def test_json_round_trip(part: OptimizerPart) -> None:
    held = Holder(optimizer=part)
    assert Holder.model_validate_json(held.model_dump_json()) == held
    assert Holder.model_validate({"optimizer": part.name}).optimizer == OPTIMIZERS[part.name](name=part.name)


@pytest.mark.parametrize("part", [SGD(), Adam(), AdamW(), Adagrad(), Muon()], ids=repr)
def test_channels_last_is_no_matter_even_with_contiguous_gradients_and_state(part: OptimizerPart) -> None:
    plain, last = net(), net(channels_last=True)
    optimizers = [build_optimizer(model, part, lr=0.01, weight_decay=0.1) for model in (plain, last)]
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        if step == 3:
            state = optimizers[1].state_dict()
            for tensors in state["state"].values():
                tensors.update({key: value.contiguous() for key, value in tensors.items() if torch.is_tensor(value)})
            optimizers[1].load_state_dict(state)
        for p, q in zip(plain.parameters(), last.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert distance(plain, last) < 1e-6


def test_views_with_gaps_and_sparse_embeddings_avoid_the_fused_kernel() -> None:
    gappy = nn.Module()
    gappy.weight = nn.Parameter(torch.zeros(4, 6)[:, ::2])
    assert not build_optimizer(gappy, AdamW(), lr=0.1).param_groups[0].get("fused")
    sparse = nn.Embedding(5, 4, sparse=True)
    optimizer = build_optimizer(sparse, SGD(momentum=0), lr=0.5)
    before = sparse.weight.detach().clone()
    sparse(torch.tensor([1, 3])).sum().backward()
    optimizer.step()
    changed = (sparse.weight.detach() - before).abs().sum(1)
    assert changed.tolist() == pytest.approx([0, 2, 0, 2, 0])


def test_set_lr_heeds_the_factor_and_the_kind_of_momentum() -> None:
    muon = build_optimizer(net(), Muon(adamw_lr_factor=0.1), lr=1.0)
    assert [group["lr"] for group in muon.param_groups] == pytest.approx([1.0, 0.1, 0.1])
    set_lr(muon, 0.5, momentum=0.8)
    assert [group["lr"] for group in muon.param_groups] == pytest.approx([0.5, 0.05, 0.05])
    assert muon.param_groups[0]["momentum"] == 0.8
    assert muon.param_groups[1]["betas"] == (0.8, 0.95)
    still = build_optimizer(net(), SGD(momentum=0), lr=1.0)
    set_lr(still, 0.1, momentum=0.8)
    assert [(group["lr"], group["momentum"]) for group in still.param_groups] == [(0.1, 0)] * 2


def lion(groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=lr)


class NoDecay(torch.optim.Optimizer):
    """A user's optimizer that knows nothing of weight decay."""

    def __init__(self, groups: Any, lr: float) -> None:
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"])


def test_a_callable_makes_the_optimizer() -> None:
    part = Holder.model_validate({"optimizer": lion}).optimizer
    ours, theirs = net(), net()
    train(ours, build_optimizer(ours, part, lr=0.05, weight_decay=0.1))
    train(theirs, torch.optim.SGD(split(theirs, 0.1), lr=0.05))
    assert distance(ours, theirs) < 1e-6
    unaware = net()
    train(
        unaware,
        build_optimizer(unaware, Holder.model_validate({"optimizer": NoDecay}).optimizer, lr=0.05, weight_decay=0.1),
    )
    assert distance(unaware, theirs) < 1e-6


def test_wrong_custom_optimizers_are_refused() -> None:
    def nothing(groups: Any, lr: float) -> None:
        return None

    def regrouped(groups: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for group in groups for p in group["params"]], lr=lr)

    with pytest.raises(LuthierError, match=r"must return a torch\.optim\.Optimizer, got NoneType"):
        build_optimizer(net(), Holder.model_validate({"optimizer": nothing}).optimizer, lr=0.1)
    part = Holder.model_validate({"optimizer": regrouped}).optimizer
    build_optimizer(net(), part, lr=0.1)
    for decoupled in (None, True):
        with pytest.raises(LuthierError, match="or weight decay is lost"):
            build_optimizer(net(), part, lr=0.1, weight_decay=0.1, decoupled=decoupled)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (nn.ReLU(), {"lr": 0.1}, "no parameter with requires_grad=True"),
        (nn.LazyLinear(3), {"lr": 0.1}, "pass one batch through"),
        (nn.Linear(2, 2), {"lr": -0.1}, "lr must be finite and >= 0, got -0.1"),
        (nn.Linear(2, 2), {"lr": float("nan")}, "lr must be finite"),
        (nn.Linear(2, 2), {"lr": 0.1, "weight_decay": -1.0}, "weight_decay must be finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_wrong_input_is_refused(model: nn.Module, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LuthierError, match=message):
        build_optimizer(model, SGD(), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "sdg"}, "did you mean 'sgd'"),
        ({"name": "sgd", "momentum": 1.0}, "less than 1"),
        ({"name": "sgd", "nesterov": True, "momentum": 0.0}, "nesterov needs momentum > 0"),
        ({"name": "adam", "betas": (0.9, 1.0)}, "less than 1"),
        ({"name": "adam", "eps": 0}, "greater than 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Holder.model_validate({"optimizer": settings})
