"""Remedies for output and loss that do not fit each other."""

from __future__ import annotations

from luthier.doctor.findings import Finding, Remedy
from luthier.doctor.remedies.cures import first_module, number, places, scale_lr, word, written


def softmax_before_ce(finding: Finding) -> tuple[Remedy, ...]:
    """Raw logits into the loss."""
    layer = first_module(finding, "head")
    if word(finding, "op") == "sigmoid":
        return (
            written(
                "Give the loss the raw scores: binary_cross_entropy_with_logits applies the sigmoid itself.",
                "- loss = F.binary_cross_entropy_with_logits(torch.sigmoid(score), y)\n"
                "+ loss = F.binary_cross_entropy_with_logits(score, y)",
            ),
        )
    name = word(finding, "op") or "softmax"
    return (
        written(
            f"Give the loss the raw logits, without {name}: cross_entropy applies log-softmax itself. Use softmax "
            "only to read probabilities afterwards.",
            f"- return F.{name}(self.{layer}(x), dim=1)\n+ return self.{layer}(x)",
        ),
        written(
            "Or keep the probabilities and take their negative log-likelihood.",
            "- loss = F.cross_entropy(p, y)\n+ loss = F.nll_loss(torch.log(p.clamp_min(1e-8)), y)",
        ),
    )


def softmax_wrong_dim(finding: Finding) -> tuple[Remedy, ...]:
    """The dimension of the classes or keys."""
    dim = number(finding, "dim")
    old = f"dim={dim:.0f}" if dim is not None else "dim=0"
    right = number(finding, "right_dim", "expected_dim")
    new = f"dim={right:.0f}" if right is not None else "dim=-1"
    return (
        written(
            f"Let the softmax in {places(finding, 'the model')} run over the classes (in attention: over the keys), "
            "not over the batch: examples must not compete with each other.",
            f"- softmax(x, {old})\n+ softmax(x, {new})",
        ),
    )


def wrong_loss(finding: Finding) -> tuple[Remedy, ...]:
    """A table of tasks and losses."""
    wanted = word(finding, "wanted", "suggested_loss", "expected") or ""
    code = {
        "cross_entropy": "+ loss = F.cross_entropy(logits, y)  # logits (n, classes), y (n,) whole numbers",
        "binary_cross_entropy_with_logits": "+ loss = F.binary_cross_entropy_with_logits(logits, y.float())",
        "mse_loss": "+ loss = F.mse_loss(prediction, y)",
    }
    table = (
        "  # one class of several: F.cross_entropy(logits, y), y (n,) whole numbers\n"
        "  # yes or no, or several labels at once: F.binary_cross_entropy_with_logits(logits, y.float())\n"
        "  # a number: F.mse_loss(prediction, y), shapes equal"
    )
    return (
        written(
            f"Use {wanted or 'the loss of this kind of task'}: the loss must be least exactly where the answer is "
            "right.",
            code.get(wanted, table),
        ),
    )


def output_range_mismatch(finding: Finding) -> tuple[Remedy, ...]:
    """No activation on the output, or scaled targets."""
    layer = first_module(finding, "head")
    return (
        written(
            "Take the activation behind the last layer away: the output must be able to take every value that the "
            "targets have.",
            f"- return torch.relu(self.{layer}(x))\n+ return self.{layer}(x)",
        ),
        written(
            "Or bring the targets into the range of the output and undo that when predicting.",
            "+ y = (y - y_train.min()) / (y_train.max() - y_train.min())  # for a sigmoid",
        ),
    )


def shape_broadcast(finding: Finding) -> tuple[Remedy, ...]:
    """Equal shapes."""
    prediction, target = (finding.numbers.get(name) for name in ("prediction_shape", "target_shape"))
    shapes = f"  # {_shape(prediction)} and {_shape(target)}" if prediction and target else ""
    return (
        written(
            "Make the shapes of prediction and target equal: now every prediction is compared with every target of "
            "the batch, and the best answer is the mean.",
            f"- loss = F.mse_loss(model(x), y){shapes}\n+ loss = F.mse_loss(model(x).squeeze(-1), y)",
        ),
        written(
            "Check it in the loop, since broadcasting is silent.",
            "+ if prediction.shape != y.shape:\n+     raise ValueError((prediction.shape, y.shape))",
        ),
    )


def _shape(value: object) -> str:
    return str(tuple(value)) if isinstance(value, (list, tuple)) else str(value)


def loss_scale(finding: Finding) -> tuple[Remedy, ...]:
    """The mean, without a factor."""
    factor = number(finding, "factor", "scale")
    summed = "- loss = F.cross_entropy(logits, y, reduction='sum')\n+ loss = F.cross_entropy(logits, y)"
    scaled = f"- loss = {factor:g} * loss_fn(model(x), y)\n+ loss = loss_fn(model(x), y)" if factor else ""
    lr = scale_lr(finding, 1 / factor, "it undoes the factor") if factor and factor > 0 and factor != 1 else None
    return (
        written(
            "Take the mean over the batch and leave other factors out: the size of the loss sets the size of every "
            "step.",
            scaled or summed,
        ),
        *((lr,) if lr else ()),
        written(
            "When accumulating over k batches divide each loss by k, once.",
            "  loss = loss_fn(model(x), y) / k\n  loss.backward()",
        ),
    )
