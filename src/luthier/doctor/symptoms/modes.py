"""Training and evaluation mode: dropout and batch norm that run in the wrong one, or learn from too few examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms.facts import baseline, loss_curve, metric, side_of
from luthier.doctor.symptoms.harm import FITTED
from luthier.doctor.symptoms.paths import graphs
from luthier.doctor.vitals import Evaluation, Look, Node, Vitals

_BATCH_NORMS = ("BatchNorm", "SyncBatchNorm")


def train_eval_slip(vitals: Vitals) -> list[Finding] | NotSeen:
    """Dropout or batch norm run in the wrong mode: eval while training, or train while evaluating."""
    if vitals.anatomy is None or not vitals.looks:
        return NotSeen("no training step was looked at: train while watching")
    parts = _mode_parts(vitals)
    found = [*_trains_in_eval(vitals, parts), *_evaluates_in_train(vitals, parts), *_always_random(vitals)]
    found = found or _answers_otherwise(vitals, parts)
    order = {"critical": 0, "warning": 1, "info": 2}
    return sorted(found, key=lambda item: (order[item.severity], -item.certainty))[:1]


def _mode_parts(vitals: Vitals) -> list[str]:
    """Kinds of modules whose behaviour depends on the mode: dropout that drops, batch norm."""
    if vitals.anatomy is None:
        return []
    settings = vitals.anatomy.module_settings
    found = []
    for name, kind in vitals.anatomy.modules.items():
        given = settings.get(name, {})
        if "Dropout" in kind and given.get("p", 0.5):
            found.append("dropout")
        elif any(item in kind for item in _BATCH_NORMS):
            found.append("batch norm")
        elif kind in ("LSTM", "GRU", "RNN") and given.get("dropout") and given.get("num_layers", 2) > 1:
            found.append("dropout")
    functional = [
        node for graph in graphs(vitals) for node in graph.nodes.values() if node.op in ("dropout", "batch_norm")
    ]
    found += ["dropout" if node.op == "dropout" else "batch norm" for node in functional]
    return sorted(set(found))


def _slip(cause: str, evidence: str, onset: int, severity: str, certainty: float, kind: str) -> list[Finding]:
    return [
        Finding(
            symptom="train_eval_slip",
            severity="critical" if severity == "critical" else "warning" if severity == "warning" else "info",
            cause=cause,
            evidence=(evidence,),
            onset=onset,
            certainty=certainty,
            numbers={"kind": kind},
        )
    ]


def _trains_in_eval(vitals: Vitals, parts: Sequence[str]) -> list[Finding]:
    looks = [look for look in vitals.looks if look.training is not None and look.n_backward > 0]
    slipped = [look for look in looks if look.training is False]
    if len(slipped) >= 3 and len(slipped) >= 0.2 * len(looks):
        if not parts:
            return []
        since = "from the first step on" if slipped[0] is looks[0] else f"since step {slipped[0].step}"
        cause = f"the model is trained in eval mode {since}: its {' and '.join(parts)} do not do their work."
        text = (
            f"{len(slipped)} of {len(looks)} looked-at training steps ran in eval mode, the first at {slipped[0].step}."
        )
        return _slip(cause, text, slipped[0].step, "critical" if "batch norm" in parts else "warning", 1.0, "train")
    return _parts_in_eval(vitals, looks)


def _parts_in_eval(vitals: Vitals, looks: Sequence[Look]) -> list[Finding]:
    """Some dropout or norm modules stay in eval mode; on purpose when their layers hold trained weights."""
    slipped = [look for look in looks if look.training and look.eval_modules]
    if len(slipped) < 3 or len(slipped) < 0.2 * len(looks) or vitals.anatomy is None:
        return []
    names = [name for name in slipped[0].eval_modules if not _is_frozen(vitals, name)]
    if not names:
        return []
    first = vitals.anatomies[0].parameters
    trained = [item for item in first if len(item.shape) >= 2 and item.initial == "other" and item.numel >= 32]
    on_purpose = slipped[0] is looks[0] and len(trained) * 2 > sum(len(item.shape) >= 2 for item in first)
    cause = f"{len(names)} dropout or norm modules are in eval mode while the model trains."
    text = f"{', '.join(names[:4])} since step {slipped[0].step}."
    return _slip(cause, text, slipped[0].step, "info" if on_purpose else "warning", 0.9, "parts")


def _is_frozen(vitals: Vitals, module: str) -> bool:
    """All weights of a module are frozen; of one that has none those of the module that holds it."""
    parameters = vitals.anatomies[0].parameters
    for name in (module, module.rpartition(".")[0]):
        held = [item for item in parameters if name and item.name.startswith(f"{name}.")]
        if held:
            return not any(item.requires_grad for item in held)
    return False


def _evaluates_in_train(vitals: Vitals, parts: Sequence[str]) -> list[Finding]:
    rows = _evaluations(vitals)
    slipped = [row for row in rows if row.training and _matters(row, parts)]
    if len(slipped) < 2 and not (slipped and slipped[0].forwards >= 2):
        return []
    if len(slipped) * 2 <= len(rows):
        return []
    harm = [text for text, seen in _harms(slipped) if seen]
    cause = (
        f"the model is evaluated in training mode: {' and '.join(harm or parts)}, so that the scores are not those of "
    )
    text = f"{len(slipped)} of {len(rows)} evaluations ran in training mode, the first before step {slipped[0].step}."
    return _slip(cause + "the trained model.", text, slipped[0].step, "warning", 0.95 if harm else 0.8, "eval")


def _evaluations(vitals: Vitals) -> list[Evaluation]:
    """Rows that are evaluations: with metrics told at the same step, or (without metrics) of several batches."""
    told = {row.step for row in vitals.metrics if any(side_of(name) == "val" for name in row.values)}
    rows = [row for row in vitals.evaluations if row.step > 0 and row.forwards > 0]
    if not told:
        return [row for row in rows if row.forwards >= 2 or not row.grad]
    # a program that also runs the model after every step (for the training accuracy) hides which forwards are meant
    elsewhere = sum(row.training for row in rows if row.step not in told)
    in_eval = {row.step for row in rows if not row.training}
    found = [row for row in rows if row.step in told and not (row.training and row.step in in_eval)]
    return found if elsewhere < len(found) else [row for row in found if not row.training]


def _matters(row: Evaluation, parts: Sequence[str]) -> bool:
    """Something in the model behaves otherwise in training mode."""
    if row.random is None and row.norm_statistics_moved is None:
        return bool(parts)
    return bool(parts) and bool(row.random or row.norm_statistics_moved or row.stochastic)


def _harms(rows: Sequence[Evaluation]) -> list[tuple[str, bool]]:
    moved = any(row.norm_statistics_moved or "batch_norm" in row.stochastic for row in rows)
    dropped = any("dropout" in row.stochastic or row.random for row in rows)
    return [("dropout drops units", dropped), ("batch norm learns from the evaluated data", moved)]


def _always_random(vitals: Vitals) -> list[Finding]:
    """Functional dropout (or batch norm) that does not know of the mode."""
    rows = [row for row in vitals.evaluations if not row.training]
    seen = [row for row in rows if row.stochastic]
    if not seen:
        return []
    what = sorted({item for row in seen for item in row.stochastic})
    if what == ["batch_norm"] and _untracked(vitals):
        return []
    cause = (
        f"{' and '.join(what)} works in training mode although the model is in eval mode: pass training=self.training."
    )
    text = f"seen in {len(seen)} of {len(rows)} evaluations, the first before step {seen[0].step}."
    return _slip(cause, text, seen[0].step, "warning", 1.0, "functional")


def _answers_otherwise(vitals: Vitals, parts: Sequence[str]) -> list[Finding]:
    """The same training data are fitted in training mode and lost in evaluation mode: running statistics are wrong."""
    lost = lost_in_evaluation(vitals)
    if lost is None or "batch norm" not in parts or any(row.training for row in _evaluations(vitals)):
        return []
    trained, evaluated = lost
    cause = (
        f"in evaluation mode the training data cost {evaluated:.3g}, in training mode {trained:.3g}: the running "
        "statistics of batch norm are not those of what its layers receive."
    )
    text = "no evaluation of the last three got below the loss of a constant answer."
    return _slip(cause, text, vitals.metrics[-1].step, "warning", 0.65, "apart")


def lost_in_evaluation(vitals: Vitals) -> tuple[float, float] | None:
    """Loss of the steps and of the training data in evaluation, where only the steps' has left a constant answer."""
    curve, base, told = loss_curve(vitals), baseline(vitals), metric(vitals, "train", "loss")[-3:]
    if curve is None or base is None or base.assumed or len(told) < 3:
        return None
    evaluated = min(value for _, value in told)
    apart = base.progress(curve.end) > FITTED and evaluated > base.value
    return (curve.end, evaluated) if apart else None


def _untracked(vitals: Vitals) -> bool:
    """Batch norm modules that keep no running statistics use those of the batch at any time, on purpose."""
    settings = vitals.anatomy.module_settings if vitals.anatomy is not None else {}
    return any(item.get("track_running_stats") is False for item in settings.values())


def small_batch_bn(vitals: Vitals) -> list[Finding] | NotSeen:
    """Batch norm over so few examples that its statistics are noise."""
    looks = [look for look in vitals.looks if look.n_backward > 0 and look.nodes]
    if not looks:
        return NotSeen("no operations were seen: watch the model whose forward runs in the training loop")
    sizes = [size for look in looks if (size := _smallest(look)) is not None]
    if not sizes:
        return []
    examples, values, name = sorted(sizes)[len(sizes) // 2]
    if examples > 4:
        return []
    noisy = values <= 1024 or examples <= 2
    noise = 1 / math.sqrt(max(values, 1))
    return [
        Finding(
            symptom="small_batch_bn",
            severity="critical" if values <= 4 else "warning" if noisy else "info",
            cause=f"batch norm takes its statistics from {examples} examples ({values} values a channel in {name}): "
            "they change from batch to batch, and differ from those used in evaluation.",
            evidence=(f"the mean of {values} values is off by about {noise:.0%} of a standard deviation.",),
            where=(name,),
            onset=looks[0].step,
            certainty=0.95 if values <= 16 else 0.8,
            numbers={"examples": examples, "values": values},
            source="Wu and He 2018, Group Normalization, figure 1: error grows below 8 examples.",
        )
    ]


def _smallest(look: Look) -> tuple[int, int, str] | None:
    """Examples, values a channel, and place of the batch norm with the fewest values."""
    found = [size for node in look.nodes if (size := _norm_size(node)) is not None]
    return min(found, default=None)


def _norm_size(node: Node) -> tuple[int, int, str] | None:
    if node.op != "batch_norm" or not _in_training(node.attrs) or len(node.shape) < 2 or not node.shape[1]:
        return None
    return node.shape[0], math.prod(node.shape) // node.shape[1], node.module or "batch_norm"


def _in_training(attrs: Mapping[str, Any]) -> bool:
    return attrs.get("training") is True
