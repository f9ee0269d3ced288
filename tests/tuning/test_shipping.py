import pickle
import threading
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from luthier.errors import LuthierError
from luthier.task import Task
from luthier.tuning.messages import Inbox, encode
from luthier.tuning.shipping import ship, unship, without_test
from luthier.tuning.spawning import by_value


def test_large_tensors_travel_in_files_and_stay_equal(tmp_path: Path) -> None:
    x, labels = torch.randn(500, 64), torch.randint(0, 9, (40_000,))
    array = np.arange(30_000, dtype=np.float64).reshape(100, 300)
    ship(tmp_path / "task", task={"x": x, "again": x, "part": x[::2], "labels": labels, "array": array, "small": x[:2]})
    got = unship(tmp_path / "task")["task"]
    assert torch.equal(got["x"], x)
    assert torch.equal(got["part"], x[::2])
    assert torch.equal(got["labels"], labels)
    assert torch.equal(got["small"], x[:2])
    assert np.array_equal(got["array"], array)
    assert len(list((tmp_path / "task").glob("*.bin"))) == 5  # `again` shares the file of `x`
    assert (tmp_path / "task" / "things.pkl").stat().st_size < 10_000


def test_the_fields_of_large_records_keep_their_names(tmp_path: Path) -> None:
    table = np.zeros(9_000, dtype=[("x", "f4"), ("y", "i8")])
    table["y"] = np.arange(9_000)
    ship(tmp_path / "task", table=table)
    got = unship(tmp_path / "task")["table"]
    assert got.dtype == table.dtype
    assert np.array_equal(got["y"], table["y"])


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors_travel(tmp_path: Path) -> None:
    for sparse in (torch.eye(300).to_sparse(), torch.eye(300).to_sparse_csr()):
        ship(tmp_path / "task", sparse=sparse)
        assert torch.equal(unship(tmp_path / "task")["sparse"].to_dense(), torch.eye(300))


def test_what_has_no_module_goes_to_spawned_processes_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ForkingPickler, "reducer_override", None, raising=False)
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec("class Data:\n    def double(self, x):\n        return 2 * x\n\ndef other(x):\n    return -x", scope)
    by_value()
    data, function, known = pickle.loads(ForkingPickler.dumps((scope["Data"](), scope["other"], Task)))
    assert (data.double(3), function(3), known) == (6, -3, Task)
    assert type(data).__name__ == "Data"


def test_what_a_worker_writes_stays_its_own(tmp_path: Path) -> None:
    ship(tmp_path / "task", x=torch.zeros(100_000))
    unship(tmp_path / "task")["x"].add_(1)
    assert unship(tmp_path / "task")["x"].sum() == 0


def test_a_task_of_local_functions_travels_without_its_test_data(tmp_path: Path) -> None:
    width = 7

    def build() -> nn.Module:
        return nn.Linear(4, width)

    data = (torch.randn(60, 4), torch.randint(0, 7, (60,)))
    task = Task(build, data, val=0.2, test=data, name="local")
    ship(tmp_path / "task", task=without_test(task))
    got = unship(tmp_path / "task")["task"]
    assert got.test is None
    assert task.test is not None
    assert got.describe()["train"] == task.describe()["train"]
    assert got.build({}).out_features == 7


def test_what_cannot_travel_is_said(tmp_path: Path) -> None:
    with pytest.raises(LuthierError, match="cannot be sent to the worker processes"):
        ship(tmp_path / "task", task=threading.Lock())


@given(
    st.lists(st.dictionaries(st.text(max_size=3), st.floats(allow_nan=False) | st.integers(0, 9), max_size=3)),
    st.integers(1, 7),
)
def test_messages_arrive_whole_however_the_pipe_cuts_them(messages: Any, size: int) -> None:
    inbox, got = Inbox(), []
    content = b"".join(encode(message) for message in messages)
    for start in range(0, len(content), size):
        got += inbox.feed(content[start : start + size])
    assert got == messages
