"""The harm that too large steps do: a loss that jumps, swings or runs away, weights that grow, units that die."""

from __future__ import annotations

import itertools
import math

from luthier.doctor.symptoms.activations import dead_at_first, place_of, readings
from luthier.doctor.symptoms.facts import LossCurve, baseline, middle
from luthier.doctor.symptoms.harm import FITTED, harm
from luthier.doctor.symptoms.layers import RECTIFIERS, RECURRENT, SQUASHING, layers, update_ratio
from luthier.doctor.symptoms.outcomes import data_allow_more
from luthier.doctor.vitals import Vitals


def update_ratios(vitals: Vitals) -> list[tuple[int, float]]:
    """(step, median over weight matrices of update over weight) of all looks after the first step."""
    found = [(look.step, update_ratio(vitals, look)) for look in vitals.looks if look.step > 0]
    return [(step, ratio) for step, ratio in found if ratio is not None]


def hurt_by_steps(vitals: Vitals, curve: LossCurve, high: float) -> str:
    """The harm as a clause; a loss that merely never fell counts only with units that died or a loss that jumped."""
    told = harm(vitals)
    if "not finite" in told and high < 0.5 and max(curve.values[-1], curve.peak) < 2 * curve.start:
        return ""  # nothing grew before: a bad operation made it, not the size of the steps
    base = baseline(vitals)
    learnt = base.progress(curve.end) if base is not None else None
    span = base.value - base.floor if base is not None else math.inf
    if told and "never got" not in told:
        return "" if "shot up" in told and _got_over(curve, learnt) else told
    broken = _broken_units(vitals)
    if learnt is not None and learnt < 0.6 and broken:
        return broken
    grown = _growth(vitals)
    if broken and grown > 3 and high > 0.1:
        return f"the weights grew {grown:.1f} times within 20 steps, and {broken}"
    if told and high > 0.1 and curve.peak > 1.25 * max(curve.start, base.value if base else 0.0):
        return told
    if told and high > 0.05 and grown > 3:
        return f"the weights grew {grown:.1f} times within 20 steps, and {told}"
    poor = learnt is not None and (learnt < 0.6 or (learnt < FITTED and data_allow_more(vitals)))
    if learnt is not None and poor and high > 0.1 and grown > 3:
        return f"the weights grew {grown:.1f} times within 20 steps, with the loss {learnt:.0%} of the way to perfect"
    if learnt is not None and learnt < FITTED and high > 0.1 and grown > 3 and (lapse := _lapse(curve)) > 0.2 * span:
        return f"the weights grew {grown:.1f} times within 20 steps, and the loss came back up by {lapse:.2g}"
    if learnt is not None and learnt < 0.8 and high > 0.3 and late_ratio(vitals) > 0.1:
        return f"steps stay that large to the end, with the loss {learnt:.0%} of the way to a perfect answer"
    if learnt is not None and learnt < 0.5 and high > 0.05 and late_ratio(vitals) > 0.03 and curve.noise > 0.2 * span:
        return f"the loss swings by {curve.noise:.2g} from step to step without getting better"
    return ""


def _lapse(curve: LossCurve) -> float:
    """How far the smoothed loss rose above the lowest that it had been before."""
    lowest, most = math.inf, 0.0
    for value in curve.smooth:
        lowest = min(lowest, value)
        most = max(most, value - lowest)
    return most


def _got_over(curve: LossCurve, learnt: float | None) -> bool:
    """The loss overshot in the first tenth of the training, as momentum lets it, and was fitted in the end."""
    start = max(len(curve.values) // 10, 1)
    calm = max(curve.smooth[start:], default=curve.peak) < curve.start
    return learnt is not None and learnt > FITTED and calm and not ran_away_at(curve)


def _growth(vitals: Vitals) -> float:
    """How many times larger the weight matrices became within the first 20 steps (median over them)."""
    first = next((look for look in vitals.looks if look.step == 0), None)
    later = [look for look in vitals.looks if 5 <= look.step <= 25]
    if first is None or not later:
        return 1.0
    pairs = [(layer.at(first.weight), layer.at(later[-1].weight)) for layer in layers(vitals, first)]
    return middle([after / before for before, after in pairs if before and after is not None], 1.0)


def late_ratio(vitals: Vitals) -> float:
    """Update over weight norm at the last looks."""
    return middle([ratio for _, ratio in update_ratios(vitals)[-5:]])


def _broken_units(vitals: Vitals) -> str:
    """Units that worked at step 0 and died or saturated in training."""
    for series in readings(vitals, lambda node: node.op in RECTIFIERS | SQUASHING | RECURRENT).values():
        first, last = series[0].stats, series[-1].stats
        if dead_at_first(series) < 0.3 and (last.dead or 0.0) > 0.7:
            return f"{last.dead:.0%} of the units of {place_of(series[-1])} died"
        if (first.flat or 0.0) < 0.3 and (last.flat or 0.0) > 0.8:
            return f"{last.flat:.0%} of {place_of(series[-1])} became saturated"
    return ""


def ran_away_at(curve: LossCurve) -> int:
    """Step from which the loss at least doubles over 4 successive steps each higher than the last; 0 when it does not.

    The sign of gradient descent beyond its limit of stability, lr > 2 / curvature: errors grow geometrically.
    """
    values = curve.values[:200]
    for i in range(len(values) - 4):
        run = values[i : i + 5]
        if all(b > 1.15 * a for a, b in itertools.pairwise(run)) and run[-1] > 2 * run[0] and run[-1] > 2 * curve.start:
            return max(curve.steps[i], 1)
    return 0
