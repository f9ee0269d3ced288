"""Running a model once to see which activations, layers and functions it uses where."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from luthier.errors import LuthierError
from luthier.training.surgery.activations import FUNCTION_NAMES, name_of
from luthier.training.surgery.flow import Flow, tensors_in
from luthier.training.surgery.norms import kind_of
from luthier.training.surgery.trace import Site, Trace
from luthier.training.surgery.tree import LAYERS

_WEIGHTED = frozenset(
    [
        "linear",
        "bilinear",
        "matmul",
        "__matmul__",
        "__rmatmul__",
        "mm",
        "bmm",
        "mv",
        "addmm",
        "baddbmm",
        "einsum",
        "tensordot",
        "embedding",
        "embedding_bag",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
    ]
)
NORM_FUNCTIONS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"})
DROPOUT_FUNCTIONS = frozenset(
    ["dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "feature_dropout"]
)
_REMARKABLE = NORM_FUNCTIONS | DROPOUT_FUNCTIONS | {"scaled_dot_product_attention"}
_TRANSPARENT = ("torch/nn/functional.py", "torch/overrides.py", "torch/_jit_internal.py", "surgery/functional.py")


class _Watch(TorchFunctionMode):
    """Sees every torch function while the model runs, and every module by hooks."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow
        self.inside = 0
        self.running = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        inputs = (args, kwargs or {})
        name = getattr(func, "__name__", "")
        if not self.running or self.inside:
            return func(*args, **(kwargs or {}))
        output = func(*args, **(kwargs or {}))
        self._note(name, inputs, output)
        return output

    def _note(self, name: str, inputs: Any, output: Any) -> None:
        if name in FUNCTION_NAMES and (site := calling_site()) is not None:
            self.flow.activation(site, FUNCTION_NAMES[name], inputs, output)
            self.flow.trace.recomputed |= _is_recomputed()
        elif name in _WEIGHTED and any(isinstance(t, nn.Parameter) and t.dim() > 1 for t in tensors_in(inputs)):
            self.flow.layer(None, inputs, output)
        else:
            self.flow.other(name, inputs, output)
            if name in _REMARKABLE and calling_site() is not None:
                self.flow.trace.functional.add(name)

    def enter(self, _module: nn.Module, _args: Any, _kwargs: Any) -> None:
        """A layer or activation starts: what it calls inside is its own affair."""
        self.inside += 1

    def leave_layer(self, path: str) -> Callable[..., None]:
        """The hook for the end of a layer."""

        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.inside -= 1
            if self.running and not self.inside:
                self.flow.layer(path, (args, kwargs), output)

        return hook

    def leave_activation(self, path: str, name: str) -> Callable[..., None]:
        """The hook for the end of an activation."""

        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.inside -= 1
            if self.running and not self.inside:
                self.flow.activation(path, name, (args, kwargs), output)

        return hook

    def norm_starts(self, path: str) -> Callable[..., None]:
        """The hook that keeps the dimensions of a normalisation's input."""

        def hook(_: nn.Module, args: Any) -> None:
            if args and isinstance(args[0], Tensor):
                self.flow.trace.ndims[path] = args[0].dim()

        return hook

    def model_starts(self, _module: nn.Module, _args: Any) -> None:
        """The whole model starts."""
        self.running += 1

    def model_ends(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """The whole model returned."""
        self.running -= 1
        if not self.running:
            self.flow.output(output)


def observe(model: nn.Module, example: Any) -> Trace:
    """The trace of a model from one pass in evaluation mode; weights, buffers, modes and random state stay.

    Args:
        model: any module.
        example: inputs of a batch (a tuple or list: positional, a mapping: keywords), or a callable that gets
            the model and runs it.

    Raises:
        LuthierError: the model cannot be run on the example.
    """
    flow = Flow(Trace(observed=True))
    watch = _Watch(flow)
    handles = list(_hooked(model, watch))
    try:
        with evaluation(model), torch.no_grad(), torch.random.fork_rng(devices=[]), watch:
            run(model, example)
    except Exception as error:
        raise LuthierError(
            f"the model must run on the example that surgery was given, but {type(model).__name__} raised "
            f"{type(error).__name__}: {error}; pass example= as the inputs of one batch"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return flow.conclude()


def run(model: nn.Module, example: Any) -> Any:
    """Call the model on inputs: a tuple or list positionally, a mapping by keywords, a callable gets the model."""
    if isinstance(example, Mapping):
        return model(**example)
    if isinstance(example, (tuple, list)):
        return model(*example)
    if callable(example) and not isinstance(example, Tensor):
        return example(model)
    return model(example)


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _hooked(model: nn.Module, watch: _Watch) -> Iterator[torch.utils.hooks.RemovableHandle]:
    yield model.register_forward_pre_hook(watch.model_starts, prepend=True)
    for path, module in model.named_modules():
        name = name_of(module)
        if kind_of(module) is not None:
            yield module.register_forward_pre_hook(watch.norm_starts(path))
        if isinstance(module, LAYERS) or name is not None:
            yield module.register_forward_pre_hook(watch.enter, prepend=True, with_kwargs=True)
            leave = watch.leave_layer(path) if name is None else watch.leave_activation(path, name)
            yield module.register_forward_hook(leave, with_kwargs=True)
    yield model.register_forward_hook(watch.model_ends)


def calling_site() -> Site | None:
    """The place in a user's `forward` that called the function now being handled; None inside torch's own modules."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename.replace("\\", "/")
        if not file.endswith(_TRANSPARENT) and file != __file__.replace("\\", "/"):
            inside_torch = frame.f_globals.get("__name__", "").startswith("torch.nn.")
            return None if inside_torch else Site(frame.f_code.co_qualname, file, frame.f_lasti)
        frame = frame.f_back
    return None


def _is_recomputed() -> bool:
    """Whether torch's activation checkpointing is at work: it calls `forward` again in the backward pass."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            return True
        frame = frame.f_back
    return False
