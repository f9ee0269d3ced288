"""Which optimizers step the watched parameters, including those that the loop creates later."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """One optimizer: its number, the positions of the watched parameters it steps, and whether its step ends ours."""

    number: int
    optimizer: weakref.ref[torch.optim.Optimizer]
    positions: tuple[int, ...]
    size: int
    closes: bool
    replaces: int | None = None


class Slots:
    """Finds the slot of an optimizer by identity; a new optimizer on watched parameters gets a new slot.

    Args:
        parameters: the watched ones, in the order of the anatomy.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.all: list[Slot] = []
        self._by_id: dict[int, tuple[weakref.ref[torch.optim.Optimizer], Slot | None]] = {}
        self.follow(parameters)

    def follow(self, parameters: Sequence[Tensor]) -> None:
        """Take another list of parameters (layers were replaced)."""
        self._positions = {id(p): position for position, p in enumerate(parameters)}
        self.all = [self._fresh(slot, optimizer) for slot in self.all if (optimizer := slot.optimizer()) is not None]
        self._by_id = {id(slot.optimizer()): (slot.optimizer, slot) for slot in self.all}

    def find(self, optimizer: torch.optim.Optimizer) -> tuple[Slot | None, bool]:
        """The slot of an optimizer (None: it steps nothing that is watched), and whether it is new."""
        known = self._by_id.get(id(optimizer))
        if known is not None and known[0]() is optimizer:
            slot = known[1]
            if slot is None or slot.size == _size(optimizer):
                return slot, False
            slot = self._fresh(slot, optimizer)
            self.all = [slot if old.number == slot.number else old for old in self.all]
            self._by_id[id(optimizer)] = (slot.optimizer, slot)
            return slot, False
        return self.add(optimizer), True

    def add(self, optimizer: torch.optim.Optimizer) -> Slot | None:
        """Give an optimizer a slot."""
        held = self._held(optimizer)
        weak = weakref.ref(optimizer)
        if not held:
            self._by_id[id(optimizer)] = (weak, None)
            return None
        number = max((slot.number for slot in self.all), default=-1) + 1
        replaced = next((slot for slot in reversed(self.all) if set(slot.positions) & set(held)), None)
        slot = Slot(
            number,
            weak,
            held,
            _size(optimizer),
            closes=not self.all or (replaced is not None and replaced.closes),
            replaces=None if replaced is None else replaced.number,
        )
        self.all = [old for old in self.all if old is not replaced] + [slot]
        self._by_id[id(optimizer)] = (weak, slot)
        return slot

    def living(self) -> list[torch.optim.Optimizer]:
        """The optimizers in use."""
        return [optimizer for slot in self.all if (optimizer := slot.optimizer()) is not None]

    def _held(self, optimizer: torch.optim.Optimizer) -> tuple[int, ...]:
        held = (self._positions.get(id(p)) for group in optimizer.param_groups for p in group["params"])
        return tuple(position for position in held if position is not None)

    def _fresh(self, slot: Slot, optimizer: torch.optim.Optimizer) -> Slot:
        held = self._held(optimizer)
        return Slot(slot.number, slot.optimizer, held, _size(optimizer), slot.closes, slot.replaces)


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """lr of the first group; NaN when it lies on a device (reading it would wait)."""
    if not optimizer.param_groups:
        return float("nan")
    lr = optimizer.param_groups[0]["lr"]
    return lr if type(lr) is float else plain_number(lr)


def plain_number(value: Any) -> float:
    """A number or CPU scalar as float."""
    if isinstance(value, Tensor):
        return float(value) if value.device.type == "cpu" else float("nan")
    return float(value)


def state_step(optimizer: torch.optim.Optimizer) -> int | None:
    """The optimizer's own count of steps, where it keeps one on the host."""
    for state in optimizer.state.values():
        count = state.get("step") if isinstance(state, dict) else None
        if count is not None:
            number = plain_number(count)
            return int(number) if number == number else None
    return None


def _size(optimizer: torch.optim.Optimizer) -> int:
    return sum([len(group["params"]) for group in optimizer.param_groups])
