"""The data under examination: what a sample of training and evaluation examples tells, as numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.doctor.measure import comparing, learners
from luthier.doctor.measure.gathering import Block, Sample, gather, of_common_shape
from luthier.doctor.measure.labels import Labels, labels_of

LEARNT = 512
FEWEST = 40
CLEAR = 1e-4


def examine(train: Sequence[Block], evaluation: Sequence[Block]) -> dict[str, Any]:
    """The row `data`. Every part is left out when there is too little to say it.

    Args:
        train: blocks of training batches on the CPU, in order of time.
        evaluation: blocks of evaluation forwards.

    Returns:
        examples, distinct, blocks: of the training sample. shape, features, tokens: of one example.
        nonfinite: {"inputs", "targets", "eval"}: shares of examples, and "columns" (first ten).
        inputs: see `_columns`. repeats: see `_repeats`. order: see `_order`. targets: see `labels.labels_of`.
        learn: see `_learn`. leading: see `_leading`. ahead: see `_ahead`.
        forwards, compare, carried: evaluation against training, see `comparing`.
    """
    blocks = of_common_shape(train)
    if not blocks:
        return {}
    sample = gather(blocks)
    row: dict[str, Any] = {
        "examples": len(sample.inputs),
        "distinct": len(sample.first),
        "blocks": len(blocks),
        "shape": list(blocks[0].shape),
        "features": sample.inputs.shape[1],
        "tokens": sample.tokens,
        "nonfinite": _nonfinite(blocks, sample),
        "inputs": _columns(sample),
        "repeats": _repeats(sample),
        "order": _order(sample),
        "ahead": _ahead(sample, blocks[0]),
    }
    labels = labels_of(sample.targets)
    if labels is not None:
        row["targets"] = labels.summary()
        row["learn"] = _learn(sample, labels)
        row["leading"] = _leading(sample, labels)
    same = [block for block in evaluation if block.shape == blocks[0].shape and block.tokens == sample.tokens]
    if same:
        other = gather(same)
        row |= comparing.compare(sample, other, [(block.step, block.forward) for block in same])
        row["nonfinite"]["eval"] = float(other.nonfinite.float().mean())
    return {key: value for key, value in row.items() if value != {}}


def _nonfinite(blocks: Sequence[Block], sample: Sample) -> dict[str, Any]:
    broken = torch.zeros(sample.inputs.shape[1], dtype=torch.bool)
    if bool(sample.nonfinite.any()):
        for block in blocks:
            broken |= ~block.inputs.isfinite().all(0)
    targets = sample.targets
    bad = ~targets.flatten(1).isfinite().all(1) if targets is not None and targets.dim() > 1 else None
    if targets is not None and targets.dim() == 1:
        bad = ~targets.isfinite()
    return {
        "inputs": float(sample.nonfinite.float().mean()),
        "columns": broken.nonzero()[:10, 0].tolist(),
        "targets": None if bad is None else float(bad.float().mean()),
    }


def _columns(sample: Sample) -> dict[str, Any]:
    """Scale of the features (numbers only, not tokens).

    Returns:
        rms: of all; mean: of all; zero: fraction; constant: share of features that never change;
        feature_rms, feature_std, offset (mean by std): least, 10%, median, 90%, largest over features that change.
    """
    if sample.tokens or len(sample.inputs) < 8:
        return {}
    X = sample.inputs[~sample.nonfinite]
    if len(X) < 8:
        return {}
    about = X.mean(0)
    centred = X - about
    off = centred.mean(0).double()  # single precision misses the mean of large numbers a little
    mean = about.double() + off
    std = (centred.square().mean(0).double() - off.square()).clamp_min(0).sqrt()
    rms = (std.square() + mean.square()).sqrt()
    moving = std > 1e-6 * rms.clamp_min(1e-30)
    row = {
        "rms": float(rms.square().mean().sqrt()),
        "mean": float(mean.mean()),
        "zero": float((X == 0).float().mean()),
        "constant": float((~moving).double().mean()),
    }
    if not bool(moving.any()):
        return row
    parts = {
        "feature_rms": rms[moving],
        "feature_std": std[moving],
        "offset": (mean.abs() / std.clamp_min(1e-30))[moving],
    }
    at = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=torch.double)
    return row | {name: values.quantile(at).tolist() for name, values in parts.items()}


def _repeats(sample: Sample) -> dict[str, Any]:
    """Equal inputs that came again, and whether their targets came with them.

    Returns:
        twins: share of the pairs within a batch that are equal inputs (0 for continuous data);
        pairs: pairs of equal inputs in different batches, without blank ones (all values equal), which tell nothing;
        conflict: how far their targets differ: 0 = the same, 1 = as if drawn anew (None without targets).
    """
    sizes = torch.bincount(sample.block)
    same_batch = int((sizes * (sizes - 1)).sum())
    order = sample.keys.argsort(stable=True)
    left, right = order[:-1], order[1:]
    equal = sample.keys[left] == sample.keys[right]
    left, right = left[equal], right[equal]
    inside = sample.block[left] == sample.block[right]
    blank = (sample.inputs == sample.inputs[:, :1]).all(1) & (sample.inputs.shape[1] > 1)
    telling = ~inside & ~blank[left]
    left, right = left[telling], right[telling]
    row: dict[str, Any] = {"twins": 2 * int(inside.sum()) / max(same_batch, 1), "pairs": len(left), "conflict": None}
    labels = labels_of(sample.targets)
    if labels is not None and len(left):
        total = labels.columns.var(0, correction=0).sum()
        apart = (labels.columns[left] - labels.columns[right]).square().sum(1).mean() / 2
        row["conflict"] = float(apart / total) if float(total) > 0 else None
    return row


def _ahead(sample: Sample, block: Block) -> dict[str, float]:
    """Is the target at every place of a sequence the input at the next one? Negative class numbers mark no target.

    Returns:
        share: of the places but the last whose target is the next input; same: of all whose target is their own input.
    """
    if sample.targets is None or sample.targets.dim() < 2 or block.stride > 1 or block.shape[0] < 4:
        return {}
    X, Y = sample.inputs, sample.targets.to(sample.inputs.dtype).flatten(1)
    if X.shape != Y.shape:
        return {}
    width = X.shape[1] // block.shape[0]
    asked = Y >= 0 if sample.tokens else torch.ones_like(Y, dtype=torch.bool)
    later = (Y[:, :-width] == X[:, width:])[asked[:, :-width]]
    same = (Y == X)[asked]
    return {"share": float(later.double().mean()), "same": float(same.double().mean())} if len(later) else {}


def _order(sample: Sample) -> dict[str, Any]:
    """Are batches alike inside? Variance between batch means against that inside batches; 1 when drawn at random."""
    n_blocks = int(sample.block.max()) + 1
    n = len(sample.inputs)
    if n_blocks < 5 or n < 4 * n_blocks:
        return {}
    X = learners.features(sample.inputs, sample.tokens, width=64)
    sizes = torch.bincount(sample.block, minlength=n_blocks).float()
    means = torch.zeros(n_blocks, X.shape[1]).index_add_(0, sample.block, X) / sizes[:, None]
    between = (sizes[:, None] * (means - X.mean(0)).square()).sum(0) / (n_blocks - 1)
    within = (X - means[sample.block]).square().sum(0) / max(n - n_blocks, 1)
    ratio = float(between.sum() / within.sum().clamp_min(1e-12))
    return {"inputs_f": ratio, "blocks": n_blocks, "rows": n / n_blocks}


def _chosen(sample: Sample) -> Tensor:
    """Rows of distinct, finite inputs for the learners, spread evenly."""
    rows = sample.first[~sample.nonfinite[sample.first]]
    return rows if len(rows) <= LEARNT else rows[torch.linspace(0, len(rows) - 1, LEARNT).long()]


def _learn(sample: Sample, labels: Labels) -> dict[str, Any]:
    """What small cross-validated learners make of the targets.

    Returns:
        n; learner; correlation, chance, spread, z (see `learners.Agreement`); for classes accuracy, majority (share)
        and contradicted (see `learners.confidence`); for numbers r2, and tail, together (see `learners.outliers`);
        shifts: shift -> [correlation, examples] with the targets that stand so much later in the batch.
    """
    rows = _chosen(sample)
    Y = labels.columns[rows]
    if len(rows) < FEWEST or float(Y.var(0).sum()) < CLEAR * float(Y.square().mean() + 1e-30) or labels.summary_only:
        return {}
    X = learners.features(sample.inputs[rows], sample.tokens)
    found = learners.agreement(X, Y, _neighbours(sample, labels, rows))
    row: dict[str, Any] = {
        "n": len(rows),
        "learner": found.learner,
        "correlation": found.correlation,
        "chance": found.chance,
        "spread": found.spread,
        "z": found.z,
        "shifts": {str(shift): list(value) for shift, value in found.shifted.items()},
    }
    if labels.codes is not None:
        codes = labels.codes[rows]
        row |= learners.confidence(found.predicted, codes)
        row["majority"] = float(codes.bincount().max()) / len(codes)
    else:
        residuals = Y - found.predicted
        row["r2"] = 1 - float(residuals.square().sum() / (Y - Y.mean(0)).square().sum())
        if Y.shape[1] == 1:
            row |= learners.outliers(X, residuals[:, 0])
    return row


def _neighbours(sample: Sample, labels: Labels, rows: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Shift -> targets so much later in the same batch, and whether there are any."""
    found = {}
    n = len(sample.block)
    for shift in learners.SHIFTS:
        other = (rows + shift).clamp(0, n - 1)
        there = (sample.block[other] == sample.block[rows]) & (other == rows + shift)
        found[shift] = (labels.columns[other], there)
    return found


def _leading(sample: Sample, labels: Labels) -> dict[str, Any]:
    """Does one feature alone give the target away? Share of variance of every feature that the target explains.

    For classes the share of a feature's variance between the classes; for numbers the squared correlation.

    Returns:
        index of the best feature, first, second, median (shares), neighbours (mean correlation of adjacent features:
        high for series and images), n.
    """
    rows = sample.first
    if sample.tokens or labels.summary_only or len(rows) < FEWEST or sample.inputs.shape[1] < 3:
        return {}
    if labels.codes is None and labels.columns.shape[1] != 1:
        return {}
    X = sample.inputs[rows].double()
    X = X - X.mean(0)
    total = X.square().sum(0)
    moving = total > 1e-12 * total.max().clamp_min(1e-30)
    if int(moving.sum()) < 3:
        return {}
    share = torch.where(moving, _explained(X, rows, labels) / total.clamp_min(1e-300), 0.0)
    best = share.argsort(descending=True)
    size = X.norm(dim=0).clamp_min(1e-30)
    adjacent = ((X[:, 1:] * X[:, :-1]).sum(0) / (size[1:] * size[:-1]))[moving[1:] & moving[:-1]]
    return {
        "index": int(best[0]),
        "first": float(share[best[0]]),
        "second": float(share[best[1]]),
        "median": float(share[moving].median()),
        "neighbours": float(adjacent.mean()) if len(adjacent) else 0.0,
        "n": len(rows),
    }


def _explained(X: Tensor, rows: Tensor, labels: Labels) -> Tensor:
    """(d,) sum of squares of centred features that the target explains."""
    if labels.codes is None:
        y = labels.columns[rows, 0].double()
        y = y - y.mean()
        return (X * y[:, None]).sum(0).square() / y.square().sum().clamp_min(1e-300)
    codes = labels.codes[rows]
    counts = torch.bincount(codes).double().clamp_min(1)
    sums = torch.zeros(len(counts), X.shape[1], dtype=torch.double).index_add_(0, codes, X)
    return (sums.square() / counts[:, None]).sum(0)
