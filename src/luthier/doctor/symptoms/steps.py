"""The size of the steps: the learning rate against the weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms.facts import (
    LossCurve,
    baseline,
    batch_size,
    known,
    loss_curve,
    middle,
    progress,
)
from luthier.doctor.symptoms.growing import compounding
from luthier.doctor.symptoms.layers import ratios, total
from luthier.doctor.symptoms.overshooting import hurt_by_steps, ran_away_at, update_ratios
from luthier.doctor.symptoms.schedules import still_warming
from luthier.doctor.vitals import Optimizer, Vitals

_RATIO = "Karpathy, CS231n notes, ratio of weights:updates, usually about 1e-3"
_GOOD_RATIO = 3e-3


def optimizer_at_work(vitals: Vitals) -> Optimizer | None:
    """The optimizer that holds the parameters at the end."""
    given = [row for row in vitals.optimizers if row.given] or vitals.optimizers
    return given[-1] if given else None


def learning_rate(vitals: Vitals) -> float | None:
    """The largest learning rate that was used."""
    rates = known(list(vitals.steps.lr)) + [lr for look in vitals.looks for lr in known(list(look.lr))]
    if rates:
        return max(rates)
    row = optimizer_at_work(vitals)
    found = known([group.get("lr") for group in row.groups]) if row is not None else []
    return max(found) if found else None


# --- too high --------------------------------------------------------------------------------------------------------


def lr_too_high(vitals: Vitals) -> list[Finding] | NotSeen:
    """Steps too large for the weights (update ratios far above 1e-2) together with the harm that they do.

    Or a rate that rose in training, and undid what a smaller one had fitted.
    """
    series = update_ratios(vitals)
    curve = loss_curve(vitals)
    if curve is not None and (risen := _risen(vitals, curve)) is not None:
        return [risen]
    lr = learning_rate(vitals)
    if not series or curve is None:
        return NotSeen("no update of a weight was seen: watch the optimizer too, and pass the loss to watch.step")
    early = sorted(ratio for step, ratio in series if step <= 20) or sorted(ratio for _, ratio in series)
    first = middle([ratio for step, ratio in series if step <= 5])
    high = max(early[int(0.75 * (len(early) - 1))], first)
    runs_away = ran_away_at(curve)
    hurt = hurt_by_steps(vitals, curve, high)
    if not hurt or (high < 0.03 and not runs_away):
        return []
    certainty = (0.85 if high > 0.3 else 0.8 if high > 0.1 else 0.55) if not runs_away else 0.85
    certainty -= 0.2 * _explained(vitals)
    row = optimizer_at_work(vitals)
    numbers: dict[str, Any] = {"update_ratio": high}
    if lr is not None:
        numbers |= {"lr": lr, "suggested_lr": lr * min(_GOOD_RATIO / max(high, _GOOD_RATIO), 0.3)}
    worst = curve.lost_at is not None or curve.end > 1.1 * curve.start or high > 0.3
    return [
        Finding(
            "lr_too_high",
            "critical" if worst else "warning",
            f"The learning rate{f' {lr:.3g}' if lr is not None else ''} is too high: a step changes the weights by "
            f"{high:.1%} of their size (0.1% to 1% is usual), and {hurt}.",
            (
                f"update over weight norm, upper quartile of the first steps: {high:.2g}",
                *([f"optimizer: {row.type}"] if row is not None else []),
                *([f"the loss grew step by step from step {runs_away} on"] if runs_away else []),
            ),
            onset=_first_large(series, high, runs_away),
            certainty=certainty,
            numbers=numbers,
            source=_RATIO,
        )
    ]


def _risen(vitals: Vitals, curve: LossCurve) -> Finding | None:
    """The rate doubled after the loss had been fitted best, and most of what had been learnt was lost from then on."""
    base = baseline(vitals)
    if base is None or not curve.smooth:
        return None
    best_at = curve.steps[curve.smooth.index(min(curve.smooth))]
    until = math.inf if curve.lost_at is None else curve.lost_at
    rates = [(s, rate) for s, rate in zip(vitals.steps.step, vitals.steps.lr, strict=False) if math.isfinite(rate)]
    before = max((rate for step, rate in rates if step <= best_at), default=0.0)
    above = [(step, rate) for step, rate in rates if best_at < step < until and rate > 1.25 * before]
    highest = max((rate for _, rate in above), default=0.0)
    if before <= 0 or highest < 2 * before:
        return None
    onset = above[0][0]
    then = next((value for step, value in zip(curve.steps, curve.smooth, strict=True) if step >= onset), curve.end)
    learnt, kept, left = (base.progress(value) for value in (curve.best, then, curve.end))
    if learnt < 0.5 or kept < 0.5 * learnt or (left > 0.5 * learnt and curve.lost_at is None):
        return None
    return Finding(
        "lr_too_high",
        "critical",
        f"The learning rate rose to {highest:.3g} and undid what had been learnt: with at most {before:.3g} the loss "
        f"fell to {curve.best:.3g} by step {best_at}, and it ended at {curve.end:.3g}.",
        (
            f"the rate was above {before:.3g} from step {onset} on",
            f"learnt, of what there is between a constant answer and a perfect one: {learnt:.0%}, at the end "
            f"{max(left, 0):.0%}",
        ),
        onset=onset,
        certainty=0.85,
        numbers={"lr": highest, "suggested_lr": before},
        source=_RATIO,
    )


def _first_large(series: Sequence[tuple[int, float]], high: float, runs_away: int) -> int:
    """First step at which updates were large, or from which the loss ran away, whichever came first."""
    large = [step for step, ratio in series if ratio >= 0.5 * high][:1]
    return min([*large, *([runs_away] if runs_away else [])], default=series[0][0])


def _explained(vitals: Vitals) -> bool:
    """Something else makes steps large: data or activations far from unit scale, sums, kept gradients, noise."""
    if (batch_size(vitals) or 16) <= 4 or compounding(vitals) is not None:
        return True
    for look in vitals.looks[:3]:
        for argument in (look.inputs, look.targets):
            stats = argument.stats if argument is not None else None
            if stats is not None and not stats.integral and math.hypot(stats.mean or 0, stats.std or 0) > 10:
                return True
    return any(look.cleared is False for look in vitals.looks[1:4]) or any(
        node.attrs.get("reduction") == "sum" for look in vitals.looks[:1] for node in look.nodes
    )


# --- too low ---------------------------------------------------------------------------------------------------------


def lr_too_low(vitals: Vitals) -> list[Finding] | NotSeen:
    """Steps so small that the weights cannot get anywhere in this training, though their gradients are sound."""
    series = update_ratios(vitals)
    learnt = progress(vitals)
    if not series or learnt is None:
        return NotSeen("no update of a weight was seen: watch the optimizer too, and pass the loss to watch.step")
    moved = _path(series, vitals.n_steps)
    usual = middle([ratio for _, ratio in series])
    small = learnt <= 0.5 and moved <= 0.05 and usual <= 1e-3
    if vitals.n_steps < 20 or not (small or still_warming(vitals)) or not _sound(vitals):
        return []
    lr = learning_rate(vitals)
    row = optimizer_at_work(vitals)
    curve = loss_curve(vitals)
    fall = f"the loss went from {curve.start:.3g} to {curve.end:.3g}" if curve is not None else ""
    numbers: dict[str, Any] = {"update_ratio": usual, "moved": moved}
    if lr is not None:
        numbers |= {"lr": lr, "suggested_lr": lr * min(_GOOD_RATIO / max(usual, 1e-9), 1e5)}
    return [
        Finding(
            "lr_too_low",
            "critical" if moved < 1e-3 and learnt < 0.05 else "warning",
            f"The learning rate{f' {lr:.3g}' if lr is not None else ''} is too low: a step changes the weights by "
            f"{usual:.1e} of their size, all {vitals.n_steps} steps together by at most {moved:.1%}.",
            (
                fall,
                f"update over weight norm: {usual:.2g} where about 1e-3 is usual",
                *([f"optimizer: {row.type}"] if row is not None else []),
            ),
            onset=0,
            certainty=0.8 if moved < 0.02 else 0.65,
            numbers=numbers,
            source=_RATIO,
        )
    ]


def _path(series: Sequence[tuple[int, float]], n_steps: int) -> float:
    """Length of the way of the weights relative to their size: the sum of the update ratios over all steps.

    Looks are dense at first and sparse later, so that the gaps between them are filled with trapezes.
    """
    way = series[0][1] * (series[0][0] + 1)
    for (begin, first), (end, last) in itertools.pairwise(series):
        way += (end - begin) * (first + last) / 2
    return way + max(n_steps - 1 - series[-1][0], 0) * series[-1][1]


def _sound(vitals: Vitals) -> bool:
    """Gradients are there, not clipped to nothing, and no schedule has taken the learning rate away."""
    rates = known(list(vitals.steps.lr))
    if rates and rates[-1] < 0.05 * max(rates):
        return False
    sizes = [middle(ratios(vitals, look, "grad")) for look in vitals.looks]
    if middle(sizes) < 1e-5:
        return False
    cuts = []
    for look in vitals.looks:
        before, after = total(look.grad_before_clip), total(look.grad)
        if before and after:
            cuts.append(after / before)
    return not cuts or middle(cuts) > 0.2
