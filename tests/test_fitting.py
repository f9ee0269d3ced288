"""fit: resume, interruption, records, and errors that lose nothing."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.errors import CheckpointError, DataError, LuthierError, NonFiniteLoss, RecordError
from luthier.files import from_json
from luthier.fitting import Interrupted, evaluate_test, fit, total_steps
from luthier.recipe import Recipe
from luthier.record import Record
from luthier.task import Step, Task
from luthier.tasks import load as load_subject
from luthier.training import loop
from luthier.training.checkpoints import load
from luthier.training.hooks import Hook

QUIET = {"console": False, "tensorboard": False}
RECIPES = {
    "everything at defaults": Recipe(epochs=3, batch_size=16),
    "sgd, one-cycle, ema, clipping, l1": Recipe(
        optimizer="sgd", lr=0.1, schedule="one-cycle", averaging="ema", clip_norm=1.0, l1=1e-4, epochs=3, batch_size=16
    ),
    "growing batches, swa, warm-up, mixup": Recipe(
        epochs=4,
        batch_size=8,
        batch_growth={"name": "grow", "factor": 2.0, "every": 1, "maximum": 32},
        averaging={"name": "swa", "start_frac": 0.5},
        warmup_frac=0.2,
        mixup=0.4,
        weight_decay=0.01,
        decoupled=False,
    ),
    "accumulation, plateau, smoothing": Recipe(
        schedule="plateau", accumulate=3, label_smoothing=0.1, epochs=3, batch_size=20
    ),
    "bfloat16, nadam, cyclic": Recipe(
        optimizer="nadam", schedule="cyclic", precision="bfloat16", epochs=3, batch_size=30
    ),
}


def test_the_best_weights_fit_whatever_surgery_traced(make_task, tmp_path):
    class Net(torch.nn.Sequential):
        """Its places are found by tracing only."""

        def __init__(self):
            super().__init__(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))

    task = make_task(model=Net)
    record = fit(task, Recipe(epochs=1, batch_size=30, norm="batch"), folder=tmp_path / "run", **QUIET)
    assert any(isinstance(layer, torch.nn.BatchNorm1d) for layer in record.load_best(task).modules())


def final_state(record):
    state, _ = load(record.checkpoints / "last.safetensors")
    state["position"].pop("spent_s")
    return state


def assert_same(first, second):
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second


def without_time(rows):
    return [{name: value for name, value in row.items() if name != "time_s"} for row in rows]


@pytest.mark.parametrize("name", RECIPES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=5)
@given(data=st.data())
def test_stopped_anywhere_and_resumed_is_bitwise_the_uninterrupted_training(name, data, make_task, tmp_path_factory):
    recipe, task = RECIPES[name], make_task()
    whole = fit(task, recipe, folder=tmp_path_factory.mktemp("whole") / "run", **QUIET)
    folder = tmp_path_factory.mktemp("parts") / "run"
    total = total_steps(task, recipe)
    stops = data.draw(st.lists(st.integers(1, total - 1), min_size=1, max_size=2, unique=True).map(sorted))
    for stop in stops:
        part = fit(task, recipe, folder=folder, resume=True, until=stop, **QUIET)
        assert part.status["state"] == "paused"
        assert part.status["step"] == stop
        torch.manual_seed(stop)  # whatever happens in between
    parts = fit(task, recipe, folder=folder, resume=True, **QUIET)
    assert_same(final_state(whole), final_state(parts))
    epochs = [row for row in parts.rows if row["kind"] == "epoch"]
    assert without_time(epochs) == without_time(whole.rows)
    best = [load(record.checkpoints / "best.safetensors")[0] for record in (whole, parts)]
    assert_same(*best)


def test_same_seed_same_result_other_seed_another(task, tmp_path):
    records = [
        fit(task, Recipe(epochs=2, batch_size=32, seed=seed), folder=tmp_path / str(i), **QUIET)
        for i, seed in enumerate([1, 1, 2])
    ]
    assert_same(final_state(records[0]), final_state(records[1]))
    assert records[0].metrics["train_loss"] != records[2].metrics["train_loss"]


def test_the_callers_random_numbers_are_left_alone(task, tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fit(task, Recipe(epochs=1, batch_size=30), folder=tmp_path / "run", **QUIET)
    assert torch.equal(torch.rand(3), expected)


def test_record_reads_back_what_was_trained(task, tmp_path):
    recipe = Recipe(epochs=3, batch_size=32, lr=0.01)
    fit(task, recipe, folder=tmp_path / "run", **QUIET)
    record = Record(tmp_path / "run")
    assert record.recipe == recipe
    assert record.status["state"] == "finished"
    assert record.metrics["epoch"] == [1.0, 2.0, 3.0]
    assert record.metrics["examples"] == [90, 180, 270]
    assert record.best == max(record.metrics["val_accuracy"])
    model = record.load_best(task)
    x, y = task.val
    assert (model(x).argmax(1) == y).float().mean().item() == pytest.approx(record.best)


def test_a_torn_last_line_is_left_out(task, tmp_path):
    record = fit(task, Recipe(epochs=2, batch_size=30), folder=tmp_path / "run", **QUIET)
    path = record.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"kind": "epo')
    assert len(record.rows) == 2


def test_test_data_is_read_once_at_the_end(make_task, tmp_path):
    task = make_task()
    record = fit(task, Recipe(epochs=1, batch_size=30), folder=tmp_path / "a", **QUIET)
    (reading,) = evaluate_test(task, [record])
    assert record.test == reading
    assert set(reading) == {"loss", "accuracy"}
    other = fit(task, Recipe(epochs=1, batch_size=30), folder=tmp_path / "b", **QUIET)
    with pytest.raises(LuthierError, match="once"):
        evaluate_test(make_task(), [record])
    with pytest.raises(LuthierError, match="the final reading"):
        evaluate_test(task, [other])


def test_a_network_that_cannot_be_loaded_leaves_the_seal_unbroken(make_task, tmp_path):
    task = make_task()
    records = [fit(task, Recipe(epochs=1, batch_size=30), folder=tmp_path / name, **QUIET) for name in "ab"]
    best = records[1].checkpoints / "best.safetensors"
    content = best.read_bytes()
    best.unlink()
    with pytest.raises(CheckpointError, match="no best checkpoint"):
        evaluate_test(task, records)
    assert task.test.opened is None
    assert records[0].test is None
    best.write_bytes(content)
    assert len(evaluate_test(task, records)) == 2


def test_early_stopping_ends_the_training(make_task, tmp_path):
    noise = torch.randn(60, 6), torch.arange(60) % 3
    task = make_task(train=noise, val=noise)
    record = fit(task, Recipe(epochs=50, batch_size=30, lr=1e-8, early_stopping=2), folder=tmp_path / "run", **QUIET)
    assert len(record.rows) < 50
    assert "early stopping" in record.status["reason"]


class StopBy(Hook):
    """Sends this process a signal at a step."""

    def __init__(self, number, step):
        self.number, self.step = number, step

    def step_end(self, run):
        if run.step == self.step:
            os.kill(os.getpid(), self.number)


def test_ctrl_c_saves_and_can_be_resumed(task, tmp_path):
    recipe, before = Recipe(epochs=4, batch_size=16), signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="resume=True") as caught:
        fit(task, recipe, folder=tmp_path / "run", hooks=[StopBy(signal.SIGINT, 8)], **QUIET)
    assert caught.value.record.status["state"] == "interrupted"
    assert signal.getsignal(signal.SIGINT) is before
    resumed = fit(task, recipe, folder=tmp_path / "run", resume=True, **QUIET)
    whole = fit(task, recipe, folder=tmp_path / "whole", **QUIET)
    assert_same(final_state(resumed), final_state(whole))


@pytest.mark.parametrize("step", [6, 12])
def test_an_epoch_whose_last_step_was_interrupted_is_read(step, task, tmp_path):
    """Else a trial would wait at a rung without a reading."""
    recipe = Recipe(epochs=2, batch_size=16)
    assert total_steps(task, recipe) == 12
    if step < 12:
        with pytest.raises(Interrupted):
            fit(task, recipe, folder=tmp_path / "run", until=6, hooks=[StopBy(signal.SIGINT, step)], **QUIET)
    else:
        fit(task, recipe, folder=tmp_path / "run", hooks=[StopBy(signal.SIGINT, step)], **QUIET)
    record = Record(tmp_path / "run")
    assert record.rows[-1]["step"] == record.status["step"] == step
    assert record.status["state"] == ("interrupted" if step < 12 else "finished")


def test_a_reading_that_was_cut_off_is_taken_when_the_training_is_to_go_no_further(task, tmp_path, monkeypatch):
    recipe = Recipe(epochs=2, batch_size=16)

    def cut_off(run):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "end_epoch", cut_off)
        with pytest.raises(KeyboardInterrupt):
            fit(task, recipe, folder=tmp_path / "run", **QUIET)
    assert Record(tmp_path / "run").status["step"] == 6
    record = fit(task, recipe, folder=tmp_path / "run", resume=True, until=6, **QUIET)
    assert [row["step"] for row in record.rows] == [6]


def test_sigterm_saves_and_exits_with_143(task, tmp_path):
    with pytest.raises(SystemExit) as caught:
        fit(task, Recipe(epochs=4, batch_size=30), folder=tmp_path / "run", hooks=[StopBy(signal.SIGTERM, 2)], **QUIET)
    assert caught.value.code == 143
    assert Record(tmp_path / "run").status["step"] == 2


def test_killed_at_any_moment_the_record_resumes(tmp_path):
    script = textwrap.dedent("""
        import sys, torch
        from luthier import Task, Recipe, fit
        import luthier.fitting
        luthier.fitting.SAVE_EVERY_S = 0.0
        x, y = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2
        class Net(torch.nn.Linear):
            def __init__(self):
                super().__init__(4, 2)
        task = Task(Net, (x, y), val=(x, y))
        record = fit(task, Recipe(epochs=int(sys.argv[2]), batch_size=16), folder=sys.argv[1], resume=True,
                     console=False, tensorboard=False)
        print(record.status["step"])
    """)
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    for _ in range(2):
        process = subprocess.Popen([*command, "100000"], stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if (tmp_path / "run" / "metrics.jsonl").exists():
                break
            time.sleep(0.02)
        time.sleep(0.3)
        process.kill()
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
        record = Record(tmp_path / "run")
        state, _ = load(record.checkpoints / "last.safetensors")
        assert state["position"]["step"] % 4 == 0
        assert len(record.rows) >= state["position"]["epoch"]


def test_signals_are_left_alone_outside_the_main_thread(task, tmp_path):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(fit(task, Recipe(epochs=1, batch_size=30), folder=tmp_path / "r", **QUIET))
    )
    thread.start()
    thread.join()
    assert results[0].status["state"] == "finished"


class Explodes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(6, 4)
        self.second = torch.nn.Linear(4, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        hidden = self.first(x)
        return self.second(hidden / 0 if self.calls > 4 else hidden)


def test_a_non_finite_loss_names_step_and_layer_and_keeps_the_record(make_task, tmp_path):
    task = make_task(model=Explodes)
    with pytest.raises(NonFiniteLoss, match=r"at step 4 .*second \(Linear\), whose input is not finite") as caught:
        fit(task, Recipe(epochs=3, batch_size=30), folder=tmp_path / "run", **QUIET)
    assert caught.value.step == 4
    record = Record(tmp_path / "run")
    assert record.status["state"] == "failed"
    assert "NaN or infinite" in record.status["reason"]
    assert len(record.rows) == 1


def test_a_diverging_lr_is_reported_not_trained_on(make_task, tmp_path):
    task = make_task(
        train=(torch.randn(60, 6), torch.randn(60, 3)),
        val=(torch.randn(9, 6), torch.randn(9, 3)),
        test=None,
        loss="mse",
    )
    with pytest.raises(NonFiniteLoss, match="lr 1e"):
        fit(task, Recipe(optimizer="sgd", lr=1e12, epochs=9, batch_size=30), folder=tmp_path / "run", **QUIET)


def linear(outputs):
    return lambda: torch.nn.Linear(6, outputs)


X = torch.randn(60, 6)


@pytest.mark.parametrize(
    ("keywords", "recipe", "message"),
    [
        ({"train": (X, torch.full((60,), 7))}, {}, r"labels must lie in 0..2 .* got 7 at position 0"),
        ({"train": (X, torch.zeros(60))}, {}, "expects class labels as int64"),
        ({"train": (X, torch.zeros(60, 1).long())}, {}, r"got logits \(60, 3\) and labels \(60, 1\)"),
        ({"model": linear(2)}, {}, "labels must lie in 0..1"),
        ({"train": (X.double(), torch.zeros(60).long())}, {}, "cannot take the first batch"),
        ({"train": (X[:, :4], torch.zeros(60).long())}, {}, r"cannot take the first batch .*float32\[60, 4\]"),
        ({}, {"batch_size": 91}, "91"),
        ({}, {"model": {"widht": 3}}, "refused the keywords"),
        ({"model": lambda: 3}, {}, "must return an nn.Module, got int"),
        ({"loss": "mse"}, {}, "float targets"),
        ({"loss": lambda out, y: out.sum(1)}, {}, r"must be a scalar tensor .* got shape"),
        ({}, {"precision": "float16"}, "needs a CUDA device"),
        ({}, {"device": "tpu"}, "device must be"),
        ({}, {"device": "cuda:7"}, "not available"),
        (
            {"loss": "binary_cross_entropy", "train": (X, torch.full((60, 3), 2.0)), "val": (X, torch.ones(60, 3))},
            {},
            "between 0 and 1",
        ),
        (
            {"loss": "mse", "train": (X, torch.ones(60, 1)), "val": (X, torch.ones(60, 1))},
            {"label_smoothing": 0.1},
            "one shape",
        ),
    ],
)
def test_wrong_input_is_one_clear_error_and_leaves_no_record(make_task, tmp_path, keywords, recipe, message):
    with pytest.raises(LuthierError, match=message):
        fit(
            make_task(**{"test": None, **keywords}),
            Recipe(**{"batch_size": 60, "epochs": 1, **recipe}),
            folder=tmp_path / "run",
            **QUIET,
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"model": torch.nn.Linear(6, 3)}, LuthierError, "got an instance"),
        ({"loss": "crossentropy"}, LuthierError, "did you mean 'cross_entropy'"),
        ({"metric": "acuracy"}, LuthierError, "did you mean 'accuracy'"),
        ({"metric": lambda outputs, targets: 1.0}, LuthierError, "direction"),
        ({"train": (X, torch.zeros(59).long())}, DataError, "59"),
        ({"train": (X[:0], torch.zeros(0).long())}, DataError, "is empty"),
        (
            {"train": (X.clone().index_fill_(0, torch.tensor(5), float("nan")), torch.zeros(60).long())},
            DataError,
            "nan",
        ),
        ({"val": 1.5}, DataError, "between 0 and 1"),
    ],
)
def test_a_wrong_task_is_refused_when_it_is_made(make_task, keywords, error, message):
    with pytest.raises(error, match=message):
        make_task(**keywords)


def test_something_else_than_a_task_is_refused():
    with pytest.raises(LuthierError, match=r"expected a luthier\.Task, got 3"):
        fit(3)


def test_a_step_that_fails_on_the_first_batch_is_told_with_its_shapes(make_task, tmp_path):
    task = make_task(step=lambda model, batch: {}["label"])
    with pytest.raises(LuthierError, match=r"cannot take the first batch .*KeyError: 'label'"):
        fit(task, Recipe(batch_size=30), folder=tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_and_another_recipe_are_refused(task, make_task, tmp_path):
    fit(task, Recipe(epochs=1, batch_size=30), folder=tmp_path / "run", **QUIET)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(RecordError, match="already holds a training"):
        fit(task, Recipe(epochs=1, batch_size=30), folder=tmp_path / "run", **QUIET)
    with pytest.raises(RecordError, match=r"another recipe \(lr: 0.001 there, 0.1 now\)"):
        fit(task, Recipe(epochs=1, batch_size=30, lr=0.1), folder=tmp_path / "run", resume=True, **QUIET)
    with pytest.raises(RecordError, match="another task"):
        fit(
            make_task(train=(X, torch.zeros(60).long())),
            Recipe(epochs=1, batch_size=30),
            folder=tmp_path / "run",
            resume=True,
            **QUIET,
        )
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_full_disk_keeps_what_was_saved_and_can_be_resumed(task, tmp_path, monkeypatch):
    recipe = Recipe(epochs=4, batch_size=30)
    record = fit(task, recipe, folder=tmp_path / "run", until=6, **QUIET)
    saved = (record.checkpoints / "last.safetensors").read_bytes()
    real = os.fsync

    def full(handle):
        if "checkpoints" in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RecordError, match=r"No space left on device.*make room"):
            fit(task, recipe, folder=tmp_path / "run", resume=True, **QUIET)
    assert record.status["state"] == "failed"
    assert (record.checkpoints / "last.safetensors").read_bytes() == saved
    resumed = fit(task, recipe, folder=tmp_path / "run", resume=True, **QUIET)
    assert_same(final_state(resumed), final_state(fit(task, recipe, folder=tmp_path / "whole", **QUIET)))


def test_a_path_that_cannot_be_a_folder_is_refused(task, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be written"):
        fit(task, Recipe(epochs=1, batch_size=30), folder=tmp_path / "file" / "run", **QUIET)


def test_a_corrupted_checkpoint_falls_back_or_says_so(task, tmp_path):
    recipe = Recipe(epochs=4, batch_size=16)
    record = fit(task, recipe, folder=tmp_path / "run", until=10, **QUIET)
    fit(task, recipe, folder=tmp_path / "run", until=20, resume=True, **QUIET)
    last = record.checkpoints / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="previous"):
        resumed = fit(task, recipe, folder=tmp_path / "run", resume=True, **QUIET)
    whole = fit(task, recipe, folder=tmp_path / "whole", **QUIET)
    assert_same(final_state(resumed), final_state(whole))
    with pytest.raises(RecordError, match="not the folder of a training"):
        Record(tmp_path)


class TwoInputs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(6, 4)

    def forward(self, left, right):
        return self.head(torch.cat([left, right], 1))


def test_several_inputs_as_tuple_and_as_dict(tmp_path):
    left, right, y = torch.randn(40, 2), torch.randn(40, 4), torch.arange(40) % 4
    for name, inputs in (("tuple", (left, right)), ("dict", {"right": right, "left": left})):
        task = Task(TwoInputs, (inputs, y), val=0.25)
        record = fit(task, Recipe(epochs=2, batch_size=10), folder=tmp_path / name, **QUIET)
        assert len(record.rows) == 2


def test_own_step_for_dict_batches_and_models_with_their_own_loss(tmp_path):
    def step(model, batch):
        outputs = model(batch["x"])
        return Step(((outputs - batch["y"]) ** 2).mean(), outputs, batch["y"], len(outputs))

    data = {"x": torch.randn(40, 6), "y": torch.randn(40, 2)}
    task = Task(linear(2), data, val=0.25, metric="r2", step=step)
    record = fit(task, Recipe(epochs=2, batch_size=10), folder=tmp_path / "run", **QUIET)
    assert "val_r2" in record.rows[0]


@pytest.mark.parametrize(
    ("loss", "targets", "metric"),
    [
        ("binary_cross_entropy", torch.randint(0, 2, (60, 3)).float(), "binary_accuracy"),
        ("mse", torch.randn(60, 3), "rmse"),
        ("mae", torch.randn(60, 3), "mae"),
        (torch.nn.SmoothL1Loss(), torch.randn(60, 3), "loss"),
    ],
)
def test_multi_label_and_regression(loss, targets, metric, tmp_path):
    task = Task(linear(3), (X, targets), val=0.2, loss=loss)
    record = fit(task, Recipe(epochs=2, batch_size=12, lr=0.01), folder=tmp_path / "run", **QUIET)
    assert record.metrics[f"val_{metric}"][-1] == record.metrics[f"val_{metric}"][-1]
    assert record.best is not None


def test_datasets_loaders_and_streams_are_accepted(tmp_path):
    from torch.utils.data import DataLoader, IterableDataset, TensorDataset

    y = torch.arange(60) % 3

    class Stream(IterableDataset):
        def __iter__(self):
            yield from zip(X, y, strict=True)

    plain = TensorDataset(X, y)
    sources = {"dataset": plain, "loader": DataLoader(plain, batch_size=20, shuffle=True)}
    for name, train in sources.items():
        task = Task(linear(3), train, val=(X, y))
        assert len(fit(task, Recipe(epochs=2, batch_size=20), folder=tmp_path / name, **QUIET).rows) == 2
    task = Task(linear(3), Stream(), val=(X, y), steps_per_epoch=2)
    assert fit(task, Recipe(epochs=2, batch_size=20), folder=tmp_path / "stream", **QUIET).status["step"] == 4
    with pytest.raises(DataError, match="steps_per_epoch"):
        fit(Task(linear(3), Stream(), val=(X, y)), Recipe(batch_size=20), folder=tmp_path / "none", **QUIET)


def test_non_finite_metrics_are_strings_in_the_file_and_numbers_again(task, tmp_path):
    record = fit(task, Recipe(epochs=1, batch_size=30), folder=tmp_path / "run", **QUIET)
    record.append({"kind": "epoch", "step": 9, "val_loss": float("inf")})
    last = (record.path / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["val_loss"] == "Infinity"
    assert from_json(last)["val_loss"] == float("inf")


def test_reading_test_data_needs_no_optimizer_nor_torchs_compiler(tmp_path):
    code = (
        "import sys; from pathlib import Path; from luthier.fitting import evaluate_test\n"
        "from luthier.record import Record; from luthier.tasks import load\n"
        f"print(evaluate_test(load('digits').task, [Record(Path({str(tmp_path / 'run')!r}))]))\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subject = load_subject("digits")
    fit(subject.task, subject.recipe.replace({"epochs": 1}), folder=tmp_path / "run", console=False)
    subprocess.run([sys.executable, "-c", code], check=True)
