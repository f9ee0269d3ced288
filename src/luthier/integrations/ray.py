"""The doctor inside one's own Ray Tune trainables, for studies that stay with Ray Tune's search.

from luthier.integrations.ray import findings_of, stop_when_critical, watch_trial

def trainable(config):
    ...
    with watch_trial(model, optimizer, loss_fn) as watch:
        for epoch in range(10):
            for x, y in loader:
                ...
                watch.step(loss, inputs=x, targets=y)
            watch.metrics(val_loss=val_loss)
            ray.tune.report({"val_loss": val_loss, **findings_of(watch)})

ray.tune.Tuner(trainable, run_config=ray.tune.RunConfig(stop=stop_when_critical), ...).fit()
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import LuthierError

if TYPE_CHECKING:
    from luthier.doctor.measure.watching import Watch

FINDINGS, CRITICAL = "luthier/findings", "luthier/critical"


@contextmanager
def watch_trial(
    model: Any, optimizer: Any, loss_fn: Any = None, *, folder: str | Path | None = None
) -> Iterator[Watch]:
    """Watch the training of a Ray Tune trial as `luthier.watch` does.

    What is measured goes to `vitals.jsonl` in the trial's folder, the diagnosis at the end to `findings.json` there, so
    that `luthier diagnose FOLDER` reads both.

    Args:
        model, optimizer, loss_fn: as for `luthier.watch`.
        folder: where to write instead, for instance in the workers of Ray Train.

    Yields:
        The watch: tell it `watch.step(loss, inputs=x, targets=y)` and `watch.metrics(val_loss=...)`.

    Raises:
        LuthierError: no folder, and no trial of Ray Tune runs here.
    """
    from luthier.doctor.measure.watching import watch
    from luthier.doctor.wording import to_json
    from luthier.files import write_atomic

    path = trial_folder() if folder is None else Path(folder)
    watching = watch(model, optimizer, loss_fn, on_finding=None, path=path / "vitals.jsonl")
    try:
        with watching:
            yield watching
    finally:
        write_atomic(path / "findings.json", to_json(watching.diagnose()))


def findings_of(watch: Watch) -> dict[str, Any]:
    """What the doctor has found so far, for `ray.tune.report`.

    Returns:
        "luthier/findings": symptoms, most likely root cause first, such as "lr_too_high, nan_inf"; "" is healthy.
        "luthier/critical": how many of them make the training worthless.
    """
    found = watch.findings
    names = ", ".join(dict.fromkeys(finding.symptom for finding in found))
    return {FINDINGS: names, CRITICAL: sum(finding.severity == "critical" for finding in found)}


def stop_when_critical(_: str, result: Mapping[str, Any]) -> bool:
    """For `RunConfig(stop=...)`: end trials that reported a critical finding.

    >>> stop_when_critical("a1", {"luthier/critical": 1})
    True
    """
    return bool(result.get(CRITICAL))


def trial_folder() -> Path:
    """The folder of the Ray Tune trial that runs in this process.

    Raises:
        LuthierError: none does, or Ray Tune is missing.
    """
    try:
        from ray import tune
    except ImportError:
        raise LuthierError("watching trials of Ray Tune needs it: pip install 'ray[tune]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said below
        folder = tune.get_context().get_trial_dir()
    if not folder:
        raise LuthierError(
            "watch_trial expects to run in a trial of Ray Tune, got none here: "
            "call it in the trainable, or give folder=... where the measurements go"
        )
    return Path(folder)
