"""Faults of the training loop: gradients not cleared, optimizers made anew."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms.curves import never_stepped
from luthier.doctor.vitals import Look, Optimizer, Vitals

_STATEFUL = ("Adam", "RMSprop", "Adagrad", "Adadelta", "Lion", "ASGD", "Rprop", "LBFGS", "Muon", "Adafactor", "Shampoo")


def missing_zero_grad(vitals: Vitals) -> list[Finding] | NotSeen:
    """Gradients are not cleared between steps: each step moves along the sum of all earlier gradients."""
    looks = [look for look in vitals.looks if look.cleared is not None and look.n_backward > 0 and look.step > 0]
    if len(looks) < 2:
        return NotSeen("fewer than two training steps after the first were looked at: train a few steps more")
    dirty = [look for look in looks if look.cleared is False]
    if len(dirty) < 2 or len(dirty) < 0.5 * len(looks) or never_stepped(vitals):
        return []  # without a step there is nothing to clear after: `no_learning` tells
    share = len(dirty) / len(looks)
    entries = [look.entry_grad for look in dirty if look.entry_grad is not None]
    evidence = [f"at {len(dirty)} of {len(looks)} looks the gradients of the step before were still there."]
    if len(entries) >= 2:
        evidence.append(
            f"their norm before backward(): {entries[0]:.3g} at step {dirty[0].step}, {entries[-1]:.3g} at step "
            f"{dirty[-1].step}."
        )
    return [
        Finding(
            symptom="missing_zero_grad",
            severity="critical",
            cause="the optimizer steps without the gradients having been cleared before backward(): every step moves "
            "along the sum of old gradients, which grows and points elsewhere.",
            evidence=tuple(evidence),
            onset=dirty[0].step,
            certainty=1.0 if share > 0.9 else 0.9,
            numbers={"share": share},
            source="torch.optim.Optimizer.zero_grad: gradients accumulate by default.",
        )
    ]


def optimizer_reset(vitals: Vitals) -> list[Finding] | NotSeen:
    """The optimizer is made anew again and again: momentum and Adam's averages start from nothing each time."""
    if not vitals.optimizers:
        return NotSeen("no optimizer was seen: pass it to watch, or step it while watching")
    replaced = _replacements(vitals.optimizers)
    fallen = _fallen_counts(vitals.looks)
    if len(replaced) < 2 and fallen < 2:
        return []
    first = replaced[0] if replaced else vitals.optimizers[0]
    keeps = _keeps_state(vitals.optimizers[-1])
    n = max(vitals.n_steps, vitals.looks[-1].step + 1 if vitals.looks else 1)
    times = max(len(replaced), fallen)
    gaps = [later.step - earlier.step for earlier, later in itertools.pairwise(replaced)]
    each = sorted(gaps)[len(gaps) // 2] if gaps else n // (times + 1)
    text = f"{times} times in {n} steps, about every {max(each, 1)} steps, first at step {first.step}."
    return [
        Finding(
            symptom="optimizer_reset",
            severity=("critical" if each <= 10 else "warning") if keeps else "info",
            cause=f"{vitals.optimizers[-1].type} is made anew again and again, which throws its state away"
            + (" (averages of the gradient, the count of steps): it never gets past its start." if keeps else "."),
            evidence=(text,) if replaced else (f"its own count of steps fell back {text}",),
            onset=first.step,
            certainty=1.0 if replaced else 0.9,
            numbers={"times": times, "every": each},
        )
    ]


def _replacements(rows: Sequence[Optimizer]) -> list[Optimizer]:
    """Optimizers that took over the parameters of an earlier one of the same kind and size (no new phase)."""
    known = {row.id: row for row in rows}
    found = []
    for row in rows:
        before = known.get(row.replaces) if row.replaces is not None else None
        if before is not None and before.type == row.type and _size(before) == _size(row):
            found.append(row)
    return found


def _size(row: Optimizer) -> int:
    return sum(int(group.get("n_parameters", 0)) for group in row.groups)


def _keeps_state(row: Optimizer) -> bool:
    momentum = any(_positive(group.get("momentum")) for group in row.groups)
    return momentum or any(name in row.type for name in _STATEFUL)


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and value > 0


def _fallen_counts(looks: Sequence[Look]) -> int:
    """How often the optimizer's own count of steps fell back (or stood still at its start)."""
    counts = [(look.step, look.state_step) for look in looks if look.state_step is not None]
    pairs = list(itertools.pairwise(counts))
    fallen = sum(later[1] < earlier[1] for earlier, later in pairs if later[1] is not None and earlier[1] is not None)
    stuck = len(pairs) >= 3 and all(count is not None and count <= 1 for _, count in counts) and counts[-1][0] > 3
    return len(pairs) if stuck else fallen
