"""Random streams of a training: every draw is a function of (seed, stream, step).

The training loop owns torch's global generator (dropout, augmentation, mixup draw from it) and sets it anew at
every step, so that a resumed training needs no generator state and evaluation cannot disturb training.
"""

from __future__ import annotations

import functools
from enum import IntEnum

import torch

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Stream(IntEnum):
    """What the draws are for."""

    WEIGHTS = 1
    DATA = 2
    STEP = 3
    EVALUATION = 4


def derive(seed: int, stream: Stream, step: int = 0) -> int:
    """A 63-bit seed from (seed, stream, step).

    Seed and stream are mixed so that neighbours are unrelated; from there the steps follow SplitMix64's sequence, and
    the generator that is seeded with it mixes them (it is called at every step: a multiplication, no more).

    Source: SplitMix64, Steele, Lea & Flood 2014.

    >>> derive(0, Stream.STEP, 1) != derive(0, Stream.STEP, 2) != derive(1, Stream.STEP, 1)
    True
    """
    return ((_beginning(seed, stream) + step * _GOLDEN) & _MASK) >> 1


@functools.lru_cache(maxsize=256)
def _beginning(seed: int, stream: Stream) -> int:
    state = seed
    for word in (int(stream), 0):
        state = (state + _GOLDEN * (word + 1)) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def seed_global(value: int, device: torch.device) -> None:
    """Set torch's global generator of the CPU and of the device in use."""
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)
