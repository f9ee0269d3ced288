"""The organs of a check-up: each reads the short trainings and says how it stands."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from luthier.data.batches import in_memory
from luthier.data.trees import named_leaves
from luthier.doctor.checkup.card import Organ
from luthier.doctor.checkup.trials import Trials
from luthier.doctor.findings import Finding
from luthier.doctor.symptoms.baselines import baseline
from luthier.errors import NonFiniteLoss
from luthier.fitting import total_steps

MODEL = (
    "missing_nonlinearity",
    "bad_activation",
    "softmax_wrong_dim",
    "unregistered_params",
    "small_batch_bn",
    "precision_loss",
)
STATE = (
    "bad_init",
    "symmetric_init",
    "dead_relu",
    "saturated_activation",
    "exploding_activation",
    "constant_output",
    "nan_inf",
)
MOTION = ("lr_too_high", "nan_inf", "dead_relu", "exploding_activation", "exploding_gradient", "saturated_activation")
LOSS = ("wrong_loss", "softmax_before_ce", "output_range_mismatch", "shape_broadcast", "loss_scale")
GRADIENTS = ("disconnected_params", "frozen_params", "vanishing_gradient", "exploding_gradient", "grad_clip_too_small")
INPUTS = ("nan_input", "unnormalised_input", "unshuffled_data")
TARGETS = ("unscaled_target", "class_imbalance", "degenerate_labels", "label_misaligned", "label_noise")
SPLIT = ("data_leakage", "train_val_mismatch")


def of_findings(
    name: str, symptoms: tuple[str, ...], fine: Callable[[Trials], str], until: float = math.inf
) -> Callable[[Trials], Organ]:
    """An organ that a group of rules looks at, on the first steps under the recipe.

    Args:
        name: of the organ.
        symptoms: of the group.
        fine: the words when nothing was found.
        until: only findings that began by this step.
    """

    def organ(trials: Trials) -> Organ:
        diagnosis = trials.diagnosis
        serious = [item for item in diagnosis.findings if item.symptom in symptoms and item.severity != "info"]
        found = [item for item in serious if (item.onset or 0) <= until]
        if found:
            return _of_finding(name, found[0])
        if all(symptom in diagnosis.not_seen for symptom in symptoms):
            return Organ(name, "could not look", diagnosis.not_seen[symptoms[0]])
        return Organ(name, "green", fine(trials))

    return organ


def _of_finding(name: str, finding: Finding) -> Organ:
    remedy = finding.remedies[0].text if finding.remedies else ""
    return Organ(
        name, "red" if finding.severity == "critical" else "amber", f"{finding.symptom}: {finding.cause}", remedy
    )


def start(trials: Trials) -> Organ:
    """Loss before any training against the loss of a constant answer (ln K for K equally frequent classes)."""
    organ = of_findings("start", STATE, lambda _: "", until=1)(trials)
    vitals = trials.first[0]
    constant = baseline(vitals)
    first = next((loss for loss in vitals.steps.loss if math.isfinite(loss)), None)
    if organ.state not in ("green", "could not look") or first is None or constant is None or constant.assumed:
        return organ if organ.reason else Organ("start", "green", "activations are in range")
    told = f"loss at initialisation {first:.3g}, of a constant answer {constant.value:.3g}"
    if first > 3 * constant.value:
        return Organ(
            "start",
            "amber",
            told,
            "scale the last layer down (zero_last=True), or check the scale of inputs and targets",
        )
    return Organ("start", "green", told)


def split(trials: Trials) -> Organ:
    """Rows of the validation part that stand in the training part, and whether both look alike."""
    organ = of_findings("split", SPLIT, lambda _: "")(trials)
    if organ.state not in ("green", "could not look"):
        return organ
    train, val = _keys(trials.task.train), _keys(trials.task.val)
    if train is None or val is None:
        return Organ("split", "could not look", "only data in memory can be searched for duplicates")
    twice = int(torch.isin(val, train).sum())
    share = twice / len(val)
    told = f"{twice:,} of {len(val):,} validation examples stand in the training part too"
    if share > 0.005 and twice > 1:
        return Organ("split", "red" if share > 0.05 else "amber", told, "remove duplicates before splitting")
    return Organ("split", "green", told)


def one_batch(trials: Trials) -> Organ:
    """A net that cannot learn a single batch by heart has a fault that no amount of data cures."""
    try:
        outcome = trials.one_batch
    except NonFiniteLoss as error:
        return Organ("one batch", "red", f"training on one batch broke off: {error}", "see 'learning rate'")
    kept = outcome.end / outcome.start if outcome.start > 0 else 0.0
    told = f"loss {outcome.start:.3g} -> {outcome.end:.3g} in {outcome.steps} steps on one batch"
    if kept > 0.7:
        remedy = "find what stops learning (model, loss, labels) before adding data or training time"
        return Organ("one batch", "red", told, remedy)
    if kept > 0.25:
        return Organ("one batch", "amber", told, "try a higher lr, a wider network or another optimizer")
    return Organ("one batch", "green", told)


def labels(trials: Trials) -> Organ:
    """Shuffled labels must hurt on validation data; else the net learns nothing, or the answer leaks."""
    true, shuffled = trials.learning(shuffled=False), trials.learning(shuffled=True)
    told = f"validation loss {true.val_loss:.3g} with true labels, {shuffled.val_loss:.3g} with shuffled ones"
    told += f" ({true.steps} steps)"
    if true.val_loss < 0.97 * shuffled.val_loss:
        return Organ("labels matter", "green", told)
    remedy = "check that inputs and labels belong together and that the inputs tell anything about them"
    return Organ("labels matter", "amber", told, remedy)


def learning_rate(trials: Trials) -> Organ:
    """Range test (Smith 2017) against the recipe's lr."""
    found, lr = trials.lr_range, trials.recipe.lr
    if found.suggestion is None:
        return Organ("learning rate", "red", "the loss never fell between lr 1e-6 and 10", "check data and loss first")
    told = f"lr {lr:.2g}; the range test suggests {found.suggestion:.1e}"
    if found.diverges_at is not None:
        told += f", diverges at {found.diverges_at:.1e}"
        if lr >= found.diverges_at:
            return Organ("learning rate", "red", told, f"lr={found.suggestion:.1e}")
    if lr < found.suggestion / 100:
        return Organ("learning rate", "amber", told, f"lr={found.suggestion:.1e}")
    return Organ("learning rate", "green", told)


def speed(trials: Trials) -> Organ:
    """Throughput of input against compute, and how long the whole training will take."""
    vitals, step_s = trials.first
    waits = [(w, b) for w, b in zip(vitals.steps.wait_s, vitals.steps.busy_s, strict=True) if b > 0]
    whole_s = step_s * total_steps(trials.task, trials.recipe)
    told = f"{trials.recipe.batch_size / step_s:,.0f} examples/s, about {_duration(whole_s)} for the whole training"
    if not waits:
        return Organ("speed", "green", told)
    share = sum(w for w, _ in waits) / max(1e-9, sum(w + b for w, b in waits))
    told += f", {share:.0%} of the time waiting for data"
    if share > 0.6 and step_s > 2e-3:
        return Organ("speed", "amber", told, "load in parallel (DataLoader num_workers) or hold the data in memory")
    return Organ("speed", "green", told)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _keys(data: object) -> Tensor | None:
    """One number per example of data in memory, equal for equal inputs."""
    tree = in_memory(data)
    if tree is None:
        return None
    inputs = tree[0] if isinstance(tree, (tuple, list)) and len(tree) == 2 else tree
    keys: Tensor | None = None
    for position, (_, leaf) in enumerate(named_leaves(inputs, "")):
        rows = (
            torch.as_tensor(leaf).flatten(1).double()
            if torch.as_tensor(leaf).dim() > 1
            else torch.as_tensor(leaf)[:, None].double()
        )
        generator = torch.Generator().manual_seed(position)
        weights = torch.rand(rows.shape[1], generator=generator, dtype=torch.float64)
        part = torch.cat([chunk @ weights for chunk in torch.split(rows, 4096)])
        keys = part if keys is None else keys + part
    return keys


def _parameters(trials: Trials) -> str:
    anatomy = trials.first[0].anatomy
    n = 0 if anatomy is None else sum(p.numel for p in anatomy.parameters)
    name = "" if anatomy is None else ", ".join(anatomy.model_types)
    return f"{name}, {n:,} parameters"


def _gradients(trials: Trials) -> str:
    look = trials.first[0].looks[0]
    reached = sum(grad is not None for grad in look.grad)
    return f"gradient reaches {reached} of {len(look.grad)} parameters"


def _first_steps(trials: Trials) -> str:
    losses = [loss for loss in trials.first[0].steps.loss if math.isfinite(loss)]
    return f"{len(losses)} steps, loss {losses[0]:.3g} -> {losses[-1]:.3g}" if losses else "stable"


def _inputs(trials: Trials) -> str:
    data = trials.first[0].data.get("inputs") or {}
    return f"finite, root mean square {data['rms']:.3g}" if data.get("rms") is not None else "finite"


def _targets(trials: Trials) -> str:
    shares = (trials.first[0].data.get("targets") or {}).get("shares")
    if shares:
        return f"{len(shares)} classes, shares {min(shares.values()):.1%} to {max(shares.values()):.1%}"
    return "in range"


ORGANS: dict[str, Callable[[Trials], Organ]] = {
    "model": of_findings("model", MODEL, _parameters),
    "loss": of_findings("loss", LOSS, lambda trials: f"{trials.task.loss.name} fits outputs and targets"),
    "start": start,
    "gradients": of_findings("gradients", GRADIENTS, _gradients),
    "first steps": of_findings("first steps", MOTION, _first_steps),
    "inputs": of_findings("inputs", INPUTS, _inputs),
    "targets": of_findings("targets", TARGETS, _targets),
    "split": split,
    "learning rate": learning_rate,
    "one batch": one_batch,
    "labels matter": labels,
    "speed": speed,
}
