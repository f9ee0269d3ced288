"""A trace sees what runs, and changes nothing: not one bit, no random number, no memory, no hook left."""

import gc
import os
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from luthier.doctor.measure.rows import DeadUnits
from luthier.doctor.measure.tracing import Trace, has_fast_path
from luthier.doctor.vitals import Look
from luthier.doctor.vitals.reading import look_of


class Ears:
    """A listener that notes."""

    def __init__(self):
        self.heard = []

    def before_backward(self, loss):
        self.heard.append(("before", float(loss.detach())))


class Deaf:
    def before_backward(self, loss):
        pass


class Functional(nn.Module):
    """An MLP in the spelling of functions."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(10, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.fc2(F.dropout(F.relu(self.fc1(x)), 0.2, self.training))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(10, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.lstm(x.unsqueeze(0).repeat(4, 1, 1))[0][-1])


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(10, 2, 16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        return self.head(self.encoder(x.unsqueeze(1).repeat(1, 4, 1)).mean(1))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.fc1, self.fc2, self.reentrant = nn.Linear(10, 16), nn.Linear(16, 3), reentrant

    def forward(self, x):
        def block(h):
            return F.dropout(torch.tanh(self.fc1(h)), 0.1, self.training)

        return self.fc2(checkpoint(block, x.requires_grad_(), use_reentrant=self.reentrant))


class Casting(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(x).float()


class Penalised(nn.Module):
    """Needs its own gradients in the loss."""

    def __init__(self):
        super().__init__()
        self.net = mlp(nn.Tanh())

    def forward(self, x):
        x = x.clone().requires_grad_()
        out = self.net(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return out + slope.square().sum(1, keepdim=True)


def mlp(activation=None):
    return nn.Sequential(nn.Linear(10, 16), activation or nn.ReLU(), nn.Linear(16, 3))


def cnn():
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 5)),
        nn.Conv2d(1, 4, 2),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


MODELS = {
    "mlp": mlp,
    "functional": Functional,
    "inplace": lambda: mlp(nn.ReLU(inplace=True)),
    "cnn": cnn,
    "lstm": Recurrent,
    "transformer": Attentive,
    "checkpoint": lambda: Checkpointed(False),
    "checkpoint-reentrant": lambda: Checkpointed(True),
    "autocast": Casting,
    "double-backward": Penalised,
}


def batch(n=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 10, generator=generator), torch.arange(n) % 3


def traced(model, step, x, y, memory=None):
    """One traced step -> (look, extras)."""
    trace = Trace([model] if isinstance(model, nn.Module) else model, Ears(), memory)
    trace.start()
    try:
        step(model, x, y)
    finally:
        trace.stop()
    return read(trace, x, y)


def read(trace, x=None, y=None):
    graph, numbers, extras = trace.read(x, y)
    assert "trace_error" not in extras, extras
    row = {"step": 0, "numbers": numbers, **extras}
    return look_of(row, graph), extras


def ordinary(model, x, y):
    loss = F.cross_entropy(model(x), y)
    model.zero_grad()
    loss.backward()
    return loss


def ops(look: Look):
    return [node.op for node in look.nodes]


def nothing_left():
    modules = nn.modules.module
    assert not modules._global_forward_pre_hooks
    assert not modules._global_forward_hooks
    assert not modules._global_forward_hooks_always_called
    assert torch._C._len_torch_function_stack() == 0


def train(name, tracing):
    torch.manual_seed(0)
    model = MODELS[name]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    memory = DeadUnits()
    found = []
    for step in range(5):
        x, y = batch(seed=step)
        trace = Trace([model], Ears(), memory)
        if tracing:
            trace.start()
        loss = ordinary(model, x, y)
        if tracing:
            trace.stop()
        optimizer.step()
        if tracing:
            found.append(read(trace, x, y))
    return [loss, *model.parameters(), *model.buffers(), torch.get_rng_state()], found


@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
@pytest.mark.parametrize("name", MODELS)
def test_training_is_bitwise_the_same(name):
    plain, _ = train(name, tracing=False)
    watched, found = train(name, tracing=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    nothing_left()
    look, extras = found[-1]
    assert ops(look)[-1] == "cross_entropy"
    assert look.roots == (len(look.nodes) - 1,)
    assert len(look.outputs) == 1
    assert look.nodes[-1].arguments[0].source == f"n{look.outputs[0]}"
    assert look.nodes[-1].arguments[1].source == "target"
    assert look.predictions.n == 12
    assert (extras["n_forward"], extras["n_backward"], extras["batch_size"]) == (1, 1, 12)


@pytest.mark.parametrize("make", [Attentive, lambda: nn.MultiheadAttention(10, 2, batch_first=True)])
def test_fused_evaluation_is_bitwise_the_same(make):
    torch.manual_seed(0)
    model = make().eval()
    assert has_fast_path(model)
    assert not has_fast_path(mlp())
    x = torch.randn(6, 4, 10) if isinstance(model, nn.MultiheadAttention) else torch.randn(6, 10)
    given = (x, x, x) if isinstance(model, nn.MultiheadAttention) else (x,)
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            model.requires_grad_(False)
            plain = model(*given)
            trace = Trace([model], Ears())
            trace.start()
            watched = model(*given)
            trace.stop()
        first, second = (out[0] if isinstance(out, tuple) else out for out in (plain, watched))
        assert torch.equal(first, second)
        look, _ = read(trace)
        assert "fused" in ops(look)
    nothing_left()


def test_nodes_tell_operation_module_arguments_and_numbers():
    torch.manual_seed(0)
    model = Functional()
    x, y = batch()
    look, extras = traced(model, ordinary, x, y)
    assert ops(look) == ["linear", "relu", "dropout", "linear", "cross_entropy"]
    assert [node.module for node in look.nodes] == ["fc1", "", "", "fc2", None]
    assert [a.source for a in look.nodes[0].arguments] == ["input:0", "param:fc1.weight", "param:fc1.bias"]
    assert look.nodes[2].attrs == {"p": 0.2, "training": True, "inplace": False}
    assert look.nodes[4].attrs["reduction"] == "mean"
    hidden = F.relu(model.fc1(x))
    assert look.nodes[1].stats.mean == pytest.approx(float(hidden.detach().mean()), rel=1e-5)
    assert look.nodes[1].shape == (12, 16)
    assert look.inputs.stats.mean == pytest.approx(float(x.mean()), rel=1e-4)
    assert (look.targets.dtype, look.targets.stats.distinct) == ("int64", 3)
    assert look.nodes[4].arguments[0].stats.row_sum_min is not None
    assert extras["loss_arguments"][0]["op"] == "cross_entropy"
    assert look.training is True


def test_modules_and_functions_give_the_same_operations():
    x, y = batch()
    modules, _ = traced(nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)), ordinary, x, y)
    functions, _ = traced(Functional(), ordinary, x, y)
    assert ops(modules) == ops(functions)
    assert [dict(node.attrs) for node in modules.nodes] == [dict(node.attrs) for node in functions.nodes]


def test_a_handwritten_loss_is_seen_with_its_broadcast():
    model = nn.Linear(10, 1)
    x, _ = batch()
    y = torch.randn(12)

    def step(model, x, y):
        (0.5 * ((model(x) - y) ** 2).mean()).backward()

    look, _ = traced(model, step, x, y)
    assert ops(look) == ["linear", "sub", "pow", "mean", "mul"]
    assert [a.source for a in look.nodes[1].arguments] == ["n0", "target"]
    assert look.nodes[1].shape == (12, 12)
    assert all(a.stats.distinct for a in look.nodes[1].arguments)
    assert (look.nodes[2].attrs["exponent"], look.nodes[4].attrs["scalar"]) == (2, 0.5)
    assert look.predictions is None


def test_answers_to_a_handwritten_loss_are_counted():
    model = mlp()
    x, y = batch()

    def step(model, x, y):
        (-torch.log(model(x).softmax(1)[torch.arange(12), y]).mean()).backward()

    look, _ = traced(model, step, x, y)
    assert look.predictions.n == 12
    assert look.predictions.correct == int((model(x).argmax(1) == y).sum())


def test_targets_are_found_through_views_and_casts():
    model = nn.Linear(10, 1)
    x, y = batch()

    def step(model, x, y):
        F.binary_cross_entropy_with_logits(model(x), (y > 0).clone().view(-1, 1).float()).backward()

    def simple(model, x, y):
        F.mse_loss(model(x), y.float().unsqueeze(1)).backward()

    look, _ = traced(model, simple, x, y)
    cast = next(node for node in look.nodes if node.op == "to")
    assert cast.arguments[0].source == "target"
    look, _ = traced(model, step, x, y)
    assert look.predictions.n == 12


def test_detached_and_copied_values_are_seen():
    model = nn.Sequential(nn.Linear(10, 16), nn.Linear(16, 3))
    x, y = batch()

    def step(model, x, y):
        hidden = model[0](x).data
        F.cross_entropy(model[1](hidden), y).backward()

    look, _ = traced(model, step, x, y)
    assert "detach" in ops(look)
    assert not look.nodes[ops(look).index("detach")].requires_grad


def test_leaves_buffers_and_outside_tensors_have_their_sources():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(10, 3)
            self.register_buffer("shift", torch.ones(3))
            self.hidden = [nn.Linear(3, 3)]
            self.scale = torch.ones(3)

        def forward(self, x):
            return self.hidden[0](self.fc(x) * self.scale) + self.shift

    look, _ = traced(Net(), ordinary, *batch())
    sources = [[a.source for a in node.arguments] for node in look.nodes]
    assert sources[1] == ["n0", "extern:0"]
    assert sources[2] == ["n1", "leaf:0", "leaf:1"]
    assert sources[3] == ["n2", "buffer:shift"]
    assert look.nodes[2].module == ""


def test_inputs_in_dictionaries_and_keywords_are_numbered():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(10, 3)

        def forward(self, batch, scale=None):
            return self.fc(batch["x"]) * scale

    x, y = batch()
    scale = torch.full((3,), 2.0)

    def step(model, x, y):
        F.cross_entropy(model({"x": x}, scale=scale), y).backward()

    look, _ = traced(Net(), step, x, y)
    assert look.nodes[0].arguments[0].source == "input:0"
    assert look.nodes[1].arguments[1].source == "input:1"


def test_an_inplace_change_makes_a_new_node():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(10, 3)

        def forward(self, x):
            h = self.fc(x)
            h[:, 0] = 0
            h += 1
            return h.mul_(2)

    look, _ = traced(Net(), ordinary, *batch())
    assert ops(look) == ["linear", "setitem", "add", "mul", "cross_entropy"]
    assert [node.arguments[0].source for node in look.nodes[1:]] == ["n0", "n1", "n2", "n3"]
    assert look.nodes[1].stats.zero == pytest.approx(1 / 3)
    assert look.nodes[0].stats.zero == 0


class Clipped(torch.autograd.Function):
    """A forward that autograd does not see."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0) * 2

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.mark.parametrize("stops", [False, True])
def test_gradients_are_followed_through_custom_functions(stops):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(10, 16), nn.Linear(16, 3)

        def forward(self, x):
            hidden = self.fc1(x)
            return self.fc2(Clipped.apply(hidden.detach() if stops else hidden))

    look, _ = traced(Net(), ordinary, *batch())
    clamp = next(node for node in look.nodes if node.op == "clamp")
    assert clamp.requires_grad is not stops
    assert ops(look)[-3:] == ["mul", "linear", "cross_entropy"]


def test_gradients_are_followed_into_reentrant_checkpoints():
    look, _ = traced(Checkpointed(True), ordinary, *batch())
    assert all(node.requires_grad for node in look.nodes)
    assert all(node.arguments[0].requires_grad for node in look.nodes)


def test_units_follow_the_layout():
    torch.manual_seed(0)

    def quiet(layer):
        with torch.no_grad():
            layer.bias[0] = -100
        return layer

    images = nn.Sequential(
        nn.Unflatten(1, (2, 5)), quiet(nn.Conv1d(2, 4, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    words = nn.Sequential(nn.Unflatten(1, (2, 5)), quiet(nn.Linear(5, 8)), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    for model, units in ((images, 4), (words, 8)):
        memory = DeadUnits()
        looks = [traced(model, ordinary, *batch(60), memory=memory)[0] for _ in range(4)]
        relu = next(node for node in looks[-1].nodes if node.op == "relu")
        assert relu.stats.dead == pytest.approx(1 / units)


def test_only_what_the_loss_rests_on_is_kept():
    model = mlp()

    def step(model, x, y):
        out = model(x)
        (out.argmax(1) == y).float().mean()
        x.mean().exp()
        F.cross_entropy(out, y).backward()

    look, _ = traced(model, step, *batch())
    assert ops(look) == ["linear", "relu", "linear", "cross_entropy"]


def test_further_micro_batches_are_only_counted():
    model = mlp()

    def step(model, x, y):
        for _ in range(3):
            (F.cross_entropy(model(x), y) / 3).backward()

    look, extras = traced(model, step, *batch())
    assert ops(look) == ["linear", "relu", "linear", "cross_entropy", "div"]
    assert (extras["n_forward"], extras["n_backward"]) == (3, 3)


def test_several_backwards_have_several_roots():
    model = mlp()

    trace = Trace([model], ears := Ears())
    trace.start()
    out = model(batch()[0])
    first, second = F.cross_entropy(out, batch()[1]), out.square().mean()
    first.backward(retain_graph=True)
    torch.autograd.backward(second)
    trace.stop()
    look, extras = read(trace)
    assert len(look.roots) == 2
    assert extras["n_backward"] == 2
    assert [word for word, _ in ears.heard] == ["before"] * 2


def test_gradients_asked_for_directly_are_a_backward():
    model = mlp()

    def step(model, x, y):
        torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))

    look, extras = traced(model, step, *batch())
    assert extras["n_backward"] == 1
    assert ops(look)[-1] == "cross_entropy"


def test_two_models_are_recorded_to_the_end():
    torch.manual_seed(0)
    generator, critic = nn.Linear(4, 10), nn.Linear(10, 1)
    real, _ = batch()

    def step(models, x, y):
        fake = generator(torch.randn(12, 4))
        loss = F.softplus(critic(fake.detach())).mean() + F.softplus(-critic(real)).mean()
        loss.backward()
        F.softplus(-critic(fake)).mean().backward()

    look, extras = traced([generator, critic], step, real, None)
    assert len(look.roots) == 2
    assert {node.module for node in look.nodes} >= {"0", "1", None}
    assert extras["n_backward"] == 2
    assert any(a.source == "param:0.weight" for node in look.nodes for a in node.arguments)


def test_an_evaluation_alone_is_recorded():
    model = Functional().eval()
    x, y = batch()
    trace = Trace([model], Ears())
    trace.start()
    with torch.no_grad():
        F.cross_entropy(model(x), y)
        F.cross_entropy(model(x), y)
    trace.stop()
    look, extras = read(trace)
    assert ops(look) == ["linear", "relu", "dropout", "linear", "cross_entropy"]
    assert look.predictions.n == 12
    assert (look.roots, extras["n_forward"], extras["n_backward"]) == ((), 0, 0)
    nothing_left()


def test_an_evaluation_before_the_step_leaves_no_nodes():
    model = Functional()
    x, y = batch()

    def step(model, x, y):
        model.eval()
        with torch.no_grad():
            F.mse_loss(model(x), torch.zeros(12, 3))
        for _ in range(4):
            F.cross_entropy(model(x), y).item()
        model.train()
        ordinary(model, x, y)

    look, extras = traced(model, step, x, y)
    assert ops(look) == ["linear", "relu", "dropout", "linear", "cross_entropy"]
    assert extras["training"] is True
    assert extras["n_forward"] == 1
    assert look.predictions.n == 12


def test_losses_added_up_over_forwards_are_all_kept():
    model = mlp()

    def step(model, x, y):
        sum(F.cross_entropy(model(x), y) for _ in range(5)).backward()

    look, extras = traced(model, step, *batch())
    assert ops(look).count("cross_entropy") == 5
    assert (extras["n_forward"], len(look.outputs)) == (5, 5)


def test_modules_left_in_eval_mode_are_named():
    model = cnn()
    model[2].eval()
    look, extras = traced(model, ordinary, *batch())
    assert extras["eval_modules"] == ["2"]
    assert look.nodes[ops(look).index("batch_norm")].attrs["training"] is False


def test_dead_units_are_known_after_four_looks():
    model = mlp()
    with torch.no_grad():
        model[0].bias[:4] = -100
    memory = DeadUnits()
    looks = [traced(model, ordinary, *batch(), memory=memory)[0] for _ in range(4)]
    assert [look.nodes[1].stats.dead is None for look in looks] == [True, True, True, False]
    assert looks[-1].nodes[1].stats.dead == pytest.approx(4 / 16, abs=0.13)


def test_the_batch_dimension_is_learnt_from_targets():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(10, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.lstm(x)[0][-1])

    memory = DeadUnits()
    x = torch.randn(7, 1, 10).repeat(1, 12, 1)
    looks = [traced(Net(), ordinary, x, batch()[1], memory)[0] for _ in range(2)]
    lstm = looks[1].nodes[ops(looks[1]).index("lstm")]
    assert memory.batch_dim == 1
    assert lstm.stats.across == pytest.approx(0, abs=1e-6)
    assert lstm.attrs["hidden_size"] == 8
    assert lstm.stats.flat == 0


def test_very_long_graphs_keep_their_loss():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(10, 10)

        def forward(self, x):
            for _ in range(1200):
                x = torch.tanh(self.fc(x))
            return x[:, :3]

    look, _ = traced(Net(), ordinary, *batch())
    assert len(look.nodes) <= 2000
    assert ops(look)[-1] == "cross_entropy"
    assert look.nodes[0].arguments[0].source == "input:0"
    measured = [node for node in look.nodes if node.stats is not None]
    assert 100 < len(measured) < 250


def test_an_error_in_a_forward_leaves_the_trace_usable():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.fails = nn.Linear(10, 3), True

        def forward(self, x):
            out = self.fc(x)
            if self.fails:
                raise ValueError("no")
            return out

    model = Net()

    def step(model, x, y):
        with pytest.raises(ValueError, match="no"):
            model(x)
        with pytest.raises(RuntimeError):
            model.fc(torch.ones(2, 2))
        model.fails = False
        ordinary(model, x, y)

    look, _ = traced(model, step, *batch())
    assert ops(look) == ["linear", "cross_entropy"]
    assert [node.module for node in look.nodes] == ["fc", None]
    nothing_left()


class Doubling(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_modes_of_the_user_come_and_go():
    model = mlp()
    x, y = batch()
    outer, inner = Doubling(), Doubling()
    trace = Trace([model], Ears())
    with torch.device("cpu"), outer:
        trace.start()
        loss = F.cross_entropy(model(x), y)
    assert torch._C._len_torch_function_stack() == 1
    with inner, torch.device("cpu"):
        loss.backward()
        trace.stop()
        assert torch._C._len_torch_function_stack() == 2
    look, _ = read(trace)
    assert ops(look) == ["linear", "relu", "linear", "cross_entropy"]
    nothing_left()


def test_a_default_device_can_change_while_it_listens():
    model, (x, y) = mlp(), batch()
    trace = Trace([model], Ears())
    try:
        torch.set_default_device("cpu")
        trace.start()
        loss = F.cross_entropy(model(x), y)
        torch.set_default_device(None)
        torch.set_default_device("cpu")
        loss.backward()
        trace.stop()
    finally:
        torch.set_default_device(None)
    assert len(read(trace)[0].roots) == 1
    nothing_left()


def test_it_can_start_inside_a_hook_of_the_model():
    model = mlp()
    trace = Trace([model], Ears())

    def begin(module, args, kwargs):
        if not trace._handles:
            trace.start()
        trace.enter(module, args, kwargs)

    handle = model.register_forward_pre_hook(begin, with_kwargs=True)
    x, y = batch()
    ordinary(model, x, y)
    trace.stop()
    handle.remove()
    look, extras = read(trace, x, y)
    assert ops(look) == ["linear", "relu", "linear", "cross_entropy"]
    assert (extras["n_forward"], look.nodes[0].module) == (1, "0")


def test_parts_of_a_model_called_alone_are_seen():
    model = mlp()

    def step(model, x, y):
        F.cross_entropy(model.forward(x), y).backward()

    look, _ = traced(model, step, *batch())
    assert ops(look) == ["linear", "relu", "linear", "cross_entropy"]


def test_other_threads_and_forked_children_are_left_alone():
    # Without a matrix product: MKL's allocator can wait for ever in a forked child.
    model = nn.Sequential(nn.PReLU(), nn.Softmax(dim=1))
    x, y = batch()
    trace = Trace([model], Ears())
    trace.start()
    model(x)
    thread = threading.Thread(target=lambda: ordinary(model, x, y))
    thread.start()
    thread.join()
    child = os.fork()
    if child == 0:
        try:
            ordinary(model, x, y)
        finally:
            os._exit(0 if (trace.n_forward, trace.n_backward, trace.listener.heard) == (1, 0, []) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    trace.stop()
    _, extras = read(trace)
    assert (extras["n_forward"], extras["n_backward"]) == (1, 0)


class NoWaiting(TorchDispatchMode):
    """Refuses what would wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm"])
def test_the_step_never_waits_for_the_device(name):
    model = MODELS[name]()
    x, y = batch()
    trace = Trace([model], Deaf())
    with NoWaiting():
        trace.start()
        ordinary(model, x, y)
        trace.stop()
    assert read(trace, x, y)[0].nodes


def test_no_activation_is_kept_alive():
    model = nn.Sequential(nn.Linear(10, 16), nn.Sigmoid(), nn.Linear(16, 3))
    alive = []
    handle = model[1].register_forward_hook(lambda module, args, out: alive.append(weakref.ref(out)))
    trace = Trace([model], Ears())
    trace.start()
    ordinary(model, *batch())
    trace.stop()
    handle.remove()
    gc.collect()
    assert alive[0]() is None
    assert read(trace)[0].nodes


def test_a_finished_trace_goes_without_the_garbage_collector():
    model = mlp()
    gc.collect()
    gc.disable()
    try:
        trace = Trace([model], Ears())
        trace.start()
        ordinary(model, *batch())
        trace.stop()
        read(trace)
        gone = weakref.ref(trace)
        del trace
        assert gone() is None
    finally:
        gc.enable()


def test_a_fault_of_the_trace_does_not_reach_the_training(monkeypatch):
    model = mlp()
    monkeypatch.setattr("luthier.doctor.measure.recorder.measure", lambda *_, **__: 1 / 0)
    trace = Trace([model], Ears())
    trace.start()
    loss = ordinary(model, *batch())
    trace.stop()
    assert loss.isfinite()
    assert "ZeroDivisionError" in trace.read()[2]["trace_error"]
    nothing_left()
