"""Where a watch touches a training: hooks of the watched models, torch's global optimizer step hooks, backward passes.

The models' hooks hold the watch, so it lives as long as they do; the others hold it weakly. A model that is
copied or pickled while it is watched takes along an inert hook, never the watch.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from luthier.doctor.measure.backwards import Listening
from luthier.doctor.measure.home import Home

if TYPE_CHECKING:
    from luthier.doctor.measure.stretch import Stretch


class Observer(Protocol):
    """What the hooks call: the stretch first, and all else if the event is none of a stretch."""

    stretch: Stretch

    def before_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """A watched model is about to run; returns whether its output matters."""

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
    """A forward pre-hook that calls the observer in this process and thread only, never while a graph is compiled."""

    def __init__(self, observer: Observer) -> None:
        self.observer, self.stretch = observer, observer.stretch
        self.home = Home()
        self.once: OutputHook | None = None

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tell of the forward, and ask for its output when that matters."""
        if torch.compiler.is_compiling() or self.stretch.forward(model) or not self.home.is_here():
            return
        if self.observer.before_forward(model, args, kwargs) and self.once is None:
            self.once = OutputHook(model, self)

    def remove(self) -> None:
        """Take back what still waits for an output."""
        if self.once is not None:
            self.once.handle.remove()
            self.once = None

    def __deepcopy__(self, _: Any) -> Inert:
        return Inert()

    def __reduce__(self) -> tuple[type[Inert], tuple[()]]:
        return Inert, ()


class OutputHook:
    """A forward hook for one forward: most forwards are only counted, and every hook costs each of them some time."""

    def __init__(self, model: nn.Module, owner: ModelHook) -> None:
        self.owner = owner
        self.handle = model.register_forward_hook(self)

    def __call__(self, model: nn.Module, _: Any, output: Any) -> None:
        """Tell of the output."""
        if self.owner.home.is_here() and not torch.compiler.is_compiling():
            self.owner.remove()
            self.owner.observer.after_forward(model, output)

    def __deepcopy__(self, _: Any) -> Inert:
        return Inert()

    def __reduce__(self) -> tuple[type[Inert], tuple[()]]:
        return Inert, ()


class Unwatched:
    """The `__getstate__` of a watched model: its copies and pickles are those of a model that nobody watches.

    A pickle that named our hooks would need this package, and `torch.load` with `weights_only` would refuse it.
    """

    _HOOKS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks")

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)

    def __call__(self) -> Any:
        """The state without our hooks and without this."""
        model = self._model()
        if model is None:  # only while the model itself is collected
            return None
        own: Any = type(model).__getstate__
        state = own(model)
        if not isinstance(state, dict):
            return state
        state = {name: value for name, value in state.items() if value is not self}
        hooks = [*model._forward_pre_hooks.items(), *model._forward_hooks.items()]
        ours = {key for key, hook in hooks if isinstance(hook, (ModelHook, OutputHook))}
        for name in self._HOOKS:
            if name in state:
                state[name] = type(state[name])((key, each) for key, each in state[name].items() if key not in ours)
        return state

    def remove(self) -> None:
        """Give the model its own back."""
        model = self._model()
        if model is not None and vars(model).get("__getstate__") is self:
            del vars(model)["__getstate__"]


class Ears:
    """What only some steps need and may rest in between: a hook before optimizer steps, and the backward passes."""

    def __init__(self) -> None:
        self._handle: Any = None
        self.listening: Listening | None = None

    def open(self, observer: Observer) -> None:
        """Hear everything for an observer, which is held weakly."""
        weak, home = weakref.ref(observer), Home()

        def before_step(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            alive = weak()
            if alive is not None and home.is_this_process():
                closure = (len(args) > 1 or kwargs) and any(map(callable, (*args[1:], *kwargs.values())))
                alive.before_step(optimizer, bool(closure))

        self._before_step = before_step
        self._handle, self.listening = register_optimizer_step_pre_hook(before_step), Listening(observer)
        weakref.finalize(observer, self.remove).atexit = False

    def rest(self, rests: bool) -> None:
        """Hear no more than the latest loss, or everything again."""
        if self.listening is None:
            return
        self._handle.remove()
        if not rests:
            self._handle = register_optimizer_step_pre_hook(self._before_step)
        self.listening.rest(rests)

    def take_latest(self) -> torch.Tensor | None:
        """The loss of the latest backward pass while resting, if any, once."""
        return None if self.listening is None else self.listening.take_latest()

    def forget_latest(self) -> None:
        """It is known already."""
        if self.listening is not None:
            self.listening.latest = None

    def remove(self) -> None:
        """Hear nothing more."""
        if self.listening is not None:
            self._handle.remove()
            self.listening.remove()
            self.listening = None


class Attachment:
    """All hooks of one watch; `remove` leaves nothing behind."""

    def __init__(self, observer: Observer, models: Sequence[nn.Module], ears: Ears) -> None:
        self._handles: list[Any] = []
        for model in models:
            hook, unwatched = ModelHook(observer), Unwatched(model)
            vars(model).setdefault("__getstate__", unwatched)
            self._handles += [model.register_forward_pre_hook(hook, with_kwargs=True), hook, unwatched]
        ears.open(observer)
        weak, stretch, home = weakref.ref(observer), observer.stretch, Home()

        def after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if stretch.ended(optimizer):
                return
            alive = weak()
            if alive is not None and home.is_this_process():
                alive.after_step(optimizer)

        self._handles += [register_optimizer_step_post_hook(after_step), ears]
        weakref.finalize(observer, self._handles[-2].remove)

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
