"""What is watched: modules, parameters, and the optimizers that step them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from luthier.doctor.vitals.rows import Row


@dataclass(frozen=True)
class Parameter(Row):
    """A parameter when watching began.

    Attributes:
        layer, layer_type: module that holds it. in_optimizer: some watched optimizer steps it.
        fan_in: inputs of one unit (None below 2 dimensions). mean, rms, absmax: of its values.
        row_spread: as in `Look`. duplicate: name of the parameter that it shares its storage with.
        initial: what its values look like: "uniform" or "normal" (as fresh from an initialiser), "constant", "other".
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    numel: int = 0
    requires_grad: bool = True
    in_optimizer: bool = True
    layer: str = ""
    layer_type: str = ""
    fan_in: int | None = None
    mean: float | None = None
    rms: float | None = None
    absmax: float | None = None
    row_spread: float | None = None
    duplicate: str | None = None
    initial: str = "other"


@dataclass(frozen=True)
class Anatomy(Row):
    """What is watched; a further row follows when the parameters change (a layer replaced, frozen, added).

    Attributes:
        model_types: class of each watched model. modules: dotted name -> class, of all modules.
        module_settings: dotted name -> {p, eps, momentum, affine, ...} of dropout and norm modules.
        unregistered: places like "blocks[0] (Linear)" where modules or parameters hide from nn.Module.
        foreign: shapes of tensors in the optimizers that belong to no watched model.
        loss_fn: class or function name of the loss given to watch; loss_settings: reduction and the like.
        compiled: activations cannot be looked at. distributed: class of a wrapper such as DistributedDataParallel.
    """

    nested: ClassVar[Mapping[str, type[Row]]] = {"parameters": Parameter}
    step: int = 0
    model_types: tuple[str, ...] = ()
    modules: Mapping[str, str] = field(default_factory=dict)
    module_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()
    unregistered: tuple[str, ...] = ()
    foreign: tuple[tuple[int, ...], ...] = ()
    loss_fn: str | None = None
    loss_settings: Mapping[str, Any] = field(default_factory=dict)
    compiled: bool = False
    distributed: str | None = None


@dataclass(frozen=True)
class Optimizer(Row):
    """An optimizer that steps parameters of the model: those given to watch, and any other at its first step.

    Attributes:
        id: 0, 1, ...; a new object has a new id. given: passed to watch. replaces: id of the earlier optimizer that
            held (some of) the same parameters.
        groups: lr, lr_decay, weight_decay, momentum, betas, eps, maximize, n_parameters of each group.
    """

    step: int
    id: int
    type: str
    given: bool = True
    replaces: int | None = None
    groups: tuple[Mapping[str, Any], ...] = ()
