import math
from dataclasses import replace

import pytest
import torch

from luthier.doctor.findings import NotSeen
from luthier.doctor.measure.samples import Samples
from luthier.doctor.symptoms import curves, inputs, underfit
from luthier.doctor.symptoms.data import data_leakage, unshuffled_data
from luthier.doctor.symptoms.imbalance import class_imbalance
from luthier.doctor.symptoms.inputs import nan_input, unnormalised_input
from luthier.doctor.symptoms.labels import label_misaligned, label_noise
from luthier.doctor.symptoms.mismatch import train_val_mismatch
from luthier.doctor.symptoms.targets import degenerate_labels, unscaled_target
from luthier.doctor.vitals import (
    Anatomy,
    Argument,
    BatchTargets,
    Evaluation,
    Look,
    Metrics,
    Node,
    Predictions,
    Stats,
    Steps,
    Vitals,
)

RULES = [
    nan_input,
    unnormalised_input,
    unscaled_target,
    unshuffled_data,
    class_imbalance,
    label_noise,
    label_misaligned,
    degenerate_labels,
    data_leakage,
    train_val_mismatch,
]


def blobs(n=800, d=8, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, d, generator=generator)
    y = torch.randint(classes, (n,), generator=generator)
    return centres[y] + torch.randn(n, d, generator=generator), y


def line(n=800, d=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    y = x @ torch.randn(d, 1, generator=generator)
    return x, y / y.std() + 0.1 * torch.randn(n, 1, generator=generator)


def target_row(step, y):
    if y.is_floating_point():
        return BatchTargets(step, len(y), None, float(y.mean()), float(y.std(correction=0)))
    values, counts = y.unique(return_counts=True)
    return BatchTargets(step, len(y), {str(int(v)): int(c) for v, c in zip(values, counts, strict=True)})


def look(step=0, op="cross_entropy", inputs=None, targets=None, classes=3, predictions=None, output=None):
    """A look at x -> linear -> loss."""
    inputs = inputs or Stats(n=256, mean=0.0, std=1.0, min=-3.0, max=3.0, zero=0.0, nonfinite=0.0)
    answer = Argument("n0", (32, classes), "float32", True)
    truth = Argument("target", (32,), "int64", stats=targets)
    given = Argument("input:0", (32, 8), "float32", stats=inputs)
    nodes = (
        Node(0, "linear", "fc", (given,), {}, (32, classes), "float32", True, output),
        Node(1, op, None, (answer, truth), {"reduction": "mean"}, (), "float32", True),
    )
    return Look(step, True, nodes, (0,), (1,), inputs=given, targets=truth, predictions=predictions, batch_size=32)


def metrics(**series):
    """metrics(val_loss=[(10, 1.0), ...])."""
    steps = sorted({step for points in series.values() for step, _ in points})
    return [
        Metrics(step, {name: dict(points)[step] for name, points in series.items() if step in dict(points)})
        for step in steps
    ]


def trained(
    x,
    y,
    val=None,
    *,
    steps=60,
    batch=32,
    shuffle=True,
    serve=None,
    op=None,
    end=0.1,
    accuracy=0.95,
    val_accuracy=0.95,
    val_loss=None,
    seed=0,
    before_val=None,
):
    """Vitals as a training on x, y leaves them, with made-up results."""
    op = op or ("mse_loss" if y.is_floating_point() else "cross_entropy")
    generator = torch.Generator().manual_seed(100 + seed)
    samples, order, rows, looks = Samples(), [], [], []
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(x), generator=generator).tolist() if shuffle else list(range(len(x)))
        chosen, order = torch.tensor(order[:batch]), order[batch:]
        inputs, targets = x[chosen], y[chosen]
        if serve is not None:
            inputs, targets = serve(inputs, targets, generator)
        rows.append(target_row(step, targets))
        samples.add_train(step, inputs, targets, None)
        right = round(accuracy * batch)
        answers = Predictions(batch, right, 0, (0.01, 0.02, 0.03, 0.1, 0.2, 0.4, 0.9))
        looks.append(look(step, op, classes=3 if op == "cross_entropy" else 1, predictions=answers))
    forwards = 0
    for part in (before_val, val):
        if part is not None:
            samples.add_eval(steps, forwards, part)
            forwards += 1
    start = 1.1
    losses = tuple(end + (start - end) * math.exp(-step / (0.15 * steps)) for step in range(steps))
    at = [steps // 4, steps // 2, 3 * steps // 4, steps]
    values = {"val_loss": [(step, losses[step - 1] if val_loss is None else val_loss) for step in at]}
    if op == "cross_entropy":
        values["val_accuracy"] = [(step, val_accuracy) for step in at]
    evaluations = [Evaluation(steps, False, False, forwards, 200)] if forwards else []
    return Vitals(
        anatomies=[Anatomy(model_types=("Net",), loss_fn="CrossEntropyLoss")],
        looks=looks,
        steps=Steps(tuple(range(steps)), losses, (0.01,) * steps, (0.0,) * steps, (0.0,) * steps),
        targets=rows,
        evaluations=evaluations,
        metrics=metrics(**values),
        data={"kind": "data", **samples.examine()},
    )


def alarms(vitals):
    """Ids of warnings and worse, with their certainty."""
    found = {}
    for rule in RULES:
        result = rule(vitals)
        for finding in result if isinstance(result, list) else ():
            assert finding.symptom == rule.__name__
            assert finding.evidence
            if finding.severity != "info":
                found[finding.symptom] = finding.certainty
    return found


def with_look(**settings):
    return Vitals(looks=[look(**settings)], steps=Steps((0,), (1.0,)))


# --- every rule ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_empty_vitals_are_not_seen(rule):
    result = rule(Vitals())
    assert isinstance(result, NotSeen) or result == []


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "data",
    [
        {"learn": None, "repeats": [], "forwards": {"n": None}, "compare": 3, "leading": "x", "shape": None},
        {"learn": {"n": 500, "z": None, "shifts": {"1": None, "2": [1]}}, "compare": {"shift": 1.0, "log_spread": 0.0}},
        {"nonfinite": {"inputs": float("nan"), "columns": None}, "inputs": {"feature_rms": [1, None]}, "order": {}},
        {"forwards": {"n": [3], "in_train": [], "step": [1]}, "repeats": {"conflict": 1.0}, "distinct": None},
    ],
)
def test_half_filled_data_never_raises(rule, data):
    vitals = Vitals(data=data, looks=[Look(0), look(1)], metrics=[Metrics(3, {"val_loss": 1.0, "val_accuracy": 0.5})])
    vitals.targets = [BatchTargets(0, 4), BatchTargets(1, 4, {"0": 4}), BatchTargets(2, 4, None, 0.5, math.nan)]
    vitals.evaluations = [Evaluation(3, False, False, 1, 0, predictions=Predictions(0, 0, 0))]
    result = rule(vitals)
    assert isinstance(result, (list, NotSeen))


def test_healthy_trainings_get_no_alarm():
    """No warning in 40 healthy draws: classes, overlapping classes, numbers, unequal class shares."""
    found = {}
    for seed in range(10):
        x, y = blobs(seed=seed)
        xv, _ = blobs(1000, seed=seed)
        found[f"blobs {seed}"] = alarms(trained(x, y, xv[800:], seed=seed))
        wide = 1.6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        found[f"overlapping {seed}"] = alarms(
            trained(x + wide, y, xv[800:] + wide[:200], accuracy=0.85, val_accuracy=0.8, end=0.4, seed=seed)
        )
        rows = (y > 0) | (torch.rand(len(y), generator=torch.Generator().manual_seed(seed)) < 0.6)
        found[f"unequal {seed}"] = alarms(trained(x[rows], y[rows], xv[800:], seed=seed))
        a, b = line(1000, seed=seed)
        found[f"line {seed}"] = alarms(trained(a[:800], b[:800], a[800:], seed=seed))
    assert {name: value for name, value in found.items() if value} == {}


# --- inputs ----------------------------------------------------------------------------------------------------------


def test_nan_in_the_inputs_that_reaches_the_loss_is_critical():
    x, y = blobs()
    x[::20, 2] = math.nan
    vitals = trained(x, y)
    vitals.steps = Steps(tuple(range(4)), (1.0, 0.9, math.nan, math.nan))
    (finding,) = nan_input(vitals)
    assert (finding.severity, finding.certainty) == ("critical", 1.0)
    assert finding.numbers["columns"] == [2]


def test_nan_that_the_model_catches_is_only_worth_knowing():
    x, y = blobs()
    x[::20, 2] = math.nan
    (finding,) = nan_input(trained(x, y))
    assert finding.severity == "info"


def test_nan_in_the_targets_is_found():
    vitals = Vitals(targets=[BatchTargets(0, 8, None, 0.1, 1.0), BatchTargets(5, 8, None, math.nan, math.nan)])
    vitals.steps = Steps((0, 5), (1.0, math.nan))
    (finding,) = nan_input(vitals)
    assert (finding.severity, finding.onset) == ("critical", 5)


def test_a_loss_that_overflows_with_clean_data_is_no_nan_input():
    vitals = trained(*blobs())
    vitals.steps = Steps((0, 1), (1.0, math.nan))
    assert nan_input(vitals) == []


@pytest.mark.parametrize(
    ("mean", "std", "zero", "severity"),
    [
        (0.0, 1.0, 0.0, None),
        (0.13, 0.31, 0.8, None),
        (0.5, 0.29, 0.0, None),
        (0.01, 0.1, 0.99, None),
        (0.0, 1.9, 0.0, None),
        (33.0, 78.0, 0.8, "warning"),
        (128.0, 70.0, 0.0, "critical"),
        (100.0, 1.0, 0.0, "critical"),
        (0.0, 500.0, 0.0, "critical"),
        (0.0, 0.001, 0.0, "warning"),
        (4.9, 6.0, 0.5, "info"),
    ],
)
def test_scale_of_the_inputs(mean, std, zero, severity):
    result = unnormalised_input(with_look(inputs=Stats(n=256, mean=mean, std=std, zero=zero, min=-1.0, max=1.0)))
    assert [finding.severity for finding in result] == ([severity] if severity else [])


def test_inputs_that_the_model_normalises_first_are_fine():
    raw = Stats(n=256, mean=100.0, std=50.0, zero=0.0)
    argument = Argument("input:0", (32, 8), "float32", stats=raw)
    nodes = (
        Node(0, "sub", "", (argument,), {}, (32, 8), "float32", stats=Stats(mean=0.0, std=50.0)),
        Node(1, "div", "", (Argument("n0"),), {}, (32, 8), "float32", stats=Stats(mean=0.0, std=1.0)),
        Node(2, "linear", "fc", (Argument("n1"),), {}, (32, 3), "float32"),
    )
    assert unnormalised_input(Vitals(looks=[Look(0, True, nodes, inputs=argument)])) == []


def test_a_residual_sum_is_no_input():
    fine = Argument("input:0", (32, 8), "float32", stats=Stats(n=256, mean=0.0, std=1.0, zero=0.0))
    nodes = (
        Node(0, "linear", "a", (fine,), {}, (32, 8), "float32"),
        Node(1, "add", "", (fine, Argument("n0")), {}, (32, 8), "float32", stats=Stats(mean=0.0, std=500.0)),
        Node(2, "linear", "b", (Argument("n1"),), {}, (32, 3), "float32"),
    )
    assert unnormalised_input(Vitals(looks=[Look(0, True, nodes, inputs=fine)])) == []


def test_a_norm_right_behind_the_first_layer_heals_the_scale(monkeypatch):
    raw = Stats(n=256, mean=100.0, std=50.0, zero=0.0)
    argument = Argument("input:0", (32, 3, 8, 8), "float32", stats=raw)
    nodes = (
        Node(0, "conv2d", "conv", (argument,), {}, (32, 4, 8, 8), "float32"),
        Node(1, "batch_norm", "bn", (Argument("n0"),), {}, (32, 4, 8, 8), "float32"),
    )
    (finding,) = unnormalised_input(Vitals(looks=[Look(0, True, nodes, inputs=argument)]))
    assert finding.severity == "info"
    monkeypatch.setattr(inputs, "lost_in_evaluation", lambda _: (0.1, 90.0))
    (finding,) = unnormalised_input(Vitals(looks=[Look(0, True, nodes, inputs=argument)]))
    assert finding.severity == "critical", "its running statistics did not follow"


def test_features_on_different_scales():
    x, y = blobs(d=100)
    x[:, 0] *= 30
    vitals = trained(x, y)
    vitals.looks = [look(inputs=Stats(mean=0.1, std=6.0, zero=0.0, min=-90.0, max=90.0))]
    (finding,) = unnormalised_input(vitals)
    assert finding.severity == "warning"
    assert "different scales" in finding.cause


# --- targets ---------------------------------------------------------------------------------------------------------


def regression(mean, std, losses=(1.0, 0.5, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1), output=None):
    vitals = Vitals(looks=[look(op="mse_loss", classes=1, output=output)])
    vitals.targets = [BatchTargets(step, 32, None, mean, std) for step in range(len(losses))]
    vitals.steps = Steps(tuple(range(len(losses))), tuple(loss * (std**2 + mean**2) for loss in losses))
    return vitals


@pytest.mark.parametrize(
    ("mean", "std", "severity"),
    [
        (0.0, 1.0, None),
        (0.5, 0.3, None),
        (3.0, 4.0, None),
        (500.0, 100.0, "warning"),
        (0.0, 300.0, "warning"),
        (0.0, 0.001, "warning"),
    ],
)
def test_scale_of_the_targets(mean, std, severity):
    result = unscaled_target(regression(mean, std))
    assert [finding.severity for finding in result] == ([severity] if severity else [])


def test_targets_whose_scale_the_model_makes_itself_are_fine():
    assert unscaled_target(regression(500.0, 100.0, output=Stats(mean=480.0, std=90.0))) == []


def test_targets_that_nobody_told_are_read_off_the_loss():
    vitals = regression(500.0, 100.0)
    nodes = list(vitals.looks[0].nodes)
    truth = replace(nodes[1].arguments[1], dtype="float32", stats=Stats(n=32, mean=500.0, std=100.0))
    nodes[1] = replace(nodes[1], arguments=(nodes[1].arguments[0], truth))
    untold = replace(vitals, targets=[], looks=[replace(vitals.looks[0], nodes=tuple(nodes), targets=None)])
    assert [finding.severity for finding in unscaled_target(untold)] == ["warning"]


def test_middling_targets_alarm_only_when_they_are_not_learnt():
    assert [finding.severity for finding in unscaled_target(regression(0.0, 15.0))] == ["info"]
    stuck = regression(0.0, 15.0, losses=(1.0,) * 8)
    assert [finding.severity for finding in unscaled_target(stuck)] == ["warning"]


@pytest.mark.parametrize(("late", "severity"), [(4, "info"), (20, "warning")])
def test_middling_targets_that_took_a_part_of_the_training_to_reach(late, severity):
    losses = (*(1.0 - 0.8 * i / late for i in range(late)), *[0.02] * (40 - late))  # of the squares: 0.1 is the spread
    carried = regression(14.0, 5.0, losses=losses)
    assert [finding.severity for finding in unscaled_target(carried)] == [severity]


def test_classes_have_no_scale():
    assert unscaled_target(trained(*blobs())) == []


def classes(rows, by_class=None, outputs=3):
    vitals = Vitals(targets=[BatchTargets(step, sum(row.values()), row) for step, row in enumerate(rows)])
    predictions = Predictions(100, 90, 0, (), by_class) if by_class else None
    vitals.looks = [look(classes=outputs, predictions=predictions)]
    return vitals


def test_rare_class_that_is_never_answered():
    rows = [{"0": 30, "1": 2}] * 20
    (finding,) = class_imbalance(classes(rows, {"0": (90, 100, 90), "1": (10, 0, 0)}))
    assert finding.severity == "warning"
    assert finding.certainty > 0.8


def test_rare_class_that_is_learnt_is_only_worth_knowing():
    rows = [{"0": 30, "1": 2}] * 20
    (finding,) = class_imbalance(classes(rows, {"0": (90, 90, 90), "1": (10, 10, 10)}))
    assert finding.severity == "info"


def test_extreme_imbalance_alarms_when_nothing_is_known_of_the_answers():
    (finding,) = class_imbalance(classes([{"0": 63, "1": 1}] * 20))
    assert finding.severity == "warning"


@pytest.mark.parametrize("row", [{"0": 19, "1": 13}, {"0": 24, "1": 8}, {"0": 10, "1": 11, "2": 11}])
def test_usual_class_shares_are_fine(row):
    assert class_imbalance(classes([row] * 20)) == []


def tokens(by_class):
    vitals = classes([{"0": 900, "1": 10}] * 20, by_class)
    return replace(vitals, targets=[BatchTargets(row.step, 8, row.counts) for row in vitals.targets])


def test_rare_tokens_are_no_imbalance_unless_none_is_answered():
    assert [finding.severity for finding in class_imbalance(tokens(None))] == ["info"]
    assert [finding.severity for finding in class_imbalance(tokens({"0": (900, 905, 895), "1": (10, 5, 5)}))] == [
        "info"
    ]
    assert [finding.severity for finding in class_imbalance(tokens({"0": (900, 910, 900), "1": (10, 0, 0)}))] == [
        "warning"
    ]


def test_rare_words_of_a_language_are_no_imbalance():
    vitals = classes([{"0": 30, "1": 2, "2": 0}] * 20, {"0": (90, 100, 90), "1": (10, 0, 0)})
    assert [finding.severity for finding in class_imbalance(vitals)] == ["warning"]
    table = Node(0, "embedding", "e", (Argument("input:0", (32, 1)), Argument("param:e.weight", (3, 8))), {}, (32, 8))
    reads = replace(vitals.looks[0], nodes=(table, *vitals.looks[0].nodes[1:]))
    assert [finding.severity for finding in class_imbalance(replace(vitals, looks=[reads]))] == ["info"]


def test_classes_that_nobody_told_are_read_off_the_loss():
    vitals = classes([], {"0": (98, 100, 98), "1": (2, 0, 0)})
    vitals.looks = [replace(vitals.looks[0], step=step, batch_size=100) for step in range(20)]
    (finding,) = class_imbalance(vitals)
    assert finding.severity == "warning"
    vitals.looks = [replace(look, batch_size=10) for look in vitals.looks]  # tokens: half of the rare ones will do
    vitals.looks = [
        replace(look, predictions=Predictions(100, 99, 0, (), {"0": (98, 99, 98), "1": (2, 1, 1)}))
        for look in vitals.looks
    ]
    assert [finding.severity for finding in class_imbalance(vitals)] == ["info"]


def test_one_class_only():
    (finding,) = degenerate_labels(classes([{"0": 32}] * 10))
    assert (finding.severity, finding.onset) == ("critical", 0)
    assert finding.certainty > 0.9


def test_constant_targets_that_nobody_told_are_read_off_the_loss():
    def row(high):
        target = Argument("target", (16, 1), "float32", stats=Stats(n=16, mean=0.0, std=0.0, min=0.0, max=high))
        return Node(0, "binary_cross_entropy_with_logits", None, (Argument("n7", (16, 1), requires_grad=True), target))

    for high, found in ((0.0, 1), (1.0, 0)):
        vitals = Vitals(looks=[Look(step, nodes=(row(high),), roots=(0,)) for step in range(4)])
        assert len(degenerate_labels(vitals)) == found


def test_constant_number():
    assert degenerate_labels(regression(0.7, 0.0))[0].severity == "critical"
    assert degenerate_labels(regression(0.7, 0.1)) == []


def test_constant_targets_of_a_game_between_networks_are_on_purpose():
    vitals = classes([{"1": 32}] * 10)
    vitals.anatomies = [Anatomy(model_types=("Generator", "Discriminator"))]
    assert isinstance(degenerate_labels(vitals), NotSeen)


@pytest.mark.parametrize(
    ("columns", "shape", "found"),
    [([0, 1, 2], (32, 4), True), ([0], (32, 4), False), ([0, 1, 2], (32, 4, 1), False)],
    ids=["most labels", "one label", "a label at each place"],
)
def test_labels_that_never_occur(columns, shape, found):
    x, _ = line()
    y = (x[:, :4] > 0).float()
    y[:, columns] = 0.0
    vitals = trained(x, y, op="binary_cross_entropy_with_logits")
    shown = Argument("target", shape, "float32")
    vitals.looks = [replace(look, targets=shown) for look in vitals.looks]
    assert ("degenerate_labels" in alarms(vitals)) == found


def test_binary_targets_beyond_one():
    targets = Stats(n=32, mean=1.5, std=0.5, min=1.0, max=2.0)
    vitals = classes([{"1": 16, "2": 16}] * 4)
    vitals.looks = [look(op="binary_cross_entropy_with_logits", targets=targets, classes=1)]
    (finding,) = degenerate_labels(vitals)
    assert finding.severity == "critical"


def test_numbers_cut_to_integers():
    generator = torch.Generator().manual_seed(0)
    rows = [target_row(step, torch.randn(64, generator=generator).trunc().long()) for step in range(20)]
    vitals = Vitals(targets=rows, looks=[look(op="mse_loss", classes=1)])
    (finding,) = degenerate_labels(vitals)
    assert finding.severity == "warning"
    rows = [target_row(step, (3 * torch.randn(64, generator=generator)).round().long()) for step in range(20)]
    assert degenerate_labels(Vitals(targets=rows, looks=[look(op="mse_loss", classes=1)])) == []


def test_far_fewer_classes_than_outputs():
    rows = [{"0": 16, "1": 16}] * 20
    assert degenerate_labels(classes(rows, outputs=10))[0].severity == "warning"
    assert degenerate_labels(classes(rows, outputs=3)) == []
    assert degenerate_labels(classes(rows[:2], outputs=10)) == []


# --- order -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [blobs, line])
def test_sorted_data_is_unshuffled(make):
    x, y = make()
    order = y.flatten().argsort()
    (finding,) = unshuffled_data(trained(x[order], y[order], shuffle=False))
    assert finding.severity != "info"
    assert finding.certainty > 0.8


@pytest.mark.parametrize("make", [blobs, line])
@pytest.mark.parametrize("batch", [1, 2, 4, 32, 128])
def test_random_batches_are_shuffled(make, batch):
    """No alarm in ten draws of every batch size."""
    assert [unshuffled_data(trained(*make(seed=seed), batch=batch, seed=seed)) for seed in range(10)] == [[]] * 10


def test_batches_of_one_example_can_be_ordered_too():
    x, y = blobs(240)
    order = y.argsort()
    assert unshuffled_data(trained(x[order], y[order], steps=240, batch=1, shuffle=False)) != []


def test_an_unshuffled_but_mixed_order_is_harmless():
    assert unshuffled_data(trained(*blobs(), shuffle=False)) == []


def test_tokens_of_one_example_go_together():
    """Whole sequences of one class would look ordered if tokens counted as independent."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for step in range(40):
        tokens = torch.randint(4, (8, 1), generator=generator).expand(8, 50).reshape(-1)
        counts = target_row(step, tokens).counts
        rows.append(BatchTargets(step, 8, counts))
    assert unshuffled_data(Vitals(targets=rows)) == []


def test_inputs_in_order_count_when_no_targets_were_seen():
    x, y = blobs()
    order = y.argsort()
    vitals = trained(x[order], y[order], shuffle=False)
    vitals.targets = []
    assert unshuffled_data(vitals)[0].symptom == "unshuffled_data"
    vitals = trained(x, y)
    vitals.targets = []
    assert unshuffled_data(vitals) == []


# --- labels ----------------------------------------------------------------------------------------------------------


def noisy(y, share, seed=0):
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(y), generator=generator) < share
    if y.is_floating_point():
        return torch.where(wrong[:, None], y[torch.randperm(len(y), generator=generator)], y)
    return torch.where(wrong, torch.randint(3, (len(y),), generator=generator), y)


def test_noisy_training_labels_with_clean_validation():
    found = []
    for seed in range(5):
        x, y = blobs(seed=seed)
        found.append(alarms(trained(x, noisy(y, 0.4, seed), accuracy=0.72, val_accuracy=0.95, end=0.8, seed=seed)))
    assert [list(item) for item in found] == [["label_noise"]] * 5


@pytest.mark.parametrize(("later", "found"), [((0.28, 0.33, 0.35), True), ((0.2, 0.18, 0.15), False)])
def test_wrong_targets_that_are_learnt_by_heart_later(later, found):
    vitals = regression(0.0, 1.0, losses=tuple(0.7 - 0.005 * step for step in range(100)))
    points = zip((15, 30, 45, 60, 80, 99), (0.3, 0.22, 0.25, *later), strict=True)
    vitals.metrics = [Metrics(step, {"val_loss": value}) for step, value in points]
    vitals.data = {"repeats": {"pairs": 100, "conflict": 0.0}, "learn": {"n": 512, "r2": 0.4, "together": 1.0}}
    assert bool(label_noise(vitals)) is found


def test_noisy_labels_everywhere():
    x, y = blobs()
    vitals = trained(x, noisy(y, 0.4), accuracy=0.74, val_accuracy=0.72, end=0.8)
    assert alarms(vitals).keys() == {"label_noise"}


def test_a_network_that_learnt_nothing_is_no_witness_of_noise():
    x, y = blobs()
    assert "label_noise" not in alarms(trained(x, noisy(y, 0.4), accuracy=0.34, val_accuracy=0.34, end=math.log(3)))


def test_a_third_of_two_classes_wrong_everywhere():
    x, y = blobs(classes=2, n=1600)
    wrong = torch.rand(len(y), generator=torch.Generator().manual_seed(0)) < 0.3
    vitals = trained(x, torch.where(wrong, 1 - y, y), accuracy=0.72, val_accuracy=0.68, end=0.9)
    assert "label_noise" in alarms(vitals)


@pytest.mark.parametrize(("quarters", "found"), [([0.13, 0.09, 0.21, 0.46], 0), ([0.25, 0.2, 0.22, 0.3], 1)])
def test_a_tenth_of_sure_mistakes_may_be_chance(quarters, found):
    vitals = trained(*blobs(classes=2, n=1600), accuracy=0.85, val_accuracy=0.85, end=0.35)
    accuracy = 1 - sum(quarters) / 4
    vitals.data["learn"] |= {"accuracy": accuracy, "contradicted": quarters, "majority": 0.53, "n": 512, "z": 13.0}
    assert len(label_noise(vitals)) == found


@pytest.mark.parametrize(("speed", "found"), [(9, 0), (60, 1)])
def test_validation_falls_by_wrong_labels_only_where_training_goes_on_improving(speed, found):
    vitals = trained(*blobs(n=1600), accuracy=0.85)
    quarters = {"accuracy": 0.575, "contradicted": [0.25, 0.4, 0.45, 0.6], "majority": 0.34, "n": 512, "z": 13.0}
    vitals.data["learn"] |= quarters
    vitals.metrics = [Metrics(step, {"val_accuracy": v}) for step, v in ((15, 0.6), (30, 0.86), (45, 0.8), (60, 0.71))]
    losses = tuple(0.6 + 0.5 * math.exp(-step / speed) for step in range(60))
    assert len(label_noise(replace(vitals, steps=replace(vitals.steps, loss=losses)))) == found


@pytest.mark.parametrize(("looks", "severity"), [(3, "warning"), (30, "info")])
def test_a_network_seen_on_few_examples_may_do_better_than_the_learners_by_chance(looks, severity):
    vitals = replace(trained(*blobs(n=1600), accuracy=0.72), metrics=[])
    quarters = {"accuracy": 0.575, "contradicted": [0.32, 0.34, 0.43, 0.6], "majority": 0.34, "n": 512, "z": 13.0}
    vitals.data["learn"] |= quarters
    (finding,) = label_noise(replace(vitals, looks=vitals.looks[-looks:]))
    assert finding.severity == severity


def test_classes_that_overlap_are_not_noisy():
    x, _ = blobs(classes=2, n=1600)
    drawn = torch.rand(len(x), generator=torch.Generator().manual_seed(0))
    y = (drawn < (1.5 * (x[:, 0] - x[:, 0].mean()) / x[:, 0].std()).sigmoid()).long()
    assert "label_noise" not in alarms(trained(x, y, accuracy=0.72, val_accuracy=0.7, end=0.9))


def test_what_the_data_do_not_hold_is_no_underfitting():
    x, _ = blobs(classes=2, n=1600)
    drawn = torch.rand(len(x), generator=torch.Generator().manual_seed(0))
    y = (drawn < (1.1 * (x[:, 0] - x[:, 0].mean()) / x[:, 0].std()).sigmoid()).long()
    fitted = trained(x, y, steps=120, accuracy=0.73, val_accuracy=0.73, end=0.56)
    assert underfit.underfitting(fitted) == curves.plateau(fitted) == []
    (finding,) = underfit.underfitting(trained(x, y, steps=120, accuracy=0.6, val_accuracy=0.6, end=0.56))
    assert finding.severity == "warning"


def test_learnable_labels_that_small_learners_miss_are_not_noisy():
    x, y = blobs()
    assert alarms(trained(x, noisy(y, 0.4), accuracy=0.97, val_accuracy=0.94)) == {}


def test_labels_that_change_from_epoch_to_epoch_are_noisy():
    x, y = blobs(400)
    vitals = trained(x, y, serve=lambda a, b, g: (a, torch.where(torch.rand(len(b), generator=g) < 0.3, 0, b)), end=0.6)
    assert alarms(vitals).keys() == {"label_noise"}
    assert "change from epoch to epoch" in label_noise(vitals)[0].cause


def test_noise_in_regression_targets():
    x, y = line()
    assert "label_noise" in alarms(trained(x, noisy(y, 0.3), end=0.5, val_loss=0.05))


def test_targets_paired_anew_in_every_epoch():
    for x, y in (blobs(400), line(400)):
        vitals = trained(
            x,
            y,
            serve=lambda a, b, g: (a, b[torch.randperm(len(b), generator=g)]),
            val_accuracy=0.34,
            accuracy=0.35,
            end=1.05,
        )
        assert "label_misaligned" in alarms(vitals)
        assert label_noise(vitals) == []
        assert label_misaligned(vitals)[0].certainty > 0.9


def test_pairs_of_which_one_part_is_seen_may_have_any_target():
    x, y = blobs(400)
    vitals = trained(x, y, serve=lambda a, b, g: (a, b[torch.randperm(len(b), generator=g)]), val_accuracy=0.9)
    assert "label_misaligned" in alarms(vitals)
    for given, found in (
        (Argument("input:1", (32, 8), "float32", stats=Stats(n=256, min=-3.0, max=3.0)), False),
        (Argument("input:1", (32, 8), "float32", stats=Stats(n=256, min=0.0, max=1.0, integral=True)), True),  # a mask
        (Argument("input:1", (32,), "int64"), True),  # lengths
        (Argument("input:1", (1, 32, 8), "float32"), True),  # a hidden state
    ):
        both = [replace(look, nodes=(*look.nodes, Node(2, "sub", None, (given,)))) for look in vitals.looks]
        assert ("label_misaligned" in alarms(replace(vitals, looks=both))) == found


def test_an_accuracy_speaks_of_classes_whatever_else_the_loss_holds():
    x, y = blobs()
    vitals = trained(x, y.roll(1, 0), accuracy=0.5, val_accuracy=0.33, end=0.8, val_loss=1.3)
    other = Node(2, "mse_loss", None, (Argument("n0", (32, 8), "float32", True), Argument("input:0", (32, 8))))
    both = replace(vitals, looks=[replace(look, nodes=(*look.nodes, other)) for look in vitals.looks])
    assert "label_misaligned" in alarms(both)


def test_targets_shifted_in_the_batch():
    vitals = trained(*blobs(4000), serve=lambda a, b, _: (a, b.roll(1, 0)), val_accuracy=0.34, end=1.05)
    (finding,) = label_misaligned(vitals)
    assert finding.numbers["shift"] == 1
    assert finding.certainty > 0.9


@pytest.mark.parametrize("make", [blobs, line])
def test_targets_of_a_whole_set_shifted(make):
    x, y = make()
    vitals = trained(x, y.roll(1, 0), accuracy=0.5, val_accuracy=0.33, end=0.8, val_loss=1.3)
    (finding,) = label_misaligned(vitals)
    assert finding.severity == "warning"
    assert label_noise(vitals) == []


@pytest.mark.parametrize(("n", "end", "found"), [(400, 0.95, 1), (400, 0.5, 0), (4000, 0.95, 0)])
def test_without_validation_slow_progress_with_examples_that_come_again_is_learnt_by_heart(n, end, found):
    x, y = blobs(n)
    assert len(label_misaligned(replace(trained(x, y.roll(1, 0), end=end), metrics=[]))) == found


def test_validation_below_guessing_contradicts_the_labels():
    x, y = blobs(800, classes=4)
    mixed = torch.where(
        torch.arange(800) % 4 == 0, y, torch.randint(4, (800,), generator=torch.Generator().manual_seed(1))
    )
    for value, found in ((0.1, True), (0.24, False)):
        vitals = trained(x, mixed)
        vitals.metrics = [Metrics(60 * i, {"val_accuracy": value, "val_loss": 1.6}) for i in range(1, 4)]
        vitals.data["learn"] |= {"correlation": 0.2, "z": 4.5}
        assert bool(label_misaligned(vitals)) == found


def test_what_small_learners_miss_but_validation_confirms_is_aligned():
    x, y = blobs()
    assert label_misaligned(trained(x, y.roll(1, 0), val_accuracy=0.9)) == []


def test_a_slow_start_above_chance_is_aligned():
    x, y = blobs()
    vitals = trained(x, y.roll(1, 0), accuracy=0.5, end=0.9, val_loss=1.05)
    rising = [(15, 0.4), (30, 0.47), (45, 0.5), (60, 0.52)]
    vitals.metrics = metrics(val_accuracy=rising)
    assert label_misaligned(vitals) == []


# --- leakage and mismatch --------------------------------------------------------------------------------------------


def test_a_feature_that_is_the_target_is_leakage():
    for x, y in (blobs(), line()):
        leaked = torch.cat([x, y.float().reshape(-1, 1)], 1)
        (finding,) = data_leakage(trained(leaked, y))
        assert finding.severity == "critical"
        assert finding.numbers["feature"] == x.shape[1]


def test_a_feature_that_only_a_single_example_of_a_rare_class_shows_is_no_leakage():
    x, y = blobs(classes=2)
    x, y = torch.cat([x, torch.zeros(len(x), 1)], 1), y.clone()
    x[0, -1], y[0] = 1.0, 2
    assert "data_leakage" not in alarms(trained(x, y))


@pytest.mark.parametrize(
    ("op", "attrs", "leaks"),
    [
        ("multi_head_attention", {}, True),
        ("multi_head_attention", {"causal": True}, False),
        ("scaled_dot_product_attention", {"masked": True}, False),
        ("scaled_dot_product_attention", {"masked": True, "ahead": False}, False),
        ("multi_head_attention", {"masked": True, "ahead": True}, True),
        ("lstm", {"bidirectional": True}, True),
        ("gru", {"bidirectional": False}, False),
    ],
)
def test_a_model_that_sees_the_next_element_which_it_is_to_predict(op, attrs, leaks):
    tokens = torch.randint(2, 9, (400, 13), generator=torch.Generator().manual_seed(0))
    x, y = tokens[:, :-1], tokens[:, 1:]
    given = Argument("n0", (20, 12, 8))
    look = Look(0, nodes=(Node(0, op, "net", (given, given), attrs),), inputs=Argument("inputs", (20, 12)))
    assert bool(data_leakage(replace(trained(x, y), looks=[look]))) == leaks
    assert data_leakage(replace(trained(x, x.flip(1)), looks=[look])) == []


def test_recalling_the_first_element_of_a_sequence_is_a_task_not_a_leak():
    x = torch.randn(800, 9, 1, generator=torch.Generator().manual_seed(0))
    assert "data_leakage" not in alarms(trained(x, x[:, 0]))


def test_a_target_that_every_step_of_a_sequence_shows_is_a_leak():
    x, y = torch.randn(800, 6, 3, generator=torch.Generator().manual_seed(0)), blobs(classes=2)[1]
    x[:, :, 2] = 2.0 * y[:, None] - 1
    (finding,) = data_leakage(trained(x, y))
    assert finding.severity == "critical"


def test_what_repeats_every_period_is_no_leak_unless_the_window_reaches_to_the_target():
    start = 6.28 * torch.rand(600, 1, generator=torch.Generator().manual_seed(0))
    wave = torch.sin(start + 0.25 * torch.arange(31)).unsqueeze(-1)
    assert "data_leakage" not in alarms(trained(wave[:, :30], wave[:, 30]))
    assert "data_leakage" in alarms(trained(wave[:, 10:], wave[:, 30]))


@pytest.mark.parametrize(("part", "severity"), [(1.0, "critical"), (0.5, "critical"), (0.12, "warning")])
def test_validation_examples_of_the_training_set(part, severity):
    x, y = blobs(500)
    n = round(150 * part)
    val = torch.cat([x[:n], blobs(150 - n, seed=3)[0]])
    (finding,) = data_leakage(trained(x, y, val))
    assert finding.severity == severity


def test_validation_is_known_by_any_word_of_a_name():
    x, y = blobs(500)
    for name, found in (("tags_right_dev", 1), ("tags_right", 0)):
        vitals = replace(trained(x, y, x[:100]), metrics=[Metrics(60, {name: 0.9})])
        assert len(data_leakage(vitals)) == found


def test_a_pass_over_the_training_set_is_no_leak():
    x, y = blobs(700)
    assert data_leakage(trained(x[:500], y[:500], x[500:], before_val=x[:500])) == []


def test_a_pass_over_the_training_set_does_not_hide_a_leak():
    x, y = blobs(500)
    assert data_leakage(trained(x, y, x[:120], before_val=x[:500])) != []


def test_evaluation_of_the_training_set_only_is_no_leak():
    x, y = blobs(500)
    vitals = trained(x, y, x[:100])
    vitals.metrics = [Metrics(60, {"train_loss": 0.1, "train_accuracy": 0.9})]
    assert data_leakage(vitals) == []


def test_few_discrete_inputs_come_up_everywhere():
    bits = torch.randint(2, (800, 6), generator=torch.Generator().manual_seed(0)).float()
    assert data_leakage(trained(bits[:600], bits[:600].sum(1).long() % 2, bits[600:])) == []


@pytest.mark.parametrize("change", [lambda v: 20 * v + 5, lambda v: 0.2 * v, lambda v: v + 4])
def test_validation_prepared_differently(change):
    x, y = blobs()
    (finding,) = train_val_mismatch(trained(x, y, change(blobs(1000)[0][800:]), val_accuracy=0.4, val_loss=2.0))
    assert finding.severity == "critical"


def test_a_difference_of_middling_size_alarms_only_when_validation_suffers():
    x, y = blobs()
    val = blobs(1000)[0][800:] + 0.7 * x.std(0)
    assert [f.severity for f in train_val_mismatch(trained(x, y, val))] == ["info"]
    assert [f.severity for f in train_val_mismatch(trained(x, y, val, val_accuracy=0.6))] == ["warning"]


@pytest.mark.parametrize(("accuracy", "severities"), [(0.34, ["warning"]), (0.95, [])])
def test_a_small_difference_counts_only_where_validation_is_at_chance(accuracy, severities):
    x, y = blobs()
    vitals = trained(x, y, blobs(1000)[0][800:], val_accuracy=accuracy)
    vitals.data["compare"] |= {"shift": 0.2, "shift_null": [0.03, 0.005]}  # as of many examples
    vitals.steps = Steps(tuple(range(60)), tuple(1.1 * 0.95**step for step in range(60)), *((0.0,) * 60,) * 3)
    assert [finding.severity for finding in train_val_mismatch(vitals)] == severities


def test_validation_below_chance_has_other_labels():
    (finding,) = train_val_mismatch(trained(*blobs(), val_accuracy=0.02))
    assert "numbering" in finding.cause


def test_validation_of_classes_that_training_lacks():
    x, y = blobs()
    vitals = trained(x[y < 2], y[y < 2], val_accuracy=0.5)
    by_class = {"2": (50, 0, 0), "1": (50, 50, 50)}
    vitals.evaluations = [Evaluation(60, False, False, 1, 100, predictions=Predictions(100, 50, 0, (), by_class))]
    assert train_val_mismatch(vitals)[0].severity == "warning"


@pytest.mark.parametrize(("f1", "severity"), [(0.6, "warning"), (0.9, "info")])
def test_f1_far_behind_accuracy_tells_that_rare_tags_are_ignored(f1, severity):
    vitals = replace(tokens({"0": (900, 905, 895), "1": (10, 6, 6)}), metrics=metrics(val_macro_f1=[(20, f1)]))
    assert [finding.severity for finding in class_imbalance(vitals)] == [severity]
