"""Label noise: what tells it from augmentation."""

import pytest

from luthier.doctor.symptoms.noise import label_noise
from luthier.doctor.vitals import Anatomy, BatchTargets, Look, Metrics, Predictions, Steps, Vitals

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
