"""People's odd but right ways to train: watched they run, give bitwise the same result, and are not called sick."""

import copy
import dataclasses
import io
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import luthier
from luthier.errors import LuthierError


def blobs(n=256, features=10, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=generator)
    return x, (x[:, :classes] + 0.3 * torch.randn(n, classes, generator=generator)).argmax(1)


@pytest.fixture(autouse=True)
def no_mode_stays():
    """Whatever happens, nothing of the watch is left in this thread."""
    yield
    assert torch.overrides._get_current_function_mode_stack() == []
    assert not torch.nn.modules.module._global_forward_hooks


X, Y = blobs()
NEW_X, NEW_Y = blobs(seed=1)


def batch(step, size=32):
    rows = torch.arange(step * size, (step + 1) * size) % len(X)
    return X[rows], Y[rows]


def mlp(*inside):
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), *inside, nn.Linear(32, 3))


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def plain(model, optimizer, watch, compute=None, steps=60):
    compute = compute or (lambda x, y: F.cross_entropy(model(x), y))
    for step in range(steps):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = compute(x, y)
        loss.backward()
        optimizer.step()
        watch.step(loss, inputs=x, targets=y)


class Silent:
    """A watch that is none."""

    def step(self, *_, **__):
        """Nothing."""

    def metrics(self, **_):
        """Nothing."""


def both(make):
    """Run `make() -> (models, optimizers, run)` with and without a watch; returns the watch after comparing results."""
    ends = []
    for watched in (False, True):
        torch.manual_seed(0)
        models, optimizers, run = make()
        watch = luthier.watch(models, optimizers) if watched else Silent()
        run(watch)
        if watched:
            watch.close()
        every = models if isinstance(models, list) else [models]
        ends.append([v.clone() for model in every for v in model.state_dict().values()] + [torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    return watch


def autocast_bf16():
    model = mlp()
    optimizer = adam(model)

    def run(watch):
        for step in range(60):
            x, y = batch(step)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            watch.step(loss, inputs=x, targets=y)

    return model, optimizer, run


def grad_scaler_with_a_skipped_step():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)

    def run(watch):
        for step in range(60):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            if step == 3:
                model[0].weight.grad[0, 0] = float("inf")
            scaler.step(optimizer)
            scaler.update()
            watch.step(loss, inputs=x, targets=y)

    return model, optimizer, run


def checkpointing():
    model = mlp(nn.Dropout(0.1))
    optimizer = adam(model)
    return (
        model,
        optimizer,
        lambda watch: plain(
            model,
            optimizer,
            watch,
            lambda x, y: F.cross_entropy(model[3](checkpoint(model[:3], x, use_reentrant=False)), y),
        ),
    )


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(0.1)), nn.Linear(32, 3)

    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=False))


def checkpointing_inside():
    model = Checkpointed()
    optimizer = adam(model)
    return model, optimizer, lambda watch: plain(model, optimizer, watch)


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def data_parallel_like():
    model = nn.DataParallel(mlp())
    optimizer = adam(model)
    return model, optimizer, lambda watch: plain(model, optimizer, watch)


def inner_watched_wrapper_called():
    model = mlp()
    wrapper = Wrapper(model)
    optimizer = adam(wrapper)
    return model, optimizer, lambda watch: plain(model, optimizer, watch, lambda x, y: F.cross_entropy(wrapper(x), y))


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.EmbeddingBag(50, 16, sparse=True), nn.Linear(16, 3)

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


def sparse_embedding():
    model = Bag()
    optimizers = [
        torch.optim.SparseAdam(model.embedding.parameters(), lr=0.05),
        torch.optim.Adam(model.head.parameters(), lr=0.05),
    ]
    tokens = torch.randint(0, 50, (256, 6))
    labels = torch.randn(50, 3)[tokens].sum(1).argmax(1)

    def run(watch):
        for step in range(60):
            rows = torch.arange(step * 32, step * 32 + 32) % 256
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss = F.cross_entropy(model(tokens[rows]), labels[rows])
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            watch.step(loss, inputs=tokens[rows], targets=labels[rows])

    return model, optimizers, run


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.mix, self.head = nn.Embedding(12, 16), nn.Linear(16, 16), nn.Linear(16, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.mix(self.embedding(tokens))))


def tied_weights():
    model = Tied()
    optimizer = adam(model)
    tokens = torch.arange(12).repeat(8)

    def run(watch):
        for step in range(60):
            x = tokens.roll(step)
            y = (x + 1) % 12
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            watch.step(loss, inputs=x, targets=y)

    return model, optimizer, run


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor


class Answering(nn.Module):
    """Answers as `kind` says, in the ways of the common libraries."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.net = kind, mlp()

    def forward(self, x, y):
        logits = self.net(x)
        loss = F.cross_entropy(logits, y)
        ways = {"dict": {"loss": loss, "logits": logits}, "tuple": (loss, logits), "dataclass": Output(logits, loss)}
        return ways[self.kind]


def loss_of(output):
    if isinstance(output, dict):
        return output["loss"]
    return output[0] if isinstance(output, tuple) else output.loss


def answering(kind):
    def make():
        model = Answering(kind)
        optimizer = adam(model)
        return model, optimizer, lambda watch: plain(model, optimizer, watch, lambda x, y: loss_of(model(x, y)))

    return make


class Methods(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def training_step(self, x, y):
        return F.cross_entropy(self.net(x), y)


def called_by_another_method():
    model = Methods()
    optimizer = adam(model)
    return model, optimizer, lambda watch: plain(model, optimizer, watch, model.training_step)


def weight_norm():
    model = mlp()
    parametrizations.weight_norm(model[0])
    parametrizations.spectral_norm(model[2])
    optimizer = adam(model)
    return model, optimizer, lambda watch: plain(model, optimizer, watch)


def moving_average_copy():
    model = mlp()
    optimizer = adam(model)
    average = torch.optim.swa_utils.AveragedModel(model)

    def run(watch):
        for _ in range(6):
            plain(model, optimizer, watch, steps=10)
            average.update_parameters(model)
            average.eval()
            with torch.no_grad():
                watch.metrics(val_loss=F.cross_entropy(average(NEW_X), NEW_Y))

    return model, optimizer, run


def average_made_while_watched():
    model = mlp()
    optimizer = adam(model)

    def run(watch):
        average = copy.deepcopy(model)
        for _ in range(6):
            plain(model, optimizer, watch, steps=10)
            with torch.no_grad():
                for ours, theirs in zip(average.parameters(), model.parameters(), strict=True):
                    ours.lerp_(theirs, 0.1)
                watch.metrics(val_loss=F.cross_entropy(average(NEW_X), NEW_Y))

    return model, optimizer, run


def two_losses_two_backwards():
    model = mlp()
    optimizer = adam(model)

    def run(watch):
        for step in range(60):
            x, y = batch(step)
            optimizer.zero_grad()
            logits = model(x)
            F.cross_entropy(logits, y).backward(retain_graph=True)
            loss = 0.01 * logits.square().mean()
            loss.backward()
            optimizer.step()
            watch.step(F.cross_entropy(logits, y), inputs=x, targets=y)

    return model, optimizer, run


def gradients_edited_by_hand():
    model = mlp()
    optimizer = adam(model)

    def run(watch):
        for step in range(60):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.grad += 1e-4 * parameter
            optimizer.step()
            watch.step(loss, inputs=x, targets=y)

    return model, optimizer, run


def gradients_by_autograd_grad():
    model = mlp()
    optimizer = adam(model)

    def run(watch):
        for step in range(60):
            x, y = batch(step)
            loss = F.cross_entropy(model(x), y)
            grads = torch.autograd.grad(loss, list(model.parameters()))
            for parameter, grad in zip(model.parameters(), grads, strict=True):
                parameter.grad = grad
            optimizer.step()
            watch.step(loss, inputs=x, targets=y)

    return model, optimizer, run


def inference_mode_evaluation():
    model = mlp(nn.Dropout(0.1))
    optimizer = adam(model)

    def run(watch):
        for _ in range(6):
            model.train()
            plain(model, optimizer, watch, steps=10)
            model.eval()
            with torch.inference_mode():
                watch.metrics(val_loss=F.cross_entropy(model(NEW_X), NEW_Y))

    return model, optimizer, run


def evaluation_in_another_thread():
    model = mlp()
    optimizer = adam(model)

    def run(watch):
        for _ in range(6):
            plain(model, optimizer, watch, steps=10)
            with_threads = [
                threading.Thread(target=lambda: F.cross_entropy(model(NEW_X), NEW_Y).item()) for _ in range(2)
            ]
            for thread in with_threads:
                thread.start()
            for thread in with_threads:
                thread.join()

    return model, optimizer, run


def penalty_of_gradients():
    model = mlp()
    optimizer = adam(model)

    def compute(x, y):
        x = x.clone().requires_grad_()
        loss = F.cross_entropy(model(x), y)
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        return loss + 0.1 * slope.square().sum()

    return model, optimizer, lambda watch: plain(model, optimizer, watch, compute)


def functional_call():
    model = mlp()
    optimizer = adam(model)
    return (
        model,
        optimizer,
        lambda watch: plain(
            model,
            optimizer,
            watch,
            lambda x, y: F.cross_entropy(torch.func.functional_call(model, dict(model.named_parameters()), (x,)), y),
        ),
    )


def schedule_each_step():
    model = mlp()
    optimizer = adam(model)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=60)

    def run(watch):
        for step in range(60):
            x, y = batch(step)
            optimizer.zero_grad(set_to_none=False)
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            schedule.step()
            watch.step(loss.item(), inputs=x, targets=y)

    return model, optimizer, run


def double_precision():
    model = mlp().double()
    optimizer = adam(model)
    return (
        model,
        optimizer,
        lambda watch: plain(model, optimizer, watch, lambda x, y: F.cross_entropy(model(x.double()), y)),
    )


def optimizer_that_steps_in_backward():
    model = mlp()
    own = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step(parameter):
        own[parameter].step()
        own[parameter].zero_grad()

    for parameter in own:
        parameter.register_post_accumulate_grad_hook(step)

    def run(watch):
        for step in range(60):
            x, y = batch(step)
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            watch.step(loss, inputs=x, targets=y)

    return model, list(own.values()), run


WAYS = {
    "autocast": autocast_bf16,
    "scaler": grad_scaler_with_a_skipped_step,
    "checkpoint-outside": checkpointing,
    "checkpoint": checkpointing_inside,
    "data-parallel": data_parallel_like,
    "inner": inner_watched_wrapper_called,
    "sparse": sparse_embedding,
    "tied": tied_weights,
    "dict": answering("dict"),
    "tuple": answering("tuple"),
    "dataclass": answering("dataclass"),
    "method": called_by_another_method,
    "weight-norm": weight_norm,
    "averaged": moving_average_copy,
    "average-copied": average_made_while_watched,
    "two-backwards": two_losses_two_backwards,
    "edited": gradients_edited_by_hand,
    "autograd.grad": gradients_by_autograd_grad,
    "inference-mode": inference_mode_evaluation,
    "threads": evaluation_in_another_thread,
    "gradient-penalty": penalty_of_gradients,
    "functional-call": functional_call,
    "schedule": schedule_each_step,
    "double": double_precision,
    "step-in-backward": optimizer_that_steps_in_backward,
}


@pytest.mark.parametrize("way", WAYS)
def test_odd_but_right(way):
    watch = both(WAYS[way])
    diagnosis = watch.diagnose()
    assert diagnosis.is_healthy, str(diagnosis)
    assert watch.vitals.n_steps == (59 if way == "scaler" else 60)


def test_empty_batches_and_batches_of_one():
    def make():
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def run(watch):
            for step, size in enumerate([32, 0, 1, 32, 0, 5, 1, 32] * 3):
                x, y = batch(step, size)
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y, reduction="sum") / 32
                loss.backward()
                optimizer.step()
                watch.step(loss, inputs=x, targets=y)

        return model, optimizer, run

    watch = both(make)
    assert watch.vitals.n_steps == 24
    assert not [f.symptom for f in watch.diagnose().findings if f.severity == "critical"]


def test_inputs_without_a_batch_dimension():
    def make():
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

        def run(watch):
            for step in range(40):
                x = torch.tensor([float(step % 5)])
                optimizer.zero_grad()
                loss = (model(x).squeeze() - 2 * x.squeeze()) ** 2
                loss.backward()
                optimizer.step()
                watch.step(loss, inputs=x.squeeze(), targets=2 * x.squeeze())

        return model, optimizer, run

    assert both(make).vitals.n_steps == 40


def test_a_model_on_the_meta_device():
    model = nn.Linear(10, 3, device="meta")
    with pytest.raises(LuthierError, match="meta"):
        luthier.watch(model, torch.optim.SGD(model.parameters(), lr=0.1))


class Changing(nn.Module):
    """A head for each of three tasks, taken in turns."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 32), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(32, 3), nn.Linear(32, 3), nn.Linear(32, 1)])

    def forward(self, x, task):
        return self.heads[task](self.body(x))


def test_heads_taken_in_turns_are_not_disconnected():
    def make():
        model = Changing()
        optimizer = adam(model)

        def run(watch):
            for step in range(90):
                x, y = batch(step)
                optimizer.zero_grad()
                answer = model(x, step % 3)
                loss = F.cross_entropy(answer, y) if step % 3 < 2 else F.mse_loss(answer[:, 0], x[:, 0])
                loss.backward()
                optimizer.step()
                watch.step(loss, inputs=x, targets=y if step % 3 < 2 else x[:, 0])

        return model, optimizer, run

    diagnosis = both(make).diagnose()
    assert not {f.symptom for f in diagnosis.findings} & {"disconnected_params", "frozen_params", "missing_zero_grad"}


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
def test_a_compiled_model_says_what_it_could_not_look_at():
    model = torch.compile(mlp(), backend="eager")
    optimizer = adam(model)
    with luthier.watch(model, optimizer) as watch:
        plain(model, optimizer, watch)
    diagnosis = watch.diagnose()
    assert diagnosis.is_healthy, str(diagnosis)
    assert any("compiled" in reason for reason in diagnosis.not_seen.values())


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
def test_a_model_compiled_while_it_is_watched():
    model = mlp()
    optimizer = adam(model)
    with luthier.watch(model, optimizer) as watch:
        plain(model, optimizer, watch, steps=5)
        fast = torch.compile(model, backend="eager")
        plain(model, optimizer, watch, lambda x, y: F.cross_entropy(fast(x), y), steps=40)
    assert watch.vitals.n_steps == 45
    assert watch.diagnose().is_healthy, str(watch.diagnose())


def test_a_model_saved_whole_while_watched_loads_with_weights_only():
    model = mlp()
    optimizer = adam(model)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    clean = mlp()
    buffer = io.BytesIO()
    with luthier.watch(clean, adam(clean)), luthier.watch(model, optimizer) as watch:
        plain(model, optimizer, watch, steps=4)
        torch.save(clean, buffer)
        twin = copy.deepcopy(model)
        seen = len(calls)
        assert torch.equal(twin(X), model(X))
        assert len(calls) == seen + 2
        assert len(twin._forward_hooks) == 1
    assert b"luthier" not in buffer.getvalue()
    assert "__getstate__" not in vars(model)
    buffer.seek(0)
    known = [nn.Sequential, nn.Linear, nn.ReLU]
    with torch.serialization.safe_globals(known):
        again = torch.load(buffer)
    assert torch.equal(again(X), clean(X))


def test_two_watches_on_two_models_stay_apart():
    first, second = mlp(), mlp()
    one, two = adam(first), adam(second)
    with luthier.watch(first, one) as watch, luthier.watch(second, two) as other:
        plain(first, one, watch, steps=12)
        plain(second, two, other, steps=7)
    assert (watch.vitals.n_steps, other.vitals.n_steps) == (12, 7)


def test_a_part_of_a_watched_model_watched_as_well():
    model = mlp()
    optimizer = adam(model)
    with luthier.watch(model, optimizer) as watch, luthier.watch(model[0], optimizer) as part:
        plain(model, optimizer, watch, steps=30)
    assert watch.vitals.n_steps == part.vitals.n_steps == 30
    assert watch.diagnose().is_healthy


def test_the_diagnosis_of_a_loop_that_goes_on_after_closing_stays():
    model = mlp()
    optimizer = adam(model)
    watch = luthier.watch(model, optimizer)
    plain(model, optimizer, watch)
    watch.close()
    said = str(watch.diagnose())
    plain(model, optimizer, watch)
    watch.metrics(val_loss=1.0)
    assert str(watch.diagnose()) == said


def test_a_notebook_that_diagnoses_between_cells():
    model = mlp()
    optimizer = adam(model)
    watch = luthier.watch(model, optimizer)
    for _ in range(4):
        plain(model, optimizer, watch, steps=15)
        assert {finding.symptom for finding in watch.findings} <= {"too_few_epochs"}
    with pytest.raises(LuthierError, match="watched already"):
        luthier.watch(model, optimizer)
    watch.close()


def test_a_model_trained_by_a_user_who_interrupts_and_goes_on():
    model = mlp()
    optimizer = adam(model)
    watch = luthier.watch(model, optimizer)
    for at in (5, 11, 17):
        with pytest.raises(KeyboardInterrupt):
            plain(model, optimizer, watch, lambda x, y: interrupting(model, x, y), steps=at)
        plain(model, optimizer, watch, steps=20)
    watch.close()
    assert watch.vitals.n_steps == 60
    assert torch.overrides._get_current_function_mode_stack() == []


def interrupting(model, x, y):
    model(x)
    raise KeyboardInterrupt


def test_the_parts_of_a_container_are_seen_from_the_first_step():
    parts = nn.ModuleDict({"body": nn.Linear(8, 16), "head": nn.Linear(16, 3)})
    optimizer = torch.optim.SGD(parts.parameters(), 0.1)
    x, y = torch.randn(32, 8), torch.randint(3, (32,))
    with luthier.watch(parts, optimizer) as watch:
        for _ in range(3):
            loss = torch.nn.functional.cross_entropy(parts["head"](parts["body"](x).relu()), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watch.step(loss, inputs=x, targets=y)
    assert [node.op for node in watch.vitals.looks[0].nodes] == ["linear", "relu", "linear", "cross_entropy"]
    assert watch.vitals.looks[0].nodes[0].module == "body"
