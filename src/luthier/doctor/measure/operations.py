"""Plain names for torch's functions, the same for `F.relu`, `torch.relu` and `Tensor.relu_`.

A function is resolved once; later calls find its `Operation` in a dictionary.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

VIEWS = frozenset(
    [
        "view",
        "reshape",
        "flatten",
        "squeeze",
        "unsqueeze",
        "permute",
        "transpose",
        "getitem",
        "expand",
        "chunk",
        "split",
        "unbind",
        "detach",
        "contiguous",
        "narrow",
        "select",
        "movedim",
        "clone",
        "roll",
        "flip",
        "diagonal",
        "broadcast_to",
    ]
)
LOSSES = frozenset(
    [
        "cross_entropy",
        "nll_loss",
        "mse_loss",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "kl_div",
        "poisson_nll_loss",
        "gaussian_nll_loss",
        "hinge_embedding_loss",
        "margin_ranking_loss",
        "multi_margin_loss",
        "multilabel_margin_loss",
        "multilabel_soft_margin_loss",
        "soft_margin_loss",
        "cosine_embedding_loss",
        "triplet_margin_loss",
        "triplet_margin_with_distance_loss",
        "ctc_loss",
    ]
)
ARITHMETIC = frozenset(
    [
        "add",
        "sub",
        "mul",
        "div",
        "pow",
        "maximum",
        "minimum",
        "cosine_similarity",
        "pairwise_distance",
        "where",
        "logaddexp",
    ]
)
SENSITIVE = frozenset(
    ["log", "log2", "log10", "log1p", "sqrt", "rsqrt", "div", "reciprocal", "exp", "expm1", "pow", "norm", "normalize"]
)
RECURRENT = frozenset(("lstm", "gru", "rnn"))

_ALIASES = {
    "truediv": "div", "true_divide": "div", "divide": "div", "rdiv": "div", "rtruediv": "div",
    "multiply": "mul", "rmul": "mul", "subtract": "sub", "rsub": "sub", "radd": "add", "rpow": "pow", "negative": "neg",
    "float_power": "pow", "mm": "matmul", "bmm": "matmul", "mv": "matmul", "dot": "matmul", "rmatmul": "matmul",
    "addmm": "matmul", "baddbmm": "matmul", "inner": "matmul", "clip": "clamp", "clamp_min": "clamp",
    "clamp_max": "clamp", "absolute": "abs", "special_expit": "sigmoid", "special_log_softmax": "log_softmax",
    "special_softmax": "softmax", "log_sigmoid": "logsigmoid", "dropout1d": "dropout", "dropout2d": "dropout",
    "dropout3d": "dropout", "alpha_dropout": "dropout", "feature_dropout": "dropout", "feature_alpha_dropout": "dropout",
    "t": "transpose", "T": "transpose", "mT": "transpose", "H": "transpose", "mH": "transpose", "swapaxes": "transpose",
    "swapdims": "transpose", "adjoint": "transpose", "data": "detach", "real": "real", "imag": "imag", "concat": "cat",
    "concatenate": "cat", "hstack": "cat", "vstack": "cat", "float": "to", "half": "to", "double": "to",
    "bfloat16": "to", "long": "to", "int": "to", "bool": "to", "cpu": "to", "cuda": "to", "type": "to", "type_as": "to",
    "rnn_tanh": "rnn", "rnn_relu": "rnn", "rnn_tanh_cell": "rnn_cell", "rnn_relu_cell": "rnn_cell",
    "multi_head_attention_forward": "multi_head_attention", "view_as": "view", "reshape_as": "reshape",
    "unflatten": "view", "ravel": "flatten", "expand_as": "expand", "max_pool1d_with_indices": "max_pool1d",
    "max_pool2d_with_indices": "max_pool2d", "max_pool3d_with_indices": "max_pool3d", "linalg_norm": "norm",
    "linalg_vector_norm": "norm", "linalg_matrix_norm": "norm", "cross_entropy_loss": "cross_entropy",
    "nll_loss_nd": "nll_loss", "nll_loss2d": "nll_loss", "unsafe_chunk": "chunk", "unsafe_split": "split",
    "split_with_sizes": "split", "tensor_split": "split", "moveaxis": "movedim", "fill_diagonal": "fill",
}  # fmt: skip
_PROPERTIES = frozenset(("T", "mT", "H", "mH", "data", "real", "imag"))
_PASSED = frozenset(
    [
        "size",
        "dim",
        "numel",
        "nelement",
        "ndimension",
        "stride",
        "item",
        "tolist",
        "numpy",
        "is_contiguous",
        "data_ptr",
        "storage",
        "untyped_storage",
        "storage_offset",
        "element_size",
        "get_device",
        "is_floating_point",
        "is_complex",
        "is_signed",
        "requires_grad_",
        "retain_grad",
        "register_hook",
        "register_post_accumulate_grad_hook",
        "backward",
        "grad",
        "allclose",
        "equal",
        "is_nonzero",
        "is_same_size",
        "share_memory_",
        "pin_memory",
        "record_stream",
        "result_type",
        "can_cast",
        "empty",
        "zeros",
        "ones",
        "full",
        "rand",
        "randn",
        "randint",
        "arange",
        "eye",
        "linspace",
        "tensor",
        "as_tensor",
        "manual_seed",
        "has_names",
        "stft_like",
        "is_tensor",
        "is_storage",
        "is_shared",
        "is_pinned",
        "is_set_to",
        "is_inference",
        "is_neg",
        "is_conj",
        "is_coalesced",
        "broadcast_tensors_like",
        "broadcast_shapes",
    ]
)
_SIGNATURES: dict[str, tuple[str, ...]] = {
    name: tuple(text.split())
    for names, text in (
        ("add sub mul div multiply divide subtract true_divide maximum minimum", "input other"),
        ("pow", "input exponent"),
        ("clamp clip", "input min max"),
        ("clamp_min", "input min"),
        ("clamp_max", "input max"),
        ("softmax log_softmax softmin", "input dim"),
        ("mean sum prod amax amin argmax argmin max min logsumexp any all median", "input dim keepdim"),
        ("var std var_mean std_mean", "input dim"),
        ("cumsum cumprod squeeze unsqueeze unbind gather index_select glu", "input dim"),
        ("transpose swapaxes swapdims", "input dim0 dim1"),
        ("flatten", "input start_dim end_dim"),
        ("cat stack concat concatenate", "tensors dim"),
        ("chunk", "input chunks dim"),
        ("split", "input split_size dim"),
        ("conv1d conv2d conv3d", "input weight bias stride padding dilation groups"),
        (
            "conv_transpose1d conv_transpose2d conv_transpose3d",
            "input weight bias stride padding output_padding groups dilation",
        ),
        ("avg_pool1d avg_pool2d avg_pool3d", "input kernel_size stride padding"),
        ("max_pool1d max_pool2d max_pool3d", "input kernel_size stride padding"),
        ("dropout feature_dropout alpha_dropout", "input p train"),
        ("batch_norm", "input weight bias running_mean running_var training momentum eps"),
        ("layer_norm", "input normalized_shape weight bias eps"),
        ("scaled_dot_product_attention", "query key value attn_mask dropout_p is_causal scale"),
        ("leaky_relu", "input negative_slope"),
        ("elu", "input alpha"),
        ("hardtanh", "input min_val max_val"),
        ("softplus", "input beta threshold"),
        ("threshold", "input threshold value"),
        ("masked_fill", "input mask value"),
        ("norm linalg_norm linalg_vector_norm", "input p dim keepdim"),
        ("where", "condition input other"),
        ("lstm gru rnn_tanh rnn_relu", "input hx weights bias num_layers p training bidirectional batch_first"),
    )
    for name in names.split()
}
_PACKED = ("input", "batch_sizes", "hx", "weights", "bias", "num_layers", "p", "training", "bidirectional")
_KEPT = {
    name: name
    for name in ["dim", "p", "training", "inplace", "reduction", "label_smoothing", "negative_slope", "groups", "stride", "padding", "dilation", "momentum", "eps", "keepdim", "exponent", "min", "max", "ignore_index", "beta", "delta", "alpha", "margin", "num_layers", "bidirectional", "batch_first", "threshold", "value", "num_heads", "num_groups", "num_embeddings", "padding_idx", "start_dim", "dims", "rounding_mode", "log_input", "log_target"]
} | {
    "train": "training", "other": "scalar", "min_val": "min", "max_val": "max", "kernel_size": "kernel",
    "is_causal": "causal", "dropout_p": "p", "dims": "dim", "output_size": "size", "equation": "equation",
}  # fmt: skip
_PLAIN = (bool, int, float, str)


class Operation:
    """A torch function as the rules know it.

    Attributes:
        name: plain lower-case name. signature: names of the positional arguments ("" where unknown).
        inplace: spelled with a trailing underscore. reversed: the tensor is the right operand (`1 - x`).
        measures: its arguments are measured before it runs.
    """

    __slots__ = ("inplace", "is_loss", "is_view", "measures", "name", "raw", "reversed", "signature")

    def __init__(self, raw: str, signature: Sequence[str], inplace: bool) -> None:
        self.raw = raw
        self.name = _ALIASES.get(raw, raw)
        self.signature = tuple(signature)
        self.inplace = inplace
        self.reversed = raw in ("rsub", "rdiv", "rtruediv", "rpow", "rmatmul")
        self.is_view = self.name in VIEWS
        self.is_loss = self.name in LOSSES
        self.measures = self.is_loss or self.name in SENSITIVE or self.name in ARITHMETIC


_KNOWN: dict[Any, Operation | None] = {}


def operation(function: Callable[..., Any]) -> Operation | None:
    """The operation behind a torch function; None for what only asks or creates (sizes, properties, factories)."""
    try:
        return _KNOWN[function]
    except KeyError:
        found = _KNOWN[function] = _resolve(function)
        return found


def _resolve(function: Callable[..., Any]) -> Operation | None:
    name = getattr(function, "__name__", "")
    if name in ("__get__", "__set__", "__delete__"):
        name = getattr(getattr(function, "__self__", None), "__name__", "")
        wanted = name in _PROPERTIES and function.__name__ == "__get__"
        return Operation(name, ("input",), inplace=False) if wanted else None
    if name in ("__setitem__", "__getitem__"):
        return Operation(name.strip("_"), ("input", "index"), inplace=name == "__setitem__")
    if name.startswith("__"):
        bare = name.strip("_")
        known = bare in _ALIASES or bare in _SIGNATURES or bare in ("and", "or", "xor", "matmul", "neg", "abs")
        known = known and bare not in ("float", "int", "bool", "index", "len", "long")
        return Operation(bare, ("input", "other"), inplace=False) if known else None
    module = getattr(function, "__module__", None) or ""
    if module == "torch.nn.init" or name in _PASSED or name.startswith(("_foreach", "new_", "_set_", "_has_", "is_")):
        return None
    if name.endswith("_like") or name.startswith(("_assert", "_make_", "rand", "_unsafe_set")):
        return None
    bare = name.strip("_")
    return Operation(bare, _signature(function, bare), inplace=name.endswith("_"))


def _signature(function: Callable[..., Any], name: str) -> Sequence[str]:
    function = inspect.unwrap(function)
    if isinstance(function, types.FunctionType) and function.__code__.co_argcount:
        code = function.__code__
        names = list(code.co_varnames[: code.co_argcount])
        return ["input", *names[1:]] if names and names[0] == "self" else names
    return _SIGNATURES.get(name, ("input",))


def arguments(given: Operation, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors among the arguments, in the order of the signature; lists and tuples are looked into."""
    found: list[Tensor] = []
    for value in args:
        if isinstance(value, Tensor):
            found.append(value)
        elif type(value) is tuple or type(value) is list:
            _gather(value, found)
    if kwargs:
        named = [name for name in given.signature if name in kwargs]
        for name in (*named, *(name for name in kwargs if name not in named and name != "out")):
            value = kwargs[name]
            if isinstance(value, Tensor):
                found.append(value)
            elif type(value) is tuple or type(value) is list:
                _gather(value, found)
    return found


def tensors(value: Any) -> list[Tensor]:
    """All tensors of a nested value (tuples, lists, dictionaries, dataclasses such as model outputs)."""
    found: list[Tensor] = []
    _gather([value], found)
    return found


def _gather(values: Any, found: list[Tensor], depth: int = 5) -> None:
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif depth and isinstance(value, Mapping):
            _gather(value.values(), found, depth - 1)
        elif depth and isinstance(value, (tuple, list)):
            _gather(value, found, depth - 1)
        elif depth and hasattr(value, "__dataclass_fields__"):
            _gather(vars(value).values() if hasattr(value, "__dict__") else (), found, depth - 1)


def attributes(given: Operation, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> dict[str, Any]:
    """What matters of the other arguments: `Node.attrs`."""
    signature = given.signature
    if given.name in RECURRENT and len(args) > 3 and isinstance(args[3], (list, tuple)):
        signature = _PACKED
    attrs: dict[str, Any] = {}
    for name, value in (*zip(signature, args, strict=False), *kwargs.items()):
        _keep(attrs, name, value)
    if given.inplace:
        attrs["inplace"] = True
    if given.reversed:
        attrs["reversed"] = True
    special = _SPECIAL.get(given.name)
    if special is not None:
        special(given, attrs, args, kwargs, result)
    return attrs


def _keep(attrs: dict[str, Any], name: str, value: Any) -> None:
    kept = _KEPT.get(name)
    if kept is None:
        if name in ("weight", "pos_weight") and isinstance(value, Tensor):
            attrs.setdefault("weighted", True)
        elif name in ("attn_mask", "key_padding_mask") and value is not None:
            attrs["masked"] = True
        return
    if isinstance(value, _PLAIN):
        attrs[kept] = value
    elif isinstance(value, (tuple, list)) and all(isinstance(item, int) for item in value):
        attrs[kept] = list(value)


def _unweighted(given: Operation, attrs: dict[str, Any], *_: Any) -> None:
    attrs.pop("weighted", None)


def _number_first(given: Operation, attrs: dict[str, Any], args: Sequence[Any], *_: Any) -> None:
    """`torch.sub(1, x)`, `2 ** x`."""
    if args and isinstance(args[0], (int, float)) and not isinstance(args[0], bool):
        attrs["scalar"], attrs["reversed"] = args[0], True
    elif given.raw == "rpow" and len(args) > 1 and isinstance(args[1], (int, float)):
        attrs["scalar"] = args[1]


def _conv(given: Operation, attrs: dict[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any], *_: Any) -> None:
    attrs.pop("weighted", None)
    weight = args[1] if len(args) > 1 else kwargs.get("weight")
    if isinstance(weight, Tensor):
        attrs["kernel"] = list(weight.shape[2:])


def _dims(given: Operation, attrs: dict[str, Any], args: Sequence[Any], *_: Any) -> None:
    """`permute(0, 2, 1)`, `transpose(1, 2)`: all whole numbers are dimensions."""
    dims = args[1] if len(args) > 1 and isinstance(args[1], (tuple, list)) else args[1:]
    whole = [item for item in dims if isinstance(item, int)]
    if whole:
        attrs["dim"] = whole


def _recurrent(given: Operation, attrs: dict[str, Any], args: Sequence[Any], _: Any, result: Any) -> None:
    first = result[0] if isinstance(result, tuple) else result
    attrs["hidden_size"] = first.shape[-1] // (2 if attrs.get("bidirectional") else 1)
    attrs["nonlinearity"] = "relu" if given.raw == "rnn_relu" else "tanh"


_SPECIAL: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("linear", "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"), _unweighted),
    **dict.fromkeys(("embedding", "embedding_bag", "prelu", "bilinear"), _unweighted),
    **dict.fromkeys(("add", "sub", "mul", "div", "pow"), _number_first),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv),
    **dict.fromkeys(("permute", "transpose"), _dims),
    **dict.fromkeys(RECURRENT, _recurrent),
}
