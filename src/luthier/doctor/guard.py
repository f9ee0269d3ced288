"""The guard of a trial: ends a training that cannot become anything, within a few steps of the evidence.

Cheap enough for the shortest trial: the loop keeps its latest losses anyway, gradients and outputs are measured at few
steps. All is told as vitals, so that the doctor's own rules read it. Which steps are looked at follows from their
numbers and from what was seen, and that goes into the checkpoint: a training that was paused or killed is judged as if
it never had been.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.doctor.fatal import LOOKS, fatal, is_cut_off
from luthier.doctor.measure.attaching import first_tensor
from luthier.doctor.measure.batches import Recent
from luthier.doctor.measure.looking import transfer
from luthier.doctor.vitals import Vitals
from luthier.errors import LuthierError
from luthier.training.hooks import Hook

if TYPE_CHECKING:
    from luthier.training.run import Run

FIRST, GROWTH, APART = 4, 1.25, 25
AGAIN = 3
"""Steps to the next look after one that found the network dead."""

MOVES_UNTIL = 8
"""Up to this step, that of the fifth look, it is also measured how far a step moves the weights."""

_LEAST_LR = 0.1  # of the highest one: less moves float32 weights too little to tell what more would do
_FIRST_LOSSES, _TARGETS = 8, 4
_GRAPH = {"kind": "graph", "id": 0, "nodes": [{"index": 0, "op": "model", "module": ""}], "outputs": [0], "roots": []}


class Hopeless(LuthierError):
    """Ends a training that cannot become anything; the message says why."""


class Guard(Hook):
    """Reads the losses of one training, and at some steps gradients and outputs.

    Raises:
        Hopeless: out of `step_end`, when the training cannot become anything.
    """

    def __init__(self) -> None:
        self._listening: Any = None
        self._outputs: Tensor | None = None
        self._before: list[Tensor] = []
        self._row: dict[str, Any] = {}

    def start(self, run: Run) -> None:
        """Take up what was seen before a pause."""
        weights = [(name, each) for name, each in run.model.named_parameters() if each.ndim >= 2 and each.requires_grad]
        self._weights = [weight for _, weight in weights]
        self._about = about(run, weights)
        self._seen = run.kept.setdefault("guard", {"first": [], "targets": [], "looks": [], "next": FIRST})

    def step_start(self, run: Run, batch: Any) -> None:
        """Before a look, listen to what the model puts out, and read the first targets."""
        if run.step + 1 < self._seen["next"]:
            return
        self._listening = run.model.register_forward_hook(self._hear)
        if len(self._seen["targets"]) < _TARGETS and isinstance(batch, (tuple, list)) and len(batch) == 2:
            self._seen["targets"] += target_rows(run.step, batch[1])

    def after_backward(self, run: Run, loss: Tensor) -> None:
        """At a look, measure."""
        if self._listening is None:
            return
        self._hush()
        self._row = self._look(run.step)
        if run.step < MOVES_UNTIL and run.scaler is None and (run.factor or 0.0) >= _LEAST_LR:
            self._before = [weight.detach().clone() for weight in self._weights]

    def step_end(self, run: Run) -> None:
        """After a look, judge."""
        if not self._row:
            return
        seen, row, self._row = self._seen, self._row, {}
        if self._before:
            row |= self._moves() | {"lr": [run.recipe.lr * (run.factor or 0.0)]}
        seen["looks"] = [*seen["looks"], row][-LOOKS:]
        if len(seen["first"]) < _FIRST_LOSSES:
            known = len(seen["first"])
            seen["first"] += [list(pair) for pair in run.totals.latest if known <= pair[0] < _FIRST_LOSSES]
        sick = 0.0 in row["grad"] and is_cut_off(Vitals.from_rows([_GRAPH, row]).looks[0])
        seen["next"] = run.step + AGAIN if sick else next_look(run.step)
        moves = len(seen["looks"]) == LOOKS and all("update" in look for look in seen["looks"])
        if sick or moves or self._risen(run):
            self._judge(run)

    def end(self, run: Run, state: str, reason: str) -> None:
        """Leave the model."""
        self._hush()

    def _hear(self, _: nn.Module, __: Any, outputs: Any) -> None:
        self._outputs = first_tensor((outputs,), {})

    def _hush(self) -> None:
        if self._listening is not None:
            self._listening.remove()
            self._listening = None

    @torch.no_grad()
    def _look(self, step: int) -> dict[str, Any]:
        """Norms of the gradients, and how far outputs differ between examples, with one transfer."""
        grads = {place: weight.grad for place, weight in enumerate(self._weights) if weight.grad is not None}
        dense = [place for place, grad in grads.items() if grad.layout == torch.strided]
        scalars = list(torch._foreach_norm([grads[place] for place in dense])) if dense else []
        outputs, self._outputs = self._outputs, None
        if outputs is not None and len(outputs) > 1 and outputs.is_floating_point():
            scalars.append(spread(outputs))
        values = iter(transfer(scalars))
        norms = {place: next(values) for place in dense}
        return {
            "kind": "look",
            "step": step,
            "graph": 0,
            "grad": [norms.get(place) for place in range(len(self._weights))],
            "numbers": {"0": {"stats": {"across": next(values, None)}}},
        }

    @torch.no_grad()
    def _moves(self) -> dict[str, list[float]]:
        """Norms of the weights and of what the step changed."""
        before, self._before = self._before, []
        changes = torch._foreach_sub([weight.detach() for weight in self._weights], before)
        values = transfer([*torch._foreach_norm(before), *torch._foreach_norm(changes)])
        return {"weight": values[: len(before)], "update": values[len(before) :]}

    def _risen(self, run: Run) -> bool:
        """Whether the latest loss is above all of the first ones."""
        first = [loss for _, loss in self._seen["first"]]
        return bool(run.totals.latest) and run.totals.latest[-1][1] > max(first, default=0.0)

    def _judge(self, run: Run) -> None:
        seen = self._seen
        losses = dict(seen["first"]) | dict(run.totals.latest)
        steps = {"kind": "steps", "step": list(losses), "loss": list(losses.values())}
        vitals = Vitals.from_rows([*self._about, *seen["targets"], *seen["looks"], steps])
        if (reason := fatal(vitals, run.total_steps)) is not None:
            raise Hopeless(reason)


def about(run: Run, weights: list[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """What the rules must know of a training: its loss by torch's name, the weights, the highest learning rate."""
    parameters = [{"name": name, "shape": list(weight.shape)} for name, weight in weights]
    loss = None if run.task.own_step is not None else getattr(run.task.loss.call, "__name__", None)
    model = {"kind": "anatomy", "model_types": [type(run.model).__name__], "loss_fn": loss, "parameters": parameters}
    optimizer = {"kind": "optimizer", "step": 0, "id": 0, "type": type(run.optimizer).__name__}
    return [model, {**optimizer, "groups": [{"lr": run.recipe.lr}]}, _GRAPH]


def next_look(step: int) -> int:
    """The next step after which is looked: in geometric progression at first, then every 25 steps.

    >>> next_look(0), next_look(4), next_look(40), next_look(1000)
    (4, 5, 41, 1025)
    """
    if step >= 4 * APART:
        return step - step % APART + APART
    at = FIRST
    while at <= step:
        at += max(1, int(at * (GROWTH - 1)))
    return at


def target_rows(step: int, targets: Any) -> list[dict[str, Any]]:
    """The targets of a batch, as vitals tell them."""
    recent = Recent()
    if (tensor := first_tensor((targets,), {})) is not None:
        recent.add_targets(step, tensor)
    return recent.take()[1]


def spread(outputs: Tensor) -> Tensor:
    """How far outputs (B, ...) differ between examples against their size; `Stats.across`."""
    flat = outputs.detach().reshape(len(outputs), -1).double()
    return flat.var(0, correction=0).mean().sqrt() / flat.square().mean().sqrt().clamp_min(1e-30)
