"""Optuna, as in its tutorial and at its best."""

from __future__ import annotations

from typing import Any

from tuning.one import Job
from tuning.spaces import space_of, suggest


def best(job: Job) -> None:
    """Two processes on one journal file; TPE joint over parameters and aware of what runs elsewhere; Hyperband."""
    with job.second_process():
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        from tuning.training import Training, memory

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        data, space = memory(job.task), space_of(job.task)

        def objective(trial: optuna.Trial) -> float:
            config, value = suggest(space, trial), 0.0
            training = Training(job.task, config, job.trial_seed(trial.number), *data)
            for epoch in range(1, job.task.epochs + 1):
                value = training.epoch()
                job.tell(str(trial.number), epoch, value, config)
                trial.report(value, epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned
            return value

        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(job.folder / "journal.log"))),
            study_name="bench",
            load_if_exists=True,
            direction="maximize",
            sampler=optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=job.trial_seed(0)),
            pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=job.task.epochs, reduction_factor=3),
        )
        study.optimize(objective, timeout=job.left_s)


def tutorial(job: Job) -> None:
    """Optuna's PyTorch example; only data, networks for other inputs than images, and the readings are ours."""
    import optuna

    from tuning.tutorial import loaders, train

    sampler = optuna.samplers.TPESampler(seed=job.seed)  # the default one, seeded
    study = optuna.create_study(direction="maximize", sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        def told(epoch: int, value: float, _: object) -> None:
            job.tell(str(trial.number), epoch + 1, value, dict(trial.params))
            trial.report(value, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        return train(job.task, trial, *loaders(job.task), told)

    study.optimize(objective, timeout=job.left_s)


def fixed(config: dict[str, Any]) -> Any:
    """A trial with given values, to retrain a winner of the tutorial."""
    import optuna

    return optuna.trial.FixedTrial(config)
