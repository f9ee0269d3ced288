"""From vitals to a diagnosis: every rule looks, then roots are put before what they cause."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from luthier.doctor.findings import Diagnosis, Finding, NotSeen
from luthier.doctor.remedies import prescribe
from luthier.doctor.symptoms import EARLY, SYMPTOMS, Rule
from luthier.doctor.vitals import Vitals

STALLED = frozenset({"no_learning", "plateau", "underfitting", "oscillating_loss", "too_few_epochs"})
SIGNALS = frozenset(
    {
        "vanishing_gradient",
        "exploding_gradient",
        "exploding_activation",
        "dead_relu",
        "saturated_activation",
        "constant_output",
        "nan_inf",
    }
)
PACE = frozenset({"lr_too_high", "lr_too_low"})
BORN = frozenset({"exploding_activation", "exploding_gradient", "saturated_activation"})

# What a fault can bring about. A finding whose cause was found too is hung under it.
CAUSES: dict[str, frozenset[str]] = {
    "nan_input": SIGNALS | STALLED | PACE | {"unnormalised_input", "train_val_mismatch"},
    "degenerate_labels": STALLED
    | {"overfitting", "class_imbalance", "label_noise", "label_misaligned", "constant_output", "data_leakage"}
    | {"wrong_loss", "vanishing_gradient"},
    "label_misaligned": STALLED | {"overfitting", "label_noise", "constant_output", "lr_too_low", "dead_relu"},
    "label_noise": STALLED | {"overfitting", "lr_too_low", "dead_relu"},
    "class_imbalance": frozenset({"constant_output", "underfitting", "plateau", "no_learning"}),
    "unshuffled_data": STALLED
    | {"class_imbalance", "overfitting", "train_val_mismatch", "constant_output", "lr_too_high", "degenerate_labels"},
    "train_val_mismatch": frozenset({"overfitting"}),
    "unnormalised_input": SIGNALS | STALLED | PACE | {"bad_init", "train_val_mismatch", "grad_clip_too_small"},
    "unscaled_target": SIGNALS | STALLED | PACE | {"bad_init", "loss_scale", "grad_clip_too_small"},
    "output_range_mismatch": SIGNALS | STALLED | {"lr_too_low", "overfitting", "bad_activation"},
    "wrong_loss": SIGNALS | STALLED | PACE | {"class_imbalance", "overfitting", "output_range_mismatch"},
    "softmax_before_ce": STALLED | PACE | {"vanishing_gradient", "saturated_activation", "constant_output"},
    "softmax_wrong_dim": STALLED | PACE | SIGNALS | {"train_val_mismatch", "overfitting", "label_noise"},
    "shape_broadcast": STALLED | PACE | {"constant_output", "vanishing_gradient", "overfitting"},
    "missing_nonlinearity": STALLED | {"lr_too_low"},
    "bad_activation": SIGNALS | STALLED | PACE | {"bad_init"},
    "bad_init": SIGNALS | STALLED | PACE | {"overfitting"},
    "symmetric_init": STALLED | PACE | {"constant_output", "vanishing_gradient", "dead_relu"},
    "loss_scale": SIGNALS | STALLED | PACE | {"grad_clip_too_small"},
    "missing_zero_grad": SIGNALS | STALLED | PACE | {"overfitting"},
    "optimizer_reset": STALLED | PACE,
    "stale_optimizer": STALLED | PACE | {"frozen_params", "constant_output", "vanishing_gradient"},
    "lr_schedule_collapse": STALLED | {"lr_too_low"},
    "grad_clip_too_small": STALLED | {"lr_too_low", "exploding_gradient"},
    "frozen_params": STALLED | {"lr_too_low", "vanishing_gradient", "constant_output", "label_noise"},
    "disconnected_params": STALLED
    | {"frozen_params", "vanishing_gradient", "lr_too_low", "constant_output", "label_noise"},
    "unregistered_params": STALLED
    | {"frozen_params", "disconnected_params", "stale_optimizer", "lr_too_low", "label_noise"},
    "train_eval_slip": STALLED
    | {"overfitting", "small_batch_bn", "train_val_mismatch", "nan_inf", "exploding_activation"},
    "small_batch_bn": STALLED | {"overfitting", "train_val_mismatch", "batch_too_small"},
    "precision_loss": STALLED | {"nan_inf", "lr_too_low", "vanishing_gradient", "dead_relu"},
    "lr_too_high": SIGNALS | STALLED | {"overfitting"},
    "lr_too_low": STALLED,
    "too_much_regularisation": STALLED | PACE | {"constant_output", "vanishing_gradient", "dead_relu"},
    "batch_too_small": STALLED | {"small_batch_bn", "lr_too_high"},
    "batch_too_large": STALLED | {"lr_too_low"},
    "exploding_gradient": STALLED | {"nan_inf", "exploding_activation", "lr_too_high"},
    "exploding_activation": STALLED | {"nan_inf", "saturated_activation", "exploding_gradient"},
    "dead_relu": STALLED | {"constant_output", "vanishing_gradient", "lr_too_low"},
    "saturated_activation": STALLED | {"vanishing_gradient", "lr_too_low"},
    "vanishing_gradient": STALLED | {"constant_output", "lr_too_low", "bad_activation"},
    "constant_output": STALLED,
    "nan_inf": STALLED | (SIGNALS - {"nan_inf"}),
    "overfitting": frozenset({"plateau", "oscillating_loss"}),
    "too_few_epochs": frozenset({"underfitting"}),
    "no_learning": frozenset({"plateau", "underfitting"}),
    "plateau": frozenset({"underfitting"}),
}
NOTHING = "no training step was seen: the optimizers given to watch must step while it is open"
UNSTEPPED = "stale_optimizer"
_SEVERITY = {"info": 0, "warning": 1, "critical": 2}


def diagnose(vitals: Vitals) -> Diagnosis:
    """Look at vitals with every rule.

    Args:
        vitals: of `watch.vitals`, a Record, or another tool's logs.
    """
    return _diagnose(vitals, SYMPTOMS)


def diagnose_early(vitals: Vitals) -> Diagnosis:
    """Only with the rules that can speak within some ten steps: faults of the loop, the graph, the numbers."""
    return _diagnose(vitals, {name: SYMPTOMS[name] for name in EARLY})


def _diagnose(vitals: Vitals, rules: Mapping[str, Rule]) -> Diagnosis:
    if not (vitals.looks or vitals.steps.step or vitals.metrics):
        return _without_steps(vitals, rules)
    found: list[Finding] = []
    healthy: list[str] = []
    not_seen: dict[str, str] = {}
    for symptom, rule in rules.items():
        answer = _ask(rule, vitals)
        if isinstance(answer, NotSeen):
            not_seen[symptom] = answer.reason
        elif answer:
            found.extend(answer)
        else:
            healthy.append(symptom)
    return Diagnosis(order(found), tuple(healthy), not_seen, watched(vitals))


def _without_steps(vitals: Vitals, rules: Mapping[str, Rule]) -> Diagnosis:
    """Nothing stepped what is watched: perhaps because the optimizer holds the weights of an earlier model."""
    stale = _ask(rules[UNSTEPPED], vitals) if UNSTEPPED in rules else []
    found = stale if isinstance(stale, list) else []
    unseen = [symptom for symptom in rules if not found or symptom != UNSTEPPED]
    return Diagnosis(order(found), not_seen=dict.fromkeys(unseen, NOTHING), watched=watched(vitals))


def _ask(rule: Rule, vitals: Vitals) -> list[Finding] | NotSeen:
    """A rule's answer; a fault of the rule itself is said, and takes neither the other answers nor the user's error."""
    try:
        return rule(vitals)
    except Exception as error:
        return NotSeen(f"a fault of Luthier's own, please report it ({type(error).__name__}: {error})")


def order(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Roots first, the surest and heaviest of them in front; then their consequences; then what is only worth knowing.

    A finding is a consequence when a likelier one was found that can cause it (`CAUSES`) and did not begin after it. Of
    findings that explain each other in a ring the one that began first is the root.
    """
    serious = sorted((item for item in found if item.severity != "info"), key=weight, reverse=True)
    above = {id(finding): _above(finding, serious) for finding in serious}
    roots = [finding for finding in serious if _begins(finding, above)]
    under: dict[int, list[Finding]] = {id(root): [] for root in roots}
    for finding in serious:
        if id(finding) not in under:
            under[next(id(root) for root in roots if _is_in(root, above[id(finding)]))].append(finding)
    roots.sort(key=lambda root: weight(root) + 0.02 * min(5, len(under[id(root)])), reverse=True)
    hung = [replace(root, consequences=tuple(under[id(root)])) for root in roots]
    consequences = [finding for root in roots for finding in under[id(root)]]
    minor = [item for item in found if item.severity == "info"]
    return tuple(prescribe(finding) for finding in (*hung, *consequences, *minor))


def explains(cause: Finding, effect: Finding) -> bool:
    """Whether one finding accounts for another."""
    if effect.symptom not in effects(cause) or _stood_before(effect, cause):
        return False
    if {cause.symptom, effect.symptom} <= STALLED and cause.certainty < effect.certainty:
        return False
    if cause.symptom in effects(effect) and not _stood_before(cause, effect) and weight(cause) <= weight(effect):
        return False
    return not _began_after(cause, effect)


def _stood_before(effect: Finding, cause: Finding) -> bool:
    """No step made what was there before the first one."""
    return cause.symptom in PACE and effect.symptom in BORN and effect.onset == 0


def effects(finding: Finding) -> frozenset[str]:
    """What a finding can bring about; where examples lose what tells them apart, units die and gradients vanish too."""
    alike = finding.symptom == "constant_output" and (finding.numbers.get("distinct") == 1 or "lost" in finding.numbers)
    flat = finding.symptom == "saturated_activation" and finding.onset == 0
    found = CAUSES.get(finding.symptom, frozenset()) | (SIGNALS if alike else frozenset())
    return found | {"lr_too_high"} if flat else found  # the gain that flattens units multiplies their gradients too


def weight(finding: Finding) -> float:
    """How much a finding deserves to be named first: certainty, a little for gravity and for an early onset."""
    early = 0.03 if finding.onset is not None and finding.onset <= 1 else 0.0
    return finding.certainty + 0.06 * _SEVERITY[finding.severity] + early


def _above(finding: Finding, serious: Sequence[Finding]) -> list[Finding]:
    """All that accounts for a finding, near or far; the finding itself too when it is part of a ring."""
    found: list[Finding] = []
    asked = [finding]
    for effect in asked:  # grows as it is read
        causes = [o for o in serious if o is not effect and explains(o, effect) and not _is_in(o, found)]
        found += causes
        asked += causes
    return found


def _begins(finding: Finding, above: Mapping[int, Sequence[Finding]]) -> bool:
    """Whether nothing accounts for a finding but what it accounts for itself, and none of that began before it."""
    return all(_is_in(finding, above[id(o)]) and _beginning(finding) <= _beginning(o) for o in above[id(finding)])


def _beginning(finding: Finding) -> tuple[float, float]:
    return (math.inf if finding.onset is None else finding.onset, -weight(finding))


def _is_in(finding: Finding, findings: Iterable[Finding]) -> bool:
    return any(other is finding for other in findings)


def _began_after(cause: Finding, effect: Finding) -> bool:
    """Whether the effect was there clearly before the cause (looks are some steps apart)."""
    if cause.onset is None or effect.onset is None:
        return False
    return cause.onset > 2 * effect.onset + 10


def watched(vitals: Vitals) -> str:
    """One line on what a diagnosis rests on."""
    if vitals.source != "watch":
        return f"read from {vitals.source}"
    steps = vitals.n_steps
    text = f"{steps:,} step{'s' * (steps != 1)}, {len(vitals.looks)} looks"
    spent = vitals.spent
    if spent is not None and spent.elapsed_s > 0:
        text += f", {spent.spent_s:.2f} s of {spent.elapsed_s:.1f} s spent watching"
    return text
