"""The parameter side of a look: gradients, weights, updates around one optimizer step, without a wait for the device.

Everything stays on the device as scalars until `read`, which is called a step later and makes one transfer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.doctor.measure.units import row_spread

Numbers = list[float | None]


class Column:
    """One number per parameter, measured for some of them."""

    def __init__(self, size: int) -> None:
        self.values: list[Tensor | None] = [None] * size

    def put(self, positions: Sequence[int], scalars: Sequence[Tensor]) -> None:
        """Set the numbers of some parameters."""
        for position, scalar in zip(positions, scalars, strict=True):
            self.values[position] = scalar


class ParameterLook:
    """What one look, or one step with norms only, measures of the parameters.

    Args:
        parameters: all watched ones, in the order of the anatomy.
        full: also updates, zero fractions and the like.
        suspects: positions whose units began (nearly) identical: their row spread is followed.
    """

    def __init__(self, parameters: Sequence[Tensor], full: bool, suspects: frozenset[int] = frozenset()) -> None:
        self.parameters = parameters
        self.full = full
        self.suspects = suspects
        size = len(parameters)
        names: tuple[str, ...] = ("grad", "weight")
        if full:
            names += ("grad_before_clip", "grad_zero", "grad_nonfinite", "update", "unmoved", "row_spread")
        self.columns = {name: Column(size) for name in names}
        self.entries: list[list[Tensor | None]] = []
        self._before: dict[int, Tensor] = {}

    @torch.no_grad()
    def backward_begins(self, groups: Sequence[Sequence[int]]) -> None:
        """Note the gradients that are there before a backward pass, by optimizer (None: there are none)."""
        self.entries.append([_total(gradients(self.parameters, positions)[1]) for positions in groups])

    @torch.no_grad()
    def backward_ended(self, scale: Tensor | None = None) -> None:
        """Gradient norms before anything (clipping) changes them, without the factor of a GradScaler."""
        positions, grads = gradients(self.parameters, range(len(self.parameters)))
        sizes = norms(grads)
        if scale is not None:
            sizes = [size / scale.to(size.device) for size in sizes]
        self.columns["grad_before_clip"].put(positions, sizes)

    @torch.no_grad()
    def step_begins(self, positions: Sequence[int]) -> None:
        """Measure the parameters that an optimizer is about to step, and keep them to see what it changes."""
        weights = [self.parameters[position].detach() for position in positions]
        self.columns["weight"].put(positions, norms(weights))
        if self.full:
            self._before = {position: weight.clone() for position, weight in zip(positions, weights, strict=True)}
            near = [position for position in positions if position in self.suspects]
            self.columns["row_spread"].put(near, [row_spread(self.parameters[position]) for position in near])

    @torch.no_grad()
    def measure_gradients(self, positions: Sequence[int]) -> bool:
        """Measure the gradients as the optimizer uses them.

        Returns:
            Whether there is any.
        """
        found, grads = gradients(self.parameters, positions)
        self.columns["grad"].put(found, norms(grads))
        if self.full:
            self.columns["grad_zero"].put(found, [(grad == 0).float().mean() for grad in grads])
            self.columns["grad_nonfinite"].put(found, [(~grad.isfinite()).float().mean() for grad in grads])
        return bool(grads)

    @torch.no_grad()
    def step_ended(self) -> None:
        """Measure what the step changed."""
        if not self._before:
            return
        positions = list(self._before)
        new = [self.parameters[position].detach() for position in positions]
        changes = torch._foreach_sub(new, list(self._before.values()))
        self.columns["update"].put(positions, norms(changes))
        for position, change in zip(positions, changes, strict=True):
            grad = self.parameters[position].grad
            if grad is not None and not grad.is_sparse and grad.shape == change.shape:
                moved_by = grad != 0
                stuck = ((change == 0) & moved_by).sum() / moved_by.sum()
                self.columns["unmoved"].put([position], [stuck])
        self._before = {}

    def read(self) -> dict[str, Any]:
        """All columns as lists of numbers, `cleared` and `entry_grad`; one transfer."""
        names = list(self.columns)
        scalars = [value for name in names for value in self.columns[name].values if value is not None]
        entries = [entry for group in self.entries for entry in group if entry is not None]
        numbers = iter(transfer([*scalars, *entries]))
        row: dict[str, Any] = {
            name: [None if value is None else next(numbers) for value in self.columns[name].values] for name in names
        }
        if self.full:
            row.update(self._clearing(numbers))
        return row

    def _clearing(self, numbers: Any) -> dict[str, Any]:
        """Whether every optimizer's gradients were gone before some backward of this step."""
        entries = [[0.0 if entry is None else next(numbers) for entry in group] for group in self.entries]
        if not entries:
            return {"cleared": None, "entry_grad": None}
        by_optimizer = list(zip(*entries, strict=True))
        return {"cleared": all(min(values) == 0 for values in by_optimizer), "entry_grad": sum(entries[0])}


def gradients(parameters: Sequence[Tensor], positions: Sequence[int] | range) -> tuple[list[int], list[Tensor]]:
    """Positions that have a gradient, and these (the values of sparse ones)."""
    found = [(position, grad) for position in positions if (grad := parameters[position].grad) is not None]
    return [position for position, _ in found], [
        (grad._values() if grad.is_sparse else grad).detach() for _, grad in found
    ]


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """L2 norms, those of half precision in float32 (float16 would overflow)."""
    if not tensors:
        return []
    kinds = {tensor.dtype for tensor in tensors}
    if kinds <= {torch.float32, torch.float64} and all(tensor.numel() for tensor in tensors):
        return list(torch._foreach_norm(list(tensors), 2))
    return [torch.linalg.vector_norm(_real(tensor)) for tensor in tensors]


def transfer(scalars: Sequence[Tensor]) -> list[float]:
    """Scalars of any device and type as numbers, with one transfer; NaN where there is no data (meta)."""
    real = [scalar for scalar in scalars if not scalar.is_meta]
    if not real:
        return [float("nan")] * len(scalars)
    first = real[0]
    if any(each.dtype != first.dtype or each.device != first.device for each in real):
        real = [each.to(first.device, torch.float32) for each in real]
    values: list[float] = torch.stack(real).detach().float().tolist()
    if len(real) == len(scalars):
        return values
    numbers = iter(values)
    return [float("nan") if scalar.is_meta else next(numbers) for scalar in scalars]


def _real(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return torch.view_as_real(tensor)
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _total(grads: Sequence[Tensor]) -> Tensor | None:
    return torch.stack(norms(grads)).sum() if grads else None
