"""Sources: mirrors that fail, package managers played by small scripts, archives that would lead elsewhere."""

import io
import sys
import tarfile
import urllib.error
import urllib.request
from email.message import Message

import pytest

from luthier.data import sources
from luthier.data.sources import (
    ByHand,
    DebianPackage,
    Mirror,
    NpmPackage,
    PythonSourceArchive,
    SourceError,
    find,
    run,
    unpack,
)


def answering(monkeypatch, body, announced):
    def urlopen(request, timeout):
        assert timeout <= 10
        response = io.BytesIO(body)
        response.headers = Message()
        if announced is not None:
            response.headers["Content-Length"] = str(announced)
        return response

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


@pytest.mark.parametrize("announced", [5, None])
def test_a_mirror_serves_every_file(tmp_path, monkeypatch, announced):
    answering(monkeypatch, b"12345", announced)
    Mirror("https://example.org/data", ("a", "b")).fetch(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"12345"] * 2


def test_a_truncated_body_is_refused(tmp_path, monkeypatch):
    answering(monkeypatch, b"123", 5)
    with pytest.raises(SourceError, match="a: 3 bytes came of 5"):
        Mirror("https://example.org/data", ("a",)).fetch(tmp_path)


@pytest.mark.parametrize(
    "error",
    [urllib.error.URLError("name not known"), TimeoutError("timed out"), ConnectionResetError("reset")],
)
def test_an_unreachable_mirror_says_why(tmp_path, monkeypatch, error):
    def urlopen(request, timeout):
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(SourceError, match=r"a: (name not known|timed out|reset)"):
        Mirror("https://example.org", ("a", "b")).fetch(tmp_path)


def test_files_placed_by_hand_are_copied(tmp_path):
    place, folder = tmp_path / "place", tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(SourceError, match="no such folder"):
        ByHand(place).fetch(folder)
    (place / "deeper").mkdir(parents=True)
    (place / "file").write_bytes(b"x")
    ByHand(place).fetch(folder)
    assert [path.name for path in folder.iterdir()] == ["file"]


def archive_of(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_no_path_in_an_archive_leads_elsewhere(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    archive = tmp_path / "a.tar.gz"
    archive_of(archive, {"../../escaped": b"1", "/absolute": b"2", "package/data/plain": b"3"})
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
    with tarfile.open(archive, "w:gz") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"1"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    unpack(archive, inner)
    assert sorted(path.name for path in inner.iterdir()) == ["absolute", "escaped", "plain"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "inner"]


def test_find_wants_exactly_one(tmp_path):
    with pytest.raises(SourceError, match="x is missing"):
        find(tmp_path, "x")
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    with pytest.raises(SourceError, match="one file x, found 2"):
        find(tmp_path, "x")
    assert find(tmp_path / "a", "x") == tmp_path / "a" / "x"


def test_a_missing_tool_is_named(tmp_path):
    with pytest.raises(SourceError, match="no-such-tool is not installed"):
        run(["no-such-tool", "download"], tmp_path)


def test_a_failing_tool_is_quoted_where_it_speaks_of_an_error(tmp_path):
    program = "import sys; print('note\\nE: no such package\\nbye', file=sys.stderr); sys.exit(3)"
    with pytest.raises(SourceError, match=r"pip ended with 3: E: no such package$"):
        run([sys.executable, "-c", program], tmp_path)


def test_a_tool_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PACKAGE_TIMEOUT_S", 0.2)
    with pytest.raises(SourceError, match="did not end within"):
        run([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A folder of pretended tools, the only ones on the path besides the shell's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def add(name, script):
        (folder / name).write_text(f'#!/bin/sh\necho "$0 $*" >> {tmp_path}/called\n{script}\n')
        (folder / name).chmod(0o755)

    return add


def called(tmp_path):
    return [line.rpartition("/")[2] for line in (tmp_path / "called").read_text().splitlines()]


def test_npm_pack_is_fetched_and_laid_flat(tmp_path, tools):
    folder = tmp_path / "folder"
    folder.mkdir()
    archive_of(tmp_path / "made", {"package/data/file": b"1"})
    tools("npm", f"cp {tmp_path}/made toy-1.0.0.tgz")
    NpmPackage("toy@1.0.0").fetch(folder)
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert called(tmp_path) == ["npm pack --ignore-scripts toy@1.0.0"]


UNPACK = 'mkdir -p "$3/usr/share" && echo 1 > "$3/usr/share/file"'


def test_a_debian_package_is_downloaded_and_unpacked(tmp_path, tools):
    folder = tmp_path / "folder"
    folder.mkdir()
    tools("apt-get", "touch toy_1_all.deb")
    tools("dpkg", UNPACK)
    DebianPackage("toy").fetch(folder)
    assert find(folder, "file").read_text() == "1\n"


def test_package_lists_are_updated_once_when_they_do_not_know_the_package(tmp_path, tools):
    folder = tmp_path / "folder"
    folder.mkdir()
    tools("apt-get", f'[ "$1" = update ] && touch {tmp_path}/fresh; [ -e {tmp_path}/fresh ] && touch toy_1_all.deb')
    tools("dpkg", UNPACK)
    DebianPackage("toy").fetch(folder)
    assert called(tmp_path)[:3] == ["apt-get download toy", "apt-get update", "apt-get download toy"]


def test_without_debians_tools_nothing_is_updated(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match=r"^apt-get is not installed$"):
        DebianPackage("toy").fetch(tmp_path)


def test_without_root_both_reasons_are_told(tmp_path, tools):
    tools("apt-get", 'if [ "$1" = update ]; then echo "E: not root" >&2; else echo "E: unknown" >&2; fi; exit 100')
    with pytest.raises(SourceError, match=r"E: unknown; then .*E: not root .*as root"):
        DebianPackage("toy").fetch(tmp_path)


def test_pip_is_asked_for_the_source_archive_of_a_known_hash(tmp_path, monkeypatch):
    asked = {}

    def pretend(command, folder):
        asked["command"], asked["wanted"] = command, (folder / "requirements.txt").read_text()
        archive_of(folder / "toy-1.0.tar.gz", {"toy-1.0/inner/file": b"1"})

    monkeypatch.setattr(sources, "run", pretend)
    PythonSourceArchive("toy==1.0", sha256="ab" * 32).fetch(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"1"
    assert asked["wanted"].split() == ["toy==1.0", f"--hash=sha256:{'ab' * 32}"]
    assert asked["command"][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--require-hashes" in asked["command"]
