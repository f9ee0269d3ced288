"""Ray Tune with ASHA."""

from __future__ import annotations

import os
import zlib
from typing import Any

from tuning.one import PROCESSES, Job
from tuning.spaces import for_ray, space_of

os.environ |= {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no files of CSV, JSON and TensorBoard for each trial
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def asha(job: Job) -> None:
    """Random search, stopped early, as in the paper."""
    _tune(job, None)


def asha_optuna(job: Job) -> None:
    """TPE, stopped early."""
    from ray.tune.search.optuna import OptunaSearch

    _tune(job, OptunaSearch(metric="value", mode="max", seed=job.seed))


def _tune(job: Job, search: Any) -> None:
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    place = str(job.folder / "ray")
    ray.init(num_cpus=PROCESSES, include_dashboard=False, _temp_dir=place, log_to_driver=False, logging_level="error")
    try:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_train, job=job, **_arrays(job)), {"cpu": 1}),
            param_space=for_ray(space_of(job.task)),
            tune_config=tune.TuneConfig(
                metric="value",
                mode="max",
                num_samples=-1,
                time_budget_s=job.left_s,
                reuse_actors=True,
                search_alg=search or _random(job),
                scheduler=ASHAScheduler(max_t=job.task.epochs, grace_period=1, reduction_factor=3),
            ),
            run_config=tune.RunConfig(storage_path=str(job.folder / "results"), verbose=0),
        )
        tuner.fit()
    finally:
        ray.shutdown()


def _random(job: Job) -> Any:
    from ray.tune.search import BasicVariantGenerator

    return BasicVariantGenerator(random_state=job.seed)


def _arrays(job: Job) -> dict[str, Any]:
    """Inputs and labels for the object store."""
    from tuning.tasks import arrays

    return {part: arrays(job.task, part) for part in ("train", "val")}


def _train(config: dict[str, Any], job: Job, train: Any, val: Any) -> None:
    import torch
    from ray import tune

    from tuning.training import Training

    torch.set_num_threads(1)
    name = tune.get_context().get_trial_id()
    seed = job.trial_seed(zlib.crc32(name.encode()) % 10_000)
    parts = [tuple(torch.from_numpy(array) for array in part) for part in (train, val)]
    training = Training(job.task, config, seed, *parts)
    for epoch in range(1, job.task.epochs + 1):
        value = training.epoch()
        job.tell(name, epoch, value, config)
        tune.report({"value": value})
