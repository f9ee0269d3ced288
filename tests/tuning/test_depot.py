"""Folders of trials through fsspec: versions, what is half there, turns in workers, and their way home."""

import io
import tarfile
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tests.tuning.folders import read, write

from luthier.errors import LuthierError
from luthier.tuning import depot
from luthier.tuning.depot import Depot, DepotError, checked_address, insist, pack, version_of
from luthier.tuning.space import uniform
from luthier.tuning.tune import tune

SPACE: Any = {"slope": uniform(0, 1)}


class Bucket(MemoryFileSystem):
    """An object store: it has no folders and no rename; making a folder would make a bucket."""

    protocol = "bucket"
    async_impl = True
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        raise PermissionError("no bucket of this name")

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def mv(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError


fsspec.register_implementation("bucket", Bucket, clobber=True)
fsspec.register_implementation("parcel", "parcelfs.Parcels", errtxt="Install parcelfs to reach parcels", clobber=True)


@pytest.fixture(params=["file", "bucket"])
def store(request: Any, tmp_path: Path) -> Depot:
    Bucket.store.clear()
    return Depot(f"file://{tmp_path}/depot" if request.param == "file" else "bucket://here/depot")


def test_a_folder_comes_as_it_was_put(store: Depot, made: Path, tmp_path: Path) -> None:
    there = tmp_path / "there" / "0007"
    store.probe()
    store.fetch("0007", there)
    assert not there.exists()  # nothing was put
    store.put("0007", made, 1)
    store.fetch("0007", there)
    assert read(there) == "one"
    assert [path.name for path in there.glob(".*")] == [".version"]
    assert version_of(there) == version_of(made) != ""
    assert store.names() == {"0007"}
    assert [path.name for path in there.parent.iterdir()] == ["0007"]
    store.remove("0007")
    assert store.names() == set()


def test_of_all_versions_the_newest_is_kept_and_counts(store: Depot, made: Path, tmp_path: Path) -> None:
    there = tmp_path / "there" / "0007"
    for turn, nth, text in [(1, 1, "one"), (1, 2, "two"), (3, 1, "three")]:
        write(made, text)
        store.put("0007", made, turn, nth)
        assert len(store._archives("0007")) == 1
    write(made, "of a worker that was taken for dead")
    store.put("0007", made, 2, 9)
    store.fetch("0007", there)
    assert read(there) == "three"
    write(there, "trained further")
    store.fetch("0007", there)
    assert read(there) == "trained further"  # as new as what is kept
    store.remove("0007")
    store.put("0007", made, 2, 10)
    store.fetch("0007", there)
    assert read(there) == "trained further"  # newer than what is kept


def test_a_half_written_archive_is_passed_over(store: Depot, made: Path, tmp_path: Path) -> None:
    store.put("0007", made, 1)
    (whole,) = store._archives("0007")
    content = store._files.cat_file(whole.path)
    path = whole.path.replace(whole.version, "000000000002-000000")
    store._files.pipe_file(path, content[:-1])
    store.fetch("0007", tmp_path / "there")
    assert version_of(tmp_path / "there") == whole.version
    store._files.pipe_file(path, content)
    store.fetch("0007", tmp_path / "there")
    assert version_of(tmp_path / "there") > whole.version


def test_an_archive_cannot_write_elsewhere(store: Depot, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../../../escaped"), io.BytesIO())
    store._make(f"{store._root}/0007")
    store._files.pipe_file(f"{store._root}/0007/000000000001-000000-{len(buffer.getvalue())}.tar", buffer.getvalue())
    with pytest.raises(DepotError, match="OutsideDestination"):
        store.fetch("0007", tmp_path / "there" / "0007")
    assert not list(tmp_path.rglob("escaped"))
    assert not list((tmp_path / "there").iterdir())


def test_the_state_is_read_before_what_it_refers_to(made: Path, tmp_path: Path) -> None:
    for name in ("best.json", "last.previous.json"):
        (made / "checkpoints" / name).hardlink_to(made / "checkpoints" / "last.json")
    (made / "a.jsonl").write_text("row")
    pack(made, tmp_path / "archive.tar")
    with tarfile.open(tmp_path / "archive.tar") as tar:
        names = [Path(name).name for name in tar.getnames()]
        assert all(member.isreg() for member in tar)
    assert names == ["last.json", "last.previous.json", "a.jsonl", "best.json"]


def test_addresses_are_as_all_nodes_understand_them(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert checked_address("some/where/") == checked_address("file://some/where") == f"file://{tmp_path}/some/where"
    assert checked_address("bucket://here/depot/") == "bucket://here/depot"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "an address such as s3://bucket/folder, got ''"),
        (3, "got 3"),
        ("bukket://here", "no file system is known for bukket://, "),
        ("filee://here", "did you mean 'file'"),
        ("parcel://here", "another package, here and on all nodes: Install parcelfs to reach parcels"),
        ("simplecache::parcel://here", "Install parcelfs"),
        ("bucket://me:secret@here", "leave the password out"),
    ],
)
def test_what_is_no_address_is_said_first(address: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(LuthierError, match=said):
        tune(lambda trial: 1.0, space=SPACE, on="ray", folder=tmp_path / "study", checkpoints=address)
    assert not (tmp_path / "study").exists()


def test_a_connection_that_broke_is_made_anew(made: Path, monkeypatch: Any) -> None:
    class Brittle(Bucket):
        protocol = "brittle"
        broken = False

        def put_file(self, *told: Any, **more: Any) -> None:
            if self.broken:
                raise OSError("socket is closed")
            super().put_file(*told, **more)

    fsspec.register_implementation("brittle", Brittle, clobber=True)
    monkeypatch.setattr(depot, "WAITS_S", (0.0,))
    store = Depot("brittle://here/depot")
    store._files.broken = True
    insist(lambda: store.put("0007", made, 1))
    assert store.names() == {"0007"}


def test_a_python_that_cannot_unpack_safely_is_said_first(monkeypatch: Any) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(LuthierError, match="Python 3"):
        checked_address("s3://bucket/mnist")
    with pytest.raises(LuthierError, match="Python 3"):
        Depot("file:///tmp/depot")


def test_checkpoints_are_for_ray(tmp_path: Path) -> None:
    with pytest.raises(LuthierError, match="add on='ray'"):
        tune(lambda trial: 1.0, space=SPACE, folder=tmp_path, checkpoints="file:///depot")


def test_a_depot_out_of_reach_is_tried_again(monkeypatch: Any) -> None:
    waited: list[float] = []
    monkeypatch.setattr(depot, "WAITS_S", (1, 2))
    monkeypatch.setattr(time, "sleep", waited.append)
    answers: list[Any] = [DepotError("1"), DepotError("2"), "here"]

    def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, str):
            return answer
        raise answer

    assert insist(ask) == "here"
    assert waited == [1, 2]
    answers[:] = [DepotError("1"), DepotError("2"), DepotError("3"), "here"]
    with pytest.raises(DepotError, match="3"):
        insist(ask)
