"""What the doctor says: findings with evidence, ordered into a diagnosis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from luthier.errors import LuthierError
from luthier.patch import Patch

if TYPE_CHECKING:
    from luthier.doctor.prove import Proof
    from luthier.record import Record
    from luthier.task import Task

Severity = Literal["info", "warning", "critical"]


@dataclass(frozen=True)
class Remedy:
    """One way to cure: a sentence, and what carries it out.

    Attributes:
        text: what to do, one sentence.
        patch: the change of a Recipe; None when no Recipe field can do it.
        code: corrected lines for the user's own program; "" when the patch says it all.
    """

    text: str
    patch: Patch | None = None
    code: str = ""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        symptom: id of the list in `symptoms.SYMPTOMS`.
        severity: "info" (worth knowing; healthy trainings have them), "warning" (the result suffers),
            "critical" (the training is broken or its result is worthless).
        cause: one sentence: what is wrong and why it does harm.
        evidence: sentences with numbers and steps.
        where: names of layers or parameters; empty when it is everywhere.
        onset: first step at which it was seen; 0 = before any weight moved.
        certainty: 0-1: how surely the mechanism was seen. 1: the operation itself was seen (a softmax into
            cross_entropy); 0.8: measured numbers leave little else; 0.5: read off the curves.
        numbers: what remedies need, such as {"lr": 0.1}.
        consequences: findings that this one explains.
        remedies: what to do, best first.
        source: paper or reference of the rule.
    """

    symptom: str
    severity: Severity
    cause: str
    evidence: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    onset: int | None = None
    certainty: float = 0.5
    numbers: Mapping[str, Any] = field(default_factory=dict)
    consequences: tuple[Finding, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    source: str = ""
    _record: Record | None = field(default=None, repr=False, compare=False)  # that it was read from, in this process

    def of(self, record: Record) -> Finding:
        """The finding, and what hangs under it, as read from this record: `prove` forks that training."""
        return replace(self, consequences=tuple(each.of(record) for each in self.consequences), _record=record)

    def prove(self, task: Task | None = None, *, steps: int = 100, seeds: Sequence[int] | None = None) -> Proof:
        """Train the same steps with and without the first remedy that applies: does it help?

        For findings of `record.diagnose()`; see `Record.prove`, which takes any finding or patch.

        Args:
            task: the task that was trained; None for a record that `luthier.fit` returned in this process.
            steps: optimizer steps of each branch, from the checkpoint before the onset where there is one.
            seeds: of the repetitions from the start; None takes the recipe's and the two after it.

        Raises:
            LuthierError: it was not read from a record, the task is not known, or no remedy is a patch that applies.
        """
        if self._record is None:
            raise LuthierError(
                f"finding.prove forks a training of luthier.fit, and {self.symptom!r} was not found in the record of "
                "one: Luthier cannot fork a loop of your own. Train with luthier.fit and take a finding of "
                "record.diagnose(), or pass this one to the record of such a training: record.prove(finding, task)"
            )
        return self._record.prove(self, task, steps, seeds)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are numbers and words only."""
        return {name: value for name, value in vars(self).items() if name != "_record"}


@dataclass(frozen=True)
class NotSeen:
    """A rule could not look.

    Attributes:
        reason: what was missing, and how to show it: "no targets were seen: pass targets= to watch.step".
    """

    reason: str


@dataclass(frozen=True)
class Diagnosis:
    """What was found, what was looked at and is healthy, and what could not be looked at.

    Attributes:
        findings: most likely root cause first; after the roots their consequences, then what is only worth knowing.
        healthy: ids that were looked at and are in order.
        not_seen: id -> why it could not be looked at.
        watched: one line about what the diagnosis rests on (steps, looks, time spent).
    """

    findings: tuple[Finding, ...] = ()
    healthy: tuple[str, ...] = ()
    not_seen: Mapping[str, str] = field(default_factory=dict)
    watched: str = ""

    @property
    def is_healthy(self) -> bool:
        """No warning and no critical finding."""
        return all(finding.severity == "info" for finding in self.findings)

    def of(self, record: Record) -> Diagnosis:
        """The diagnosis with its findings as read from this record, so that they can be proved."""
        return replace(self, findings=tuple(finding.of(record) for finding in self.findings))

    def __str__(self) -> str:
        """The diagnosis as plain text for any terminal."""
        from luthier.doctor.wording import text_of

        return text_of(self)
