"""One trial of a recipe, in its worker process; for training functions see `functions`."""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.files import disk_error, from_json, from_stored, to_json, write_atomic
from luthier.tuning.failures import leaves, reason_of

if TYPE_CHECKING:
    from luthier.recipe import Recipe
    from luthier.task import Task
    from luthier.tuning.worker import Channel

_PROGRESS_EVERY_S = 0.25


def run_recipe(task: Task, recipe: Recipe, order: dict[str, Any], channel: Channel) -> tuple[str, dict[str, Any]]:
    """Train through `fit`, from the trial's checkpoint where there is one."""
    from luthier.doctor.guard import Guard, Hopeless
    from luthier.doctor.probe import Probe
    from luthier.fitting import Interrupted, fit
    from luthier.record import Record
    from luthier.tuning.steering import prescriptions

    trial = recipe.replace({**from_stored(order["values"]), "seed": order["seed"]})
    take_over(task, Path(order["folder"]))
    reporter = reporter_for(order, channel)
    guards = [Guard()] if order["guarded"] else []
    probes = [Probe(Path(order["folder"]), by_steps=True)] if order["examined"] else []
    try:
        fit(
            task,
            trial,
            folder=order["folder"],
            resume=True,
            until=order["until"],
            hooks=[reporter, *guards, *probes],
            watch=False,
            console=False,
            tensorboard=False,
            signals=False,
        )
    except Interrupted:
        pass  # paused by the parent: everything is saved
    except Exception as error:
        if reporter.ending is None or disk_error(error):  # it never began, or cannot go on here
            raise
        if not isinstance(error, Hopeless):
            traceback.print_exc()
        return "failed", {"reason": reason_of(error), **leaves(), **position(reporter.ending[2])}
    state, reason, run = reporter.ending
    if state != "finished":
        return "paused", {"reason": reason, **position(run)}
    changes = prescriptions(Record(order["folder"]), trial) if order["examined"] else []
    return "finished", {"reason": reason, "changes": changes, **position(run)}


def take_over(task: Task, folder: Path) -> None:
    """Have a trial's record name the present code of the model: the study has seen to it that it may go on."""
    path = folder / "task.json"
    if not path.exists():
        return
    known, now = from_json(path.read_bytes()), task.describe()
    if code := {name: now[name] for name in ("model_source", "model_arguments") if known.get(name) != now[name]}:
        write_atomic(path, to_json({**known, **code}, indent=2))


def position(run: Any) -> dict[str, Any]:
    """How far a training has come."""
    return {"step": run.step, "total_steps": run.total_steps, "time_s": round(run.time_s, 3)}


def reporter_for(order: dict[str, Any], channel: Channel) -> Any:
    """A hook that tells the parent what happens, and lets it pause the training."""
    from luthier.record import Record
    from luthier.training.hooks import Hook
    from luthier.tuning.measuring import measured

    number = order["number"]

    class Reporter(Hook):
        ending: tuple[str, str, Any] | None = None
        told_at = 0.0

        def start(self, run: Any) -> None:
            self.costs = measured(run, order["measured"])
            channel.say("started", number=number, step=run.step, total_steps=run.total_steps)
            for row in Record(order["folder"]).rows:
                if order["known"] < row["step"] <= run.step:  # read before a crash, and never heard by the parent
                    channel.say("row", number=number, row=row | self.costs)

        def step_end(self, run: Any) -> None:
            run.interrupted |= channel.pausing == number
            if (now := time.monotonic()) - self.told_at > _PROGRESS_EVERY_S:
                self.told_at = now
                channel.say("progress", number=number, epoch=run.epoch, epochs=run.recipe.epochs, **position(run))

        def evaluated(self, run: Any, row: dict[str, Any]) -> None:
            channel.say("row", number=number, row=row | self.costs)

        def end(self, run: Any, state: str, reason: str) -> None:
            self.ending = (state, reason, run)

    return Reporter()
