"""The edits of a module tree: activations, norms and dropout."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from luthier.training.surgery.activations import ACTIVATIONS, name_of
from luthier.training.surgery.norms import NORMS, LastBatchNorm, LastGroupNorm, Layout, kind_of
from luthier.training.surgery.probe import DROPOUT_FUNCTIONS, NORM_FUNCTIONS
from luthier.training.surgery.report import Notes
from luthier.training.surgery.trace import Role, Trace
from luthier.training.surgery.tree import attach, has_own_hooks, inside_composite, is_convolution, replace

TransformerLayer = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def swap_activations(model: nn.Module, trace: Trace, name: str, notes: Notes) -> None:
    """Make every hidden activation module `name`; what is called in `forward` is not seen here."""
    for path, module in list(model.named_modules()):
        if isinstance(module, TransformerLayer):
            _swap_in_transformer(path, module, name, notes)
        elif isinstance(module, (nn.RNN, nn.RNNCell)):
            _swap_in_rnn(path, module, name, notes)
        elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            notes.refuse(path, f"the gates of {type(module).__name__} are fixed")
        elif (old := name_of(module)) is not None and old != name and not _is_transformer_activation(model, path):
            _swap(model, path, module, trace, name, notes)


def _swap(model: nn.Module, path: str, module: nn.Module, trace: Trace, name: str, notes: Notes) -> None:
    role = trace.activations.get(path)
    if role is None:
        notes.refuse(path, "the example did not run it")
    elif role is not Role.HIDDEN:
        notes.refuse(path, f"this {name_of(module)} stays: {role.value}")
    elif has_own_hooks(module):
        notes.refuse(path, "hooks are registered on it: operate before hooking")
    else:
        replace(model, module, ACTIVATIONS[name].module())
        notes.change(path, f"{name_of(module)} -> {name}")


def _is_transformer_activation(model: nn.Module, path: str) -> bool:
    return isinstance(model.get_submodule(path.rpartition(".")[0]), TransformerLayer)


def _swap_in_transformer(
    path: str, layer: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer, name: str, notes: Notes
) -> None:
    if "activation" in layer._modules:
        layer.activation = ACTIVATIONS[name].module()
    else:
        layer.activation = ACTIVATIONS[name].function
    if isinstance(layer, nn.TransformerEncoderLayer):
        layer.activation_relu_or_gelu = {"relu": 1, "gelu": 2}.get(name, 0)
    notes.change(path, f"activation of its feed-forward part -> {name}")


def _swap_in_rnn(path: str, module: nn.RNN | nn.RNNCell, name: str, notes: Notes) -> None:
    if name not in ("tanh", "relu"):
        notes.refuse(path, f"{type(module).__name__} computes tanh or relu only")
        return
    module.nonlinearity = name
    if isinstance(module, nn.RNN):
        module.mode = f"RNN_{name.upper()}"
    notes.change(path, f"nonlinearity -> {name}")


def set_norms(model: nn.Module, trace: Trace, name: str, notes: Notes) -> None:
    """Replace all normalisations by kind `name`; without any, put one after each layer that an activation follows."""
    within = inside_composite(model)
    found = [(path, module) for path, module in model.named_modules() if kind_of(module) is not None]
    for path, module in found:
        if kind_of(module) != name:
            _replace_norm(model, path, module, trace, name, within, notes)
    called = sorted(trace.functional & NORM_FUNCTIONS)
    if called:
        notes.refuse("", f"forward calls {', '.join(called)} itself")
    if not found and not called and name != "none":
        _insert_norms(model, trace, name, notes)


def _replace_norm(
    model: nn.Module, path: str, old: nn.Module, trace: Trace, name: str, within: set[str], notes: Notes
) -> None:
    layout = _layout(old, trace.ndims.get(path))
    if path in within:
        notes.refuse(path, "torch's Transformer layers work with their own LayerNorm only")
    elif type(old).forward not in {kind.forward for kind in _PLAIN}:
        notes.refuse(path, f"{type(old).__name__} normalises in a way of its own")
    elif isinstance(layout, str):
        notes.refuse(path, layout)
    elif path == "" or has_own_hooks(old):
        notes.refuse(path, "it is the model itself" if path == "" else "hooks are registered on it")
    else:
        new = NORMS[name](layout)
        kept = [key for key in ("weight", "bias") if _carry(old, new, key)]
        replace(model, old, new)
        notes.change(path, f"{kind_of(old)} norm -> {name}" + (f", {' and '.join(kept)} kept" if kept else ""))


_PLAIN: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d,
    nn.SyncBatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.RMSNorm,
    LastBatchNorm,
    LastGroupNorm,
)


def _layout(norm: nn.Module, ndim: int | None) -> Layout | str:
    """Where the channels are that a norm works on, or why that is not known."""
    dims = None if ndim is None else min(ndim - 2, 3)
    if isinstance(norm, (LastBatchNorm, LastGroupNorm)):
        return Layout(norm.num_features if isinstance(norm, LastBatchNorm) else norm.num_channels, last=True)
    if isinstance(norm, (_BatchNorm, _InstanceNorm)):
        return Layout(norm.num_features, dims)
    if isinstance(norm, nn.GroupNorm):
        return Layout(norm.num_channels, dims)
    shape = tuple(getattr(norm, "normalized_shape", ()))
    if len(shape) == 1:
        return Layout(shape[0], 0) if ndim == 2 else Layout(shape[0], last=True)
    if ndim == len(shape) + 1:
        return Layout(shape[0], len(shape) - 1)
    return f"which of the dimensions {shape} are channels is not known"


def _carry(old: nn.Module, new: nn.Module, key: str) -> bool:
    before, after = old._parameters.get(key), new._parameters.get(key)
    if before is None or after is None or before.shape != after.shape:
        return False
    after.data = before.data.clone()
    after.requires_grad_(before.requires_grad)
    return True


def _insert_norms(model: nn.Module, trace: Trace, name: str, notes: Notes) -> None:
    unknown, inserted = [], 0
    for path, facts in trace.layers.items():
        layer = model.get_submodule(path)
        if not (isinstance(layer, nn.Linear) or is_convolution(layer)) or path in trace.last:
            continue
        if facts.following is None:
            unknown.append(path)
        elif facts.following and name == "batch" and (facts.calls or 1) > 1:
            notes.refuse(path, "one forward pass runs it several times, whose statistics a batch norm would mix")
        elif facts.following:
            child = attach(model, layer, "norm", NORMS[name](_behind(layer, facts.ndim)))
            notes.change(path, f"{name} norm after it, as {child}")
            inserted += 1
    if unknown:
        why = "what follows is known to forward alone; pass example= to let the model show it"
        notes.refuse(", ".join(unknown), why)
    elif not inserted:
        notes.refuse("", "no norm, and no Linear or convolution with a hidden activation behind it")


def _behind(layer: nn.Module, ndim: int | None) -> Layout:
    if isinstance(layer, nn.Linear):
        return Layout(layer.out_features, 0) if ndim == 2 else Layout(layer.out_features, last=True)
    if not isinstance(layer, nn.modules.conv._ConvNd):
        raise TypeError(f"expected a Linear or a convolution, got {type(layer).__name__}")
    return Layout(layer.out_channels, len(layer.kernel_size))


def set_dropout(model: nn.Module, trace: Trace, rate: float, notes: Notes) -> float | None:
    """Set the rate of everything that drops out; without any, put a Dropout after each hidden activation.

    Returns:
        The rate to insert after activation functions called in `forward`, None for none.
    """
    found = [_set_rate(path, module, rate, notes) for path, module in model.named_modules()]
    if "scaled_dot_product_attention" in trace.functional:
        notes.refuse("", "dropout_p of scaled_dot_product_attention in forward is left")
    if any(found) or trace.functional & DROPOUT_FUNCTIONS:
        return None
    places = [path for path, role in trace.activations.items() if role is Role.HIDDEN]
    for path in places if rate > 0 else ():
        child = attach(model, model.get_submodule(path), "dropout", nn.Dropout(rate))
        notes.change(path, f"dropout {rate} after it, as {child}")
    functions = any(role is Role.HIDDEN for _, role in trace.functions.values())
    if not places and not functions and rate > 0:
        notes.refuse("", "no dropout, and no hidden activation to put one behind")
    return rate if functions and rate > 0 else None


def _set_rate(path: str, module: nn.Module, rate: float, notes: Notes) -> bool:
    """Set a module's rate; whether it has one that acts."""
    if isinstance(module, _DropoutNd):
        if module.p != rate:
            notes.change(path, f"dropout {module.p} -> {rate}")
        module.p = rate
        return True
    if isinstance(module, nn.RNNBase) and module.num_layers == 1:
        notes.refuse(path, f"dropout of {type(module).__name__} acts between layers only, and it has one")
        return False
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        if module.dropout != rate:
            notes.change(path, f"dropout {module.dropout} -> {rate}")
        module.dropout = rate
        return True
    return False
