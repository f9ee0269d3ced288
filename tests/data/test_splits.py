"""Splits: disjoint, covering, stratified within one, the same for a seed; and test data that open only once."""

import copy
import pickle
import warnings

import cloudpickle
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.sealed import Sealed
from luthier.data.splits import class_counts, part_sizes, split
from luthier.errors import DataError, LuthierError

weights = st.lists(st.integers(1, 20), min_size=1, max_size=4)


@settings(deadline=None, max_examples=200)
@given(weights, st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(0, 100))
def test_parts_are_disjoint_covering_and_stratified_within_one(shares, per_class, seed):
    fractions = [share / sum(shares) for share in shares]
    labels = torch.repeat_interleave(torch.arange(len(per_class)) * 10 - 20, torch.tensor(per_class))
    n = len(labels)
    if n == 0 or 0 in sizes_or_none(n, fractions):
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fewer examples than the split has parts.*")
        parts = split((torch.arange(n), labels), fractions, seed, stratify=labels)
    chosen = torch.cat([place for place, _ in parts])
    assert sorted(chosen.tolist()) == list(range(n))
    assert [len(place) for place, _ in parts] == part_sizes(n, fractions)
    for (place, part_labels), fraction in zip(parts, fractions, strict=True):
        assert torch.equal(labels[place], part_labels)
        assert place.tolist() == sorted(place.tolist())
        for label in labels.unique():
            count = int((part_labels == label).sum())
            assert abs(count - fraction * int((labels == label).sum())) <= 1 + 1e-9


def sizes_or_none(n, fractions):
    try:
        return part_sizes(n, fractions)
    except DataError:
        return [0]


@given(st.integers(1, 1000), weights)
def test_sizes_are_the_fractions_rounded(n, shares):
    fractions = [share / sum(shares) for share in shares]
    sizes = sizes_or_none(n, fractions)
    if sizes != [0]:
        assert sum(sizes) == n
        assert all(abs(size - n * fraction) < 1 for size, fraction in zip(sizes, fractions, strict=True))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), weights)
def test_a_table_of_counts_has_both_its_sums(classes, shares):
    fractions = [share / sum(shares) for share in shares]
    sizes = sizes_or_none(sum(classes), fractions)
    if sizes != [0]:
        counts = class_counts(classes, sizes, fractions)
        assert [sum(row) for row in counts] == classes
        assert [sum(column) for column in zip(*counts, strict=True)] == sizes


def test_a_seed_gives_one_split_and_the_global_generator_is_left_alone():
    data = (torch.arange(100), torch.arange(100) % 3)
    state = torch.get_rng_state()
    first, again, other = (split(data, [0.7, 0.3], seed) for seed in (0, 0, 1))
    assert torch.equal(first[0][0], again[0][0])
    assert not torch.equal(first[0][0], other[0][0])
    assert torch.equal(torch.get_rng_state(), state)


def test_trees_and_arrays_are_split_alike():
    tree = {"x": np.arange(12.0).reshape(6, 2), "y": [torch.arange(6)]}
    for part in split(tree, [0.5, 0.5], 0):
        assert torch.equal(part["x"][:, 0], 2.0 * part["y"][0])


def test_auto_stratifies_class_labels_and_only_them():
    rare = torch.cat([torch.zeros(90, dtype=torch.int64), torch.ones(10, dtype=torch.int64)])
    for seed in range(5):
        parts = split((torch.arange(100), rare), [0.8, 0.2], seed)
        assert [int(labels.sum()) for _, labels in parts] == [8, 2]
    counts = {int(split((torch.arange(100), rare), [0.8, 0.2], seed, stratify=None)[1][1].sum()) for seed in range(20)}
    assert len(counts) > 1
    distinct = torch.arange(100)
    assert len(split((torch.zeros(100, 2), distinct), [0.9, 0.1], 0)[1][1]) == 10
    assert len(split((torch.zeros(100), rare.float()), [0.9, 0.1], 0)[1][1]) == 10


def test_a_class_with_fewer_examples_than_parts_is_warned_about():
    labels = torch.tensor([0] * 9 + [1])
    with pytest.warns(UserWarning, match="1 of 2 classes have fewer examples"):
        parts = split((torch.arange(10), labels), [0.5, 0.5], 0)
    assert sorted(int(part.sum()) for _, part in parts) == [0, 1]


@pytest.mark.parametrize("fractions", [[0.5, 0.4], [0.7, 0.4], [1.0, 0.0], [1.2, -0.2], []])
def test_fractions_that_make_no_split_are_refused(fractions):
    with pytest.raises(DataError, match="above 0 and have sum 1"):
        split(torch.arange(10), fractions, 0)


def test_an_empty_part_and_labels_of_another_length_are_refused():
    with pytest.raises(DataError, match="part 1 would be empty"):
        split(torch.arange(3), [0.9, 0.1], 0)
    with pytest.raises(DataError, match="one class label for each of 3 examples"):
        split(torch.arange(3), [0.5, 0.5], 0, stratify=torch.zeros(2))


def test_sealed_data_open_once():
    data = (torch.zeros(5, 2), torch.zeros(5))
    sealed = Sealed(data)
    assert repr(sealed) == "Sealed(5x2, 5; sealed)"
    assert sealed.opened is None
    assert sealed.open("the end") is data
    for reason in ("the end", "another end"):
        with pytest.raises(LuthierError, match="once only, and were read already for: the end"):
            sealed.open(reason)
    assert repr(sealed) == "Sealed(5x2, 5; opened for: the end)"


def test_sealed_data_need_a_reason_and_stay_sealed_without_one():
    sealed = Sealed([torch.zeros(3)])
    with pytest.raises(LuthierError, match="needs a reason"):
        sealed.open(" ")
    assert sealed.opened is None


def test_sealed_data_offer_no_other_way_in():
    sealed = Sealed(torch.zeros(3))
    assert not hasattr(sealed, "data")
    assert not hasattr(sealed, "__dict__")
    assert [name for name in dir(sealed) if not name.startswith("_")] == ["open", "opened"]


@pytest.mark.parametrize(
    "carry", [lambda x: cloudpickle.loads(cloudpickle.dumps(x)), lambda x: pickle.loads(pickle.dumps(x)), copy.copy]
)
def test_sealed_data_travel_in_the_state_they_are_in(carry):
    sealed = Sealed((torch.arange(3),))
    carried = carry(sealed)
    assert repr(carried) == "Sealed(3; sealed)"
    assert carried.open("there")[0].tolist() == [0, 1, 2]
    assert sealed.opened is None
    sealed.open("here")
    with pytest.raises(LuthierError, match="already for: here"):
        carry(sealed).open("there")
