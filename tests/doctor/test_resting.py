"""A watch whose hooks rest between looks sees all the same: every loss, evaluations, new optimizers, odd steps."""

import time

import pytest
import torch
from tests.doctor.test_watch import data, net
from torch.optim.optimizer import _global_optimizer_pre_hooks
from torch.utils.checkpoint import checkpoint

import luthier
from luthier.doctor.measure import loop, stretch
from luthier.doctor.measure.backwards import Listening

CROSS_ENTROPY = torch.nn.functional.cross_entropy


@pytest.fixture(autouse=True, params=["early", "late", "napping"])
def counts_in_stretches(request, monkeypatch):
    """Late in a training whole stretches of steps are counted in few calls, in naps in fewer: every test sees all."""
    if request.param != "early":
        monkeypatch.setattr(stretch, "ALL_TARGETS_UNTIL", 0)
    if request.param == "napping":
        nap_soon(monkeypatch)


def nap_soon(monkeypatch):
    monkeypatch.setattr(stretch, "ALL_TARGETS_UNTIL", 0)
    monkeypatch.setattr(stretch, "AWAKE", 1)
    monkeypatch.setattr(stretch, "NAP_S", 1e6)
    monkeypatch.setattr(loop, "UNEVALUATED", 0)


class Run:
    """A training whose step can be told or not; keeps the true losses."""

    def __init__(self, several_watches=False):
        self.model, (self.x, self.y) = net(), data()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-2)
        self.watch = luthier.watch(self.model, self.optimizer)
        other = net(1)
        self.other = luthier.watch(other, torch.optim.SGD(other.parameters(), 0.1)) if several_watches else None
        self.losses = []

    def step(self, tell=True, forward=None):
        self.optimizer.zero_grad()
        loss = CROSS_ENTROPY((forward or self.model)(self.x), self.y)
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())
        if tell:
            self.watch.step(loss)

    def steps(self, n, **how):
        for _ in range(n):
            self.step(**how)
        return self

    @property
    def resting(self):
        return self.watch._loop.resting.now

    def seen(self):
        with self.watch:
            vitals = self.watch.vitals
        if self.other is not None:
            self.other.close()
        assert not Listening._all
        assert not _global_optimizer_pre_hooks
        return vitals


def assert_all_losses(run):
    steps = run.seen().steps
    assert list(steps.step) == list(range(len(run.losses)))
    assert list(steps.loss) == pytest.approx(run.losses)


def test_a_loop_that_tells_lets_the_ears_rest_between_looks():
    run = Run().steps(60)
    assert run.resting
    assert not _global_optimizer_pre_hooks
    assert_all_losses(run)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    "told",
    [
        [True] * 60 + [False] * 30,
        [True] * 45 + [False] + [True] * 40 + [False] * 3,
        [step % 2 == 0 for step in range(80)],
        [False] * 50 + [True] * 50,
    ],
    ids=["stops-telling", "forgets-one", "every-other", "tells-late"],
)
def test_no_loss_is_lost_when_the_loop_stops_telling(told, several):
    run = Run(several_watches=several)
    for tell in told:
        run.step(tell)
    assert_all_losses(run)


def test_looks_go_on_while_the_rest_of_the_steps_rests():
    run = Run().steps(300)
    looks = [row.step for row in run.seen().looks]
    assert max(looks) > 200
    assert len(looks) < 100


def test_what_a_report_takes_is_no_waiting_for_data():
    run, ended = Run(), []
    run.watch._loop._ended, run.watch._loop._report_at = lambda step: ended.append(time.perf_counter()), 62
    run.steps(62)
    assert run.resting
    assert run.watch._loop.accounts.ended_at >= ended[-1]
    assert_all_losses(run)


def test_an_evaluation_is_seen_while_resting():
    run = Run().steps(60)
    assert run.resting
    run.model.eval()
    with torch.no_grad():
        run.model(run.x)
    run.model.train()
    run.steps(10)
    evaluations = run.seen().evaluations
    assert [(row.step, row.training, row.forwards) for row in evaluations] == [(60, False, 1)]


def test_a_new_optimizer_is_seen_while_resting():
    run = Run().steps(60)
    assert run.resting
    run.optimizer = torch.optim.AdamW(run.model.parameters(), 1e-2)
    run.steps(5)
    assert [row.step for row in run.seen().optimizers][-1] == 60


def test_a_backward_pass_of_another_thing_does_not_pass_for_a_loss():
    run = Run().steps(60)
    weight = torch.ones(1, requires_grad=True)
    (weight * 1000).sum().backward()
    run.steps(5)
    assert_all_losses(run)


def test_checkpointed_forwards_are_never_slept_through():
    run = Run()
    run.steps(60, forward=lambda x: checkpoint(run.model, x, use_reentrant=False))
    assert not run.resting
    assert_all_losses(run)


def test_losses_under_a_gradient_scaler_are_never_slept_through():
    run = Run()
    for _ in range(60):
        run.optimizer.zero_grad()
        loss = CROSS_ENTROPY(run.model(run.x), run.y)
        (loss * torch.tensor(1024.0)).backward()
        run.optimizer.step()
        run.watch.step(loss)
    assert not run.resting
    run.seen()
