"""Rules for gradients, activations, initial weights and numbers, on vitals made by hand."""

import math
from dataclasses import replace

import pytest

from luthier.doctor.diagnosing import order
from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.remedies import prescribe
from luthier.doctor.symptoms import activations, constant, gradients, growing, initial, numerics, precision, trainable
from luthier.doctor.symptoms.layers import layers, names, normalised, output_indices
from luthier.doctor.vitals import (
    Anatomy,
    Argument,
    BatchTargets,
    Event,
    Look,
    Metrics,
    Node,
    Optimizer,
    Parameter,
    Stats,
    Steps,
    Vitals,
)

RULES = [
    gradients.vanishing_gradient,
    gradients.exploding_gradient,
    activations.dead_relu,
    activations.saturated_activation,
    growing.exploding_activation,
    constant.constant_output,
    numerics.nan_inf,
    precision.precision_loss,
    initial.bad_init,
    initial.symmetric_init,
]
DEPTH = 4  # linear layers of the net of these tests, widths 8-8-8-8-3
LN3 = math.log(3)
STEPS = (0, 1, 2, 3, 4, 6, 8, 10, 15, 20, 40, 80)


def parameters(**changes) -> tuple[Parameter, ...]:
    found = []
    for i in range(DEPTH):
        rows = 3 if i == DEPTH - 1 else 8
        weight = {"rms": 0.3, "mean": 0.0, "absmax": 0.9, "row_spread": 0.9, "fan_in": 8} | changes
        found.append(
            Parameter(f"{i}.weight", (rows, 8), "float32", rows * 8, layer=str(i), layer_type="Linear", **weight)
        )
        found.append(Parameter(f"{i}.bias", (rows,), "float32", rows, layer=str(i), layer_type="Linear", rms=0.2))
    return tuple(found)


def graph(act: str = "relu", output: Stats | None = None, hidden: Stats | None = None, linear: Stats | None = None):
    """linear, activation, ..., linear, cross_entropy."""
    ordinary = Stats(
        n=64, mean=0.1, std=0.6, min=0.0, max=2.0, zero=0.4, nonfinite=0.0, across=0.6, dead=0.1, flat=0.05
    )
    nodes: list[Node] = []
    source = "input:0"
    for i in range(DEPTH):
        weights = (Argument(f"param:{i}.weight", (8, 8)), Argument(f"param:{i}.bias", (8,)))
        last = i == DEPTH - 1
        stats = (output or ordinary) if last else (linear or ordinary)
        nodes.append(
            Node(len(nodes), "linear", str(i), (Argument(source, (16, 8)), *weights), shape=(16, 8), stats=stats)
        )
        if not last:
            name = f"act{i}"
            before = (Argument(f"n{len(nodes) - 1}", (16, 8)),)
            nodes.append(Node(len(nodes), act, name, before, shape=(16, 8), stats=hidden or ordinary))
        source = f"n{len(nodes) - 1}"
    outputs = (len(nodes) - 1,)
    loss = (Argument(source, (16, 3)), Argument("target", (16,), "int64"))
    nodes.append(Node(len(nodes), "cross_entropy", None, loss, {"reduction": "mean"}, stats=Stats(n=1, mean=1.0)))
    return {"nodes": tuple(nodes), "outputs": outputs, "roots": (len(nodes) - 1,)}


def look(step: int, shares=(0.1, 0.1, 0.1, 0.1), update: float = 3e-3, weight: float = 2.0, **changes) -> Look:
    """A look at which every layer has a gradient of so many times its weight."""
    per_layer = [value for share in shares for value in (share * weight, share * weight)]
    made = Look(
        step,
        True,
        grad=tuple(per_layer),
        grad_before_clip=tuple(per_layer),
        grad_zero=(0.1,) * (2 * DEPTH),
        grad_nonfinite=(0.0,) * (2 * DEPTH),
        weight=(weight,) * (2 * DEPTH),
        update=(update * weight,) * (2 * DEPTH),
        unmoved=(0.0,) * (2 * DEPTH),
        row_spread=(None,) * (2 * DEPTH),
        lr=(1e-3,),
        cleared=True,
        inputs=Argument("inputs", (16, 8), "float32", stats=Stats(n=128, mean=0.0, std=1.0, across=0.8)),
        batch_size=16,
        **graph(),
    )
    return replace(made, **changes)


def vitals(looks=None, losses=None, **changes) -> Vitals:
    """A healthy training of 100 steps, unless changed."""
    values = losses or [LN3 * math.exp(-i / 30) + 0.02 * (-1) ** i for i in range(100)]
    n = len(values)
    made = Vitals(
        anatomies=[Anatomy(model_types=("Net",), parameters=parameters(), loss_fn="CrossEntropyLoss")],
        optimizers=[Optimizer(0, 0, "Adam", groups=({"lr": 1e-3, "weight_decay": 0},))],
        looks=looks if looks is not None else [look(step) for step in STEPS],
        steps=Steps(tuple(range(n)), tuple(values), (1e-3,) * n, (0.0,) * n, (0.0,) * n),
        targets=[BatchTargets(step, 15, {"0": 5, "1": 5, "2": 5}) for step in range(5)],
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


STUCK = [LN3 + 0.02 * (-1) ** i for i in range(100)]


def the(found) -> Finding:
    assert isinstance(found, list)
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_healthy_training_is_silent(rule):
    assert rule(vitals()) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_missing_rows_never_raise(rule):
    whole = vitals()
    bare = replace(look(0), nodes=(), outputs=(), roots=(), inputs=None)
    for part in (
        Vitals(),
        vitals(looks=[]),
        vitals(looks=[Look(0), Look(1), Look(2), Look(3)]),
        vitals(looks=[bare, replace(bare, step=5)]),
        replace(whole, anatomies=[]),
        replace(whole, targets=[], steps=Steps()),
        replace(whole, looks=[replace(item, grad=(), weight=(), update=()) for item in whole.looks]),
        replace(whole, steps=Steps((0, 1, 2), (math.nan,) * 3, (1e-3,) * 3, (0.0,) * 3, (0.0,) * 3)),
    ):
        found = rule(part)
        assert isinstance(found, NotSeen | list)


def test_nothing_watched_is_said_and_not_called_healthy():
    for rule in RULES:
        assert isinstance(rule(Vitals()), NotSeen)


# --- gradients -------------------------------------------------------------------------------------------------------


def test_vanishing_gradient_over_depth():
    found = the(gradients.vanishing_gradient(vitals([look(s, (1e-7, 1e-5, 1e-3, 0.1)) for s in STEPS], STUCK)))
    assert found.severity == "critical"
    assert found.where == ("0",)
    assert found.onset == 0
    assert found.numbers["share"] == pytest.approx(1e-6)


def test_small_gradients_of_a_fitted_loss_are_worth_knowing_only():
    losses = [LN3 * math.exp(-i / 10) for i in range(100)]
    fading = [look(s, (0.1 * math.exp(-s / 6),) * DEPTH) for s in STEPS]
    found = the(gradients.vanishing_gradient(vitals(fading, losses)))
    assert found.severity == "info"
    assert found.numbers["fitted"]


def test_a_last_layer_that_starts_at_zero_does_not_look_like_vanishing():
    first = look(0, (0.0, 0.0, 0.0, 5.0))
    assert gradients.vanishing_gradient(vitals([first, *(look(s) for s in STEPS[1:])])) == []


def test_exploding_gradient_needs_harm():
    growing = [look(s, (0.1 * 2.0**i,) * DEPTH) for i, s in enumerate(STEPS)]
    assert gradients.exploding_gradient(vitals(growing)) == []
    found = the(gradients.exploding_gradient(vitals(growing, [LN3 * 1.1**i for i in range(100)])))
    assert found.onset > 0
    assert found.numbers["grad_norm_peak"] > 100 * found.numbers["grad_norm_early"]


def test_a_gradient_that_destroys_the_net_with_the_first_step_leaves_one_look():
    huge, lost = (150.0, 300.0, 900.0, 9000.0), (math.nan,) * DEPTH
    sick = vitals([look(s, lost if s else huge) for s in STEPS], [500.0, 1e20, *[math.nan] * 98])
    assert the(gradients.exploding_gradient(sick)).onset == 0
    assert gradients.vanishing_gradient(sick) == [], "early layers get 150 times their weight"


@pytest.mark.parametrize(("ratio", "end", "found"), [(5e3, 0.75, True), (500.0, 0.75, False), (5e3, 0.3, False)])
def test_an_optimizer_that_divides_by_the_gradient_keeps_an_exploding_one_finite(ratio, end, found):
    losses = [LN3 * (end + (1 - end) * math.exp(-i / 5)) for i in range(100)]
    drowned = [look(s, (ratio / 10, ratio, ratio / 10, ratio / 10)) for s in STEPS]
    assert bool(gradients.exploding_gradient(vitals(drowned, losses))) is found
    summed = [
        replace(each, nodes=(*each.nodes[:-1], replace(each.nodes[-1], attrs={"reduction": "sum"}))) for each in drowned
    ]
    assert gradients.exploding_gradient(vitals(summed, [16 * loss for loss in losses])) == []


def test_a_recurrence_that_adam_keeps_finite_is_named_with_its_remedies():
    weight = Parameter("r.weight_hh_l0", (16, 16), layer="r", layer_type="RNN", rms=0.32, fan_in=16)
    state = Node(0, "rnn", "r", (Argument("input:0", (16, 40, 4)), Argument("param:r.weight_hh_l0", (16, 16))))
    looks = [Look(s, nodes=(state,), weight=(5.0,), grad=(5e5,), batch_size=16) for s in STEPS]
    losses = [LN3 * (0.75 + 0.25 * math.exp(-i / 5)) for i in range(100)]
    drowned = vitals(looks, losses, anatomies=[Anatomy(parameters=(weight,))])
    found = prescribe(the(gradients.exploding_gradient(drowned)))
    assert found.numbers["times"] == 40
    assert "orthogonal" in found.remedies[0].text
    calm = [replace(item, grad=(5.0,)) for item in looks]
    assert gradients.exploding_gradient(replace(drowned, looks=calm)) == []


def test_one_spike_of_the_gradient_is_not_exploding():
    looks = [look(s, (100.0,) * DEPTH if s == 20 else (0.1,) * DEPTH) for s in STEPS]
    assert gradients.exploding_gradient(vitals(looks, [1.2 * LN3 + i / 100 for i in range(100)])) == []


def test_recurrent_gain_explodes_over_a_long_sequence():
    weight = Parameter("r.weight_hh_l0", (32, 32), layer="r", layer_type="RNN", rms=0.4, fan_in=32)
    node = Node(0, "rnn", "r", (Argument("input:0", (16, 40, 4)), Argument("param:r.weight_hh_l0", (32, 32))))
    looks = [Look(s, nodes=(node,), weight=(10.0,), grad=(1.0,), batch_size=16) for s in (0, 1, 2)]
    sick = vitals(looks, [LN3 * 1.3**i for i in range(50)], anatomies=[Anatomy(parameters=(weight,))])
    found = the(gradients.exploding_gradient(sick))
    assert found.where == ("r",)
    assert found.numbers["times"] == 40


@pytest.mark.parametrize("op", ["rnn_cell", "linear"])
def test_a_recurrence_step_by_step_fades_like_one_operation(op):
    found = the(gradients.vanishing_gradient(loop_over_time(op, 40)))
    assert found.numbers["times"] == 40
    assert gradients.vanishing_gradient(loop_over_time(op, 4)) == []


def test_what_passes_the_weight_by_does_not_fade():
    assert gradients.vanishing_gradient(loop_over_time("linear", 40, "add")) == []  # h = h + W h


def test_a_state_detached_at_every_step_is_cut():
    found = the(trainable.disconnected_params(loop_over_time("gru_cell", 10, "detach")))
    assert found.severity == "critical"
    assert found.where == ("r",)
    assert trainable.disconnected_params(loop_over_time("gru_cell", 10)) == []


def loop_over_time(op: str, times: int, between: str = "tanh") -> Vitals:
    """A loop that applies one weight to its own result; something lies between its uses."""
    weight = Parameter("r.weight_hh", (32, 32), layer="r", layer_type="Linear", rms=0.1, fan_in=32)
    nodes: list[Node] = []
    source = "extern:0"
    for i in range(0, 2 * times, 2):
        given = (Argument(source, (16, 32)), Argument("param:r.weight_hh", (32, 32)))
        nodes.append(Node(i, op, "r", given, shape=(16, 32), requires_grad=True))
        carried = (Argument(f"n{i}"),) if between != "add" or i == 0 else (Argument(f"n{i}"), Argument(source))
        nodes.append(Node(i + 1, between, "", carried, shape=(16, 32), requires_grad=between != "detach"))
        source = f"n{i + 1}"
    ends = {"nodes": tuple(nodes), "outputs": (2 * times - 2,), "roots": (2 * times - 2,)}
    looks = [Look(s, n_backward=1, weight=(10.0,), grad=(1.0,), update=(0.03,), batch_size=16, **ends) for s in STEPS]
    return vitals(looks, STUCK, anatomies=[Anatomy(parameters=(weight,))])


# --- activations -----------------------------------------------------------------------------------------------------


def _dying(at: int, share: float, losses):
    dead = Stats(n=64, mean=0.0, std=0.1, zero=0.99, nonfinite=0.0, across=0.1, dead=share)
    return vitals([look(s, **graph(hidden=dead if s >= at else None)) for s in STEPS], losses)


def test_dead_units_and_when_they_died():
    found = the(activations.dead_relu(_dying(4, 0.95, STUCK)))
    assert found.severity == "critical"
    assert found.onset == 4
    assert set(found.where) == {"act0", "act1", "act2"}
    assert the(activations.dead_relu(_dying(0, 0.95, STUCK))).onset == 0


def _born_dead(losses, **changes):
    """It takes four looks to tell that units are dead."""
    shut = Stats(n=64, mean=0.0, std=0.0, zero=1.0, nonfinite=0.0, across=0.0)
    looks = [look(s, **graph(hidden=replace(shut, dead=1.0 if s >= 3 else None))) for s in STEPS]
    return vitals(looks, losses, anatomies=[Anatomy(model_types=("Net",), parameters=parameters(**changes))])


def test_units_that_were_born_dead_did_not_die_in_training():
    found = prescribe(the(activations.dead_relu(_born_dead(STUCK))))
    assert found.onset == 0
    assert "from the start" in found.cause
    assert "Kaiming" in found.remedies[0].text
    died = prescribe(the(activations.dead_relu(_dying(4, 0.95, STUCK))))
    assert "learning rate" in died.remedies[0].text


def test_weights_on_one_side_of_zero_are_the_root_of_units_that_were_born_dead():
    found = the(initial.bad_init(_born_dead(STUCK, mean=-0.29)))
    assert found.numbers["direction"] == "shifted"
    assert "dead from the start" in found.evidence[0]
    assert initial.bad_init(_born_dead(STUCK)) == []


def test_some_dead_units_are_normal_and_harmless_ones_are_told_softly():
    assert activations.dead_relu(_dying(4, 0.4, STUCK)) == []
    assert the(activations.dead_relu(_dying(4, 0.6, [LN3 * math.exp(-i / 10) for i in range(100)]))).severity == "info"


def test_units_that_see_hardly_any_difference_between_examples_have_not_died():
    faded = Stats(n=64, mean=0.5, std=0.5, zero=0.6, nonfinite=0.0, across=2e-3, dead=0.6)
    assert activations.dead_relu(vitals([look(s, **graph(hidden=faded)) for s in STEPS], STUCK)) == []
    told = replace(faded, across=0.5)
    assert the(activations.dead_relu(vitals([look(s, **graph(hidden=told)) for s in STEPS], STUCK)))


def test_tiny_batches_make_units_look_dead():
    few = _dying(0, 0.7, STUCK)
    few.looks = [replace(item, batch_size=2) for item in few.looks]
    assert activations.dead_relu(few) == []


def test_half_of_two_units_is_no_dead_layer():
    narrow = _dying(0, 0.5, STUCK)
    nodes = [[replace(node, shape=(16, 2)) for node in item.nodes] for item in narrow.looks]
    narrow.looks = [replace(item, nodes=tuple(part)) for item, part in zip(narrow.looks, nodes, strict=True)]
    assert activations.dead_relu(narrow) == []


def test_saturated_hidden_units_but_not_the_output():
    flat = Stats(n=64, mean=0.5, std=0.5, across=0.5, flat=0.95, nonfinite=0.0)
    found = the(activations.saturated_activation(vitals([look(s, **graph("tanh", hidden=flat)) for s in STEPS], STUCK)))
    assert found.severity == "critical"
    assert found.onset == 0
    nodes = graph("tanh")["nodes"]
    sigmoid = Node(len(nodes), "sigmoid", "out", (Argument("n6", (16, 3)),), stats=flat)
    looks = [look(s, nodes=(*nodes, sigmoid), outputs=(sigmoid.index,)) for s in STEPS]
    assert activations.saturated_activation(vitals(looks, STUCK)) == []


def test_exploding_activation():
    huge = Stats(n=64, mean=0.0, std=1e6, across=0.6, nonfinite=0.0)
    looks = [look(s, **graph(linear=huge if s >= 10 else None)) for s in STEPS]
    found = the(growing.exploding_activation(vitals(looks, STUCK)))
    assert found.onset == 10
    assert found.numbers["std"] == 1e6


def test_constant_output():
    same = Stats(n=48, mean=0.3, std=0.4, across=1e-6, nonfinite=0.0)
    found = the(constant.constant_output(vitals([look(s, **graph(output=same)) for s in STEPS], STUCK)))
    assert found.severity == "critical"
    assert found.onset == 0
    late = [look(s, **graph(output=same if s >= 10 else None)) for s in STEPS]
    assert the(constant.constant_output(vitals(late, STUCK))).onset == 10
    early = [look(s, **graph(output=same if s < 10 else None)) for s in STEPS]
    assert constant.constant_output(vitals(early, STUCK)) == []


def test_the_operation_that_makes_every_answer_the_same_is_named():
    """A norm layer over a single score, behind a layer that still tells the examples apart."""
    *inside, loss = graph()["nodes"]
    alike = Stats(n=16, mean=0.0, std=0.0, across=0.0, nonfinite=0.0)
    norm = Node(len(inside), "layer_norm", "", (Argument(f"n{len(inside) - 1}", (16, 1)),), shape=(16, 1), stats=alike)
    nodes = (*inside, norm, replace(loss, index=len(inside) + 1))
    looks = [look(s, nodes=nodes, outputs=(norm.index,), roots=(norm.index + 1,)) for s in STEPS]
    found = the(constant.constant_output(vitals(looks, STUCK)))
    assert "layer_norm" in found.cause
    dead = replace(found, symptom="dead_relu", severity="warning", certainty=0.8, onset=3, numbers={})
    assert order([dead, found])[0].symptom == "constant_output"


def test_outputs_are_not_constant_when_targets_lie_far_from_zero():
    near = Stats(n=16, mean=1000.0, std=2.0, across=2e-3, nonfinite=0.0)
    shape = graph(output=near)
    mse = replace(shape["nodes"][-1], op="mse_loss")
    looks = [look(s, **{**shape, "nodes": (*shape["nodes"][:-1], mse)}) for s in STEPS]
    far = [BatchTargets(s, 16, None, 1000.0, 3.0) for s in range(5)]
    assert constant.constant_output(vitals(looks, [8.9] * 100, targets=far)) == []


# --- initial weights -------------------------------------------------------------------------------------------------


def test_weights_too_large():
    sick = vitals(losses=[60 * math.exp(-i / 50) for i in range(100)])
    sick.anatomies = [replace(sick.anatomies[0], parameters=parameters(rms=3.0))]
    found = the(initial.bad_init(sick))
    assert found.onset == 0
    assert found.numbers["direction"] == "large"
    assert found.numbers["gain"] == pytest.approx(3 * math.sqrt(8))


def test_large_weights_without_harm_are_fine():
    large = [Anatomy(model_types=("Net",), parameters=parameters(rms=3.0))]
    assert initial.bad_init(vitals(anatomies=large)) == []


def test_ordinary_layers_whose_scale_compounds():
    """Sums of many branches without a norm layer: every gain is ordinary, the first answers are not."""
    nodes = list(graph()["nodes"])
    for i, node in enumerate(nodes[:-1]):
        nodes[i] = replace(node, stats=Stats(n=64, mean=0.0, std=4.0 ** (i + 1), across=0.7, nonfinite=0.0))
    looks = [look(s, nodes=tuple(nodes)) for s in STEPS]
    found = the(growing.exploding_activation(vitals(looks, [500.0 / (1 + i) + 5.0 for i in range(100)])))
    assert found.onset == 0
    assert the(growing.exploding_activation(vitals(looks))).severity == "info"


def test_what_grows_over_time_is_left_to_the_gradient_that_grows_with_it():
    sick = recurrent(gain=1.4, losses=[1e4 / (1 + i) + 50.0 for i in range(100)])
    assert growing.exploding_activation(sick) == []
    assert the(gradients.exploding_gradient(sick)).numbers["times"] == 30


def test_a_hot_recurrence_that_leaves_much_to_learn_explodes():
    poor = [0.6 * LN3 + 0.02 * (-1) ** i for i in range(100)]
    sick = recurrent(gain=3.0, losses=poor)
    assert gradients.exploding_gradient(sick) == []
    sick.data = {"learn": {"n": 512, "z": 20.0, "accuracy": 0.95, "majority": 0.34}}
    sick.metrics = [Metrics(99, {"train_accuracy": 0.5, "val_accuracy": 0.5})]
    assert the(gradients.exploding_gradient(sick)).numbers["times"] == 30


def test_a_recurrence_that_grows_a_hundredfold_is_no_ordinary_layer():
    sick = recurrent(gain=1.22, losses=[1e4 / (1 + i) + 50.0 for i in range(100)])
    assert growing.exploding_activation(sick) == []
    assert the(gradients.exploding_gradient(sick)).where == ("r",)


def recurrent(gain: float, losses: list[float]) -> Vitals:
    """A plain recurrence of 30 steps whose weights multiply by such a gain, and a linear layer."""
    held = [
        Parameter("r.weight_ih_l0", (16, 16), layer="r", layer_type="RNN", rms=0.1, fan_in=16),
        Parameter("r.weight_hh_l0", (16, 16), layer="r", layer_type="RNN", rms=gain / 4, fan_in=16),
        Parameter("o.weight", (3, 16), layer="o", layer_type="Linear", rms=0.1, fan_in=16),
    ]
    large = Stats(n=64, mean=0.0, std=1e4, across=0.5, nonfinite=0.0)
    given = (Argument("input:0", (16, 30, 16)), *(Argument(f"param:{item.name}", item.shape) for item in held[:2]))
    nodes = (
        Node(0, "rnn_relu", "r", given, shape=(16, 30, 16), stats=large),
        Node(1, "linear", "o", (Argument("n0", (16, 16)), Argument("param:o.weight", (3, 16))), stats=large),
        replace(graph()["nodes"][-1], index=2),
    )
    looks = [look(s, nodes=nodes, outputs=(1,), roots=(2,)) for s in STEPS]
    return vitals(looks, losses, anatomies=[Anatomy(parameters=tuple(held))])


def test_an_operation_that_multiplies_the_answers_far_beyond_what_layers_made():
    *inside, loss = graph()["nodes"]
    given = (Argument(f"n{len(inside) - 1}", (16, 3)),)
    hot = Node(len(inside), "div", "", given, shape=(16, 3), stats=Stats(n=48, mean=0.0, std=60.0, across=0.7))
    looks = [look(s, nodes=(*inside, hot, replace(loss, index=hot.index + 1)), roots=(hot.index + 1,)) for s in STEPS]
    found = the(growing.exploding_activation(vitals(looks, [60.0 + i for i in range(100)])))
    assert found.onset == 0
    assert "div" in found.evidence[1]
    fitted = vitals(looks, [60.0 * math.exp(-i / 10) for i in range(100)])
    assert the(growing.exploding_activation(fitted)).severity == "critical"  # nobody starts there on purpose
    assert growing.exploding_activation(vitals(looks)) == []


def test_as_many_examples_as_time_steps_hide_no_recurrence():
    sick = recurrent(gain=1.4, losses=[1e4 / (1 + i) + 50.0 for i in range(100)])
    for i, seen in enumerate(sick.looks):
        node = replace(seen.nodes[0], attrs={"batch_first": True})
        sick.looks[i] = replace(seen, batch_size=30, nodes=(node, *seen.nodes[1:]))
    assert the(gradients.exploding_gradient(sick)).numbers["times"] == 30


def test_layers_that_grow_tenfold_count_when_nothing_is_learnt():
    nodes, linear = [], graph()["nodes"][0]
    for i in range(8):
        stats = Stats(n=64, mean=0.0, std=0.5 * 1.6**i, across=0.2, nonfinite=0.0)
        nodes.append(replace(linear, index=i, module=f"block{i}", stats=stats))
    looks = [look(s, nodes=(*nodes, replace(graph()["nodes"][-1], index=8)), roots=(8,)) for s in STEPS]
    slow = vitals(looks, [8.0 * LN3 * math.exp(-i) + 0.9 * LN3 for i in range(100)])
    assert the(growing.exploding_activation(slow)).severity == "warning"
    learnt = vitals(looks, [8.0 * LN3 * math.exp(-i) + 0.5 * LN3 for i in range(100)])
    assert growing.exploding_activation(learnt) == []


def test_weights_too_small_for_the_depth():
    looks = []
    for step in STEPS:
        nodes = list(graph()["nodes"])
        for i, node in enumerate(nodes[:-1]):
            nodes[i] = replace(node, stats=Stats(n=64, mean=0.0, std=10.0 ** (-i - 1), across=0.7, nonfinite=0.0))
        looks.append(look(step, nodes=tuple(nodes)))
    sick = vitals(looks, STUCK, anatomies=[Anatomy(model_types=("Net",), parameters=parameters(rms=1e-3))])
    found = the(initial.bad_init(sick))
    assert found.numbers["direction"] == "small"


def test_weights_of_the_default_scale_are_not_blamed_for_a_depth_that_fades():
    looks = []
    for step in STEPS:
        nodes = list(graph()["nodes"])
        for i, node in enumerate(nodes[:-1]):
            nodes[i] = replace(node, stats=Stats(n=64, mean=0.0, std=10.0 ** (-i - 1), across=0.7, nonfinite=0.0))
        looks.append(look(step, (1e-6, 1e-5, 1e-3, 1e-1), nodes=tuple(nodes)))
    deep = vitals(looks, STUCK)
    deep.anatomies = [Anatomy(model_types=("Net",), parameters=parameters(rms=1 / math.sqrt(3 * 8)))]
    assert initial.bad_init(deep) == []
    assert the(gradients.vanishing_gradient(deep)).severity == "critical"


def test_biases_that_kill_units_before_training():
    dead = Stats(n=64, mean=0.0, std=0.0, zero=1.0, nonfinite=0.0, across=0.0, dead=1.0)
    given = tuple(replace(p, rms=10.0, mean=-10.0) if p.name.endswith("bias") else p for p in parameters())
    sick = vitals([look(s, **graph(hidden=dead)) for s in STEPS], STUCK, anatomies=[Anatomy(parameters=given)])
    found = the(initial.bad_init(sick))
    assert found.numbers["direction"] == "shifted"
    assert "3" not in found.where


def test_weights_that_no_look_measured_are_not_zero():
    frozen = (0.0,) * (2 * DEPTH)
    assert initial.symmetric_init(vitals([look(s, row_spread=(None,) * 8) for s in STEPS], STUCK)) == []
    assert initial.symmetric_init(vitals([replace(look(s), weight=frozen) for s in STEPS], STUCK)) == []


def test_identical_units_that_stay_identical():
    alike = tuple(0.0 if i % 2 == 0 else None for i in range(2 * DEPTH))
    found = the(initial.symmetric_init(vitals([look(s, row_spread=alike) for s in STEPS], STUCK)))
    assert found.where == ("0", "1", "2")
    assert found.onset == 0
    unknown = vitals([look(s, row_spread=(0.0, *alike[1:2], *(None,) * 6)) for s in STEPS], targets=[])
    unknown.anatomies = [replace(unknown.anatomies[0], loss_fn=None)]
    unknown.looks = [replace(item, nodes=item.nodes[:-1], roots=()) for item in unknown.looks]
    assert the(initial.symmetric_init(unknown)).severity == "critical"  # the loss fell from its start: that is all
    parting = [look(s, row_spread=alike if s < 2 else (0.9,) * (2 * DEPTH)) for s in STEPS]
    assert initial.symmetric_init(vitals(parting)) == []
    last = tuple(0.0 if i == 2 * DEPTH - 2 else None for i in range(2 * DEPTH))
    assert initial.symmetric_init(vitals([look(s, row_spread=last) for s in STEPS])) == []


def gru(losses, **changes) -> Vitals:
    """A GRU whose weights all have one value, unless changed, and a linear layer; its gates part by step 6."""
    same = {"mean": 0.05, "rms": 0.05, "absmax": 0.05, "row_spread": 0.0, "fan_in": 16}
    weight = Parameter("r.weight_ih_l0", (48, 16), layer="r", layer_type="GRU", **(same | changes))
    head = Parameter("o.weight", (3, 16), layer="o", layer_type="Linear", **same)
    given = (Argument("input:0", (16, 9, 16)), Argument("param:r.weight_ih_l0", (48, 16)))
    nodes = (
        Node(0, "gru", "r", given, shape=(16, 9, 16), stats=Stats(n=64, mean=0.0, std=0.3, flat=0.0)),
        Node(1, "linear", "o", (Argument("n0", (16, 16)), Argument("param:o.weight", (3, 16))), shape=(16, 3)),
        replace(graph()["nodes"][-1], index=2),
    )
    changed = {"nodes": nodes, "outputs": (1,), "roots": (2,)}
    spreads = [(weight.row_spread, 0.0) if s < 6 else (0.7, 0.7) for s in STEPS]
    looks = [look(s, row_spread=spread, **changed) for s, spread in zip(STEPS, spreads, strict=True)]
    return vitals(looks, losses, anatomies=[Anatomy(parameters=(weight, head))])


def test_gates_that_part_do_not_hide_identical_units():
    assert the(initial.symmetric_init(gru(STUCK))).where == ("r",)
    assert initial.symmetric_init(gru(STUCK, mean=0.0, rms=0.2, absmax=0.4, row_spread=0.9)) == []


def test_gates_that_nobody_sees_are_judged_by_the_sums_they_are_given():
    found = the(initial.bad_init(gru(STUCK, mean=0.0, rms=3.0, absmax=9.0)))
    assert "gates of r" in found.evidence[0]
    assert initial.bad_init(gru(STUCK, mean=0.0, rms=0.3, absmax=0.9)) == []


def test_gates_are_also_given_the_state_and_their_biases():
    sick = gru(STUCK, mean=0.0, rms=1.2, absmax=3.6)
    assert initial.bad_init(sick) == []
    back = Parameter("r.weight_hh_l0", (48, 16), layer="r", layer_type="GRU", mean=0.0, rms=3.0, fan_in=16)
    bias = Parameter("r.bias_hh_l0", (48,), layer="r", layer_type="GRU", mean=0.0, rms=3.0)
    sick.anatomies[:] = [replace(sick.anatomies[0], parameters=(*sick.anatomies[0].parameters, back, bias))]
    assert "gates of r" in the(initial.bad_init(sick)).evidence[0]


def test_large_weights_before_a_softmax_that_is_stuck_from_the_start():
    attending = vitals(anatomies=[Anatomy(model_types=("Net",), parameters=parameters(rms=3.0))])
    for flat, severity in ((0.8, "warning"), (0.1, None)):
        stuck = Stats(n=64, mean=0.1, std=0.3, flat=flat, nonfinite=0.0)
        attending.looks = [look(s, **graph(act="softmax", hidden=stuck)) for s in STEPS]
        assert [item.severity for item in initial.bad_init(attending)] == [severity] * (severity is not None)


def test_biases_that_shut_every_gate():
    sick = gru(STUCK, mean=0.0, rms=0.1, absmax=0.3)
    shut = Parameter("r.bias_hh_l0", (48,), layer="r", layer_type="GRU", mean=-8.0, rms=8.0, absmax=8.0)
    sick.anatomies[:] = [replace(sick.anatomies[0], parameters=(*sick.anatomies[0].parameters, shut))]
    found = the(initial.bad_init(sick))
    assert "r" in found.where
    assert found.numbers["direction"] == "shifted"


# --- numbers ---------------------------------------------------------------------------------------------------------


def _log_of_zero(step: int) -> Look:
    nodes = list(graph()["nodes"])
    given = Argument(f"n{len(nodes) - 2}", (16, 3), stats=Stats(n=48, min=0.0, max=1.0, zero=0.1, nonfinite=0.0))
    nodes[-1] = Node(len(nodes) - 1, "log", None, (given,), stats=Stats(n=48, nonfinite=0.1))
    minus = Argument(f"n{len(nodes) - 1}", (16, 3))
    nodes.append(Node(len(nodes), "mean", None, (minus,), stats=Stats(n=1, nonfinite=1.0)))
    return look(step, nodes=tuple(nodes), roots=(len(nodes) - 1,))


def test_nan_names_the_operation_that_made_it():
    losses = [1.0] * 8 + [math.nan] * 10
    found = the(numerics.nan_inf(vitals([*(look(s) for s in STEPS[:6]), _log_of_zero(8)], losses)))
    assert found.certainty == 1.0
    assert found.onset == 8
    assert found.numbers["operation"] == "log"
    assert "0 to 1" in " ".join(found.evidence)


def test_nan_after_growth_points_to_divergence():
    losses = [1.0 * 3**i for i in range(20)] + [math.inf] * 5
    found = the(numerics.nan_inf(vitals([look(s, weight=2.0 * 2**i) for i, s in enumerate(STEPS[:9])], losses)))
    assert found.numbers["diverged"]
    assert found.certainty < 0.8


def test_losses_that_were_not_told_are_not_nan():
    every_fifth = [1.0 if i % 5 == 0 else math.nan for i in range(98)]
    assert numerics.nan_inf(vitals(losses=every_fifth)) == []


def test_a_step_that_the_scaler_skipped_is_no_nan():
    scaled = [look(s, grad_nonfinite=(0.5 if s == 4 else 0.0,) * (2 * DEPTH)) for s in STEPS]
    assert numerics.nan_inf(vitals(scaled, events=[Event(4, "step_skipped")])) == []
    assert numerics.nan_inf(vitals(scaled)) != []


def test_masks_of_minus_infinity_are_no_nan():
    nodes = list(graph()["nodes"])
    masked = Node(len(nodes), "masked_fill", "attention", (Argument("n0"),), stats=Stats(n=9, nonfinite=0.3))
    looks = [look(s, nodes=(*nodes, masked)) for s in STEPS]
    assert numerics.nan_inf(vitals(looks)) == []


def test_updates_that_round_away():
    half = [Anatomy(parameters=tuple(replace(p, dtype="bfloat16") for p in parameters()))]
    sick = vitals([look(s, unmoved=(0.9,) * (2 * DEPTH)) for s in STEPS], STUCK, anatomies=half)
    found = the(precision.precision_loss(sick))
    assert found.severity == "critical"
    assert found.numbers["dtype"] == "bfloat16"


def test_inputs_with_a_huge_offset_are_too_coarse():
    far = Argument("inputs", (16, 8), "float32", stats=Stats(n=128, mean=1e7, std=1.0, across=1e-7, integral=False))
    assert the(precision.precision_loss(vitals([look(s, inputs=far) for s in STEPS]))).certainty == 0.8


def test_float16_overflow():
    nodes = list(graph()["nodes"])
    nodes[-2] = replace(nodes[-2], dtype="float16", stats=Stats(n=48, nonfinite=0.2))
    sick = vitals([look(s, nodes=tuple(nodes)) for s in STEPS], STUCK)
    assert the(precision.precision_loss(sick)).where == ("3",)
    assert precision.precision_loss(replace(sick, events=[Event(1, "step_skipped")])) == []


@pytest.mark.parametrize("kind", ["float16", "float32", "bfloat16"])
def test_a_logarithm_in_float16_that_lost_the_loss(kind):
    log = Node(len(graph()["nodes"]), "log", None, (Argument("n6", (16,), kind),), dtype=kind, stats=Stats(n=16))
    looks = [look(s, nodes=(*graph()["nodes"], log)) for s in STEPS if s < 60]
    found = precision.precision_loss(vitals(looks, [LN3] * 60 + [math.nan] * 40))
    assert [finding.onset for finding in found] == ([60] if kind == "float16" else [])


# --- layers ----------------------------------------------------------------------------------------------------------


def test_layers_come_in_the_order_of_use_and_without_a_graph_as_registered():
    watched = vitals()
    assert [layer.name for layer in layers(watched, watched.looks[0])] == [f"{i}.weight" for i in range(DEPTH)]
    blind = vitals([replace(look(0), nodes=())])
    assert [layer.name for layer in layers(blind, blind.looks[0])] == [f"{i}.weight" for i in range(DEPTH)]
    reverse = replace(look(0), nodes=tuple(reversed(graph()["nodes"])))
    assert layers(vitals([reverse]), reverse)[0].name == f"{DEPTH - 1}.weight"


def test_a_parameter_that_a_layer_reads_as_data_is_no_weight():
    nodes = list(graph()["nodes"])
    nodes[1] = replace(nodes[1], op="linear", arguments=(Argument("param:1.weight", (8, 8)),))
    nodes[2] = replace(nodes[2], arguments=nodes[2].arguments[:1])
    seen = look(0, nodes=tuple(nodes))
    assert [layer.name for layer in layers(vitals([seen]), seen)] == ["0.weight", "2.weight", "3.weight"]


def test_a_norm_layer_behind_a_weight_is_found():
    nodes = list(graph()["nodes"])
    nodes[1] = replace(nodes[1], op="batch_norm")
    seen = look(0, nodes=tuple(nodes))
    chain = layers(vitals([seen]), seen)
    assert [normalised(seen, layer) for layer in chain] == [True, False, False, False]
    assert output_indices(seen) == {6}


def test_names_are_shortened():
    assert names(list("abcdef")) == "a, b, c, d and 2 more"
