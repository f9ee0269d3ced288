"""Plain names for torch's functions, the same for `F.relu`, `torch.relu` and `Tensor.relu_`.

A function is resolved once; later calls find its `Operation` in a dictionary.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


VIEWS = names("""
    view reshape flatten squeeze unsqueeze permute transpose getitem expand chunk split unbind detach contiguous narrow
    select movedim clone roll flip diagonal broadcast_to
""")
LOSSES = names("""
    cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy
    binary_cross_entropy_with_logits kl_div poisson_nll_loss gaussian_nll_loss hinge_embedding_loss margin_ranking_loss
    multi_margin_loss multilabel_margin_loss multilabel_soft_margin_loss soft_margin_loss cosine_embedding_loss
    triplet_margin_loss triplet_margin_with_distance_loss ctc_loss
""")
ARITHMETIC = names("""
    add sub mul div pow maximum minimum cosine_similarity pairwise_distance cdist where logaddexp
""")
SENSITIVE = names("log log2 log10 log1p sqrt rsqrt div reciprocal exp expm1 pow norm normalize")
RECURRENT = names("lstm gru rnn")

_SAME: Mapping[str, str] = {
    "div": "truediv true_divide divide rdiv rtruediv",
    "mul": "multiply rmul",
    "sub": "subtract rsub",
    "add": "radd",
    "pow": "rpow float_power",
    "neg": "negative",
    "abs": "absolute",
    "matmul": "mm bmm mv dot inner rmatmul addmm baddbmm addbmm",
    "clamp": "clip clamp_min clamp_max",
    "sigmoid": "special_expit",
    "softmax": "special_softmax",
    "log_softmax": "special_log_softmax",
    "logsigmoid": "log_sigmoid",
    "dropout": "dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout",
    "transpose": "t T mT H mH swapaxes swapdims adjoint",
    "detach": "data",
    "cat": "concat concatenate hstack vstack dstack",
    "to": "float half double bfloat16 long int bool cpu cuda type type_as",
    "rnn": "rnn_tanh rnn_relu",
    "rnn_cell": "rnn_tanh_cell rnn_relu_cell",
    "multi_head_attention": "multi_head_attention_forward",
    "view": "view_as unflatten",
    "reshape": "reshape_as",
    "flatten": "ravel",
    "expand": "expand_as",
    "max_pool1d": "max_pool1d_with_indices",
    "max_pool2d": "max_pool2d_with_indices",
    "max_pool3d": "max_pool3d_with_indices",
    "norm": "linalg_norm linalg_vector_norm linalg_matrix_norm",
    "cross_entropy": "cross_entropy_loss",
    "nll_loss": "nll_loss_nd nll_loss2d",
    "chunk": "unsafe_chunk",
    "split": "unsafe_split split_with_sizes tensor_split",
    "movedim": "moveaxis",
}
_ALIASES = {other: name for name, others in _SAME.items() for other in others.split()}
_REVERSED = names("rsub rdiv rtruediv rpow rmatmul")
_PROPERTIES = names("T mT H mH data real imag")
_DUNDER_OPERATIONS = names("""
    add radd sub rsub mul rmul truediv rtruediv rdiv div pow rpow matmul rmatmul neg abs and or xor invert
""")
_PASSED = names("""
    size dim numel nelement ndimension stride item tolist numpy is_contiguous data_ptr storage untyped_storage
    storage_offset element_size get_device requires_grad_ retain_grad register_hook
    register_post_accumulate_grad_hook backward grad allclose equal share_memory_ pin_memory record_stream result_type
    can_cast empty zeros ones full randn randint arange eye linspace tensor as_tensor broadcast_shapes
""")
_PASSED_BEGINNINGS = ("_foreach", "new_", "_set_", "_has_", "is_", "_assert", "_make_", "rand")


class Operation:
    """A torch function as the rules know it.

    Attributes:
        raw, name: as torch calls it, without underscores; as the rules call it.
        signature: names of the positional arguments, as far as they are known.
        inplace: spelled with a trailing underscore. reversed: the tensor is the right operand (`1 - x`).
        is_view, is_loss: kinds.
    """

    __slots__ = ("inplace", "is_loss", "is_view", "name", "raw", "reversed", "signature")

    def __init__(self, raw: str, signature: Sequence[str], inplace: bool = False) -> None:
        self.raw = raw
        self.name = _ALIASES.get(raw, raw)
        self.signature = tuple(signature)
        self.inplace = inplace
        self.reversed = raw in _REVERSED
        self.is_view = self.name in VIEWS
        self.is_loss = self.name in LOSSES


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
        held = getattr(getattr(function, "__self__", None), "__name__", "")
        return Operation(held, ("input",)) if name == "__get__" and held in _PROPERTIES else None
    if name in ("__setitem__", "__getitem__"):
        return Operation(name.strip("_"), ("input", "index"), inplace=name == "__setitem__")
    bare = name.strip("_")
    if name.startswith("__"):
        return Operation(bare, ("input", "other")) if bare in _DUNDER_OPERATIONS else None
    created = name in _PASSED or name.endswith("_like") or name.startswith(_PASSED_BEGINNINGS)
    if created or getattr(function, "__module__", None) == "torch.nn.init":
        return None
    return Operation(bare, _signature(function, bare), inplace=name.endswith("_"))


def _signature(function: Callable[..., Any], name: str) -> Sequence[str]:
    """Names of the positional arguments: read off Python functions, known for built-in ones."""
    function = inspect.unwrap(function)
    if isinstance(function, types.FunctionType) and function.__code__.co_argcount:
        found = function.__code__.co_varnames[: function.__code__.co_argcount]
        return ("input", *found[1:]) if found[0] == "self" else found
    return _SIGNATURES.get(name, ("input",))


_SIGNATURES: Mapping[str, tuple[str, ...]] = {
    name: tuple(signature.split())
    for found, signature in (
        ("add sub mul div multiply divide subtract true_divide maximum minimum", "input other"),
        ("pow", "input exponent"),
        ("clamp clip", "input min max"),
        ("clamp_min", "input min"),
        ("clamp_max", "input max"),
        ("softmax log_softmax", "input dim"),
        ("mean sum nansum nanmean prod amax amin argmax argmin max min logsumexp any all median", "input dim keepdim"),
        ("var std var_mean std_mean", "input dim"),
        ("cumsum cumprod squeeze unsqueeze unbind gather index_select glu", "input dim"),
        ("transpose swapaxes swapdims", "input dim0 dim1"),
        ("flatten", "input start_dim end_dim"),
        ("cat stack concat concatenate", "tensors dim"),
        ("chunk", "input chunks dim"),
        ("split", "input split_size dim"),
        ("einsum", "equation"),
        ("conv1d conv2d conv3d", "input weight bias stride padding dilation groups"),
        (
            "conv_transpose1d conv_transpose2d conv_transpose3d",
            "input weight bias stride padding output_padding groups dilation",
        ),
        ("avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d", "input kernel_size stride padding"),
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
        ("linalg_norm linalg_vector_norm", "input p dim keepdim"),
        ("where", "condition input other"),
        ("lstm gru rnn_tanh rnn_relu", "input hx weights bias num_layers p training bidirectional batch_first"),
    )
    for name in found.split()
}
