"""What a classifier answered, against counting by hand."""

import pytest
import torch
from torch.nn import functional as F

from luthier.doctor.measure import answers
from luthier.doctor.measure.stats import read


def row_of(pending):
    return read([pending])[0]


def scores(n=50, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, classes, generator=generator), torch.randint(0, classes, (n,), generator=generator)


def test_answers_to_cross_entropy_are_counted():
    logits, targets = scores()
    row = row_of(answers.of_loss("cross_entropy", [logits, targets], {}))
    answered, losses = logits.argmax(1), F.cross_entropy(logits, targets, reduction="none")
    confident = (logits.softmax(1).amax(1) > 0.9) & (answered != targets)
    assert (row["n"], row["correct"]) == (50, int((answered == targets).sum()))
    assert row["confident_wrong"] == int(confident.sum()) > 0
    assert row["loss"][0] == pytest.approx(float(losses.min()), rel=1e-4)
    assert row["loss"][3] == pytest.approx(float(losses.median()), rel=0.2)
    assert row["loss"][-1] == pytest.approx(float(losses.max()), rel=1e-4)
    ones = (targets == 1, answered == 1)
    assert row["by_class"]["1"] == [int(ones[0].sum()), int(ones[1].sum()), int((ones[0] & ones[1]).sum())]


def test_ignored_and_impossible_targets_do_not_count():
    logits, targets = scores()
    targets[:10] = -100
    targets[10] = 7
    assert row_of(answers.of_loss("cross_entropy", [logits, targets], {"ignore_index": -100}))["n"] == 39
    assert row_of(answers.of_loss("nll_loss", [logits.log_softmax(1), targets], {"ignore_index": 0}))["n"] < 39


def test_pixels_are_answers_too():
    logits, targets = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7))
    row = row_of(answers.of_loss("cross_entropy", [logits, targets], {}))
    assert (row["n"], row["correct"]) == (84, int((logits.argmax(1) == targets).sum()))


def test_one_score_answers_yes_or_no():
    logits, targets = torch.tensor([[5.0], [-5.0], [5.0], [0.1]]), torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    row = row_of(answers.of_loss("binary_cross_entropy_with_logits", [logits, targets], {}))
    assert (row["n"], row["correct"], row["confident_wrong"]) == (4, 3, 1)
    assert row["by_class"] == {"0": [2, 1, 1], "1": [2, 3, 2]}
    assert row["loss"][-1] == pytest.approx(5.0067, abs=1e-3)
    same = row_of(answers.of_loss("binary_cross_entropy", [logits.sigmoid(), targets], {}))
    assert {**same, "loss": None} == {**row, "loss": None}


def test_chances_are_recognised_where_the_loss_is_unknown():
    logits, targets = scores()
    row = row_of(answers.of_classes(logits.softmax(1), targets, maybe_chances=True))
    assert row["loss"] == pytest.approx(row_of(answers.of_classes(logits, targets))["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("cross_entropy", (torch.randn(3, 4), torch.rand(3, 4))),
        ("cross_entropy", (torch.randn(4), torch.tensor(1))),
        ("mse_loss", (torch.randn(3, 1), torch.rand(3, 1))),
        ("binary_cross_entropy_with_logits", (torch.randn(3, 4), torch.rand(3, 4))),
        ("cross_entropy", (torch.randn(3, 4),)),
    ],
)
def test_other_losses_tell_no_classes(name, given):
    assert answers.of_loss(name, given, {}) is None


def test_nothing_counted_gives_an_empty_row():
    row = row_of(
        answers.of_loss("cross_entropy", [torch.randn(2, 3), torch.tensor([-100, -100])], {"ignore_index": -100})
    )
    assert (row["n"], row["correct"], row["loss"]) == (0, 0, [])


def test_very_many_scores_are_thinned():
    logits, targets = torch.randn(3000, 300), torch.randint(0, 300, (3000,))
    row = row_of(answers.of_classes(logits, targets))
    assert 300 < row["n"] < 500
    assert "by_class" not in row
