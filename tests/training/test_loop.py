"""The loop against loops written by hand, and its pieces against torch."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from luthier.errors import DataError, LuthierError
from luthier.recipe import Recipe
from luthier.task import Task, fingerprint
from luthier.training.finders import find_batch_size, find_lr
from luthier.training.hooks import Hook, Hooks
from luthier.training.inputs import InputPipeline, as_unit_floats, normalisation
from luthier.training.loop import take_step, train
from luthier.training.losses import LOSSES, loss_named
from luthier.training.metrics import METRICS, metric_named
from luthier.training.microbatches import split_batch
from luthier.training.nonfinite import first_nonfinite_layer
from luthier.training.preflight import preflight
from luthier.training.randomness import Stream, derive
from luthier.training.run import Run
from luthier.training.totals import Totals

CPU = torch.device("cpu")
X, Y = torch.randn(48, 5), torch.arange(48) % 3


def plain_net():
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


def plain_task(**keywords):
    return Task(**{"model": plain_net, "train": (X, Y), "val": (X, Y), **keywords})


def test_the_loop_equals_a_loop_written_by_hand():
    recipe = Recipe(
        optimizer="sgd", lr=0.1, schedule="cosine", epochs=3, batch_size=10, weight_decay=0.01, clip_norm=0.5
    )
    run = Run(plain_task(), recipe)
    reference = plain_net()
    reference.load_state_dict(run.model.state_dict())
    decayed = [parameter for parameter in reference.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in reference.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.SGD([{"params": decayed, "weight_decay": 0.01}, {"params": others}], lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)
    order = [list(run.train.epoch(epoch)) for epoch in range(3)]
    for batches in order:
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(reference(x), y).backward()
            nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
            optimizer.step()
            schedule.step()
    assert train(run) == ("finished", "all 3 epochs trained")
    for ours, theirs in zip(run.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_accumulation_gives_the_gradient_of_the_whole_batch(parts):
    whole, split = (Run(plain_task(), Recipe(optimizer="sgd", batch_size=10, accumulate=n)) for n in (1, parts))
    for batch in whole.batches():
        take_step(whole, batch)
        take_step(split, batch)
    for one, other in zip(whole.model.parameters(), split.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert whole.totals.values()["train_loss"] == pytest.approx(split.totals.values()["train_loss"], rel=1e-5)


def test_accumulation_weighs_parts_by_their_own_n():
    def step(model, batch):
        x, y = batch
        keep = y != 0
        from luthier.task import Step

        loss = F.cross_entropy(model(x)[keep], y[keep]) if keep.any() else model(x).sum() * 0
        return Step(loss, None, None, int(keep.sum()))

    y = torch.tensor([0, 0, 0, 1, 2, 1, 0, 2])
    task = plain_task(train=(X[:8], y), val=(X[:8], y), step=step, metric="loss")
    whole, split = (Run(task, Recipe(optimizer="sgd", batch_size=8, accumulate=n)) for n in (1, 4))
    take_step(whole, (X[:8], y))
    take_step(split, (X[:8], y))
    for one, other in zip(whole.model.parameters(), split.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert split.examples == 4


def test_split_batch_keeps_structure_and_order():
    batch = {"x": torch.arange(5), "pair": (torch.arange(5), torch.arange(5))}
    parts = split_batch(batch, 2)
    assert [part["x"].tolist() for part in parts] == [[0, 1, 2], [3, 4]]
    assert parts[1]["pair"][0].tolist() == [3, 4]
    with pytest.raises(DataError, match="got str"):
        split_batch((torch.arange(2), "text"), 2)


class Recorder(Hook):
    def __init__(self):
        self.events = []

    def start(self, run):
        self.events.append("start")

    def epoch_start(self, run):
        self.events.append("epoch_start")

    def step_start(self, run, batch):
        self.events.append("step_start")
        assert batch[0].shape == (24, 5)

    def after_backward(self, run, loss):
        self.events.append("after_backward")
        assert all(parameter.grad is not None for parameter in run.model.parameters())
        assert math.isfinite(float(loss))

    def step_end(self, run):
        self.events.append(f"step_end {run.step}")

    def evaluated(self, run, row):
        self.events.append(f"evaluated {row['epoch']}")


def test_hooks_hear_every_event_in_order():
    recorder = Recorder()
    train(Run(plain_task(), Recipe(epochs=1, batch_size=24), [recorder]))
    steps = [event for n in (1, 2) for event in ("step_start", "after_backward", f"step_end {n}")]
    assert recorder.events == ["epoch_start", *steps, "evaluated 1.0"]


def test_hooks_that_do_not_override_an_event_are_not_called():
    class OnlyEnd(Hook):
        def end(self, run, state, reason):
            self.told = (state, reason)

    hook = OnlyEnd()
    hooks = Hooks([hook])
    hooks.step_end("run")
    hooks.end("run", "finished", "done")
    assert hook.told == ("finished", "done")


def test_evaluation_changes_nothing_of_the_training():
    def net():
        return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Dropout(0.5), nn.Linear(7, 3))

    class Evaluates(Hook):
        def step_end(self, run):
            from luthier.training.loop import row_of

            row_of(run, "rung")

    runs = [Run(plain_task(model=net), Recipe(epochs=2, batch_size=12), hooks) for hooks in ([], [Evaluates()])]
    for run in runs:
        train(run)
    for one, other in zip(runs[0].model.state_dict().values(), runs[1].model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_unequal_last_batches_are_weighed_by_their_size():
    run = Run(plain_task(), Recipe(optimizer="sgd", lr=1e-12, batch_size=36, epochs=1))
    with torch.no_grad():
        expected = float(F.cross_entropy(run.model(X), Y))
        accuracy = float((run.model(X).argmax(1) == Y).float().mean())
    train(run)
    assert run.history == [pytest.approx(accuracy)]
    rerun = Run(plain_task(), Recipe(optimizer="sgd", lr=1e-12, batch_size=36, epochs=1))
    for batch in rerun.batches():
        take_step(rerun, batch)
    assert rerun.totals.values()["train_loss"] == pytest.approx(expected, rel=1e-5)
    assert rerun.totals.values()["train_accuracy"] == pytest.approx(accuracy)


def test_losses_off_the_cpu_are_read_together_and_name_the_step():
    totals = Totals(METRICS["accuracy"], torch.device("meta"))
    faults = [totals.add(step, torch.tensor(math.nan if step == 3 else 1.0), 2) for step in range(totals.every)]
    assert faults[:-1] == [None] * (totals.every - 1)
    assert faults[-1] == 3
    totals.add(99, torch.tensor(5.0), 1)
    assert totals.read() is None


def test_the_first_non_finite_layer_is_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x):
            return self.three(self.two(self.one(x)).log())

    net = Net()
    layer = first_nonfinite_layer(net, lambda model: model(X))
    assert layer == "three (Linear), whose input is not finite already"
    with torch.no_grad():
        net.two.bias[0] = math.inf
    assert first_nonfinite_layer(net, lambda model: model(X)) == "the weights two.bias are not finite already"
    assert first_nonfinite_layer(plain_net(), lambda model: model(X)) is None


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"loss"}))
def test_every_metric_is_the_same_over_batches_as_over_the_whole(name):
    generator = torch.Generator().manual_seed(3)
    outputs = torch.randn(40, 3, generator=generator)
    targets = {
        "accuracy": torch.randint(0, 3, (40,), generator=generator),
        "f1": torch.randint(0, 3, (40,), generator=generator),
        "auroc": torch.randint(0, 3, (40,), generator=generator),
    }.get(name, torch.randint(0, 2, (40, 3), generator=generator).float())
    whole, batched = METRICS[name].start(), METRICS[name].start()
    whole.update(outputs, targets)
    for part in torch.arange(40).split(7):
        batched.update(outputs[part], targets[part])
    assert whole.compute() == pytest.approx(batched.compute(), abs=1e-6)
    assert math.isnan(METRICS[name].start().compute())


def test_metrics_against_hand_computed_values():
    def value(name, outputs, targets):
        accumulator = METRICS[name].start()
        accumulator.update(torch.tensor(outputs), torch.tensor(targets))
        return accumulator.compute()

    assert value("accuracy", [[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]], [0, 1, 1]) == pytest.approx(2 / 3)
    assert value("accuracy", [[2.0, 1.0], [0.0, 1.0]], [0, -100]) == pytest.approx(1 / 2)
    assert value("binary_accuracy", [[2.0, -1.0]], [[1.0, 1.0]]) == 0.5
    assert value("rmse", [[1.0], [3.0]], [[0.0], [0.0]]) == pytest.approx(math.sqrt(5))
    assert value("mae", [[1.0], [-3.0]], [[0.0], [0.0]]) == 2
    assert value("r2", [[1.0], [2.0], [3.0]], [[1.0], [2.0], [4.0]]) == pytest.approx(1 - 1 / (14 / 3))
    assert value("auroc", [0.1, 0.4, 0.35, 0.8], [0.0, 0.0, 1.0, 1.0]) == pytest.approx(0.75)


def test_better_follows_the_direction_and_never_takes_nan():
    assert METRICS["accuracy"].better(0.6, 0.5)
    assert METRICS["rmse"].better(0.4, 0.5)
    assert METRICS["rmse"].better(9.0, None)
    assert not METRICS["accuracy"].better(math.nan, None)
    own = metric_named(lambda outputs, targets: 3.0, "min")
    assert own.minimise


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_is_a_scalar_mean_and_checks_its_targets(name):
    loss = LOSSES[name]
    outputs = torch.randn(6, 3, requires_grad=True)
    targets = torch.arange(6) % 3 if loss.kind == "classes" else torch.rand(6, 3)
    loss.check(outputs, targets)
    halves = [loss(outputs[part], targets[part]) for part in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(loss(outputs, targets), sum(halves) / 2)
    with pytest.raises(DataError):
        loss.check(outputs, targets[:, None])
    if loss.kind != "classes":
        with pytest.raises(LuthierError, match="label_smoothing"):
            loss(outputs, targets, 0.1)


def test_label_smoothing_acts_in_training_only():
    task = plain_task()
    torch.testing.assert_close(
        task.step(nn.Identity(), (X[:, :3], Y), 0.2).loss, F.cross_entropy(X[:, :3], Y, label_smoothing=0.2)
    )
    recipe = Recipe(label_smoothing=0.5, batch_size=48, epochs=1, lr=1e-12)
    runs = [Run(task, recipe.replace({"label_smoothing": value})) for value in (0.5, 0.0)]
    for run in runs:
        train(run)
    assert runs[0].history == runs[1].history


def test_own_loss_module_is_accepted_and_unknown_ones_refused():
    assert loss_named(nn.CrossEntropyLoss()).name == "CrossEntropyLoss"
    with pytest.raises(LuthierError, match="did you mean 'huber'"):
        loss_named("hubber")
    with pytest.raises(LuthierError, match="callable"):
        loss_named(3)


def test_images_become_unit_floats_and_are_scaled_by_channel():
    images = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8)
    task = Task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), (images, torch.arange(50) % 3), normalize=True)
    scale = normalisation(task, CPU)
    assert scale is not None
    assert scale[0].shape == (3, 1, 1)
    pipeline = InputPipeline(task, Recipe(), CPU)
    x, _ = pipeline.for_evaluation((task.train[0], task.train[1]))
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    assert as_unit_floats(images).max() <= 1
    given = Task(task.model, (images, torch.arange(50) % 3), normalize=([0.5, 0.5, 0.5], [0.1, 0.2, 0.3]))
    x, _ = InputPipeline(given, Recipe(), CPU).for_evaluation((images, None))
    torch.testing.assert_close(x, (images / 255 - 0.5) / torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1))


def test_a_constant_column_is_not_divided_by_zero():
    table = torch.cat([torch.ones(20, 1), torch.randn(20, 2)], 1)
    scale = normalisation(Task(plain_net, (table, torch.arange(20) % 3), normalize=True), CPU)
    assert scale is not None
    assert scale[1][0] == 1


def test_augmentation_and_mixing_act_in_training_only_and_need_a_pair():
    task = Task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), (torch.rand(30, 1, 4, 4), torch.arange(30) % 3))
    run = Run(task, Recipe(augment=["flip"], mixup=0.5, batch_size=10))
    preflight(run)
    batch = next(run.batches())
    _, soft = run.inputs.for_training(batch)
    assert soft.shape == (10, 3)
    torch.testing.assert_close(soft.sum(1), torch.ones(10))
    x, y = run.inputs.for_evaluation(batch)
    assert torch.equal(x, batch[0])
    assert torch.equal(y, batch[1])
    with pytest.raises(LuthierError, match="need batches of"):
        run.inputs.for_training({"x": torch.rand(3, 1, 4, 4)})


def test_derived_seeds_differ_by_seed_stream_and_step():
    seeds = {derive(seed, stream, step) for seed in range(20) for stream in Stream for step in range(50)}
    assert len(seeds) == 20 * len(Stream) * 50
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_find_lr_suggests_a_rate_below_divergence_that_learns():
    found = find_lr(
        plain_task(train=(X, (X[:, 0] > 0).long()), val=(X, (X[:, 0] > 0).long())),
        Recipe(optimizer="sgd", batch_size=16),
    )
    assert found.suggestion is not None
    assert 1e-3 < found.suggestion < 10
    assert list(found.lrs) == sorted(found.lrs)
    assert len(found.lrs) == len(found.losses)
    if found.diverges_at is not None:
        assert found.suggestion < found.diverges_at


def test_find_lr_ends_where_the_loss_diverges():
    task = Task(lambda: nn.Linear(5, 1), (X, 3 * X[:, :1]), val=(X, X[:, :1]), loss="mse")
    found = find_lr(task, Recipe(optimizer="sgd", batch_size=16), high=1e4)
    assert found.diverges_at is not None
    assert found.diverges_at < 1e4
    with pytest.raises(LuthierError, match="low < high"):
        find_lr(task, Recipe(), low=1, high=0.1)


def test_find_batch_size_doubles_until_the_data_end():
    found = find_batch_size(plain_task(), Recipe(), smallest=8, seconds=0.01)
    assert found.sizes == (8, 16, 32)[: len(found.sizes)]
    assert found.suggestion in found.sizes
    assert "48 examples" in found.limit or "half" in found.limit
    with pytest.raises(LuthierError, match="larger than train"):
        find_batch_size(plain_task(), Recipe(), smallest=64)


def test_fingerprints_tell_data_apart():
    changed = X.clone()
    changed[7, 2] += 1
    prints = {
        fingerprint(data) for data in ((X, Y), (changed, Y), (X[:40], Y[:40]), (X.double(), Y), {"x": X}, iter([]))
    }
    assert len(prints) == 6
    assert fingerprint((X, Y)) == fingerprint((X.clone(), Y.numpy()))
    assert fingerprint(X[::2][:1, :1]) == fingerprint(X[:1, :1].clone())
