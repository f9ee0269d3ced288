"""Targets as columns of numbers, whatever they were given as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOST_CLASSES = 64
MOST_COLUMNS = 16


@dataclass
class Labels:
    """Targets of a sample.

    Attributes:
        kind: "class", "number", "vector" (several numbers) or "sequence" (whole numbers, several an example).
        columns: (n, m): indicators of the classes, or standardised numbers.
        codes: (n,) position of the class; None unless classes. values: the classes in order of the codes.
        summary_only: not for learners (sequences: what they mean depends on the place).
        constant: share of the columns as given that never change.
    """

    kind: str
    columns: Tensor
    codes: Tensor | None = None
    values: tuple[float, ...] = ()
    summary_only: bool = False
    constant: float = 0.0

    def summary(self) -> dict[str, Any]:
        """kind; constant: share of the columns that never change; for classes shares: label -> share."""
        row: dict[str, Any] = {"kind": self.kind, "constant": self.constant}
        if self.codes is not None:
            shares = (torch.bincount(self.codes).double() / len(self.codes)).tolist()
            row["shares"] = {f"{value:g}": share for value, share in zip(self.values, shares, strict=True)}
        return row


def labels_of(targets: Tensor | None) -> Labels | None:
    """Read targets of shape (n,), (n, 1), (n, k) or more; None when there are none or too few differ.

    Whole numbers of at most 64 different values are classes, one-hot rows too; other numbers are standardised; more
    than 16 columns are mixed down to 16 by a fixed random projection.
    """
    if targets is None or not len(targets):
        return None
    values = (
        torch.nan_to_num(targets.double(), nan=0.0, posinf=0.0, neginf=0.0).flatten(1) if targets.dim() > 1 else None
    )
    if values is None:
        values = torch.nan_to_num(targets.double(), nan=0.0, posinf=0.0, neginf=0.0)[:, None]
    whole = bool((values == values.round()).all())
    if values.shape[1] == 1:
        return (
            _classes(values[:, 0])
            if whole and len(torch.unique(values)) <= MOST_CLASSES
            else _numbers(values, "number")
        )
    if whole and _one_hot(values):
        return _classes(values.argmax(1).double())
    if not targets.is_floating_point() and bool((values > 1).any()):
        return Labels("sequence", _numbers(values, "vector").columns, summary_only=True)
    return _numbers(values, "vector")


def _one_hot(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 1)).all()) and bool((values.sum(1) == 1).all())


def _classes(values: Tensor) -> Labels:
    names, codes = torch.unique(values, return_inverse=True)
    columns = torch.nn.functional.one_hot(codes, len(names)).float()
    return Labels("class", columns, codes, tuple(names.tolist()))


def _numbers(values: Tensor, kind: str) -> Labels:
    std = values.std(0, correction=0)
    constant = float((std == 0).double().mean())
    scaled = (values - values.mean(0)) / torch.where(std > 0, std, 1.0)
    if scaled.shape[1] > MOST_COLUMNS:
        generator = torch.Generator().manual_seed(3)
        mix = torch.randn(scaled.shape[1], MOST_COLUMNS, generator=generator, dtype=torch.double)
        scaled = scaled @ mix / scaled.shape[1] ** 0.5
    return Labels(kind, scaled.float(), constant=constant)
