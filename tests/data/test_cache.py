"""The cache and its sources: nothing unverified enters, nothing is fetched twice, nothing half-written stays."""

import os
import subprocess
import sys
import textwrap
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from luthier.data.cache import CorruptedError, cache_folder, read
from luthier.data.dataset import checksum
from luthier.data.fetching import Fetched
from luthier.data.sets import load
from luthier.data.sources import SourceError
from luthier.errors import DownloadError

ARRAYS = {
    "train_inputs": np.arange(24, dtype=np.uint8).reshape(4, 1, 2, 3),
    "train_targets": np.array([0, 1, 0, 1]),
    "test_inputs": np.arange(12, dtype=np.uint8).reshape(2, 1, 2, 3),
    "test_targets": np.array([1, 0]),
}


@dataclass
class Shelf:
    """A source that serves files from memory and counts how often it is asked."""

    content: bytes = b"good"
    error: BaseException | None = None
    name: str = "shelf"
    asked: list[Path] = field(default_factory=list)

    def __str__(self):
        return self.name

    def fetch(self, folder):
        self.asked.append(folder)
        (folder / "file").write_bytes(self.content)
        if self.error is not None:
            raise self.error


def decode(folder):
    content = (folder / "file").read_bytes()
    if content == b"":
        raise EOFError("the file ends too early")
    return ARRAYS if content == b"good" else {**ARRAYS, "test_targets": np.array([1, 1])}


def toy(*sources, files=("file",)):
    return Fetched(name="toy", checksum=checksum(ARRAYS), decode=decode, sources=sources, files=files)


def left_in(cache):
    return sorted(path.name for path in cache.iterdir() if path.name != ".toy.lock")


def test_fetches_once_and_maps_into_memory(tmp_path):
    shelf = Shelf()
    first, second = load(toy(shelf), tmp_path), load(toy(shelf), tmp_path)
    assert len(shelf.asked) == 1
    assert left_in(tmp_path) == ["toy"]
    for data in (first, second):
        np.testing.assert_array_equal(data.train[0].numpy(), ARRAYS["train_inputs"])
        np.testing.assert_array_equal(data.test[1].numpy(), ARRAYS["test_targets"])
    assert isinstance(read(tmp_path / "toy", checksum(ARRAYS))["train_inputs"], np.memmap)


def test_writing_to_the_tensors_changes_no_file(tmp_path):
    load(toy(Shelf()), tmp_path).train[0].fill_(7)
    np.testing.assert_array_equal(np.load(tmp_path / "toy" / "train_inputs.npy"), ARRAYS["train_inputs"])


@pytest.mark.parametrize("content", [b"", b"other"], ids=["truncated", "wrong checksum"])
def test_a_broken_download_is_refused_and_the_next_source_asked(tmp_path, content):
    broken, good = Shelf(content), Shelf()
    load(toy(broken, good), tmp_path)
    assert (len(broken.asked), len(good.asked)) == (1, 1)
    assert left_in(tmp_path) == ["toy"]


def test_when_every_source_fails_each_is_named_with_its_reason(tmp_path):
    sources = [
        Shelf(error=SourceError("no route to host"), name="mirror one"),
        Shelf(b"", name="mirror two"),
        Shelf(b"other", name="mirror three"),
    ]
    with pytest.raises(DownloadError) as caught:
        load(toy(*sources), tmp_path)
    message = str(caught.value)
    for part in (
        "mirror one: no route to host",
        "mirror two: the file ends too early",
        "mirror three: the decoded data",
    ):
        assert part in message
    assert f"put file into {tmp_path / 'by-hand' / 'toy'}" in message
    assert left_in(tmp_path) == []


def test_files_placed_by_hand_are_used_and_verified(tmp_path):
    place = tmp_path / "by-hand" / "toy"
    place.mkdir(parents=True)
    (place / "file").write_bytes(b"other")
    unreachable = Shelf(error=SourceError("down"))
    with pytest.raises(DownloadError, match=r"placed by hand.*expected"):
        load(toy(unreachable), tmp_path)
    (place / "file").write_bytes(b"good")
    assert load(toy(unreachable), tmp_path).name == "toy"


def test_an_interrupted_download_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        load(toy(Shelf(error=KeyboardInterrupt())), tmp_path)
    assert left_in(tmp_path) == []
    load(toy(Shelf()), tmp_path)
    assert left_in(tmp_path) == ["toy"]


def flip_last_byte(entry):
    path = entry / "train_inputs.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def cut_short(entry):
    path = entry / "train_inputs.npy"
    path.write_bytes(path.read_bytes()[:-1])


def lose_manifest(entry):
    (entry / "manifest.json").unlink()


def lose_array(entry):
    (entry / "test_inputs.npy").unlink()


def garble_manifest(entry):
    (entry / "manifest.json").write_text('["half of')


@pytest.mark.parametrize("damage", [flip_last_byte, cut_short, lose_manifest, lose_array, garble_manifest])
def test_a_corrupted_entry_is_refused_and_fetched_again(tmp_path, damage):
    shelf = Shelf()
    load(toy(shelf), tmp_path)
    damage(tmp_path / "toy")
    with pytest.raises(CorruptedError):
        read(tmp_path / "toy", checksum(ARRAYS))
    with pytest.warns(UserWarning, match="removed and fetched again"):
        data = load(toy(shelf), tmp_path)
    assert len(shelf.asked) == 2
    np.testing.assert_array_equal(data.train[0].numpy(), ARRAYS["train_inputs"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(toy(shelf), tmp_path)


def test_a_corrupted_entry_without_a_source_is_an_error_and_stays_refused(tmp_path):
    load(toy(Shelf()), tmp_path)
    flip_last_byte(tmp_path / "toy")
    for _ in range(2):
        with pytest.warns(UserWarning, match="corrupted"), pytest.raises(DownloadError):
            load(toy(Shelf(error=SourceError("down"))), tmp_path)


def test_an_entry_of_another_version_is_fetched_again(tmp_path):
    load(toy(Shelf()), tmp_path)
    other = {**ARRAYS, "test_targets": np.array([0, 0])}
    newer = Fetched(name="toy", checksum=checksum(other), decode=lambda _: other, sources=(Shelf(),), files=("file",))
    with pytest.warns(UserWarning, match="another version"):
        assert load(newer, tmp_path).test[1].tolist() == [0, 0]


def test_an_unwritable_folder_is_named_with_the_way_out(tmp_path):
    occupied = tmp_path / "occupied"
    occupied.write_text("a file where a folder is needed")
    with pytest.raises(DownloadError, match=r"cannot be written.*LUTHIER_DATA"):
        load(toy(Shelf()), occupied)


def test_a_full_disk_leaves_no_entry(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DownloadError, match="No space left on device"):
        load(toy(Shelf()), tmp_path)
    assert left_in(tmp_path) == []


def test_the_folder_comes_from_the_argument_then_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_DATA", str(tmp_path / "from-environment"))
    assert cache_folder(tmp_path) == tmp_path
    assert cache_folder() == tmp_path / "from-environment"
    monkeypatch.delenv("LUTHIER_DATA")
    assert cache_folder().name == "luthier"


def test_the_checksum_sees_names_types_shapes_and_bytes():
    base = {"x": np.arange(6, dtype=np.int64)}
    variants = [
        {"y": base["x"]},
        {"x": base["x"].astype(np.int32)},
        {"x": base["x"].reshape(2, 3)},
        {"x": base["x"] + 1},
    ]
    assert len({checksum(base), *map(checksum, variants)}) == 5
    assert checksum({"x": np.arange(12)[::2] // 2}) == checksum(base) == checksum({"x": base["x"].astype(">i8")})


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from luthier.data.dataset import checksum
from luthier.data.fetching import Fetched
cache, mode = Path(sys.argv[1]), sys.argv[2]
arrays = {name: np.arange(4) for name in ("train_inputs", "train_targets", "test_inputs", "test_targets")}
class Counting:
    def fetch(self, folder):
        (folder / "file").write_bytes(b"half")
        with (cache / "asked").open("a") as file:
            file.write("x")
        if mode == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.5)
toy = Fetched(name="toy", checksum=checksum(arrays), decode=lambda _: arrays, sources=(Counting(),), files=("file",))
print(toy.arrays(cache)["train_inputs"].tolist())
"""


def start(cache, mode):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM), str(cache), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_two_processes_at_once_fetch_once(tmp_path):
    both = [start(tmp_path, "live") for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0].strip() for process in both]
    assert outputs == ["[0, 1, 2, 3]"] * 2
    assert (tmp_path / "asked").read_text() == "x"


def test_a_killed_process_blocks_nobody_and_its_remains_are_removed(tmp_path):
    dying = start(tmp_path, "die")
    dying.communicate(timeout=60)
    assert dying.returncode < 0
    assert list(tmp_path.glob(".toy.*.part"))
    assert not (tmp_path / "toy").exists()
    assert start(tmp_path, "live").communicate(timeout=60)[0].strip() == "[0, 1, 2, 3]"
    assert not list(tmp_path.glob(".toy.*.part"))
