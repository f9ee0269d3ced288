"""Loss calls in the graph: what is compared with what, and with which factor each term reaches backward()."""

from __future__ import annotations

from dataclasses import dataclass, replace

from luthier.doctor.symptoms.paths import SAME_VALUES, SOFTMAXES, Graph, names
from luthier.doctor.vitals import Argument, Node

REGRESSION = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"})
BINARY = frozenset({"binary_cross_entropy", "binary_cross_entropy_with_logits"})
OTHERS = names(
    "nll_loss kl_div poisson_nll_loss gaussian_nll_loss soft_margin_loss multi_margin_loss multilabel_margin_loss "
    "multilabel_soft_margin_loss hinge_embedding_loss cosine_embedding_loss margin_ranking_loss triplet_margin_loss "
    "triplet_margin_with_distance_loss ctc_loss"
)
LOSSES = REGRESSION | BINARY | OTHERS | {"cross_entropy"}
NAMES = {
    "cross_entropy": "cross_entropy",
    "mse_loss": "mean squared error",
    "l1_loss": "mean absolute error",
    "smooth_l1_loss": "smooth L1",
    "huber_loss": "Huber loss",
    "binary_cross_entropy_with_logits": "binary_cross_entropy_with_logits",
}
GIVEN = ("target", "extern", "input", "buffer")


@dataclass(frozen=True)
class LossCall:
    """A comparison of what the model answered with what was wanted.

    Attributes:
        node: the operation; the subtraction of a loss written by hand.
        kind: name of the loss function.
        prediction, target: the two sides.
        by_hand: written with plain arithmetic.
    """

    node: Node
    kind: str
    prediction: Argument
    target: Argument | None = None
    by_hand: bool = False

    @property
    def name(self) -> str:
        """How to call it in a sentence."""
        return NAMES.get(self.kind, self.kind)


def loss_calls(graph: Graph) -> list[LossCall]:
    """The losses that backward() reaches."""
    calls = []
    for index in sorted(graph.learning):
        node = graph.nodes[index]
        if node.op in LOSSES and node.arguments:
            calls.append(_call(graph, node))
        elif node.op == "sub" and len(node.arguments) == 2 and index not in graph.inside:
            calls.extend(_by_hand(graph, node))
        elif node.op == "mul" and len(node.arguments) == 2 and index not in graph.inside:
            calls.extend(_likelihood(graph, node))
    return calls


def _call(graph: Graph, node: Node) -> LossCall:
    first, *rest = node.arguments
    second = rest[0] if rest else None
    if second is not None and not graph.is_prediction(first) and graph.is_prediction(second):
        first, second = second, first
    return LossCall(node, node.op, first, second)


def _by_hand(graph: Graph, node: Node) -> list[LossCall]:
    """A difference to something outside of the model that is squared or made absolute next."""
    ours = [item for item in node.arguments if graph.is_prediction(item)]
    theirs = [item for item in node.arguments if not graph.is_prediction(item)]
    if len(ours) != 1 or len(theirs) != 1:
        return []
    kinds = {_measure(reader) for reader in graph.readers(node.index, SAME_VALUES)} - {None}
    return [LossCall(node, kind, ours[0], theirs[0], by_hand=True) for kind in sorted(filter(None, kinds))[:1]]


def _likelihood(graph: Graph, node: Node) -> list[LossCall]:
    """log-probabilities times what was wanted of each class: a cross entropy written by hand."""
    ours = [item for item in node.arguments if graph.is_prediction(item)]
    theirs = [item for item in node.arguments if not graph.is_prediction(item)]
    if len(ours) != 1 or len(theirs) != 1 or ours[0].shape != theirs[0].shape:
        return []
    origin = graph.origin(ours[0].source)
    if origin is not None and origin.op == "log":
        origin = graph.origin(graph.main(origin).source, SAME_VALUES | names("clamp add"))
    known = origin is not None and origin.op in SOFTMAXES | {"log_softmax"}
    return [LossCall(node, "nll_loss", ours[0], theirs[0], by_hand=True)] if known else []


def _measure(reader: Node) -> str | None:
    if reader.op == "square" or (reader.op == "pow" and _number(reader.attrs.get("exponent", 2)) == 2):
        return "mse_loss"
    if reader.op == "mul" and len({item.source for item in reader.arguments}) == 1 and len(reader.arguments) == 2:
        return "mse_loss"
    return {"abs": "l1_loss", "norm": "mse_loss"}.get(reader.op)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class Term:
    """One summand of what backward() was called on.

    Attributes:
        node: where the walk from the root ended: a loss call or another operation.
        factor: product of the plain numbers on the way, with its sign.
        amp: the factor of a GradScaler on the way, 1 without one.
        weighted: a tensor on the way multiplies or divides it: its size is not known.
        summed: the node of the sum over the examples on the way (the loss itself for reduction="sum").
        divided_after: by a number of 2 or more, after the sum.
    """

    node: Node
    factor: float = 1.0
    amp: float = 1.0
    weighted: bool = False
    summed: Node | None = None
    divided_after: bool = False


def terms(graph: Graph, root: int) -> list[Term]:
    """The summands of one root with their factors."""
    found: list[Term] = []
    if root in graph.nodes:
        _walk(graph, Term(graph.nodes[root]), found, 0)
    return found


def _walk(graph: Graph, term: Term, found: list[Term], depth: int) -> None:
    following = _following(graph, term)
    if following is None or depth > 200 or len(found) > 200:
        found.append(_ended(term))
        return
    for position, changed in following:
        producer = graph.at(term.node.arguments[position].source)
        if producer is not None and producer.index in graph.learning:
            _walk(graph, replace(changed, node=producer), found, depth + 1)


def _ended(term: Term) -> Term:
    if term.node.op in LOSSES and term.node.attrs.get("reduction") == "sum" and term.summed is None:
        return replace(term, summed=term.node, divided_after=term.weighted or abs(term.factor) <= 0.5)
    return term


def _following(graph: Graph, term: Term) -> list[tuple[int, Term]] | None:
    """Positions of the arguments to go on with and what they have gathered; None where the walk ends."""
    node = term.node
    if not node.arguments or (node.index in graph.inside and node.index not in graph.roots):
        return None
    if node.op == "getitem" and len(node.arguments) > 1:
        return None  # values picked at given places, such as log-probabilities at the targets
    if node.op in SAME_VALUES | {"mean", "nanmean"}:
        return [(0, term)]
    if node.op in ("add", "stack", "cat"):
        return [(position, term) for position in range(len(node.arguments))]
    if node.op == "sub":
        minus = 0 if node.attrs.get("reversed") else 1
        return [(p, _scaled(term, -1.0) if p == minus else term) for p in range(len(node.arguments))]
    if node.op == "neg":
        return [(0, _scaled(term, -1.0))]
    if node.op in ("mul", "div"):
        return _product(graph, term)
    if node.op in ("sum", "nansum"):
        return [(0, _summed(graph, term))]
    return None


def _scaled(term: Term, factor: float) -> Term:
    return replace(term, factor=term.factor * factor)


def _product(graph: Graph, term: Term) -> list[tuple[int, Term]] | None:
    """Through a multiplication or division by a number or by a tensor that does not learn."""
    node = term.node
    learning = [p for p, item in enumerate(node.arguments) if _index_in(graph, item)]
    if len(learning) != 1 or (node.op == "div" and _is_divisor(node, learning[0])):
        return None
    if len(node.arguments) == 1:
        number = _number(node.attrs.get("scalar"))
        if not number:
            return [(0, replace(term, weighted=True))]
        return [(0, _scaled(term, number if node.op == "mul" else 1 / number))]
    other = node.arguments[1 - learning[0]] if len(node.arguments) == 2 else None
    number = _constant(graph, other) if other is not None and node.op == "mul" else None
    if number is None:
        return [(learning[0], replace(term, weighted=True))]
    if _is_amp(number):
        return [(learning[0], replace(term, amp=term.amp * number))]
    return [(learning[0], _scaled(term, number))]


def _is_divisor(node: Node, position: int) -> bool:
    """Whether an argument of a division is what is divided by."""
    return position == (0 if node.attrs.get("reversed") else 1)


def _index_in(graph: Graph, argument: Argument) -> bool:
    node = graph.at(argument.source)
    return node is not None and node.index in graph.learning


def _constant(graph: Graph, other: Argument) -> float | None:
    """The value of a tensor of one number from outside that is the same at every look (twice at least)."""
    values = {item.mean for item in graph.numbers(other.source)}
    outside = other.source.partition(":")[0] in ("extern", "buffer") and not other.requires_grad
    if other.shape not in ((), (1,)) or not outside or len(values) != 1:
        return None
    return values.pop()


def _is_amp(number: float) -> bool:
    """The factor of a GradScaler is a power of two."""
    return number >= 2 and number == int(number) and not int(number) & (int(number) - 1)


def _summed(graph: Graph, term: Term) -> Term:
    """A sum over the examples is noted with whether something was divided after it (nearer to the root)."""
    node = term.node
    if term.summed is not None or not _over_examples(graph, node):
        return term
    return replace(term, summed=node, divided_after=term.weighted or abs(term.factor) <= 0.5)


def _over_examples(graph: Graph, node: Node) -> bool:
    shape = node.arguments[0].shape if node.arguments else ()
    size = graph.batch_size
    dims = node.attrs.get("dim")
    if not shape or shape[0] < 2 or (size is not None and (size < 2 or shape[0] < size)):
        return False
    chosen = dims if isinstance(dims, (list, tuple)) else [dims]
    return dims is None or any(dim in (0, -len(shape)) for dim in chosen) or len(chosen) == 0
