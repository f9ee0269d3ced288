"""Losses and targets of the latest steps, kept on the device until one transfer brings many of them at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.doctor.measure.journal import Journal
from luthier.doctor.measure.looking import transfer

EVERY = 256
ALL_TARGETS_UNTIL = 400
MOST_TARGETS = 65536
MOST_CLASSES = 256


class Recent:
    """The steps since the last transfer.

    Attributes:
        steps, losses: a row for each: step, lr, seconds of waiting and of work; and its loss, None while unknown.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[int, float, float, float]] = []
        self.losses: list[Any] = []
        self._targets: list[tuple[int, Tensor]] = []

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, step: int, lr: float, wait_s: float, busy_s: float) -> None:
        """A step ended; its loss may follow."""
        self.steps.append((step, lr, wait_s, busy_s))
        self.losses.append(None)

    def set_loss(self, loss: Any) -> None:
        """The loss of the last step."""
        if self.losses:
            self.losses[-1] = loss

    def add_targets(self, step: int, targets: Tensor) -> None:
        """The targets of a step (copied: the user may change them in place)."""
        if 0 < targets.numel() <= MOST_TARGETS:
            self._targets.append((step, targets.detach().clone()))

    def take(self) -> tuple[dict[str, list[Any]], list[dict[str, Any]]]:
        """Columns and rows `targets` of all steps so far, with a transfer for each; starts anew."""
        names, steps, losses, targets = ("step", "lr", "wait_s", "busy_s"), self.steps, self.losses, self._targets
        self.steps, self.losses, self._targets = [], [], []
        columns = {name: list(column) for name, column in zip(names, zip(*steps, strict=True), strict=False)}
        return {"loss": _numbers(losses), **(columns or {name: [] for name in names})}, _target_rows(targets)

    def flush(self, journal: Journal) -> None:
        """Write them to the journal."""
        columns, targets = self.take()
        journal.add_steps(columns)
        for row in targets:
            journal.add(row)


def _numbers(losses: list[Any]) -> list[float]:
    try:
        together = torch.stack(losses)
        if together.dim() == 1 and not together.is_meta:
            return together.float().tolist()
    except (TypeError, RuntimeError):
        pass  # numbers among them, or tensors of several shapes or devices
    tensors = [loss.mean() if loss.dim() else loss for loss in losses if isinstance(loss, Tensor)]
    values = iter(transfer(tensors))
    if len(tensors) == len(losses):
        return list(values)
    unknown = float("nan")
    return [next(values) if isinstance(loss, Tensor) else unknown if loss is None else float(loss) for loss in losses]


def _target_rows(targets: list[tuple[int, Tensor]]) -> list[dict[str, Any]]:
    if not targets:
        return []
    if len({str(values.device) for _, values in targets}) == 1 and targets[0][1].device.type != "cpu":
        together = torch.cat([values.flatten().double() for _, values in targets]).cpu()
        sizes = [values.numel() for _, values in targets]
        targets = [
            (step, part.view(values.shape).to(values.dtype))
            for (step, values), part in zip(targets, torch.split(together, sizes), strict=True)
        ]
    return [_target_row(step, values) for step, values in targets]


def _target_row(step: int, values: Tensor) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": "targets", "step": step, "n": len(values) if values.dim() else 1}
    if values.is_floating_point():
        flat = values.double()
        row["mean"], row["std"] = float(flat.mean()), float(flat.std(correction=0))
        if values.dim() == 1 or values.shape[-1] == 1:
            whole = flat.flatten()
            if bool((whole == whole.round()).all()):
                row["counts"] = _counts(whole.long())
        return row
    if not values.is_complex():
        row["counts"] = _counts(values.long().flatten())
    return row


def _counts(values: Tensor) -> dict[str, int] | None:
    found, counts = torch.unique(values, return_counts=True)
    if len(found) > MOST_CLASSES:
        return None
    return {str(int(value)): int(count) for value, count in zip(found, counts, strict=True)}
