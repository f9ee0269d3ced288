"""One operation on a network: activation, norm, dropout, init, zero_last, in this order."""

from __future__ import annotations

from typing import Any

from torch import nn

from luthier.errors import LuthierError, unknown
from luthier.training.surgery.activations import ACTIVATIONS
from luthier.training.surgery.edits import set_dropout, set_norms, swap_activations
from luthier.training.surgery.functional import SubstitutedForward, substitute_functional, uninstall
from luthier.training.surgery.inits import INITS, Initialiser
from luthier.training.surgery.inits import zero_last as zero_last_layers
from luthier.training.surgery.norms import NORMS
from luthier.training.surgery.probe import observe
from luthier.training.surgery.report import Notes, Report
from luthier.training.surgery.trace import read_chains
from luthier.training.surgery.tree import untouchable


def operate(
    model: nn.Module,
    *,
    dropout: float | None = None,
    norm: str | None = None,
    activation: str | None = None,
    init: str | None = None,
    zero_last: bool = False,
    example: Any = None,
) -> Report:
    """Change dropout, normalisation, activation and initial weights of any model, in place.

    Modules keep their names and places, so code that reads `model.fc1.weight`, tied weights and old state dicts go on
    working; what is new is a child of the module that it follows. Functions called in `forward` are replaced while it
    runs. Operate before compiling, hooking, and making an optimizer. Random numbers come from torch's global generator.

    Args:
        model: the model; it is edited in place.
        dropout: rate in [0, 1) of all dropout; a model without any gets one after each hidden activation.
        norm: key of `NORMS`; a model without any gets one after each Linear and convolution that an activation follows.
        activation: key of `ACTIVATIONS`, for hidden activations; those that make the output and gates stay.
        init: key of `INITS`.
        zero_last: zero the layers that the output comes from.
        example: inputs of one batch (tuple or list: positional, mapping: keywords), or a callable that gets the model
            and runs it. The model runs once, in evaluation mode, and shows what its forward does; without it only the
            order in Sequentials is known, and functions in `forward` stay as they are.

    Returns:
        What was changed, and what was left with the reasons.

    Raises:
        LuthierError: an unknown name, a rate outside [0, 1), or a model that does not run on the example.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), nn.Sigmoid())
    >>> print(operate(net, activation="gelu"))
    1 changed, 1 left as it was
      1: relu -> gelu
      3: left, this sigmoid stays: it makes the model's output
    """
    _check(dropout, norm, activation, init)
    notes = Notes()
    if (dropout, norm, activation, init) == (None, None, None, None) and not zero_last:
        return notes.report()
    if reasons := untouchable(model):
        for path, why in reasons.items():
            notes.refuse(path, why)
        return notes.report()
    earlier = uninstall(model)
    try:
        trace = read_chains(model) if example is None else observe(model, example)
    except LuthierError:
        _reinstall(model, earlier)
        raise
    if activation is not None:
        swap_activations(model, trace, activation, notes)
    if norm is not None:
        set_norms(model, trace, norm, notes)
    insert = None if dropout is None else set_dropout(model, trace, dropout, notes)
    substitute_functional(model, trace, notes, activation, dropout, insert, earlier)
    if init is not None:
        Initialiser(model, trace, init, activation, notes).run()
    if zero_last:
        zero_last_layers(model, trace, notes)
    return notes.report()


def _check(dropout: float | None, norm: str | None, activation: str | None, init: str | None) -> None:
    for what, name, known in (("norm", norm, NORMS), ("activation", activation, ACTIVATIONS), ("init", init, INITS)):
        if name is not None and name not in known:
            raise unknown(what, name, known)
    if dropout is not None and not 0 <= dropout < 1:
        raise LuthierError(f"dropout must be at least 0 and below 1, got {dropout}")


def _reinstall(model: nn.Module, forward: SubstitutedForward | None) -> None:
    if forward is not None:
        model.__dict__["forward"] = forward
