"""A trace of one training iteration: which operations ran, on what, and the numbers of their results.

It listens with a `TorchFunctionMode` and global module hooks from the first forward on, measures each result at once
and holds no activation. Nothing it does changes a result, draws a random number or waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunction
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from luthier.doctor.measure import anatomy, answers, modes
from luthier.doctor.measure.attributes import tensors
from luthier.doctor.measure.graph import Graph
from luthier.doctor.measure.home import Home
from luthier.doctor.measure.operations import Operation, operation
from luthier.doctor.measure.reading import Forward, Traced, rows_of
from luthier.doctor.measure.recorder import Recorder
from luthier.doctor.measure.rows import DeadUnits, Row

Phase = Literal["waiting", "evaluation", "training"]

_FAST = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
_TWO_MODED = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)
_BACKWARDS = frozenset((Tensor.backward, torch.autograd.backward, torch.autograd.grad))
_GRAD = Operation("grad", ("outputs", "inputs"))
_FUSED = Operation("fused", ("input",))


class Listener(Protocol):
    """Who hears of backward passes."""

    def before_backward(self, loss: Tensor) -> None:
        """backward() of a loss begins."""


def has_fast_path(model: nn.Module) -> bool:
    """Whether torch runs parts of the model by a fused path in eval mode, which any listening mode switches off."""
    return any(isinstance(module, _FAST) for module in model.modules())


class Trace:
    """Listens from `start` to `stop`; `read` gives the rows of `vitals`, best one step later.

    Recorded is everything from the first forward to the first backward, with several models (GAN) to the end. A forward
    without gradients is recorded as long as none with gradients follows: so an evaluation can be traced too. Where
    torch takes its fused path for attention, the trace steps aside and records one operation "fused".

    Args:
        models: the watched ones.
        listener: told before every backward.
        memory: what is remembered over looks; a new one when omitted.
    """

    def __init__(self, models: Sequence[nn.Module], listener: Listener, memory: DeadUnits | None = None) -> None:
        self.models = tuple(models)
        self.listener = listener
        self.memory = DeadUnits() if memory is None else memory
        self.n_forward = self.n_backward = 0
        self._mode: _Mode | None = None
        self._handles: list[Any] = []
        self._watched = {id(model) for model in self.models}
        self._modules: dict[int, str] = {}
        self._labels: dict[int, tuple[Tensor, str]] = {}
        self._two_moded: list[tuple[str, nn.Module]] = []
        self._stack: list[tuple[nn.Module, str]] = []
        self._just_entered: nn.Module | None = None
        self._fused: nn.Module | None = None
        self._in_backward = False
        self._home = Home()
        self._begin("waiting")

    def start(self) -> None:
        """Listen; the mode follows with the first forward."""
        names = anatomy.named_modules(self.models)
        self._modules = {id(module): name for name, module in names.items()}
        self._labels = _labels(names)
        self._two_moded = [(name, module) for name, module in names.items() if isinstance(module, _TWO_MODED)]
        self._home = Home()
        self._mode = _Mode(self)
        self._handles = [
            hooks.register_module_forward_pre_hook(self._before_module),
            hooks.register_module_forward_hook(self._after_module, with_kwargs=True, always_call=True),
        ]

    def enter(self, model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """A forward of a watched model begins: for who starts the trace from inside a hook, or knows the keywords."""
        if self._elsewhere():
            return
        with DisableTorchFunction():
            given = [*tensors(args), *tensors(kwargs)]
            if self._just_entered is model:
                self._take_inputs(model, given)
            else:
                self._enter(model, self._modules.get(id(model), ""), given)

    def stop(self) -> None:
        """Take everything away again; what was measured stays readable."""
        for handle in self._handles:
            handle.remove()
            for left in (hooks._global_forward_hooks_always_called, hooks._global_forward_hooks_with_kwargs):
                left.pop(handle.id, None)  # torch leaves the ids of removed hooks there
        self._handles = []
        self._pause()
        self._mode = None
        self._traced.recorder.recording = False
        self._stack = []

    def read(self, inputs: Any = None, targets: Any = None) -> tuple[Row, Row, Row]:
        """Rows of what was traced, with one transfer from each device.

        Args:
            inputs: of the step; used when the model's own were not seen.
            targets: tell the sources "target" and the dimension of examples; whole numbers also what was answered
                where the loss is written by hand.

        Returns:
            graph (kind, nodes, outputs, roots), numbers (by index of the node), and what else `vitals.Look` holds:
            training, eval_modules, n_forward, n_backward, inputs, targets, batch_size, predictions, loss_arguments;
            trace_error when recording ended early.
        """
        found = tensors(targets)
        graph, numbers, extras = rows_of(self._traced, tensors(inputs), found)
        unused = len(self._traced.forwards) - len(self._traced.used_forwards()) if self._phase == "training" else 0
        extras |= {"n_forward": self.n_forward - unused, "n_backward": self.n_backward}
        self._learn_batch_dim(found)
        return graph, numbers, extras

    @property
    def compared(self) -> Tensor | None:
        """What the first loss compared the model's output with: the targets, when nobody told them."""
        return self._traced.recorder.compared

    # Modules

    def _elsewhere(self) -> bool:
        """In a forked child, another thread, or while backward computes a forward again."""
        return self._in_backward or not self._home.is_here()

    def _before_module(self, module: nn.Module, args: Any) -> None:
        name = self._modules.get(id(module))
        if (name is None and not isinstance(module, _FAST)) or self._elsewhere():
            return
        if name is not None:
            with DisableTorchFunction():
                self._enter(module, name, () if self._stack else tensors(args))
        if self._fused is None and isinstance(module, _FAST) and _runs_fused(module) and self._pause():
            self._fused = module

    def _after_module(self, module: nn.Module, args: Any, *rest: Any) -> None:
        """Called with (kwargs, output), or with (output) alone when the forward raised."""
        if (id(module) not in self._modules and self._fused is not module) or self._elsewhere():
            return
        kwargs, output = rest if len(rest) == 2 else ({}, rest[0])
        with DisableTorchFunction():
            if self._fused is module:
                self._traced.recorder.record(_FUSED, [*tensors(args), *tensors(kwargs)], tensors(output))
            if any(entry[0] is module for entry in self._stack):
                self._leave(module, args, kwargs, output)
        if self._fused is module:
            self._fused = None
            self._listen()

    def _enter(self, module: nn.Module, name: str, given: Sequence[Tensor]) -> None:
        outermost = not self._stack
        self._stack.append((module, name))
        self._just_entered = module
        if outermost:
            self._begin_forward(module)
            self._take_inputs(module, given)
        self._traced.recorder.module = name

    def _leave(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        while self._stack.pop()[0] is not module:
            pass
        self._just_entered = None
        self._traced.recorder.module = self._stack[-1][1] if self._stack else None
        if not self._stack and output is not None:
            if kwargs:
                self._take_inputs(module, [*tensors(args), *tensors(kwargs)])
            self._end_forward(module, tensors(output))

    def _begin_forward(self, module: nn.Module) -> None:
        with_gradients, traced = torch.is_grad_enabled(), self._traced
        if with_gradients and self._phase != "training":
            self._begin("training")
        elif self._phase == "waiting":
            self._begin("evaluation")
        elif self._phase == "evaluation":
            traced.recorder.recording = False
            self._pause()
        if with_gradients and id(module) in self._watched:
            self.n_forward += 1
            if len(self._traced.forwards) > 1 and self._traced.recorder.recording:
                self._traced.recorder.graph.drop_dead()
        if self._traced.recorder.recording:
            if id(module) in self._watched and (with_gradients or self._phase == "evaluation"):
                self._traced.forwards.append(Forward(module.training, self._in_eval_mode(module)))
            self._listen()

    def _listen(self) -> None:
        if self._mode is not None:
            modes.put_lowest(self._mode)

    def _pause(self) -> bool:
        """Stop seeing functions; whether they were seen."""
        return self._mode is not None and modes.take_off(self._mode)

    def _begin(self, phase: Phase) -> None:
        """Start an empty recording."""
        self._phase: Phase = phase
        recorder = Recorder(Graph(self._labels), self.memory)
        recorder.recording = phase != "waiting"
        self._traced = Traced(recorder, [], [], [])

    def _take_inputs(self, module: nn.Module, given: Sequence[Tensor]) -> None:
        traced = self._traced
        if traced.recorder.recording and id(module) in self._watched:
            for position, tensor in enumerate(given):
                found = traced.recorder.take_input(tensor, position)
                if found is not None:
                    traced.inputs.append(found)

    def _end_forward(self, module: nn.Module, outputs: Sequence[Tensor]) -> None:
        traced = self._traced
        noticed = torch.is_grad_enabled() or self._phase == "evaluation"
        if traced.recorder.recording and traced.forwards and noticed and id(module) in self._watched:
            graph = traced.recorder.graph
            traced.forwards[-1].outputs = [node for t in outputs if (node := graph.node_of(t)) is not None]
            traced.output = answers.kept_output(outputs)

    def _in_eval_mode(self, model: nn.Module) -> list[str]:
        return [name for name, module in self._two_moded if not module.training] if model.training else []

    # Functions

    def _backward(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run a backward pass, or autograd.grad as part of the loss."""
        found = tensors([*args[:1], *(kwargs[name] for name in ("tensors", "outputs", "self") if name in kwargs)])
        if not found or self._elsewhere():
            return function(*args, **kwargs)
        recorder = self._traced.recorder
        if function is torch.autograd.grad and not self._learns(args, kwargs):
            result = function(*args, **kwargs)
            recorder.record(_GRAD, tensors([args, kwargs]), tensors(result))
            return result
        self._traced.roots += [node for tensor in found if (node := recorder.graph.node_of(tensor)) is not None]
        self.n_backward += 1
        self.listener.before_backward(found[0])
        self._in_backward = True
        try:
            result = function(*args, **kwargs)
        finally:
            self._in_backward = False
            recorder.recording = recorder.recording and len(self.models) > 1
        return result

    def _learns(self, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether autograd.grad computes the gradients of parameters, not a penalty or an attack."""
        graph = self._traced.recorder.graph
        wanted = tensors([*args[1:2], kwargs.get("inputs")])
        return not kwargs.get("create_graph") and any((graph.label(t) or "").startswith("param:") for t in wanted)

    def _learn_batch_dim(self, targets: Sequence[Tensor]) -> None:
        """Which dimension of the inputs counts examples: targets tell; for recurrent nets often the second."""
        shape = self._traced.inputs[0].shape if self._traced.inputs else ()
        if shape and targets and targets[0].dim():
            size = len(targets[0])
            if size in shape[:2]:
                self.memory.batch_dim = shape[:2].index(size)


class _Mode(TorchFunctionMode):
    """Sees every torch function of this thread while a trace listens."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        trace = self.trace
        recorder = trace._traced.recorder
        if recorder.recording:
            known = operation(func)
            if known is not None and not trace._elsewhere():
                return recorder.run(known, func, args, kwargs)
        if func in _BACKWARDS:
            return trace._backward(func, args, kwargs)
        return func(*args, **kwargs)


def _labels(modules: dict[str, nn.Module]) -> dict[int, tuple[Tensor, str]]:
    """id -> (itself, source) of all parameters and buffers, by the name of the first module that holds them."""
    labels: dict[int, tuple[Tensor, str]] = {}
    for prefix, module in modules.items():
        begin = f"{prefix}." if prefix else ""
        for kind, held in (("param", module._parameters), ("buffer", module._buffers)):
            for name, tensor in held.items():
                if tensor is not None:
                    labels.setdefault(id(tensor), (tensor, f"{kind}:{begin}{name}"))
    return labels


def _runs_fused(module: nn.Module) -> bool:
    """Whether the fast path may be taken: eval mode, and no gradient asked of it."""
    learns = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
    return not module.training and not learns
