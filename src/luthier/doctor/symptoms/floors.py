"""A floor under the loss: clamped, rectified or turned back (flooding) at a level where it still has much to teach."""

from __future__ import annotations

from luthier.doctor.findings import Finding
from luthier.doctor.symptoms.courses import Course
from luthier.doctor.symptoms.facts import loss_node, node_of
from luthier.doctor.symptoms.harm import FITTED
from luthier.doctor.vitals import Look, Node, Vitals

_FLOORS = {"clamp", "clip", "clamp_min", "relu", "abs", "maximum", "max", "threshold", "leaky_relu", "softplus"}
_BETWEEN = {"sub", "add", "mul", "div", "mean", "sum"}
_SOURCE = "Ishida et al. 2020, Do We Need Zero Training Loss After Achieving Zero Training Error? (flooding)"


def floored(vitals: Vitals, course: Course) -> Finding | None:
    """An operation behind the loss lifts it where it is small, and there the loss stands, far from fitted."""
    curve = course.curve
    values = zip(curve.steps, curve.smooth, strict=True)
    reached = next((step for step, value in values if value <= curve.end + curve.noise), vitals.n_steps)
    late = [look for look in vitals.looks if look.step >= min(reached, 0.5 * vitals.n_steps)]
    seen = [node for look in late if (node := _lifted(look)) is not None]
    if len(seen) < max(2, 0.3 * len(late)) or course.base.assumed:
        return None
    if not course.flat or course.end > FITTED:
        return None
    level, op = course.curve.end, seen[-1].op
    return Finding(
        "plateau",
        "warning",
        f"The loss stands at {level:.3g} because {op} holds it there: examples (or batches) that are below it teach "
        "nothing, or unteach what was learnt.",
        (f"at {len(seen)} of {len(late)} late looks {op} made the loss larger than it was",),
        onset=late[0].step,
        certainty=0.75,
        numbers={"level": level, "progress": course.end},
        source=_SOURCE,
    )


def _lifted(look: Look) -> Node | None:
    """The operation between the loss and backward() whose result is larger than what it was given."""
    loss = loss_node(look)
    for node in look.nodes if loss is not None else ():
        given = node_of(look, node.arguments[0].source) if node.op in _FLOORS and node.arguments else None
        if given is None or loss is None or not _behind(look, loss, given):
            continue
        before, after = given.stats, node.stats
        if before is None or after is None or before.mean is None or after.mean is None:
            continue
        if after.mean > before.mean + 0.01 * abs(before.mean):
            return node
    return None


def _behind(look: Look, loss: Node, node: Node) -> bool:
    """This is the loss, or was made from it and numbers alone."""
    while node.index != loss.index:
        above = node_of(look, node.arguments[0].source) if node.arguments else None
        if node.op not in _BETWEEN or above is None or above.index >= node.index:
            return False
        node = above
    return True
