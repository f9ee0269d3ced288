"""luthier.watch: it sees, changes nothing, leaves nothing, and says clearly what is wrong with its use."""

import copy
import gc
import io
import pickle
import sys
import weakref

import pytest
import torch
from torch import nn

import luthier
from luthier.errors import LuthierError


def data(n=256, features=10, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=generator)
    return x, (x[:, :classes] + 0.3 * torch.randn(n, classes, generator=generator)).argmax(1)


def net(seed=0, features=10, classes=3, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, classes))


def train(model, optimizer, watch=None, steps=40, batch=32, tell=True, loss_fn=nn.CrossEntropyLoss()):
    x, y = data()
    for step in range(steps):
        rows = torch.arange(step * batch, (step + 1) * batch) % len(x)
        loss = loss_fn(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if watch is not None and tell:
            watch.step(loss, inputs=x[rows], targets=y[rows])
    return loss


def evaluate(model, watch):
    x, y = data(seed=1)
    model.eval()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(x), y)
    model.train()
    watch.metrics(val_loss=loss)


optimizers = sys.modules[torch.optim.Optimizer.__module__]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_results_are_bitwise_the_same(name):
    results = []
    for watched in (False, True):
        model = net(dropout=0.3)
        optimizer = OPTIMIZERS[name](model.parameters())
        torch.manual_seed(3)
        if watched:
            with luthier.watch(model, optimizer) as watch:
                train(model, optimizer, watch)
                evaluate(model, watch)
                train(model, optimizer, watch)
        else:
            train(model, optimizer)
            train(model, optimizer)
        results.append([p.detach().clone() for p in model.parameters()] + [torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_numbers_of_a_look_are_those_of_autograd():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x, y = (part[:32] for part in data())
    before = [p.detach().clone() for p in model.parameters()]
    loss = nn.functional.cross_entropy(model(x), y)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    with luthier.watch(model, optimizer) as watch:
        train(model, optimizer, watch, steps=1)
    look = watch.vitals.looks[0]
    assert look.step == 0
    assert look.grad == pytest.approx([g.norm().item() for g in expected], rel=1e-4)
    assert look.grad_before_clip == pytest.approx(look.grad, rel=1e-5)
    assert look.update == pytest.approx([0.5 * g.norm().item() for g in expected], rel=1e-4)
    assert look.weight == pytest.approx([w.norm().item() for w in before], rel=1e-5)
    assert watch.vitals.steps.loss[0] == pytest.approx(loss.item(), rel=1e-6)
    assert look.lr == (0.5,)
    assert look.cleared is True
    assert (look.n_forward, look.n_backward) == (1, 1)


def test_every_step_is_counted_and_looks_grow_rare():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with luthier.watch(model, optimizer, overhead=1e-9) as watch:
        train(model, optimizer, watch, steps=200)
    vitals = watch.vitals
    assert vitals.steps.step == tuple(range(200))
    assert all(value == value for value in vitals.steps.loss)
    late = [look.step for look in vitals.looks if look.step >= 20]
    assert 3 <= len(late) <= 15
    assert vitals.spent.steps == 200


def test_clipping_accumulation_and_missing_zero_grad_are_told_apart():
    x, y = data(n=32)
    rows = {}
    for kind in ("plain", "clipped", "accumulated", "uncleared"):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with luthier.watch(model, optimizer) as watch:
            for _ in range(6):
                for _ in range(2 if kind == "accumulated" else 1):
                    nn.functional.cross_entropy(model(x), y).backward()
                if kind == "clipped":
                    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
                optimizer.step()
                if kind != "uncleared":
                    optimizer.zero_grad()
        rows[kind] = watch.vitals.looks[-1]
    assert all(rows[kind].cleared for kind in ("plain", "clipped", "accumulated"))
    assert rows["uncleared"].cleared is False
    assert rows["accumulated"].n_backward == 2
    total = sum(g * g for g in rows["clipped"].grad) ** 0.5
    assert total == pytest.approx(1e-3, rel=1e-3)
    assert sum(g * g for g in rows["clipped"].grad_before_clip) ** 0.5 > 0.01


def test_new_optimizers_are_noticed():
    model = net()
    with luthier.watch(model, torch.optim.Adam(model.parameters())) as watch:
        for _ in range(4):
            optimizer = torch.optim.Adam(model.parameters())
            train(model, optimizer, watch, steps=3)
    assert [row.id for row in watch.vitals.optimizers] == [0, 1, 2, 3, 4]
    assert [row.replaces for row in watch.vitals.optimizers] == [None, 0, 1, 2, 3]
    assert watch.vitals.n_steps == 12


def test_evaluations_are_seen_with_their_mode():
    model = net(dropout=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with luthier.watch(model, optimizer) as watch:
        train(model, optimizer, watch, steps=5)
        evaluate(model, watch)
        train(model, optimizer, watch, steps=5)
        with torch.no_grad():
            model(data()[0])
        watch.metrics(val_loss=1.0)
        train(model, optimizer, watch, steps=5)
        model(data()[0])
        watch.metrics(val_loss=1.0)
    rows = watch.vitals.evaluations
    assert [(row.training, row.grad, row.step) for row in rows] == [
        (False, False, 5),
        (True, False, 10),
        (True, True, 15),
    ]
    assert [row.random for row in rows[:2]] == [False, True]
    assert [row.values for row in watch.vitals.metrics][1:] == [{"val_loss": 1.0}] * 2


def test_frozen_missing_hidden_and_foreign_parameters_are_in_the_anatomy():
    model = net()
    model.hidden = [nn.Linear(3, 3)]
    model[0].weight.requires_grad_(False)
    other = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*model[3].parameters(), *other.parameters()], lr=0.1)
    with luthier.watch(model, optimizer) as watch:
        pass
    anatomy = watch.vitals.anatomy
    by_name = {p.name: p for p in anatomy.parameters}
    assert not by_name["0.weight"].requires_grad
    assert [p.in_optimizer for p in anatomy.parameters] == [False, False, True, True]
    assert anatomy.unregistered == ("hidden[0] (Linear)",)
    assert [tuple(shape) for shape in anatomy.foreign] == [(2, 2), (2,)]
    assert by_name["0.weight"].initial == "uniform"


def test_nothing_is_left_behind():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {key: copy.copy(value) for key, value in vars(model).items()}
    watch = luthier.watch(model, optimizer)
    train(model, optimizer, watch, steps=3)
    watch.close()
    watch.close()
    assert {key: value for key, value in vars(model).items() if "hooks" in key} == {
        key: value for key, value in before.items() if "hooks" in key
    }
    assert torch.overrides._get_current_function_mode_stack() == []
    assert not torch.nn.modules.module._has_any_global_hook()
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert not optimizers._global_optimizer_pre_hooks
    assert not optimizers._global_optimizer_post_hooks


def test_a_forgotten_watch_goes_with_its_model():
    model = net()
    watch = luthier.watch(model, torch.optim.SGD(model.parameters(), lr=0.1))
    gone = weakref.ref(watch)
    del watch, model
    gc.collect()
    assert gone() is None
    assert not optimizers._global_optimizer_pre_hooks


def test_a_watched_model_can_be_copied_pickled_and_shared_with_no_trace_of_the_watch():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with luthier.watch(model, optimizer) as watch:
        twin = copy.deepcopy(model)
        again = pickle.loads(pickle.dumps(model))
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        x, _ = data()
        assert torch.equal(twin(x), model(x))
        assert torch.equal(again(x), model(x))
        train(model, optimizer, watch, steps=2)
    assert watch.vitals.n_steps == 2


def test_an_exception_carries_the_diagnosis_and_everything_is_removed():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = luthier.watch(model, optimizer)

    def break_off():
        with watch:
            train(model, optimizer, watch, steps=8)
            raise ZeroDivisionError("division by zero")

    with pytest.raises(ZeroDivisionError) as caught:
        break_off()
    assert any("diagnosis" in note for note in caught.value.__notes__)
    assert torch.overrides._get_current_function_mode_stack() == []
    assert watch.vitals.events[-1].name == "exception"


def test_an_exception_inside_the_forward_leaves_no_mode():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = luthier.watch(model, optimizer)
    with pytest.raises(RuntimeError):
        model(torch.randn(4, 7))
    train(model, optimizer, watch, steps=4)
    watch.close()
    assert torch.overrides._get_current_function_mode_stack() == []
    assert watch.vitals.n_steps == 4


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, o: luthier.watch(o, m), "model as a torch.nn.Module"),
        (lambda m, o: luthier.watch(m, m.parameters()), "optimizer as a torch.optim.Optimizer"),
        (lambda m, o: luthier.watch([], o), "got nothing"),
        (lambda m, o: luthier.watch(m, o, overhead=0), "overhead"),
        (lambda m, o: luthier.watch(m, o, overhead=5), "overhead"),
        (lambda m, o: luthier.watch(m, o, on_finding="shout"), "on_finding"),
        (lambda m, o: luthier.watch(m, o, "cross_entropy"), "loss_fn"),
        (lambda m, o: (luthier.watch(m, o), luthier.watch(m, o)), "watched already"),
        (lambda m, o: luthier.watch(m, o).step("3"), "loss"),
        (lambda m, o: luthier.watch(m, o).metrics(val_loss="low"), "numbers"),
        (lambda m, o: luthier.watch(m, o).metrics({"val_x": "up"}, val_x=3), "direction"),
    ],
)
def test_wrong_use_is_told(call, words):
    model = net()
    with pytest.raises(LuthierError, match=words):
        call(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_new_watch_after_closing():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    luthier.watch(model, optimizer).close()
    with luthier.watch(model, optimizer) as watch:
        train(model, optimizer, watch, steps=2)
    assert watch.vitals.n_steps == 2


def test_two_models_with_two_optimizers():
    generator, critic = net(features=4, classes=10), net(seed=1, classes=1)
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-3) for m in (generator, critic)]
    bce = nn.functional.binary_cross_entropy_with_logits
    x, _ = data(n=16)
    with luthier.watch([generator, critic], optimizers) as watch:
        for _ in range(30):
            fake = generator(torch.randn(16, 4))
            optimizers[1].zero_grad()
            loss = bce(critic(x), torch.ones(16, 1)) + bce(critic(fake.detach()), torch.zeros(16, 1))
            loss.backward()
            optimizers[1].step()
            optimizers[0].zero_grad()
            loss = bce(critic(fake), torch.ones(16, 1))
            loss.backward()
            optimizers[0].step()
            watch.step(loss)
    assert watch.vitals.n_steps == 30
    assert all(look.cleared for look in watch.vitals.looks)
    assert None not in watch.vitals.looks[-1].grad


def test_shapes_that_change_between_batches():
    model = nn.Sequential(
        nn.Conv1d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with luthier.watch(model, optimizer) as watch:
        for step in range(30):
            x = torch.randn(4 + step % 3, 3, 8 + step)
            loss = nn.functional.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.long))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watch.step(loss, inputs=x)
    assert watch.vitals.n_steps == 30


def test_metrics_before_any_step_and_no_step_at_all():
    model = net()
    with luthier.watch(model, torch.optim.SGD(model.parameters(), lr=0.1)) as watch:
        watch.metrics(val_loss=1.0)
    diagnosis = watch.diagnose()
    assert watch.vitals.n_steps == 0
    assert diagnosis.not_seen


def test_lbfgs_with_a_closure():
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    x, y = data(n=32)
    with luthier.watch(model, optimizer) as watch:
        for _ in range(4):

            def closure():
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                return loss

            watch.step(optimizer.step(closure))
    assert watch.vitals.n_steps == 4
    assert not [event for event in watch.vitals.events if event.name == "no_gradients"]


def test_dataloader_workers_do_not_carry_the_watch():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data(n=64)), batch_size=16, num_workers=1)
    with luthier.watch(model, optimizer) as watch:
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watch.step(loss, x, y)
    assert watch.vitals.n_steps == 4


def test_an_examination_that_fails_is_an_event_and_the_diagnosis_stands(monkeypatch):
    def broken(_):
        raise ValueError("odd data")

    monkeypatch.setattr("luthier.doctor.measure.samples.Samples.examine", broken)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with luthier.watch(model, optimizer) as watch:
        train(model, optimizer, watch, steps=30)
    assert watch.vitals.events[-1].details["text"] == "odd data"
    assert "missing_zero_grad" in watch.diagnose().healthy


def test_every_loss_is_known_though_only_some_steps_are_told():
    model, (x, y) = net(), data()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    with luthier.watch(model, optimizer) as watch:
        for step in range(60):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if step % 10 == 0:
                watch.step(loss, inputs=x, targets=y)
            elif step % 10 == 5:
                watch.step(inputs=x)
    assert list(watch.vitals.steps.loss) == pytest.approx(losses)


def loop(watch, model, optimizer, loss_of, steps=8):
    x, y = data()
    for step in range(steps):
        rows = torch.arange(step * 32, (step + 1) * 32) % len(x)
        optimizer.zero_grad()
        loss_of(model, x[rows], y[rows]).backward()
        optimizer.step()
    return watch.vitals


@pytest.mark.parametrize(
    ("loss_of", "known"),
    [
        (lambda model, x, y: nn.functional.cross_entropy(model(x), y), True),
        (lambda model, x, y: nn.functional.nll_loss(model(x).log_softmax(1), y.view(-1)), True),
        (lambda model, x, y: nn.functional.cross_entropy(model(x), y, reduction="none").mean(), False),
        (lambda model, x, y: nn.functional.mse_loss(model(x), model(x).detach() + 1), False),
        (lambda model, x, y: nn.functional.cross_entropy(model(x) + model(x.flip(0)), y), False),
    ],
    ids=["compared", "viewed", "one loss an example", "computed", "several forwards"],
)
def test_targets_that_nobody_told_are_what_the_loss_compared_with(loss_of, known):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with luthier.watch(model, optimizer) as watch:
        vitals = loop(watch, model, optimizer, loss_of)
    assert [look.targets is not None for look in vitals.looks] == [known] * len(vitals.looks)
    assert ("targets" in vitals.data) == known


def test_the_generator_is_no_linear_layer_of_its_critic():
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32))
    critic = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizers = [torch.optim.Adam(model.parameters(), 1e-3, (0.5, 0.99)) for model in (generator, critic)]
    bce = nn.functional.binary_cross_entropy_with_logits
    x, _ = data(features=32)
    with luthier.watch([generator, critic], optimizers) as watch:
        for step in range(60):
            real, fake = x[torch.arange(32) + 32 * (step % 8)], generator(torch.randn(32, 4))
            optimizers[1].zero_grad()
            (bce(critic(real), torch.ones(32, 1)) + bce(critic(fake.detach()), torch.zeros(32, 1))).backward()
            optimizers[1].step()
            optimizers[0].zero_grad()
            bce(critic(fake), torch.ones(32, 1)).backward()
            optimizers[0].step()
    assert "missing_nonlinearity" not in {finding.symptom for finding in watch.findings}
