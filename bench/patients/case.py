"""What a patient is: an ordinary PyTorch program with one known fault (or none).

Each half is a package with a tuple of all its cases: `patients.tuning.CASES` and `patients.scoring.CASES` (imports are
rooted at `bench/`). Names are unique over both halves. The programs run in worker processes, which find them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from torch import nn
from torch.optim import Optimizer

Family = Literal["mlp", "cnn", "rnn", "attention"]
Spelling = Literal["modules", "functional"]


class Watching(Protocol):
    """What `watch(...)` gives back: the part of `luthier.watch` that programs use."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...

    def step(self, loss: Any = None, *, inputs: Any = None, targets: Any = None) -> None: ...

    def metrics(self, **values: float) -> None: ...

    def close(self) -> None: ...


class Watch(Protocol):
    """`luthier.watch`, or the stub that bare timing uses."""

    def __call__(
        self,
        model: nn.Module | Iterable[nn.Module],
        optimizer: Optimizer | Iterable[Optimizer],
        loss_fn: Callable[..., Any] | None = None,
    ) -> Watching: ...


@dataclass(frozen=True)
class Case:
    """One patient.

    Attributes:
        name: unique, in lower case with dashes: host, dash, what was done to it.
        host: the healthy program that it comes from.
        symptom: id of the root that the doctor must name first; None for a healthy program.
        program: the training, called as `program(watch, seed)`. It seeds torch, builds data, model and optimizer, calls
            `w = watch(model, optimizer, loss_fn)` (or `with watch(...) as w:`), loops, calls `w.step(loss, inputs=x,
            targets=y)` after each optimizer step and `w.metrics(train_loss=..., val_loss=...)` after evaluations.
            At most about 2 s on one core.
        family: of the model.
        spelling: "functional" when activations, dropout and losses are `F.*` calls.
        accepts: other ids that name the same root truthfully; each with a comment why.
    """

    name: str
    host: str
    symptom: str | None
    program: Callable[[Watch, int], None]
    family: Family
    spelling: Spelling = "modules"
    accepts: tuple[str, ...] = ()
