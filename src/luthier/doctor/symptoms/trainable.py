"""Parameters that should learn and cannot: cut off from the loss, unknown to the model or the optimizer, frozen."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms import recurrences
from luthier.doctor.symptoms.freshness import is_fresh, is_trained_norm
from luthier.doctor.symptoms.paths import PRODUCTS, Graph, graphs, is_dense
from luthier.doctor.vitals import Anatomy, Look, Node, Parameter, Vitals

_LAYERS = ("Linear", "Conv", "LSTM", "GRU", "RNN", "Attention", "Bilinear")
_SHARE = 0.5


def _shares(parameters: Sequence[Parameter], of: Sequence[Parameter]) -> float:
    return sum(item.numel for item in parameters) / max(sum(item.numel for item in of), 1)


def _named(parameters: Sequence[Parameter]) -> str:
    found = [item.name for item in parameters]
    return ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")


def disconnected_params(vitals: Vitals) -> list[Finding] | NotSeen:
    """Trainable parameters that the loss does not reach: detached, computed under no_grad, or not used."""
    anatomy = vitals.anatomy
    if anatomy is None or not vitals.looks:
        return NotSeen("no training step was looked at: call loss.backward() and optimizer.step() while watching")
    looks = [look for look in vitals.looks if look.n_backward > 0 and len(look.grad) == len(anatomy.parameters)]
    if not looks:
        return NotSeen("no backward pass was seen")
    stepped = [p for p, item in enumerate(anatomy.parameters) if item.requires_grad and item.in_optimizer]
    cut = [p for p in stepped if not _reached(vitals, looks, p)]
    if not cut:
        between_steps = recurrences.cut(vitals)
        return [] if between_steps is None else [between_steps]
    if len(cut) == len(stepped) and not _cut_by_graph(vitals):
        return []
    return [_cut_off(vitals, anatomy, looks, [anatomy.parameters[p] for p in cut])]


def _reached(vitals: Vitals, looks: Sequence[Look], position: int) -> bool:
    """Whether a parameter ever had a gradient."""
    for look in looks:
        before = look.grad_before_clip[position] if position < len(look.grad_before_clip) else None
        if look.grad[position] is not None or before is not None:
            return True
    return any(position < len(row.grad) and row.grad[position] is not None for row in vitals.norms)


def _cut_by_graph(vitals: Vitals) -> bool:
    """No parameter is reached although backward() ran: the operations must show where the graph was cut."""
    found = graphs(vitals)
    return bool(found) and not any(
        argument.source.startswith("param:")
        for graph in found
        for index in graph.learning
        for argument in graph.nodes[index].arguments
    )


def _cut_off(vitals: Vitals, anatomy: Anatomy, looks: Sequence[Look], cut: Sequence[Parameter]) -> Finding:
    trainable = [item for item in anatomy.parameters if item.requires_grad]
    share = _shares(cut, trainable)
    where_cut = _cuts(vitals)
    used = _used(vitals, cut)
    evidence = [f"{_named(cut)} had no gradient at any of {len(looks)} looks."]
    if used is False:
        evidence.append("the forward pass never reads them.")
    if where_cut and used is not False:
        evidence.append(f"the graph is cut at {', '.join(where_cut[:3])}.")
    grave = len(cut) == len(trainable) or share > _SHARE or (used is not False and bool(where_cut))
    weight = any(len(item.shape) >= 2 for item in cut)
    return Finding(
        symptom="disconnected_params",
        severity="critical" if grave else "warning" if weight or share > 0.01 else "info",
        cause=f"{len(cut)} trainable parameters ({share:.0%} of all weights) get no gradient from the loss, so they "
        "keep their initial values.",
        evidence=tuple(evidence),
        where=tuple(dict.fromkeys(item.layer or item.name for item in cut)),
        onset=looks[0].step,
        certainty=1.0 if len(looks) >= 2 else 0.8,
        numbers={"parameters": len(cut), "share": share, "used": used, "cut_at": where_cut[:3]},
    )


def _cuts(vitals: Vitals) -> list[str]:
    """Where a value that could carry a gradient goes on without: detach, no_grad, a conversion."""
    found: list[str] = []
    for graph in graphs(vitals)[:2]:
        reached = graph.upstream(graph.roots)
        for index in sorted(reached):
            node = graph.nodes[index]
            if _cuts_here(node):
                found.append(f"{node.op} in {node.module}" if node.module else node.op)
    return list(dict.fromkeys(found))


def _cuts_here(node: Node) -> bool:
    floating = node.dtype.startswith(("float", "bfloat", "half", "double", "complex"))
    asks = any(item.requires_grad for item in node.arguments)
    return floating and asks and not node.requires_grad and node.op not in ("argmax", "sign")


def _used(vitals: Vitals, cut: Sequence[Parameter]) -> bool | None:
    """Whether the forward pass reads any of the parameters; None when no operations were seen."""
    found = graphs(vitals)
    if not found:
        return None
    wanted = {f"param:{item.name}" for item in cut}
    return any(item.source in wanted for graph in found for node in graph.nodes.values() for item in node.arguments)


def unregistered_params(vitals: Vitals) -> list[Finding] | NotSeen:
    """Layers kept where nn.Module does not see them (a plain list or dict): no optimizer trains them."""
    anatomy = vitals.anatomy
    if anatomy is None:
        return NotSeen("the model was not seen: watch it while it trains")
    hidden = anatomy.unregistered
    leaves = [] if anatomy.foreign else _leaf_weights(graphs(vitals))
    if not hidden and not leaves:
        return []
    where = tuple(item.split(" (")[0] for item in hidden) or tuple(dict.fromkeys(leaves))
    evidence = [f"hidden from model.parameters(): {', '.join(hidden[:5])}."] if hidden else []
    if leaves:
        evidence.append(f"the forward pass uses {len(leaves)} weights that are no parameters of the model.")
    return [
        Finding(
            symptom="unregistered_params",
            severity="critical" if leaves or not graphs(vitals) else "warning",
            cause=f"{len(where)} layers or weights are kept where nn.Module does not find them (a list, a dict, a "
            "plain tensor): no optimizer trains them, and state_dict() and .to() leave them out.",
            evidence=tuple(evidence),
            where=where,
            onset=0,
            certainty=1.0,
            numbers={"places": list(hidden), "leaves": len(leaves)},
            source="torch.nn.ModuleList: 'modules it contains are properly registered'.",
        )
    ]


def _leaf_weights(found: Sequence[Graph]) -> list[str]:
    """Operations of the model that use a tensor as a weight which asks for a gradient and is nobody's parameter."""
    places: dict[str, str] = {}
    for graph in found:
        for index in sorted(graph.learning & graph.inside):
            node = graph.nodes[index]
            weighted = is_dense(node) or node.op in PRODUCTS | {"embedding", "layer_norm", "batch_norm", "lstm", "gru"}
            for argument in node.arguments[1:] if weighted else ():
                if argument.source.startswith("leaf:") and argument.requires_grad:
                    places.setdefault(argument.source, node.module or node.op)
    return list(places.values())


def frozen_params(vitals: Vitals) -> list[Finding] | NotSeen:
    """Parameters that should learn have requires_grad off or are in no optimizer."""
    anatomy = vitals.anatomy
    if anatomy is None or not anatomy.parameters:
        return NotSeen("no parameters were seen: watch a model with parameters")
    missing = [] if _is_stale(vitals, anatomy) else _missing(vitals, anatomy)
    frozen = [item for item in anatomy.parameters if not item.requires_grad]
    fresh = _should_learn(vitals, frozen)
    if missing:
        return [_finding(anatomy, missing, "are in no optimizer", "warning")]
    if fresh:
        began = {item.name for item in vitals.anatomies[0].parameters if item.requires_grad}
        late = any(item.name in began for item in fresh)
        why = "were frozen while training" if late else "have requires_grad off, though they hold random initial values"
        return [_finding(anatomy, fresh, why, "warning")]
    if frozen:
        return [_finding(anatomy, frozen, "have requires_grad off (they look trained or fixed on purpose)", "info")]
    return []


def _missing(vitals: Vitals, anatomy: Anatomy) -> list[Parameter]:
    """Trainable, used on the way to the loss, and in no optimizer."""
    if not any(item.in_optimizer for item in anatomy.parameters):
        return []
    found = [item for item in anatomy.parameters if item.requires_grad and not item.in_optimizer]
    seen = graphs(vitals)
    return [item for item in found if not seen or _on_the_way(seen, item.name)]


def _on_the_way(found: Sequence[Graph], name: str) -> bool:
    wanted = f"param:{name}"
    return any(
        argument.source == wanted
        for graph in found
        for index in graph.learning
        for argument in graph.nodes[index].arguments
    )


def _should_learn(vitals: Vitals, frozen: Sequence[Parameter]) -> list[Parameter]:
    """Frozen only after training began, or with fresh random values in layers that are made to learn.

    Trained weights may look like random ones here and there, so all of the frozen layers must look fresh. Embeddings
    do not count: fixed random codes serve the layers after them well.
    """
    began = {item.name: item for item in vitals.anatomies[0].parameters}
    later = [item for item in frozen if began.get(item.name, item).requires_grad]
    layers = [
        item
        for item in frozen
        if len(item.shape) >= 2 and any(kind in item.layer_type for kind in _LAYERS) and not _is_teacher(vitals, item)
    ]
    known = [item for item in layers if item.numel >= 64]
    trained = any(not is_fresh(began.get(item.name, item)) for item in known) or any(map(is_trained_norm, frozen))
    fresh = [] if trained else known
    if later and any(len(item.shape) >= 2 for item in later):
        return later
    names = {item.layer for item in fresh}
    return [item for item in frozen if item.layer in names] if fresh else []


def _is_teacher(vitals: Vitals, item: Parameter) -> bool:
    """A second network whose answers are targets: no trainable parameter lies before or after it."""
    for graph in graphs(vitals):
        users = [n.index for n in graph.nodes.values() if any(a.source == f"param:{item.name}" for a in n.arguments)]
        if not users:
            continue
        around = (graph.upstream(users) | graph.downstream(users)) & graph.inside
        read = [argument for index in around for argument in graph.nodes[index].arguments]
        return not any(argument.source.startswith("param:") and argument.requires_grad for argument in read)
    return False


def _finding(anatomy: Anatomy, parameters: Sequence[Parameter], what: str, severity: str) -> Finding:
    share = _shares(parameters, anatomy.parameters)
    grave = severity == "warning" and share > _SHARE
    small = severity == "warning" and not any(len(item.shape) >= 2 for item in parameters) and share < 0.01
    layers = tuple(dict.fromkeys(item.layer or item.name for item in parameters))
    return Finding(
        symptom="frozen_params",
        severity="critical" if grave else "warning" if severity == "warning" and not small else "info",
        cause=f"{len(parameters)} parameters ({share:.0%} of all weights) {what}: they never change.",
        evidence=(f"{_named(parameters)}.",),
        where=layers,
        onset=anatomy.step,
        certainty=1.0,
        numbers={"share": share, "layers": len(layers), "missing": "optimizer" in what},
    )


def _outside(anatomy: Anatomy) -> list[Parameter]:
    return [item for item in anatomy.parameters if item.requires_grad and not item.in_optimizer]


def _alike(anatomy: Anatomy) -> int:
    """How many parameters outside of the optimizers may stand where a tensor in them stood that is not the model's.

    They have its shape, or as weights its inputs: a new head mostly comes with another number of classes.
    """
    shapes = {tuple(shape) for shape in anatomy.foreign}
    inputs = {shape[1:] for shape in shapes if len(shape) > 1}
    return sum(tuple(item.shape) in shapes or tuple(item.shape[1:]) in inputs for item in _outside(anatomy))


def _is_stale(vitals: Vitals, anatomy: Anatomy) -> bool:
    """The optimizers hold tensors of an earlier model in place of its parameters: alike, or read by nothing."""
    outside = _outside(anatomy)
    if not anatomy.foreign or not outside:
        return False
    trainable = sum(item.requires_grad for item in anatomy.parameters)
    return len(outside) == trainable or 2 * _alike(anatomy) >= len(outside) or _are_idle(vitals, outside)


def _are_idle(vitals: Vitals, outside: Sequence[Parameter]) -> bool:
    """Nothing reads the tensors of others (a loss with weights would), while some of the model's own go unstepped."""
    seen = graphs(vitals)
    read = any(a.source.startswith("leaf:") for graph in seen for n in graph.nodes.values() for a in n.arguments)
    return bool(seen) and not read and any(_on_the_way(seen, item.name) for item in outside)


def stale_optimizer(vitals: Vitals) -> list[Finding] | NotSeen:
    """The optimizer holds parameters that the model no longer uses, and not those that it uses."""
    anatomy = vitals.anatomy
    if anatomy is None or not (vitals.optimizers or anatomy.foreign):
        return NotSeen("no optimizer was seen: pass it to watch, or step it while watching")
    if not _is_stale(vitals, anatomy):
        return []
    outside = _outside(anatomy)
    alike = _alike(anatomy)
    share = _shares(outside, [item for item in anatomy.parameters if item.requires_grad])
    return [
        Finding(
            symptom="stale_optimizer",
            severity="critical",
            cause=f"the optimizer steps {len(anatomy.foreign)} tensors that are not the model's, while {len(outside)} "
            f"parameters of the model ({share:.0%} of all weights) are in no optimizer: it was made before the model "
            "(or a layer) was replaced.",
            evidence=(
                f"not stepped: {_named(outside)}.",
                f"{alike} of them fit in the place of one that is.",
            ),
            where=tuple(dict.fromkeys(item.layer or item.name for item in outside)),
            onset=anatomy.step,
            certainty=1.0 if alike else 0.9,
            numbers={"share": share, "foreign": len(anatomy.foreign)},
        )
    ]
