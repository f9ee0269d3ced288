"""What metrics of other names and units say, on vitals made by hand."""

import math
from dataclasses import replace

import pytest

from luthier.doctor.symptoms import facts
from luthier.doctor.symptoms.data import unshuffled_data
from luthier.doctor.vitals import Argument, BatchTargets, Evaluation, Look, Metrics, Node, Stats, Steps, Vitals

STEPS = 60


def told(op: str = "mse_loss", evaluated: bool = True, **values: float) -> Vitals:
    """A training whose loss fell from 1 to 0.5, targets of variance 4, and one row of metrics at step 30."""
    loss = Node(0, op, None, (Argument("n0", (32, 8)), Argument("target", (32,))), {}, stats=Stats(n=1, mean=0.5))
    return Vitals(
        looks=[Look(0, True, nodes=(loss,), roots=(0,))],
        steps=Steps(tuple(range(STEPS)), tuple(1 - i / (2 * STEPS) for i in range(STEPS))),
        targets=[BatchTargets(0, 32, None, 0.0, 2.0)] if op == "mse_loss" else [],
        metrics=[Metrics(30, values)],
        evaluations=[Evaluation(30, False, False, 1, 200)] if evaluated else [],
    )


@pytest.mark.parametrize(
    ("op", "name", "value", "loss"),
    [
        ("mse_loss", "dev_rmse", 0.9, 0.81),
        ("mse_loss", "rmse", 0.9, 0.81),
        ("mse_loss", "val_mse", 0.8, 0.8),
        ("mse_loss", "val_r2", 0.75, 1.0),
        ("mse_loss", "val_rmse", 40.0, None),  # of targets scaled back
        ("mse_loss", "val_mae", 0.8, None),
        ("cross_entropy", "val_ppl", math.exp(0.8), 0.8),
        ("cross_entropy", "dev_nll", 0.8, 0.8),
    ],
)
def test_scores_that_tell_the_loss_of_validation(op, name, value, loss):
    expected = [] if loss is None else [(30, pytest.approx(loss))]
    assert facts.metric(told(op, **{name: value}), "val", "loss") == expected


def test_a_loss_that_was_told_comes_first():
    assert facts.metric(told(val_loss=0.7, val_r2=0.9, val_nll=0.6), "val", "loss") == [(30, 0.7)]


def test_scores_without_a_side_are_those_of_the_evaluation():
    alone = told("cross_entropy", top1=0.6)
    assert facts.metric(alone, "val", "accuracy") == [(30, 0.6)]
    assert facts.metric(alone, "train", "accuracy") == []
    for other in (
        told("cross_entropy", evaluated=False, top1=0.6),
        told("cross_entropy", top1=0.6, val_top1=0.5),
        told("cross_entropy", loss=0.5, top1=0.6, val_loss=0.7),
    ):
        assert facts.metric(other, "train", "accuracy") == [(30, 0.6)]


def test_f1_stands_for_accuracy_where_classes_are_even():
    even, rare = {"0": 50, "1": 50}, {"0": 95, "1": 5}
    for counts, expected in ((even, [(30, 0.6)]), (rare, [])):
        trained = replace(told("cross_entropy", dev_f1=0.6), targets=[BatchTargets(0, 100, counts)])
        assert facts.metric(trained, "val", "accuracy") == expected
    assert facts.accuracies(replace(trained, targets=[BatchTargets(0, 100, even)])) == (None, 0.6)


def sorted_numbers(order: list[int], inside: float = 0.2) -> Vitals:
    """Looks at batches of 24 whose targets, seen by the loss alone, have these means."""
    looks = []
    for step, mean in enumerate(order):
        target = Argument("target", (24, 1), stats=Stats(n=24, mean=float(mean), std=inside))
        loss = Node(0, "mse_loss", None, (Argument("param:w", (24, 1), requires_grad=True), target))
        looks.append(Look(3 * step, True, nodes=(loss,), roots=(0,), batch_size=24))
    return Vitals(looks=looks)


@pytest.mark.parametrize(("inside", "found"), [(0.2, 1), (20.0, 0)])
def test_order_is_seen_in_what_the_loss_was_given(inside, found):
    answer = unshuffled_data(sorted_numbers(list(range(12)), inside))
    assert (isinstance(answer, list) and len(answer)) == found
