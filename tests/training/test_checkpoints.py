import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import _TYPES, load_file
from torch import nn

from luthier.errors import CheckpointError
from luthier.training import checkpoints
from luthier.training.checkpoints import CheckpointWarning, load, load_into, pack, previous_path, save, unpack
from luthier.training.packing import CODES


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


def same(a: Any, b: Any) -> Any:
    """Equal trees: types, order of keys, bits of numbers, and shape, stride and type of tensors."""
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
            and bits(a).equal(bits(b))
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return a.hex() == b.hex()
    return a == b


def names(folder: Any) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def through_json(tree: Any) -> Any:
    tensors, structure = pack(tree)
    return unpack(tensors, json.loads(json.dumps(structure, allow_nan=False)))


def trained() -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 8), nn.Linear(8, 8))
    for weight in model[0].parameters():
        if weight.ndim == 4:
            weight.data = weight.detach().contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        loss = model(torch.randn(4, 3, 8, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, optimizer


# ---------------------------------------------------------------- trees

tensors = st.builds(
    lambda dtype, shape, seed: (
        torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        .view(dtype)[..., 0]
        .clone()
        if dtype is not torch.bool
        else torch.zeros(shape, dtype=torch.bool)
    ),
    st.sampled_from(list(CODES)),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 99),
)
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), tensors, st.just("NaN"))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=4), st.integers()), inner, max_size=4),
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(trees)
def test_any_tree_survives_the_round_trip(tree: Any) -> None:
    restored = through_json(tree)
    assert same(nan_free(tree), nan_free(restored))


def nan_free(tree: Any) -> Any:
    """Python keeps no bits of a NaN float; one stands for all."""
    if isinstance(tree, float) and math.isnan(tree):
        return math.nan
    if isinstance(tree, dict):
        return {key: nan_free(value) for key, value in tree.items()}
    return type(tree)(map(nan_free, tree)) if isinstance(tree, (list, tuple)) else tree


@settings(deadline=None, max_examples=25)
@given(trees)
def test_any_tree_survives_the_file(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    path = tmp_path_factory.mktemp("checkpoint") / "last.safetensors"
    save(path, tree, {})
    assert same(nan_free(load(path)[0]), nan_free(tree))


def test_every_type_that_safetensors_knows_is_stored() -> None:
    assert {code: dtype for dtype, code in CODES.items()} == _TYPES


BASE = torch.arange(120.0)
VIEWS = {
    "transposed": BASE.view(10, 12).t(),
    "channels_last": BASE.view(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "column": BASE.view(10, 12)[:, 3],
    "every second": BASE[::2],
    "expanded": BASE[:3].expand(5, 3),
    "expanded column": BASE.view(10, 12)[:, 3:4].expand(10, 2),
    "windows": BASE.unfold(0, 4, 1),
    "scalar": BASE[7],
    "empty": BASE.view(10, 12)[:0],
    "one row, odd stride": BASE.as_strided((1, 3), (77, 1)),
    "conjugate": torch.randn(3, 2, dtype=torch.complex64).t().conj(),
    "bfloat16 with gaps": BASE.bfloat16().view(10, 12)[:, ::5],
    "float8 with gaps": BASE.to(torch.float8_e4m3fn).view(10, 12)[:, ::5],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_strides_are_restored(view: Any, tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", [view], {})
    assert same(load(tmp_path / "a.safetensors")[0], [view.resolve_conj()])


def test_a_column_does_not_store_the_matrix() -> None:
    stored, _ = pack(torch.zeros(1000, 1000)[:, 3])
    assert sum(tensor.numel() for tensor in stored.values()) == 1000


def test_the_same_view_is_stored_once_and_comes_back_as_one_tensor() -> None:
    tied = nn.Parameter(torch.randn(3, 2))
    stored, structure = pack({"a": tied, "b": [tied.detach()], "c": tied.clone(), "row": tied[0]})
    tree = unpack(stored, structure)
    assert len(stored) == 3
    assert tree["a"] is tree["b"][0]
    assert tree["c"] is not tree["a"]
    tree["a"].zero_()
    assert tree["row"].equal(tied[0]), "an overlapping view that is not the same is stored by itself"


def test_empty_tensors_are_no_aliases() -> None:
    tree = through_json([torch.empty(0), torch.empty(0), torch.empty(0, 3)])
    assert tree[0] is not tree[1]
    assert [list(item.shape) for item in tree] == [[0], [0], [0, 3]]


def test_places_with_equal_names_do_not_clash() -> None:
    tree = {"a/b": torch.ones(1), "a": {"b": torch.zeros(1)}, "__metadata__": torch.ones(2), 1: torch.ones(3), "1": 0}
    assert same(through_json(tree), tree)


@pytest.mark.parametrize(
    ("tree", "place"),
    [
        ({"model": {"x": [1, {range(2)}]}}, "range at ['model']['x'][1][0]"),
        ({"names": np.array(["a"])}, "an array of <U1 at ['names']"),
        ([np.array([None])], "an array of object at [0]"),
        ([np.ma.masked_array([1.0, 2.0], [True, False])], "MaskedArray at [0]"),  # would lose its mask
        ({"a": {(1, 2): 3}}, "the key (1, 2) of type tuple at ['a']"),
        ({True: 1}, "the key True of type bool at its root"),
        ([torch.ones(2, device="meta")], "on meta at [0]"),
        ([torch.eye(2).to_sparse()], "torch.sparse_coo, on cpu at [0]"),
        ([torch.ones(2, dtype=torch.complex128)], "torch.complex128, torch.strided, on cpu at [0]"),
        (print, "builtin_function_or_method at its root"),
    ],
)
def test_what_cannot_be_stored_is_named_with_its_place(tree: Any, place: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        pack(tree)
    assert place in str(caught.value)


NUMPY: list[Any] = [
    np.arange(6, dtype=np.int32).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(10)[::-2],
    np.arange(3, dtype=">f4"),
    np.zeros((0, 4), np.float16),
    np.array(5, np.uint32),
    np.int64(7),
    np.float64("nan"),
    np.bool_(True),
    np.random.default_rng(0).bit_generator.state,
    np.random.RandomState(0).get_state(),
]


@pytest.mark.parametrize("value", NUMPY, ids=[f"{index}" for index in range(len(NUMPY))])
def test_numpys_arrays_and_numbers_come_back(value: Any) -> None:
    read = through_json({"a": value})["a"]
    np.testing.assert_equal(read, value)
    assert type(read) is type(value)
    if isinstance(value, np.ndarray):
        assert read.dtype == value.dtype.newbyteorder("=")


@pytest.mark.parametrize("value", [b"", b"\x00weights", {1, "b", (2, 3)}, frozenset(), set()])
def test_bytes_and_sets_come_back(value: Any) -> None:
    read = through_json([value])[0]
    assert read == value
    assert type(read) is type(value)


def test_a_state_kept_is_no_longer_the_callers_array(tmp_path: Any) -> None:
    array = np.zeros(3)
    tensors, structure = pack({"a": array})
    array += 1
    assert unpack(tensors, structure)["a"].tolist() == [0, 0, 0]


def test_structure_without_its_tensors_is_refused() -> None:
    _, structure = pack({"a": torch.ones(2)})
    with pytest.raises(CheckpointError, match="do not fit"):
        unpack({}, structure)
    with pytest.raises(CheckpointError, match="do not fit"):
        unpack({"a": torch.ones(2, 3)}, structure)


# ---------------------------------------------------------------- files


def test_model_and_optimizer_come_back_bitwise(tmp_path: Path) -> None:
    model, optimizer = trained()
    tree = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    save(tmp_path / "runs" / "last.safetensors", tree, {"step": 2, "val_loss": math.inf, "who": None})
    restored, note = load(tmp_path / "runs" / "last.safetensors")
    assert note == {"step": 2, "val_loss": math.inf, "who": None}
    assert same(restored, {**tree, "model": dict(tree["model"])})
    fresh, fresh_optimizer = trained()
    nn.init.zeros_(fresh[0].weight)
    load_into(fresh, restored["model"])
    fresh_optimizer.load_state_dict(restored["optimizer"])
    assert all(map(torch.equal, fresh.parameters(), model.parameters()))
    assert fresh[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_other_programs_read_the_tensors(tmp_path: Path) -> None:
    tree: dict[str, Any] = {
        "b": torch.ones(3, dtype=torch.bool),
        "model": {"w": torch.randn(2, 3)},
        "d": torch.ones(2).double(),
    }
    save(tmp_path / "a.safetensors", tree, {})
    read = load_file(tmp_path / "a.safetensors")
    assert same(read["model/w"], tree["model"]["w"])
    assert sorted(read) == ["b", "d", "model/w"]


def test_the_replaced_checkpoint_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    for step in range(3):
        save(path, {"step": step}, {"step": step})
    assert load(path) == ({"step": 2}, {"step": 2})
    assert load(tmp_path / "last.previous.safetensors")[1] == {"step": 1}
    assert names(tmp_path) == ["last.previous.safetensors", "last.safetensors"]


def test_without_hard_links_the_replaced_checkpoint_is_kept_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = tmp_path / "last.safetensors"
    for step in range(3):
        save(path, {}, {"step": step})
    assert (load(path)[1]["step"], load(previous_path(path))[1]["step"]) == (2, 1)


DAMAGES = {
    "truncated": (lambda content: content[: len(content) // 2], "truncated, damaged or unreadable"),
    "empty": (lambda content: b"", "truncated, damaged or unreadable"),
    "a bit flipped": (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "digest"),
    "not ours": (lambda content: b"\x02" + bytes(7) + b"{}", "not a checkpoint of Luthier"),
    "a pickle": (lambda content: b"\x80\x04N." + bytes(60), "truncated, damaged or unreadable"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_previous_one(tmp_path: Path, damage: Any, reason: Any) -> None:
    path = tmp_path / "last.safetensors"
    for step in range(2):
        save(path, {"w": torch.full((50,), step)}, {"step": step})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(CheckpointWarning, match=rf"(?s){reason}.*previous one, .*last\.previous\.safetensors, was used"):
        tree, note = load(path)
    assert note == {"step": 0}
    assert tree["w"].equal(torch.zeros(50, dtype=torch.int64))
    other = previous_path(path)
    other.write_bytes(damage(other.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"(?s){reason}.*and the previous one: .*{reason}"):
        load(path)
    other.unlink()
    with pytest.raises(CheckpointError, match=rf"(?s){reason}.*no previous checkpoint"):
        load(path)


def test_no_flipped_byte_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, {"w": torch.arange(6.0), "n": [1, "x", 2.5]}, {"step": 1})
    content = path.read_bytes()
    for position in range(len(content)):
        for bit in (1, 64):
            damaged = bytearray(content)
            damaged[position] ^= bit
            path.write_bytes(damaged)
            try:
                tree, note = load(path)
            except CheckpointError:
                continue
            assert same(tree, {"w": torch.arange(6.0), "n": [1, "x", 2.5]}), f"byte {position}"
            assert note == {"step": 1}, f"byte {position}"


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*last\.safetensors; there is no previous"):
        load(tmp_path / "last.safetensors")
    with pytest.raises(CheckpointError, match="unreadable"):
        load(tmp_path)


def test_a_checkpoint_of_a_later_format_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    monkeypatch.setattr(checkpoints, "_FORMAT", 2)
    save(path, {}, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 2, this Luthier reads 1"):
        load(path)


def test_an_unwritable_folder_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        save(tmp_path / "file" / "last.safetensors", {}, {})


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from typing import Any
from luthier.training.checkpoints import save
path = Path(sys.argv[1])
for step in range(2):
    save(path, {"w": torch.full((1000,), step)}, {"step": step})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    save(path, {"w": torch.zeros(100_000)}, {"step": 2})
except OSError as error:
    sys.exit(f"{type(error).__name__} {error.errno}")
"""


def test_a_full_disk_leaves_both_old_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    process = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, timeout=120)
    assert process.stderr.strip() == f"OSError {errno.EFBIG}"
    assert (load(path)[1]["step"], load(previous_path(path))[1]["step"]) == (1, 0)
    assert len(names(tmp_path)) == 2


SAVE_FOR_EVER = """
import sys, torch
from pathlib import Path
from typing import Any
from luthier.training.checkpoints import save
step = 0
while True:
    for name in sys.argv[1:]:
        save(Path(name), {"w": torch.full((30_000,), step)}, {"step": step})
    print(step, flush=True)
    step += 1
"""


def test_killed_at_any_moment_a_checkpoint_is_there(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    paths = [tmp_path / name / "last.safetensors" for name in "abc"]
    for kill in range(4):
        process = subprocess.Popen([sys.executable, "-c", SAVE_FOR_EVER, *map(str, paths)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(0.003 + 0.0137 * kill)
        process.send_signal(signal.SIGKILL)
        last = (first + process.stdout.read()).split()[-1]
        process.wait()
        process.stdout.close()
        for path in paths:
            tree, note = load(path)
            assert note["step"] >= int(last)
            assert tree["w"].equal(torch.full((30_000,), note["step"]))
    assert [str(warning.message) for warning in recwarn] == []


def test_old_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    old, new = tmp_path / ".last.safetensors.abc", tmp_path / ".last.safetensors.def"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    save(tmp_path / "last.safetensors", {}, {})
    assert names(tmp_path) == [new.name, "last.safetensors"]


# ---------------------------------------------------------------- models


def test_a_state_of_another_model_is_named_in_one_sentence() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    other = nn.Sequential(nn.Linear(3, 5), nn.Identity(), nn.BatchNorm1d(5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_into(model, other.state_dict())
    assert str(caught.value) == (
        "the checkpoint does not fit the model Sequential: missing '1.weight', '1.bias'; "
        "unexpected '2.weight', '2.bias', '2.running_mean' and 2 more; "
        "of another shape '0.weight' ([5, 3], the model has [4, 3]), '0.bias' ([5], the model has [4]): "
        "build the model with the arguments (and surgery) of the recipe that the checkpoint was made with"
    )
    assert same(dict(model.state_dict()), before)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    def tied() -> Any:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    source, target = tied(), tied()
    save(tmp_path / "a.safetensors", source.state_dict(), {})
    state, _ = load(tmp_path / "a.safetensors")
    assert state["0.weight"] is state["1.weight"]
    load_into(target, state)
    assert target[1].weight is target[0].weight
    assert target[0].weight.equal(source[0].weight)


def test_a_single_number_with_an_odd_stride_survives(tmp_path: Path) -> None:
    value = torch.arange(4, dtype=torch.float64)[::2][:1]
    assert value.stride() == (2,)
    save(tmp_path / "c.safetensors", {"value": value, "copy": value.clone()}, {})
    tree, _ = load(tmp_path / "c.safetensors")
    assert torch.equal(tree["value"], value)
