"""Luthier, as a user meets it, and its engine alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuning.one import PROCESSES, Job
from tuning.spaces import for_luthier, space_of

REPEATS = 1


def as_a_user(job: Job) -> None:
    """`tune` with a task and a budget; the space is derived, the recipe the default one."""
    from luthier import Recipe, tune

    task, recipe, folder = task_for(job.task), Recipe(epochs=job.task.epochs), job.folder / "study"
    began_s = job.elapsed_s
    try:
        study = tune(
            task,
            recipe,
            budget=job.left_s,
            workers=PROCESSES,
            seed=job.seed,
            folder=folder,
            repeats=REPEATS,
            test=False,
        )
        _choose(job, study)
    finally:
        _tell_events(job, folder, began_s)


def task_for(task: Any, test: bool = False) -> Any:
    """The task in Luthier's words; the network's size stays at its default."""
    import luthier
    from tuning.nets import builder
    from tuning.tasks import tensors

    return luthier.Task(
        builder(task.net, task.inputs, task.outputs),
        tensors(task, "train"),
        val=tensors(task, "val"),
        test=tensors(task, "test") if test else None,
        name=task.name,
    )


def _tell_events(job: Job, folder: Path, began_s: float) -> None:
    """The readings of the search with their times; the study's clock began with the call."""
    from luthier.tuning.ledger import read_events
    from luthier.tuning.study import Study

    study = Study.open(folder)
    for event in read_events(folder):
        value = event.payload.get("row", {}).get(f"val_{study.metric}")
        if value is None or (trial := study.trials[event.payload["number"]]).kind != "search":
            continue
        epoch = event.payload["row"]["step"] * job.task.epochs / trial.total_steps
        config = {"recipe": study.recipe(trial.number).to_json(), "values": trial.values}
        job.tell(str(trial.number), epoch, value, config, t=began_s + event.clock)


def engine(job: Job) -> None:
    """`tune` with the shared training function and the shared space."""
    from luthier import tune

    def train(trial: Any) -> None:
        from tuning.training import Training, memory

        config = dict(trial.params)
        training = Training(job.task, config, job.trial_seed(trial.number), *memory(job.task))
        if (state := trial.restore()) is not None:
            training.load(state)
        while training.epochs < job.task.epochs:
            value = training.epoch()
            job.tell(str(trial.number), training.epochs, value, config)
            trial.save(training.state())
            trial.report(value, step=training.epochs)

    study = tune(
        train,
        space=for_luthier(space_of(job.task)),
        steps=job.task.epochs,
        budget=job.left_s,
        workers=PROCESSES,
        seed=job.seed,
        folder=job.folder / "study",
    )
    _choose(job, study)


def _choose(job: Job, study: Any) -> None:
    if study.best is not None:
        job.choose(str(study.best.number))
