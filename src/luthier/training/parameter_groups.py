"""Sorting a model's parameters into the groups of an optimizer: decayed, exempt, and Muon's hidden matrices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from luthier.errors import LuthierError

Group = dict[str, Any]
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def parameter_groups(
    model: nn.Module, weight_decay: float, *, hooked: bool, everything: bool, muon: bool
) -> list[Group]:
    """Parameter groups: the decayed before the exempt, Muon's before AdamW's; the same whatever the decay.

    Biases, the parameters of normalisation layers, and parameters of fewer than 2 dimensions are exempt. Embeddings
    are decayed, as in the recipes of BERT and GPT-2.

    Args:
        model: its trainable parameters are taken, shared ones once.
        weight_decay: strength of the decay of the decayed groups.
        hooked: whether a step hook decays (`hooked_decay`) and not the optimizer (`weight_decay`).
        everything: whether nothing is exempt.
        muon: whether groups are split by `kind` as well: "muon" for hidden matrices, "adamw" for the rest.

    Returns:
        Groups with `params`, `lr_factor` (1), `decayed` (whether weight decay and L1 act), the two decays.
    """
    exempt = set() if everything else _exempt(model)
    hidden = _hidden_matrices(model) if muon else set()
    members: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for p in _trainable(model):
        members.setdefault((id(p) in hidden, id(p) not in exempt), []).append(p)
    groups = []
    for is_hidden, decayed in sorted(members, reverse=True):
        decay = float(weight_decay) if decayed else 0.0
        group: Group = {"params": members[is_hidden, decayed], "lr_factor": 1.0, "decayed": decayed}
        group |= {"weight_decay": 0.0 if hooked else decay, "hooked_decay": decay if hooked else 0.0}
        groups.append(group | ({"kind": "muon" if is_hidden else "adamw"} if muon else {}))
    return groups


def _exempt(model: nn.Module) -> set[int]:
    """Identities of the parameters that weight decay leaves alone."""
    exempt = {id(p) for m in model.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    for name, p in model.named_parameters():
        if p.ndim < 2 or name.rpartition(".")[2].startswith("bias"):
            exempt.add(id(p))
    return exempt


def _trainable(model: nn.Module) -> Iterator[nn.Parameter]:
    some = False
    for name, p in model.named_parameters():
        if is_lazy(p):
            raise LuthierError(f"the parameter {name!r} has no shape yet: pass one batch through the model first")
        if p.requires_grad:
            some = True
            yield p
    if not some:
        raise LuthierError("the model has no parameter with requires_grad=True: unfreeze one, or build another model")


def _hidden_matrices(model: nn.Module) -> set[int]:
    """Identities of the 2-D weights that Muon takes: no embeddings, no norms, not the last matrix."""
    embeddings = {
        id(p) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for p in m.parameters()
    }
    kept_out = embeddings | _exempt(model)
    matrices = [p for p in model.parameters() if p.ndim == 2 and id(p) not in kept_out]
    hidden = {id(p) for p in matrices[:-1] if p.requires_grad}
    if not hidden:
        raise LuthierError(
            f"muon needs a trainable hidden 2-D weight, got {len(matrices)} 2-D weight(s) "
            "of which the last is the output layer: use adamw for this model"
        )
    return hidden
