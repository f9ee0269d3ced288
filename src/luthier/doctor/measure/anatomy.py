"""What is watched: the rows about models and optimizers, read without running anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.doctor.measure.units import row_spread

Named = list[tuple[str, nn.Parameter]]

_SETTINGS = ("p", "eps", "momentum", "affine", "track_running_stats", "num_groups", "dropout", "num_layers")
_GROUP = ("lr", "lr_decay", "weight_decay", "momentum", "betas", "eps", "maximize", "nesterov")
_SAMPLE = 1 << 20


def named_parameters(models: Sequence[nn.Module]) -> Named:
    """All parameters, each once; with several models their names begin with the model's position."""
    if len(models) == 1:
        return list(models[0].named_parameters())
    seen: dict[int, tuple[str, nn.Parameter]] = {}
    for position, model in enumerate(models):
        for name, parameter in model.named_parameters():
            seen.setdefault(id(parameter), (f"{position}.{name}", parameter))
    return list(seen.values())


def named_modules(models: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Dotted name -> module; "" is the model itself."""
    if len(models) == 1:
        return dict(models[0].named_modules())
    return {
        f"{position}.{name}".rstrip("."): module
        for position, model in enumerate(models)
        for name, module in model.named_modules()
    }


def anatomy_row(
    step: int,
    models: Sequence[nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    loss_fn: Any,
) -> dict[str, Any]:
    """The row `anatomy` of `vitals`; one transfer from the device."""
    parameters = named_parameters(models)
    modules = named_modules(models)
    stepped = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    own = {id(p) for _, p in parameters}
    foreign = [
        list(p.shape)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
        if id(p) not in own
    ]
    return {
        "kind": "anatomy",
        "step": step,
        "model_types": [type(model).__name__ for model in models],
        "modules": {name: type(module).__name__ for name, module in modules.items()},
        "module_settings": {name: found for name, module in modules.items() if (found := _settings(module))},
        "parameters": _parameter_rows(models, parameters, modules, stepped),
        "unregistered": [text for model in models for text in unregistered(model, stepped)],
        "foreign": foreign,
        "loss_fn": None if loss_fn is None else getattr(loss_fn, "__name__", type(loss_fn).__name__),
        "loss_settings": _loss_settings(loss_fn),
        "compiled": is_compiled(models),
        "distributed": next((type(m).__name__ for m in models if "Parallel" in type(m).__name__), None),
    }


def signature(models: Sequence[nn.Module]) -> tuple[tuple[int, bool], ...]:
    """Changes when a parameter is added, replaced, removed, frozen or thawed."""
    return tuple((id(p), p.requires_grad) for model in models for p in model.parameters())


def is_compiled(models: Sequence[nn.Module]) -> bool:
    """Whether torch.compile stands between us and the operations."""
    return any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for model in models
        for module in model.modules()
    )


def optimizer_row(
    step: int, number: int, optimizer: torch.optim.Optimizer, given: bool, replaces: int | None
) -> dict[str, Any]:
    """The row `optimizer` of `vitals`."""
    groups = [
        {
            **{key: _plain(group[key]) for key in _GROUP if key in group},
            "n_parameters": len(group["params"]),
        }
        for group in optimizer.param_groups
    ]
    return {
        "kind": "optimizer",
        "step": step,
        "id": number,
        "type": type(optimizer).__name__,
        "given": given,
        "replaces": replaces,
        "groups": groups,
    }


def unregistered(model: nn.Module, stepped: set[int]) -> Iterator[str]:
    """Modules and trainable tensors that hide in plain attributes: model.parameters() does not list them.

    Args:
        model: searched with all its submodules; lists, tuples and dicts three levels deep.
        stepped: ids of tensors that an optimizer steps all the same.
    """
    known = {id(module) for module in model.modules()} | {id(p) for p in model.parameters()}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if not key.startswith("_") or key.startswith("__"):
                path = f"{name}.{key}" if name else key
                yield from _hidden(value, path, known, stepped, 3)


def _hidden(value: Any, path: str, known: set[int], stepped: set[int], depth: int) -> Iterator[str]:
    if isinstance(value, nn.Module):
        parameters = [p for p in value.parameters() if p.requires_grad]
        if id(value) not in known and parameters and not all(id(p) in known | stepped for p in parameters):
            yield f"{path} ({type(value).__name__})"
    elif isinstance(value, Tensor):
        if value.requires_grad and value.is_leaf and id(value) not in known | stepped:
            yield f"{path} ({type(value).__name__})"
    elif depth and isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from _hidden(item, f"{path}[{position}]", known, stepped, depth - 1)
    elif depth and isinstance(value, dict):
        for key, item in value.items():
            yield from _hidden(item, f"{path}[{key!r}]", known, stepped, depth - 1)


def _parameter_rows(
    models: Sequence[nn.Module], parameters: Named, modules: Mapping[str, nn.Module], stepped: set[int]
) -> list[dict[str, Any]]:
    numbers = _numbers([p for _, p in parameters])
    duplicates = _duplicates(models, parameters)
    rows = []
    for (name, parameter), values in zip(parameters, numbers, strict=True):
        layer = name.rpartition(".")[0]
        rows.append(
            {
                "name": name,
                "shape": list(parameter.shape),
                "dtype": str(parameter.dtype).removeprefix("torch."),
                "numel": parameter.numel(),
                "requires_grad": parameter.requires_grad,
                "in_optimizer": id(parameter) in stepped,
                "layer": layer,
                "layer_type": type(modules[layer]).__name__ if layer in modules else "",
                "fan_in": parameter[0].numel() if parameter.dim() >= 2 and parameter.shape[0] else None,
                "duplicate": duplicates.get(id(parameter)),
                **values,
            }
        )
    return rows


def _duplicates(models: Sequence[nn.Module], parameters: Named) -> dict[int, str]:
    """id -> second name of parameters that two modules share."""
    first = {id(p): name for name, p in parameters}
    found: dict[int, str] = {}
    for model in models:
        for name, p in model.named_parameters(remove_duplicate=False):
            if len(models) == 1 and first.get(id(p)) != name:
                found[id(p)] = name
    return found


@torch.no_grad()
def _numbers(parameters: Sequence[Tensor]) -> list[dict[str, Any]]:
    """mean, rms, absmax, row_spread and `initial` of each parameter, in one transfer."""
    vectors = [_vector(p) for p in parameters]
    if not vectors:
        return []
    columns = torch.stack([vector.to(vectors[0].device) for vector in vectors]).tolist()
    return [_number_row(p, column) for p, column in zip(parameters, columns, strict=True)]


def _vector(parameter: Tensor) -> Tensor:
    """mean, mean square, absmax, kurtosis, skew, spread of row norms against chance, row spread."""
    p = parameter.detach()
    if p.is_meta or p.numel() == 0 or not p.is_floating_point():
        return torch.full((7,), float("nan"))
    flat = p.flatten()[:_SAMPLE].float()
    mean, square = flat.mean(), flat.square().mean()
    centred = flat - mean
    variance = centred.square().mean().clamp_min(1e-30)
    kurtosis = centred.pow(4).mean() / variance.square()
    skew = centred.pow(3).mean() / variance.pow(1.5)
    nan = torch.full_like(mean, float("nan"))
    uneven, spread = nan, nan
    if p.dim() >= 2 and p.shape[0] > 1 and p[0].numel() > 1:
        rows = p.flatten(1).float()
        norms = rows.square().mean(1)
        expected = (kurtosis - 1).clamp_min(0.1) / rows.shape[1]
        uneven = norms.var() / norms.mean().square().clamp_min(1e-30) / expected
        spread = row_spread(p)
    return torch.stack([mean, square, flat.abs().max(), kurtosis, skew, uneven, spread])


def _number_row(parameter: Tensor, column: list[float]) -> dict[str, Any]:
    mean, square, absmax, kurtosis, skew, uneven, spread = column
    if mean != mean:
        return {"mean": None, "rms": None, "absmax": None, "row_spread": None, "initial": "other"}
    return {
        "mean": mean,
        "rms": square**0.5,
        "absmax": absmax,
        "row_spread": None if spread != spread else spread,
        "initial": _initial(parameter.numel(), mean, square, kurtosis, skew, uneven),
    }


def _initial(n: int, mean: float, square: float, kurtosis: float, skew: float, uneven: float) -> str:
    """Whether values look as fresh from an initialiser: independent draws, every unit of the same scale.

    Training makes some units larger than others and the tails heavier; fresh draws have the kurtosis of their
    distribution (uniform 1.8, normal 3, standard error sqrt(24 / n)) and row norms that differ by chance alone.
    """
    variance = square - mean * mean
    if variance <= 1e-12 * max(square, 1e-12):
        return "constant"
    if n < 32 or uneven > 2.5:
        return "other"
    n = min(n, _SAMPLE)
    centred = abs(mean) < 4.5 * (variance / n) ** 0.5 and abs(skew) < 4.5 * (6 / n) ** 0.5
    if not centred:
        return "other"
    error = (24 / n) ** 0.5
    if abs(kurtosis - 1.8) < min(0.4, 3 * error + 0.03):
        return "uniform"
    return "normal" if abs(kurtosis - 3) < 4 * error + 0.03 else "other"


def _settings(module: nn.Module) -> dict[str, Any]:
    name = type(module).__name__
    if "Norm" not in name and "Dropout" not in name and not isinstance(module, nn.RNNBase):
        return {}
    return {key: _plain(getattr(module, key)) for key in _SETTINGS if hasattr(module, key)}


def _loss_settings(loss_fn: Any) -> dict[str, Any]:
    if not isinstance(loss_fn, nn.Module):
        return {}
    keys = ("reduction", "label_smoothing", "ignore_index", "delta", "beta")
    found = {key: _plain(getattr(loss_fn, key)) for key in keys if hasattr(loss_fn, key)}
    found["weighted"] = getattr(loss_fn, "weight", None) is not None or getattr(loss_fn, "pos_weight", None) is not None
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str)) or value is None else str(value)
