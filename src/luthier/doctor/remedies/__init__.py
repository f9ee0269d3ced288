"""What to do about each symptom: patches of a Recipe where a field can cure it, else corrected lines of code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from luthier.doctor.findings import Finding, Remedy
from luthier.doctor.remedies import curves, data, flow, loops, losses
from luthier.errors import unknown

REMEDIES: dict[str, Callable[[Finding], tuple[Remedy, ...]]] = {
    "vanishing_gradient": flow.vanishing_gradient,
    "exploding_gradient": flow.exploding_gradient,
    "exploding_activation": flow.exploding_activation,
    "nan_inf": flow.nan_inf,
    "nan_input": data.nan_input,
    "dead_relu": flow.dead_relu,
    "saturated_activation": flow.saturated_activation,
    "bad_activation": flow.bad_activation,
    "missing_nonlinearity": flow.missing_nonlinearity,
    "overfitting": curves.overfitting,
    "underfitting": curves.underfitting,
    "no_learning": curves.no_learning,
    "plateau": curves.plateau,
    "oscillating_loss": curves.oscillating_loss,
    "constant_output": flow.constant_output,
    "lr_too_high": curves.lr_too_high,
    "lr_too_low": curves.lr_too_low,
    "too_few_epochs": curves.too_few_epochs,
    "batch_too_small": curves.batch_too_small,
    "batch_too_large": curves.batch_too_large,
    "bad_init": flow.bad_init,
    "symmetric_init": flow.symmetric_init,
    "unnormalised_input": data.unnormalised_input,
    "unscaled_target": data.unscaled_target,
    "output_range_mismatch": losses.output_range_mismatch,
    "wrong_loss": losses.wrong_loss,
    "softmax_before_ce": losses.softmax_before_ce,
    "softmax_wrong_dim": losses.softmax_wrong_dim,
    "shape_broadcast": losses.shape_broadcast,
    "loss_scale": losses.loss_scale,
    "missing_zero_grad": loops.missing_zero_grad,
    "optimizer_reset": loops.optimizer_reset,
    "stale_optimizer": loops.stale_optimizer,
    "lr_schedule_collapse": curves.lr_schedule_collapse,
    "grad_clip_too_small": curves.grad_clip_too_small,
    "frozen_params": loops.frozen_params,
    "disconnected_params": loops.disconnected_params,
    "unregistered_params": loops.unregistered_params,
    "unshuffled_data": data.unshuffled_data,
    "class_imbalance": data.class_imbalance,
    "label_noise": data.label_noise,
    "label_misaligned": data.label_misaligned,
    "degenerate_labels": data.degenerate_labels,
    "data_leakage": data.data_leakage,
    "train_val_mismatch": data.train_val_mismatch,
    "train_eval_slip": loops.train_eval_slip,
    "small_batch_bn": curves.small_batch_bn,
    "too_much_regularisation": curves.too_much_regularisation,
    "input_bottleneck": loops.input_bottleneck,
    "precision_loss": flow.precision_loss,
}


def prescribe(finding: Finding) -> Finding:
    """The finding with its remedies, best first; those that a rule has given itself stay in front.

    Raises:
        LuthierError: a symptom without an entry in `REMEDIES`.
    """
    if finding.symptom not in REMEDIES:
        raise unknown("symptom", finding.symptom, REMEDIES)
    remedies = (*finding.remedies, *REMEDIES[finding.symptom](finding))
    return replace(finding, remedies=tuple(_different(remedies)))


def _different(remedies: Iterable[Remedy]) -> Iterator[Remedy]:
    """The remedies without those whose patch does the same as an earlier one's."""
    seen: list[object] = []
    for remedy in remedies:
        does = remedy.text if remedy.patch is None else remedy.patch.operations
        if does not in seen:
            seen.append(does)
            yield remedy
