"""Do the labels belong to the inputs? Misaligned ones belong to other inputs (for noise see `noise`)."""

from __future__ import annotations

import math
from functools import partial

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms import facts
from luthier.doctor.symptoms.mixing import mixed
from luthier.doctor.symptoms.noise import FEWEST, NOTHING, label_noise
from luthier.doctor.symptoms.outcomes import (
    FEWEST_PAIRS,
    agreement,
    conflict,
    contrary,
    from_start,
    generalises,
    read,
    series,
)
from luthier.doctor.vitals import Vitals

__all__ = ["label_misaligned", "label_noise"]


def label_misaligned(vitals: Vitals) -> list[Finding] | NotSeen:
    """Targets that belong to other inputs: shifted in the batch, paired anew, unrelated, or inputs mixed by a view.

    Small cross-validated learners look at the sampled pairs. That they find nothing proves nothing by itself (parity,
    order in a sequence): it counts only when the network cannot generalise either.
    """
    n = read(vitals.data, "learn", "n")
    for look in (mixed, _repaired, _shifted, _unrelated):
        found = look(vitals)
        if found is not None:
            return [found]
    return NotSeen(NOTHING) if n is None and read(vitals.data, "repeats", "conflict") is None else []


_misaligned = partial(
    from_start,
    "label_misaligned",
    "Zhang et al. 2017, Understanding deep learning requires rethinking generalization (random labels)",
)


def _repaired(vitals: Vitals) -> Finding | None:
    """The same input came with other targets in other epochs."""
    found = conflict(vitals)
    _, z, n = agreement(vitals)
    if found is None or found[0] < 0.75 or (z >= 5 and n >= FEWEST):
        return None
    return _misaligned(
        "critical",
        "The same inputs come with different targets every time: inputs and targets are put in order separately.",
        [
            f"{found[1]} inputs were seen again in another batch; their targets differ {found[0]:.0%} as much as "
            "targets drawn at random"
        ],
        0.95,
    )


def _shifted(vitals: Vitals) -> Finding | None:
    """The target of a neighbour in the batch fits much better than the own one."""
    own = read(vitals.data, "learn", "correlation") or 0.0
    shifts = vitals.data.get("learn", {}).get("shifts") if isinstance(vitals.data.get("learn"), dict) else None
    best: tuple[float, int, str] | None = None
    for shift in shifts if isinstance(shifts, dict) else {}:
        pair = series(vitals.data, "learn", "shifts", shift)
        if len(pair) == 2 and pair[1] >= 60 and (best is None or pair[0] > best[0]):
            best = (pair[0], int(pair[1]), shift)
    if best is None or best[0] - max(own, 0.0) < 0.15 or best[0] < 5 / math.sqrt(best[1]):
        return None
    places = int(best[2])
    return _misaligned(
        "critical",
        f"The targets are shifted against the inputs by {abs(places)} within the batch.",
        [
            f"the target {abs(places)} {'later' if places > 0 else 'earlier'} in the batch agrees with the input "
            f"(correlation {best[0]:.2f} over {best[1]} examples), its own does not ({own:.2f})"
        ],
        0.95,
        shift=places,
    )


def _unrelated(vitals: Vitals) -> Finding | None:
    """Nothing in the inputs tells the targets: neither to small learners nor, in validation, to the network."""
    correlation, z, n = agreement(vitals)
    unrelated = (z <= 3 and abs(correlation) <= 0.15) or (correlation <= 0.3 and contrary(vitals))
    if n < FEWEST or not unrelated or (read(vitals.data, "learn", "majority") or 0.0) > 0.8:
        return None
    shape = vitals.data.get("shape")
    axes = len(shape) if isinstance(shape, list | tuple) else 1
    plain = axes == 1 and not vitals.data.get("tokens")  # order in sequences, place in images can hide from learners
    beats, came = generalises(vitals), facts.progress(vitals)
    again = (read(vitals.data, "repeats", "pairs") or 0) >= FEWEST_PAIRS
    by_heart = 0.3 if plain and again else 0.05  # so far it gets without learning anything that generalises
    if beats or (beats is None and (came is None or came > by_heart)):
        return None
    evidence = [
        f"cross-validated ridge regressions on {n} pairs do not predict the targets (correlation {correlation:.2f}, "
        f"{z:.1f} standard deviations from shuffled targets)"
    ]
    if beats is False:
        than = "stays below guessing" if contrary(vitals) else "gets hardly better than a constant answer"
        evidence.append(f"validation {than}")
    memorised = came is not None and came > 0.3
    if memorised:
        evidence.append(f"the training loss falls to {1 - (came or 0):.2f} of a constant answer's: learnt by heart")
    sure = beats is False and n >= 300 and (plain or axes == 3 or memorised)
    certainty = 0.8 if sure and plain else 0.7 if sure else 0.5
    return _misaligned(
        "warning",
        "Inputs and targets do not belong together: nothing in the inputs tells the targets.",
        evidence,
        certainty,
    )
