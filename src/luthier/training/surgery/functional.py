"""Functions called in `forward`, replaced while it runs: `F.relu(x)`, `x.sigmoid()`, `F.dropout(x, 0.5)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from luthier.training.surgery.activations import ACTIVATIONS, FUNCTION_NAMES, name_of
from luthier.training.surgery.probe import DROPOUT_FUNCTIONS, calling_site
from luthier.training.surgery.report import Notes
from luthier.training.surgery.trace import Role, Site, Trace, is_custom

IN_PLACE = frozenset(name for name in FUNCTION_NAMES if name.endswith("_"))


class Substitution(TorchFunctionMode):
    """While active, activation functions become another one and dropout functions get another rate.

    Args:
        activation: a key of `ACTIVATIONS`, None to leave activations as they are.
        dropout: rate for dropout functions, None to leave it.
        insert: rate of a dropout after each replaced place, None for none.
        training: whether inserted dropout acts.
        kept: places that must stay as they are, such as the sigmoid that makes the output.
        everywhere: no place needs to stay, not even inside torch's own modules: then code is not looked up.
    """

    def __init__(
        self,
        activation: str | None,
        dropout: float | None,
        insert: float | None = None,
        training: bool = False,
        kept: frozenset[Site] = frozenset(),
        everywhere: bool = False,
    ) -> None:
        super().__init__()
        self.everywhere = everywhere
        self.activation = None if activation is None else ACTIVATIONS[activation].function
        self.dropout, self.insert, self.training, self.kept = dropout, insert, training, kept
        self.acts = activation is not None or insert is not None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of `func`."""
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if self.acts and name in FUNCTION_NAMES and not self._stays():
            x = args[0] if args else kwargs.pop("input")
            return self._activate(func, name, x, args[1:], kwargs)
        if self.dropout is not None and name in DROPOUT_FUNCTIONS:
            x = args[0] if args else kwargs.pop("input")
            kwargs.pop("p", None)
            return func(x, self.dropout, *args[2:], **kwargs)
        return func(*args, **kwargs)

    def _activate(self, func: Callable[..., Any], name: str, x: Tensor, rest: Any, kwargs: dict[str, Any]) -> Tensor:
        in_place = name in IN_PLACE or kwargs.get("inplace", False) or (name != "rrelu" and True in rest[-1:])
        source = x.clone() if in_place else x
        y: Tensor = func(source, *rest, **kwargs) if self.activation is None else self.activation(source)
        if self.insert is not None:
            y = F.dropout(y, self.insert, self.training)
        return x.copy_(y) if in_place else y

    def _stays(self) -> bool:
        """Whether this call is to be left alone."""
        if self.everywhere:
            return False
        site = calling_site()
        return site is None or site in self.kept


def _with_rate(args: Any, kwargs: dict[str, Any], rate: float) -> tuple[Any, ...]:
    x = args[0] if args else kwargs.pop("input")
    return (x, rate, *args[2:])


class SubstitutedForward:
    """A model's `forward` under a `Substitution`; set on the instance, it goes along with copies and pickles.

    Args:
        model: the model whose forward it is.
        activation: a key of `ACTIVATIONS`, or None.
        dropout: rate for dropout functions, or None.
        insert: rate of a dropout after each replaced activation function, or None.
        kept: places that must stay as they are.
        everywhere: no place needs to stay.
    """

    def __init__(
        self,
        model: nn.Module,
        activation: str | None = None,
        dropout: float | None = None,
        insert: float | None = None,
        kept: frozenset[Site] = frozenset(),
        everywhere: bool = False,
    ) -> None:
        self.model = model
        self.own: Callable[..., Any] | None = model.__dict__.get("forward")
        self.activation, self.dropout, self.insert = activation, dropout, insert
        self.kept, self.everywhere = kept, everywhere

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of the model."""
        if not self.everywhere and torch.compiler.is_compiling():
            return torch.compiler.disable(self._run)(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        training = self.model.training
        with Substitution(self.activation, self.dropout, self.insert, training, self.kept, self.everywhere):
            if self.own is not None:
                return self.own(*args, **kwargs)
            return type(self.model).forward(self.model, *args, **kwargs)


def installed(model: nn.Module) -> SubstitutedForward | None:
    """The substitution that a model runs under, if any."""
    forward = model.__dict__.get("forward")
    return forward if isinstance(forward, SubstitutedForward) else None


def uninstall(model: nn.Module) -> SubstitutedForward | None:
    """Give a model its own forward back, and return the substitution that it ran under."""
    forward = installed(model)
    if forward is not None:
        del model.__dict__["forward"]
        if forward.own is not None:
            model.__dict__["forward"] = forward.own
    return forward


def substitute_functional(
    model: nn.Module,
    trace: Trace,
    notes: Notes,
    activation: str | None = None,
    dropout: float | None = None,
    insert: float | None = None,
    earlier: SubstitutedForward | None = None,
) -> None:
    """Let a model's forward run under a `Substitution`, if it calls functions that are to be replaced.

    Args:
        model: the model; its instance gets a `forward` of its own.
        trace: what the model was seen to call; without an observation nothing is replaced, and noted why.
        notes: what was done and left is noted here.
        activation: key of `ACTIVATIONS` for hidden activation functions, or None.
        dropout: rate for dropout functions, or None.
        insert: rate of a dropout after each hidden activation function, or None.
        earlier: the substitution that the model ran under before; what is None now is taken from it.
    """
    if not trace.observed:
        if earlier is not None:
            model.__dict__["forward"] = earlier
        if (activation is not None or dropout is not None) and any(map(is_custom, model.modules())):
            notes.refuse("", "functions that forward calls stay as they are: pass example= to let the model show them")
        return
    if earlier is not None:
        activation = earlier.activation if activation is None else activation
        insert = earlier.insert if dropout is None else dropout if earlier.insert is not None else insert
        dropout = earlier.dropout if dropout is None else dropout
    if trace.recomputed and (activation is not None or insert is not None):
        notes.refuse("", "functions that forward calls stay as they are: activation checkpointing calls them again")
        return
    hidden = _note_places(trace, activation, insert, notes)
    drops = dropout is not None and bool(trace.functional & DROPOUT_FUNCTIONS)
    if drops:
        notes.change("", f"rate of dropout functions in forward -> {dropout}")
    if drops or (hidden and (activation is not None or insert)):
        kept = frozenset(site for site, (_, role) in trace.functions.items() if role is not Role.HIDDEN)
        modules = {name_of(module) for module in model.modules()} - {None, activation}
        everywhere = not kept and not modules and not insert
        model.__dict__["forward"] = SubstitutedForward(model, activation, dropout, insert or None, kept, everywhere)


def _note_places(trace: Trace, activation: str | None, insert: float | None, notes: Notes) -> bool:
    """Note what happens at each place; whether any activation function is hidden and to be replaced."""
    found = False
    for site, (name, role) in trace.functions.items():
        if role is not Role.HIDDEN:
            if activation is not None:
                notes.refuse(str(site), f"this {name} stays: {role.value}")
            continue
        if activation not in (None, name):
            notes.change(str(site), f"function {name} -> {activation}")
            found = True
        if insert:
            notes.change(str(site), f"dropout {insert} after it")
            found = True
    return found
