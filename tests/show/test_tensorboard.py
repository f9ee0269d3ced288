"""TensorBoard scalars, read back by TensorBoard's own reader."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from luthier.fitting import fit
from luthier.recipe import Recipe
from luthier.record import Record
from luthier.show.tensorboard import EventFile
from luthier.task import Task

RECIPE = Recipe(epochs=3, batch_size=16, lr=0.01)


def train(folder: Path, **options: Any) -> Record:
    x = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
    task = Task(lambda: nn.Linear(4, 3), (x, x[:, :3].argmax(1)), val=0.25, name="toy")
    return fit(task, RECIPE, folder=folder, console=False, **options)


def read(folder: Path) -> Any:
    accumulator = EventAccumulator(str(folder), purge_orphaned_data=True)
    accumulator.Reload()
    return accumulator


def test_every_row_is_a_point_at_its_optimizer_step(tmp_path: Path) -> None:
    record = train(tmp_path / "run")
    events = read(tmp_path / "run" / "tensorboard")
    expected = {"lr": "lr", "loss/train": "train_loss", "loss/val": "val_loss"}
    expected |= {"accuracy/train": "train_accuracy", "accuracy/val": "val_accuracy"}
    assert set(events.Tags()["scalars"]) == set(expected)
    for tag, column in expected.items():
        points = events.Scalars(tag)
        assert [point.step for point in points] == record.metrics["step"]
        assert [point.value for point in points] == pytest.approx(record.metrics[column])


def test_a_resumed_training_continues_the_same_curves(tmp_path: Path) -> None:
    train(tmp_path / "run", until=7)
    record = train(tmp_path / "run", resume=True)
    events = read(tmp_path / "run" / "tensorboard")
    assert [point.step for point in events.Scalars("loss/val")] == [row["step"] for row in record.rows]


def test_points_after_the_checkpoint_are_superseded(tmp_path: Path) -> None:
    first = EventFile(tmp_path)
    for step in (5, 10, 15):
        first.scalars({"loss/val": float(step)}, step)
    first.close("interrupted")
    second = EventFile(tmp_path)
    second.supersede(6)
    second.scalars({"loss/val": 0.5}, 10)
    second.close("finished")
    assert [(point.step, point.value) for point in read(tmp_path).Scalars("loss/val")] == [(5, 5.0), (10, 0.5)]


def test_numbers_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    file = EventFile(tmp_path)
    file.scalars({"loss/train": math.nan, "loss/val": math.inf}, 1)
    file.close("failed")
    events = read(tmp_path)
    assert math.isnan(events.Scalars("loss/train")[0].value)
    assert events.Scalars("loss/val")[0].value == math.inf


def test_the_recipe_is_described_for_the_hparams_tab(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import metadata

    train(tmp_path / "run")
    content = read(tmp_path / "run" / "tensorboard").PluginTagToContent(metadata.PLUGIN_NAME)
    session = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert session.hparams["lr"].number_value == RECIPE.lr
    assert session.hparams["optimizer"].string_value == "adamw"
    assert session.hparams["compile"].bool_value is False
    assert metadata.SESSION_END_INFO_TAG in content
