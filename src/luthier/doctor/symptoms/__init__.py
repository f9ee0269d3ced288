"""Every symptom and the rule that finds it. A rule reads vitals only; see `vitals` and `findings`."""

from __future__ import annotations

from collections.abc import Callable

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms.activations import dead_relu, saturated_activation
from luthier.doctor.symptoms.attention import softmax_wrong_dim
from luthier.doctor.symptoms.batches import batch_too_large, batch_too_small
from luthier.doctor.symptoms.comparing import loss_scale, shape_broadcast
from luthier.doctor.symptoms.constant import constant_output
from luthier.doctor.symptoms.curves import no_learning, oscillating_loss, plateau, too_few_epochs
from luthier.doctor.symptoms.data import data_leakage, unshuffled_data
from luthier.doctor.symptoms.fitness import wrong_loss
from luthier.doctor.symptoms.generalising import overfitting
from luthier.doctor.symptoms.gradients import exploding_gradient, vanishing_gradient
from luthier.doctor.symptoms.graph import missing_nonlinearity
from luthier.doctor.symptoms.growing import exploding_activation
from luthier.doctor.symptoms.heads import output_range_mismatch, softmax_before_ce
from luthier.doctor.symptoms.imbalance import class_imbalance
from luthier.doctor.symptoms.initial import bad_init, symmetric_init
from luthier.doctor.symptoms.inputs import nan_input, unnormalised_input
from luthier.doctor.symptoms.labels import label_misaligned, label_noise
from luthier.doctor.symptoms.loop import missing_zero_grad, optimizer_reset
from luthier.doctor.symptoms.mismatch import train_val_mismatch
from luthier.doctor.symptoms.misplaced import bad_activation
from luthier.doctor.symptoms.modes import small_batch_bn, train_eval_slip
from luthier.doctor.symptoms.numerics import nan_inf
from luthier.doctor.symptoms.precision import precision_loss
from luthier.doctor.symptoms.regularising import too_much_regularisation
from luthier.doctor.symptoms.schedules import grad_clip_too_small, input_bottleneck, lr_schedule_collapse
from luthier.doctor.symptoms.steps import lr_too_high, lr_too_low
from luthier.doctor.symptoms.targets import degenerate_labels, unscaled_target
from luthier.doctor.symptoms.trainable import disconnected_params, frozen_params, stale_optimizer, unregistered_params
from luthier.doctor.symptoms.underfit import underfitting
from luthier.doctor.vitals import Vitals

Rule = Callable[[Vitals], list[Finding] | NotSeen]

SYMPTOMS: dict[str, Rule] = {
    "nan_input": nan_input,
    "degenerate_labels": degenerate_labels,
    "label_misaligned": label_misaligned,
    "label_noise": label_noise,
    "class_imbalance": class_imbalance,
    "unshuffled_data": unshuffled_data,
    "data_leakage": data_leakage,
    "train_val_mismatch": train_val_mismatch,
    "unnormalised_input": unnormalised_input,
    "unscaled_target": unscaled_target,
    "wrong_loss": wrong_loss,
    "output_range_mismatch": output_range_mismatch,
    "softmax_before_ce": softmax_before_ce,
    "softmax_wrong_dim": softmax_wrong_dim,
    "shape_broadcast": shape_broadcast,
    "loss_scale": loss_scale,
    "missing_nonlinearity": missing_nonlinearity,
    "bad_activation": bad_activation,
    "bad_init": bad_init,
    "symmetric_init": symmetric_init,
    "disconnected_params": disconnected_params,
    "unregistered_params": unregistered_params,
    "frozen_params": frozen_params,
    "stale_optimizer": stale_optimizer,
    "optimizer_reset": optimizer_reset,
    "missing_zero_grad": missing_zero_grad,
    "train_eval_slip": train_eval_slip,
    "small_batch_bn": small_batch_bn,
    "lr_schedule_collapse": lr_schedule_collapse,
    "grad_clip_too_small": grad_clip_too_small,
    "input_bottleneck": input_bottleneck,
    "precision_loss": precision_loss,
    "lr_too_high": lr_too_high,
    "lr_too_low": lr_too_low,
    "batch_too_small": batch_too_small,
    "batch_too_large": batch_too_large,
    "too_much_regularisation": too_much_regularisation,
    "exploding_gradient": exploding_gradient,
    "vanishing_gradient": vanishing_gradient,
    "exploding_activation": exploding_activation,
    "dead_relu": dead_relu,
    "saturated_activation": saturated_activation,
    "constant_output": constant_output,
    "nan_inf": nan_inf,
    "overfitting": overfitting,
    "underfitting": underfitting,
    "oscillating_loss": oscillating_loss,
    "plateau": plateau,
    "no_learning": no_learning,
    "too_few_epochs": too_few_epochs,
}

# What shows within some ten steps: faults of the loop, the graph, the initial state and the numbers.
EARLY: tuple[str, ...] = (
    "nan_input",
    "nan_inf",
    "softmax_before_ce",
    "softmax_wrong_dim",
    "shape_broadcast",
    "wrong_loss",
    "output_range_mismatch",
    "missing_nonlinearity",
    "bad_activation",
    "loss_scale",
    "missing_zero_grad",
    "optimizer_reset",
    "stale_optimizer",
    "frozen_params",
    "disconnected_params",
    "unregistered_params",
    "train_eval_slip",
    "small_batch_bn",
    "bad_init",
    "symmetric_init",
    "unnormalised_input",
    "unscaled_target",
    "precision_loss",
    "grad_clip_too_small",
)
