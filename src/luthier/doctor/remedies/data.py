"""Remedies for faults of the data."""

from __future__ import annotations

from luthier.doctor.findings import Finding, Remedy
from luthier.doctor.remedies import cures
from luthier.doctor.remedies.cures import number, patched, written
from luthier.patch import Scale, Set


def nan_input(finding: Finding) -> tuple[Remedy, ...]:
    """Find, drop or fill."""
    columns = finding.numbers.get("columns")
    which = f" (columns {', '.join(map(str, columns[:5]))})" if isinstance(columns, (list, tuple)) and columns else ""
    return (
        written(
            f"Drop the examples that hold NaN or Inf, or fill the gaps{which}: one of them spoils all weights.",
            "+ good = torch.isfinite(x.flatten(1)).all(dim=1)\n+ x, y = x[good], y[good]",
        ),
        written(
            "Fill by the column's mean when too many examples have gaps.",
            "+ x = torch.where(torch.isfinite(x), x, x.nanmean(0))",
        ),
        written(
            "Look at the preprocessing: a constant column divided by its spread of 0 gives NaN.",
            "- x = (x - x.mean(0)) / x.std(0)\n+ x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)",
        ),
    )


def unnormalised_input(finding: Finding) -> tuple[Remedy, ...]:
    """Zero mean and unit spread."""
    return (
        written(
            "Scale the inputs by mean and spread of the training data, the same for validation and test; in a Task: "
            "normalize=True.",
            "+ mean, std = x_train.mean(0), x_train.std(0).clamp_min(1e-6)\n+ x = (x - mean) / std",
        ),
        cures.normalise_layers("batch", "it repairs the scale behind the first layer"),
        cures.lower_lr(finding, "large inputs make large gradients"),
        written(
            "Or let the network normalise its input.",
            "  nn.Sequential(\n+     nn.BatchNorm1d(features),\n      nn.Linear(features, width),",
        ),
    )


def unscaled_target(finding: Finding) -> tuple[Remedy, ...]:
    """Zero mean and unit spread, undone when predicting."""
    mean, std = number(finding, "mean", "target_mean"), number(finding, "std", "target_std")
    known = mean is not None and std is not None and std > 0
    first = f"+ mean, std = {mean:.4g}, {std:.4g}" if known else "+ mean, std = y_train.mean(), y_train.std()"
    return (
        written(
            "Scale the targets to zero mean and unit spread, and undo it when predicting.",
            f"{first}\n+ loss = loss_fn(model(x), (y - mean) / std)\n+ prediction = model(x) * std + mean",
        ),
        written(
            "Or start the output's bias at the mean of the targets.",
            "+ nn.init.constant_(model.head.bias, y_train.mean().item())",
        ),
        cures.clip(finding),
        patched(
            "Use AdamW with a learning rate of 0.01: its steps do not grow with the targets.",
            Set(field="optimizer", value="adamw"),
            Set(field="lr", value=1e-2),
        ),
    )


def unshuffled_data(_: Finding) -> tuple[Remedy, ...]:
    """Shuffle every epoch."""
    return (
        written(
            "Shuffle the training data in every epoch: batches of one class pull the weights to and fro.",
            "- loader = DataLoader(data, batch_size)\n+ loader = DataLoader(data, batch_size, shuffle=True)",
        ),
        written(
            "With tensors of your own draw a new order in every epoch.",
            "+ order = torch.randperm(len(x))\n+ x, y = x[order], y[order]",
        ),
    )


def class_imbalance(_: Finding) -> tuple[Remedy, ...]:
    """Weights, sampling, another metric."""
    return (
        written(
            "Weigh the classes in the loss by the inverse of their frequency.",
            "+ counts = torch.bincount(y_train).float()\n+ weight = counts.sum() / (len(counts) * counts)\n"
            "+ loss_fn = nn.CrossEntropyLoss(weight=weight)",
        ),
        written(
            "Or draw rare classes more often.",
            "+ sampler = WeightedRandomSampler(1 / counts[y_train], num_samples=len(y_train))\n"
            "+ loader = DataLoader(data, batch_size, sampler=sampler)",
        ),
        written(
            "Judge by balanced accuracy, F1 or the recall of each class: accuracy hides rare classes.",
            "+ sklearn.metrics.balanced_accuracy_score(y_val, predicted)",
        ),
    )


def label_noise(finding: Finding) -> tuple[Remedy, ...]:
    """Look at the worst ones; resist fitting them."""
    return (
        written(
            "Look at the training examples with the largest loss and mend or drop wrong labels.",
            "+ losses = F.cross_entropy(model(x_train), y_train, reduction='none')\n"
            "+ print(losses.topk(50).indices)  # examples to look at",
        ),
        patched(
            "Smooth the labels by 0.1: certainty about wrong labels is then not rewarded.",
            Set(field="label_smoothing", value=0.1),
            code="+ loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1)",
        ),
        patched(
            "Stop when validation has not improved for 5 evaluations: right labels are learnt first.",
            Set(field="early_stopping", value=5),
        ),
        *cures.mix(finding, 0.4),
        patched("Drop 30% of the hidden units while training.", Set(field="dropout", value=0.3)),
        patched("Halve the width: less room to learn labels by heart.", Scale(field="model.width", factor=0.5, low=4)),
    )


def label_misaligned(finding: Finding) -> tuple[Remedy, ...]:
    """One order for both."""
    shift = number(finding, "shift")
    together = written(
        "Keep inputs and labels together: shuffle, filter and sort both by the same index.",
        "- x = x[torch.randperm(len(x))]\n+ order = torch.randperm(len(x))\n+ x, y = x[order], y[order]",
    )
    look = written(
        "Look at a few pairs as they reach the loss.",
        "+ for example, label in zip(x[:8], y[:8]):\n+     print(example, label)",
    )
    if not shift:
        return (together, look)
    cut = f"x[: -{shift:.0f}], y[{shift:.0f} :]" if shift > 0 else f"x[{-shift:.0f} :], y[: {shift:.0f}]"
    back = written(
        f"Shift the labels back by {abs(shift):.0f}: look for a roll, slice or window that moves only one of the two.",
        f"- x, y = x, y\n+ x, y = {cut}",
    )
    return (back, together, look)


def degenerate_labels(_: Finding) -> tuple[Remedy, ...]:
    """Look at how they are made."""
    return (
        written(
            "Look at how the targets are made: what reaches the loss is constant, cut off, or holds no information.",
            "+ print(y.dtype, y.shape, torch.unique(y, return_counts=True))",
        ),
        written(
            "Usual culprits: a cast that truncates, argmax or a comparison over the wrong dimension.",
            "- y = y.int()\n+ y = y.float()  # targets of a regression",
        ),
    )


def data_leakage(finding: Finding) -> tuple[Remedy, ...]:
    """Take the target out of the inputs, validation out of training."""
    feature = number(finding, "feature")
    column = f"{feature:.0f}" if feature is not None else "column"
    split = written(
        "Split before anything else and drop validation examples that also stand in the training data (also near "
        "copies: augmented, neighbouring in time, of the same person).",
        "+ seen = {row.numpy().tobytes() for row in x_train}\n"
        "+ fresh = torch.tensor([row.numpy().tobytes() not in seen for row in x_val])\n"
        "+ x_val, y_val = x_val[fresh], y_val[fresh]",
    )
    inputs = written(
        "Take the target, and everything computed from it, out of the inputs.",
        f"+ kept = [i for i in range(x.shape[1]) if i != {column}]\n+ x = x[:, kept]",
    )
    return (inputs, split) if feature is not None else (split, inputs)


def train_val_mismatch(_: Finding) -> tuple[Remedy, ...]:
    """One preprocessing, one random split."""
    return (
        written(
            "Prepare training and validation data by the same function with the training data's statistics.",
            "+ def prepare(x):\n+     return (x - x_train_mean) / x_train_std\n"
            "  x_train, x_val = prepare(x_train), prepare(x_val)",
        ),
        written(
            "Split at random (by class; by group or time where examples belong together), not by position.",
            "+ x_train, x_val, y_train, y_val = train_test_split(x, y, stratify=y)",
        ),
    )
