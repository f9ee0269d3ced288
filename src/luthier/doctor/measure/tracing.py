"""A trace of one training iteration: which operations ran, on what, and the numbers of their results.

It listens with a `TorchFunctionMode` and global module hooks from the first forward on, measures each result at once
and holds no tensor. Nothing it does changes a result, draws a random number or waits for the device.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._C import (
    DisableTorchFunction,
    _get_function_stack_at,
    _len_torch_function_stack,
    _pop_torch_function_stack,
    _push_on_torch_function_stack,
)
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext

from luthier.doctor.measure import anatomy, answers
from luthier.doctor.measure.graph import MOST_NODES, Graph, Node, Rows, name_targets, reaching
from luthier.doctor.measure.operations import LOSSES, Operation, operation, tensors
from luthier.doctor.measure.recorder import Recorder
from luthier.doctor.measure.stats import DeadUnits, Pending, Row, measure, read

_FAST = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
_MODED = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)
_BACKWARDS = frozenset((Tensor.backward, torch.autograd.backward, torch.autograd.grad))
_GRAD = Operation("grad", ("outputs", "inputs"), inplace=False)
_FUSED = Operation("fused", ("input",), inplace=False)


class Listener(Protocol):
    """Who hears of backward passes."""

    def before_backward(self, loss: Tensor) -> None: ...

    def after_backward(self, loss: Tensor) -> None: ...


def has_fast_path(model: nn.Module) -> bool:
    """Whether torch runs parts of the model by a fused path in eval mode, which any listening mode switches off."""
    return any(isinstance(module, _FAST) for module in model.modules())


class Forward:
    """One forward of a watched model with gradients: its mode, what was in eval mode, its outputs."""

    def __init__(self, model: nn.Module, eval_modules: list[str]) -> None:
        self.training = model.training
        self.eval_modules = eval_modules
        self.outputs: list[Node] = []


class Trace:
    """Listens from `start` to `stop`; `read` gives the rows of `vitals`, best one step later.

    Recorded is everything from the first forward to the first backward, with several models (GAN) to the end. A forward
    without gradients is recorded as long as none with gradients follows: so an evaluation can be traced too.

    Args:
        models: the watched ones.
        listener: told before and after every backward.
        memory: what is remembered over looks; a new one when omitted.
    """

    def __init__(self, models: Sequence[nn.Module], listener: Listener, memory: DeadUnits | None = None) -> None:
        self.models = tuple(models)
        self.listener = listener
        self.memory = DeadUnits() if memory is None else memory
        self._mode = _Mode(self)
        self._handles: list[Any] = []
        self._process, self._thread = os.getpid(), threading.get_ident()
        self._modules: dict[int, str] = {}
        self._moded: list[tuple[str, nn.Module]] = []
        self._labels: dict[int, str] = {}
        self._roots_of_models = {id(model) for model in self.models}
        self._recorder = Recorder(Graph({}), self.memory)
        self._begin_anew("")
        self._stack: list[tuple[nn.Module, str]] = []
        self._just_entered: nn.Module | None = None
        self._fused: nn.Module | None = None
        self._in_backward = False
        self.n_forward = self.n_backward = 0

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen; the mode follows with the first forward."""
        names = anatomy.named_modules(self.models)
        self._modules = {id(module): name for name, module in names.items()}
        self._moded = [(name, module) for name, module in names.items() if isinstance(module, _MODED)]
        self._labels = _labels(names)
        self._begin_anew("")
        self._handles = [
            module_hooks.register_module_forward_pre_hook(self._before_module),
            module_hooks.register_module_forward_hook(self._after_module, with_kwargs=True, always_call=True),
        ]

    def enter(self, model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """A forward of a watched model begins: for who starts the trace from inside a hook, or knows the keywords."""
        if self._elsewhere():
            return
        with DisableTorchFunction():
            if self._just_entered is model:
                self._take_inputs(tensors(kwargs), len(tensors(args)))
            else:
                self._enter(model, self._modules.get(id(model), ""), [*tensors(args), *tensors(kwargs)])

    def stop(self) -> None:
        """Take everything away again; what was measured stays readable."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._remove_mode()
        self._recorder.recording = False
        self._stack = []

    # --- modules -----------------------------------------------------------------------------------------------------

    def _elsewhere(self) -> bool:
        """In a forked child, another thread, or while backward computes a forward again."""
        return self._in_backward or os.getpid() != self._process or threading.get_ident() != self._thread

    def _before_module(self, module: nn.Module, args: Any) -> None:
        name = self._modules.get(id(module))
        if (name is None and not isinstance(module, _FAST)) or self._elsewhere():
            return
        if name is not None:
            with DisableTorchFunction():
                self._enter(module, name, tensors(args) if not self._stack else ())
        if self._fused is None and isinstance(module, _FAST) and _runs_fused(module) and self._remove_mode():
            self._fused = module

    def _after_module(self, module: nn.Module, args: Any, *rest: Any) -> None:
        """Called with (kwargs, output), or with (output) alone when the forward raised."""
        if self._elsewhere():
            return
        if self._fused is module:
            self._fused = None
            with DisableTorchFunction():
                self._recorder.record(_FUSED, [*tensors(args), *tensors(rest[:-1])], tensors(rest[-1]))
            self._push_mode()
        if id(module) not in self._modules or not any(entry[0] is module for entry in self._stack):
            return
        while self._stack.pop()[0] is not module:
            pass
        self._just_entered = None
        self._recorder.module = self._stack[-1][1] if self._stack else None
        if not self._stack:
            with DisableTorchFunction():
                self._end_forward(module, args, rest)

    def _enter(self, module: nn.Module, name: str, inputs: Sequence[Tensor]) -> None:
        outermost = not self._stack
        self._stack.append((module, name))
        self._just_entered = module
        if outermost:
            self._begin_forward(module)
            self._take_inputs(inputs, 0)
        self._recorder.module = name

    def _begin_forward(self, module: nn.Module) -> None:
        with_gradients = torch.is_grad_enabled()
        if self._phase != "training" and with_gradients:
            self._begin_anew("training")
        elif not self._phase:
            self._begin_anew("evaluation")
        elif self._phase == "evaluation":
            self._recorder.recording = False
            self._remove_mode()
        if with_gradients and id(module) in self._roots_of_models:
            self.n_forward += 1
            if self._recorder.recording:
                if len(self._forwards) > 1:
                    self._recorder.graph.drop_dead()
                self._forwards.append(Forward(module, self._in_eval_mode(module)))
        if self._recorder.recording:
            self._push_mode()

    def _begin_anew(self, phase: str) -> None:
        module = self._recorder.module
        self._phase = phase
        self._recorder = Recorder(Graph(self._labels), self.memory)
        self._recorder.module = module
        self._recorder.recording = bool(phase)
        self._forwards: list[Forward] = []
        self._roots: list[Node] = []
        self._inputs: list[Any] = []
        self._output: Tensor | None = None

    def _take_inputs(self, found: Sequence[Tensor], begin: int) -> None:
        if self._recorder.recording and self._stack and id(self._stack[0][0]) in self._roots_of_models:
            for position, tensor in enumerate(found, begin):
                given = self._recorder.take_input(tensor, position)
                if given is not None:
                    self._inputs.append(given)

    def _end_forward(self, module: nn.Module, args: Any, rest: Sequence[Any]) -> None:
        if not self._recorder.recording or id(module) not in self._roots_of_models or rest[-1] is None:
            return
        if len(rest) == 2 and rest[0]:
            self._stack.append((module, ""))
            self._take_inputs(tensors(rest[0]), len(tensors(args)))
            self._stack.pop()
        found = tensors(rest[-1])
        nodes = [node for tensor in found if (node := self._recorder.graph.node_of(tensor)) is not None]
        if self._phase == "evaluation":
            self._forwards.append(Forward(module, []))
        if self._forwards and (torch.is_grad_enabled() or self._phase == "evaluation"):
            self._forwards[-1].outputs = nodes
            self._output = answers.kept_output(found)

    def _in_eval_mode(self, model: nn.Module) -> list[str]:
        return [name for name, module in self._moded if not module.training] if model.training else []

    # --- functions ---------------------------------------------------------------------------------------------------

    def _backward(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run a backward pass, or autograd.grad as part of the loss."""
        found = tensors([*args[:1], *(kwargs[name] for name in ("tensors", "outputs", "self") if name in kwargs)])
        if not found or self._elsewhere():
            return function(*args, **kwargs)
        if function is torch.autograd.grad and not self._ends_forward(args, kwargs):
            given = tensors([args, kwargs])
            result = function(*args, **kwargs)
            self._recorder.record(_GRAD, given, tensors(result))
            return result
        self._roots += [node for tensor in found if (node := self._recorder.graph.node_of(tensor)) is not None]
        self.n_backward += 1
        self.listener.before_backward(found[0])
        self._in_backward = True
        try:
            result = function(*args, **kwargs)
        finally:
            self._in_backward = False
            self._recorder.recording = self._recorder.recording and len(self.models) > 1
        self.listener.after_backward(found[0])
        return result

    def _ends_forward(self, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether autograd.grad computes the gradients of parameters, not a penalty or an attack."""
        inputs = tensors([*args[1:2], kwargs.get("inputs")])
        own = self._recorder.graph.labels
        return not kwargs.get("create_graph") and any(own.get(id(t), "").startswith("param:") for t in inputs)

    def _push_mode(self) -> None:
        """Put our mode under those of the user, who take off the topmost when they leave; torch.device is lowest."""
        if self._fused is not None or self._is_listening():
            return
        above = _take_modes()
        if above and isinstance(above[-1], DeviceContext):
            _push_on_torch_function_stack(above.pop())
        for mode in (self._mode, *reversed(above)):
            _push_on_torch_function_stack(mode)

    def _remove_mode(self) -> bool:
        if not self._is_listening():
            return False
        for mode in reversed(_take_modes()):
            if mode is not self._mode:
                _push_on_torch_function_stack(mode)
        return True

    def _is_listening(self) -> bool:
        return any(_get_function_stack_at(place) is self._mode for place in range(_len_torch_function_stack()))

    # --- reading -----------------------------------------------------------------------------------------------------

    def read(self, inputs: Any = None, targets: Any = None) -> tuple[Row, Row, Row]:
        """Rows of what was traced, with one transfer from the device.

        Args:
            inputs: of the step; used when the model's own were not seen. targets: tells the sources "target", and
                with whole numbers what a loss written by hand was answered.

        Returns:
            graph (kind, nodes, outputs, roots), numbers (by index of the node), and what else `vitals.Look` holds:
            training, eval_modules, n_forward, n_backward, inputs, targets, batch_size, predictions, loss_arguments.
        """
        graph = self._recorder.graph
        found_targets = tensors(targets)
        kept = self._kept()
        name_targets(kept, graph.outers, found_targets)
        forwards = self._reaching_forwards(kept)
        rows = Rows(kept, [node for forward in forwards for node in forward.outputs], self._roots)
        wanted = _Wanted()
        for position, node in enumerate(kept):
            wanted.add(position, node)
        extra = _Extras(self._inputs, tensors(inputs), found_targets, kept)
        predictions = self._recorder.predictions or self._late_predictions(found_targets)
        alone = [*extra.pending(), *([predictions] if predictions is not None else [])]
        found = read([*wanted.pending, *alone])
        numbers = wanted.numbers(found[: len(wanted.pending)])
        rest = found[len(wanted.pending) :]
        extras: Row = {
            "training": forwards[0].training if forwards else None,
            "eval_modules": forwards[0].eval_modules if forwards else [],
            "n_forward": self.n_forward - len(self._forwards) + len(forwards) if self._phase == "training" else 0,
            "n_backward": self.n_backward,
            **extra.rows(rest, rows),
            "predictions": rest[-1] if predictions is not None else None,
            "loss_arguments": _loss_arguments(kept, rows),
        }
        if self._recorder.failure is not None:
            extras["trace_error"] = self._recorder.failure
        self._remember_batch_dim(found_targets)
        return rows.graph, numbers, extras

    def _kept(self) -> list[Node]:
        """Operations that a root, a model output or (in an evaluation) a loss rests on."""
        nodes = self._recorder.graph.nodes
        sinks = [*self._roots, *(node for forward in self._forwards for node in forward.outputs)]
        if not self._roots:
            sinks += [node for node in nodes if node.op in LOSSES]
        else:
            rooted = reaching(self._roots)
            used = [f for f in self._forwards if any(id(node) in rooted for node in f.outputs)] or self._forwards[-1:]
            sinks = [*self._roots, *(node for forward in used for node in forward.outputs)]
        kept = reaching(sinks)
        return [node for node in nodes if id(node) in kept][-MOST_NODES:]

    def _reaching_forwards(self, kept: Sequence[Node]) -> list[Forward]:
        """The forwards whose outputs are kept: those of an evaluation without no_grad before the step are not."""
        ids = {id(node) for node in kept}
        used = [forward for forward in self._forwards if any(id(node) in ids for node in forward.outputs)]
        return used or self._forwards

    def _late_predictions(self, targets: Sequence[Tensor]) -> Pending | None:
        """Of a loss written by hand: the model's (n, classes) output against whole targets of shape (n)."""
        output = self._output
        if output is None or len(targets) != 1 or targets[0].dim() != 1 or len(targets[0]) != len(output):
            return None
        return answers.of_classes(output, targets[0].detach().to(output.device), maybe_chances=True)

    def _remember_batch_dim(self, targets: Sequence[Tensor]) -> None:
        """Which dimension of the inputs counts examples: targets tell, for recurrent nets often the second."""
        if self._inputs and targets and targets[0].dim():
            shape, size = self._inputs[0].shape, len(targets[0])
            if shape and shape[0] != size and size in shape[1:2]:
                self.memory.batch_dim = 1
            elif shape and shape[0] == size:
                self.memory.batch_dim = 0


class _Mode(TorchFunctionMode):
    """Sees every torch function while a trace records."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        trace = self.trace
        recorder = trace._recorder
        if recorder.recording and not trace._in_backward:
            known = operation(func)
            if known is not None:
                if os.getpid() != trace._process:
                    return func(*args, **kwargs)
                return recorder.run(known, func, args, kwargs)
        if func in _BACKWARDS:
            return trace._backward(func, args, kwargs)
        return func(*args, **kwargs)


class _Wanted:
    """Collects what is pending of the kept operations and gives the numbers their places."""

    def __init__(self) -> None:
        self.pending: list[Pending] = []
        self._slots: dict[int, int] = {}
        self._places: list[tuple[str, str | None, int]] = []

    def add(self, position: int, node: Node) -> None:
        """Everything of one operation."""
        if node.pending is not None:
            self._places.append((str(position), None, self._slot(node.pending)))
        for place, given in enumerate(node.arguments):
            if given.pending is not None:
                self._places.append((str(position), str(place), self._slot(given.pending)))

    def numbers(self, found: Sequence[Row]) -> Row:
        """{"<index>": {"stats": ..., "arguments": {"<place>": ...}}}."""
        rows: Row = {}
        for index, place, slot in self._places:
            row = rows.setdefault(index, {})
            if place is None:
                row["stats"] = found[slot]
            else:
                row.setdefault("arguments", {})[place] = found[slot]
        return rows

    def _slot(self, pending: Pending) -> int:
        """One row for a tensor that is result of one operation and argument of others."""
        known = self._slots.get(id(pending))
        if known is None:
            known = self._slots[id(pending)] = len(self.pending)
            self.pending.append(pending)
        return known


class _Extras:
    """Inputs and targets of the batch."""

    def __init__(
        self, seen: Sequence[Any], inputs: Sequence[Tensor], targets: Sequence[Tensor], kept: Sequence[Node]
    ) -> None:
        self.given: dict[str, tuple[list[int], str, bool, Pending]] = {}
        for name, found in (("inputs", inputs), ("targets", targets)):
            if found:
                first = found[0]
                dtype = str(first.dtype).removeprefix("torch.")
                if name == "targets" or not seen:
                    self.given[name] = (list(first.shape), dtype, first.requires_grad, measure(first, "detail"))
        if seen:
            first = seen[0]
            self.given["inputs"] = (list(first.shape), first.dtype, first.requires_grad, first.pending)
        sizes = [self.given[name][0][0] for name in ("targets", "inputs") if name in self.given and self.given[name][0]]
        self.batch_size = sizes[0] if sizes else None

    def pending(self) -> Iterator[Pending]:
        return (item[3] for item in self.given.values())

    def rows(self, found: Sequence[Row], _: Rows) -> Row:
        """Rows `vitals.Argument`, and the number of examples."""
        rows: Row = {"inputs": None, "targets": None, "batch_size": self.batch_size}
        for (name, (shape, dtype, requires_grad, _pending)), stats in zip(self.given.items(), found, strict=False):
            source = "target" if name == "targets" else "input:0"
            rows[name] = {
                "source": source,
                "shape": shape,
                "dtype": dtype,
                "requires_grad": requires_grad,
                "stats": stats,
            }
        return rows


def _loss_arguments(kept: Sequence[Node], rows: Rows) -> list[Row]:
    return [
        {"index": rows.index(node), "op": node.op, "arguments": [rows.argument(given) for given in node.arguments]}
        for node in kept
        if node.op in LOSSES
    ]


def _labels(names: dict[str, nn.Module]) -> dict[int, str]:
    """id -> source of all parameters and buffers, by the name of the first module that holds them."""
    labels: dict[int, str] = {}
    for prefix, module in names.items():
        begin = f"{prefix}." if prefix else ""
        for kind, held in (("param", module._parameters), ("buffer", module._buffers)):
            for name, tensor in held.items():
                if tensor is not None:
                    labels.setdefault(id(tensor), f"{kind}:{begin}{name}")
    return labels


def _take_modes() -> list[Any]:
    """All modes of this thread, topmost first."""
    return [_pop_torch_function_stack() for _ in range(_len_torch_function_stack())]


def _runs_fused(module: nn.Module) -> bool:
    """Whether the fast path may be taken: eval mode, and no gradient asked of it."""
    learns = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
    return not module.training and not learns
