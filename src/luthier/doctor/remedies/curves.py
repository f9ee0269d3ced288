"""Remedies for what the curves show: step size, time, capacity, regularisation, batch size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from luthier.doctor.findings import Finding, Remedy
from luthier.doctor.remedies import cures
from luthier.doctor.remedies.cures import number, patched, places, written
from luthier.patch import Scale, Set


def overfitting(finding: Finding) -> tuple[Remedy, ...]:
    """Augmentation, dropout, weight decay, label smoothing, early stopping, mixup, averaging, smaller net."""
    shape = finding.numbers.get("input_shape")  # of an example: images have three dimensions
    no_images = isinstance(shape, (list, tuple)) and len(shape) != 3
    return (
        *(() if no_images else _augmentations()),
        patched(
            "Drop 30% of the hidden units while training.",
            Set(field="dropout", value=0.3),
            code="  nn.ReLU(),\n+ nn.Dropout(0.3),",
        ),
        patched(
            "Decay the weights with 0.01: smaller weights make smoother functions.",
            Set(field="weight_decay", value=0.01),
            code="+ optimizer = ...(model.parameters(), lr=lr, weight_decay=0.01)",
        ),
        *cures.mix(finding, 0.2),
        patched(
            "Smooth the labels by 0.1, so that no example can be fitted to certainty.",
            Set(field="label_smoothing", value=0.1),
            code="+ loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1)",
        ),
        _stop_early(finding),
        cures.average_weights(),
        patched(
            "Drop half of the hidden units and decay the weights with 0.01.",
            Set(field="dropout", value=0.5),
            Set(field="weight_decay", value=0.01),
        ),
        patched("Halve the width of the network.", Scale(field="model.width", factor=0.5, low=4)),
        written("Collect more training data: nothing else helps as surely."),
    )


def _augmentations() -> tuple[Remedy, ...]:
    return (
        patched(
            "Augment images by small shifts, turns and changes of size: each epoch then shows other examples.",
            Set(field="augment", value=[{"name": "affine", "degrees": 10.0, "translate": 0.1, "scale": 0.1}]),
            code="+ x = torchvision.transforms.RandomAffine(degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1))(x)",
        ),
        patched(
            "Augment natural images by mirroring and cropping.",
            Set(field="augment", value=["flip", "crop"]),
            code="+ x = torchvision.transforms.RandomHorizontalFlip()(x)",
        ),
    )


def _stop_early(finding: Finding) -> Remedy:
    best = number(finding, "best_step")
    where = f" (step {best:.0f})" if best is not None else ""
    return patched(
        f"Stop when validation has not improved for 5 evaluations and keep the best weights{where}.",
        Set(field="early_stopping", value=5),
        code="+ if val_loss < best:\n+     best, kept = val_loss, copy.deepcopy(model.state_dict())",
    )


def underfitting(finding: Finding) -> tuple[Remedy, ...]:
    """Less regularisation, higher lr, longer, more capacity, which comes first where layers were seen to limit it."""
    larger = (
        cures.wider("the network may be too small for the data"),
        cures.deeper("the network may be too simple for the data"),
    )
    narrow = bool(finding.numbers.get("narrow"))
    return (
        *(larger if narrow else ()),
        cures.raise_lr(finding, "training is stable and has room"),
        cures.adaptive("it finds a step size for every weight"),
        cures.longer(3, "the loss has not come to its end"),
        cures.less_regularisation(),
        *(() if narrow else larger),
        cures.normalise_layers("batch", "it allows higher learning rates"),
        written(
            "Check the preprocessing: inputs at zero mean and unit spread, and that they still show what the labels "
            "are about.",
            "+ print(x.mean(0), x.std(0), x.min(), x.max())",
        ),
    )


def no_learning(finding: Finding) -> tuple[Remedy, ...]:
    """Find out whether it can learn at all, then the step size."""
    if finding.numbers.get("never_stepped"):
        return (written("Let the optimizer step after backward().", "  loss.backward()\n+ optimizer.step()"),)
    return (
        cures.raise_lr(finding, "the loss does not move"),
        cures.adaptive("it does not depend on the gradient's size"),
        cures.initialise("kaiming", "signals must reach both ends of the network"),
        cures.normalise_layers("batch", "signals must reach both ends of the network"),
        cures.less_regularisation(),
        cures.lower_lr(finding, "steps that are far too large do not learn either"),
        written(
            "Try to overfit one batch: if that fails the fault is in model, loss or loop; if it works, in data or "
            "step size.",
            "+ x, y = next(iter(loader))\n  for _ in range(200):\n      optimizer.zero_grad()\n"
            "      loss = loss_fn(model(x), y)\n      loss.backward()\n      optimizer.step()",
        ),
    )


def plateau(finding: Finding) -> tuple[Remedy, ...]:
    """Other step sizes, then capacity."""
    return (
        cures.raise_lr(finding, "larger steps leave a flat region"),
        cures.schedule("one-cycle", "a high phase crosses flat regions, the decay then settles"),
        cures.adaptive("it rescales directions that are flat"),
        cures.schedule("cosine", "a loss that stands still at a constant lr often falls when the lr does"),
        cures.normalise_layers("batch", "it smooths the loss surface"),
        cures.wider("the network may have reached what it can do"),
    )


def oscillating_loss(finding: Finding) -> tuple[Remedy, ...]:
    """Smaller steps, less noise."""
    return (
        cures.lower_lr(finding, "steps jump across the valley instead of into it"),
        cures.bigger_batch(4, "the mean over more examples is less noisy"),
        cures.schedule("cosine", "swings die out as the lr falls"),
        cures.clip(finding),
        cures.average_weights(),
        patched("Lower the momentum to 0.5.", Set(field="optimizer.momentum", value=0.5)),
    )


def lr_too_high(finding: Finding) -> tuple[Remedy, ...]:
    """Lower, by as much as was measured; warm-up; clipping."""
    return (
        cures.lower_lr(finding),
        *_other_rates(finding, min(cures.lr_factor(finding), 0.5), (0.1, 0.3, 0.01, 0.001)),
        cures.warm_up(),
        cures.clip(finding),
        cures.schedule("cosine", "a high start is fine when it comes down"),
        _range_test(),
    )


def lr_too_low(finding: Finding) -> tuple[Remedy, ...]:
    """Higher, by as much as was measured."""
    return (
        cures.raise_lr(finding),
        *_other_rates(finding, max(cures.lr_factor(finding), 2.0), (10.0, 3.0, 100.0, 1000.0)),
        cures.adaptive("it makes steps of about lr whatever the gradient's size"),
        patched(
            "Use one cycle up to ten times the learning rate.",
            Set(field="schedule", value="one-cycle"),
            Scale(field="lr", factor=10.0),
        ),
        _range_test(),
    )


def _other_rates(finding: Finding, first: float, factors: Sequence[float]) -> Iterator[Remedy]:
    """The two likeliest factors beside the first choice: at least twice as far or half as far as that."""
    others = [factor for factor in factors if abs(math.log(factor / first)) > math.log(1.9)]
    for factor in others[:2]:
        further = abs(math.log(factor)) > abs(math.log(first))
        why = "when that is not enough" if further else "a smaller change may be enough"
        yield cures.scale_lr(finding, factor, why)


def _range_test() -> Remedy:
    return written(
        "Measure which learning rate to start with: a range test takes seconds.", "+ luthier.find_lr(task, recipe)"
    )


def too_few_epochs(finding: Finding) -> tuple[Remedy, ...]:
    """Longer, or faster."""
    return (
        cures.longer(3, "the loss was still falling steadily when it ended"),
        cures.scale_lr(finding, 3.0, "the same way in fewer steps"),
        patched(
            "Use one cycle with three times the learning rate: it converges in fewer steps.",
            Set(field="schedule", value="one-cycle"),
            Scale(field="lr", factor=3.0),
        ),
        cures.smaller_batch(2, "twice as many updates in an epoch"),
    )


def batch_too_small(finding: Finding) -> tuple[Remedy, ...]:
    """More examples a step, or smaller steps."""
    return (
        cures.bigger_batch(8, "the gradient's noise falls with the root of the batch size"),
        cures.lower_lr(finding, "smaller steps average the noise over time"),
        written(
            "Where memory is short accumulate gradients over several batches.",
            "  loss = loss_fn(model(x), y) / 8\n  loss.backward()\n+ if (i + 1) % 8 == 0:\n"
            "+     optimizer.step()\n+     optimizer.zero_grad()",
        ),
        patched("Raise the momentum to 0.95.", Set(field="optimizer.momentum", value=0.95)),
        cures.average_weights(),
    )


def batch_too_large(_: Finding) -> tuple[Remedy, ...]:
    """More updates, or larger ones."""
    return (
        cures.smaller_batch(8, "an epoch then makes eight times as many updates"),
        patched(
            "Raise the learning rate with the batch size (linear scaling rule), with warm-up.",
            Scale(field="lr", factor=4.0),
            Set(field="warmup_frac", value=0.1),
            code="+ optimizer = ...(model.parameters(), lr=4 * lr)",
        ),
        cures.longer(4, "updates count, not epochs"),
    )


def too_much_regularisation(finding: Finding) -> tuple[Remedy, ...]:
    """The one that was found, all of them, then each alone."""
    dropout = patched("Lower the dropout to 0.1.", Set(field="dropout", value=0.1), code="+ nn.Dropout(0.1)")
    decay = number(finding, "weight_decay")
    less = f"from {decay:.3g} to {decay / 100:.1g}" if decay else "a hundredfold"
    lower = patched(
        f"Lower the weight decay {less}.",
        Scale(field="weight_decay", factor=0.01),
        code=f"+ optimizer = ...(model.parameters(), lr=lr, weight_decay={f'{decay / 100:.1g}' if decay else '1e-4'})",
    )
    penalty = patched(
        "Give the penalty a hundredth of its weight, or leave it out.",
        Set(field="l1", value=0.0),
        code="- loss = loss + strength * penalty\n+ loss = loss + 0.01 * strength * penalty",
    )
    labels = patched("Smooth labels by 0.1 at most.", Set(field="label_smoothing", value=0.1))
    by_number = {"p": dropout, "weight_decay": lower, "share": penalty, "label_smoothing": labels}
    found = tuple(remedy for name, remedy in by_number.items() if name in finding.numbers)
    return (
        *found,
        cures.less_regularisation(),
        *(remedy for remedy in (dropout, lower, penalty) if remedy not in found),
        patched("Train without augmentation.", Set(field="augment", value=[])),
        cures.wider("a larger network bears more regularisation"),
    )


def lr_schedule_collapse(finding: Finding) -> tuple[Remedy, ...]:
    """A schedule over the whole training, stepped as it counts."""
    if "warming" in finding.numbers:
        return (_stepped_per_batch(), cures.schedule("one-cycle", "it is laid over the actual number of steps"))
    return (
        patched(
            "Let the schedule span the whole training: step it once per epoch if it counts epochs, and give it the "
            "right total.",
            Set(field="schedule", value="cosine"),
            code="  for epoch in range(epochs):\n      for x, y in loader:\n          ...\n"
            "          optimizer.step()\n-         scheduler.step()\n+     scheduler.step()",
        ),
        patched("Keep the learning rate constant.", Set(field="schedule", value="constant")),
        cures.schedule("one-cycle", "it is laid over the actual number of steps"),
        patched("Let a step schedule decay more gently.", Set(field="schedule.gamma", value=0.5)),
    )


def _stepped_per_batch() -> Remedy:
    return patched(
        "Let the schedule span the whole training: step it after every batch if it counts batches, and give it the "
        "right total.",
        Set(field="schedule", value="one-cycle"),
        code="  for epoch in range(epochs):\n      for x, y in loader:\n          ...\n"
        "          optimizer.step()\n+         scheduler.step()\n-     scheduler.step()",
    )


def grad_clip_too_small(finding: Finding) -> tuple[Remedy, ...]:
    """A threshold near the usual norm."""
    usual, ratio = number(finding, "norm"), number(finding, "ratio")
    value = float(f"{usual:.2g}") if usual and usual > 0 else 1.0
    factor = cures.rounded(1 / ratio) if ratio and 0 < ratio < 0.5 else 10.0
    return (
        patched(
            f"Clip at {value:g}, about the usual gradient norm, so that only outliers are cut.",
            Set(field="clip_norm", value=value),
            Set(field="clip_value", value=None),
            code=f"+ torch.nn.utils.clip_grad_norm_(model.parameters(), {value:g})",
        ),
        patched(
            "Do not clip.",
            Set(field="clip_norm", value=None),
            Set(field="clip_value", value=None),
            code="- torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)",
        ),
        cures.scale_lr(finding, min(factor, 100.0), "it makes up for what the clipping takes away"),
    )


def small_batch_bn(finding: Finding) -> tuple[Remedy, ...]:
    """Statistics over more numbers, or over other axes."""
    layer = places(finding, "the batch norms")
    return (
        cures.bigger_batch(8, "batch norm needs some 16 examples or more for its statistics"),
        patched(
            f"Replace {layer} by group normalisation: it takes its statistics from each example alone.",
            Set(field="norm", value="group"),
            code="- nn.BatchNorm2d(channels)\n+ nn.GroupNorm(8, channels)",
        ),
        patched(
            f"Replace {layer} by layer normalisation.",
            Set(field="norm", value="layer"),
            code="- nn.BatchNorm1d(width)\n+ nn.LayerNorm(width)",
        ),
        patched("Do not split batches: each part is normalised alone.", Set(field="accumulate", value=1)),
        written("Drop the last batch when it is smaller.", "+ loader = DataLoader(data, batch_size, drop_last=True)"),
    )
