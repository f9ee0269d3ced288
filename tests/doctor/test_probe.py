"""fit under the doctor's eyes: vitals in the record, nothing else changed."""

import pytest
import torch

import luthier
from luthier.doctor.vitals import Vitals
from luthier.doctor.wording import from_json, to_json
from luthier.training.hooks import Hook

RECIPE = luthier.Recipe(optimizer="adam", lr=1e-2, epochs=3, batch_size=32)
QUIET = {"console": False, "tensorboard": False, "signals": False}


def test_a_training_leaves_vitals_and_can_be_diagnosed(task, tmp_path):
    record = luthier.fit(task, RECIPE, folder=tmp_path / "run", **QUIET)
    vitals = Vitals.load(record.path / "vitals.jsonl")
    assert vitals.n_steps == record.status["step"]
    assert vitals.looks
    assert vitals.looks[0].predictions is not None
    diagnosis = record.diagnose()
    assert diagnosis.healthy
    assert not [item for item in diagnosis.findings if item.severity == "critical"]


def test_watching_changes_nothing(task, tmp_path):
    results = []
    for watch in (True, False):
        record = luthier.fit(task, RECIPE, folder=tmp_path / str(watch), watch=watch, **QUIET)
        results.append((record.metrics["val_loss"], [p.detach() for p in record.load_best(task).parameters()]))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))
    assert not (tmp_path / "False" / "vitals.jsonl").exists()


def test_what_the_doctor_found_at_the_end_is_kept(task, tmp_path):
    record = luthier.fit(task, RECIPE, folder=tmp_path / "run", **QUIET)
    kept = (record.path / "findings.json").read_text()
    assert kept == to_json(record.diagnose())
    assert record.findings["version"] == 1
    assert from_json(kept) == record.diagnose()
    assert luthier.fit(task, RECIPE, folder=tmp_path / "blind", watch=False, **QUIET).findings is None


class Stop(Hook):
    """Ends a training at a step: by an error, or as Ctrl-C does."""

    def __init__(self, step, error):
        self.step, self.error = step, error

    def step_end(self, run):
        if run.step == self.step:
            run.interrupted = self.error is None
            if self.error is not None:
                raise self.error


@pytest.mark.parametrize(("error", "raised"), [(RuntimeError("mine"), RuntimeError), (None, KeyboardInterrupt)])
def test_it_is_kept_however_a_training_ends(task, tmp_path, error, raised):
    with pytest.raises(raised, match="mine" if error else "interrupted"):
        luthier.fit(task, RECIPE, folder=tmp_path / "run", hooks=[Stop(5, error)], **QUIET)
    assert "5 steps" in luthier.Record(tmp_path / "run").findings["watched"]


def test_a_training_without_a_number_leaves_its_own_error(task, tmp_path):
    class Refuse(Hook):
        def epoch_start(self, run):
            raise RuntimeError("not today")

    with pytest.raises(RuntimeError, match="not today"):
        luthier.fit(task, RECIPE, folder=tmp_path / "run", hooks=[Refuse()], **QUIET)


def test_a_resumed_training_goes_on_in_the_same_file(task, tmp_path):
    luthier.fit(task, RECIPE, folder=tmp_path / "run", until=7, **QUIET)
    record = luthier.fit(task, RECIPE, folder=tmp_path / "run", resume=True, **QUIET)
    vitals = Vitals.load(record.path / "vitals.jsonl")
    assert vitals.steps.step == tuple(range(record.status["step"]))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_micro_batches_are_no_fault(task, tmp_path, accumulate):
    recipe = RECIPE.replace({"accumulate": accumulate})
    diagnosis = luthier.fit(task, recipe, folder=tmp_path / "run", **QUIET).diagnose()
    wrong = {"loss_scale", "missing_zero_grad", "label_misaligned"}
    assert not wrong & {item.symptom for item in diagnosis.findings if item.severity != "info"}


def test_a_learning_rate_that_is_too_high_is_named(task, tmp_path):
    recipe = luthier.Recipe(optimizer="sgd", lr=300.0, epochs=4, batch_size=32)
    try:
        record = luthier.fit(task, recipe, folder=tmp_path / "run", **QUIET)
    except luthier.LuthierError:
        record = luthier.Record(tmp_path / "run")
    assert record.diagnose().findings[0].symptom == "lr_too_high"
