"""Faults of how data is served: its order, leakage between training and validation, and differences between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from luthier.doctor.findings import Finding, NotSeen, Severity
from luthier.doctor.symptoms import facts
from luthier.doctor.symptoms.causality import next_among_inputs, target_as_input
from luthier.doctor.symptoms.objectives import LOSSES
from luthier.doctor.symptoms.outcomes import FEWEST_PAIRS, foretold, read, series
from luthier.doctor.symptoms.paths import Graph
from luthier.doctor.vitals import BatchTargets, Stats, Vitals

FEWEST_BATCHES = 8


def unshuffled_data(vitals: Vitals) -> list[Finding] | NotSeen:
    """Batches that differ more than random draws would: the data comes ordered by class, value or time.

    For classes Pearson's chi-square of batch against class by its degrees of freedom, for numbers the variance between
    batch means against that inside batches (both about 1 for random batches), and how alike batches in a row are.
    """
    rows = _in_a_row(vitals) if vitals.targets else _given_to_losses(vitals)
    with_classes = [row for row in rows if row.counts]
    if len(with_classes) >= FEWEST_BATCHES and len(with_classes) == len(rows):
        ratio, alike, size = _class_spread(with_classes)
        what = "class shares"
    elif len(rows) >= FEWEST_BATCHES and all(row.mean is not None and row.std is not None for row in rows):
        ratio, alike, size = _number_spread(rows)
        what = "targets"
    else:
        return _ordered_inputs(vitals)
    n = len(rows)
    uneven = ratio >= 4 and (n - 1) * (ratio - 1) > 25
    drifting = bool(vitals.targets) and ratio >= 1.6 and alike >= 0.5 and alike * math.sqrt(n) > 4
    if size < 2:
        drifting = bool(vitals.targets) and n >= 40 and alike >= 0.5
    if not uneven and not drifting:
        return [] if vitals.targets else _ordered_inputs(vitals)
    if what == "targets" and _moved_by_training(vitals):
        return []
    evidence = [f"over {n} batches the {what} differ {ratio:.1f} times as much as those of batches drawn at random"]
    if alike >= 0.3:
        evidence.append(f"batches in a row are alike (correlation {alike:.2f})")
    return [_unshuffled("warning" if ratio < 50 else "critical", evidence, 0.85, rows[0].step)]


def _moved_by_training(vitals: Vitals) -> bool:
    """Equal inputs come with other targets that the network foretells, or at random: its own answers make them."""
    spread, blocks, width = (
        read(vitals.data, *path) for path in (("order", "inputs_f"), ("order", "blocks"), ("features",))
    )
    conflict, pairs = read(vitals.data, "repeats", "conflict"), read(vitals.data, "repeats", "pairs")
    if spread is None or not blocks or not width or conflict is None or (pairs or 0) < FEWEST_PAIRS:
        return False
    return conflict > 0.01 and (foretold(vitals) or spread < 1 + 3 * math.sqrt(2 / (blocks * width)))


def _unshuffled(severity: Severity, evidence: list[str], certainty: float, onset: int) -> Finding:
    return Finding(
        symptom="unshuffled_data",
        severity=severity,
        cause="The batches come in order: every step pulls towards the batch at hand and away from the last ones.",
        evidence=tuple(evidence),
        onset=onset,
        certainty=certainty,
        source="Bottou 2012, Stochastic Gradient Descent Tricks, section 5.1 (shuffle); Pearson's chi-square",
    )


def _in_a_row(vitals: Vitals) -> list[BatchTargets]:
    """The longest run of consecutive steps whose targets were seen."""
    best: list[BatchTargets] = []
    run: list[BatchTargets] = []
    for row in vitals.targets:
        run = [*run, row] if run and row.step == run[-1].step + 1 else [row]
        if len(run) > len(best):
            best = run
    return [row for row in best if row.n > 0]


def _given_to_losses(vitals: Vitals) -> list[BatchTargets]:
    """The same at every look, from what the loss was given: not of batches in a row."""
    rows = []
    for look in vitals.looks:
        seen, counts = facts.targets_in_losses(Vitals(looks=[look])), facts.given_counts(look)
        if look.batch_size and (counts or seen):
            stats = seen[0] if seen and not counts else Stats(n=0)
            rows.append(BatchTargets(look.step, look.batch_size, counts or None, stats.mean, stats.std))
    return rows


def _class_spread(rows: Sequence[BatchTargets]) -> tuple[float, float, float]:
    """Chi-square by its degrees of freedom, correlation of batches in a row, typical batch size.

    Several targets an example (tokens, pixels) are counted as one: they are not independent.
    """
    tables = [row.counts or {} for row in rows]
    sums = [sum(table.values()) for table in tables]
    totals: dict[str, int] = {}
    for table in tables:
        for label, count in table.items():
            totals[label] = totals.get(label, 0) + count
    n = sum(sums)
    per_example = n / max(sum(row.n for row in rows), 1)
    classes = [label for label, count in totals.items() if count >= 5 * per_example]
    if len(classes) < 2:
        return 0.0, 0.0, facts.middle(sums)
    square = 0.0
    for table, size in zip(tables, sums, strict=True):
        for label in classes:
            expected = size * totals[label] / n
            square += (table.get(label, 0) - expected) ** 2 / expected if expected > 0 else 0.0
    freedom = (len(rows) - 1) * (len(classes) - 1)
    shares = [[t.get(c, 0) / max(s, 1) - totals[c] / n for c in classes] for t, s in zip(tables, sums, strict=True)]
    return square / freedom / max(per_example, 1.0), _alike(shares), facts.middle(sums)


def _number_spread(rows: Sequence[BatchTargets]) -> tuple[float, float, float]:
    """Variance between batch means by what the spread inside batches makes of it, correlation in a row, batch size."""
    means = [row.mean or 0.0 for row in rows]
    n = sum(row.n for row in rows)
    grand = sum(row.n * mean for row, mean in zip(rows, means, strict=True)) / n
    between = sum(row.n * (mean - grand) ** 2 for row, mean in zip(rows, means, strict=True)) / (len(rows) - 1)
    inside = sum(row.n * (row.std or 0.0) ** 2 for row in rows) / max(n - len(rows), 1)
    size = facts.middle([row.n for row in rows])
    alike = _alike([[mean - grand] for mean in means])
    if not math.isfinite(between) or not math.isfinite(inside):
        return 0.0, 0.0, size
    return (between / inside if inside > 0 else 1.0), alike, size


def _alike(vectors: Sequence[Sequence[float]]) -> float:
    """Correlation of every vector (centred) with the next."""
    total = sum(value * value for vector in vectors for value in vector)
    products = sum(a * b for left, right in itertools.pairwise(vectors) for a, b in zip(left, right, strict=True))
    return products / total if total > 0 and math.isfinite(total) else 0.0


def _ordered_inputs(vitals: Vitals) -> list[Finding] | NotSeen:
    """Without targets: are inputs of the sampled batches alike inside?"""
    ratio, blocks = read(vitals.data, "order", "inputs_f"), read(vitals.data, "order", "blocks")
    if ratio is None or blocks is None or blocks < FEWEST_BATCHES:
        return NotSeen("fewer than eight batches in a row were seen: pass inputs= and targets= to watch.step")
    if ratio < 6:
        return []
    evidence = [f"inputs differ between {blocks:.0f} batches {ratio:.1f} times as much as between random batches"]
    return [_unshuffled("warning", evidence, 0.6, 0)]


def data_leakage(vitals: Vitals) -> list[Finding] | NotSeen:
    """Validation examples that are trained on, or inputs that show the target."""
    if not vitals.data:
        return NotSeen("no examples were seen: pass inputs= and targets= to watch.step")
    looks = (target_as_input, _target_among_inputs, next_among_inputs, _validation_in_training)
    found = [look(vitals) for look in looks]
    return [finding for finding in found if finding is not None][:1]


def _target_among_inputs(vitals: Vitals) -> Finding | None:
    """One feature alone (or the same at every step of a sequence) gives the target away, the typical one does not."""
    first, second, typical = (read(vitals.data, "leading", name) for name in ("first", "second", "median"))
    n, index = read(vitals.data, "leading", "n"), read(vitals.data, "leading", "index")
    if first is None or second is None or typical is None or index is None or n is None or n < 60:
        return None
    series_like = (read(vitals.data, "leading", "neighbours") or 0.0) > 0.5
    repeated = second >= 0.9999 and not series_like
    apart = (1 - first) <= 0.1 * (1 - second) or (first >= 0.9999 and second < 0.999) or repeated
    if first < 0.995 or not apart or typical > 0.8:
        return None
    shape = vitals.data.get("shape")
    ordered = isinstance(shape, list | tuple) and len(shape) >= 2
    season = series_like and second > 0.8 and _before_the_last(vitals, index)
    asked = ordered and not series_like and not repeated  # shown once a sequence the target tests a memory
    recall = asked or season or _single_examples(vitals, n)
    return Finding(
        symptom="data_leakage",
        severity="info" if recall else "critical",
        cause=f"Feature {index:.0f} of the inputs is the target (or made from it): the network only has to copy it.",
        evidence=(
            f"feature {index:.0f} and the target explain each other to {first:.4f} ({n:.0f} examples); the next best "
            f"feature {second:.2f}, the typical one {typical:.2f}",
        ),
        onset=0,
        certainty=0.4 if recall else 0.9,
        numbers={"feature": int(index)},
        source="Kaufman et al. 2012, Leakage in Data Mining",
    )


def _before_the_last(vitals: Vitals, index: float) -> bool:
    """A place inside a window of a series of numbers: what repeats every period tells the next value, as it should.

    A window that is a step too long holds the target at its end.
    """
    shape = vitals.data.get("shape")
    sizes = [size for size in shape if isinstance(size, int)] if isinstance(shape, list | tuple) else []
    if facts.is_classification(vitals) or not sizes:
        return False
    return index < math.prod(sizes) - math.prod(sizes[1:])


def _single_examples(vitals: Vitals, n: float) -> bool:
    """Some class has under five of n examples: it explains every feature that only they show, a pixel at the border."""
    targets = vitals.data.get("targets")
    shares = targets.get("shares") if isinstance(targets, dict) else None
    return isinstance(shares, dict) and any(isinstance(share, float) and 0 < share * n < 5 for share in shares.values())


def _continuous(vitals: Vitals) -> bool:
    """Inputs of so many different values that two examples are never equal by chance."""
    stats = [
        look.inputs.stats for look in vitals.looks[:5] if look.inputs is not None and look.inputs.stats is not None
    ]
    return bool(stats) and all(item.integral is False and (item.distinct or 0) >= 64 for item in stats)


def _validation_in_training(vitals: Vitals) -> Finding | None:
    """Examples of validation that stand in the training sample, when no evaluation forward is free of them.

    A pass over the training set (for train_loss) is full of them, so they count only when there is no other pass.
    """
    n, found = series(vitals.data, "forwards", "n"), series(vitals.data, "forwards", "in_train")
    if not n or len(n) != len(found) or not _all_forwards_sampled(vitals) or not _reports_validation(vitals):
        return None
    if _picks_rows(vitals):
        return None
    common = (read(vitals.data, "repeats", "twins") or 0.0) * (read(vitals.data, "distinct") or 0.0)
    held = [(size, count) for size, count in zip(n, found, strict=True) if count > 0]
    total = sum(size for size, _ in held)
    if (common > 0.02 and not _continuous(vitals)) or sum(count for _, count in held) < 5 or total <= 0:
        return None
    rate = sum(count for _, count in held) / total
    free = sum(size for size, count in zip(n, found, strict=True) if count == 0)
    if free >= max(8.0, 5 / rate):
        return None
    highest = max(count / size for size, count in held)
    low = [(size, count) for size, count in held if count / size < 0.5 * highest]
    if sum(size for size, _ in low) >= 20:
        rate = sum(count for _, count in low) / sum(size for size, _ in low)
    coverage = max(read(vitals.data, "coverage") or 1.0, 0.05)
    real = min(rate / coverage, 1.0)
    if rate < 0.02:
        return None
    return Finding(
        symptom="data_leakage",
        severity="critical" if real >= 0.3 else "warning" if real >= 0.05 else "info",
        cause=f"About {real:.0%} of the validation examples are trained on: validation measures memory.",
        evidence=(
            f"{rate:.0%} of the examples of evaluation forwards equal sampled training examples "
            f"({read(vitals.data, 'distinct') or 0:.0f} different ones)",
        ),
        onset=0,
        certainty=0.95 if real >= 0.3 else 0.8,
        numbers={"share": real},
        source="Kaufman et al. 2012, Leakage in Data Mining",
    )


def _picks_rows(vitals: Vitals) -> bool:
    """The loss takes some rows of the answers by a mask or index, as of the nodes of a graph: the others are not
    trained on, though their inputs are seen.
    """
    for look in vitals.looks[:3]:
        rows = look.inputs.shape[:1] if look.inputs is not None else ()
        graph = Graph.of([look])
        for node in (graph.nodes[index] for index in graph.learning - graph.inside):
            given = node.arguments[:2]
            if len(given) < 2 or not rows or given[0].shape[:1] != rows or not graph.is_prediction(given[0]):
                continue
            origin = graph.origin(given[0].source)
            masked = node.op == "mul" and origin is not None and origin.op in LOSSES and given[1].shape == rows
            if masked or (node.op == "getitem" and node.shape[:1] < rows):
                return True
    return False


def _all_forwards_sampled(vitals: Vitals) -> bool:
    """The sample reaches to the last forwards of some evaluation: validation may come after a training pass."""
    steps, places = series(vitals.data, "forwards", "step"), series(vitals.data, "forwards", "forward")
    if len(steps) != len(places):
        return False
    last: dict[int, float] = {}
    for step, place in zip(steps, places, strict=True):
        last[int(step)] = max(last.get(int(step), 0.0), place)
    made = {row.step: row.forwards for row in vitals.evaluations}
    return any(step not in made or place + 1 >= 0.8 * made[step] for step, place in last.items())


def _reports_validation(vitals: Vitals) -> bool:
    """Some metric is named as one of validation."""
    return any(facts.side_of(name) == "val" for row in vitals.metrics for name in row.values)
