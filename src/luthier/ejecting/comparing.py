"""Comparing a script with Luthier before it is handed out: the first steps must give the same weights, to the bit."""

from __future__ import annotations

import contextlib
import io
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from luthier.data.memory import Batches
from luthier.ejecting.facts import Facts
from luthier.ejecting.inputs import PARTS
from luthier.ejecting.sources import EjectError
from luthier.training.loop import evaluate, take_step

STEPS, EXAMPLES = 3, 512


_DIFFERS = (
    "the script would not train as the run did: its {} differs after "
    f"{STEPS} steps; what depends on more than seed and data cannot be ejected"
)


class _Enough(Exception):
    """The first steps are taken."""


def check(script: str, facts: Facts, loads: str | None) -> None:
    """Take the first steps by script and by Luthier, evaluate, and compare weights and numbers.

    Args:
        script: the whole text.
        facts: its run, which has taken no step yet.
        loads: what `load_data` is called with, to compare the data as well; None leaves that out.

    Raises:
        EjectError: something differs.
    """
    names: dict[str, Any] = {"__name__": "ejected"}
    with torch.random.fork_rng(devices=[]):
        try:
            exec(compile(script, "train.py", "exec", dont_inherit=True), names)
            _compare_data(names, facts, loads)
            ours = _by_script(names)
            theirs = _by_luthier(facts)
        except EjectError:
            raise
        except Exception as error:
            raise EjectError(f"the script fails ({type(error).__name__}: {error}); please report this") from error
    for what, place in (("network", 0), ("reading", 1)):
        if not _same(list(ours[place]), list(theirs[place])):
            raise EjectError(f"{_DIFFERS.format(what)}{facts.refused and f': {facts.refused}'}")


def _compare_data(names: dict[str, Any], facts: Facts, loads: str | None) -> None:
    if loads is not None and not _same(list(names["load_data"](loads)), [facts.parts[part] for part in PARTS]):
        raise EjectError("the script would read other data than the run did; please report this")
    names["load_data"] = lambda _: [facts.parts[part] for part in PARTS]


def _by_script(names: dict[str, Any]) -> tuple[list[Tensor], list[float]]:
    """The network's tensors after the first steps, and what its evaluation gives."""
    seen: list[Any] = []
    order, evaluation = names["batches"], names["evaluate"]

    def few(model: nn.Module, x: Tensor, y: Tensor, *others: Any) -> None:
        seen.append([tensor.detach().clone() for tensor in model.state_dict().values()])
        values = evaluation(model, x[:EXAMPLES], y[:EXAMPLES], *others)
        seen.append(list(values) if isinstance(values, tuple) else [values])
        raise _Enough

    names |= {"batches": lambda *which: order(*which)[:STEPS], "evaluate": few}
    with contextlib.suppress(_Enough), contextlib.redirect_stdout(io.StringIO()):
        names["train"]("")
    return seen[0], seen[1]


def _by_luthier(facts: Facts) -> tuple[list[Tensor], list[float]]:
    run = facts.run
    for batch in islice(run.train.epoch(0, 0, run.batch_size(0)), STEPS):
        take_step(run, batch)
    _refresh(facts)
    model = run.evaluated_model
    weights = [tensor.detach().clone() for tensor in model.state_dict().values()]
    val = tuple(facts.parts[f"val_{part}"][:EXAMPLES] for part in ("inputs", "targets"))
    values = evaluate(run, model, Batches(val, len(val[1])))
    return weights, list(values.values())


def _refresh(facts: Facts) -> None:
    """Batch-norm statistics of averaged weights, over the same few batches as the script's."""
    run = facts.run
    if run.averaging is not None and run.averaging.model is not None:
        source = run.train
        run.train = _First(source)  # type: ignore[assignment]
        from luthier.training.loop import refresh_batch_norm

        refresh_batch_norm(run)
        run.train = source


class _First:
    """The first batches of a source."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def epoch(self, *place: Any) -> Any:
        return islice(self.source.epoch(*place), STEPS)


def _same(ours: list[Any], theirs: list[Any]) -> bool:
    return len(ours) == len(theirs) and all(map(_equal, ours, theirs))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    return bool(one == other or (one != one and other != other))
