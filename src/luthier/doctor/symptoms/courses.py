"""Where a training's loss went, between that of a constant answer and a perfect one, and what counts as good."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import itemgetter

from luthier.doctor.findings import NotSeen
from luthier.doctor.symptoms.facts import (
    Baseline,
    LossCurve,
    accuracies,
    baseline,
    epoch_losses,
    is_classification,
    loss_curve,
    loss_node,
)
from luthier.doctor.symptoms.harm import several_models
from luthier.doctor.symptoms.layers import first_look, layers
from luthier.doctor.symptoms.outcomes import data_allow_more, data_allow_no_more, majority
from luthier.doctor.vitals import Look, Node, Vitals

FEW = NotSeen("fewer than 30 training losses were seen: pass the loss to watch.step and train longer")


@dataclass(frozen=True)
class Course:
    """Loss curve, baseline and where the curve begins and ends between a constant answer (0) and perfect (1)."""

    curve: LossCurve
    base: Baseline
    begin: float
    end: float

    @property
    def flat(self) -> bool:
        """The last third falls by no more than its noise explains, or hardly and slower than before."""
        span = self.base.value - self.base.floor
        if not self.curve.falls:
            return self.curve.drop < 0.1 * span
        return self.curve.drop < 0.05 * span and not self.steady

    @property
    def steady(self) -> bool:
        """The last half falls throughout, its end brought a fair part (15%) of the whole fall, and it is no noise."""
        curve = self.curve
        levels = [curve.level(begin, begin + 1 / 6) for begin in (1 / 2, 2 / 3, 5 / 6)]
        throughout = levels[0] > levels[1] > levels[2]
        certain = curve.drop > (2.5 if throughout else 4) * curve.drop_error
        below = curve.end < self.base.value  # what fell down to the constant answer was no learning
        top = min(curve.start, self.base.value) if below else curve.start
        return certain and curve.drop > 0.15 * (top - curve.end)

    @property
    def at_its_steepest(self) -> bool:
        """Most of the whole fall came in the last third."""
        return self.curve.drop > 0.6 * (min(self.curve.start, self.base.value) - self.curve.end) > 0

    @property
    def stable(self) -> bool:
        """It stayed finite and never shot up."""
        ceiling = 1.5 * max(self.curve.start, self.base.value) + 4 * self.curve.noise
        return self.curve.lost_at is None and self.curve.peak < ceiling


def course_of(vitals: Vitals, least: int = 30) -> Course | None:
    """The course of a training; None with fewer losses than `least`, several models, or nothing to compare with."""
    curve, base = loss_curve(vitals), baseline(vitals)
    if curve is None or base is None or len(curve.values) < least or several_models(vitals):
        return None
    return Course(curve, base, base.progress(curve.start), base.progress(curve.end))


def lost_ground(vitals: Vitals, course: Course) -> str:
    """Training and validation of the last two epochs are both clearly worse than they had been, at no larger lr.

    Batches of one set at one learning rate only lose what was learnt when a swing of the weights undoes it; overfitting
    loses validation alone, harder examples lose training alone.
    """
    train, val = epoch_losses(vitals)
    if len(val) < 5 or course.base.assumed:
        return ""
    span = course.base.value - course.base.floor
    batches = len(course.curve.values) / len(val)
    clear = max(0.08 * span, 3 * course.curve.noise / math.sqrt(max(batches, 1)))
    best = [min(points, key=itemgetter(1)) for points in (train, val)]
    now = [min(value for _, value in points[-2:]) for points in (train, val)]
    risen = all(last - lowest > clear for last, (_, lowest) in zip(now, best, strict=True))
    rates = {step: lr for step, lr in zip(vitals.steps.step, vitals.steps.lr, strict=False) if lr is not None}
    before = [lr for step, lr in rates.items() if step <= best[0][0]]
    if not risen or (before and list(rates.values())[-1] > 1.05 * before[-1]):
        return ""
    return f"training had reached {best[0][1]:.3g} by step {best[0][0]} and is back at {now[0]:.3g}, validation with it"


def accurate(vitals: Vitals, limit: float = 0.8) -> bool:
    """Training or validation accuracy says that it has learnt, whatever the loss says."""
    return any(value is not None and value > limit for value in accuracies(vitals))


def learnt_most(vitals: Vitals, limit: float = 0.78) -> bool:
    """Most of the way from always answering the most frequent class to a perfect accuracy; 0.8 of ten even classes."""
    most = majority(vitals) or 0.0
    return most < 1 and accurate(vitals, most + limit * (1 - most))


def good_enough(vitals: Vitals, limit: float) -> bool:
    """Accurate, and small learners do not find much more in the data."""
    return accurate(vitals, limit) and not data_allow_more(vitals)


def poor_below(vitals: Vitals) -> float:
    """Progress below which a settled loss is poor: targets of regressions and of sequences hold noise of their own."""
    if data_allow_more(vitals):
        return 0.9
    if data_allow_no_more(vitals):
        return 0.0
    if not is_classification(vitals):
        return 0.4
    dense = any(
        len(node.arguments[0].shape) > 2
        or node.arguments[0].shape[0] > 1.5 * (look.batch_size or math.inf)
        or _at_every_place(look, node)
        or _shares(node)
        for look in vitals.looks[:3]
        if (node := loss_node(look)) is not None and node.arguments and node.arguments[0].shape
    )
    return 0.15 if dense else 0.6


def _at_every_place(look: Look, node: Node) -> bool:
    """As many answers as the inputs have places (tokens), although they were told as one row of targets."""
    shape = look.inputs.shape if look.inputs is not None else ()
    return len(shape) > 1 and shape[1] > 1 and node.arguments[0].shape[0] == shape[0] * shape[1]


def _shares(node: Node) -> bool:
    """Targets of a binary cross entropy between 0 and 1, such as pixels: their own entropy stays in the loss."""
    stats = node.arguments[1].stats if len(node.arguments) > 1 else None
    return node.op.startswith("binary_cross_entropy") and stats is not None and stats.integral is False


def narrow_layers(vitals: Vitals) -> list[str]:
    """Hidden layers with fewer units than outputs, or fewer than 4; a channel of a convolution is a whole map."""
    look = first_look(vitals) or (vitals.looks[0] if vitals.looks else None)
    chain = layers(vitals, look) if look is not None else []
    if len(chain) < 2:
        return []
    outputs = chain[-1].parameter.shape[0]
    return [
        f"{layer.place} ({layer.parameter.shape[0]})"
        for layer in chain[:-1]
        if len(layer.parameter.shape) == 2 and layer.parameter.shape[0] < max(min(outputs, 16), 4)
    ]
