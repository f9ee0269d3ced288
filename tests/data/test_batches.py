"""Batches: every example once an epoch, an order of (seed, epoch) alone, any point resumable, any kind of data."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Subset, TensorDataset

from luthier.data.adapters import DatasetBatches, LoaderBatches, StreamBatches
from luthier.data.batches import Batches, BatchSource, as_batches, check_data
from luthier.errors import DataError

Pair = namedtuple("Pair", "x y")


class Squares(Dataset):
    """A map-style data set that remembers what was read."""

    def __init__(self, n=10):
        self.n, self.read = n, []

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        self.read.append(index)
        return torch.tensor(index), index * index


class Counter(IterableDataset):
    """A stream of whole numbers that ends after n."""

    def __init__(self, n):
        self.n, self.begun = n, 0

    def __iter__(self):
        self.begun += 1
        return iter(range(self.n))


def same(left, right):
    """Whether two lists of batches of (x, ...) tensors are equal."""
    left, right = ([[leaf.tolist() for leaf in batch] for batch in batches] for batches in (left, right))
    return left == right


sizes = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@settings(deadline=None)
@given(sizes, st.booleans(), st.integers(-5, 5), st.integers(0, 3), st.data())
def test_each_example_once_an_epoch_and_any_tail_resumes(size, shuffle, seed, index, data):
    n, batch_size = size
    batches = Batches((torch.arange(n), {"y": -torch.arange(n)}), batch_size, shuffle=shuffle, seed=seed)
    whole = list(batches.epoch(index))
    assert len(whole) == batches.steps()
    assert sorted(torch.cat([x for x, _ in whole]).tolist()) == list(range(n))
    assert all(torch.equal(x, -y["y"]) for x, y in whole)
    assert [len(x) for x, _ in whole[:-1]] == [batch_size] * (len(whole) - 1)
    start = data.draw(st.integers(0, len(whole)))
    tail = list(batches.epoch(index, start))
    assert same([(x,) for x, _ in tail], [(x,) for x, _ in whole[start:]])


@settings(deadline=None)
@given(sizes)
def test_drop_last_gives_whole_batches_only(size):
    n, batch_size = size
    batches = Batches(torch.arange(n), batch_size, shuffle=True, drop_last=True)
    assert (
        [len(batch) for batch in batches.epoch(0)] == [batch_size] * (n // batch_size) == [batch_size] * batches.steps()
    )


def orders(source, epochs=3):
    return [torch.cat([batch[0] for batch in source.epoch(index)]).tolist() for index in range(epochs)]


def test_epochs_and_seeds_differ_and_neither_touches_the_global_generator():
    data = (torch.arange(100), torch.arange(100))
    state = torch.get_rng_state()
    first, second = (Batches(data, 7, shuffle=True, seed=seed) for seed in (0, 1))
    found = orders(first) + orders(second)
    assert len({tuple(order) for order in found}) == 6
    assert found[:3] == orders(Batches(data, 7, shuffle=True, seed=0))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_size_for_one_epoch_keeps_its_order():
    batches = Batches((torch.arange(10),), 2, shuffle=True)
    small = torch.cat([x for (x,) in batches.epoch(1)])
    large = list(batches.epoch(1, start=1, batch_size=4))
    assert batches.steps(4) == 3
    assert torch.equal(torch.cat([x for (x,) in large]), small[4:])


def test_shapes_of_trees_are_kept():
    tree = Pair({"a": torch.arange(4), "b": [np.arange(8.0).reshape(4, 2)]}, (torch.arange(4),))
    for shuffle in (False, True):
        batch = next(Batches(tree, 2, shuffle=shuffle).epoch(0))
        assert type(batch) is Pair
        assert type(batch.y) is tuple
        assert batch.x["b"][0].shape == (2, 2)
        assert batch.x["b"][0].dtype == torch.float64
        assert torch.equal(batch.x["b"][0][:, 0], 2.0 * batch.x["a"])
    assert torch.equal(next(Batches(torch.arange(4), 3).epoch(0)), torch.arange(3))


def test_memory_order_is_kept_and_scattered_examples_are_gathered():
    images = torch.rand(6, 3, 4, 5)
    forms = {
        "channels last": images.contiguous(memory_format=torch.channels_last),
        "transposed": images.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        "expanded": images[:, :1].expand(6, 3, 4, 5),
    }
    for name, form in forms.items():
        number, x = next(Batches((torch.arange(6), form), 4, shuffle=True).epoch(0))
        assert torch.equal(x, form[number]), name
        assert x.is_contiguous(memory_format=torch.channels_last) == (name == "channels last")


def test_arrays_share_memory_unless_they_are_read_only():
    array = np.zeros(4)
    assert Batches(array, 2).data.data_ptr() == array.ctypes.data
    array.flags.writeable = False
    assert Batches(array, 2).data.data_ptr() != array.ctypes.data
    assert torch.equal(Batches(np.arange(4)[::-1], 4).data, torch.tensor([3, 2, 1, 0]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.zeros(3), torch.zeros(2)), r"data\[0\]: 3, data\[1\]: 2"),
        ((torch.zeros(0, 3), torch.zeros(0)), "data is empty"),
        ((), "holds no arrays"),
        ([1, 2, 3], r"data\[0\] must be a tensor or NumPy array.* got a single number 1"),
        ({"x": torch.tensor(1.0)}, r"data\['x'\] must be"),
        ((np.array(["a", "b"]), torch.zeros(2)), r"data\[0\] must be an array of numbers"),
        ((torch.zeros(2), None), "got NoneType"),
    ],
)
def test_data_that_make_no_batches_are_refused(data, message):
    with pytest.raises(DataError, match=message):
        Batches(data, 1)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "4"])
def test_a_batch_size_is_a_whole_number_from_one(size):
    with pytest.raises(DataError, match="batch size must be a whole number"):
        Batches(torch.zeros(8), size)


def test_a_batch_larger_than_the_data_is_refused_at_once():
    with pytest.raises(DataError, match="batch size 9 is larger than val with its 8 examples: take at most 8"):
        Batches(torch.zeros(8), 9, name="val")
    batches = Batches(torch.zeros(8), 8)
    with pytest.raises(DataError, match="larger"):
        batches.epoch(0, batch_size=9)
    with pytest.raises(DataError, match="cannot start at batch 2"):
        batches.epoch(0, start=2)


def sources():
    x, y = torch.arange(10), torch.arange(10) ** 2
    return {
        "tensors": (x, y),
        "arrays": (x.numpy(), y.numpy()),
        "TensorDataset": TensorDataset(x, y),
        "Subset": Subset(TensorDataset(torch.arange(-5, 10), torch.arange(-5, 10) ** 2), range(5, 15)),
        "Dataset": Squares(),
        "DataLoader": DataLoader(Squares(), batch_size=3, shuffle=True),
        "Batches": Batches((x, y), 3, shuffle=True),
        "IterableDataset": Counter(10),
        "DataLoader over IterableDataset": DataLoader(Counter(10), batch_size=3),
    }


@pytest.mark.parametrize("kind", sources())
def test_every_kind_of_data_keeps_the_contract(kind):
    stream = "Iterable" in kind
    steps = 4 if stream else None

    def made():
        return as_batches(sources()[kind], 3, shuffle=True, seed=1, steps_per_epoch=steps)

    source = made()
    assert isinstance(source, BatchSource)
    assert source.steps() == 4
    assert source.n == (None if stream else 10)
    state = torch.get_rng_state()
    epochs = [[batch if stream else batch[0] for batch in source.epoch(index)] for index in range(3)]
    assert all(len(epoch) == 4 for epoch in epochs)
    assert all(sorted(torch.cat(epoch).tolist()) == list(range(10)) for epoch in epochs)
    if not stream:
        assert torch.cat(epochs[0]).tolist() != torch.cat(epochs[1]).tolist()
    resumed = [batch if stream else batch[0] for batch in made().epoch(2, start=3)]
    assert same([resumed], [epochs[2][3:]])
    again = [batch if stream else batch[0] for batch in source.epoch(0)]
    assert same([again], [epochs[0]])
    assert list(made().epoch(0, start=4)) == []
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["TensorDataset", "Subset", "arrays", "Batches"])
def test_what_is_in_memory_is_read_from_memory(kind):
    assert isinstance(as_batches(sources()[kind], 3, shuffle=True, seed=0), Batches)


def test_skipped_samples_are_never_loaded():
    squares = Squares()
    source = DatasetBatches(squares, 3, shuffle=True, seed=0)
    list(source.epoch(0, start=3))
    assert len(squares.read) == 1


def test_in_order_and_whole_batches_from_a_dataset():
    source = as_batches(Squares(), 4, shuffle=False, seed=0, drop_last=True)
    assert [y.tolist() for _, y in source.epoch(5)] == [[0, 1, 4, 9], [16, 25, 36, 49]]
    assert [len(y) for _, y in source.epoch(0, batch_size=5)] == [5, 5]


def test_a_loader_keeps_its_batch_size_and_refuses_another():
    source = as_batches(DataLoader(Squares(), batch_size=5), 64, shuffle=True, seed=0)
    assert isinstance(source, LoaderBatches)
    assert [x.tolist() for x, _ in source.epoch(0, 0, 64)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    with pytest.raises(DataError, match="own batch size 5, and cannot be read in batches of 128: give its Dataset"):
        source.epoch(0, 0, 128)


def test_a_loader_over_a_stream_keeps_its_batch_size_too():
    source = as_batches(DataLoader(Counter(10), batch_size=5), 64, shuffle=True, seed=0, steps_per_epoch=2)
    assert [batch.tolist() for batch in source.epoch(0, 0, 64)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    with pytest.raises(DataError, match="own batch size 5"):
        source.epoch(0, 0, 128)


def test_a_loaders_own_generator_is_seeded_by_epoch():
    generator = torch.Generator()
    source = as_batches(DataLoader(Squares(), 5, shuffle=True, generator=generator), 5, shuffle=True, seed=0)
    first = orders(source)
    generator.manual_seed(123)
    assert orders(source) == first


def test_a_sampler_that_is_told_the_epoch_is_told():
    sampler = DistributedSampler(Squares(), num_replicas=1, rank=0)
    source = as_batches(DataLoader(Squares(), 5, sampler=sampler), 5, shuffle=True, seed=0)
    list(source.epoch(7))
    assert sampler.epoch == 7


def test_a_stream_goes_on_over_epochs_without_being_begun_anew():
    counter = Counter(100)
    source = as_batches(counter, 5, shuffle=True, seed=0, steps_per_epoch=4)
    assert isinstance(source, StreamBatches)
    assert [batch[0].item() for index in range(3) for batch in source.epoch(index)] == list(range(0, 60, 5))
    assert counter.begun == 1


def test_a_stream_that_ends_begins_anew():
    source = as_batches(Counter(5), 2, shuffle=False, seed=0, steps_per_epoch=4)
    assert [batch.tolist() for batch in source.epoch(0)] == [[0, 1], [2, 3], [4], [0, 1]]
    whole = as_batches(Counter(5), 2, shuffle=False, seed=0, steps_per_epoch=4, drop_last=True)
    assert [batch.tolist() for batch in whole.epoch(0)] == [[0, 1], [2, 3], [0, 1], [2, 3]]


def test_a_stream_left_in_the_middle_is_read_up_to_where_it_is_wanted():
    counter = Counter(100)
    source = as_batches(counter, 5, shuffle=False, seed=0, steps_per_epoch=4)
    next(source.epoch(0))
    assert next(source.epoch(0, start=1))[0].item() == 5
    assert counter.begun == 1
    assert next(source.epoch(1))[0].item() == 20
    assert counter.begun == 2


def test_streams_without_what_they_need_are_refused():
    with pytest.raises(DataError, match="train is a stream without a length: give steps_per_epoch"):
        as_batches(Counter(5), 2, shuffle=True, seed=0)
    with pytest.raises(DataError, match="at least 1, got 0"):
        as_batches(Counter(5), 2, shuffle=True, seed=0, steps_per_epoch=0)
    with pytest.raises(DataError, match="val is empty: its stream"):
        next(as_batches(Counter(0), 2, shuffle=True, seed=0, steps_per_epoch=1, name="val").epoch(0))
    with pytest.raises(DataError, match="whole number from 1"):
        as_batches(Counter(5), 0, shuffle=True, seed=0, steps_per_epoch=1)


@pytest.mark.parametrize("kind", ["tensors", "Dataset", "DataLoader"])
def test_steps_per_epoch_is_for_streams_only(kind):
    with pytest.raises(DataError, match="leave it out"):
        as_batches(sources()[kind], 3, shuffle=True, seed=0, steps_per_epoch=4)


def test_other_kinds_and_empty_sets_are_refused():
    for data in ("path/to/images", 7, None, (number for number in range(3))):
        with pytest.raises(DataError, match=r"val must be tensors or NumPy arrays .* a DataLoader; got"):
            as_batches(data, 2, shuffle=True, seed=0, name="val")
    for data in (Squares(0), DataLoader(Squares(0), 2), TensorDataset(torch.zeros(0))):
        with pytest.raises(DataError, match="train is empty"):
            as_batches(data, 2, shuffle=True, seed=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_what_is_not_finite_is_named_with_its_index(value, dtype, monkeypatch):
    monkeypatch.setattr("luthier.data.checks.CHUNK_ELEMENTS", 7)
    x = torch.ones(20, 2, 3, dtype=dtype)
    x[13, 1, 2] = x[17, 0, 0] = value
    with pytest.raises(DataError, match=rf"train\[0\]\[13\] holds {value} \(in 2 of 20 examples\)"):
        check_data((x, torch.zeros(20)))
    with pytest.raises(DataError, match=r"val\['y'\]\[4\] holds"):
        check_data({"x": np.zeros(5), "y": np.array([0, 0, 0, 0, value])}, "val")


def test_finite_data_pass_even_where_their_sum_overflows():
    assert check_data((torch.full((8,), 3e38), torch.full((8, 2), 6e4, dtype=torch.float16)))
    assert check_data(TensorDataset(torch.zeros(3)))


def test_data_that_are_not_in_memory_are_said_not_to_be_looked_at():
    assert check_data(Squares()) is False
    assert check_data(DataLoader(Squares())) is False


def test_check_names_lengths_that_differ():
    with pytest.raises(DataError, match=r"train\[0\]: 3, train\[1\]: 2"):
        check_data((torch.zeros(3), torch.zeros(2)))
