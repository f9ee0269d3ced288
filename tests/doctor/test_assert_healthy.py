"""assert_healthy in people's own tests: passes, fails with the diagnosis as text, never takes silence for health."""

import pickle
import subprocess
import sys

import pytest
import torch

import luthier
import luthier.doctor.diagnosing
from luthier.doctor.findings import Diagnosis, Finding, NotSeen
from luthier.doctor.verdicts import Unhealthy, assert_healthy, diagnosis_of, grave
from luthier.doctor.vitals import Vitals
from luthier.doctor.wording import text_of
from luthier.errors import LuthierError, RecordError

CONSEQUENCE = Finding("no_learning", "warning", "The loss stands still.", onset=5)
FROZEN = Finding("frozen_params", "warning", "The encoder is frozen.", where=("encoder",), consequences=(CONSEQUENCE,))
CRITICAL = Finding("nan_inf", "critical", "The loss is lost.")
NOTE = Finding("too_few_epochs", "info", "It was still falling.")


def seen(*findings):
    return Diagnosis(findings, healthy=("dead_relu",))


def test_a_healthy_diagnosis_is_handed_back():
    diagnosis = seen(NOTE)
    assert assert_healthy(diagnosis) is diagnosis


@pytest.mark.parametrize("finding", [FROZEN, CRITICAL])
def test_a_finding_fails_with_the_diagnosis_as_text(finding):
    with pytest.raises(AssertionError) as caught:
        assert_healthy(seen(finding))
    assert isinstance(caught.value, Unhealthy)
    assert text_of(seen(finding)) in str(caught.value)
    assert caught.value.diagnosis == seen(finding)


def test_the_mildest_severity_that_fails_can_be_chosen():
    assert assert_healthy(seen(FROZEN), fail_on="critical") == seen(FROZEN)
    with pytest.raises(Unhealthy, match="nan_inf"):
        assert_healthy(seen(FROZEN, CRITICAL), fail_on="critical")
    with pytest.raises(LuthierError, match="did you mean 'warning'"):
        assert_healthy(seen(), fail_on="warnings")


def test_what_is_allowed_passes_with_what_it_causes():
    diagnosis = seen(FROZEN, CONSEQUENCE)
    assert assert_healthy(diagnosis, allow=("frozen_params",)) is diagnosis
    assert assert_healthy(diagnosis, allow="frozen_params") is diagnosis
    with pytest.raises(Unhealthy):
        assert_healthy(seen(FROZEN, CRITICAL), allow=("frozen_params",))
    with pytest.raises(Unhealthy):
        assert_healthy(seen(CONSEQUENCE), allow=("frozen_params",))


def test_an_unknown_allowed_symptom_names_a_close_one():
    with pytest.raises(LuthierError, match="did you mean 'frozen_params'"):
        assert_healthy(seen(), allow=("frozen_param",))


def test_nothing_seen_is_not_healthy():
    with pytest.raises(Unhealthy, match="not examined"):
        assert_healthy(Diagnosis(not_seen={"nan_inf": "no step was made"}))


def test_a_watch_that_saw_no_step_is_not_healthy():
    model = torch.nn.Linear(3, 2)
    with luthier.watch(model, torch.optim.SGD(model.parameters(), lr=0.1)) as watch:
        pass
    with pytest.raises(Unhealthy, match="no training step was seen"):
        assert_healthy(watch)
    with pytest.raises(Unhealthy, match="no training step was seen"):
        assert_healthy(Vitals())


def train(model, clear):
    """A short regression on noise-free data under a watch."""
    x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([[1.0], [-2.0], [0.5], [0.0]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with luthier.watch(model, optimizer) as watch:
        for step in range(60):
            batch = torch.randperm(256, generator=torch.Generator().manual_seed(step))[:32]
            if clear:
                optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            watch.step(loss, inputs=x[batch], targets=y[batch])
    return watch


def test_a_watch_of_a_healthy_and_of_a_sick_loop():
    torch.manual_seed(0)
    assert assert_healthy(train(torch.nn.Linear(4, 1), clear=True)).is_healthy
    with pytest.raises(Unhealthy, match="missing_zero_grad"):
        assert_healthy(train(torch.nn.Linear(4, 1), clear=False))


def test_verdicts_are_imported_without_torch():
    code = "import sys, luthier.doctor.verdicts, luthier.doctor.logs.events; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_grave_findings():
    assert grave(seen(FROZEN, CRITICAL, NOTE), "warning") == [FROZEN, CRITICAL]
    assert grave(seen(FROZEN, CRITICAL, NOTE), "critical") == [CRITICAL]


def test_unhealthy_can_cross_processes():
    again = pickle.loads(pickle.dumps(Unhealthy("text", seen(CRITICAL))))
    assert (str(again), again.diagnosis) == ("text", seen(CRITICAL))


class Diagnosable:
    def diagnose(self):
        return seen(CRITICAL)


def val_loss_rises(vitals):
    values = [value for _, value in vitals.named("val_loss")]
    if not values:
        return NotSeen("no validation loss was seen")
    return [Finding("overfitting", "warning", "It rises.")] if values[-1] > values[0] else []


def test_vitals_paths_and_things_with_diagnose(tmp_path, monkeypatch):
    monkeypatch.setattr(luthier.doctor.diagnosing, "SYMPTOMS", {"overfitting": val_loss_rises})
    (tmp_path / "log.csv").write_text("epoch,train_loss,val_loss\n1,1,1\n2,0.5,1.5\n")
    assert diagnosis_of(Diagnosable()) == seen(CRITICAL)
    assert "no training step was seen" in diagnosis_of(Vitals()).not_seen["overfitting"]
    for path in (tmp_path / "log.csv", str(tmp_path / "log.csv"), tmp_path):
        assert [finding.symptom for finding in diagnosis_of(path).findings] == ["overfitting"]
    with pytest.raises(Unhealthy, match="overfitting"):
        assert_healthy(tmp_path / "log.csv")


def test_what_cannot_be_diagnosed(tmp_path):
    with pytest.raises(RecordError, match="there is nothing at"):
        assert_healthy(tmp_path / "nowhere")
    for thing in (3, None, object()):
        with pytest.raises(LuthierError, match="expected a Diagnosis, a Watch, a Record or a path"):
            assert_healthy(thing)
