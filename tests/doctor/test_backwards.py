"""The loss of a loop that tells nothing is heard at its backward pass, and the wrapper goes with its listeners."""

import gc

import pytest
import torch
from torch import nn

import luthier

BACKWARD = torch.autograd.backward


@pytest.fixture(autouse=True)
def nobody_else_listens():
    """Watches that other tests of this process forgot go with the next collection of garbage."""
    gc.collect()


def parts(seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(4, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.01), torch.randn(8, 4)


def run(model, optimizer, x, steps=30, back=lambda loss: loss.backward()):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        back(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("back", [lambda loss: loss.backward(), lambda loss: torch.autograd.backward([loss])])
def test_every_loss_is_known_without_being_told(back):
    model, optimizer, x = parts()
    with luthier.watch(model, optimizer) as watch:
        losses = run(model, optimizer, x, back=back)
    assert watch.vitals.steps.loss == pytest.approx(losses)
    assert watch.diagnose().is_healthy


def test_the_scale_of_a_grad_scaler_is_taken_off():
    model, optimizer, x = parts()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = []
    with luthier.watch(model, optimizer) as watch:
        for _ in range(12):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
    assert watch.vitals.steps.loss == pytest.approx(losses)


def test_the_backward_of_a_model_that_is_not_watched_is_not_its_loss():
    model, optimizer, x = parts()
    other = nn.Linear(4, 1)
    with luthier.watch(model, optimizer) as watch:
        for _ in range(8):
            (100 + other(x).sum()).backward()
            run(model, optimizer, x, steps=1)
    assert max(watch.vitals.steps.loss) < 10


def test_watches_come_and_go_in_any_order():
    first, second = parts(), parts(1)
    one, two = luthier.watch(*first[:2]), luthier.watch(*second[:2])
    run(*first, steps=3)
    one.close()
    losses = run(*second, steps=3)
    two.close()
    assert two.vitals.steps.loss == pytest.approx(losses)
    assert torch.autograd.backward is BACKWARD


def test_a_forgotten_watch_is_forgotten_here_too():
    model, optimizer, _ = parts()
    watch = luthier.watch(model, optimizer)
    del watch, model, optimizer
    gc.collect()
    assert torch.autograd.backward is BACKWARD


def test_a_wrapper_of_somebody_else_is_left_alone(monkeypatch):
    model, optimizer, x = parts()
    watch = luthier.watch(model, optimizer)
    inner, calls = torch.autograd.backward, []

    def theirs(*args, **kwargs):
        calls.append(1)
        return inner(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "backward", theirs)
    watch.close()
    run(model, optimizer, x, steps=2)
    assert torch.autograd.backward is theirs
    assert len(calls) == 2
    monkeypatch.undo()
    again = luthier.watch(model, optimizer)
    run(model, optimizer, x, steps=2)
    again.close()
    assert again.vitals.n_steps == 2
    assert torch.autograd.backward is BACKWARD
