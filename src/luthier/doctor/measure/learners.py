"""Small learners that need no training: do neighbours, or a linear rule, agree on the targets at all?

Ridge regression on the targets (classes as indicator columns) with a linear and a Gaussian kernel, cross-validated.
Legend: n examples, d features, m target columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FOLDS = 4
PERMUTATIONS = 4
SHIFTS = (-3, -2, -1, 1, 2, 3)
RIDGE = {"linear": 1.0, "kernel": 0.1}


@dataclass
class Agreement:
    """What cross-validated predictions say about the targets.

    Attributes:
        learner: "linear" or "kernel", whichever agrees better.
        predicted: (n, m), every row from folds that did not hold it.
        correlation: of predictions and centred targets, over all columns.
        chance, spread: mean and standard deviation of that when the targets are permuted.
        shifted: shift -> (correlation, examples) with the targets of the neighbours in the batch.
    """

    learner: str
    predicted: Tensor
    correlation: float
    chance: float
    spread: float
    shifted: dict[int, tuple[float, int]]

    @property
    def z(self) -> float:
        """How many standard deviations above chance."""
        return (self.correlation - self.chance) / self.spread


def features(inputs: Tensor, tokens: bool, reference: Tensor | None = None, width: int = 256) -> Tensor:
    """What the learners see: standardised numbers, or counts of tokens and of tokens at their place (hashed).

    Args:
        inputs: (n, d) floats, or integers when `tokens`.
        tokens: they are names, not quantities.
        reference: (k, d) whose mean and spread are used; the inputs themselves unless given.
        width: at most that many columns, by a fixed random projection.

    Returns:
        (n, <= width) floats.
    """
    if tokens:
        return _bags(inputs)
    reference = inputs if reference is None else reference
    mean = reference.mean(0)
    std = (reference - mean).square().mean(0).sqrt()
    keep = std > 1e-6 * (mean.abs() + std.max() * 1e-6 + 1e-30)
    scaled = ((inputs - mean) / std.clamp_min(1e-30))[:, keep].clamp(-5, 5)
    if scaled.shape[1] > width:
        generator = torch.Generator().manual_seed(0)
        scaled = scaled @ (torch.randn(scaled.shape[1], width, generator=generator) / scaled.shape[1] ** 0.5)
    return scaled


def _bags(tokens: Tensor) -> Tensor:
    """(n, 256): which tokens (128 buckets) and which at which place (128 buckets), centred."""
    n, length = tokens.shape
    place = torch.arange(length)
    buckets = torch.cat([tokens % 128, 128 + ((tokens * 40503 + place * 30011) >> 3) % 128], 1)
    counts = torch.zeros(n, 256).scatter_add_(1, buckets, torch.ones(n, 2 * length))
    counts = counts - counts.mean(0)
    return counts / counts.std(0, correction=0).clamp_min(0.05)


def agreement(X: Tensor, Y: Tensor, neighbours: dict[int, tuple[Tensor, Tensor]] | None = None) -> Agreement:
    """Cross-validate both learners and keep the one that agrees better with the targets.

    Args:
        X: (n, d) features.
        Y: (n, m) targets.
        neighbours: shift -> ((n, m) targets of the example so much later in the batch, (n,) whether there is one).

    Returns:
        the better learner's agreement.
    """
    shifted = neighbours or {}
    generator = torch.Generator().manual_seed(1)
    centred = _centred(Y)
    orders = [torch.randperm(len(Y), generator=generator) for _ in range(PERMUTATIONS)]
    columns = [centred, *(centred[order] for order in orders)]
    columns += [_centred(other, there) for other, there in shifted.values()]
    together = torch.cat(columns, 1)
    folds = torch.randperm(len(X), generator=generator) % FOLDS
    found = []
    for learner in RIDGE:
        predicted = torch.split(_cross_validated(_gram(X, X, learner), together, folds, RIDGE[learner]), Y.shape[1], 1)
        own = _correlation(predicted[0], centred)
        null = torch.tensor([_correlation(p, c) for p, c in zip(predicted[1:], columns[1:], strict=True)])
        null = null[:PERMUTATIONS]
        others = {
            shift: (
                _correlation(predicted[1 + PERMUTATIONS + i][there], columns[1 + PERMUTATIONS + i][there]),
                int(there.sum()),
            )
            for i, (shift, (_, there)) in enumerate(shifted.items())
        }
        spread = max(float(null.std()), len(X) ** -0.5)
        found.append(Agreement(learner, predicted[0] + Y.mean(0), own, float(null.mean()), spread, others))
    return max(found, key=lambda item: item.z)


def carried_over(X: Tensor, Y: Tensor, other: Tensor, learner: str) -> Tensor:
    """Predictions (k, m) for other examples (k, d) of a learner that saw all of X and Y."""
    gram = _gram(X, X, learner) + RIDGE[learner] * torch.eye(len(X))
    weights: Tensor = torch.linalg.solve(gram, Y - Y.mean(0))
    return _gram(other, X, learner) @ weights + Y.mean(0)


def _centred(Y: Tensor, there: Tensor | None = None) -> Tensor:
    if there is None:
        return Y - Y.mean(0)
    return (Y - Y[there].mean(0)) * there[:, None] if bool(there.any()) else torch.zeros_like(Y)


def _correlation(predicted: Tensor, centred: Tensor) -> float:
    if not len(predicted):
        return 0.0
    predicted = predicted - predicted.mean(0)
    centred = centred - centred.mean(0)
    size = predicted.norm() * centred.norm()
    return float((predicted * centred).sum() / size) if size > 0 else 0.0


def _gram(A: Tensor, B: Tensor, learner: str) -> Tensor:
    """Kernel matrix: linear, or a mean of Gaussians of three widths (fine structure in few dimensions)."""
    if learner == "linear":
        return A @ B.T / max(A.shape[1], 1)
    distance = torch.cdist(A, B, compute_mode="use_mm_for_euclid_dist").square()
    middle = 2.0 * max(float(B.var(0, correction=0).sum()), 1e-12)
    return torch.stack([torch.exp(-distance / (middle * scale)) for scale in (1.0, 0.1, 0.01)]).mean(0)


def _cross_validated(gram: Tensor, Y: Tensor, folds: Tensor, ridge: float) -> Tensor:
    predicted = torch.zeros_like(Y)
    for fold in range(FOLDS):
        inside, outside = (folds != fold).nonzero()[:, 0], (folds == fold).nonzero()[:, 0]
        matrix = gram[inside][:, inside] + ridge * torch.eye(len(inside))
        mean = Y[inside].mean(0)
        solved = torch.cholesky_solve(Y[inside] - mean, torch.linalg.cholesky(matrix))
        predicted[outside] = gram[outside][:, inside] @ solved + mean
    return predicted


def confidence(predicted: Tensor, codes: Tensor) -> dict[str, Any]:
    """How often labels contradict the predictions, by quarters of confidence (surest first).

    Contradiction that does not fade where the prediction is sure is noise in the labels; at the border between
    classes it fades.

    Args:
        predicted: (n, m) scores of the classes.
        codes: (n,) class numbers.

    Returns:
        accuracy, contradicted (four shares, surest quarter first).

    Source: Northcutt et al. 2021, "Confident learning" (labels contradicted by out-of-sample predictions).
    """
    top = predicted.topk(2, 1)
    wrong = (top.indices[:, 0] != codes).float()
    order = (top.values[:, 0] - top.values[:, 1]).argsort(descending=True)
    quarters = [round(float(part.mean()), 4) for part in wrong[order].chunk(4)]
    return {"accuracy": 1 - float(wrong.mean()), "contradicted": quarters}


def outliers(X: Tensor, residuals: Tensor) -> dict[str, float]:
    """Are some targets far off although most are predicted well, and do such examples stand alone?

    Args:
        X: (n, d) features. residuals: (n,) of cross-validated predictions.

    Returns:
        tail: 95% quantile of the absolute residuals by their median (2.9 for normal ones); together: how much likelier
        an example is among the worst tenth when its nearest neighbour is (1 = no link: wrong targets stand alone, what
        a learner cannot follow stands together).
    """
    size = (residuals - residuals.median()).abs()
    tail = float(size.quantile(0.95) / size.median().clamp_min(1e-12))
    far = (size > size.quantile(0.9)).float()
    distance = torch.cdist(X, X)
    distance.fill_diagonal_(float("inf"))
    beside = far[distance.argmin(1)]
    chance = float(far.mean() * beside.mean())
    return {"tail": tail, "together": float((far * beside).mean()) / max(chance, 1e-9)}
