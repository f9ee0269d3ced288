"""Files that are written whole or not at all."""

from pathlib import Path

import pytest

from luthier.files import write_atomic


def test_a_file_that_fails_halfway_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_made_is_named_by_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / ("long" * 80)
    with pytest.raises(OSError, match="too long") as caught:
        write_atomic(path, "text")
    assert caught.value.filename == str(path)
