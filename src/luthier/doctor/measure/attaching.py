"""Where a watch touches a training: hooks of the watched models, torch's global optimizer step hooks, backward passes.

The models' hooks hold the watch, so it lives as long as they do; the others hold it weakly. A model that is
copied or pickled while it is watched takes along an inert hook, never the watch.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from luthier.doctor.measure.backwards import Listening
from luthier.doctor.measure.home import Home


class Observer(Protocol):
    """What the hooks call."""

    def before_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A watched model is about to run."""

    def after_forward(self, model: nn.Module, output: Any) -> None:
        """It ran."""

    def before_step(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        """An optimizer is about to step; `closure`: it computes the gradients itself."""

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """It stepped."""

    def backward_begins(self, loss: torch.Tensor) -> None:
        """A backward pass begins."""

    def backward_ends(self, loss: torch.Tensor) -> None:
        """It ended."""


class Inert:
    """What becomes of a hook in a copy of the model: it does nothing."""

    def __call__(self, *_: Any, **__: Any) -> None:
        """Nothing."""


class ModelHook:
    """A forward hook that calls the observer in this process and thread only, and never while a graph is compiled."""

    def __init__(self, observer: Observer, before: bool) -> None:
        self.observer = observer
        self.before = before
        self.home = Home()

    def __call__(self, model: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        """Pass on what torch calls a hook with: (args, kwargs) before, (args, output) after."""
        if not self.home.is_here() or torch.compiler.is_compiling():
            return
        if self.before:
            self.observer.before_forward(model, args, rest[0])
        else:
            self.observer.after_forward(model, rest[-1])

    def __deepcopy__(self, _: Any) -> Inert:
        return Inert()

    def __reduce__(self) -> tuple[type[Inert], tuple[()]]:
        return Inert, ()


class Unwatched:
    """The `__getstate__` of a watched model: its copies and pickles are those of a model that nobody watches.

    A pickle that named our hooks would need this package, and `torch.load` with `weights_only` would refuse it.
    """

    _HOOKS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks")

    def __init__(self, model: nn.Module, ours: Sequence[int]) -> None:
        self._model = weakref.ref(model)
        self._ours = frozenset(ours)

    def __call__(self) -> Any:
        """The state without our hooks and without this."""
        model = self._model()
        own: Any = type(model).__getstate__
        state = own(model)
        if not isinstance(state, dict):
            return state
        state = {name: value for name, value in state.items() if value is not self}
        for name in self._HOOKS:
            if name in state:
                kept = ((key, hook) for key, hook in state[name].items() if key not in self._ours)
                state[name] = type(state[name])(kept)
        return state

    def remove(self) -> None:
        """Give the model its own back."""
        model = self._model()
        if model is not None and vars(model).get("__getstate__") is self:
            del vars(model)["__getstate__"]


class Attachment:
    """All hooks of one watch; `remove` leaves nothing behind."""

    def __init__(self, observer: Observer, models: Sequence[nn.Module]) -> None:
        before, after = ModelHook(observer, before=True), ModelHook(observer, before=False)
        self._handles: list[Any] = []
        for model in models:
            own = [model.register_forward_pre_hook(before, with_kwargs=True), model.register_forward_hook(after)]
            unwatched = Unwatched(model, [handle.id for handle in own])
            vars(model).setdefault("__getstate__", unwatched)
            self._handles += [*own, unwatched]
        weak = weakref.ref(observer)
        home = Home()

        def before_step(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            alive = weak()
            if alive is not None and home.is_this_process():
                closure = (len(args) > 1 or kwargs) and any(map(callable, (*args[1:], *kwargs.values())))
                alive.before_step(optimizer, bool(closure))

        def after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            alive = weak()
            if alive is not None and home.is_this_process():
                alive.after_step(optimizer)

        self._handles.append(register_optimizer_step_pre_hook(before_step))
        self._handles.append(register_optimizer_step_post_hook(after_step))
        for handle in self._handles[-2:]:
            weakref.finalize(observer, handle.remove)
        self._handles.append(Listening(observer))

    def remove(self) -> None:
        """Take all hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def first_tensor(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The first tensor with a batch dimension among (nested) arguments."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            if value.dim() >= 1:
                return value
        elif isinstance(value, Mapping):
            if (found := first_tensor((), value)) is not None:
                return found
        elif isinstance(value, (list, tuple)) and (found := first_tensor(value, {})) is not None:
            return found
    return None
