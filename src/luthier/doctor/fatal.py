"""What ends a trial at once: findings after which no further step can bring anything.

Stricter than the doctor's rules, which may be wrong now and then: here a good training would be lost. A jump of the
loss that falls again, a slow start and a warm-up are none of these.
"""

from __future__ import annotations

from statistics import median

from luthier.doctor.symptoms.constant import constant_output
from luthier.doctor.symptoms.facts import baseline, loss_curve
from luthier.doctor.symptoms.layers import ratios
from luthier.doctor.vitals import Look, Vitals

AFTER = 20
"""Losses in a row that are as bad before a training counts as diverged."""

WORSE, WORSE_UNKNOWN = 3.0, 30.0
"""How many times the loss of a constant answer, and of the start, they all are; the latter where no targets are known.

Good trainings with steep learning rates read up to 5 times that for some steps, and fall again.
"""

HOPELESS, SOON = 100.0, 5
"""So many times as much ends a training after five losses."""

CONSTANT = 1e-6
LOOKS = 5
"""Looks in a row, at other batches, that must find a network dead."""

STILL = 1e-4
"""Part of their size that all steps together move the weights by, below which nothing can be learnt."""


def fatal(vitals: Vitals, total_steps: int) -> str | None:
    """Why a training cannot become anything, in a sentence; None while it may.

    Args:
        vitals: the first losses and the latest ones, the latest looks, and what the rules about losses need.
        total_steps: of the whole training.
    """
    return diverged(vitals) or dead(vitals) or still(vitals, total_steps)


def diverged(vitals: Vitals) -> str | None:
    """The loss is far above its start and a constant answer, has been for many steps, and does not fall."""
    curve, base = loss_curve(vitals), baseline(vitals)
    if curve is None or base is None:
        return None
    level = max(curve.start, base.value)
    late = curve.values[-AFTER:]
    worse = level * (WORSE_UNKNOWN if base.assumed else WORSE)
    falls = median(late[AFTER // 2 :]) < median(late[: AFTER // 2]) if len(late) == AFTER else True
    if (falls or min(late) < worse) and min(late[-SOON:]) < HOPELESS * level:
        return None
    constant = "" if base.assumed else f"; a constant answer would cost {base.value:.3g}"
    return f"diverged: the loss is {late[-1]:.3g} at step {vitals.n_steps} after a start of {curve.start:.3g}{constant}"


def dead(vitals: Vitals) -> str | None:
    """Every input gets the same answer, and weights get no gradient at all: nothing that is learnt could change that.

    Weights of zero in the last layer look so too, but before the first step only.
    """
    late = vitals.looks[-LOOKS:]
    if len(late) < LOOKS or not all(is_cut_off(look) for look in late):
        return None
    found = constant_output(vitals)
    if not isinstance(found, list) or not found:
        return None
    return (
        f"dead network: every input gets the same answer and weights get no gradient "
        f"(looked at {LOOKS} times, steps {late[0].step + 1} to {late[-1].step + 1})"
    )


def is_cut_off(look: Look) -> bool:
    """Whether outputs are the same for every example, and the gradient of some weights is exactly zero."""
    told = [look.nodes[index].stats for index in look.outputs]
    same = [stats is not None and stats.across is not None and stats.across < CONSTANT for stats in told]
    return bool(same) and all(same) and any(norm == 0 for norm in look.grad)


def still(vitals: Vitals, total_steps: int) -> str | None:
    """Steps so small that all of them together, at the highest learning rate, leave the weights where they are."""
    moves = []
    for look in vitals.looks:
        found = ratios(vitals, look)
        if found and look.lr and look.lr[0] > 0:
            moves.append(max(found) * vitals.optimizers[-1].groups[0]["lr"] / look.lr[0])
    if len(moves) < LOOKS or max(moves) * total_steps >= STILL:
        return None
    return (
        f"nothing learned: a step moves the weights by at most {max(moves):.1e} of their size, all {total_steps} steps "
        f"together by {max(moves) * total_steps:.1e}; lr {vitals.looks[-1].lr[0]:.2g} is too low"
    )
