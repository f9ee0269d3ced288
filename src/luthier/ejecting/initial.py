"""Initial weights as surgery draws them, as source code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from luthier.ejecting.sources import EjectError
from luthier.training.surgery.inits import Initialiser
from luthier.training.surgery.probe import observe
from luthier.training.surgery.report import Notes
from luthier.training.surgery.tree import is_convolution

if TYPE_CHECKING:
    from luthier.recipe import Recipe


def write_initialise(recipe: Recipe, model: nn.Module, example: Any) -> str:
    """The function `initialise` that draws initial weights as surgery does.

    Raises:
        EjectError: for layers other than Linear and convolutions.
    """
    if recipe.init == "torch":
        return _RESET
    others = [type(m).__name__ for m in model.modules() if isinstance(m, _NO_RULE)]
    if others:
        raise EjectError(
            f"recipe field init={recipe.init!r} is not written for {', '.join(sorted(set(others)))} layers: "
            "leave init out, or set init='torch'"
        )
    layers = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Linear) or is_convolution(m)]
    rule = Initialiser(model, observe(model, example), str(recipe.init), recipe.activation, Notes())
    gains = [rule._fans(path, m).gain for path, m in layers]
    kinds = ", ".join(sorted({f"nn.{type(m).__name__}" for _, m in layers}))
    drawing, source, uses_gain = _DRAWS[str(recipe.init)]
    same = len(set(gains[:-1])) <= 1
    loop = ["    for layer in layers:"]
    if uses_gain and same:
        loop.append(f"        gain = {gains[-1]!r} if layer is layers[-1] else {gains[0]!r}")
    elif uses_gain:
        loop = [
            f"    gains = ({', '.join(map(repr, gains))})",
            "    for layer, gain in zip(layers, gains, strict=True):",
        ]
    kind = f"({kinds})" if "," in kinds else kinds
    said = f"{source}, biases 0{'; gains of the activations behind' if uses_gain else ''}."
    return "\n".join(
        [
            "@torch.no_grad()",
            "def initialise(model):",
            f'    """{said}"""',
            f"    layers = [module for module in model.modules() if isinstance(module, {kind})]",
            *loop,
            *drawing,
            "        if layer.bias is not None:",
            "            layer.bias.zero_()",
        ]
    )


_NO_RULE = (nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear)
_FAN_IN = "        fan_in = layer.weight[0].numel()"
_DRAWS: dict[str, tuple[list[str], str, bool]] = {
    "kaiming": (
        [_FAN_IN, "        layer.weight.normal_(0.0, gain / math.sqrt(fan_in))"],
        "Weights N(0, gain^2 / fan_in) (He et al. 2015)",
        True,
    ),
    "xavier": (
        [
            "        kernel = layer.weight[0, 0].numel()",
            "        fans = (layer.weight.shape[0] + layer.weight.shape[1]) * kernel",
            "        bound = math.sqrt(6.0 / fans)",
            "        layer.weight.uniform_(-bound, bound)",
        ],
        "Weights uniform within sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)",
        False,
    ),
    "orthogonal": (
        ["        nn.init.orthogonal_(layer.weight, gain)"],
        "Weights gain times random orthogonal matrices (Saxe et al. 2014)",
        True,
    ),
    "uniform": (
        ["        bound = 1.0 / math.sqrt(layer.weight[0].numel())", "        layer.weight.uniform_(-bound, bound)"],
        "Weights uniform within 1 / sqrt(fan_in)",
        False,
    ),
    "normal": (
        ["        layer.weight.normal_(0.0, 1.0 / math.sqrt(layer.weight[0].numel()))"],
        "Weights N(0, 1 / fan_in) (LeCun et al. 1998)",
        False,
    ),
}
_RESET = '''def initialise(model):
    """Every module's own initialisation, drawn anew from the last to the first."""
    for module in reversed(list(model.modules())):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()'''
