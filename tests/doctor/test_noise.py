"""Label noise: what tells it from augmentation."""

import pytest

from luthier.doctor.symptoms.ahead import lower_loss_in_validation
from luthier.doctor.symptoms.noise import label_noise
from luthier.doctor.vitals import (
    Anatomy,
    Argument,
    BatchTargets,
    Look,
    Metrics,
    Node,
    Predictions,
    Stats,
    Steps,
    Vitals,
)

STEPS, BATCH = 100, 32


def outdone(repeats: int) -> Vitals:
    """A training that answers 60 % of its examples and 95 % in validation; so many inputs came again unchanged."""
    right = Predictions(BATCH, round(0.6 * BATCH), 0)
    return Vitals(
        anatomies=[Anatomy(loss_fn="CrossEntropyLoss")],
        looks=[Look(step, predictions=right) for step in range(0, STEPS, 5)],
        steps=Steps(tuple(range(STEPS)), (0.8,) * STEPS),
        targets=[BatchTargets(0, BATCH, {"0": BATCH // 2, "1": BATCH // 2})],
        metrics=[Metrics(step, {"val_accuracy": 0.95}) for step in range(0, STEPS + 1, 25)],
        data={"repeats": {"pairs": repeats, "conflict": 0.0}},
    )


@pytest.mark.parametrize(("repeats", "found"), [(0, 0), (4, 0), (5, 1), (40, 1)])
def test_five_inputs_that_come_again_unchanged_rule_augmentation_out(repeats, found):
    findings = label_noise(outdone(repeats))
    assert [item.symptom for item in findings] == ["label_noise"] * found
    assert all("0.95 against 0.59" in item.evidence[0] for item in findings)


@pytest.mark.parametrize(("own", "lower"), [(0.8, True), (0.4, False)])
def test_a_penalty_in_the_training_loss_does_not_make_validation_better(own, lower):
    loss = Node(0, "mse_loss", None, (), stats=Stats(n=1, mean=own))
    added = Node(1, "add", None, (Argument("n0"), Argument("n9")), stats=Stats(n=1, mean=0.8))
    vitals = Vitals(
        looks=[Look(step, nodes=(loss, added), roots=(1,)) for step in range(0, STEPS, 5)],
        steps=Steps(tuple(range(STEPS)), (0.8,) * STEPS),
        metrics=[Metrics(step, {"val_loss": 0.42}) for step in range(10, STEPS + 1, 10)],
    )
    assert (lower_loss_in_validation(vitals, 0.8) is not None) is lower
