"""Logs of other tools read as vitals: what they hold is there, what they do not hold stays empty."""

import math

import pytest
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util import tensor_util

from luthier.doctor.logs import read_logs
from luthier.doctor.logs.names import meaning
from luthier.errors import RecordError
from luthier.files import to_json
from luthier.recipe import Recipe
from luthier.record import Record
from luthier.show.tensorboard import EventFile


def rows(vitals):
    return [(row.step, dict(row.values)) for row in vitals.metrics]


@pytest.fixture
def table(tmp_path):
    """A function that writes a CSV file and reads it."""

    def read(text, name="metrics.csv"):
        (tmp_path / name).write_text(text)
        return read_logs(tmp_path / name)

    return read


def events(folder, curves):
    """Write an event file with {tag: [(step, value)]}."""
    file = EventFile(folder)
    for tag, points in curves.items():
        for step, value in points:
            file.scalars({tag: value}, step)
    file.close("finished")
    return folder


@pytest.mark.parametrize(
    ("name", "kind", "side", "quantity", "per"),
    [
        ("train_loss", "metric", "train", "loss", ""),
        ("Loss/train", "metric", "train", "loss", ""),
        ("trainLoss", "metric", "train", "loss", ""),
        ("train_loss_step", "metric", "train", "loss", "step"),
        ("train_loss_epoch", "metric", "train", "loss", "epoch"),
        ("epoch_loss", "metric", "", "loss", "epoch"),
        ("eval/accuracy", "metric", "val", "accuracy", ""),
        ("valid_acc", "metric", "val", "accuracy", ""),
        ("Test Accuracy", "metric", "test", "accuracy", ""),
        ("val_box_loss", "metric", "val", "box_loss", ""),
        ("lr-Adam", "lr", "", "", ""),
        ("learning_rate", "lr", "", "", ""),
        ("_step", "step", "", "", ""),
        ("trainer/global_step", "step", "", "", ""),
        ("Epoch", "epoch", "", "", ""),
    ],
)
def test_names(name, kind, side, quantity, per):
    said = meaning(name)
    assert (said.kind, said.side, said.quantity, said.per) == (kind, side, quantity, per)


@pytest.mark.parametrize(
    "name", ["_runtime", "gpu.0.memory", "hp_metric", "epoch_time", "train/examples_per_second", ""]
)
def test_names_that_no_rule_reads(name):
    assert meaning(name) is None


def test_lightnings_table_has_steps_and_epochs(table):
    vitals = table(
        "epoch,lr-Adam,step,train_loss_epoch,train_loss_step,val_acc,val_loss\n"
        "0,,9,,2.1,,\n0,0.01,19,,1.9,,\n0,,19,,,0.3,2.0\n0,,19,2.0,,,\n"
        "1,,29,,1.8,,\n1,0.001,39,,1.7,,\n1,,39,,,0.4,1.9\n1,,39,1.75,,,\n"
    )
    assert vitals.steps.step == (9, 19, 29, 39)
    assert vitals.steps.loss == (2.1, 1.9, 1.8, 1.7)
    assert vitals.steps.lr == (0.01, 0.01, 0.01, 0.001)
    assert len(vitals.steps.wait_s) == len(vitals.steps.busy_s) == 4
    assert rows(vitals) == [
        (19, {"train_loss": 2.0, "val_accuracy": 0.3, "val_loss": 2.0}),
        (39, {"train_loss": 1.75, "val_accuracy": 0.4, "val_loss": 1.9}),
    ]
    assert vitals.metrics[0].directions == {"train_loss": "min", "val_accuracy": "max", "val_loss": "min"}


def test_kerass_table_counts_epochs_and_keeps_nan(table):
    vitals = table("epoch,accuracy,loss,val_accuracy,val_loss\n0,0.5,1.0,0.4,1.1\n1,0.6,nan,0.5,1.0\n")
    assert [step for step, _ in rows(vitals)] == [1, 2]
    assert rows(vitals)[0][1] == {"train_accuracy": 0.5, "train_loss": 1.0, "val_accuracy": 0.4, "val_loss": 1.1}
    assert math.isnan(rows(vitals)[1][1]["train_loss"])
    assert "one step is an epoch" in vitals.source
    assert vitals.steps.step == (1, 2)
    assert math.isnan(vitals.steps.loss[1])


def test_steps_without_a_loss_are_left_out(table):
    """They would look like steps whose loss was lost to NaN."""
    vitals = table("step,train_loss,lr\n0,,0.1\n1,2.0,\n2,,0.01\n3,1.0,\n4,,0.001\n5,,0.001\n")
    assert vitals.steps.loss == (2.0, 1.0)
    assert vitals.steps.lr == (0.1, 0.01)


def test_an_export_of_weights_and_biases(table):
    vitals = table(
        '"Step","sunny-1 - train/loss","sunny-1 - train/loss__MIN","sunny-1 - val/loss"\n0,1,0,2\n5,0.5,0,1.5\n'
    )
    assert rows(vitals) == [(0, {"train_loss": 1.0, "val_loss": 2.0}), (5, {"train_loss": 0.5, "val_loss": 1.5})]
    with pytest.raises(RecordError, match="holds 2 runs"):
        table('"Step","sunny-1 - train/loss","rainy-2 - train/loss"\n0,1,1\n')


def test_any_table_semicolons_words_and_no_counting_column(table):
    vitals = table("train loss;note;Val Loss\n1.0;first;2\n0.5;second;1\n")
    assert rows(vitals) == [(1, {"train_loss": 1.0, "val_loss": 2.0}), (2, {"train_loss": 0.5, "val_loss": 1.0})]
    assert "one step is a row" in vitals.source


def test_cells_without_a_number(table):
    """What is missing, names repeated by whoever appended to the file, notes, and a last line that was torn."""
    vitals = table("epoch,train_loss,note\n1,1,a\n2,None,b\n3, N/A ,c\nepoch,train_loss,note\n4,0.5,d\n5,0.2e-\n")
    assert rows(vitals) == [(1, {"train_loss": 1.0}), (4, {"train_loss": 0.5})]


def test_a_dense_loss_becomes_steps_and_its_means_stand_beside_the_evaluations(table):
    lines = [f"{step},{10 - step},{'' if step % 4 != 3 else 5}" for step in range(8)]
    vitals = table("\n".join(["step,loss,val_loss", *lines]))
    assert vitals.steps.loss == tuple(10.0 - step for step in range(8))
    assert rows(vitals) == [(3, {"train_loss": 8.5, "val_loss": 5.0}), (7, {"train_loss": 4.5, "val_loss": 5.0})]


def test_a_resumed_table_keeps_the_later_value(table):
    vitals = table("epoch,train_loss,val_loss\n1,1,1\n2,9,9\n2,0.5,0.6\n3,0.4,0.5\n")
    assert rows(vitals)[1] == (2, {"train_loss": 0.5, "val_loss": 0.6})


def test_what_a_table_does_not_hold_stays_empty(table):
    vitals = table("epoch,train_loss\n1,1\n2,0.5\n")
    assert not vitals.looks
    assert not vitals.anatomies
    assert not vitals.targets
    assert not vitals.optimizers


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "is empty"),
        ("head.csv", b"loss,epoch\n", "nothing below"),
        ("other.csv", b"a,b\n1,2\n", "expected names such as train_loss.* got a, b"),
        ("words.csv", b"loss,step\nhigh,1\n", "expected names such as train_loss"),
        ("comma.csv", b"epoch;val_loss\n1;0,5\n2;0,4\n", r"comma.csv has '0,5' as val_loss in row 1 below"),
        ("axis.csv", b"epoch,loss\n1,0.5\n1e,0.5\n3,0.4\n", "has '1e' as epoch in row 2 below"),
        ("image.csv", b"\xff\xfe\x00\x81" * 9, "is no text"),
        ("notes.txt", b"hi", "notes.txt is no log that can be read"),
        ("events.out.tfevents.1", b"no event file", "no scalars at all"),
    ],
)
def test_files_that_are_no_logs(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordError, match=message):
        read_logs(tmp_path / name)


def test_folders(tmp_path):
    with pytest.raises(RecordError, match="there is nothing at"):
        read_logs(tmp_path / "nowhere")
    with pytest.raises(RecordError, match="holds no log"):
        read_logs(tmp_path)
    (tmp_path / "version_0").mkdir()
    (tmp_path / "version_0" / "metrics.csv").write_text("epoch,train_loss\n1,1\n")
    assert rows(read_logs(tmp_path)) == [(1, {"train_loss": 1.0})]
    (tmp_path / "more.csv").write_text("epoch,train_loss\n1,1\n")
    with pytest.raises(RecordError, match="holds 2 CSV files"):
        read_logs(tmp_path)


def test_tensorboard_with_losses_by_step_and_evaluations_by_epoch(tmp_path):
    dense = [(step, 2.0 - step / 100) for step in range(100)]
    val = [(epoch, 1.0) for epoch in range(5)]
    curves = {"Loss/train": dense, "lr": [(0, 0.1)], "Loss/val": val, "Accuracy/test": val}
    vitals = read_logs(events(tmp_path, curves))
    assert vitals.steps.loss[:2] == (2.0, 1.99)
    assert set(vitals.steps.lr) == {0.1}
    assert [step for step, _ in rows(vitals)] == [20, 40, 59, 79, 99]
    assert set(vitals.metrics[0].values) == {"train_loss", "val_loss", "val_accuracy"}


def test_tensorboard_with_a_folder_for_each_side(tmp_path):
    for side, value in (("train", 1.0), ("validation", 2.0)):
        events(tmp_path / side, {"epoch_loss": [(0, value), (1, value / 2)]})
    vitals = read_logs(tmp_path)
    assert rows(vitals) == [(1, {"train_loss": 1.0, "val_loss": 2.0}), (2, {"train_loss": 0.5, "val_loss": 1.0})]
    assert "one step is an epoch" in vitals.source


def test_tensorboard_scalars_written_as_tensors(tmp_path):
    writer = RecordWriter((tmp_path / "events.out.tfevents.1.host").open("xb"))
    writer.write(event_pb2.Event(wall_time=1.0, file_version="brain.Event:2").SerializeToString())
    for step in range(3):
        summary = summary_pb2.Summary()
        summary.value.add(tag="val_loss", tensor=tensor_util.make_tensor_proto(1.0 / (step + 1)))
        writer.write(event_pb2.Event(wall_time=1.0, step=step, summary=summary).SerializeToString())
    writer.close()
    assert [values["val_loss"] for _, values in rows(read_logs(tmp_path))] == pytest.approx([1.0, 0.5, 1 / 3])


def test_tensorboard_with_several_runs_or_foreign_tags(tmp_path):
    events(tmp_path / "one", {"gpu_memory": [(0, 1.0)]})
    with pytest.raises(RecordError, match="got gpu_memory"):
        read_logs(tmp_path)
    events(tmp_path / "two", {"loss/train": [(0, 1.0)]})
    with pytest.raises(RecordError, match="holds 2 runs"):
        read_logs(tmp_path)


@pytest.fixture
def record(tmp_path):
    """A record of two epochs and a reading between them, without vitals."""
    record = Record.create(tmp_path / "run", Recipe(optimizer="sgd", lr=0.1), {"metric": "accuracy"})
    for kind, step, lr in (("epoch", 10, 0.1), ("rung", 15, 0.1), ("epoch", 20, 0.05)):
        values = {"train_loss": 1.0, "train_accuracy": 0.8, "val_loss": 1.2, "val_accuracy": 0.5}
        record.append({"kind": kind, "step": step, "epoch": 1, "examples": 9, "time_s": 0.1, "lr": lr, **values})
    return record


def test_a_record_gives_its_epochs_lr_and_optimizer(record):
    vitals = read_logs(record.path)
    assert [step for step, _ in rows(vitals)] == [10, 20]
    assert rows(vitals)[0][1] == {"train_loss": 1.0, "train_accuracy": 0.8, "val_loss": 1.2, "val_accuracy": 0.5}
    assert vitals.steps.lr == (0.1, 0.05)
    assert vitals.optimizers[0].type == "sgd"
    assert vitals.optimizers[0].groups[0]["momentum"] == 0.9


def test_a_record_with_vitals_gives_both(record):
    measured = [
        {"kind": "steps", "step": [0, 1], "loss": [2.3, 2.2], "lr": [0.1, 0.1], "wait_s": [0, 0], "busy_s": [0, 0]},
        {"kind": "optimizer", "step": 0, "id": 0, "type": "SGD"},
    ]
    (record.path / "vitals.jsonl").write_text("".join(to_json(row) + "\n" for row in measured))
    vitals = read_logs(record.path)
    assert vitals.steps.loss == (2.3, 2.2)
    assert [optimizer.type for optimizer in vitals.optimizers] == ["SGD"]
    assert len(vitals.metrics) == 2
    assert read_logs(record.path / "vitals.jsonl").steps.loss == (2.3, 2.2)


def test_a_record_without_numbers_says_so(tmp_path):
    record = Record.create(tmp_path / "run", Recipe(), {"metric": "accuracy"})
    with pytest.raises(RecordError, match="left no numbers yet"):
        read_logs(record.path)
