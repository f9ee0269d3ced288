"""Recurrences: weights that multiply their own results again and again, in one operation or in the user's own loop."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from luthier.doctor.findings import Finding
from luthier.doctor.symptoms.facts import middle, progress
from luthier.doctor.symptoms.harm import FITTED
from luthier.doctor.symptoms.layers import GATED, Layer, layers, update_ratio
from luthier.doctor.symptoms.outcomes import data_allow_more
from luthier.doctor.symptoms.paths import PRODUCTS, RECURRENT, SAME_VALUES, Graph, graphs, is_dense
from luthier.doctor.vitals import Look, Node, Vitals

PLAIN_RECURRENT = frozenset({"rnn", "rnn_tanh", "rnn_relu", "rnn_cell", "rnn_tanh_cell", "rnn_relu_cell"})
_FEWEST = 3
_PASCANU = "Pascanu, Mikolov and Bengio, On the difficulty of training recurrent neural networks, 2013"


@dataclass(frozen=True)
class Recurrence:
    """A weight whose result goes into its own next use.

    Attributes:
        weight: name of the parameter. uses: the operations that read it, in the order of time.
    """

    weight: str
    uses: tuple[Node, ...]

    def is_plain(self, graph: Graph) -> bool:
        """Nothing is carried past the weight by a gate or a sum: the gradient is multiplied by it at every step."""
        before, here, after = self.uses[:3]
        return here.op not in GATED and not _reaches(graph, after, before, without=here)

    def is_cut(self, graph: Graph) -> bool:
        """No step passes a gradient to the one before it."""
        pairs = itertools.pairwise(self.uses)
        return not any(_reaches(graph, later, earlier, differentiable=True) for earlier, later in pairs)


def recurrences(graph: Graph) -> Iterator[Recurrence]:
    """Those that the user's own loop over time makes, of at least three steps."""
    uses: dict[str, list[Node]] = {}
    for node in graph.nodes.values():
        if is_dense(node) or node.op in PRODUCTS | RECURRENT or node.op in PLAIN_RECURRENT:
            for argument in node.arguments[1:]:
                if (source := graph.back(argument.source, SAME_VALUES)[1]).startswith("param:"):
                    uses.setdefault(source.removeprefix("param:"), []).append(node)
    for weight, found in uses.items():
        if len(found) >= _FEWEST and all(_reaches(graph, later, one) for one, later in itertools.pairwise(found)):
            yield Recurrence(weight, tuple(found))


def _reaches(
    graph: Graph, later: Node, earlier: Node, without: Node | None = None, differentiable: bool = False
) -> bool:
    """Whether one operation depends on another one, also when a third one is taken out."""
    waiting, seen = [later], {later.index}
    while waiting:
        for producer in graph.producers(waiting.pop()):
            if differentiable and not producer.requires_grad:
                continue
            if producer.index == earlier.index:
                return True
            if earlier.index < producer.index and producer.index not in seen and producer is not without:
                seen.add(producer.index)
                waiting.append(producer)
    return False


def _gain(vitals: Vitals) -> tuple[str, float, int] | None:
    """Place, gain per time step and time steps of the first plain recurrence.

    The Jacobian of h -> tanh(W h) has a spectral radius of at most about rms(W) * sqrt(hidden) for random W.
    """
    look = vitals.looks[0] if vitals.looks else None
    if look is None:
        return None
    loops = {
        found.weight: len(found.uses)
        for graph in graphs(vitals)[:1]
        for found in recurrences(graph)
        if found.is_plain(graph)
    }
    for layer in layers(vitals, look):
        times = _times(layer, look) or loops.get(layer.name, 0)
        if times > 1 and len(layer.parameter.shape) == 2:
            return layer.place, (layer.parameter.rms or 1.0) * math.sqrt(min(layer.parameter.shape)), times
    return None


def _times(layer: Layer, look: Look) -> int:
    """How often a plain recurrence within one operation multiplies by this weight."""
    node = layer.node
    if node is None or node.op not in PLAIN_RECURRENT or node.op.endswith("_cell") or "weight_hh" not in layer.name:
        return 0
    shape = node.arguments[0].shape if node.arguments else ()
    if len(shape) == 3 and "batch_first" in node.attrs:
        return shape[1] if node.attrs["batch_first"] else shape[0]
    return max([size for size in shape[:2] if size != look.batch_size], default=0)


def fading(vitals: Vitals) -> Finding | None:
    """A plain recurrence over a long sequence that has learnt nothing: its Jacobian shrinks with every step."""
    learnt, recurrent = progress(vitals), _gain(vitals)
    if learnt is None or learnt > 0.05 or vitals.n_steps < 100 or recurrent is None or not _moved(vitals):
        return None
    place, gain, times = recurrent
    if not 0 < gain < 1 or times * math.log10(gain) > -4:
        return None
    return Finding(
        "vanishing_gradient",
        "warning",
        f"{place} is a plain recurrent layer over {times} time steps, each of which multiplies the gradient by about "
        f"{gain:.2g}: nothing is left of it for the early ones.",
        (f"{gain:.2g} to the power {times} is {gain**times:.0e}; the loss has not left the constant answer",),
        (place,),
        0,
        0.5,
        {"gain": gain, "times": times},
        source=_PASCANU,
    )


def _moved(vitals: Vitals) -> bool:
    """The weights went some way: where they hardly moved, no gradient would have helped."""
    usual = [ratio for look in vitals.looks if (ratio := update_ratio(vitals, look)) is not None]
    return not usual or middle(usual) * vitals.n_steps > 0.05


def growing(vitals: Vitals, hurt: str) -> Finding | None:
    """A plain recurrence whose Jacobian grows with every step of a long sequence."""
    recurrent = _gain(vitals)
    if recurrent is None:
        return None
    place, gain, times = recurrent
    learnt = progress(vitals)
    if gain > 2 and learnt is not None and learnt < FITTED and data_allow_more(vitals):
        hurt = hurt or f"the loss came only {learnt:.0%} of the way to a perfect answer"
    if not hurt:
        return None
    if gain <= 1.2 or times * math.log10(gain) < 2:
        return None
    return Finding(
        "exploding_gradient",
        "critical" if "finite" in hurt else "warning",
        f"{place} multiplies what it carries by up to {gain:.2g} in each of {times} time steps, and {hurt}.",
        (f"rms of the recurrent weights times sqrt(hidden) is {gain:.3g}; to the power {times} {gain**times:.0e}",),
        (place,),
        0,
        0.85,
        {"gain": gain, "times": times},
        source=_PASCANU,
    )


def cut(vitals: Vitals) -> Finding | None:
    """The state is detached at every time step, so that no step learns what a later one needs."""
    learnt = progress(vitals)
    for graph in graphs(vitals):
        found = [item for item in recurrences(graph) if graph.learning & _indices(item.uses) and item.is_cut(graph)]
        if found:
            return _cut_off(found, learnt)
    return None


def _indices(nodes: Sequence[Node]) -> frozenset[int]:
    return frozenset(node.index for node in nodes)


def _cut_off(found: Sequence[Recurrence], learnt: float | None) -> Finding:
    uses = found[0].uses
    place = uses[0].module or found[0].weight
    return Finding(
        "disconnected_params",
        "info" if learnt is not None and learnt > FITTED else "critical" if (learnt or 0.0) < 0.3 else "warning",
        f"The gradient stops between the time steps of {place} (detach, no_grad or .data within the loop): only the "
        "last step learns, and nothing teaches the earlier ones what to remember.",
        (f"{place} runs {len(uses)} times on its own result, and no run passes a gradient to the one before it",),
        (place,),
        0,
        0.9,
        {"times": len(uses), "used": True},
        source="Williams and Peng, An efficient gradient-based algorithm for on-line training of recurrent nets, 1990",
    )
