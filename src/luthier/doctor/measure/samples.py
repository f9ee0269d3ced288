"""Examples that the watch sets aside, so that the data itself can be examined when a diagnosis is asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.doctor.measure.examinations import examine
from luthier.doctor.measure.gathering import Block

BLOCK = 128
EXAMPLES = 2048
FEATURES = 1024
EVAL_STEPS = 4
FEWEST_ROWS = 4


class Samples:
    """Copies of a few examples of training and evaluation, at most 2,048 of each and 8 MB.

    Nothing here draws random numbers or waits for the device; copies stay where the batch is until `examine`.
    Training keeps whole blocks, spread over the steps seen; evaluation keeps a part of every forward of the first
    four evaluations, so that a pass over training data can be told from one over validation data.
    """

    def __init__(self) -> None:
        self._train: list[Block] = []
        self._eval: list[Block] = []
        self._every = 1
        self._offered = 0
        self._rows = BLOCK
        self._held = 0
        self._eval_steps: set[int] = set()
        self._eval_held = 0
        self._row: dict[str, Any] | None = None

    def add_train(self, step: int, inputs: Tensor, targets: Tensor | None, outputs: Tensor | None = None) -> None:
        """Keep examples of a training batch.

        Args:
            step: optimizer steps made so far.
            inputs: (n, ...) as the model received them (after any normalisation outside the model), else evaluation
                and training could not be compared.
            targets: (n, ...) in the same order, or None.
            outputs: (n, ...) of the model; not kept (they know the labels that were learnt by heart).
        """
        self._offered += 1
        if (self._offered - 1) % self._every or not _usable(inputs):
            return
        self._train.append(_block(step, 0, inputs, targets, BLOCK))
        self._held += len(self._train[-1].inputs)
        if self._held > EXAMPLES:
            self._train = self._train[::2]
            self._held = sum(len(block.inputs) for block in self._train)
            self._every *= 2
        self._row = None

    def add_eval(
        self,
        step: int,
        forward_index: int | tuple[int, int],
        inputs: Tensor,
        outputs: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> None:
        """Keep examples of one evaluation forward; see `add_train`.

        Args:
            step: optimizer steps made so far: tells evaluations apart.
            forward_index: 1, 2, ... within the evaluation, or (number of the evaluation, that).
            inputs: (n, ...) as the model received them. outputs: not kept. targets: (n, ...) when they are known.
        """
        if (step not in self._eval_steps and len(self._eval_steps) >= EVAL_STEPS) or not _usable(inputs):
            return
        self._eval_steps.add(step)
        forward = forward_index if isinstance(forward_index, int) else forward_index[-1]
        self._eval.append(_block(step, forward, inputs, targets, self._rows))
        self._eval_held += len(self._eval[-1].inputs)
        while self._eval_held > EXAMPLES:
            self._thin_eval()
            self._eval_held = sum(len(block.inputs) for block in self._eval)
        self._row = None

    def examine(self) -> dict[str, Any]:
        """The row `data`: numbers about the examples kept (see `examine` in examinations); {} when there are none."""
        if self._row is None:
            with torch.no_grad():
                self._row = examine([_host(b) for b in self._train], [_host(b) for b in self._eval])
        return self._row

    def _thin_eval(self) -> None:
        """Halve what is kept of every forward; below four examples each, drop every second forward."""
        if self._rows > FEWEST_ROWS:
            self._rows //= 2
            self._eval = [_cut(block, self._rows) for block in self._eval]
        else:
            self._eval = self._eval[::2]


def _usable(inputs: Tensor) -> bool:
    return inputs.dim() > 0 and inputs.numel() > 0 and not inputs.is_complex() and not inputs.is_sparse


def _block(step: int, forward: int, inputs: Tensor, targets: Tensor | None, rows: int) -> Block:
    """Copy the first rows; features beyond 1,024 by stride."""
    kept = inputs.detach()[:rows]
    flat = kept.reshape(len(kept), -1)
    stride = -(-flat.shape[1] // FEATURES)
    same = targets is not None and targets.dim() > 0 and len(targets) == len(inputs)
    labels = targets.detach()[:rows] if same and targets is not None else None
    if labels is not None and labels[0].numel() > FEATURES:
        labels = None
    return Block(
        step=step,
        forward=forward,
        inputs=flat[:, ::stride].clone(),
        targets=None if labels is None else labels.clone(),
        shape=tuple(inputs.shape[1:]),
        tokens=not inputs.is_floating_point() and inputs.dim() <= 2,
        stride=stride,
    )


def _cut(block: Block, rows: int) -> Block:
    """The first rows of a block, as a copy: a view would keep the whole."""
    if len(block.inputs) <= rows:
        return block
    targets = None if block.targets is None else block.targets[:rows].clone()
    return Block(
        block.step, block.forward, block.inputs[:rows].clone(), targets, block.shape, block.tokens, block.stride
    )


def _host(block: Block) -> Block:
    """On the CPU: inputs as 32-bit floats, or as integers when they are tokens."""
    inputs = block.inputs.cpu()
    inputs = inputs.long() if block.tokens else inputs.float()
    targets = None if block.targets is None else block.targets.cpu()
    return Block(block.step, block.forward, inputs, targets, block.shape, block.tokens, block.stride)
