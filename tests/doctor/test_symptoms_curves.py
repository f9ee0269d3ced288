"""Rules for curves, step sizes and regularisation, and the numbers they derive, on vitals made by hand."""

import math
import random
from dataclasses import replace

import pytest

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms import (
    batches,
    courses,
    curves,
    facts,
    generalising,
    mismatch,
    outcomes,
    regularising,
    schedules,
    steps,
    underfit,
)
from luthier.doctor.vitals import (
    Anatomy,
    Argument,
    BatchTargets,
    Evaluation,
    Event,
    Look,
    Metrics,
    Node,
    Optimizer,
    Parameter,
    Predictions,
    Stats,
    Steps,
    Vitals,
)

RULES = [
    generalising.overfitting,
    underfit.underfitting,
    curves.no_learning,
    curves.plateau,
    curves.oscillating_loss,
    curves.too_few_epochs,
    regularising.too_much_regularisation,
    steps.lr_too_high,
    steps.lr_too_low,
    batches.batch_too_small,
    batches.batch_too_large,
]
LN10 = math.log(10)
LOOKS = (0, 1, 2, 3, 4, 6, 8, 12, 20, 40, 80, 150, 290)


def noisy(levels, spread: float = 0.1, seed: int = 0) -> list[float]:
    """Losses with mini-batch noise in proportion to their level."""
    draw = random.Random(seed)
    return [max(level * (1 + spread * draw.gauss(0, 1)), 0.0) for level in levels]


def falling(n: int = 300, start: float = LN10, end: float = 0.2, speed: float = 40.0) -> list[float]:
    return [end + (start - end) * math.exp(-i / speed) for i in range(n)]


def node(op: str = "cross_entropy", classes: int = 10, mean: float | None = None, **attrs) -> Node:
    arguments = (Argument("n0", (32, classes)), Argument("target", (32,), "int64"))
    stats = Stats(n=1, mean=mean) if mean is not None else None
    return Node(1, op, None, arguments, {"reduction": "mean"} | attrs, stats=stats)


def look(step: int, update: float | None = 3e-3, grad: float = 0.1, **changes) -> Look:
    linear = Node(0, "linear", "fc", (Argument("input:0", (32, 8)), Argument("param:fc.weight", (10, 8))))
    made = Look(
        step,
        True,
        nodes=(linear, node()),
        outputs=(0,),
        roots=(1,),
        grad=(2.0 * grad,),
        grad_before_clip=(2.0 * grad,),
        weight=(2.0,),
        update=(None if update is None else 2.0 * update,),
        lr=(1e-3,),
        cleared=True,
        inputs=Argument("inputs", (32, 8), "float32", stats=Stats(n=256, mean=0.0, std=1.0, across=0.8)),
        batch_size=32,
    )
    return replace(made, **changes)


def vitals(losses=None, looks=None, metrics=(), lr=1e-3, **changes) -> Vitals:
    """A healthy training of 300 steps, unless changed; metrics are (train_loss, val_loss) every 30 steps."""
    losses = noisy(falling()) if losses is None else losses
    n = len(losses)
    weight = Parameter("fc.weight", (10, 8), "float32", 80, layer="fc", layer_type="Linear", fan_in=8, rms=0.3)
    made = Vitals(
        anatomies=[Anatomy(model_types=("Net",), parameters=(weight,), loss_fn="CrossEntropyLoss")],
        optimizers=[Optimizer(0, 0, "Adam", groups=({"lr": lr, "weight_decay": 0},))],
        looks=[look(step) for step in LOOKS if step < n] if looks is None else looks,
        steps=Steps(tuple(range(n)), tuple(losses), (lr,) * n, (0.0,) * n, (0.0,) * n),
        targets=[BatchTargets(step, 30, {str(label): 3 + (label == step) for label in range(10)}) for step in range(5)],
        metrics=[
            Metrics(30 * (i + 1), {"train_loss": train, "val_loss": val}, {"train_loss": "min", "val_loss": "min"})
            for i, (train, val) in enumerate(metrics)
        ],
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def the(found) -> Finding:
    assert isinstance(found, list)
    assert len(found) == 1
    return found[0]


EPOCHS = [(LN10 * math.exp(-i), 0.1 + LN10 * math.exp(-i)) for i in range(10)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_training_is_silent(rule, seed):
    assert rule(vitals(noisy(falling(), seed=seed), metrics=EPOCHS)) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_missing_rows_never_raise(rule):
    whole = vitals(metrics=EPOCHS)
    for part in (
        Vitals(),
        vitals(looks=[]),
        vitals(looks=[Look(0), Look(5)]),
        replace(whole, anatomies=[]),
        replace(whole, targets=[]),
        replace(whole, steps=Steps()),
        replace(whole, steps=Steps((0, 1), (math.nan, math.nan), (1e-3,) * 2, (0.0,) * 2, (0.0,) * 2)),
        replace(whole, optimizers=[], metrics=[Metrics(3, {"val_loss": math.nan})]),
        vitals([-1.0 - i for i in range(50)]),
        vitals([0.0] * 50),
    ):
        assert isinstance(rule(part), NotSeen | list)


def test_nothing_watched_is_said_and_not_called_healthy():
    for rule in RULES:
        assert isinstance(rule(Vitals()), NotSeen)


# --- facts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "side", "kind"),
    [
        ("train_loss", "train", "loss"),
        ("loss", "train", "loss"),
        ("val_acc", "val", "accuracy"),
        ("valid/accuracy", "val", "accuracy"),
        ("test_loss", "val", "loss"),
        ("acc", "train", "accuracy"),
        ("validation_mse", "val", "mse"),
    ],
)
def test_metrics_are_known_however_they_are_spelt(name, side, kind):
    assert facts.side_and_kind(name) == (side, kind)


@pytest.mark.parametrize("name", ["lr", "loss_ratio_of_heads", "train_val_loss", "grad_norm"])
def test_other_metrics_are_left_alone(name):
    assert facts.side_and_kind(name) is None


def test_the_constant_answer_of_cross_entropy_is_the_entropy_of_the_classes():
    skewed = vitals(targets=[BatchTargets(0, 100, {"0": 90, "1": 10})], looks=[look(0, nodes=(node(classes=2),))])
    assert facts.baseline(skewed).value == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    assert facts.baseline(vitals(targets=[])).value == pytest.approx(LN10)


def test_the_constant_answer_of_squares_is_the_variance_between_all_targets():
    rows = [BatchTargets(0, 10, None, 0.0, 1.0), BatchTargets(1, 10, None, 4.0, 1.0)]
    base = facts.baseline(vitals(targets=rows, looks=[look(0, nodes=(node("mse_loss", 1),))]))
    assert base.value == pytest.approx(1.0 + 4.0)
    assert base.progress(2.5) == pytest.approx(0.5)


def test_label_smoothing_leaves_a_floor():
    base = facts.baseline(vitals(looks=[look(0, nodes=(node(label_smoothing=0.1),))]))
    assert base.floor == pytest.approx(-0.91 * math.log(0.91) - 9 * 0.01 * math.log(0.01))


def test_a_summed_loss_and_one_divided_for_accumulation_scale_the_baseline():
    values = falling()
    summed = [look(s, nodes=(node(mean=values[s], reduction="sum"),)) for s in (0, 1, 2)]
    assert facts.baseline(vitals(values, summed)).value == pytest.approx(32 * LN10, rel=1e-3)
    divided = [look(s, nodes=(node(mean=4 * values[s]),)) for s in (0, 1, 2)]
    assert facts.baseline(vitals(values, divided)).value == pytest.approx(LN10 / 4, rel=1e-3)


def test_loss_curve_tells_lost_from_untold():
    assert facts.loss_curve(vitals([1.0] * 50 + [math.nan] * 10)).lost_at == 50
    assert facts.loss_curve(vitals([1.0 if i % 7 == 0 else math.nan for i in range(104)])).lost_at is None
    assert facts.loss_curve(vitals([1.0] * 50 + [math.inf])).lost_at == 50


def test_loss_curve_numbers():
    curve = facts.loss_curve(vitals([3.0 - 0.01 * i for i in range(200)]))
    assert curve.start == pytest.approx(2.99)
    assert curve.drop == pytest.approx(0.66, abs=0.02)
    assert facts.loss_curve(vitals([1.0] * 4)) is None


def test_a_straight_fall_in_few_steps_is_no_noise():
    curve = facts.loss_curve(vitals([2.3 - 0.06 * i for i in range(16)]))
    assert curve.noise == pytest.approx(0.0, abs=1e-9)
    assert curve.falls


def test_a_remembered_number_follows_the_vitals():
    watched = vitals([1.0] * 50)
    assert facts.loss_curve(watched).end == 1.0
    watched.steps = replace(watched.steps, loss=(2.0,) * 50)
    assert facts.loss_curve(watched).end == 2.0


def test_accuracy_comes_from_metrics_or_batches():
    seen = [look(s, predictions=Predictions(10, right, 0)) for s, right in ((0, 1), (20, 3), (200, 9), (280, 9))]
    assert facts.accuracies(vitals(looks=seen)) == (pytest.approx(0.9), None)
    assert facts.accuracies(vitals(looks=seen[:2])) == (None, None)  # what it was early says nothing of the end
    told = [Metrics(i, {"acc": 80.0, "val_acc": 0.7}) for i in range(3)]
    assert facts.accuracies(replace(vitals(), metrics=told)) == (pytest.approx(0.8), pytest.approx(0.7))


# --- generalising ----------------------------------------------------------------------------------------------------


def test_overfitting_by_rising_validation():
    epochs = [(LN10 * math.exp(-i), 1.0 - 0.3 * min(i, 3) + 0.25 * max(i - 3, 0)) for i in range(12)]
    found = the(generalising.overfitting(vitals(metrics=epochs)))
    assert found.severity == "warning"
    assert found.numbers["best_step"] == 120


def test_a_gap_of_accuracies_counts_by_what_guessing_leaves():
    rows = [(0.65 * math.exp(-i), 0.35 + 0.3 * math.exp(-i)) for i in range(10)]
    pair = node("binary_cross_entropy_with_logits", 1)
    sick = vitals(falling(start=0.69, end=0.0), metrics=rows)
    sick.looks = [replace(item, nodes=(item.nodes[0], pair)) for item in sick.looks]
    sick.targets = [BatchTargets(step, 30, {"0": 15, "1": 15}) for step in range(5)]
    for row in sick.metrics:
        row.values.update(train_accuracy=1.0, val_accuracy=0.92)
    assert generalising.overfitting(replace(sick, evaluations=[Evaluation(300, False, False, 1, 1000)]))


def test_a_regression_learnt_by_heart_needs_no_rise_of_validation():
    rows = [(2.0 * math.exp(-2 * i), 0.36 + 0.64 * math.exp(-2 * i)) for i in range(10)]
    pair = Node(1, "mse_loss", None, (Argument("n0", (32, 1)), Argument("target", (32, 1))), {"reduction": "mean"})
    looks = [replace(item, nodes=(item.nodes[0], pair)) for item in vitals().looks]
    targets = [BatchTargets(step, 32, None, 0.0, 1.0) for step in range(5)]
    found = the(generalising.overfitting(vitals(falling(start=1.0, end=0.0), looks, rows, targets=targets)))
    assert found.severity == "warning"


@pytest.mark.parametrize(("by_heart", "found"), [(0.002, True), (0.05, False)])
def test_of_a_regression_known_by_heart_a_smaller_gap_tells(by_heart, found):
    rows = [(2.0 * math.exp(-2 * i) + by_heart, 0.28 + 0.72 * math.exp(-2 * i)) for i in range(10)]
    pair = Node(1, "mse_loss", None, (Argument("n0", (32, 1)), Argument("target", (32, 1))), {"reduction": "mean"})
    looks = [replace(item, nodes=(item.nodes[0], pair)) for item in vitals().looks]
    targets = [BatchTargets(step, 32, None, 0.0, 1.0) for step in range(5)]
    sick = vitals(falling(start=1.0, end=by_heart), looks, rows, targets=targets)
    assert bool(generalising.overfitting(sick)) is found


def test_overfitting_tells_what_an_example_is():
    rising = [(LN10 * math.exp(-i), 1.0 + 0.15 * i) for i in range(12)]
    (unknown,) = generalising.overfitting(vitals(metrics=rising))
    (table,) = generalising.overfitting(vitals(metrics=rising, data={"shape": [64]}))
    assert "input_shape" not in unknown.numbers
    assert table.numbers == {**unknown.numbers, "input_shape": [64]}
    (text,) = generalising.overfitting(vitals(metrics=rising, data={"shape": [64], "tokens": True}))
    assert text.numbers == {**table.numbers, "tokens": True}


def test_overfitting_by_accuracy_alone():
    rows = [Metrics(i, {"train_accuracy": 1.0, "val_accuracy": 0.7}) for i in range(3)]
    assert the(generalising.overfitting(replace(vitals(), metrics=rows))).numbers["gap"] == pytest.approx(0.3)


def test_falling_losses_below_zero_are_no_overfitting():
    epochs = [(1.0 - 0.3 * i, 1.05 - 0.28 * i) for i in range(14)]
    unknown = [look(s, nodes=()) for s in LOOKS]
    assert generalising.overfitting(vitals([1.0 - 0.01 * i for i in range(400)], unknown, epochs, targets=[])) == []


def test_a_small_gap_is_no_overfitting():
    epochs = [(LN10 * math.exp(-i), 0.08 + LN10 * math.exp(-i) + 0.002 * i) for i in range(12)]
    assert generalising.overfitting(vitals(metrics=epochs)) == []


# --- curves ----------------------------------------------------------------------------------------------------------


def test_no_learning():
    found = the(curves.no_learning(vitals(noisy([LN10] * 300, 0.02))))
    assert found.numbers["baseline"] == pytest.approx(LN10, rel=1e-2)
    assert curves.no_learning(vitals(noisy(falling(end=1.5)))) == []


def test_a_loss_that_fell_to_the_constant_answer_has_learnt_nothing_about_the_inputs():
    assert the(curves.no_learning(vitals(noisy(falling(start=8.0, end=LN10, speed=5), 0.02))))


@pytest.mark.parametrize("cleared", [0.0, None])
def test_gradients_cleared_before_the_step_are_named_as_the_reason(cleared):
    looks = [look(s, grad_before_clip=(0.2,)) for s in LOOKS]
    still = noisy([LN10] * 300, 0.01)
    assert the(curves.no_learning(vitals(still, looks))).certainty == 0.5
    found = the(curves.no_learning(vitals(still, [replace(each, grad=(cleared,)) for each in looks])))
    assert found.severity == "critical"
    assert "between backward() and step()" in found.cause


def test_underfitting_and_plateau():
    stuck = vitals(noisy(falling(end=1.7, speed=15), 0.03), metrics=[(1.7, 1.75)] * 10)
    assert the(underfit.underfitting(stuck)).numbers["progress"] == pytest.approx(0.26, abs=0.05)
    found = the(curves.plateau(stuck))
    assert found.severity == "warning"
    assert found.onset < 100
    assert curves.too_few_epochs(stuck) == []


def test_validation_far_behind_is_no_underfitting():
    assert underfit.underfitting(vitals(noisy(falling(end=1.7, speed=15), 0.03), metrics=[(1.7, 2.6)] * 10)) == []


def test_high_accuracy_speaks_against_underfitting():
    rows = [Metrics(30 * i, {"train_accuracy": 0.9, "val_accuracy": 0.9}) for i in range(5)]
    assert underfit.underfitting(replace(vitals(noisy(falling(end=1.7, speed=15), 0.03)), metrics=rows)) == []


def test_a_noise_floor_of_a_regression_is_no_underfitting():
    squares = [look(s, nodes=(node("mse_loss", 1),)) for s in LOOKS]
    rows = [BatchTargets(s, 32, None, 0.0, 1.0) for s in range(5)]
    assert underfit.underfitting(vitals(noisy(falling(start=1.0, end=0.5)), squares, targets=rows)) == []


@pytest.mark.parametrize(("whole", "limit"), [(True, 0.6), (False, 0.15)], ids=["labels", "pixels"])
def test_the_entropy_of_pixels_stays_in_their_loss(whole, limit):
    targets = Argument("targets", (32, 10), "float32", stats=Stats(n=320, mean=0.5, std=0.3, integral=whole))
    loss = replace(node("binary_cross_entropy_with_logits"), arguments=(Argument("n0", (32, 10)), targets))
    looks = [look(s, nodes=(look(0).nodes[0], loss)) for s in LOOKS]
    assert courses.poor_below(vitals(looks=looks)) == limit


def test_sequences_with_noise_of_their_own_may_settle_half_way():
    tokens = replace(node(), arguments=(Argument("n0", (32, 10, 15)), Argument("target", (32, 15), "int64")))
    looks = [look(s, nodes=(look(0).nodes[0], tokens)) for s in LOOKS]
    settled = vitals(noisy(falling(end=1.5, speed=15), 0.03), looks)
    assert underfit.underfitting(settled) == []
    assert curves.plateau(settled) == []


def test_losses_below_zero_raise_no_alarm():
    density = noisy([2.0 - 3.0 * i / 300 for i in range(300)], 0.02)
    unknown = [look(s, nodes=()) for s in LOOKS]
    quiet = vitals(density, unknown, metrics=[(2.0 - 0.3 * i, 2.1 - 0.3 * i) for i in range(10)], targets=[])
    for rule in RULES:
        answer = rule(quiet)
        assert isinstance(answer, NotSeen) or all(finding.severity == "info" for finding in answer), rule


def test_too_few_epochs():
    steady = vitals(noisy([LN10 - 0.9 * i / 300 for i in range(300)], 0.02))
    assert the(curves.too_few_epochs(steady)).numbers["steps"] == 300
    rates = tuple(1e-3 * 0.98**i for i in range(300))
    assert curves.too_few_epochs(replace(steady, steps=replace(steady.steps, lr=rates))) == []
    higher = [20.0 * math.exp(-i / 2) + LN10 - 0.25 * i / 300 for i in range(300)]  # a bad start is no progress
    assert the(curves.too_few_epochs(vitals(noisy(higher, 0.01))))


def test_a_steady_fall_far_from_what_small_learners_find_outweighs_a_middling_accuracy():
    steady = vitals(noisy([LN10 - 1.0 * i / 300 for i in range(300)], 0.02))
    told = replace(steady, metrics=accurate(0.83))
    assert curves.too_few_epochs(told) == []
    assert the(curves.too_few_epochs(replace(told, data=LEARNERS)))


@pytest.mark.parametrize(
    ("reached", "learners", "n", "found"),
    [(0.9, 0.95, 512, True), (0.93, 0.97, 512, False), (0.9, 0.945, 130, False), (0.88, 0.89, 512, False)],
)
def test_a_steady_fall_counts_where_small_learners_do_better_beyond_their_error(reached, learners, n, found):
    steady = vitals(noisy([LN10 - 1.3 * i / 300 for i in range(300)], 0.02), metrics=())
    told = replace(steady, metrics=accurate(reached), data={"learn": {"n": n, "z": 20.0, "accuracy": learners}})
    assert not outcomes.data_allow_more(told)
    assert bool(curves.too_few_epochs(told)) is found
    settled = vitals(noisy(falling(end=1.0), 0.02))
    assert curves.too_few_epochs(replace(settled, metrics=told.metrics, data=told.data)) == []


def test_few_epochs_that_each_take_a_part_of_what_is_left():
    rows = [(1.8, 1.7), (1.3, 1.2), (1.15, 1.05), (1.05, 0.97)]
    losses = noisy([1.0 + 1.3 * math.exp(-i / 18) for i in range(120)], 0.03)
    brief = vitals(losses, metrics=rows)
    assert curves.too_few_epochs(brief)
    settled = vitals(losses, metrics=[*rows[:3], (1.05, 1.03)])
    assert curves.too_few_epochs(settled) == []


@pytest.mark.parametrize(("last", "found"), [(0.24, True), (0.27, False)])
def test_epochs_that_each_take_a_tenth_are_too_few_for_numbers_to_be_learnt(last, found):
    losses = noisy([0.25 + 0.75 * math.exp(-i / 18) for i in range(120)], 0.03)
    looks = [look(s, nodes=(look(0).nodes[0], node("mse_loss", 1))) for s in LOOKS if s < 120]
    rows = [BatchTargets(step, 30, None, 0.0, 1.0) for step in range(5)]
    brief = vitals(losses, looks, [(0.7, 0.6), (0.35, 0.28), (0.26, last)], targets=rows)
    assert bool(curves.too_few_epochs(brief)) is found
    classes = vitals(losses=[LN10 * value for value in losses], metrics=[(1.6, 1.4), (0.8, 0.64), (0.6, 0.54)])
    assert curves.too_few_epochs(classes) == []


def test_few_steps_over_large_batches_need_no_epoch_told():
    losses = [LN10 - 0.005 * i for i in range(20)]
    few = vitals(losses, [look(step, batch_size=1024) for step in LOOKS if step < 20])
    assert the(batches.batch_too_large(few)).severity == "warning"
    small = vitals(losses, [look(step, batch_size=64) for step in LOOKS if step < 20])
    assert isinstance(batches.batch_too_large(small), NotSeen)


def test_four_fifths_of_two_classes_are_little():
    rows = [BatchTargets(step, 30, {"0": 15, "1": 15}) for step in range(5)]
    steady = vitals(noisy([0.69 - 0.2 * i / 300 for i in range(300)], 0.02), targets=rows)
    steady.looks = [look(s, nodes=(look(0).nodes[0], node("binary_cross_entropy_with_logits", 1))) for s in LOOKS]
    assert the(curves.too_few_epochs(replace(steady, metrics=accurate(0.84))))
    assert curves.too_few_epochs(replace(steady, metrics=accurate(0.93))) == []


@pytest.mark.parametrize(("end", "found"), [(0.2, 0), (1.6, 1)])
def test_a_warm_up_that_outlasts_the_training(end, found):
    sick = vitals(noisy([LN10 - (LN10 - end) * i / 300 for i in range(300)], 0.02))
    rates = tuple(1e-3 * (1 + (i // 60) / 100) for i in range(300))
    warming = replace(sick, steps=replace(sick.steps, lr=rates))
    assert len(schedules.lr_schedule_collapse(warming)) == len(steps.lr_too_low(warming)) == found
    settled = replace(sick, steps=replace(sick.steps, lr=tuple(1e-3 * min(1, (i + 1) / 60) for i in range(300))))
    assert schedules.lr_schedule_collapse(settled) == steps.lr_too_low(settled) == []


def test_augmentation_that_leaves_too_little():
    compare = {"shift": 0.3, "shift_null": [0.1, 0.01], "log_spread": -0.9, "spread_null": [0.0, 0.03]}
    data = {"examples": 900, "repeats": {"pairs": 0}, "compare": compare}
    settled = vitals(noisy(falling(end=1.6, speed=15), 0.03), metrics=[(1.7, 1.6)] * 10, data=data)
    assert the(regularising.too_much_regularisation(settled)).numbers["apart"] > 0.9
    assert the(mismatch.train_val_mismatch(settled)).severity == "info"
    fixed = data | {"repeats": {"pairs": 400}}  # as much noise, once and for all: prepared differently, not augmented
    assert regularising.too_much_regularisation(replace(settled, data=fixed)) == []


def test_a_steady_fall_counts_however_slow_when_the_data_allow_more():
    slow = vitals(noisy([LN10 - 0.15 * i / 300 for i in range(300)], 0.003))
    assert curves.too_few_epochs(slow) == []
    assert the(curves.too_few_epochs(replace(slow, data=LEARNERS, metrics=accurate(0.4))))


def test_always_answering_no_is_not_accurate():
    rows = [BatchTargets(step, 240, None, 0.03, 0.17) for step in range(5)]
    looks = [look(s, nodes=(look(0).nodes[0], node("binary_cross_entropy_with_logits", 8))) for s in LOOKS]
    sick = vitals(noisy([0.14 + 0.5 * math.exp(-i / 40) for i in range(300)]), looks, targets=rows)
    assert the(curves.no_learning(replace(sick, metrics=accurate(0.97))))
    assert curves.no_learning(replace(sick, metrics=accurate(0.995))) == []


def test_a_convolution_of_few_channels_is_not_narrow():
    weights = [Parameter(f"{n}.weight", s, layer=n) for n, s in (("conv", (8, 1, 3, 3)), ("fc", (10, 72)))]
    arguments = [(Argument("input:0", (32, 8)), Argument(f"param:{item.name}", item.shape)) for item in weights]
    nodes = (Node(0, "conv2d", "conv", arguments[0]), Node(1, "linear", "fc", arguments[1]))
    seen = vitals(looks=[look(step, nodes=nodes, weight=(1.0, 1.0)) for step in LOOKS])
    assert courses.narrow_layers(replace(seen, anatomies=[Anatomy(parameters=tuple(weights))])) == []


def test_a_gap_of_accuracies_within_chance_is_no_overfitting():
    worse = [(0.5 * 0.7**i, 0.5 * 0.7**i + 0.1 * i) for i in range(10)]
    for accuracy, n, found in ((0.97, 140, 0), (0.8, 140, 1)):
        rows = vitals(falling(end=0.0), metrics=worse).metrics
        rows = [replace(row, values=row.values | {"val_accuracy": accuracy}) for row in rows]
        sick = replace(vitals(noisy(falling(end=0.01))), metrics=rows, evaluations=[Evaluation(30, False, False, 1, n)])
        assert len(generalising.overfitting(sick)) == found


@pytest.mark.parametrize(("last", "severity"), [(0.945, "info"), (0.9, "warning")])
def test_a_loss_that_rises_with_certainty_alone_is_no_alarm(last, severity):
    worse = [(0.5 * 0.6**i, 0.16 + 0.4 * 0.5**i + 0.03 * i) for i in range(10)]
    sick = vitals(falling(end=0.0), metrics=worse, evaluations=[Evaluation(30, False, False, 1, 500)])
    for i, row in enumerate(sick.metrics):
        row.values.update(train_accuracy=0.99, val_accuracy=0.95 if i < 5 else last)
    assert the(generalising.overfitting(sick)).severity == severity


LEARNERS = {"learn": {"n": 512, "z": 20.0, "accuracy": 0.95}}


def accurate(value: float) -> list[Metrics]:
    return [Metrics(30 * i, {"val_accuracy": value}) for i in range(1, 5)]


def test_what_small_learners_find_in_the_data_is_not_yet_learnt():
    steady = vitals(noisy([LN10 - 1.6 * i / 300 for i in range(300)], 0.02), data=LEARNERS)
    settled = vitals(noisy(falling(end=0.8, speed=15), 0.03), data=LEARNERS)
    for rule, sick in ((curves.too_few_epochs, steady), (underfit.underfitting, settled)):
        assert the(rule(replace(sick, metrics=accurate(0.7))))
        assert rule(replace(sick, metrics=accurate(0.93))) == []


def test_a_linear_model_that_small_learners_outdo_underfits():
    learners = {"learn": {"n": 512, "z": 20.0, "r2": 0.97, "tail": 3.0}}
    looks = [look(s, nodes=(look(0).nodes[0], node("mse_loss", 1))) for s in LOOKS]
    rows = [BatchTargets(step, 30, None, 0.0, 1.0) for step in range(5)]
    sick = vitals(noisy([1.0] * 300), looks, targets=rows, data=learners)
    assert the(underfit.underfitting(sick)).numbers["narrow"] == 1


def test_oscillation_beyond_the_noise_of_batches():
    swinging = [1.5 + 0.9 * (-1) ** i for i in range(300)]
    assert the(curves.oscillating_loss(vitals(swinging))).numbers["swing"] > 0.5
    ordinary = noisy(falling(end=0.5), 0.25)
    assert curves.oscillating_loss(vitals(ordinary)) == []


def test_epochs_that_jump():
    epochs = [(1.0 + 0.8 * (-1) ** i, 1.2) for i in range(10)]
    assert "whole epochs" in the(curves.oscillating_loss(vitals(metrics=epochs))).cause


@pytest.mark.parametrize(("train", "val", "found"), [(1.0, 1.1, True), (0.3, 1.1, False), (1.0, 0.5, False)])
def test_a_training_that_loses_what_it_had_learnt(train, val, found):
    """Overfitting loses validation alone, harder examples (augmentation that grows) training alone."""
    epochs = [(2.0, 2.0), (1.2, 1.2), (0.6, 0.7), (0.4, 0.5), (0.5, 0.6), (train, val), (train, val)]
    slow = vitals([1.0] * 300, metrics=epochs)
    assert bool(curves.oscillating_loss(slow)) is found
    assert not found or underfit.underfitting(slow) == []  # it had learnt more: capacity and time were enough
    restarted = replace(slow.steps, lr=(1e-3,) * 150 + (1e-2,) * 150)
    assert curves.oscillating_loss(replace(slow, steps=restarted)) == []


# --- regularisation --------------------------------------------------------------------------------------------------


def test_strong_dropout():
    drop = Node(0, "dropout", "drop", (), {"p": 0.9, "training": True})
    looks = [look(s, nodes=(drop, node())) for s in LOOKS]
    found = the(regularising.too_much_regularisation(vitals(noisy(falling(end=1.8)), looks)))
    assert found.where == ("drop",)
    assert found.numbers["p"] == 0.9
    assert regularising.too_much_regularisation(vitals(noisy(falling(end=0.1)), looks)) == []


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_ordinary_dropout_is_fine(p):
    drop = Node(0, "dropout", "drop", (), {"p": p, "training": True})
    looks = [look(s, nodes=(drop, node())) for s in LOOKS]
    assert regularising.too_much_regularisation(vitals(noisy(falling(end=1.8)), looks)) == []


def test_weight_decay_that_crushes_the_weights():
    looks = [replace(look(s), weight=(2.0 * math.exp(-s / 50),), grad=(math.exp(-s / 50),)) for s in LOOKS]
    sick = vitals(noisy(falling(end=2.2), 0.02), looks)
    sick.optimizers = [Optimizer(0, 0, "SGD", groups=({"lr": 0.1, "weight_decay": 0.4},))]
    found = the(regularising.too_much_regularisation(sick))
    assert found.numbers["weight_decay"] == 0.4
    sick.optimizers = [Optimizer(0, 0, "SGD", groups=({"lr": 0.1, "weight_decay": 5e-4},))]
    assert regularising.too_much_regularisation(sick) == []


def test_weight_decay_of_weights_that_the_loss_no_longer_reaches_is_no_cause():
    looks = [look(s, grad=0.0, update=1e-5, weight=(2.0 * (1 - 1e-5) ** s,)) for s in LOOKS]
    dead = vitals(noisy([LN10] * 300, 0.01), looks)
    dead.optimizers = [Optimizer(0, 0, "AdamW", groups=({"lr": 1e-3, "weight_decay": 0.01},))]
    assert regularising.too_much_regularisation(dead) == []
    dead.looks = [replace(item, grad=(1e-3,)) for item in looks]
    assert the(regularising.too_much_regularisation(dead)).numbers["weight_decay"] == 0.01


def test_weight_decay_that_keeps_the_net_behind_small_learners():
    looks = [replace(look(s), weight=(2.0 * max(0.8, 1 - s / 100),), grad=(1.0,)) for s in LOOKS]
    held = vitals(noisy(falling(end=1.1, speed=15)), looks, metrics=(), data=LEARNERS)
    held = replace(held, metrics=accurate(0.8), optimizers=[Optimizer(0, 0, "SGD", groups=({"weight_decay": 0.2},))])
    assert the(regularising.too_much_regularisation(held)).numbers["weight_decay"] == 0.2
    assert regularising.too_much_regularisation(replace(held, data={})) == []


@pytest.mark.parametrize(("decay", "shrunk", "found"), [(0.1, 0.6, True), (1e-3, 0.6, False), (0.1, 1.0, False)])
def test_weight_decay_that_balances_the_gradient_of_a_loss_at_rest(decay, shrunk, found):
    looks = [replace(look(s), weight=(2.0 * max(shrunk, 1 - s / 50),), grad=(0.3,)) for s in LOOKS]
    held = vitals(noisy(falling(end=0.6, speed=15), 0.02), looks)
    held.optimizers = [Optimizer(0, 0, "Adam", groups=({"lr": 1e-3, "weight_decay": decay},))]
    assert bool(regularising.too_much_regularisation(held)) is found
    falls = replace(held, steps=vitals(noisy(falling(end=0.6, speed=100), 0.02)).steps)
    assert regularising.too_much_regularisation(falls) == []


def test_layers_that_shrink_whatever_pulls_them():
    looks = [
        replace(look(s, nodes=(node(),)), weight=(2.0 * max(0.2, 1 - s / 50),) * 2, grad=(0.1, 0.1)) for s in LOOKS
    ]
    shrunk = vitals([LN10] * 300, looks, data=LEARNERS)
    shrunk.metrics = accurate(0.1)
    (weight,) = shrunk.anatomies[0].parameters
    shrunk.anatomies = [replace(shrunk.anatomies[0], parameters=(weight, replace(weight, name="head.weight")))]
    assert the(regularising.too_much_regularisation(shrunk)).numbers["left"] < 0.3
    assert regularising.too_much_regularisation(replace(shrunk, data={})) == []
    unreached = [replace(item, grad=(0.0, 0.1)) for item in looks]
    assert regularising.too_much_regularisation(replace(shrunk, looks=unreached)) == []


def test_a_penalty_that_outweighs_the_task():
    losses = [10.0 + 2.2] * 300
    added = Node(2, "add", None, (Argument("n1"), Argument("n7")), stats=Stats(n=1, mean=12.2))
    looks = [look(s, nodes=(look(0).nodes[0], node(mean=2.2), added), roots=(2,)) for s in LOOKS]
    assert the(regularising.too_much_regularisation(vitals(losses, looks))).numbers["share"] > 0.8


def test_a_penalty_that_crushes_the_weights_to_a_third():
    added = Node(2, "add", None, (Argument("n1"), Argument("n7")), stats=Stats(n=1, mean=3.1))
    looks = [
        look(s, nodes=(look(0).nodes[0], node(mean=2.0), added), roots=(2,), weight=(2.0 * max(0.35, 1 - s / 100),))
        for s in LOOKS
    ]
    assert the(regularising.too_much_regularisation(vitals([3.1] * 300, looks))).severity == "warning"


@pytest.mark.parametrize(
    ("source", "early", "late", "found"),
    [
        ("param:fc.weight", 4.0, 0.6, True),
        ("extern:1", 4.0, 0.6, True),
        ("input:0", 4.0, 0.6, False),
        ("param:fc.weight", 0.9, 0.6, False),
        ("param:fc.weight", 4.0, 0.1, False),
    ],
)
def test_a_penalty_on_the_weights_that_balances_the_gradient_of_the_task(source, early, late, found):
    def held(step: int) -> Look:
        of = Node(2, "mul", None, (Argument(source, requires_grad=source != "input:0"),), requires_grad=True)
        plus = Node(3, "add", None, (Argument("n1"), Argument("n2")), requires_grad=True)
        given = tuple(replace(each, requires_grad=True) for each in (look(0).nodes[0], node(mean=1.0)))
        return look(step, nodes=(*given, of, plus), roots=(3,))

    losses = [1.0 + late + (early - late) * math.exp(-i / 10) for i in range(300)]
    rest = vitals(losses, [held(step) for step in LOOKS])
    assert bool(regularising.too_much_regularisation(rest)) is found
    noise = {"features": 8, "learn": {"n": 512, "z": 20.0, "accuracy": 0.6}}
    assert regularising.too_much_regularisation(replace(rest, metrics=accurate(0.61), data=noise)) == []
    falls = replace(rest, steps=vitals([loss + 0.3 * min(1, 3 - i / 100) for i, loss in enumerate(losses)]).steps)
    assert regularising.too_much_regularisation(falls) == []


@pytest.mark.parametrize(("start", "reached", "found"), [(4.0, 0.9, True), (4.0, 0.95, False), (0.3, 0.9, True)])
def test_a_penalty_that_leaves_the_net_behind_small_learners(start, reached, found):
    def held(step: int) -> Look:
        of = Node(2, "mul", None, (Argument("param:fc.weight", requires_grad=True),), requires_grad=True)
        plus = Node(3, "add", None, (Argument("n1"), Argument("n2")), requires_grad=True)
        given = tuple(replace(each, requires_grad=True) for each in (look(0).nodes[0], node(mean=0.5)))
        return look(step, nodes=(*given, of, plus), roots=(3,))

    added = [start * math.exp(-i / 20) + 0.6 * min(1, i / 200) for i in range(300)]  # crushed, then grown again
    rest = vitals([0.5 + each for each in added], [held(step) for step in LOOKS], metrics=())
    told = replace(rest, metrics=accurate(reached), data=LEARNERS)
    said = regularising.too_much_regularisation(told)
    assert bool(said) is found
    assert not said or ("at first and 51% at the end" in the(said).cause) is (start == 4.0)
    assert regularising.too_much_regularisation(rest) == []


@pytest.mark.parametrize(("added", "found"), [(2.0, True), (0.2, False)])
def test_a_penalty_that_crushes_the_weights_and_outweighs_what_the_task_has_left(added, found):
    plus = Node(2, "add", None, (Argument("n1"), Argument("n7")), stats=Stats(n=1, mean=0.5 + added))
    nodes = (look(0).nodes[0], node(mean=0.5), plus)
    looks = [look(s, nodes=nodes, roots=(2,), weight=(2.0 * max(0.35, 1 - s / 100),)) for s in LOOKS]
    assert bool(regularising.too_much_regularisation(vitals([0.5 + added] * 300, looks))) is found


def test_strong_label_smoothing():
    looks = [look(s, nodes=(node(label_smoothing=0.6),)) for s in LOOKS]
    assert the(regularising.too_much_regularisation(vitals(looks=looks))).numbers["label_smoothing"] == 0.6
    mild = [look(s, nodes=(node(label_smoothing=0.1),)) for s in LOOKS]
    assert regularising.too_much_regularisation(vitals(looks=mild)) == []


def test_a_loop_that_never_steps_the_optimizer():
    still = noisy([0.6 * LN10] * 200)  # better than a constant answer by luck
    looks = [look(s, update=None, grad_before_clip=(0.2,), n_backward=1) for s in LOOKS if s < 200]
    said = [Event(0, "steps_without_optimizer", {"calls": 10})]
    found = the(curves.no_learning(vitals(still, looks, events=said)))
    assert found.numbers["never_stepped"]
    assert curves.no_learning(vitals(still, looks)) == []


def test_a_loop_that_forgot_the_step_and_tells_metrics_only():
    trained = tuple(Evaluation(0, True, True, forwards=30) for _ in range(4))
    told = tuple(Metrics(0, {"train_loss": loss}, {}) for loss in (2.31, 2.32, 2.31, 2.3))
    assert the(curves.no_learning(Vitals(evaluations=trained, metrics=told))).numbers["never_stepped"]
    fell = tuple(Metrics(0, {"train_loss": loss}, {}) for loss in (2.31, 1.9, 1.5, 1.2))
    assert isinstance(curves.no_learning(Vitals(evaluations=trained, metrics=fell)), NotSeen)
    read = tuple(Evaluation(0, False, False, forwards=30) for _ in range(4))
    assert isinstance(curves.no_learning(Vitals(evaluations=read, metrics=told)), NotSeen)


# --- steps -----------------------------------------------------------------------------------------------------------


def test_lr_too_high_needs_large_updates_and_harm():
    jumping = [LN10, 30.0, 25.0, 20.0] + [2.4 + 0.1 * (-1) ** i for i in range(200)]
    large = [look(s, update=0.5) for s in LOOKS if s < 200]
    found = the(steps.lr_too_high(vitals(jumping, large, lr=3.0)))
    assert found.severity == "critical"
    assert found.numbers["lr"] == 3.0
    assert found.numbers["suggested_lr"] < 0.1
    assert steps.lr_too_high(vitals(looks=large)) == []
    assert steps.lr_too_high(vitals(jumping)) == []


def rising(factor, end, lost_from=180):
    """A loss that is fitted by step 100 and lost later; from step 180 on the rate is so many times higher."""
    fitted = [max(LN10 * 0.96**step, 0.05) for step in range(lost_from)]
    lost = [0.05 + (end - 0.05) * min(1, i / 40) for i in range(300 - lost_from)]
    made = vitals(noisy(fitted + lost))
    made.steps = replace(made.steps, lr=(1e-2,) * 180 + (1e-2 * factor,) * 120)
    return made


def test_a_rate_that_rises_and_undoes_what_was_learnt_is_too_high():
    found = the(steps.lr_too_high(rising(factor=8, end=2.3)))
    assert (found.severity, found.onset) == ("critical", 180)
    assert found.numbers == pytest.approx({"lr": 0.08, "suggested_lr": 0.01})


@pytest.mark.parametrize(
    ("factor", "end", "lost_from"), [(1, 2.3, 180), (1.5, 2.3, 180), (8, 0.05, 180), (8, 0.6, 180), (8, 2.3, 120)]
)
def test_a_rate_that_rises_without_undoing_anything_is_none(factor, end, lost_from):
    assert steps.lr_too_high(rising(factor, end, lost_from)) == []


def test_a_rate_that_rises_undoes_nothing_where_little_was_learnt():
    made = rising(factor=8, end=2.3)
    losses = [LN10 - 0.3 * (LN10 - loss) for loss in made.steps.loss]
    made.steps = replace(made.steps, loss=tuple(losses))
    assert steps.lr_too_high(made) == []


def test_a_loss_that_is_lost_before_the_rate_rises_has_another_cause():
    losses = [max(LN10 * 0.96**step, 0.05) for step in range(150)] + [float("nan")] * 150
    made = vitals(losses)
    made.steps = replace(made.steps, lr=(1e-2,) * 150 + (8e-2,) * 150)
    assert steps.lr_too_high(made) == []


def test_first_steps_that_blow_the_weights_up_count_when_the_data_allow_more():
    stuck = noisy(falling(end=0.7))
    blown = [look(s, update=0.3, weight=(20.0 if s >= 5 else 2.0,)) for s in LOOKS]
    learn = {"learn": {"n": 512, "correlation": 0.9, "chance": 0.0, "spread": 0.04, "z": 20.0, "accuracy": 0.95}}
    said = [Metrics(290, {"val_accuracy": 0.75}, {"val_accuracy": "max"})]
    assert the(steps.lr_too_high(replace(vitals(stuck, blown, data=learn), metrics=said))).onset <= 2
    assert steps.lr_too_high(vitals(stuck, blown)) == []


@pytest.mark.parametrize(("risen", "noise", "found"), [(0.6, 0.02, True), (0.3, 0.02, False), (0.0, 0.3, False)])
def test_first_steps_that_blow_the_weights_up_count_when_the_loss_comes_back_up(risen, noise, found):
    fallen = [max(0.6, LN10 - 0.03 * i) + risen * math.sin(math.pi * max(i - 100, 0) / 150) ** 2 for i in range(250)]
    blown = [look(s, update=0.3, weight=(20.0 if s >= 5 else 2.0,)) for s in LOOKS if s < 250]
    assert bool(steps.lr_too_high(vitals(noisy(fallen, noise), blown))) is found
    plain = [look(s, update=0.3) for s in LOOKS if s < 250]
    assert steps.lr_too_high(vitals(noisy(fallen, noise), plain)) == []


def test_units_that_were_born_dead_were_not_killed_by_the_first_steps():
    looks = []
    for step in LOOKS:
        units = Node(
            2, "relu", "act", (Argument("n0"),), {}, (32, 10), stats=Stats(n=320, dead=1.0 if step > 2 else None)
        )
        looks.append(replace(look(step, update=0.05), nodes=(*look(step).nodes, units)))
    assert steps.lr_too_high(vitals(noisy([LN10] * 300), looks)) == []


@pytest.mark.parametrize(("dead", "found"), [(0.8, True), (0.3, False)])
def test_first_steps_that_kill_units_and_blow_the_weights_up_count_though_the_rest_learns(dead, found):
    looks = []
    for step in LOOKS:
        units = Node(2, "relu", "act", (Argument("n0"),), {}, (32, 10), stats=Stats(n=320, dead=dead if step else 0.0))
        made = look(step, update=0.3, weight=(20.0 if step >= 5 else 2.0,))
        looks.append(replace(made, nodes=(*made.nodes, units)))
    assert bool(steps.lr_too_high(vitals(looks=looks))) is found


def test_a_loss_that_grows_geometrically_is_divergence():
    assert the(steps.lr_too_high(vitals([1.0 * 1.5**i for i in range(40)]))).onset <= 2


def test_a_bad_operation_is_not_blamed_on_the_lr():
    losses = noisy(falling(100)) + [math.nan] * 50
    assert steps.lr_too_high(vitals(losses, [look(s, update=0.1) for s in LOOKS if s < 100])) == []


def test_unscaled_inputs_make_the_lr_less_certain():
    jumping = [LN10, 30.0, 25.0, 20.0] + [2.4] * 200
    large = Argument("inputs", (32, 8), "float32", stats=Stats(n=256, mean=500.0, std=100.0, across=0.2))
    plain = the(steps.lr_too_high(vitals(jumping, [look(s, update=0.5) for s in LOOKS])))
    scaled = the(steps.lr_too_high(vitals(jumping, [look(s, update=0.5, inputs=large) for s in LOOKS])))
    assert scaled.certainty < plain.certainty


def test_lr_too_low():
    crawling = noisy([LN10 - 1e-4 * i for i in range(300)], 0.01)
    found = the(steps.lr_too_low(vitals(crawling, [look(s, update=1e-6) for s in LOOKS], lr=1e-7)))
    assert found.numbers["moved"] == pytest.approx(3e-4, rel=0.1)
    assert found.numbers["suggested_lr"] > 1e-5


def test_small_steps_with_another_reason_are_not_blamed_on_the_lr():
    crawling = noisy([LN10 - 1e-4 * i for i in range(300)], 0.01)
    vanished = [look(s, update=1e-6, grad=1e-8) for s in LOOKS]
    assert steps.lr_too_low(vitals(crawling, vanished)) == []
    clipped = [replace(look(s, update=1e-6, grad=1e-3), grad_before_clip=(2.0,)) for s in LOOKS]
    assert steps.lr_too_low(vitals(crawling, clipped)) == []
    collapsed = vitals(crawling, [look(s, update=1e-6) for s in LOOKS])
    collapsed.steps = replace(collapsed.steps, lr=tuple(0.1 * 0.9**i for i in range(300)))
    assert steps.lr_too_low(collapsed) == []
    assert steps.lr_too_low(vitals(looks=[look(s, update=1e-6) for s in LOOKS])) == []


def test_batch_too_small():
    few = [look(s, batch_size=1) for s in LOOKS]
    found = the(batches.batch_too_small(vitals(noisy(falling(end=1.2), 0.8), few)))
    assert found.numbers["batch_size"] == 1
    assert batches.batch_too_small(vitals(noisy(falling(end=1.2), 0.8))) == []


def test_batch_too_large():
    whole = [look(s, batch_size=1500) for s in LOOKS if s < 40]
    falling_still = vitals([LN10 - 0.02 * i for i in range(40)], whole)
    falling_still.targets = [BatchTargets(s, 1500, dict.fromkeys("0123456789", 150)) for s in range(5)]
    found = the(batches.batch_too_large(falling_still))
    assert found.numbers["steps_per_epoch"] == 1
    assert isinstance(batches.batch_too_large(vitals()), NotSeen)


@pytest.mark.parametrize(("calls", "optimizer", "large"), [(40, "SGD", True), (40, "LBFGS", False), (1, "SGD", False)])
def test_gradients_added_up_over_an_epoch_make_a_large_batch(calls, optimizer, large):
    added = [look(s, n_backward=calls) for s in LOOKS if s < 20]
    made = vitals([LN10 - 0.03 * i for i in range(20)], added, optimizers=[Optimizer(0, 0, optimizer)])
    found = batches.batch_too_large(made)
    assert (not isinstance(found, NotSeen) and [item.numbers["batch_size"] for item in found] == [1280]) == large


def test_a_model_that_runs_twice_for_one_loss_is_seen_by_half():
    """Both members of a pair pass the same network: what the first of them is tells nothing of their target."""
    pairs = [Look(step, n_forward=2, n_backward=1) for step in range(3)]
    data = {"repeats": {"conflict": 0.99, "pairs": 400}}
    assert outcomes.conflict(Vitals(looks=pairs, data=data)) is None
    accumulated = [replace(look, n_backward=2) for look in pairs]
    assert outcomes.conflict(Vitals(looks=accumulated, data=data)) == (0.99, 400)


def _with_floor(op: str, below: float):
    """Looks at a loss of 1.0 that `op` lifts by `below`."""
    layer, loss = look(0).nodes[0], node(mean=1.0 - below)
    held = Node(2, op, None, (Argument("n1", ()),), {"min": 1.0}, stats=Stats(n=1, mean=1.0))
    return [look(s, nodes=(layer, loss, held), roots=(2,)) for s in (*LOOKS, 170, 200, 250)]


@pytest.mark.parametrize(
    ("op", "below", "found"), [("clamp", 0.3, 1), ("abs", 0.1, 1), ("clamp", 0.0, 0), ("mul", 0.3, 0)]
)
def test_a_loss_that_is_clamped_or_turned_back_stands_still(op, below, found):
    losses = noisy(falling(end=1.0, speed=15), 0.01)
    right = replace(vitals(losses, _with_floor(op, below)), metrics=accurate(0.9))
    assert len(curves.plateau(right)) == found


def test_a_low_floor_is_a_regulariser():
    assert curves.plateau(vitals(noisy(falling(end=0.1, speed=15), 0.01), _with_floor("abs", 0.1))) == []


def test_a_loss_at_its_steepest_ends_too_early_however_accurate():
    late = vitals(noisy([LN10 - 1.2 * (i / 300) ** 6 for i in range(300)], 0.01))
    assert the(curves.too_few_epochs(replace(late, metrics=accurate(0.85))))
    assert curves.too_few_epochs(replace(late, metrics=accurate(0.95))) == []


@pytest.mark.parametrize(("optimizer", "growth", "found"), [("AdamW", 0.95, 1), ("AdamW", 1.5, 0), ("SGD", 0.95, 0)])
def test_decoupled_decay_that_stops_the_weights_from_growing(optimizer, growth, found):
    looks = [replace(look(s), weight=(2.0 * growth ** (s / 290),), update=(2e-3,), grad=(0.01,)) for s in LOOKS]
    held = vitals(noisy(falling(end=1.0, speed=15)), looks)
    held.optimizers = [Optimizer(0, 0, optimizer, groups=({"lr": 1e-3, "weight_decay": 1.0},))]
    assert len(regularising.too_much_regularisation(held)) == found


@pytest.mark.parametrize(("end", "at", "found"), [(0.2, 5, 0), (0.2, 150, 1), (0.9, 5, 1)])
def test_an_early_overshoot_that_training_got_over_did_no_harm(end, at, found):
    over = [level + (4.0 if at <= i < at + 8 else 0.0) for i, level in enumerate(falling(end=end))]
    looks = [look(s, update=0.06) for s in LOOKS]
    assert len(steps.lr_too_high(vitals(noisy(over, 0.03), looks))) == found


def test_a_loss_that_is_turned_back_stands_where_it_is_turned():
    """Half of the batches lie below the level; looks are dense when the loss gets there, and few later."""

    def turned(step: int, below: bool) -> Look:
        mean = 0.9 if below else 1.1
        made = look(step)
        steps = [(2, "sub", mean - 1), (3, "abs", abs(mean - 1)), (4, "add", 1 + abs(mean - 1))]
        behind = [
            Node(i, op, None, (Argument(f"n{i - 1}", ()),), stats=Stats(n=1, mean=value)) for i, op, value in steps
        ]
        return replace(made, nodes=(made.nodes[0], node(mean=mean), *behind), roots=(4,))

    losses = [1.08 + (LN10 - 1.08) * math.exp(-i / 5) + 0.05 * (-1) ** i for i in range(300)]
    sick = vitals(
        losses, [turned(s, below=s in (40, 80, 250)) for s in (0, 1, 2, 4, 8, 20, 40, 60, 80, 110, 170, 210, 250)]
    )
    assert "abs" in the(curves.plateau(sick)).cause
