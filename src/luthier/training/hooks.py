"""Hooks: how everything beside the training itself (console, logs, the doctor) listens to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from luthier.training.run import Run


class Hook:
    """Seven events; a hook overrides those it needs. Hooks watch; they do not change the training."""

    def start(self, run: Run) -> None:
        """Before the first step of this process (also after resuming)."""

    def epoch_start(self, run: Run) -> None:
        """Before the first batch of an epoch (or of what is left of it)."""

    def step_start(self, run: Run, batch: Any) -> None:
        """A batch is ready on the device; forward pass next."""

    def after_backward(self, run: Run, loss: Tensor) -> None:
        """Gradients are complete, not yet clipped; the optimizer step is next."""

    def step_end(self, run: Run) -> None:
        """Weights are updated; `run.step` counts this step."""

    def evaluated(self, run: Run, row: dict[str, Any]) -> None:
        """A row of metrics is complete."""

    def end(self, run: Run, state: str, reason: str) -> None:
        """The training ended: finished, paused, interrupted or failed. Always called after `start`."""


class Hooks:
    """Calls each event on the hooks that override it, so that an event nobody needs costs nothing."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self.start = _listeners(hooks, "start")
        self.epoch_start = _listeners(hooks, "epoch_start")
        self.step_start = _listeners(hooks, "step_start")
        self.after_backward = _listeners(hooks, "after_backward")
        self.step_end = _listeners(hooks, "step_end")
        self.evaluated = _listeners(hooks, "evaluated")
        self.end = _listeners(hooks, "end")


def _listeners(hooks: Sequence[Hook], event: str) -> Callable[..., None]:
    calls = [getattr(hook, event) for hook in hooks if getattr(type(hook), event) is not getattr(Hook, event)]

    def call(*args: Any) -> None:
        for listener in calls:
            listener(*args)

    return call
