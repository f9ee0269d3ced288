"""TensorBoard scalars of a training, written as event records without TensorFlow and without a thread."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.training.hooks import Hook

if TYPE_CHECKING:
    from luthier.training.run import Run


class TensorBoardLog(Hook):
    """Writes each evaluated row to `folder`: loss, metric and learning rate over optimizer steps.

    Tags are `loss/train`, `loss/val`, `<metric>/train`, `<metric>/val` and `lr`, so that TensorBoard draws the two
    parts side by side; the recipe goes to the HPARAMS tab. Each process of a resumed training appends a file of its
    own; what an earlier process wrote after the checkpoint is dropped by TensorBoard's own rule (a session start).

    Args:
        folder: where the event files go, such as `<record>/tensorboard`; created at the start.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.file: EventFile | None = None

    def start(self, run: Run) -> None:
        """Open an event file; a resumed training supersedes points after its checkpoint."""
        self.file = EventFile(self.folder)
        if run.step:
            self.file.supersede(run.step + 1)
        else:
            self.file.hyperparameters(run.recipe.flat(), f"{run.task.metric.name}/val")

    def evaluated(self, run: Run, row: dict[str, Any]) -> None:
        """Write one point per curve."""
        if self.file is not None:
            self.file.scalars(scalars_of(row), int(row["step"]))

    def end(self, run: Run, state: str, reason: str) -> None:
        """Note how the training ended and close the file."""
        if self.file is not None:
            self.file.close(state)
            self.file = None


def scalars_of(row: dict[str, Any]) -> dict[str, float]:
    """The curves of a row of metrics, by TensorBoard tag.

    >>> scalars_of({"step": 9, "lr": 0.1, "train_loss": 2.0, "val_loss": 3.0})
    {'lr': 0.1, 'loss/train': 2.0, 'loss/val': 3.0}
    """
    scalars = {"lr": row["lr"]} if "lr" in row else {}
    for name, value in row.items():
        part, _, quantity = name.partition("_")
        if part in ("train", "val") and quantity and value is not None:
            scalars[f"{quantity}/{part}"] = float(value)
    return scalars


class EventFile:
    """One TensorBoard event file, flushed after every event."""

    def __init__(self, folder: Path) -> None:
        # Imported here: these cost 0.12 s. The record writer is used without TensorBoard's EventFileWriter, which
        # starts a thread and imports all of TensorFlow where that is installed.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event_pb2, self.summary_pb2 = event_pb2, summary_pb2
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}.{os.getpid()}"
        self.writer = RecordWriter((folder / name).open("xb"))
        self._write(file_version="brain.Event:2")

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Write numbers by tag at an optimizer step."""
        summary = self.summary_pb2.Summary()
        for tag, value in values.items():
            summary.value.add(tag=tag, simple_value=value)
        self._write(step=step, summary=summary)

    def supersede(self, step: int) -> None:
        """Begin a session: points of earlier files at or after `step` no longer count."""
        log = self.event_pb2.SessionLog
        self._write(step=step, session_log=log(status=log.START))

    def hyperparameters(self, values: dict[str, Any], metric: str) -> None:
        """Describe the run for the HPARAMS tab: the recipe's values, and the tag of the metric to compare by."""
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        session = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        experiment = api_pb2.Experiment(metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=metric))])
        for name, value in values.items():
            kind, stored = _typed(value)
            setattr(session.hparams[name], f"{kind}_value", stored)
            experiment.hparam_infos.add(name=name, type=_DATA_TYPES[kind])
        start = plugin_data_pb2.HParamsPluginData(session_start_info=session)
        self._describe(metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=experiment))
        self._describe(metadata.SESSION_START_INFO_TAG, start)

    def close(self, state: str) -> None:
        """Note the end for the HPARAMS tab (a paused training is still going on) and close the file."""
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        if state != "paused":
            status = api_pb2.STATUS_FAILURE if state == "failed" else api_pb2.STATUS_SUCCESS
            end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
            self._describe(metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=end))
        self.writer.close()

    def _describe(self, tag: str, content: Any) -> None:
        from tensorboard.plugins.hparams import metadata

        summary = self.summary_pb2.Summary()
        summary.value.add(tag=tag, metadata=metadata.create_summary_metadata(content), tensor=metadata.NULL_TENSOR)
        self._write(summary=summary)

    def _write(self, **content: Any) -> None:
        self.writer.write(self.event_pb2.Event(wall_time=time.time(), **content).SerializeToString())
        self.writer.flush()


_DATA_TYPES = {"string": 1, "bool": 2, "number": 3}  # hparams/api.proto: DataType


def _typed(value: Any) -> tuple[str, Any]:
    """The kind of a hyperparameter for TensorBoard, and the value in it."""
    if isinstance(value, bool):
        return "bool", value
    if isinstance(value, (int, float)):
        return "number", float(value)
    return "string", "none" if value is None else str(value)
