"""Learning-rate schedules as plain functions of a script."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from luthier.ejecting.sources import EjectError
from luthier.recipe import Recipe
from luthier.training import schedules as parts
from luthier.training.schedules import Progress, Schedule, lr_factor, momentum_at


@dataclass
class Rate:
    """A schedule as source code.

    Attributes:
        blocks: functions.
        factor: the expression for the factor on the lr; None when it stays 1.
        momentum: the expression for the momentum; None when it stays the optimizer's own.
        ramp: the expression for the warm-up's factor beside it, None without warm-up.
    """

    blocks: list[str] = field(default_factory=list)
    factor: str | None = None
    momentum: str | None = None
    ramp: str | None = None

    @property
    def whole(self) -> str | None:
        """The expression for the factor, the name `ramp` standing for the warm-up's."""
        if self.ramp is None or self.factor is None:
            return self.factor if self.ramp is None else "ramp"
        return f"(ramp * {self.factor})"


def write_schedule(recipe: Recipe, total_steps: int, minimise: bool) -> Rate:
    """The schedule of a recipe: expressions of `step`, `steps`, `epoch`, `EPOCHS` and `history`.

    Args:
        recipe: its schedule and warm-up.
        total_steps: of the whole training.
        minimise: whether a lower validation value is better.

    Raises:
        EjectError: a caller's own schedule, or a script that would give other rates.
    """
    schedule = recipe.schedule
    if type(schedule) not in _WRITERS and not isinstance(schedule, (parts.Constant, parts.Plateau)):
        raise EjectError(f"recipe field schedule={schedule.name!r} is a function of your own: use a schedule by name")
    warmup = round(recipe.warmup_frac * total_steps)
    rate = _written(schedule, warmup, minimise)
    if warmup:
        rate.ramp = f"min(1.0, (step + 1) / {warmup + 1})"
    _check(rate, recipe, total_steps, minimise)
    return rate


def _written(schedule: Schedule, warmup: int, minimise: bool) -> Rate:
    """The schedule without its warm-up, after which schedules in steps count."""
    if isinstance(schedule, parts.Constant):
        return Rate()
    if isinstance(schedule, parts.Plateau):
        return _plateau(schedule, minimise)
    steps = (f"max(0, step - {warmup})", f"steps - {warmup}") if warmup else ("step", "steps")
    clock = steps if getattr(schedule, "unit", "step") == "step" else ("epoch", "EPOCHS")
    return _WRITERS[type(schedule)](schedule, clock)


def _check(rate: Rate, recipe: Recipe, total_steps: int, minimise: bool) -> None:
    """Compare the script's rates with Luthier's at up to 1,000 steps, exactly."""
    names: dict[str, Any] = {"math": math, "EPOCHS": recipe.epochs, "steps": total_steps}
    exec("\n".join(rate.blocks), names)
    for step in {*range(0, total_steps, max(1, total_steps // 1000)), total_steps - 1}:
        epoch = step * recipe.epochs // total_steps
        history = [1.0 + (7 * i % 5) / 10 for i in range(epoch)]
        progress = Progress(step, total_steps, epoch, recipe.epochs, history, minimise)
        names |= {"step": step, "epoch": epoch, "history": history}
        names["ramp"] = eval(rate.ramp or "None", names)
        theirs = (
            lr_factor(recipe.schedule, progress, recipe.warmup_frac),
            momentum_at(recipe.schedule, progress, recipe.warmup_frac),
        )
        ours = (eval(rate.whole or "1.0", names), eval(rate.momentum or "None", names))
        if ours != theirs:
            raise EjectError(
                f"recipe fields schedule={recipe.schedule!r} and warmup_frac={recipe.warmup_frac} would be written "
                f"wrongly: {ours} at step {step}, not {theirs}; please report this"
            )


Clock = tuple[str, str]


def _step(schedule: Any, clock: Clock) -> Rate:
    size = schedule.step_size or f"max(1, math.ceil({_group(clock[1])} / 3))"
    return Rate(factor=f"{schedule.gamma!r} ** ({clock[0]} // {size})")


def _multi_step(schedule: Any, clock: Clock) -> Rate:
    places = (
        ", ".join(map(repr, schedule.milestones))
        if schedule.milestones
        else f"{_group(clock[1])} / 2, {_group(clock[1])} * 3 / 4"
    )
    comma = "," if "," not in places else ""
    return Rate(factor=f"{schedule.gamma!r} ** sum({clock[0]} >= milestone for milestone in ({places}{comma}))")


def _exponential(schedule: Any, clock: Clock) -> Rate:
    power = "**" if clock[0].isidentifier() else " ** "
    return Rate(factor=f"{schedule.gamma!r}{power}{clock[0]}")


def _polynomial(schedule: Any, clock: Clock) -> Rate:
    return Rate(factor=f"(1 - {clock[0]} / {_group(clock[1])}) ** {schedule.power!r}")


def _cosine(schedule: Any, clock: Clock) -> Rate:
    factor = f"cosine(1.0, {schedule.min_factor!r}, {clock[0]} / {_group(clock[1])})"
    return Rate([_COSINE], factor)


def _cosine_restarts(schedule: Any, clock: Clock) -> Rate:
    growth = schedule.growth
    period = schedule.period or f"total / {1 + growth + growth**2}"
    since = f"t % {period}" if growth == 1 and schedule.period else "t % period" if growth == 1 else "float(t)"
    block = f'''def restarting_cosine(t, total):
    """Cosines that restart, each period {growth} times the last (Loshchilov and Hutter 2017)."""
    period = {period}
    since = {since}
    while since >= period:
        since, period = since - period, period * {growth}
    return cosine(1.0, {schedule.min_factor!r}, since / period)'''
    return Rate([_COSINE, block], f"restarting_cosine({clock[0]}, {clock[1]})")


def _one_cycle(schedule: Any, clock: Clock) -> Rate:
    shape, helper = ("cosine", _COSINE) if schedule.anneal == "cos" else ("line", _LINE)
    ends = "up - 1, 2 * up - 2, steps - 1" if schedule.three_phase else "up - 1, steps - 1"
    block = f'''def one_cycle(step, steps, values):
    """From value to value, the first rise over {schedule.pct_start:.0%} of the steps (Smith and Topin 2018)."""
    up = {schedule.pct_start!r} * steps
    begin = 0.0
    for phase, end in enumerate(({ends})):
        if step <= end:
            done = (step - begin) / (end - begin) if end > begin else 1.0
            return {shape}(values[phase], values[phase + 1], done)
        begin = end
    return values[-1]'''
    div, final = schedule.div_factor, schedule.final_div_factor
    start, end = repr(1 / div), repr(1 / (div * final))
    rates = (start, "1.0", start, end) if schedule.three_phase else (start, "1.0", end)
    low, high = repr(schedule.base_momentum), repr(schedule.max_momentum)
    momenta = (high, low, high, high) if schedule.three_phase else (high, low, high)
    where = ", ".join(clock)
    momentum = f"one_cycle({where}, ({', '.join(momenta)}))" if schedule.cycle_momentum else None
    return Rate([helper, block], f"one_cycle({where}, ({', '.join(rates)}))", momentum)


def _cyclic(schedule: Any, clock: Clock) -> Rate:
    up = schedule.up or f"total / {2 * schedule.cycles}"
    size = "up + up" if schedule.down is None else f"up + {schedule.down}"
    shrink = {"triangular": "", "triangular2": " * 0.5**cycle", "exp-range": f" * {schedule.gamma!r}**t"}[schedule.mode]
    ending = f"height{shrink}" if shrink != " * 0.5**cycle" else "height * 0.5**cycle"
    block = f'''def triangle(t, total):
    """Height in triangles between 0 and 1 (Smith 2017)."""
    up = {up}
    size = {size}
    cycle, since = divmod(t, size)
    height = since / up if since <= up else (size - since) / (size - up)
    return {ending}'''
    height = f"triangle({clock[0]}, {clock[1]})"
    base, low, high = schedule.base_factor, schedule.base_momentum, schedule.max_momentum
    momentum = f"{high!r} - ({high!r} - {low!r}) * {height}" if schedule.cycle_momentum else None
    if schedule.mode != "triangular2":
        block = block.replace("cycle, since = divmod(t, size)", "since = t % size")
    return Rate([block], f"({base!r} + (1 - {base!r}) * {height})", momentum)


def _plateau(schedule: Any, minimise: bool) -> Rate:
    relative = f"cost * {1 - schedule.threshold if minimise else 1 + schedule.threshold!r}"
    bar = f"cost - {schedule.threshold!r}" if schedule.threshold_mode == "abs" else relative
    cooling = (
        f"""
        if cooling:
            cooling, bad = cooling - 1, 0
        if bad > {schedule.patience}:
            factor, cooling, bad = max(factor * {schedule.gamma!r}, {schedule.min_factor!r}), {schedule.cooldown}, 0"""
        if schedule.cooldown
        else f"""
        if bad > {schedule.patience}:
            factor, bad = max(factor * {schedule.gamma!r}, {schedule.min_factor!r}), 0"""
    )
    block = f'''def plateau(history):
    """Down by {schedule.gamma!r} whenever more than {schedule.patience} evaluations brought no gain."""
    factor, bad, bar = 1.0, 0, math.inf
    for value in history:
        cost = {"value" if minimise else "-value"}
        if cost < bar:
            bar, bad = {bar}, 0
        else:
            bad += 1{cooling}
    return factor'''
    if schedule.cooldown:
        block = block.replace("factor, bad, bar = 1.0, 0, math.inf", "factor, bad, cooling, bar = 1.0, 0, 0, math.inf")
    return Rate([block], "plateau(history)")


def _group(text: str) -> str:
    return f"({text})" if " " in text else text


_COSINE = '''def cosine(start, end, done):
    """Half a cosine from start to end."""
    return end + (start - end) / 2 * (math.cos(math.pi * done) + 1)'''
_LINE = '''def line(start, end, done):
    """A straight line from start to end."""
    return (end - start) * done + start'''
_WRITERS: dict[type[Schedule], Callable[[Any, Clock], Rate]] = {
    parts.Step: _step,
    parts.MultiStep: _multi_step,
    parts.Exponential: _exponential,
    parts.Polynomial: _polynomial,
    parts.Cosine: _cosine,
    parts.CosineRestarts: _cosine_restarts,
    parts.OneCycle: _one_cycle,
    parts.Cyclic: _cyclic,
}
