"""A schedule as the optimizer sees it, warm-up included."""

from __future__ import annotations

from luthier.training.schedules.schedule import Progress, Schedule


def lr_factor(schedule: Schedule, progress: Progress, warmup_frac: float = 0.0) -> float:
    """The multiple of `recipe.lr` for the step about to be taken, warm-up included.

    The first `w = round(warmup_frac * total_steps)` steps go in a straight line from `1 / (w + 1)` of the schedule's
    first value up to it: `(step + 1) / (w + 1)`. Afterwards a schedule in steps sees step `step - w` of `total - w`
    (torch's `SequentialLR(LinearLR(start_factor=1 / (w + 1), total_iters=w), ...)`), while one in epochs counts the
    epochs of the whole training.

    Args:
        schedule: the schedule after warm-up.
        progress: where the training stands.
        warmup_frac: part of all steps spent warming up, in [0, 1].

    Returns:
        The factor, finite and at least 0.

    >>> from luthier.training.schedules import Constant
    >>> lr_factor(Constant(), Progress(step=1, total_steps=10, epoch=0, epochs=1), warmup_frac=0.3)
    0.5
    """
    warmup = round(warmup_frac * progress.total_steps)
    if not warmup:
        return schedule.factor(progress)
    ramp = min(1.0, (progress.step + 1) / (warmup + 1))
    return ramp * schedule.factor(_after(progress, warmup))


def momentum_at(schedule: Schedule, progress: Progress, warmup_frac: float = 0.0) -> float | None:
    """The schedule's momentum for the step about to be taken, held at its first value during warm-up.

    Args:
        schedule: the schedule after warm-up.
        progress: where the training stands.
        warmup_frac: part of all steps spent warming up, in [0, 1].

    Returns:
        Momentum in (0, 1), or None when the schedule does not move it.
    """
    warmup = round(warmup_frac * progress.total_steps)
    return schedule.momentum(_after(progress, warmup) if warmup else progress)


def _after(progress: Progress, warmup: int) -> Progress:
    """The same point with steps counted from the end of warm-up."""
    step, total = max(0, progress.step - warmup), max(1, progress.total_steps - warmup)
    return Progress(step, total, progress.epoch, progress.epochs, progress.history, progress.minimise)
