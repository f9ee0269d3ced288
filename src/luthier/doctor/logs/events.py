"""TensorBoard event files, read by TensorBoard's own reader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from luthier.doctor.logs.curves import Curve, counted_from_one, vitals_of
from luthier.doctor.logs.names import meaning, side_of_folder, words_of
from luthier.doctor.vitals import Vitals
from luthier.errors import RecordError

PATTERN = "*tfevents*"


def read_events(path: Path) -> Vitals:
    """Vitals of an event file, or of a folder with those of one run.

    Raises:
        RecordError: several runs, or no scalars with a known name.
    """
    files = [path] if path.is_file() else sorted(path.rglob(PATTERN))
    runs = sorted({_run(file, path) for file in files})
    if len(runs) > 1:
        raise RecordError(f"{path} holds {len(runs)} runs ({', '.join(map(str, runs[:4]))}): name one of them")
    tags = [(folder, tag, points) for folder, source in _sources(files) for tag, points in _scalars(source)]
    curves, by_epoch = _curves(tags, path)
    if not any(curve.meaning.kind == "metric" for curve in curves):
        names = ", ".join(sorted({tag for _, tag, _ in tags})[:8]) or "no scalars at all"
        raise RecordError(
            f"{path} has no scalar that says how a training went: expected tags such as loss/train, val_loss, "
            f"accuracy/val, got {names}"
        )
    if by_epoch:
        return vitals_of(counted_from_one(curves), f"{path}, where one step is an epoch")
    return vitals_of(curves, str(path))


def _run(file: Path, top: Path) -> Path:
    """The folder of the run that an event file belongs to; folders of one side (`train`, `loss_val`) belong above."""
    folder = file.parent
    return folder.parent if folder != top and side_of_folder(folder.name) else folder


def _sources(files: Sequence[Path]) -> list[tuple[Path, Path]]:
    """(folder, what to read): each folder once, since TensorBoard merges its files; a single file as itself."""
    if len(files) == 1:
        return [(files[0].parent, files[0])]
    return [(folder, folder) for folder in dict.fromkeys(file.parent for file in files)]


def _scalars(path: Path) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    """Tags and points; TensorFlow 2 writes scalars as tensors of one number."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, TENSORS, EventAccumulator

    reader: Any = EventAccumulator(str(path), size_guidance={SCALARS: 0, TENSORS: 0})
    reader.Reload()
    tags = reader.Tags()
    for tag in tags[SCALARS]:
        yield tag, _ordered((event.step, event.value) for event in reader.Scalars(tag))
    for tag in tags[TENSORS]:
        events = [(event.step, _number(event.tensor_proto)) for event in reader.Tensors(tag)]
        points = _ordered((step, value) for step, value in events if value is not None)
        if points:
            yield tag, points


def _number(proto: Any) -> float | None:
    from tensorboard.util import tensor_util

    array = tensor_util.make_ndarray(proto)
    return float(array.reshape(-1)[0]) if array.size == 1 and array.dtype.kind in "fiu" else None


def _ordered(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """In order of steps, the last value of each; seven digits, which is what float32 holds."""
    return sorted((int(step), float(f"{value:.7g}")) for step, value in dict(points).items())


def _curves(tags: Iterable[tuple[Path, str, list[tuple[int, float]]]], top: Path) -> tuple[list[Curve], bool]:
    """The curves with a meaning; whether they count in epochs, as Keras's `epoch_loss` does."""
    curves, names = [], []
    for folder, tag, points in tags:
        side = f"{folder.name}/" if folder != top and side_of_folder(folder.name) else ""
        said = meaning(_once(side, tag))
        if said is not None and said.kind in ("metric", "lr"):
            curves.append(Curve(said, points))
            names.append(tag)
    return curves, bool(names) and all(name.startswith("epoch_") for name in names)


def _once(side: str, tag: str) -> str:
    """Folder and tag as one name; `add_scalars("loss", ...)` repeats the tag in the folder's name."""
    return "/".join(dict.fromkeys([*words_of(side), *words_of(tag)]))
