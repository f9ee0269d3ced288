import json
import math

import pytest
import torch
from sklearn.kernel_ridge import KernelRidge

from luthier.doctor.measure import learners
from luthier.doctor.measure.labels import labels_of
from luthier.doctor.measure.samples import BLOCK, EXAMPLES, FEATURES, Samples


def blobs(n=600, d=8, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, d, generator=generator)
    y = torch.randint(classes, (n,), generator=generator)
    return centres[y] + torch.randn(n, d, generator=generator), y


def sampled(x, y, steps=40, batch=32, shuffle=True, serve=None, seed=0):
    """Batches of epochs, as a loop would serve them."""
    generator = torch.Generator().manual_seed(100 + seed)
    samples, order = Samples(), []
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(x), generator=generator).tolist() if shuffle else list(range(len(x)))
        rows, order = torch.tensor(order[:batch]), order[batch:]
        inputs, targets = x[rows], None if y is None else y[rows]
        if serve is not None:
            inputs, targets = serve(inputs, targets, generator)
        samples.add_train(step, inputs, targets, None)
    return samples


def n_kept(blocks):
    return sum(len(block.inputs) for block in blocks)


def test_keeps_a_bounded_number_spread_over_all_steps():
    samples = Samples()
    for step in range(100):
        samples.add_train(step, torch.full((256, 4), float(step)), torch.zeros(256))
    steps = [block.step for block in samples._train]
    assert n_kept(samples._train) <= EXAMPLES
    assert all(len(block.inputs) <= BLOCK for block in samples._train)
    assert steps[0] == 0
    assert steps[-1] > 80


def test_keeps_few_bytes_of_large_inputs():
    samples = Samples()
    for step in range(40):
        samples.add_train(step, torch.randn(64, 3, 64, 64), torch.zeros(64))
    held = sum(block.inputs.untyped_storage().nbytes() for block in samples._train)
    assert held <= 4 * EXAMPLES * FEATURES
    assert samples.examine()["features"] <= FEATURES


def test_copies_rows_in_order_and_keeps_nothing_of_the_users_tensors():
    x, y = torch.randn(16, 5, requires_grad=True), torch.arange(16)
    samples = Samples()
    samples.add_train(0, x * 1, y)
    block = samples._train[0]
    with torch.no_grad():
        expected = x.clone()
        x.zero_()
        y.zero_()
    assert torch.equal(block.inputs, expected)
    assert block.targets.tolist() == list(range(16))
    assert not block.inputs.requires_grad


def test_draws_no_random_numbers():
    state = torch.get_rng_state()
    samples = sampled(*blobs())
    samples.add_eval(40, 0, blobs(seed=0)[0][:50])
    samples.examine()
    assert torch.equal(state, torch.get_rng_state())


def test_evaluation_keeps_a_part_of_every_forward():
    samples = Samples()
    samples.add_train(0, torch.randn(32, 4), None)
    for forward in range(60):
        samples.add_eval(1, forward, torch.randn(100, 4))
    forwards = {block.forward for block in samples._eval}
    assert forwards == set(range(60))
    assert n_kept(samples._eval) <= EXAMPLES


def test_evaluation_stays_bounded_with_thousands_of_forwards():
    samples = Samples()
    for forward in range(3000):
        samples.add_eval(1, (0, forward), torch.randn(8, 4))
    assert n_kept(samples._eval) <= EXAMPLES
    assert samples._eval[-1].forward > 2900


def test_later_evaluations_are_left_out():
    samples = Samples()
    for step in range(10):
        samples.add_eval(step, 0, torch.randn(8, 4))
    assert {block.step for block in samples._eval} == {0, 1, 2, 3}


def test_row_is_plain_numbers_and_made_once():
    samples = sampled(*blobs())
    samples.add_eval(40, 0, blobs(60, seed=0)[0], None, blobs(60, seed=0)[1])
    row = samples.examine()
    assert json.loads(json.dumps(row)) == row
    assert len(json.dumps(row)) < 8000
    assert samples.examine() is row
    samples.add_train(41, *blobs(32))
    assert samples.examine() is not row


def test_nothing_seen_is_an_empty_row():
    assert Samples().examine() == {}


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        (torch.tensor(3.0), torch.tensor(1)),
        (torch.zeros(0, 3), torch.zeros(0)),
        (torch.randn(6, 2, dtype=torch.complex64), torch.zeros(6)),
    ],
)
def test_inputs_without_examples_are_left_out(inputs, targets):
    samples = Samples()
    samples.add_train(0, inputs, targets)
    assert samples.examine() == {}


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        (torch.randn(64, 6).bfloat16(), torch.rand(64, 1)),
        (torch.randn(64, 6).double(), torch.rand(64, 40)),
        (torch.randint(256, (64, 3, 4, 4), dtype=torch.uint8), torch.randint(2, (64, 5))),
        (torch.randint(50, (64, 7)), torch.randint(50, (64, 7))),
        (torch.randint(50, (64,)), torch.randn(64)),
        (torch.rand(64, 3) > 0.5, torch.rand(64) > 0.5),
        (torch.randn(64, 6), torch.full((64,), math.nan)),
        (torch.full((64, 6), math.inf), torch.zeros(64)),
        (torch.zeros(64, 6), torch.zeros(64, dtype=torch.long)),
        (torch.randn(64), torch.randn(64)),
        (torch.randn(7, 64, 3), torch.zeros(64)),
        (torch.randn(64, 4), torch.randn(32)),
        (torch.randn(1, 4), torch.zeros(1, dtype=torch.long)),
        (torch.randn(64, 4), torch.randn(64, 3, 32, 32)),
    ],
)
def test_any_kind_of_batch_can_be_examined(inputs, targets):
    samples = Samples()
    for step in range(8):
        samples.add_train(step, inputs, targets, None)
    samples.add_eval(8, 0, inputs, None, targets)
    json.dumps(samples.examine(), allow_nan=False)


def test_batches_of_several_shapes_use_the_most_frequent():
    samples = Samples()
    for step in range(6):
        samples.add_train(step, torch.randn(8, 5 if step % 3 else 9), torch.zeros(8))
    assert samples.examine()["shape"] == [5]


def test_nonfinite_inputs_are_counted_with_their_columns():
    x, y = blobs()
    x[::10, 3] = math.nan
    row = sampled(x, y).examine()
    assert row["nonfinite"]["columns"] == [3]
    assert 0.05 < row["nonfinite"]["inputs"] < 0.2
    assert row["learn"]["accuracy"] > 0.9


def test_columns_tell_scales():
    x, y = blobs()
    x[:, 0] *= 1000
    x[:, 1] = 7.0
    inputs = sampled(x, y).examine()["inputs"]
    assert inputs["feature_rms"][4] > 100 * inputs["feature_rms"][2]
    assert inputs["constant"] == pytest.approx(1 / 8)


def test_repeats_know_whether_targets_came_along():
    x, y = blobs(200)
    assert sampled(x, y).examine()["repeats"]["conflict"] == 0
    torn = sampled(x, y, serve=lambda a, b, g: (a, b[torch.randperm(len(b), generator=g)])).examine()["repeats"]
    assert torn["pairs"] > 200
    assert torn["conflict"] == pytest.approx(1, abs=0.15)
    assert torn["twins"] == 0


def test_blank_inputs_tell_nothing_about_their_targets():
    x, y = torch.randn(4000, 8), torch.randint(3, (4000,))
    x[::8] = 0.0
    assert sampled(x, y).examine()["repeats"]["pairs"] < 20


def test_twins_in_a_batch_show_discrete_inputs():
    x = torch.randint(2, (400, 4)).float()
    assert sampled(x, x.sum(1).long() % 2).examine()["repeats"]["twins"] == pytest.approx(1 / 16, abs=0.03)


@pytest.mark.parametrize("shift", [1, 2, -3])
def test_shift_within_the_batch_is_found(shift):
    row = sampled(*blobs(), serve=lambda a, b, _: (a, b.roll(shift, 0))).examine()
    shifts = {int(k): v[0] for k, v in row["learn"]["shifts"].items()}
    assert max(shifts, key=shifts.get) == shift
    assert shifts[shift] > 0.6
    assert row["learn"]["z"] < 4


def test_learners_find_what_is_there_and_nothing_else():
    worst_found, best_chance = math.inf, 0.0
    for seed in range(12):
        x, y = blobs(seed=seed)
        worst_found = min(worst_found, sampled(x, y, seed=seed).examine()["learn"]["z"])
        shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
        best_chance = max(best_chance, sampled(x, shuffled, seed=seed).examine()["learn"]["z"])
    assert worst_found > 8
    assert best_chance < 4


def test_learners_follow_an_exclusive_or():
    x = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    learn = sampled(x, (x[:, 0] * x[:, 1] > 0).long()).examine()["learn"]
    assert learn["learner"] == "kernel"
    assert learn["accuracy"] > 0.9


def test_contradiction_fades_with_confidence_unless_labels_are_wrong():
    generator = torch.Generator().manual_seed(3)
    x, y = blobs(800)
    clean = sampled(x, y).examine()["learn"]["contradicted"]
    wrong = torch.rand(len(y), generator=generator) < 0.4
    noisy = torch.where(wrong, torch.randint(3, (len(y),), generator=generator), y)
    floor = sampled(x, noisy).examine()["learn"]["contradicted"]
    assert clean[0] == 0
    assert floor[0] == pytest.approx(0.27, abs=0.12)


def test_tail_tells_wrong_targets_from_normal_noise():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 4, generator=generator)
    y = x @ torch.randn(4, 1, generator=generator) + 0.2 * torch.randn(600, 1, generator=generator)
    wrong = torch.rand(600, 1, generator=generator) < 0.15
    noisy = torch.where(wrong, 3 * torch.randn(600, 1, generator=generator), y)
    assert sampled(x, y).examine()["learn"]["tail"] < 4
    assert sampled(x, noisy).examine()["learn"]["tail"] > 5


def test_linear_learner_is_kernel_ridge():
    generator = torch.Generator().manual_seed(0)
    X, Y, other = (torch.randn(n, m, generator=generator) for n, m in ((50, 6), (50, 2), (9, 6)))
    ours = learners.carried_over(X, Y, other, "linear")
    theirs = KernelRidge(alpha=6.0).fit(X.numpy(), (Y - Y.mean(0)).numpy()).predict(other.numpy())
    assert torch.allclose(ours - Y.mean(0), torch.tensor(theirs).float(), atol=1e-4)


def test_a_feature_that_is_the_target_leads():
    x, y = blobs(d=6)
    leaked = sampled(torch.cat([x, y[:, None].float() * 3 - 1], 1), y).examine()["leading"]
    assert leaked["index"] == 6
    assert leaked["first"] > 0.9999
    assert sampled(x, y).examine()["leading"]["first"] < 0.99


def test_order_is_one_for_random_batches_and_large_for_sorted_ones():
    x, y = blobs()
    assert sampled(x, y).examine()["order"]["inputs_f"] == pytest.approx(1, abs=0.35)
    order = y.argsort()
    assert sampled(x[order], y[order], shuffle=False, steps=18).examine()["order"]["inputs_f"] > 5


def test_duplicates_are_told_for_every_forward():
    x, y = blobs(300)
    samples = sampled(x, y)
    samples.add_eval(40, 0, x[:100])
    samples.add_eval(40, 1, blobs(100, seed=5)[0])
    row = samples.examine()
    assert row["forwards"]["in_train"] == [100, 0]
    assert row["forwards"]["forward"] == [0, 1]
    assert row["compare"]["n"][1] == 100


def test_difference_of_samples_is_measured_against_random_division():
    x, y = blobs(800)
    samples = sampled(x[:600], y[:600])
    samples.add_eval(40, 0, x[600:])
    same = samples.examine()["compare"]
    samples = sampled(x[:600], y[:600])
    samples.add_eval(40, 0, 3 * x[600:] + 4)
    other = samples.examine()["compare"]
    assert same["shift"] < same["shift_null"][0] + 4 * same["shift_null"][1]
    assert other["shift"] > 0.8
    assert other["log_spread"] == pytest.approx(math.log2(3), abs=0.3)


def test_what_training_pairs_teach_is_carried_over_to_evaluation():
    x, y = blobs(800)
    for labels, low, high in ((y, 0.9, 1.01), ((y + 1) % 3, -0.01, 0.1)):
        samples = sampled(x[:600], y[:600])
        samples.add_eval(40, 0, x[600:], None, labels[600:])
        assert low < samples.examine()["carried"]["accuracy"] < high


@pytest.mark.parametrize(
    ("targets", "kind", "columns"),
    [
        (torch.tensor([0, 1, 2, 1]), "class", 3),
        (torch.tensor([[0.0], [1.0], [1.0]]), "class", 2),
        (torch.eye(4)[[0, 1, 3, 3]], "class", 3),
        (torch.randn(5), "number", 1),
        (torch.randn(5, 3), "vector", 3),
        (torch.randn(5, 100), "vector", 16),
        (torch.tensor([[0, 1, 1], [1, 1, 0]]), "vector", 3),
        (torch.tensor([[4, 1, 7], [9, 3, 0]]), "sequence", 3),
    ],
)
def test_targets_become_columns(targets, kind, columns):
    labels = labels_of(targets)
    assert labels.kind == kind
    assert labels.columns.shape == (len(targets), columns)
