"""Numbers of tensors against plain torch, and what must not happen while they are taken."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.doctor.measure.rows import DeadUnits, Flat, Units
from luthier.doctor.measure.stats import ELEMENTS, measure, read, thinned
from luthier.doctor.vitals import Stats


def row_of(tensor: torch.Tensor, *args: object, **kwargs: object) -> dict[str, object]:
    (row,) = read([measure(tensor, *args, **kwargs)])  # type: ignore[arg-type]
    Stats.of(row)
    return row


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_moments_are_those_of_torch(dtype: torch.dtype) -> None:
    tensor = (torch.randn(48, 9, generator=torch.Generator().manual_seed(0)) * 3 + 5).to(dtype)
    tensor[:, 4] = 0
    row, exact = row_of(tensor), tensor.double()
    assert row["n"] == tensor.numel()
    assert row["mean"] == pytest.approx(float(exact.mean()), rel=1e-5)
    assert row["std"] == pytest.approx(float(exact.std(correction=0)), rel=1e-5)
    assert (row["min"], row["max"]) == (float(exact.min()), float(exact.max()))
    assert row["zero"] == pytest.approx(1 / 9)
    assert row["nonfinite"] == 0
    expected = float(exact.var(0, correction=0).mean().sqrt() / exact.square().mean().sqrt())
    assert row["across"] == pytest.approx(expected, rel=1e-5)


def test_std_survives_a_mean_that_is_far_away() -> None:
    tensor = torch.randn(100, 3, generator=torch.Generator().manual_seed(1)) + 1000
    assert row_of(tensor)["std"] == pytest.approx(float(tensor.double().std(correction=0)), rel=1e-3)


def test_across_is_zero_for_equal_examples_and_none_for_one() -> None:
    assert row_of(torch.arange(6.0).repeat(10, 1))["across"] == pytest.approx(0, abs=1e-6)
    assert row_of(torch.arange(6.0)[None])["across"] is None
    assert row_of(torch.zeros(4, 2))["across"] == 0


def test_across_follows_the_batch_dimension() -> None:
    same_over_time = torch.randn(1, 8, 3, generator=torch.Generator().manual_seed(2)).repeat(5, 1, 1)
    assert row_of(same_over_time, batch_dim=0)["across"] == pytest.approx(0, abs=1e-6)
    assert row_of(same_over_time, batch_dim=1)["across"] > 0.5  # type: ignore[operator]


def test_finite_elements_are_described_beside_infinite_ones() -> None:
    row = row_of(torch.tensor([[1.0, math.inf], [3.0, math.nan], [5.0, -math.inf], [7.0, 8.0]]))
    assert row["nonfinite"] == pytest.approx(3 / 8)
    assert row["mean"] == pytest.approx(24 / 5)
    assert (row["min"], row["max"]) == (1.0, 8.0)
    assert row_of(torch.full((3, 3), math.nan))["nonfinite"] == 1


def test_huge_values_keep_a_finite_spread() -> None:
    row = row_of(torch.tensor([[1e30], [-1e30]]))
    assert row["std"] == pytest.approx(1e30, rel=1e-6)


def test_a_single_bad_element_of_a_big_tensor_is_seen() -> None:
    tensor = torch.rand(512, 400)
    tensor[511, 399] = math.nan
    assert row_of(tensor)["nonfinite"] > 0  # type: ignore[operator]
    tensor[511, 399] = 7.0
    row = row_of(tensor)
    assert (row["max"], row["min"]) == (7.0, float(tensor.min()))
    assert row["mean"] == pytest.approx(0.5, abs=0.02)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 3), st.integers(1, 300))
def test_thinned_tensors_are_small_and_keep_their_examples(shape: list[int], batch_dim: int, batch: int) -> None:
    batch_dim = min(batch_dim, len(shape) - 1)
    shape[batch_dim] = batch
    tensor = torch.empty(shape)
    found = thinned(tensor, batch_dim)
    assert found.dim() == tensor.dim()
    assert found.shape[-1] == tensor.shape[-1] or batch_dim == len(shape) - 1
    assert found.shape[batch_dim] >= min(batch, 4)
    if tensor.shape[-1] * 8 < ELEMENTS:
        assert found.numel() <= 4 * ELEMENTS


@pytest.mark.parametrize(
    ("values", "flat", "expected"),
    [
        ([[0.01, 0.5, 0.99, 0.03]], Flat(0.02, 0.98), 0.5),
        ([[-0.97, 0.0, 0.5, 0.99]], Flat(-0.96, 0.96), 0.5),
        ([[0.995, 0.005], [0.5, 0.5], [0.001, 0.999], [0.4, 0.6]], Flat(high=0.99, dim=1), 0.5),
        ([[-1.0, -0.2, 0.3, 1.0]], Flat(-1.0, 1.0), 0.5),
    ],
)
def test_flat_parts_are_counted(values: list[list[float]], flat: Flat, expected: float) -> None:
    assert row_of(torch.tensor(values), flat=flat)["flat"] == expected


def test_details_tell_targets_apart() -> None:
    one_hot = row_of(torch.eye(5)[[0, 1, 2, 2, 4]], "detail")
    assert (one_hot["integral"], one_hot["distinct"], one_hot["rows_one_hot"]) == (True, 2, 1.0)
    assert (one_hot["row_sum_min"], one_hot["row_sum_max"]) == (1.0, 1.0)
    chances = row_of(torch.softmax(torch.randn(40, 6), 1), "detail")
    assert chances["row_sum_max"] == pytest.approx(1, abs=1e-5)
    assert (chances["integral"], chances["rows_one_hot"]) == (False, 0.0)
    assert row_of(torch.rand(500), "detail")["distinct"] == 64
    assert "row_sum_min" not in row_of(torch.rand(5), "detail")
    assert "integral" not in row_of(torch.rand(5, 2))


def test_a_late_wish_for_details_is_met() -> None:
    pending = measure(torch.eye(4))
    pending.detail = True
    assert read([pending])[0]["rows_one_hot"] == 1.0


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_whole_numbers_have_ends_and_distinct_values(dtype: torch.dtype) -> None:
    row = row_of(torch.arange(200).remainder(7).to(dtype).view(20, 10))
    assert row == {"n": 200, "min": 0.0, "max": 6.0, "distinct": 7}
    assert row_of(torch.tensor([True, False]))["distinct"] == 2
    assert row_of(torch.arange(100_000))["max"] == 99_999


@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(0, 3),
        torch.eye(3).to_sparse(),
        torch.zeros(2, dtype=torch.complex64),
        torch.empty(2, 2, device="meta"),
    ],
)
def test_what_cannot_be_measured_gives_its_size(tensor: torch.Tensor) -> None:
    assert row_of(tensor) == {"n": tensor.numel()}


def test_tensors_under_a_transformation_are_left_alone() -> None:
    rows = []

    def look(x: torch.Tensor) -> torch.Tensor:
        rows.extend(read([measure(x)]))
        return x * 2

    torch.func.vmap(look)(torch.ones(3, 2))
    assert list(rows[0]) == ["n"]


def test_single_numbers() -> None:
    assert row_of(torch.tensor(2.5))["mean"] == 2.5
    assert row_of(torch.tensor([2.5]))["std"] == 0
    assert row_of(torch.tensor(math.nan))["nonfinite"] == 1


def test_units_are_dead_after_four_looks_at_zeros() -> None:
    memory = DeadUnits()
    values = torch.rand(16, 5) + 0.1
    values[:, 3] = 0
    found = [row_of(values, units=Units(memory, "relu", 1))["dead"] for _ in range(4)]
    assert found == [None, None, None, pytest.approx(1 / 5)]
    values[3, 3] = 1.0
    assert row_of(values, units=Units(memory, "relu", 1))["dead"] == 0
    assert row_of(torch.zeros(16, 7), units=Units(memory, "relu", 1))["dead"] is None


def test_units_of_a_big_activation_are_judged_by_all_of_it() -> None:
    memory = DeadUnits()
    values = torch.zeros(128, 8, 20, 20)
    values[127, :4, 19, 19] = 2.0
    rows = [row_of(values, units=Units(memory, "relu", 1)) for _ in range(4)]
    assert rows[-1]["dead"] == 0.5
    assert (rows[-1]["min"], rows[-1]["max"]) == (0.0, 2.0)


def test_measuring_holds_nothing_draws_nothing_and_needs_no_graph() -> None:
    tensor = torch.rand(4, 4, requires_grad=True) * 2
    before = torch.get_rng_state()
    pending = measure(tensor)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(copy.requires_grad for copy in pending.tensors)
    with torch.no_grad():
        expected = float(tensor.mean())
        tensor.zero_()
    assert read([pending])[0]["mean"] == pytest.approx(expected)


def test_rows_are_plain() -> None:
    row = row_of(torch.rand(6, 4), "detail", flat=Flat(0.02, 0.98), units=Units(DeadUnits(), "x", 1))
    assert not any(isinstance(value, np.generic) for value in row.values())
