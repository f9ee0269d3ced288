"""The data sets: what each entry must have, and decoding from small files made by hand."""

import gzip
import io
import json
import struct
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from luthier.data import cifar, mnist, reviews
from luthier.data.dataset import checksum, held_out
from luthier.data.digits import bundled
from luthier.data.fetching import Fetched, Generated
from luthier.data.sets import DATA_SETS, load
from luthier.data.sources import SourceError
from luthier.errors import DataError, LuthierError


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_entry_bears_its_name_and_can_be_verified(name):
    source = DATA_SETS[name]
    assert source.name == name
    assert source.classes is None or len(set(source.classes)) == len(source.classes) >= 2
    if isinstance(source, Fetched):
        assert len(bytes.fromhex(source.checksum)) == 32
        assert len(source.sources) >= 2
        assert source.files


@pytest.mark.parametrize("name", [name for name, source in DATA_SETS.items() if isinstance(source, Generated)])
def test_generated_sets_are_whole_and_always_the_same(name, tmp_path):
    data, again = load(name, tmp_path), load(name, tmp_path)
    for (inputs, targets), (inputs_again, targets_again) in ((data.train, again.train), (data.test, again.test)):
        assert len(inputs) == len(targets) > 0
        assert torch.equal(inputs, inputs_again)
        assert torch.equal(targets, targets_again)
    if data.classes is not None:
        assert data.train[1].unique().tolist() == list(range(len(data.classes)))
    assert list(tmp_path.iterdir()) == []


def test_digits_are_sixteenths_of_all_1797_images():
    data = load("digits")
    inputs = torch.cat([data.train[0], data.test[0]])
    assert inputs.shape == (1797, 1, 8, 8)
    assert inputs.dtype == torch.float32
    assert torch.equal((inputs * 16).round(), inputs * 16)
    assert (inputs.min(), inputs.max()) == (0, 1)
    shares = data.test[1].bincount() / (data.test[1].bincount() + data.train[1].bincount())
    assert ((shares - 0.2).abs() < 0.01).all()


def test_linear_is_linear_up_to_its_noise():
    data = load("linear")
    weights = torch.linalg.lstsq(*data.train).solution
    error = data.test[0] @ weights - data.test[1]
    assert data.train[1].shape == (1000, 1)
    assert error.std().item() == pytest.approx(0.1, rel=0.1)


def test_bundled_data_of_another_version_are_refused(tmp_path):
    altered = Generated(name="altered", make=lambda: {"x": np.zeros(1)}, checksum="00")
    with pytest.raises(DataError, match="expected 00"):
        altered.arrays(tmp_path)


def test_an_unknown_name_lists_close_ones():
    with pytest.raises(LuthierError, match="unknown data set 'mnits': did you mean 'mnist'"):
        load("mnits")


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


IDX = [np.arange(12).reshape(3, 2, 2), np.array([7, 0, 9]), np.arange(4).reshape(1, 2, 2), np.array([3])]


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_are_read(tmp_path, zipped):
    deeper = tmp_path / "usr" / "share"
    deeper.mkdir(parents=True)
    for file, array in zip(mnist.FILES, IDX, strict=True):
        content = idx(array)
        (deeper / (f"{file}.gz" if zipped else file)).write_bytes(gzip.compress(content) if zipped else content)
    arrays = mnist.decode(tmp_path)
    assert arrays["train_inputs"].shape == (3, 1, 2, 2)
    assert arrays["train_inputs"].dtype == np.uint8
    np.testing.assert_array_equal(arrays["train_inputs"][:, 0], IDX[0])
    np.testing.assert_array_equal(arrays["train_targets"], IDX[1])
    assert arrays["test_targets"].dtype == np.int64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(IDX[0])[:-1], "11 bytes after its header, which announces 12"),
        (idx(IDX[0]) + b"x", "13 bytes after its header"),
        (b"<html>not found</html>", "not an IDX file"),
    ],
)
def test_broken_idx_files_are_refused(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        mnist.read_idx(path)


def test_a_missing_idx_file_is_named(tmp_path):
    with pytest.raises(SourceError, match="train-images-idx3-ubyte is missing"):
        mnist.decode(tmp_path)


IMAGES = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), np.uint8)
LABELS = np.arange(12) % 10


def write_binary(folder):
    folder.mkdir()
    rows = np.concatenate([LABELS[:, None].astype(np.uint8), IMAGES.reshape(12, -1)], 1)
    with tarfile.open(folder / cifar.ARCHIVE, "w:gz") as tar:
        for number, file in enumerate([*cifar.BATCHES, "test_batch"]):
            content = rows[2 * number : 2 * number + 2].tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{file}.bin")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_png(folder):
    folder.mkdir()
    rows = IMAGES.transpose(0, 2, 3, 1).reshape(12, 1024, 3)
    for number, file in enumerate([*cifar.BATCHES, "test_batch"]):
        Image.fromarray(rows[2 * number : 2 * number + 2]).save(folder / f"{file}.png")
    (folder / "train_lables.json").write_text(json.dumps(LABELS[:10].tolist()))
    (folder / "test_lables.json").write_text(json.dumps(LABELS[10:].tolist()))


def test_cifar_decodes_to_the_same_from_either_form(tmp_path):
    write_binary(tmp_path / "binary")
    write_png(tmp_path / "png")
    binary, png = cifar.decode(tmp_path / "binary"), cifar.decode(tmp_path / "png")
    assert checksum(binary) == checksum(png)
    np.testing.assert_array_equal(binary["train_inputs"], IMAGES[:10])
    np.testing.assert_array_equal(binary["test_targets"], LABELS[10:])


def test_a_truncated_cifar_batch_is_refused(tmp_path):
    for file in (*cifar.BATCHES, "test_batch"):
        (tmp_path / f"{file}.bin").write_bytes(bytes(3073))
    (tmp_path / "data_batch_3.bin").write_bytes(bytes(3000))
    with pytest.raises(SourceError, match="not a whole number of images"):
        cifar.decode(tmp_path)


RATED = [
    f"{number}\t{3 if number % 2 else -3}\tword{number} is {'great' if number % 2 else 'bad'}" for number in range(40)
]


def decoded_reviews(folder, lines):
    (folder / reviews.RATINGS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return reviews.decode(folder)


def test_reviews_become_padded_tokens_with_a_vocabulary_of_the_training_part(tmp_path):
    arrays = decoded_reviews(tmp_path, [*RATED, "40\t2.5\tIt's great!"])
    tokens = arrays["vocabulary"].tobytes().decode().split("\n")
    assert tokens[:3] == ["<pad>", "<unknown>", "is"]
    assert set(tokens[3:]) == {"bad", "great"}
    assert len(arrays["train_inputs"]) + len(arrays["test_inputs"]) == 41
    for part in ("train", "test"):
        for row, label in zip(arrays[f"{part}_inputs"], arrays[f"{part}_targets"], strict=True):
            words = [tokens[number] for number in row if number]
            assert ("great" in words) == (label == 1)
    assert arrays["train_inputs"].dtype == arrays["train_targets"].dtype == np.int64


def test_neutral_and_repeated_sentences_are_left_out(tmp_path):
    arrays = decoded_reviews(
        tmp_path, [*RATED, "40\t0.0\tSo so", "41\t-3\tWORD1 is great?!", "42\t-3\tWord1 is GREAT."]
    )
    assert len(arrays["train_inputs"]) + len(arrays["test_inputs"]) == 41


def test_a_malformed_line_is_named(tmp_path):
    with pytest.raises(SourceError, match="line 41: expected 3 cells"):
        decoded_reviews(tmp_path, [*RATED, "41\tno tab"])


def test_the_test_part_is_never_read_for_the_vocabulary(tmp_path):
    arrays = decoded_reviews(tmp_path, [*RATED, *(f"{n}\t3\tonly{n} only{n} is great" for n in range(100, 140))])
    tokens = arrays["vocabulary"].tobytes().decode().split("\n")
    numbers = {token: number for number, token in enumerate(tokens)}
    seen = set(arrays["train_inputs"].flatten().tolist())
    assert set(numbers.values()) - seen <= {0, 1}


def test_held_out_depends_on_seed_and_takes_its_share_of_each_class():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    keys = [str(number).encode() for number in range(100)]
    chosen, other = held_out(keys, labels, 0.2, seed=0), held_out(keys, labels, 0.2, seed=1)
    assert [int(chosen[labels == label].sum()) for label in range(3)] == [10, 6, 4]
    assert (chosen != other).any()
    assert (chosen == held_out(keys, labels, 0.2, seed=0)).all()


def test_digits_are_read_as_scikit_learn_reads_them():
    images, labels = load_digits(return_X_y=True)
    pixels, classes = bundled()
    assert np.array_equal(pixels, images)
    assert np.array_equal(classes, labels)
