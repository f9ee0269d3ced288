"""The graph of a look, made by hand: x -> linear -> relu -> linear -> view -> mse(target), with a detached branch."""

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms.objectives import loss_calls, terms
from luthier.doctor.symptoms.paths import SAME_VALUES, Graph, graphs, gravest, is_dense, node_index, place, unseen
from luthier.doctor.vitals import Anatomy, Argument, Look, Node, Stats, Vitals


def node(index, op, *sources, module=None, shape=(4, 1), requires_grad=True, stats=None, given=(), **attrs):
    known = dict(given)
    arguments = tuple(Argument(source, shape=(4, 1), stats=known.get(source)) for source in sources)
    return Node(index, op, module, arguments, attrs, shape, "float32", requires_grad, stats)


def look(*nodes, step=0, roots=(5,), targets=None):
    return Look(step=step, nodes=nodes, outputs=(2,), roots=roots, batch_size=4, targets=targets)


NODES = (
    node(0, "linear", "input:0", "param:first.weight", module="first", stats=Stats(n=4, max=1.0)),
    node(1, "relu", "n0", module=""),
    node(2, "linear", "n1", "param:second.weight", module="second"),
    node(3, "view", "n2", shape=(4,)),
    node(4, "detach", "n1", requires_grad=False),
    node(5, "mse_loss", "n3", "target", "n4", shape=(), given={"target": Stats(n=4, min=-1.0, max=2.0)}),
)


def test_sources():
    assert node_index("n12") == 12
    assert [node_index(source) for source in ("input:0", "param:n1", "n", "target")] == [None] * 4


def test_ways_up_and_down():
    graph = Graph.of([look(*NODES)])
    assert graph.upstream([5]) == {0, 1, 2, 3, 4, 5}
    assert graph.learning == {0, 1, 2, 3, 5}, "no gradient flows through detach"
    assert graph.downstream([2]) == {2, 3, 5}
    assert graph.inside == {0, 1, 2}
    assert [reader.op for reader in graph.readers(1)] == ["linear", "detach"]
    assert [reader.op for reader in graph.readers(2, SAME_VALUES)] == ["mse_loss"]


def test_origin_behind_views():
    graph = Graph.of([look(*NODES)])
    origin = graph.origin("n3")
    assert origin is not None
    assert (origin.index, is_dense(origin), place(origin)) == (2, True, "second")
    assert graph.back("target", SAME_VALUES) == ([], "target")


def test_numbers_of_each_look_closely_as_an_argument():
    later = (*NODES[:5], node(5, "mse_loss", "n3", "target", "n4", shape=(), given={"target": Stats(n=4, max=7.0)}))
    graph = Graph.of([look(*NODES), look(*later, step=3)])
    assert [item.max for item in graph.numbers("target")] == [2.0, 7.0]
    assert [item.max for item in graph.numbers("n0")] == [1.0, 1.0]
    assert graph.numbers("n1") == []


def test_a_tensor_alike_the_targets_is_taken_for_them():
    given = Argument("targets", shape=(4, 1), stats=Stats(n=4, max=3.0))
    graph = Graph.of([look(*NODES, targets=given)])
    assert [item.max for item in graph.numbers_of(Argument("extern:0", shape=(4, 1)))] == [3.0]
    assert graph.numbers_of(Argument("extern:0", shape=(4, 2))) == []


def test_looks_are_grouped_by_structure_and_remembered():
    vitals = Vitals(looks=[look(*NODES), look(*NODES[:3], roots=(2,), step=1), look(*NODES, step=2)])
    assert [len(graph.looks) for graph in graphs(vitals)] == [2, 1]
    assert graphs(vitals)[0] is graphs(vitals)[0]
    vitals.looks.append(look(*NODES, step=3))
    assert [len(graph.looks) for graph in graphs(vitals)] == [3, 1]


def test_why_nothing_was_seen():
    assert isinstance(unseen(Vitals()), NotSeen)
    compiled = unseen(Vitals(anatomies=[Anatomy(compiled=True)]))
    assert compiled is not None
    assert "compiled" in compiled.reason
    assert unseen(Vitals(looks=[look(*NODES)]), loss=True) is None
    assert isinstance(unseen(Vitals(looks=[look(*NODES, roots=())]), loss=True), NotSeen)


def test_loss_and_its_sides():
    (call,) = loss_calls(Graph.of([look(*NODES)]))
    assert (call.kind, call.prediction.source, call.target.source if call.target else None) == (
        "mse_loss",
        "n3",
        "target",
    )


def scaled(*nodes, root):
    return terms(Graph.of([look(NODES[0], *nodes, roots=(root,))]), root)


def test_factors_on_the_way_to_backward():
    loss = node(1, "cross_entropy", "n0", "target", shape=(), reduction="mean")
    double = node(2, "mul", "n1", shape=(), scalar=6)
    third = node(3, "div", "n2", shape=(), scalar=3)
    assert [(term.node.op, term.factor) for term in scaled(loss, double, third, root=3)] == [("cross_entropy", 2.0)]
    minus = node(4, "neg", "n3", shape=())
    assert [term.factor for term in scaled(loss, double, third, minus, root=4)] == [-2.0]


def test_factor_of_a_grad_scaler_is_told_from_a_weight():
    loss = node(1, "cross_entropy", "n0", "target", shape=(), reduction="mean")

    def factor(value):
        other = Argument("extern:0", shape=(), stats=Stats(n=1, mean=value))
        product = Node(2, "mul", None, (Argument("n1"), other), {}, (), "float32", True)
        (term,) = scaled(loss, product, root=2)
        return term.factor, term.amp

    assert factor(65536.0) == (1.0, 65536.0)
    assert factor(500.0) == (500.0, 1.0)


def test_sums_over_examples_and_their_division():
    per_example = node(1, "mse_loss", "n0", "target", reduction="none")
    total = node(2, "sum", "n1", shape=())
    mean = node(3, "div", "n2", shape=(), scalar=4)
    (bare,) = scaled(per_example, total, root=2)
    assert bare.summed is not None
    assert not bare.divided_after
    (divided,) = scaled(per_example, total, mean, root=3)
    assert divided.divided_after
    over_features = node(2, "sum", "n1", shape=(4,), dim=1)
    average = node(3, "mean", "n2", shape=())
    (healthy,) = scaled(per_example, over_features, average, root=3)
    assert healthy.summed is None


def test_gravest():
    minor, major = Finding("a", "info", "", certainty=1.0), Finding("b", "critical", "", certainty=0.5)
    assert gravest([minor, major]) == [major]
    assert gravest([]) == []
