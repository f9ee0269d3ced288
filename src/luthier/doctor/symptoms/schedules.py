"""Step sizes that the program cuts down itself: clipping, schedules; and steps that wait for data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import median

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms.facts import baseline, batch_size, progress
from luthier.doctor.symptoms.harm import FITTED
from luthier.doctor.symptoms.objectives import terms
from luthier.doctor.symptoms.paths import graphs
from luthier.doctor.vitals import Look, Vitals

_ADAPTIVE = ("Adam", "RMSprop", "Adagrad", "Adadelta", "Lion", "LBFGS", "Adafactor")
_COLLAPSED = 0.01
"""Share of its peak below which a learning rate moves hardly anything: healthy schedules get there at the very end.

Twice as much is early within the first quarter of the steps, where little is learnt.
"""


def grad_clip_too_small(vitals: Vitals) -> list[Finding] | NotSeen:
    """Clipping cuts nearly every step to a tiny norm: the size of the gradient is lost, the step is too small."""
    clips = [pair for look in vitals.looks if (pair := _clip(look)) is not None]
    if len(clips) < 3:
        return NotSeen(
            "gradients before and after clipping were seen at fewer than three looks: train a few steps more"
        )
    scale = _amp_scale(vitals)
    ratios = [after * scale / before for before, after in clips]
    cut = [ratio for ratio in ratios if ratio < 0.99]
    middle = median(ratios)
    if len(cut) < 0.9 * len(ratios) or middle > 0.2 or _is_rescaling(ratios, clips):
        return []
    limit, norm = median(after for _, after in clips), median(before for before, _ in clips) / scale
    movement = _movement(vitals)
    adaptive = any(name in row.type for row in vitals.optimizers for name in _ADAPTIVE)
    tiny = movement is not None and movement < 1e-3
    base, came = baseline(vitals), progress(vitals) or 0.0
    poor = not adaptive and base is not None and not base.assumed and came < FITTED
    slow = tiny or movement is None or poor  # adaptive steps do not depend on the gradient's size
    absurd = middle <= 0.01 and limit <= 5e-3  # nobody means such a limit, whatever the optimizer makes of it
    grave = absurd or (middle <= 0.01 and slow) or (not adaptive and middle <= 0.1 and tiny)
    evidence = [f"clipped at {len(cut)} of {len(ratios)} looks, to {middle:.2g} of the norm (median), {limit:.3g}."]
    if movement is not None:
        evidence.append(f"a step changes the weights by {movement:.1e} of their norm.")
    return [
        Finding(
            symptom="grad_clip_too_small",
            severity="warning" if grave else "info",
            cause=f"clipping cuts nearly every gradient, from a norm of about {norm:.3g} to {limit:.3g}: "
            "the step no longer depends on the gradient's size" + (" and is far too small." if grave and slow else "."),
            evidence=tuple(evidence),
            onset=vitals.looks[0].step,
            certainty=0.95 if middle <= 0.05 else 0.8,
            numbers={"ratio": middle, "limit": limit, "norm": norm},
            source="Pascanu et al. 2013: the threshold is set from the average norm of the gradient.",
        )
    ]


def _clip(look: Look) -> tuple[float, float] | None:
    """Total gradient norm before and after clipping, over the parameters that have both."""
    pairs = [
        (before, after)
        for before, after in zip(look.grad_before_clip, look.grad, strict=False)
        if before is not None and after is not None
    ]
    before = math.sqrt(sum(item[0] ** 2 for item in pairs))
    after = math.sqrt(sum(item[1] ** 2 for item in pairs))
    known = bool(pairs) and math.isfinite(before) and before > 0 and 0 < after < math.inf  # no clipping leaves 0
    return (before, after) if known else None


def _amp_scale(vitals: Vitals) -> float:
    """The factor of a GradScaler, by which gradients are larger before they are unscaled."""
    scales = [part.amp for graph in graphs(vitals)[:1] for root in graph.roots for part in terms(graph, root)]
    return max(scales, default=1.0)


def _is_rescaling(ratios: Sequence[float], clips: Sequence[tuple[float, float]]) -> bool:
    """The program divides all gradients by one number (accumulation, unscaling): then the ratio never changes."""
    steady = max(ratios) - min(ratios) < 1e-3 * max(ratios)
    norms = [before for before, _ in clips]
    power = abs(math.log2(max(median(ratios), 1e-300)) % 1) < 1e-3
    return steady and (power or max(norms) > 1.05 * min(norms))


def _movement(vitals: Vitals) -> float | None:
    """Median size of a step relative to the weights it changes."""
    found = []
    for look in vitals.looks:
        pairs = [(u, w) for u, w in zip(look.update, look.weight, strict=False) if u and w]
        weight = math.sqrt(sum(w * w for _, w in pairs))
        if weight > 0:
            found.append(math.sqrt(sum(u * u for u, _ in pairs)) / weight)
    return median(found) if found else None


def lr_schedule_collapse(vitals: Vitals) -> list[Finding] | NotSeen:
    """A schedule keeps the learning rate near nothing: it fell far too early (stepped per batch, wrong total), or its
    warm-up never ended (stepped per epoch)."""
    pairs = [(s, lr) for s, lr in zip(vitals.steps.step, vitals.steps.lr, strict=False) if math.isfinite(lr)]
    if len(pairs) < 20:
        return NotSeen("the learning rate of fewer than 20 steps was seen: train longer")
    decay = _own_decay(vitals)
    steps, rates = [step for step, _ in pairs], [lr / (1 + step * decay) for step, lr in pairs]
    peak = max(rates)
    if peak <= 0:
        return []
    poor = (progress(vitals) or 0.0) < FITTED
    for limit, least in ((_COLLAPSED, 0.4), *([(2 * _COLLAPSED, 0.75)] if poor else [])):
        low = _last_above(rates, limit * peak) + 1
        share = (len(rates) - low) / len(rates)
        if low > rates.index(peak) and share > least:
            return [_collapsed(vitals, steps, rates, low, share)]
    cycles = _cycles(rates, peak)
    if cycles >= 3 and not _is_triangular(rates):
        return [_swinging(steps, rates, cycles)]
    return [_never_warm(steps, rates)] if still_warming(vitals) else []


def _own_decay(vitals: Vitals) -> float:
    """`lr_decay` of the optimizer (Adagrad): at step t it divides the lr by 1 + t * lr_decay."""
    given = [row for row in vitals.optimizers if row.given] or vitals.optimizers
    return max((float(group.get("lr_decay") or 0.0) for row in given for group in row.groups[:1]), default=0.0)


def still_warming(vitals: Vitals) -> bool:
    """The learning rate only rose, up to the end, and most is still to be learnt: the warm-up outlasts the training."""
    rates = [lr for lr in vitals.steps.lr if math.isfinite(lr)]
    learnt = progress(vitals)
    if len(rates) < 20 or learnt is None or learnt > 0.6:
        return False
    rising = all(later >= earlier * (1 - 1e-9) for earlier, later in itertools.pairwise(rates))
    return rising and rates[-1] > rates[int(0.7 * len(rates))] * (1 + 1e-6)


def _never_warm(steps: Sequence[int], rates: Sequence[float]) -> Finding:
    return Finding(
        symptom="lr_schedule_collapse",
        severity="warning",
        cause=f"the learning rate is still being warmed up when training ends, from {rates[0]:.3g} to {rates[-1]:.3g}: "
        "the schedule is set for far more steps than it gets, likely in batches but stepped per epoch.",
        evidence=(f"it only rose, from step {steps[0]} to step {steps[-1]}, and never reached its peak.",),
        onset=0,
        certainty=0.85,
        numbers={"peak": max(rates), "final": rates[-1], "warming": True},
    )


def _last_above(rates: Sequence[float], limit: float) -> int:
    return max(position for position, rate in enumerate(rates) if rate >= limit)


def _collapsed(vitals: Vitals, steps: Sequence[int], rates: Sequence[float], low: int, share: float) -> Finding:
    at = steps[low]
    done, decay = _is_done(vitals, at), _own_decay(vitals)
    return Finding(
        symptom="lr_schedule_collapse",
        severity="info" if done else "critical",
        cause=f"the schedule drives the learning rate from {max(rates):.3g} to {rates[low] / max(rates):.2g} of it by "
        f"step {at}, so that the last {share:.0%} of the training changes hardly anything"
        + (" (the loss was low by then)." if done else ": it is stepped too often, or set for too few steps."),
        evidence=(
            f"lr {max(rates):.3g} at step {steps[rates.index(max(rates))]}, {rates[low]:.3g} at step {at}, "
            f"{rates[-1]:.3g} at step {steps[-1]}.",
            *([f"lr_decay={decay:g} of the optimizer divides it by 1 + {decay:g} t."] if decay else []),
        ),
        onset=at,
        certainty=0.95,
        numbers={"peak": max(rates), "final": rates[-1], "step": at, "share": share},
    )


def _is_done(vitals: Vitals, step: int) -> bool:
    """The loss had fallen to a twentieth of its start by a step: then there is little left to learn."""
    losses = [(s, v) for s, v in zip(vitals.steps.step, vitals.steps.loss, strict=False) if math.isfinite(v)]
    start = [value for _, value in losses[:5]]
    near = [value for s, value in losses if s <= step][-10:]
    return bool(start and near) and median(start) > 0 and median(near) < 0.05 * median(start)


def _cycles(rates: Sequence[float], peak: float) -> int:
    """How often the lr falls to nearly nothing and climbs back gradually (restarts jump back: that is on purpose)."""
    turns, below, climbed = 0, False, 0
    for earlier, later in itertools.pairwise(rates):
        if later < 0.02 * peak:
            below, climbed = True, 0
        elif below and later > earlier:
            climbed += 1
            if later > 0.5 * peak:
                turns += climbed >= 2
                below = False
    return turns


def _is_triangular(rates: Sequence[float]) -> bool:
    """Straight ramps up and down are a cyclic schedule, chosen as such; a cosine that runs on is not."""
    moves = [abs(later - earlier) for earlier, later in itertools.pairwise(rates) if later != earlier]
    return bool(moves) and median(moves) > 0.9 * max(moves)


def _swinging(steps: Sequence[int], rates: Sequence[float], cycles: int) -> Finding:
    return Finding(
        symptom="lr_schedule_collapse",
        severity="warning",
        cause=f"the learning rate swings {cycles} times between {max(rates):.3g} and nearly nothing: a schedule meant "
        "for the whole training runs through within a few steps, likely stepped per batch but set in epochs.",
        evidence=(f"{cycles} full swings within {steps[-1] - steps[0] + 1} steps.",),
        onset=steps[rates.index(min(rates))],
        certainty=0.85,
        numbers={"peak": max(rates), "cycles": cycles},
    )


def input_bottleneck(vitals: Vitals) -> list[Finding] | NotSeen:
    """The step waits for its data most of the time."""
    pairs = [(w, b) for w, b in zip(vitals.steps.wait_s, vitals.steps.busy_s, strict=False) if w > 0 and b > 0]
    if len(pairs) < 10:
        return NotSeen("the times of fewer than 10 steps were seen: train longer")
    share = median(wait / (wait + busy) for wait, busy in pairs)
    wait_s, busy_s = median(wait for wait, _ in pairs), median(busy for _, busy in pairs)
    gathering = 3e-5 * (batch_size(vitals) or 0)  # what a DataLoader takes for examples that lie in memory
    if wait_s < max(0.002, gathering) or share < (0.55 if wait_s > 0.003 else 0.7):
        return []
    return [
        Finding(
            symptom="input_bottleneck",
            severity="warning",
            cause=f"{share:.0%} of the time goes into waiting for the next batch ({wait_s * 1e3:.1f} ms, against "
            f"{busy_s * 1e3:.1f} ms of training).",
            evidence=(f"median over {len(pairs)} steps.",),
            onset=vitals.steps.step[0] if vitals.steps.step else 0,
            certainty=0.95,
            numbers={"share": share, "wait_s": wait_s, "busy_s": busy_s},
        )
    ]
