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

from luthier.doctor.measure.alarm import Alarm
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

    def __init__(self, observer: Observer, model: nn.Module) -> None:
        self.observer, self.stretch = observer, observer.stretch
        self.home = Home()
        self.once: OutputHook | None = None
        self._model = weakref.ref(model)
        self._handle: Any = None
        self.listen(True)

    def listen(self, listens: bool) -> None:
        """Hear of forwards, or of none for a while."""
        model = self._model()
        if listens == (self._handle is not None) or model is None:
            return
        if listens:
            self._handle = model.register_forward_pre_hook(self, with_kwargs=True)
        else:
            self._handle.remove()
            self._handle = None

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tell of the forward, and ask for its output when that matters."""
        if torch.compiler.is_compiling() or self.stretch.forward(model) or not self.home.is_here():
            return
        if self.observer.before_forward(model, args, kwargs) and self.once is None:
            self.once = OutputHook(model, self)

    def leave_output(self) -> None:
        """Take back what still waits for an output."""
        if self.once is not None:
            self.once.handle.remove()
            self.once = None

    def remove(self) -> None:
        """Hear nothing more."""
        self.leave_output()
        self.listen(False)

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
            self.owner.leave_output()
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
    """What need not hear every step: the hooks of optimizer steps, the backward passes, in naps the forwards too.

    Attributes:
        listening: to backward passes; None while closed.
        alarmed: whether gradients were switched off, so that forwards are heard (in naps they are not before).
    """

    def __init__(self) -> None:
        self._before: Any = None
        self._after: Any = None
        self._hooks: Sequence[weakref.ref[ModelHook]] = ()
        self._alarm = Alarm(lambda: self._hear_forwards(True))
        self.listening: Listening | None = None
        self.alarmed = False

    def open(self, observer: Observer, hooks: Sequence[ModelHook] = ()) -> None:
        """Hear everything for an observer, which is held weakly, as are the `hooks` of its models."""
        self._hooks = [weakref.ref(hook) for hook in hooks]
        weak, stretch, home = weakref.ref(observer), observer.stretch, Home()

        def before_step(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            alive = weak()
            if alive is not None and home.is_this_process():
                closure = (len(args) > 1 or kwargs) and any(map(callable, (*args[1:], *kwargs.values())))
                alive.before_step(optimizer, bool(closure))

        def after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if stretch.ended(optimizer):
                return
            alive = weak()
            if alive is not None and home.is_this_process():
                alive.after_step(optimizer)

        self._before_step, self._after_step = before_step, after_step
        self._before, self._after = (
            register_optimizer_step_pre_hook(before_step),
            register_optimizer_step_post_hook(after_step),
        )
        self.listening = Listening(observer)
        self._alarm.arm()
        weakref.finalize(observer, self.remove).atexit = False

    def rest(self, rests: bool) -> None:
        """Hear no more than the latest loss, or everything again."""
        if self.listening is None:
            return
        self._before.remove()
        if not rests:
            self._before = register_optimizer_step_pre_hook(self._before_step)
        self.listening.rest(rests)

    def nap(self) -> None:
        """While resting: hear nothing at all, until gradients are switched off; then forwards again."""
        self._hear_forwards(False)
        self._after.remove()
        if self.listening is not None:
            self.listening.remove()

    def wake(self) -> None:
        """Hear what is heard while resting."""
        if self.listening is None:
            return
        self._hear_forwards(True)
        self._after = register_optimizer_step_post_hook(self._after_step)
        self.listening.listen()

    def doze(self) -> None:
        """What switched gradients off was no evaluation: on with the nap."""
        self._hear_forwards(False)

    def _hear_forwards(self, hears: bool) -> None:
        self.alarmed = hears
        for weak in self._hooks:
            if (hook := weak()) is not None:
                hook.listen(hears)

    def take_latest(self) -> torch.Tensor | None:
        """The loss of the latest backward pass while resting, if any, once."""
        return None if self.listening is None else self.listening.take_latest()

    def forget_latest(self) -> None:
        """It is known already."""
        if self.listening is not None:
            self.listening.latest = None

    def remove(self) -> None:
        """Hear nothing more."""
        self._alarm.disarm()
        self._hooks = ()
        if self.listening is not None:
            self._before.remove()
            self._after.remove()
            self.listening.remove()
            self.listening = None


class Attachment:
    """All hooks of one watch; `remove` leaves nothing behind."""

    def __init__(self, observer: Observer, models: Sequence[nn.Module], ears: Ears) -> None:
        hooks = [ModelHook(observer, model) for model in models]
        self._handles: list[Any] = [*hooks]
        for model in models:
            unwatched = Unwatched(model)
            vars(model).setdefault("__getstate__", unwatched)
            self._handles.append(unwatched)
        ears.open(observer, hooks)
        self._handles.append(ears)

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
