"""Evaluation examples against training examples: the same ones, of the same kind, with the same labels?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.doctor.measure import learners
from luthier.doctor.measure.gathering import Sample
from luthier.doctor.measure.labels import labels_of

MOST_FORWARDS = 256
COMPARED = 512
COLUMNS = 256
PERMUTATIONS = 12
FEWEST = 12


def compare(train: Sample, evaluation: Sample, forwards: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """What evaluation shares with training.

    Args:
        train, evaluation: samples of equal shape. forwards: (step, forward) of every block of `evaluation`.

    Returns:
        forwards: {"step", "forward", "n", "in_train"}: per evaluation forward its distinct examples
            and how many of them stand in the training sample;
        coverage: share of late training examples that had been sampled before (None below one epoch): how much of
            the training set the sample holds, about;
        compare: see `_difference`, over the forwards that do not look like a pass over the training set;
        carried: accuracy or r2 on evaluation examples of the learner fitted to training examples (needs targets).
    """
    known = torch.isin(evaluation.keys, train.keys)
    counts = []
    for block in range(int(evaluation.block.max()) + 1):
        inside = evaluation.block == block
        keys = torch.unique(evaluation.keys[inside])
        counts.append((len(keys), int(torch.isin(keys, train.keys).sum())))
    row: dict[str, Any] = {
        "forwards": {
            "step": [step for step, _ in forwards[:MOST_FORWARDS]],
            "forward": [forward for _, forward in forwards[:MOST_FORWARDS]],
            "n": [n for n, _ in counts[:MOST_FORWARDS]],
            "in_train": [found for _, found in counts[:MOST_FORWARDS]],
        },
        "coverage": _coverage(train),
    }
    rows = _unseen(evaluation, known, counts)
    if len(rows) >= FEWEST:
        row["compare"] = _difference(train, evaluation.inputs[rows])
        row["carried"] = _carried(train, evaluation, rows)
    return row


def _coverage(train: Sample) -> float | None:
    """Share of the examples of the last quarter of the blocks that earlier blocks hold."""
    n_blocks = int(train.block.max()) + 1
    late = train.block >= n_blocks - max(n_blocks // 4, 1)
    if n_blocks < 2 or not bool((~late).any()):
        return None
    share = float(torch.isin(train.keys[late], train.keys[~late]).float().mean())
    return share or None


def _unseen(evaluation: Sample, known: Tensor, counts: Sequence[tuple[int, int]]) -> Tensor:
    """Rows of distinct examples, without forwards that look like a pass over the training set when others do not."""
    shares = torch.tensor([found / max(n, 1) for n, found in counts])
    highest = float(shares.max())
    passes = shares >= max(0.5 * highest, 0.05)
    first = evaluation.first
    if bool(passes.all()) or not bool(passes.any()):
        return first
    return first[~passes[evaluation.block[first]] & ~known[first]]


def _difference(train: Sample, inputs: Tensor) -> dict[str, Any]:
    """Distance of two samples of inputs.

    Returns:
        n: (training, evaluation) examples; shift: root mean square over features of the difference of means by the
        pooled standard deviation; log_spread: log2 of evaluation's spread by training's; each with its value under
        random division (mean, std) in shift_null, spread_null; rms: of training and of evaluation inputs.
    """
    rows = train.first[~train.nonfinite[train.first]]
    a, b = train.inputs[_thin(rows, COMPARED)], inputs[_thin(torch.arange(len(inputs)), COMPARED)]
    if train.tokens:
        both = learners.features(torch.cat([a, b]), True)
        a, b = both[: len(a)], both[len(a) :]
    step = -(-a.shape[1] // COLUMNS)
    a, b = a[:, ::step].double(), b[:, ::step].double()
    both = torch.cat([a, b])
    moving = both.amax(0) - both.amin(0) > 1e-9 * both.abs().amax(0).clamp_min(1e-30)
    if not bool(moving.any()) or len(a) < FEWEST:
        return {}
    both = both[:, moving]
    shifts, spreads = _distances(both - both.mean(0), len(a))
    return {
        "n": [len(a), len(b)],
        "shift": float(shifts[0]),
        "shift_null": [float(shifts[1:].mean()), float(shifts[1:].std())],
        "log_spread": float(spreads[0]),
        "spread_null": [float(spreads[1:].mean()), float(spreads[1:].std())],
        "rms": [float(a.square().mean().sqrt()), float(b.square().mean().sqrt())],
    }


def _distances(both: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Distance of means and of spreads for the division as it is (first) and for random ones, (1 + PERMUTATIONS,) each.

    Args:
        both: (n + k, d) centred, the n training examples first. n: how many these are.
    """
    generator = torch.Generator().manual_seed(4)
    first = torch.zeros(1 + PERMUTATIONS, len(both), dtype=both.dtype)
    first[0, :n] = 1
    for row in first[1:]:
        row[torch.randperm(len(both), generator=generator)[:n]] = 1
    second = 1 - first
    squares = both.square()
    means, spreads = [], []
    for part in (first / n, second / (len(both) - n)):
        mean = part @ both
        means.append(mean)
        spreads.append((part @ squares - mean.square()).clamp_min(0).sqrt())
    pooled = ((spreads[0].square() + spreads[1].square()) / 2).sqrt().clamp_min(1e-30)
    shift = ((means[0] - means[1]) / pooled).square().mean(1).sqrt()
    there = (spreads[0] > 0) & (spreads[1] > 0)
    ratio = torch.where(there, (spreads[1] / spreads[0].clamp_min(1e-30)).clamp_min(1e-30).log2(), torch.nan)
    return shift, ratio.nanmedian(1).values.nan_to_num(0.0)


def _carried(train: Sample, evaluation: Sample, rows: Tensor) -> dict[str, Any]:
    """Does what a small learner finds in the training pairs hold for evaluation pairs?"""
    if train.targets is None or evaluation.targets is None:
        return {}
    inside = _thin(train.first, COMPARED)
    if train.targets.shape[1:] != evaluation.targets.shape[1:] or len(inside) < FEWEST:
        return {}
    labels = labels_of(torch.cat([train.targets[inside], evaluation.targets[rows].to(train.targets.dtype)]))
    if labels is None or labels.summary_only:
        return {}
    X = learners.features(train.inputs[inside], train.tokens)
    if train.tokens:
        both = learners.features(torch.cat([train.inputs[inside], evaluation.inputs[rows]]), True)
        X, other = both[: len(inside)], both[len(inside) :]
    else:
        other = learners.features(evaluation.inputs[rows], False, train.inputs[inside])
    predicted = learners.carried_over(X, labels.columns[: len(inside)], other, "kernel")
    actual = labels.columns[len(inside) :]
    if labels.codes is not None:
        return {"n": len(rows), "accuracy": float((predicted.argmax(1) == labels.codes[len(inside) :]).float().mean())}
    total = (actual - actual.mean(0)).square().sum()
    return {"n": len(rows), "r2": 1 - float((predicted - actual).square().sum() / total.clamp_min(1e-12))}


def _thin(rows: Tensor, most: int) -> Tensor:
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most).long()]
