"""Classes of very different frequency, of which the rare ones are not answered."""

from __future__ import annotations

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms import facts
from luthier.doctor.vitals import Node, Predictions, Vitals

IMBALANCED, EXTREME = 8.0, 19.0
FEW = 10  # classes; where every token or pixel has one of many, frequencies differ by nature


def class_imbalance(vitals: Vitals) -> list[Finding] | NotSeen:
    """Rare classes that the model does not answer, which accuracy hides."""
    counts = facts.class_counts(vitals)
    if not counts:
        return NotSeen("no class targets were seen: pass targets= to watch.step")
    single = one_each(vitals)  # most tokens or pixels are of one class by nature
    if not facts.is_classification(vitals) or (not single and (len(counts) > FEW or language(vitals))):
        return []
    total = sum(counts.values())
    most, least = max(counts, key=lambda c: counts[c]), min(counts, key=lambda c: counts[c])
    ratio = counts[most] / max(counts[least], 1)
    if len(counts) < 2 or total < 100 or ratio < IMBALANCED:
        return []
    rare = [label for label, count in counts.items() if count * IMBALANCED <= counts[most]]
    seen = [(rows, name) for rows, name in _answers(vitals) if _recall(rows, rare)[1] >= 8]
    recalls = [(_recall(rows, rare)[0], _recall(rows, [most])[0], name) for rows, name in seen]
    ignored = any(found < (0.6 if single else 0.3) * usual for found, usual, _ in recalls)
    learnt = bool(recalls) and all(found >= 0.9 * usual and usual > 0.5 for found, usual, _ in recalls)
    hidden = _hidden(vitals)
    ignored = ignored or bool(hidden)
    serious = not language(vitals) and (ignored or (single and ratio >= EXTREME and not learnt))
    evidence = [
        f"class {most} has {counts[most] / total:.1%} of {total} targets seen, class {least} "
        f"{counts[least] / total:.2%}"
    ]
    evidence += [
        f"in {name} the model finds {found:.0%} of the rare class(es) {', '.join(rare[:5])} and {usual:.0%} of {most}"
        for found, usual, name in recalls
    ]
    evidence += [hidden] if hidden else []
    return [
        Finding(
            symptom="class_imbalance",
            severity="warning" if serious else "info",
            cause=f"Class {most} is {ratio:.0f} times as frequent as class {least}"
            + (": answering it always is cheap, and rare classes are ignored." if serious else "."),
            evidence=tuple(evidence),
            onset=0,
            certainty=0.85 if ignored else 0.75 if serious else 0.3,
            numbers={"ratio": ratio, "counts": dict(counts)},
            source="He & Garcia 2009, Learning from Imbalanced Data",
        )
    ]


def _hidden(vitals: Vitals) -> str:
    """F1, in which rare classes count as much as frequent ones, stays far behind accuracy in validation."""
    scores = facts.metric(vitals, "val", "f1")
    right = max((value for value in facts.accuracies(vitals) if value is not None), default=0.0)
    fair = facts.middle([value for _, value in scores[-3:]])
    return f"F1 is {fair:.2f} in validation where accuracy is {right:.2f}" if scores and fair < 0.75 * right else ""


def language(vitals: Vitals) -> bool:
    """The classes are the very tokens that the model reads: words have their own frequencies, rare ones stay open."""
    look = next((look for look in vitals.looks if look.nodes), None)
    loss = facts.loss_node(look) if look is not None else None
    if look is None or loss is None or not loss.arguments or len(loss.arguments[0].shape) < 2:
        return False
    classes = loss.arguments[0].shape[1]
    tables = [node.arguments[-1].shape[0] for node in look.nodes if _is_lookup(node)]
    one_hot = look.inputs.shape[2:] if look.inputs is not None and len(look.inputs.shape) == 3 else ()
    return classes in tables or (classes in one_hot and not one_each(vitals))


def _is_lookup(node: Node) -> bool:
    return node.op.startswith("embedding") and bool(node.arguments) and bool(node.arguments[-1].shape)


def one_each(vitals: Vitals) -> bool:
    """One target for every example (not one for every token or pixel)."""
    told = [(row.n, sum(row.counts.values())) for row in vitals.targets if row.counts and row.n]
    answered = [(look.batch_size, look.predictions.n) for look in vitals.looks if look.predictions is not None]
    rows = told if vitals.targets else answered
    return bool(rows) and all(size == n for size, n in rows)


def _answers(vitals: Vitals) -> list[tuple[list[Predictions], str]]:
    """Predictions in the second half of the training, and in the last evaluations."""
    looks = [look.predictions for look in vitals.looks[len(vitals.looks) // 2 :] if look.predictions is not None]
    evaluated = [row.predictions for row in vitals.evaluations[-3:] if row.predictions is not None]
    return [(looks, "training"), (evaluated, "validation")]


def _recall(seen: list[Predictions], classes: list[str]) -> tuple[float, int]:
    """Share of the examples of these classes that were answered rightly, and their number."""
    examples = right = 0
    for predictions in seen:
        for label in classes:
            entry = predictions.by_class.get(label)
            if entry is not None and len(entry) == 3:
                examples, right = examples + entry[0], right + entry[2]
    return (right / examples if examples else 0.0), examples
