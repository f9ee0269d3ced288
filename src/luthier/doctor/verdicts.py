"""assert_healthy: the doctor in people's own tests, and what stands behind exit codes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from luthier.doctor.diagnosing import diagnose
from luthier.doctor.findings import Diagnosis, Finding
from luthier.doctor.logs import read_logs
from luthier.doctor.remedies import REMEDIES
from luthier.doctor.vitals import Vitals
from luthier.doctor.wording import text_of
from luthier.errors import LuthierError, unknown

FailOn = Literal["warning", "critical"]
_GRAVE: dict[str, tuple[str, ...]] = {"warning": ("warning", "critical"), "critical": ("critical",)}


class Unhealthy(AssertionError):
    """A training is not healthy; the message is the diagnosis as text.

    Attributes:
        diagnosis: what was found.
    """

    def __init__(self, message: str, diagnosis: Diagnosis) -> None:
        super().__init__(message)
        self.diagnosis = diagnosis

    def __reduce__(self) -> tuple[type[Unhealthy], tuple[str, Diagnosis]]:
        return type(self), (str(self), self.diagnosis)


def assert_healthy(what: Any, allow: Collection[str] = (), fail_on: FailOn = "warning") -> Diagnosis:
    """Fail a test when a training is sick.

    Args:
        what: a Diagnosis, a Watch, a Record, Vitals, or the path of a Record or of another tool's logs.
        allow: symptoms that are meant, such as ("frozen_params",) in fine-tuning; what they cause is allowed too.
        fail_on: the mildest severity that fails.

    Returns:
        The diagnosis, when it passes.

    Raises:
        Unhealthy: a finding of that severity, or nothing could be looked at (silence is not health).
        LuthierError: an unknown symptom or severity, or something that cannot be diagnosed.

    >>> assert_healthy(Diagnosis(healthy=("nan_inf",))).is_healthy
    True
    """
    allow = _known((allow,) if isinstance(allow, str) else allow)
    diagnosis = diagnosis_of(what)
    if _untrained(what):
        said = "not examined: no training step was seen; train between luthier.watch(...) and assert_healthy"
        raise Unhealthy(said, diagnosis)
    if not diagnosis.findings and not diagnosis.healthy:
        raise Unhealthy(text_of(diagnosis), diagnosis)
    if grave(diagnosis, fail_on, allow):
        raise Unhealthy("\n" + text_of(diagnosis), diagnosis)
    return diagnosis


def grave(diagnosis: Diagnosis, fail_on: str, allow: Collection[str] = ()) -> list[Finding]:
    """The findings at or above a severity, without allowed ones and what they cause.

    Raises:
        LuthierError: an unknown severity.
    """
    if fail_on not in _GRAVE:
        raise unknown("severity to fail on", fail_on, _GRAVE)
    excused = {
        (child.symptom, child.where)
        for finding in diagnosis.findings
        if finding.symptom in allow
        for child in finding.consequences
    }
    return [
        finding
        for finding in diagnosis.findings
        if finding.severity in _GRAVE[fail_on]
        and finding.symptom not in allow
        and (finding.symptom, finding.where) not in excused
    ]


def diagnosis_of(what: Any) -> Diagnosis:
    """The diagnosis of whatever can be diagnosed.

    Raises:
        LuthierError: it is none of them, or a path where nothing can be read.
    """
    if isinstance(what, Diagnosis):
        return what
    if isinstance(what, Vitals):
        return diagnose(what)
    if isinstance(what, (str, Path)):
        return diagnose(read_logs(what))
    made = what.diagnose() if callable(getattr(what, "diagnose", None)) else None
    if not isinstance(made, Diagnosis):
        raise LuthierError(
            f"expected a Diagnosis, a Watch, a Record or a path, got {type(what).__name__}: "
            "pass what luthier.watch or luthier.fit returned"
        )
    return made


def _untrained(what: Any) -> bool:
    """Whether a Watch, or vitals, saw no step at all: a few checks need none and would pass."""
    vitals = what if isinstance(what, Vitals) else getattr(what, "vitals", None)
    return isinstance(vitals, Vitals) and not (vitals.steps.step or vitals.looks or vitals.metrics)


def _known(allow: Collection[str]) -> Collection[str]:
    for symptom in allow:
        if symptom not in REMEDIES:
            raise unknown("symptom", symptom, REMEDIES)
    return allow
