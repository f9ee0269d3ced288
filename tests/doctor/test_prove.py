"""prove: the same steps with and without a patch, from the start or from a checkpoint."""

import copy
import math
import pickle

import pytest
import torch

import luthier
from luthier import LuthierError, Patch, Recipe, Scale, Set
from luthier.doctor.findings import Diagnosis, Finding, Remedy
from luthier.doctor.prove import Proof, Reading, branch, fork_state, prove

RECIPE = Recipe(optimizer="sgd", lr=1e-4, batch_size=16, epochs=6)
RAISE = Patch(reason="Raise the learning rate.", operations=[Scale(field="lr", factor=1000.0)])
EXPLODE = Patch(reason="Explode.", operations=[Scale(field="lr", factor=1e30)])
SMOOTHER = Patch(reason="Smooth.", operations=[Set(field="norm", value="none")])
SETTINGS = {"console": False, "tensorboard": False}


@pytest.fixture
def record(task, tmp_path):
    """A training that is too slow."""
    return luthier.fit(task, RECIPE, folder=tmp_path / "slow", **SETTINGS)


def test_a_cure_helps_and_its_opposite_harms(record, task):
    proof = prove(record, RAISE, task, steps=30)
    assert proof.helps
    assert not proof.harms
    assert proof.effect > 0.1
    assert len(proof.gains) == 3
    assert all(gain > 0 for gain in proof.fit_gains)
    back = Patch(reason="Lower it.", operations=[Scale(field="lr", factor=1e-3)])
    fast = luthier.fit(task, RECIPE.replace({"lr": 0.1}), folder=record.path.parent / "fast", **SETTINGS)
    assert prove(fast, back, task, steps=30).harms


def test_both_branches_take_the_same_batches_and_draws(task):
    assert branch(task, RECIPE, 20) == branch(task, RECIPE, 20)
    assert branch(task, RECIPE, 20) != branch(task, RECIPE.replace({"seed": 1}), 20)


def test_a_branch_is_the_training_itself(record, task):
    whole = branch(task, RECIPE, 10_000)
    assert whole.val_loss == pytest.approx(record.metrics["val_loss"][-1], rel=1e-6)
    assert whole.value == record.metrics["val_accuracy"][-1]


def test_a_finding_is_proved_by_its_first_remedy_that_applies(record, task):
    no_such = Patch(reason="Cannot be.", operations=[Set(field="schedule.gamma", value=0.5)])
    remedies = (Remedy("code only"), Remedy("", no_such), Remedy("", RAISE))
    sick = Finding("lr_too_low", "warning", "", remedies=remedies)
    assert record.prove(sick, task, steps=5).patch == RAISE
    proof = prove(record, sick, task, steps=5, seeds=[4])
    assert proof.patch == RAISE
    assert proof.seeds == (4,)


def sick(record):
    """A diagnosis of the record that a patch can cure, with a consequence."""
    under = Finding("plateau", "warning", "", remedies=(Remedy("", RAISE),))
    found = Finding("lr_too_low", "warning", "", remedies=(Remedy("", RAISE),), consequences=(under,))
    return Diagnosis((found, under)).of(record)


def test_a_finding_of_a_record_proves_itself(record, task):
    root = sick(record).findings[0]
    expected = prove(record, RAISE, task, steps=5)
    assert root.prove(steps=5) == root.prove(task, steps=5) == root.consequences[0].prove(steps=5) == expected
    assert root.prove(steps=5, seeds=[4]).seeds == (4,)
    for found in record.diagnose().findings:
        assert found._record is record


def test_a_proof_needs_the_task_and_a_training_of_luthiers(record, task):
    root = sick(luthier.Record(record.path)).findings[0]
    with pytest.raises(LuthierError, match=r"pass the task that was trained, finding.prove\(task\)"):
        root.prove()
    assert root.prove(task, steps=3).steps == 3
    with pytest.raises(LuthierError, match="cannot fork a loop of your own"):
        Finding("lr_too_low", "warning", "", remedies=(Remedy("", RAISE),)).prove(task)


def test_what_a_finding_was_read_from_stays_in_memory(record):
    root, plain = sick(record).findings[0], sick(record).findings[0]
    assert root == plain == Finding(**{**vars(plain), "_record": None})
    assert "Record" not in repr(root)
    assert copy.deepcopy(root)._record is None
    assert pickle.loads(pickle.dumps(record))._trained is None
    record.remember(lambda: None)  # no pickle holds such a thing
    assert pickle.loads(pickle.dumps(root)) == root


def test_nothing_to_prove_says_why(record, task):
    with pytest.raises(LuthierError, match="changes of the program"):
        prove(record, Finding("missing_zero_grad", "critical", "", remedies=(Remedy("clear them"),)), task)
    with pytest.raises(LuthierError, match="nothing would change"):
        prove(record, Patch(reason="", operations=[Set(field="lr", value=1e-4)]), task)
    with pytest.raises(LuthierError, match="at least 1 step"):
        prove(record, RAISE, task, steps=0)


def test_a_branch_that_diverges_is_a_reading(record, task):
    proof = prove(record, EXPLODE, task, steps=30)
    assert proof.effect == -math.inf
    assert proof.harms
    assert math.isnan(proof.spread)


def paused(task, tmp_path):
    """A training that stands at step 12 of 36, in the middle of an epoch."""
    return luthier.fit(task, RECIPE, folder=tmp_path / "paused", until=15, **SETTINGS)


def test_forks_from_the_checkpoint_before_the_onset(task, tmp_path):
    record = paused(task, tmp_path)
    cure = Finding("lr_too_low", "warning", "", onset=20, remedies=(Remedy("", RAISE),))
    proof = prove(record, cure, task, steps=10)
    assert proof.from_step == 15
    assert len(proof.seeds) == 1
    assert "from step 15" in str(proof)
    luthier.fit(task, RECIPE, folder=record.path, resume=True, until=25, **SETTINGS)
    assert proof.without[0].val_loss == pytest.approx(record.rows[-1]["val_loss"], rel=1e-6)


@pytest.mark.parametrize(("onset", "patch"), [(None, RAISE), (3, RAISE), (20, SMOOTHER)])
def test_starts_anew_when_no_checkpoint_fits(task, tmp_path, onset, patch):
    record = paused(task, tmp_path)
    assert fork_state(record, RAISE, 20) is not None
    assert fork_state(record, patch, onset) is None


def test_undecided_when_seeds_disagree():
    readings = [Reading(1.0, loss, 0.5) for loss in (1.0, 1.2)]
    proof = Proof(RAISE, 0, 10, (0, 1), tuple(readings), tuple(reversed(readings)))
    assert not proof.helps
    assert not proof.harms
    assert str(proof).startswith("undecided")


def test_the_callers_random_numbers_stay(task):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    branch(task, RECIPE, 3)
    assert torch.equal(torch.rand(2), expected)
