"""What the units put out: dead, saturated, exploding or always the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.doctor.findings import Finding, NotSeen, Severity
from luthier.doctor.symptoms.facts import (
    batch_size,
    middle,
    node_of,
    progress,
    progress_at,
)
from luthier.doctor.symptoms.harm import FITTED
from luthier.doctor.symptoms.layers import (
    MULTIPLYING,
    RECTIFIERS,
    RECURRENT,
    SQUASHING,
    names,
    output_indices,
)
from luthier.doctor.vitals import Look, Node, Stats, Vitals

UNSEEN = "no activations were seen: watch a model that is not compiled"


@dataclass(frozen=True)
class Reading:
    """One operation at one look."""

    look: Look
    node: Node

    @property
    def stats(self) -> Stats:
        """Its numbers."""
        return self.node.stats or Stats()


def readings(vitals: Vitals, wanted: Callable[[Node], bool]) -> dict[tuple[str, str, int], list[Reading]]:
    """Operations of the model over all looks, by (module, operation, how manieth of these)."""
    found: dict[tuple[str, str, int], list[Reading]] = {}
    for look in vitals.looks:
        seen: dict[tuple[str, str], int] = {}
        for node in look.nodes:
            if node.module is None or node.stats is None or not wanted(node):
                continue
            count = seen[(node.module, node.op)] = seen.get((node.module, node.op), -1) + 1
            found.setdefault((node.module, node.op, count), []).append(Reading(look, node))
    return found


def place_of(reading: Reading) -> str:
    """The module's name; for a functional call "relu after fc1"."""
    node: Node | None = reading.node
    if reading.node.module and reading.node.op not in ("add", "matmul"):
        return reading.node.module
    for _ in range(8):
        node = node_of(reading.look, node.arguments[0].source) if node and node.arguments else None
        if node is not None and node.op in MULTIPLYING and node.module:
            return f"{reading.node.op} after {node.module}"
    return f"{reading.node.op} (operation {reading.node.index})"


def _late(series: Sequence[Reading]) -> Sequence[Reading]:
    """The last third of the looks, at least 2 where there are."""
    return series[-max(len(series) // 3, 2) :]


def looked_inside(vitals: Vitals) -> bool:
    """Whether any operation of the model was seen."""
    return any(look.nodes for look in vitals.looks)


# --- dead ------------------------------------------------------------------------------------------------------------


def dead_relu(vitals: Vitals) -> list[Finding] | NotSeen:
    """Units behind a ReLU that are zero for every example, and so get no gradient.

    A third of dead units is common in nets that work; half of a layer is not.
    """
    if not looked_inside(vitals):
        return NotSeen(UNSEEN)
    few = 4 * (batch_size(vitals) or 16) < 32
    sick: list[tuple[float, list[Reading]]] = []
    for series in readings(vitals, _rectifies).values():
        dead = middle([reading.stats.dead for reading in _late(series)])
        if dead >= (0.9 if few or _units(series[-1].node) < 8 else 0.5) and not _faded(series[0]):
            sick.append((dead, series))
    return [_dead(vitals, sick)] if sick else []


def _rectifies(node: Node) -> bool:
    return node.op in RECTIFIERS or (node.op in ("clamp", "clamp_min") and node.attrs.get("min") == 0)


def _faded(first: Reading) -> bool:
    """Before any step examples hardly differ in what units put out: each is on or off for all of them, none died."""
    return first.look.step == 0 and 0 < (first.stats.across or 0.0) < 0.03


def _units(node: Node) -> int:
    """Features or channels of an activation (of sequences the smaller of length and features: they look alike)."""
    shape = node.shape[1:]
    return min(shape[0], shape[-1]) if len(shape) == 2 else shape[0] if shape else 0


def dead_at_first(series: Sequence[Reading]) -> float:
    """Fraction of units that were zero for every example of the first looks, which it takes four of to tell."""
    return next((reading.stats.dead for reading in series[:4] if reading.stats.dead is not None), 0.0)


def _dead(vitals: Vitals, sick: Sequence[tuple[float, list[Reading]]]) -> Finding:
    worst, series = max(sick, key=lambda pair: pair[0])
    learnt = progress(vitals)
    severity: Severity = "critical" if worst >= 0.9 and (learnt or 0.0) < 0.5 else "warning"
    if learnt is not None and learnt > (0.9 if worst >= 0.9 else 0.6):
        severity = "info"  # the rest of the layer does the work
    onset = next(reading.look.step for reading in series if (reading.stats.dead or 0.0) >= 0.5)
    at_start = dead_at_first(series)
    places = [place_of(items[0]) for _, items in sick]
    born = "were so from the start" if at_start >= 0.5 else f"died in training, by step {onset}"
    return Finding(
        "dead_relu",
        severity,
        f"{worst:.0%} of the units of {place_of(series[0])} put out zero for every example and get no gradient; "
        f"they {born}.",
        (
            f"dead units at the first looks: {at_start:.0%}, at the last looks: {worst:.0%}",
            f"layers with half or more dead: {names(places)}",
        ),
        tuple(dict.fromkeys(places)),
        0 if at_start >= 0.5 else onset,
        0.8,
        {"dead": worst, "at_start": at_start},
        source="Lu et al., Dying ReLU and initialization, 2019",
    )


# --- saturated -------------------------------------------------------------------------------------------------------


def saturated_activation(vitals: Vitals) -> list[Finding] | NotSeen:
    """Hidden sigmoid, tanh or attention softmax units that sit on their flat parts while the loss is not fitted."""
    if not looked_inside(vitals):
        return NotSeen(UNSEEN)
    sick: list[tuple[float, int, list[Reading]]] = []
    for series in readings(vitals, lambda node: node.op in SQUASHING | RECURRENT or node.op == "softmax").values():
        hidden = [reading for reading in series if reading.node.index not in output_indices(reading.look)]
        found = _flat(vitals, hidden)
        if found is not None:
            sick.append((*found, hidden))
    return [_saturated(vitals, sick)] if sick else []


def _flat(vitals: Vitals, series: Sequence[Reading]) -> tuple[float, int] | None:
    """Fraction on the flat part and first step of it, if it holds at 2 looks or more while the loss is not fitted."""
    unfitted = [reading for reading in series if (progress_at(vitals, reading.look.step) or 0.0) < FITTED]
    softmax = bool(series) and series[0].node.op == "softmax"
    if softmax and not any(reading.look.step < 20 for reading in unfitted[:5]):
        return None
    if softmax:  # attention that became sharp by learning is no fault
        unfitted = [reading for reading in unfitted if reading.look.step < 20]
        unfitted = [reading for reading in unfitted if reading.node.shape[-1:] and reading.node.shape[-1] > 2]
    high = [reading for reading in unfitted if (reading.stats.flat or 0.0) > (0.7 if softmax else 0.5)]
    if len(high) < 2 or len(high) < 0.3 * len(unfitted):
        return None
    return middle([reading.stats.flat for reading in high]), high[0].look.step


def _saturated(vitals: Vitals, sick: Sequence[tuple[float, int, list[Reading]]]) -> Finding:
    worst, onset, series = max(sick, key=lambda item: item[0])
    learnt = progress(vitals)
    severity: Severity = "info" if learnt is not None and learnt > FITTED else "warning"
    if onset <= 1 and worst > 0.8:
        severity = "warning"  # no net is made so: whatever was learnt was learnt in spite of it
    if worst > 0.9 and learnt is not None and learnt < 0.3:
        severity = "critical"
    places = [place_of(items[0]) for _, _, items in sick]
    return Finding(
        "saturated_activation",
        severity,
        f"{worst:.0%} of what {place_of(series[0])} ({series[0].node.op}) puts out lies on the flat part, "
        "where almost no gradient passes.",
        (f"from step {onset} on; layers: {names(places)}",),
        tuple(dict.fromkeys(places)),
        onset,
        0.8 if worst > 0.7 else 0.7,
        {"flat": worst},
        source="Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010",
    )
