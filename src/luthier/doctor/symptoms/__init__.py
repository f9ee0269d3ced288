"""Every symptom and the rule that finds it. A rule reads vitals only; see `vitals` and `findings`."""

from __future__ import annotations

from collections.abc import Callable

from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.vitals import Vitals

Rule = Callable[[Vitals], list[Finding] | NotSeen]

SYMPTOMS: dict[str, Rule] = {}
EARLY: tuple[str, ...] = ()
