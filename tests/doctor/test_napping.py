"""Naps: of most quick steps nothing is heard but the loss, and yet nothing is lost and nothing stays behind."""

import copy
import gc
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tests.doctor.test_watch import data, net
from torch.optim.optimizer import _global_optimizer_post_hooks

import luthier
from luthier.doctor.measure import loop, stretch
from luthier.doctor.measure.alarm import Alarm
from luthier.doctor.measure.backwards import Listening

BACKWARD = torch.autograd.backward
SWITCHES = {switch: switch.__enter__ for switch in (torch.no_grad, torch.inference_mode, torch.set_grad_enabled)}
FROM = 440  # in the middle of a nap: looks come at 425, 531 and 828, 1035
LATER = 900  # in another one


@pytest.fixture(autouse=True)
def naps_soon(monkeypatch):
    monkeypatch.setattr(loop, "UNEVALUATED", 0)
    monkeypatch.setattr(stretch, "NAP_S", 1e6)


class Run:
    """A training with a learning rate of its own at each step; `clips`, `tells` and the like are its habits."""

    def __init__(self, watched=True, clips=False, schedules_early=False):
        torch.manual_seed(0)
        self.model, (self.x, self.y), self.clips, self.schedules_early = net(), data(), clips, schedules_early
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3)
        self.watch = luthier.watch(self.model, self.optimizer, overhead=1e-9) if watched else None
        self.losses, self.lrs = [], []

    def steps(self, n, tells=True, amid=None):
        for _ in range(n):
            self.lrs.append(1e-3 / (1 + len(self.lrs)))
            self.optimizer.param_groups[0]["lr"] = self.lrs[-1]
            loss = torch.nn.functional.cross_entropy(self.model(self.x), self.y)
            if amid is not None:
                amid()
            self.optimizer.zero_grad()
            loss.backward()
            if self.clips:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            if self.schedules_early:
                self.optimizer.param_groups[0]["lr"] = 1e-3 / (1 + len(self.lrs))
            self.losses.append(loss.item())
            if self.watch is not None and tells:
                self.watch.step(loss)
        return self

    def to_nap(self):
        """Train until a nap has lasted some steps."""
        self.steps(FROM)
        assert self.naps
        return self

    @property
    def naps(self):
        return self.watch._loop.stretch.next == "nap"

    def seen(self, unheard=()):
        self.watch.close()
        assert_nothing_left(self.model)
        steps = self.watch.vitals.steps
        assert list(steps.step) == list(range(len(self.losses)))
        heard = [step for step in range(len(self.lrs)) if step not in unheard]
        assert [steps.lr[step] for step in heard] == pytest.approx([self.lrs[step] for step in heard])
        return self.watch.vitals


def assert_nothing_left(model):
    assert torch.autograd.backward is BACKWARD
    assert all(switch.__enter__ is enter for switch, enter in SWITCHES.items())
    assert not any((Alarm._armed, Listening._all, _global_optimizer_post_hooks, model._forward_pre_hooks))


def no_grad(run):
    with torch.no_grad():
        run.model(run.x)


def inference_mode(run):
    with torch.inference_mode():
        run.model(run.x)


def decorated(run):
    torch.no_grad()(run.model)(run.x)


def grad_disabled(run):
    with torch.set_grad_enabled(False):
        run.model(run.x)


def switched_off_by_hand(run):
    torch.set_grad_enabled(False)
    run.model(run.x)
    torch.set_grad_enabled(True)


def test_in_a_nap_there_is_no_hook_and_every_step_is_recorded():
    run = Run().to_nap()
    assert not any((run.model._forward_pre_hooks, _global_optimizer_post_hooks, Listening._all))
    assert torch.autograd.backward is BACKWARD
    run.steps(600)
    vitals = run.seen()
    assert list(vitals.steps.loss) == pytest.approx(run.losses)
    assert vitals.steps.busy_s.count(0.0) > 300


def test_the_rate_is_that_of_the_step_also_when_the_schedule_moves_on_before_the_loss_is_told():
    run = Run(schedules_early=True).to_nap()
    run.steps(600)
    run.seen()


def test_the_watch_knows_the_step_during_a_nap():
    run = Run().to_nap()
    assert run.watch._loop.step == len(run.losses)


@pytest.mark.parametrize("evaluate", [no_grad, inference_mode, decorated, grad_disabled])
def test_an_evaluation_ends_a_nap_and_is_seen(evaluate):
    run = Run().to_nap()
    at = len(run.losses)
    run.model.eval()
    evaluate(run)
    run.model.train()
    assert not run.naps
    run.steps(30)
    vitals = run.seen()
    assert [(row.step, row.training, row.forwards) for row in vitals.evaluations] == [(at, False, 1)]
    assert list(vitals.steps.loss) == pytest.approx(run.losses)


def test_an_evaluation_within_a_step_is_seen_and_the_step_is_one():
    run, typical_s = Run().to_nap(), lambda: run.watch._loop.accounts._typical_busy_s
    usual_s = typical_s()
    run.steps(1, amid=lambda: no_grad(run))
    assert typical_s() == usual_s
    vitals = run.steps(20).seen()
    assert [(row.step, row.forwards) for row in vitals.evaluations] == [(FROM, 1)]
    assert list(vitals.steps.loss) == pytest.approx(run.losses)
    assert (vitals.steps.wait_s[FROM], vitals.steps.busy_s[FROM]) == (0, 0)


def test_clipping_switches_gradients_off_and_is_no_evaluation():
    run = Run(clips=True).to_nap()
    run.steps(20)
    assert run.naps
    assert not run.model._forward_pre_hooks
    vitals = run.seen()
    assert not vitals.evaluations
    assert list(vitals.steps.loss) == pytest.approx(run.losses)


def test_after_an_evaluation_with_gradients_there_are_no_more_naps():
    run = Run().to_nap()
    run.model(run.x)
    run.steps(LATER - FROM)
    assert not run.naps
    run.model(run.x)
    run.steps(30)
    evaluations = run.seen().evaluations
    assert [(row.step, row.grad, row.forwards) for row in evaluations] == [(LATER, True, 1)]


def test_a_loop_that_has_shown_no_evaluation_yet_does_not_nap(monkeypatch):
    monkeypatch.setattr(loop, "UNEVALUATED", 10_000)
    run = Run().steps(600)
    assert not run.naps
    no_grad(run)
    run.steps(20)
    assert run.naps
    run.seen()


def test_a_loop_whose_evaluations_no_alarm_announces_does_not_nap():
    run = Run().steps(50)
    no_grad(run)
    run.steps(50)
    switched_off_by_hand(run)
    run.steps(FROM - 100)
    assert not run.naps
    switched_off_by_hand(run)
    run.steps(30)
    assert [row.step for row in run.seen().evaluations] == [50, 100, FROM]


def test_a_loop_that_forgets_to_tell_does_not_nap():
    run = Run().steps(100).steps(1, tells=False).steps(FROM - 101)
    assert not run.naps
    run.seen()


def test_what_other_threads_do_without_gradients_is_their_affair():
    run = Run().to_nap()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: torch.no_grad().__enter__()).result()
    assert not run.model._forward_pre_hooks
    run.seen()


def test_gradients_that_are_switched_on_are_no_alarm():
    run = Run().to_nap()
    with torch.set_grad_enabled(True), torch.inference_mode(False):
        assert not run.model._forward_pre_hooks
    run.seen()


def test_a_rate_that_may_change_in_place_does_not_nap():
    run = Run()
    run.optimizer.param_groups[0]["lr"] = torch.tensor(1e-3)
    for _ in range(600):
        loss = torch.nn.functional.cross_entropy(run.model(run.x), run.y)
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
        run.watch.step(loss)
    assert not run.naps
    run.watch.close()


def test_a_loop_that_evaluates_with_gradients_does_not_nap():
    run = Run().steps(100)
    run.model(run.x)
    run.steps(FROM - 100)
    assert not run.naps
    assert [(row.step, row.grad) for row in run.seen().evaluations] == [(100, True)]


def test_looks_come_when_they_would_without_naps(monkeypatch):
    run = Run().steps(1100)
    looks = [row.step for row in run.seen().looks]
    monkeypatch.setattr(stretch, "NAP_S", 0.0)
    assert [row.step for row in Run().steps(1100).seen().looks] == looks
    assert looks[-4:] == [531, 663, 828, 1035]


class ByHand(torch.optim.Optimizer):
    """Writes the weights where autograd does not see it."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 1e-3})

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            parameter.data.add_(parameter.grad, alpha=-1e-3)


def test_an_optimizer_whose_steps_no_counter_shows_does_not_nap(monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, lr: ByHand(parameters))
    run = Run().steps(600)
    assert not run.naps
    assert list(run.seen().steps.loss) == pytest.approx(run.losses)


def test_naps_of_slow_steps_are_short_and_follow_each_other(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(stretch, "perf_counter", lambda: next(ticks) / 1000)
    monkeypatch.setattr(stretch, "NAP_S", 0.05)  # two ticks a step: naps of 25 steps
    run = Run().steps(430)
    naps = [run.steps(1).naps for _ in range(95)]
    lengths = [len(list(same)) for asleep, same in itertools.groupby(naps) if asleep]
    assert lengths[:2] == [25, 25]
    run.seen()


def test_slow_steps_do_not_nap(monkeypatch):
    monkeypatch.setattr(stretch, "NAP_S", 0.0)
    run = Run().steps(600)
    assert not run.naps
    assert list(run.seen().steps.loss) == pytest.approx(run.losses)


@pytest.mark.parametrize("untold", [1, 7])
def test_steps_that_nobody_told_are_counted_and_then_heard(untold):
    run = Run().to_nap()
    told = len(run.losses)
    run.steps(untold, tells=False)
    no_grad(run)
    run.steps(40, tells=False)
    losses = run.seen(unheard=range(told, told + untold)).steps.loss
    assert list(losses[:told]) == pytest.approx(run.losses[:told])
    assert list(losses[told + untold :]) == pytest.approx(run.losses[told + untold :])


def test_a_new_optimizer_is_noticed():
    run = Run().to_nap()
    run.optimizer = torch.optim.SGD(run.model.parameters(), 1e-3)
    run.steps(600)
    run.watch.close()
    assert [row.type for row in run.watch.vitals.optimizers] == ["AdamW", "SGD"]


def test_a_watch_that_is_dropped_in_a_nap_leaves_nothing():
    run = Run().to_nap()
    run.watch = None
    gc.collect()
    assert_nothing_left(run.model)


def test_two_watches_nap_each_for_itself():
    first, second = Run(), Run()
    for _ in range(60):
        first.steps(10)
        second.steps(10)
    first.watch.close()
    second.steps(50)
    assert list(second.seen().steps.loss) == pytest.approx(second.losses)
    assert list(first.watch.vitals.steps.loss) == pytest.approx(first.losses)


def test_a_copy_of_a_napping_model_is_a_plain_one():
    run = Run().to_nap()
    other = copy.deepcopy(run.model)
    no_grad(run)
    assert not other._forward_pre_hooks
    run.seen()


@pytest.mark.parametrize("clips", [False, True])
def test_training_stays_bitwise_the_same(clips):
    watched, bare = Run(clips=clips).to_nap(), Run(watched=False, clips=clips)
    bare.steps(len(watched.losses) + 100)
    watched.steps(100)
    watched.seen()
    for one, other in zip(watched.model.parameters(), bare.model.parameters(), strict=True):
        assert torch.equal(one, other)
