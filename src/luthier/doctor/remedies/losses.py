"""Remedies for output and loss that do not fit each other."""

from __future__ import annotations

from luthier.doctor.findings import Finding, Remedy
from luthier.doctor.remedies.cures import number, places, scale_lr, word, written


def softmax_before_ce(finding: Finding) -> tuple[Remedy, ...]:
    """Raw scores into the loss."""
    op, loss = word(finding, "op") or "softmax", word(finding, "loss") or "cross_entropy"
    again = "log-softmax" if loss == "cross_entropy" else "the sigmoid"
    place = finding.where[0] if finding.where and finding.where[0] != op else "at the end of forward"
    dim = ", dim=1" if "softmax" in op else ""
    module = {"softmax": "nn.Softmax(dim=1)", "log_softmax": "nn.LogSoftmax(dim=1)", "sigmoid": "nn.Sigmoid()"}.get(op)
    in_a_stack = f"\n- {module},  # as the last part of an nn.Sequential" if module else ""
    first = written(
        f"Give {loss} the raw scores, without {op}: it applies {again} itself. Use {op} only to read probabilities "
        "afterwards.",
        f"- return torch.{op}(logits{dim})  # {place}\n+ return logits{in_a_stack}",
    )
    if loss != "cross_entropy":
        return (first,)
    return (
        first,
        written(
            "Or keep the probabilities and take their negative log-likelihood.",
            "- loss = F.cross_entropy(p, y)\n+ loss = F.nll_loss(torch.log(p.clamp_min(1e-8)), y)",
        ),
    )


def softmax_wrong_dim(finding: Finding) -> tuple[Remedy, ...]:
    """The dimension of the classes or keys."""
    dim, shape = number(finding, "dim"), finding.numbers.get("shape")
    where = places(finding, "the model")
    if dim is None and shape:
        return (
            written(
                f"Tell the attention in {where} that the batch comes first.",
                "- nn.MultiheadAttention(width, heads)\n+ nn.MultiheadAttention(width, heads, batch_first=True)",
            ),
        )
    last = isinstance(shape, (list, tuple)) and dim == len(shape) - 1
    return (
        written(
            f"Let the softmax in {where} run over the classes (in attention: over the keys), so that what is summed or "
            "compared next adds up to 1; examples must not compete with each other.",
            f"- softmax(x, dim={dim or 0:.0f})\n+ softmax(x, dim={1 if last else -1})",
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
    op = word(finding, "op") or "relu"
    low, high = number(finding, "low"), number(finding, "high")
    place = finding.where[0] if finding.where and finding.where[0] != op else "at the end of forward"
    first = written(
        f"Take {op} behind the last layer away: the output must be able to take every value that the loss asks for.",
        f"- return torch.{op}(x)  # {place}\n+ return x",
    )
    if low is None or high is None:
        return (first,)
    return (
        first,
        written(
            "Or bring the targets into the range of the output, and undo that when predicting.",
            f"+ y = (y - {low:.4g}) / {high - low:.4g}  # the targets' range, for a sigmoid",
        ),
    )


def shape_broadcast(finding: Finding) -> tuple[Remedy, ...]:
    """Equal shapes."""
    ours, theirs = (finding.numbers.get(name) for name in ("prediction", "target"))
    if finding.where and not (ours and theirs):
        return (
            written(
                f"Give both tensors in {places(finding, 'forward')} the same number of dimensions first.",
                "- x = a + b\n+ x = a + b.squeeze(1)  # or a.unsqueeze(1): shapes must match from the right",
            ),
        )
    shapes = f"  # {_shape(ours)} and {_shape(theirs)}" if ours and theirs else ""
    longer = isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(theirs) > len(ours)
    fixed = "F.mse_loss(prediction, y.squeeze(-1))" if longer else "F.mse_loss(prediction.squeeze(-1), y)"
    return (
        written(
            "Make the shapes of prediction and target equal: now every prediction is compared with every target of "
            "the batch, and the best answer is the mean.",
            f"- loss = F.mse_loss(prediction, y){shapes}\n+ loss = {fixed}",
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
    factor = number(finding, "factor")
    known = f" (here {factor:.4g})" if factor else ""
    lr = scale_lr(finding, 1 / factor, "it undoes the factor") if factor and factor > 0 and factor != 1 else None
    return (
        written(
            f"Take the mean over the batch and leave other factors{known} out: the size of the loss sets that of every "
            "gradient.",
            "- loss = factor * loss_fn(model(x), y)  # reduction='sum' is a factor too\n+ loss = loss_fn(model(x), y)",
        ),
        written(
            "When accumulating over k batches divide each loss by k, once.",
            "  loss = loss_fn(model(x), y) / k\n  loss.backward()",
        ),
        *((lr,) if lr else ()),
    )
