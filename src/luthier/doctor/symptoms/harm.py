"""Did the training suffer? Many numbers are only sick when the loss shows it."""

from __future__ import annotations

import math

from luthier.doctor.symptoms.facts import baseline, loss_curve
from luthier.doctor.symptoms.objectives import loss_calls
from luthier.doctor.symptoms.paths import Graph
from luthier.doctor.vitals import Vitals

FITTED = 0.8  # this far from the constant answer towards 0, a training has plainly learnt


def harm(vitals: Vitals) -> str:
    """What the loss suffered, as a clause with numbers; "" when nothing is seen.

    In order of gravity: not finite, ends above the constant answer, shot up on the way, never left the constant answer.
    """
    curve, base = loss_curve(vitals), baseline(vitals)
    if curve is None or base is None:
        return "the loss was never finite" if _never_finite(vitals) else ""
    if curve.lost_at is not None:
        return f"the loss is not finite from step {curve.lost_at} on"
    if several_models(vitals):
        return ""
    level = max(curve.start, base.value)
    if curve.end > 1.1 * level + 2 * curve.noise / len(curve.values) ** 0.5:
        return f"the loss ends at {curve.end:.3g}, above its start ({curve.start:.3g}) and above a constant answer"
    shot_up = curve.peak > 1.5 * level + 4 * curve.noise and len(curve.values) >= 10
    if shot_up and not (curve.end < curve.start and _chases_itself(vitals)):
        return f"the loss shot up from {curve.start:.3g} to {curve.peak:.3g}"
    if len(curve.values) >= 30 and base.progress(curve.end) < 0.1:
        return f"the loss ({curve.end:.3g}) never got clearly below a constant answer ({base.value:.3g})"
    return ""


def _chases_itself(vitals: Vitals) -> bool:
    """Some term compares two answers of the model, as codes with a codebook: it rises as soon as these come apart."""
    graphs = [Graph.of([look]) for look in vitals.looks[:3]]
    calls = [(graph, call.target) for graph in graphs for call in loss_calls(graph)]
    return any(target is not None and graph.is_prediction(target) for graph, target in calls)


def several_models(vitals: Vitals) -> bool:
    """More than one model is watched: losses that work against each other need not fall."""
    return vitals.anatomy is not None and len(vitals.anatomy.model_types) > 1


def _never_finite(vitals: Vitals) -> bool:
    """Hardly a loss was finite, and a look confirms that these were no missing values."""
    roots = [look.nodes[i].stats for look in vitals.looks for i in look.roots if 0 <= i < len(look.nodes)]
    sick = any((stats.nonfinite or 0.0) > 0 for stats in roots if stats is not None)
    return any(map(math.isinf, vitals.steps.loss)) or (sick and bool(vitals.steps.loss))
