"""Which way a loss is driven, and whether it sees the targets at all."""

from __future__ import annotations

from luthier.doctor.findings import Finding
from luthier.doctor.symptoms.objectives import GIVEN, LOSSES, loss_calls, terms
from luthier.doctor.symptoms.paths import DROPOUTS, SAME_VALUES, SOFTMAXES, Graph, names
from luthier.doctor.vitals import Node, Vitals

_PASSED = SAME_VALUES | DROPOUTS


def misfit(graph: Graph, cause: str, evidence: str, severity: str = "critical", certainty: float = 1.0) -> Finding:
    """A finding of `wrong_loss`."""
    return Finding(
        symptom="wrong_loss",
        severity="critical" if severity == "critical" else "warning" if severity == "warning" else "info",
        cause=cause,
        evidence=(f"step {graph.onset}: {evidence}",),
        onset=0,
        certainty=certainty,
    )


def maximised(vitals: Vitals, graph: Graph) -> list[Finding]:
    """The loss reaches backward() with a negative sign, or the optimizer maximises."""
    upwards = any(group.get("maximize") for row in vitals.optimizers for group in row.groups)
    for root in graph.roots:
        parts = terms(graph, root)
        losses = [part for part in parts if part.node.op in LOSSES or _is_distance(graph, part.node)]
        likelihoods = [part for part in parts if not part.weighted and _is_log_likelihood(graph, part.node)]
        driven_up = [part for part in losses if (part.factor < 0) != upwards]
        driven_up += [part for part in likelihoods if (part.factor > 0) != upwards]
        if driven_up and len(driven_up) == len(losses) + len(likelihoods) and len(parts) == len(driven_up):
            why = "the optimizer is told to maximize" if upwards else "it reaches backward() with the wrong sign"
            cause = f"{_call_name(driven_up[0].node)}: {why}."
            return [misfit(graph, cause, f"the term has the factor {driven_up[0].factor:g}.")]
    return []


def _call_name(node: Node) -> str:
    if node.op in LOSSES or node.op in ("pow", "square", "abs"):
        return f"{node.op if node.op in LOSSES else 'the error'} is driven up, not down"
    return "the likelihood of the targets is driven down, not up"


def _is_distance(graph: Graph, node: Node) -> bool:
    """A squared or absolute difference to something outside of the model."""
    return node.op in ("pow", "square", "abs") and any(
        call.by_hand and call.node.index in graph.upstream([node.index]) for call in loss_calls(graph)
    )


def _is_log_likelihood(graph: Graph, node: Node) -> bool:
    """log-probabilities picked at the targets."""
    if not node.arguments or not (node.op == "gather" or (node.op == "getitem" and len(node.arguments) > 1)):
        return False
    origin = graph.origin(node.arguments[0].source, _PASSED)
    if origin is not None and origin.op == "log" and origin.arguments:
        inner = graph.origin(origin.arguments[0].source, _PASSED | names("clamp add"))
        return inner is not None and inner.op in SOFTMAXES
    return origin is not None and origin.op == "log_softmax"


def without_targets(graph: Graph) -> list[Finding]:
    """The loss depends on nothing but the model's output, though there are targets."""
    look = graph.looks[0]
    if look.targets is None or not graph.roots:
        return []
    reached = [graph.nodes[index] for index in graph.upstream(graph.roots) if index not in graph.inside]
    sources = [item.source.partition(":")[0] for node in reached for item in node.arguments]
    made_here = any(not node.arguments for node in reached)
    labels_inside = any(
        graph.back(item.source, SAME_VALUES)[1].startswith(("input", "target", "extern"))
        for index in graph.inside
        for item in graph.nodes[index].arguments
        if graph.nodes[index].op in LOSSES
    )
    calls = loss_calls(graph)
    if not calls or made_here or labels_inside or any(source in GIVEN for source in sources):
        return []
    cause = f"{calls[0].name} never sees the targets: it compares the model's output with itself."
    return [misfit(graph, cause, "nothing from outside the model enters the loss.", certainty=0.9)]
