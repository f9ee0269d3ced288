import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from luthier.data import mixing
from luthier.data.mixing import beta, cutmix, mix, mixup, random_boxes, soft_targets
from luthier.errors import DataError


def batch(n: int = 16) -> tuple[Tensor, Tensor]:
    """Images whose every value is the sample's number, and classes."""
    return torch.arange(float(n)).view(n, 1, 1, 1).expand(n, 2, 6, 9).clone(), torch.arange(n) % 5


@pytest.mark.parametrize("how", [mixup, cutmix])
def test_equal_seeds_give_equal_bits(how: Any) -> None:
    x, y = batch()
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(how(x, y, 1.0, 5))
    assert results[0][0].equal(results[1][0])
    assert results[0][1].equal(results[1][1])
    assert not results[0][0].equal(results[2][0])
    assert x.equal(batch()[0]), "the input is not changed in place"


@settings(deadline=None, max_examples=30)
@given(st.floats(0.05, 5), st.integers(1, 12), st.integers(1, 7), st.sampled_from([mixup, cutmix]))
def test_rows_of_classes_sum_to_one(alpha: float, n: int, n_classes: int, how: Any) -> None:
    y = torch.randint(n_classes, (n,))
    x_mixed, y_mixed = how(torch.rand(n, 3, 5, 4), y, alpha, n_classes)
    assert x_mixed.shape == (n, 3, 5, 4)
    assert y_mixed.shape == (n, n_classes)
    assert float(y_mixed.min()) >= 0
    torch.testing.assert_close(y_mixed.sum(1), torch.ones(n))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_lambda_has_the_mean_and_variance_of_its_beta(alpha: float) -> None:
    torch.manual_seed(0)
    draws = beta(torch.zeros(40_000, 1), alpha)
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(float(draws.mean()) - 0.5) < 4 * math.sqrt(variance / 40_000)
    assert abs(float(draws.var()) - variance) < 0.02 * variance
    assert 0 <= float(draws.min()) <= float(draws.max()) <= 1


def test_tiny_alphas_give_no_nan() -> None:
    torch.manual_seed(0)
    assert beta(torch.zeros(10_000, 1), 1e-3).isfinite().all()


def test_mixup_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "beta", lambda x, alpha: torch.tensor([0.25, 1.0, 0.5]))
    monkeypatch.setattr(torch, "randperm", lambda n, device: torch.tensor([1, 2, 0]))
    x, y = mixup(torch.tensor([[0.0], [4.0], [8.0]]), torch.tensor([0, 1, 1]), 1.0, 2)
    assert x.flatten().tolist() == [3.0, 4.0, 4.0]
    assert y.tolist() == [[0.25, 0.75], [0, 1], [0.5, 0.5]]


def test_mixup_mixes_targets_as_it_mixes_samples() -> None:
    """Targets that are linear in the samples stay so; also regression [B] and many labels [B, L]."""
    torch.manual_seed(0)
    x = torch.randn(32, 7).double()
    for y in (x.sum(1), x[:, :3] * 2):
        x_mixed, y_mixed = mixup(x, y, 0.4, None)
        assert y_mixed.shape == y.shape
        assert not y_mixed.equal(y)
    x_mixed, y_mixed = mixup(x, x.sum(1), 0.4, None)
    torch.testing.assert_close(x_mixed.sum(1), y_mixed)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.1, 3))
def test_cutmix_mixes_targets_by_the_real_area(seed: int, alpha: float) -> None:
    torch.manual_seed(seed)
    x, _ = batch()
    x_mixed, y_mixed = cutmix(x, torch.arange(16), alpha, 16)
    for row, (image, target) in enumerate(zip(x_mixed, y_mixed, strict=True)):
        assert image[0].equal(image[1]), "all channels have the same box"
        pasted = image[0] != row
        if not pasted.any():
            assert target[row] == 1
            continue
        assert len(image[0][pasted].unique()) == 1
        rows, columns = pasted.nonzero(as_tuple=True)
        assert len(rows) == len(rows.unique()) * len(columns.unique()), "a box"
        torch.testing.assert_close(target[row], 1 - len(rows) / 54 * torch.ones(()))
        torch.testing.assert_close(target[int(image[0][pasted][0])], len(rows) / 54 * torch.ones(()))


def test_boxes_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of 8x16: a quarter of the area is a box of 4x8; its centre at (0, 0), (4, 8) and (7, 15)."""
    centres = iter([torch.tensor([0, 4, 7, 3]), torch.tensor([0, 8, 15, 3])])
    monkeypatch.setattr(torch, "randint", lambda high, size, device: next(centres))
    boxes = random_boxes(torch.zeros(4, 1, 8, 16), torch.tensor([0.75, 0.75, 0.75, 1.0]))
    assert boxes.flatten(1).sum(1).tolist() == [2 * 4, 4 * 8, 3 * 5, 0]
    assert boxes[1].nonzero()[0].tolist() == [2, 4]
    assert boxes[2].nonzero()[0].tolist() == [5, 11]


def test_mix_takes_each_with_equal_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    calls: list[tuple[str, float]] = []

    def noting(name: str) -> Any:
        def noted(x: Tensor, y: Tensor, alpha: float, n_classes: int) -> tuple[Tensor, Tensor]:
            calls.append((name, alpha))
            return x, y

        return noted

    for name in ("mixup", "cutmix"):
        monkeypatch.setattr(mixing, name, noting(name))
    for _ in range(400):
        mix(*batch(4), mixup_alpha=0.2, cutmix_alpha=1.0, n_classes=5)
    assert set(calls) == {("mixup", 0.2), ("cutmix", 1.0)}
    assert abs(calls.count(("mixup", 0.2)) - 200) < 4 * 10


@pytest.mark.parametrize(("alphas", "whole"), [((1.0, 0.0), False), ((0.0, 1.0), True), ((0.0, 0.0), True)])
def test_mix_with_one_or_none(alphas: tuple[float, float], whole: bool) -> None:
    torch.manual_seed(0)
    x, y = batch()
    mixed, targets = mix(x, y, mixup_alpha=alphas[0], cutmix_alpha=alphas[1], n_classes=5)
    assert bool(mixed.equal(mixed.round())) is whole
    assert targets.shape == (16, 5)
    assert bool(mixed.equal(x)) is (alphas == (0, 0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types_are_kept(dtype: torch.dtype) -> None:
    x, y = batch(4)
    for how in (mixup, cutmix):
        mixed, targets = how(x.to(dtype), y, 1.0, 5)
        assert (mixed.dtype, targets.dtype) == (dtype, torch.float32)
        assert how(x, torch.rand(4).to(dtype), 1.0, None)[1].dtype == dtype


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x, y: cutmix(x[:, :, 0], y, 1.0, 5), r"cutmix pastes boxes .* got samples of shape \[16, 2, 9\]"),
        (lambda x, y: mixup(x.long(), y, 1.0, 5), "needs float samples, got torch.int64"),
        (lambda x, y: mixup(x, y[:3], 1.0, 5), r"one target for each sample, got samples .* and targets \[3\]"),
        (lambda x, y: mixup(x, y[0], 1.0, 5), r"one target for each sample, .* targets \[\]"),
        (lambda x, y: mixup(x, y, 1.0, None), "got torch.int64 of shape .* and n_classes=None"),
        (lambda x, y: mixup(x, y.view(16, 1), 1.0, 5), r"got torch.int64 of shape \[16, 1\]"),
        (lambda x, y: mixup(x, y, 1.0, 4), "classes must lie in 0 to 3, got 0 to 4"),
        (lambda x, y: mixup(x, y, 0.0, 5), "above 0, got 0.0"),
        (lambda x, y: cutmix(x, y, math.nan, 5), "above 0, got nan"),
    ],
)
def test_what_cannot_be_mixed_is_refused(call: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        call(*batch())


def test_soft_targets_of_classes_and_floats() -> None:
    assert soft_targets(torch.tensor([1, 0], dtype=torch.uint8), 3).tolist() == [[0, 1, 0], [1, 0, 0]]
    floats = torch.rand(3, 2)
    assert soft_targets(floats, None) is floats
