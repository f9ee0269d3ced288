"""`luthier diagnose` as a user meets it."""

import pytest

import luthier.doctor.diagnosing
from luthier.cli import main
from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.wording import from_json


def run(capsys, *tokens):
    """Exit code, stdout and stderr of a command."""
    try:
        main(list(tokens))
        code = 0
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def val_loss_rises(vitals):
    values = [value for _, value in vitals.named("val_loss")]
    return [Finding("overfitting", "warning", "It rises.", onset=2)] if values[-1] > values[0] else []


@pytest.fixture(autouse=True)
def logs(tmp_path, monkeypatch):
    """A folder with a sick and a healthy log, and two rules."""
    rules = {"overfitting": val_loss_rises, "dead_relu": lambda vitals: NotSeen("no activations were seen")}
    monkeypatch.setattr(luthier.doctor.diagnosing, "SYMPTOMS", rules)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sick.csv").write_text("epoch,train_loss,val_loss\n1,1,1\n2,0.5,1.5\n")
    (tmp_path / "well.csv").write_text("epoch,train_loss,val_loss\n1,1,1\n2,0.5,0.5\n")


def test_a_sick_training_is_told_as_plain_lines(capsys):
    code, out, errors = run(capsys, "diagnose", "sick.csv")
    assert (code, errors) == (0, "")
    assert "\x1b" not in out
    assert "WARNING   overfitting  from step 2" in out
    assert "Could not look for dead_relu: no activations were seen." in out


def test_a_healthy_training_is_one_line(capsys):
    code, out, _ = run(capsys, "diagnose", "well.csv")
    assert code == 0
    assert out == "healthy: 1 check in order, 1 could not look (no activations were seen)\n"


@pytest.mark.parametrize(
    ("log", "fail_on", "code"), [("sick", "warning", 1), ("sick", "critical", 0), ("well", "warning", 0)]
)
def test_exit_codes_for_ci(capsys, log, fail_on, code):
    assert run(capsys, "diagnose", f"{log}.csv", "--fail-on", fail_on)[0] == code


def test_json_is_the_whole_diagnosis(capsys):
    code, out, _ = run(capsys, "diagnose", "sick.csv", "--json", "--fail-on", "warning")
    diagnosis = from_json(out)
    assert code == 1
    assert [finding.symptom for finding in diagnosis.findings] == ["overfitting"]
    assert diagnosis.findings[0].remedies
    assert diagnosis.not_seen == {"dead_relu": "no activations were seen"}


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["nowhere"], "there is nothing at nowhere"),
        (["."], "holds 2 CSV files"),
        (["sick.csv", "--fail-on", "info"], "--fail-on"),
    ],
)
def test_wrong_input(capsys, tokens, message):
    code, out, errors = run(capsys, "diagnose", *tokens)
    assert code != 0
    assert message in out + errors
    assert "Traceback" not in out + errors


def test_the_command_is_in_the_overview(capsys):
    assert "diagnose" in run(capsys, "--help")[1]
