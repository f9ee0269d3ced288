"""Do the labels belong to the inputs? Noise (some are wrong) and misalignment (they belong to other inputs)."""

from __future__ import annotations

import math
from typing import Any

from luthier.doctor.findings import Finding, NotSeen, Severity
from luthier.doctor.symptoms import facts
from luthier.doctor.symptoms.outcomes import best_val_accuracy, read, series, share, val_beats_chance
from luthier.doctor.vitals import Vitals

NOTHING = "too few pairs of inputs and targets were seen: pass inputs= and targets= to watch.step"
FEWEST_PAIRS, FEWEST = 20, 120
DISCRETE = 0.005


def label_misaligned(vitals: Vitals) -> list[Finding] | NotSeen:
    """Targets that belong to other inputs: shifted in the batch, paired anew every epoch, or unrelated to them.

    Small cross-validated learners look at the sampled pairs. That they find nothing proves nothing by itself (parity,
    order in a sequence): it counts only when the network cannot generalise either.
    """
    n = read(vitals.data, "learn", "n")
    for look in (_repaired, _shifted, _unrelated):
        found = look(vitals)
        if found is not None:
            return [found]
    return NotSeen(NOTHING) if n is None and read(vitals.data, "repeats", "conflict") is None else []


def _misaligned(severity: Severity, cause: str, evidence: list[str], certainty: float, **numbers: Any) -> Finding:
    return Finding(
        symptom="label_misaligned",
        severity=severity,
        cause=cause,
        evidence=tuple(evidence),
        onset=0,
        certainty=certainty,
        numbers=numbers,
        source="Zhang et al. 2017, Understanding deep learning requires rethinking generalization (random labels)",
    )


def _conflict(vitals: Vitals) -> tuple[float, int] | None:
    """How far targets of equal inputs differ (1 = as if drawn anew) and the number of pairs; None when unknown."""
    conflict, pairs = read(vitals.data, "repeats", "conflict"), read(vitals.data, "repeats", "pairs")
    twins = read(vitals.data, "repeats", "twins")
    if conflict is None or pairs is None or pairs < FEWEST_PAIRS or (twins or 0.0) > DISCRETE:
        return None
    return conflict, int(pairs)


def _agreement(vitals: Vitals) -> tuple[float, float, int]:
    """Correlation of the learners' predictions with the targets, its z, examples."""
    learn = vitals.data.get("learn")
    data = vitals.data if isinstance(learn, dict) else {}
    values = (read(data, "learn", "correlation"), read(data, "learn", "z"), read(data, "learn", "n"))
    return values[0] or 0.0, values[1] or 0.0, int(values[2] or 0)


def _repaired(vitals: Vitals) -> Finding | None:
    """The same input came with other targets in other epochs."""
    found = _conflict(vitals)
    _, z, n = _agreement(vitals)
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
    own, _, _ = _agreement(vitals)
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
    correlation, z, n = _agreement(vitals)
    if n < FEWEST or z > 3 or abs(correlation) > 0.15:
        return None
    beats, came = val_beats_chance(vitals), facts.progress(vitals)
    if beats or (beats is None and (came is None or came > 0.05)):
        return None
    evidence = [
        f"cross-validated ridge regressions on {n} pairs do not predict the targets (correlation {correlation:.2f}, "
        f"{z:.1f} standard deviations from shuffled targets)"
    ]
    if beats is False:
        evidence.append("validation never gets better than a constant answer")
    memorised = came is not None and came > 0.15
    if memorised:
        evidence.append(f"the training loss falls to {1 - (came or 0):.2f} of a constant answer's: learnt by heart")
    shape = vitals.data.get("shape")
    ordered = bool(vitals.data.get("tokens")) or (isinstance(shape, list | tuple) and len(shape) == 2)
    certainty = 0.75 if memorised and beats is False else 0.55
    return _misaligned(
        "info" if ordered and not memorised else "warning",
        "Inputs and targets do not belong together: nothing in the inputs tells the targets.",
        evidence,
        0.35 if ordered and not memorised else certainty,
    )


def label_noise(vitals: Vitals) -> list[Finding] | NotSeen:
    """A share of the labels is wrong.

    Wrong labels contradict even sure predictions from examples around them; at the border between classes contradiction
    fades with certainty. What is merely hard to learn is told apart by the network: it does better than the small
    learners, and better in training than in validation.
    """
    if read(vitals.data, "learn", "n") is None and read(vitals.data, "repeats", "conflict") is None:
        return NotSeen(NOTHING)
    for look in (_drawn_anew, _contradicted, _far_off):
        found = look(vitals)
        if found is not None:
            return [found]
    return []


def _noise(severity: Severity, cause: str, evidence: list[str], certainty: float, **numbers: Any) -> Finding:
    return Finding(
        symptom="label_noise",
        severity=severity,
        cause=cause,
        evidence=tuple(evidence),
        onset=0,
        certainty=certainty,
        numbers=numbers,
        source="Northcutt et al. 2021, Confident Learning; Arpit et al. 2017, A Closer Look at Memorization",
    )


def _drawn_anew(vitals: Vitals) -> Finding | None:
    """Equal inputs with other labels each time, although inputs do tell the labels."""
    found = _conflict(vitals)
    _, z, n = _agreement(vitals)
    classes = read(vitals.data, "learn", "accuracy") is not None
    if found is None or found[0] < (0.08 if classes else 0.2) or z < 5 or n < FEWEST:
        return None
    return _noise(
        "warning",
        "Labels of the same inputs change from epoch to epoch: noise is added to them.",
        [f"over {found[1]} inputs seen again, labels differ {found[0]:.0%} as much as labels drawn at random"],
        0.85,
        share=found[0],
    )


def _contradicted(vitals: Vitals) -> Finding | None:
    """Class labels that sure predictions from other examples contradict."""
    _, z, n = _agreement(vitals)
    quarters = series(vitals.data, "learn", "contradicted")
    accuracy = read(vitals.data, "learn", "accuracy")
    if len(quarters) != 4 or accuracy is None or z < 5 or n < FEWEST:
        return None
    floor, wrong = quarters[0], 1 - accuracy
    noise = math.sqrt(max(floor * (1 - floor), 0.01) / (n / 4))
    if floor - 2 * noise < 0.03 or floor < 0.1 or floor < 0.35 * wrong:
        return None
    evidence = [
        f"{floor:.0%} of the labels contradict the surest quarter of cross-validated predictions, {wrong:.0%} "
        f"all of them ({n} examples)"
    ]
    certainty, said = _network_agrees(vitals, quarters, accuracy)
    if certainty == 0.0:
        return None
    return _noise(
        "warning" if certainty >= 0.5 else "info",
        f"About {floor:.0%} of the training labels are wrong.",
        [*evidence, said],
        certainty,
        share=floor,
    )


def _network_agrees(vitals: Vitals, quarters: list[float], accuracy: float) -> tuple[float, str]:
    """Certainty from how the network did: 0 when the labels are learnable after all."""
    ahead = _val_ahead(vitals)
    if ahead is not None:
        return 0.8, ahead
    flat = quarters[0] >= 0.55 * (1 - accuracy) and quarters[1] <= quarters[0] + 0.12
    reached = best_val_accuracy(vitals)
    if reached is None:
        train, _ = facts.accuracies(vitals)
        reached = train
    if reached is None:
        return (0.3, "no accuracy was seen") if flat else (0.0, "")
    if reached > accuracy + 0.08 or not flat:
        return 0.0, ""
    return 0.65, f"the network itself gets no further: accuracy {reached:.2f} against {accuracy:.2f}"


def _val_ahead(vitals: Vitals) -> str | None:
    """Validation (clean) is clearly better than training (noisy) though no dropout explains it."""
    if _strong_dropout(vitals):
        return None
    pairs = _accuracy_pairs(vitals)
    ahead = [pair for pair in pairs if pair[2] - pair[1] > 0.08 + 1.5 * pair[3]]
    if pairs and 2 * len(ahead) >= len(pairs):
        step, train, val, _ = ahead[len(ahead) // 2]
        return f"accuracy in validation is higher than in training ({val:.2f} against {train:.2f} at step {step})"
    train_losses, val_losses = facts.epoch_losses(vitals)
    lower = [
        (step, train, val)
        for (step, train), (_, val) in zip(train_losses, val_losses, strict=True)
        if 0 < val < 0.75 * train
    ]
    if not pairs and len(train_losses) >= 2 and 2 * len(lower) >= len(train_losses):
        step, train_loss, val_loss = lower[-1]
        return (
            f"the loss in validation is lower than in training ({val_loss:.3g} against {train_loss:.3g} at step {step})"
        )
    return None


def _accuracy_pairs(vitals: Vitals) -> list[tuple[int, float, float, float]]:
    """(step, training accuracy, validation accuracy, standard error) at every evaluation after the first tenth."""
    looks = [(look.step, look.predictions) for look in vitals.looks if look.predictions is not None]
    given = {step: share(value) for step, value in facts.metric(vitals, "train", "accuracy")}
    found = []
    for step, value in facts.metric(vitals, "val", "accuracy"):
        near = [seen for at, seen in looks if abs(at - step) <= max(10, 0.1 * vitals.n_steps) and seen.n]
        n = sum(seen.n for seen in near)
        if step < 0.1 * vitals.n_steps:
            continue
        if n >= 60:
            train = sum(seen.correct for seen in near) / n
            found.append((step, train, share(value), math.sqrt(max(train * (1 - train), 0.01) / n)))
        elif step in given:
            found.append((step, given[step], share(value), 0.03))
    return found


def _strong_dropout(vitals: Vitals) -> bool:
    """Dropout of 30% or more is at work in training: it alone makes training look worse than validation."""
    rates = []
    for look in vitals.looks[:1]:
        rates = [read(node.attrs, "p") or 0.0 for node in look.nodes if "dropout" in node.op]
    return any(rate >= 0.3 for rate in rates)


def _far_off(vitals: Vitals) -> Finding | None:
    """A regression with single targets far off, each alone among well predicted ones."""
    _, z, n = _agreement(vitals)
    tail, together, r2 = (read(vitals.data, "learn", name) for name in ("tail", "together", "r2"))
    if tail is None or together is None or r2 is None or z < 4 or n < FEWEST:
        return None
    if tail < 4.8 or together > 2.0 or r2 > 0.7:
        return None
    came = facts.progress(vitals)
    fitted = came is not None and came > r2 + 0.3
    return _noise(
        "info" if fitted else "warning",
        "Some targets are far off although most follow from the inputs.",
        [
            f"the 5% worst predicted targets are off {tail:.1f} times as far as the typical one (2.9 for normal "
            f"noise), and stand alone ({n} examples)"
        ],
        0.35 if fitted else 0.6,
    )
