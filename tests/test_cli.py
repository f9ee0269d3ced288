"""The command line as a user meets it."""

import subprocess
import sys

import pytest

from luthier.cli import main
from luthier.options import parse_value
from luthier.record import Record
from luthier.tuning.study import Study


def run(capsys, *tokens):
    """Exit code, stdout and stderr of a command."""
    try:
        main(list(tokens))
        code = 0
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


TASK_FILE = """
import torch
from luthier import Recipe, Task

def task():
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    def net(width=8):
        return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))
    return Task(net, (x, y), val=0.25, test=(x, y)), Recipe(lr=0.01, batch_size=16, epochs=2)

def number():
    return 3

def train(trial):
    trial.report(1.0, step=1)

def fails():
    raise RuntimeError("no data today")
"""


@pytest.fixture
def task_file(tmp_path):
    (tmp_path / "mine.py").write_text(TASK_FILE)
    return "mine.py:task"


def test_fit_takes_every_recipe_field_and_dotted_settings(capsys, task_file, tmp_path):
    code, _, errors = run(
        capsys,
        "fit",
        task_file,
        "--folder",
        "out",
        "--quiet",
        "--lr",
        "0.1",
        "--schedule",
        "step",
        "--schedule.gamma=0.5",
        "--model.width",
        "6",
        "--dropout",
        "0.1",
        "--optimizer.betas",
        "0.8,0.9",
        "--clip-norm",
        "1",
        "--zero-last",
    )
    assert (code, errors) == (0, "")
    recipe = Record(tmp_path / "out").recipe
    assert (recipe.lr, recipe.schedule.gamma, recipe.model, recipe.zero_last) == (0.1, 0.5, {"width": 6}, True)
    assert recipe.optimizer.betas == (0.8, 0.9)
    assert recipe.batch_size == 16


def test_fit_starts_from_a_recipe_file(capsys, task_file, tmp_path):
    assert run(capsys, "fit", task_file, "--folder", "first", "--quiet", "--lr", "0.2", "--model.width", "5")[0] == 0
    again = ["fit", task_file, "--folder", "again", "--quiet", "--recipe", "first/recipe.json", "--epochs", "1"]
    assert run(capsys, *again)[0] == 0
    recipe = Record(tmp_path / "again").recipe
    assert (recipe.lr, recipe.model, recipe.epochs) == (0.2, {"width": 5}, 1)
    code, _, errors = run(capsys, "fit", task_file, "--recipe", "nowhere.json")
    assert code == 2
    assert "nowhere.json cannot be read" in errors
    assert run(capsys, "fit", task_file, "--folder", "third", "--quiet", "--recipe", "first")[0] == 0
    assert Record(tmp_path / "third").recipe == Record(tmp_path / "first").recipe


def test_fit_starts_from_the_best_recipe_of_a_study(capsys, task_file, tmp_path):
    search = ["--space", "lr=0.1..0.2", "--trials", "2", "--workers", "1", "--repeats", "1", "--folder", "study"]
    assert run(capsys, "tune", task_file, *search, "--quiet")[0] == 0
    study = Study.open(tmp_path / "study")
    assert run(capsys, "fit", task_file, "--folder", "again", "--quiet", "--recipe", "study")[0] == 0
    assert Record(tmp_path / "again").recipe == study.recipe(study.best.number)
    code, _, errors = run(capsys, "fit", task_file, "--recipe", ".")
    assert code == 2
    assert "holds no study" in errors


def test_fit_prints_plain_lines_and_the_test_reading(capsys, task_file):
    code, out, _ = run(capsys, "fit", task_file, "--test")
    assert code == 0
    assert "\x1b" not in out
    assert "2/2" in out
    assert "test       loss" in out


def test_fit_resumes(capsys, task_file, tmp_path):
    assert run(capsys, "fit", task_file, "--folder", "out", "--quiet")[0] == 0
    code, _, errors = run(capsys, "fit", task_file, "--folder", "out", "--quiet")
    assert code == 2
    assert "already holds a training" in errors
    before = (tmp_path / "out" / "metrics.jsonl").read_text()
    assert run(capsys, "fit", task_file, "--folder", "out", "--quiet", "--resume")[0] == 0
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["fit", "mnits"], "unknown task 'mnits': did you mean 'mnist'"),
        (["fit", "nowhere.py:task"], "does not exist"),
        (["fit", "mine.py"], "which function"),
        (["fit", "mine.py:taks"], "did you mean 'task'"),
        (["fit", "mine.py:number"], "must return a Task"),
        (["fit", "mine.py:fails"], "RuntimeError: no data today (line 19 of mine.py)"),
        (["fit", "broken.py:task"], "SyntaxError"),
        (["fit", "mine.py:task", "--epochs", "0"], "greater than or equal to 1"),
        (["fit", "mine.py:task", "--lr", "fast"], "expected a valid number"),
        (["fit", "mine.py:task", "--optimizer", "sdg"], "did you mean 'sgd'"),
        (["fit", "mine.py:task", "--schedule.gamma", "0.5"], "schedule 'constant'"),
        (["fit", "mine.py:task", "--schedule.gamma"], "needs a value"),
        (["fit", "mine.py:task", "--set", "lr"], "FIELD=VALUE"),
        (["fit", "mine.py:task", "--batch-size", "1000"], "larger than train"),
        (["fit", "mine.py:task", "--resume"], "needs the folder"),
        (["fit", "mine.py:task", "--model.widht", "3"], "refused the keywords"),
        (["tune", "mine.py:task", "--space", "lr=0..0.1 log", "--trials", "1"], "above zero, got 0"),
        (["tune", "mine.py:task", "--sampler", "tpee", "--trials", "1"], "did you mean 'tpe'"),
        (["tune", "mine.py:task", "--workers", "0", "--trials", "1"], "workers"),
        (["tune", "mine.py:task", "--budget", "5 parsecs"], "a budget is a time above zero"),
        (["tune", "mine.py:task", "--first", "lr=0.01 bach_size=8"], "did you mean 'batch_size'"),
        (["tune", "mine.py:task", "--first", "lr 0.01"], "FIELD=VALUE"),
        (["tune", "mine.py:train"], "tuned in Python: luthier.tune(train, space=...)"),
        (["report", "."], "."),
        (["fetch", "mnits"], "mnits"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(capsys, task_file, tmp_path, tokens, message):
    (tmp_path / "broken.py").write_text("x = (")
    code, out, errors = run(capsys, *tokens)
    assert code == 2
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert "Traceback" not in out + errors


def test_a_count_is_not_rounded(capsys, task_file):
    code, out, errors = run(capsys, "tune", task_file, "--trials", "2.9")
    assert code != 0
    assert "Invalid value for --trials: expected a whole number, got '2.9'" in out + errors


def test_an_unknown_option_names_a_close_one(capsys, task_file):
    code, out, errors = run(capsys, "fit", task_file, "--lrr", "3")
    assert code != 0
    assert "Did you mean --lr?" in out + errors


def test_tasks_and_parts_list_what_there_is(capsys):
    _, tasks, _ = run(capsys, "tasks")
    _, parts, _ = run(capsys, "parts")
    assert "mnist-overfit" in tasks
    assert all(name in parts for name in ("one-cycle", "pct_start", "adamw", "cutout", "swa"))


def test_help_and_version(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(command in out for command in ("fit", "tune", "report", "find-lr"))
    assert run(capsys, "--version")[1].strip() == "0.1.0"
    assert "label smoothing" in run(capsys, "fit", "--help")[1]


def test_python_m_luthier_is_the_command_line(tmp_path):
    done = subprocess.run([sys.executable, "-m", "luthier", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0.1.0"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("none", None),
        ("true", True),
        ("flip", "flip"),
        ("1,2", [1, 2]),
        ('{"name": "step"}', {"name": "step"}),
    ],
)
def test_values(text, value):
    assert parse_value(text) == value
