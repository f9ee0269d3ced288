"""A diagnosis as plain text, and as JSON for `findings.json`, scripts and CI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier import files
from luthier.doctor.findings import Diagnosis, Finding, Remedy
from luthier.errors import LuthierError
from luthier.patch import Patch
from luthier.show.diagnosis_layout import lay_out

VERSION = 1  # of the JSON; files without one were written before there were versions, and read alike


def text_of(diagnosis: Diagnosis, width: int = 100) -> str:
    """The diagnosis as plain text: one line when healthy, else root cause first with evidence and remedies.

    Args:
        diagnosis: what was found.
        width: columns to keep to; lines of code are never broken.

    >>> text_of(Diagnosis(healthy=("nan_inf", "dead_relu"), not_seen={"label_noise": "no targets were seen"}))
    'healthy: 2 checks in order, 1 could not look (no targets were seen)'
    """
    lines = lay_out(diagnosis, width)
    return "\n".join("".join(span.text for span in line).rstrip() for line in lines)


def to_json(diagnosis: Diagnosis, indent: int | None = 2) -> str:
    """The diagnosis as JSON; `from_json` reads it back."""
    content = {
        "version": VERSION,
        "is_healthy": diagnosis.is_healthy,
        "findings": [_of_finding(finding) for finding in diagnosis.findings],
        "healthy": list(diagnosis.healthy),
        "not_seen": dict(diagnosis.not_seen),
        "watched": diagnosis.watched,
    }
    return files.to_json(content, indent=indent)


def from_json(text: str | bytes) -> Diagnosis:
    """A diagnosis from the text that `to_json` wrote.

    Raises:
        LuthierError: the text is no diagnosis, or one of a later version.
    """
    try:
        content = files.from_json(text)
        if content.get("version", VERSION) > VERSION:
            raise LuthierError(
                f"expected a diagnosis of version {VERSION}, got {content['version']}: a later Luthier wrote it, update"
            )
        return Diagnosis(
            findings=tuple(_finding(row) for row in content["findings"]),
            healthy=tuple(content["healthy"]),
            not_seen=dict(content["not_seen"]),
            watched=str(content.get("watched", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LuthierError(f"expected a diagnosis as `to_json` writes it, got {text[:60]!r}: {error!r}") from None


def _of_finding(finding: Finding) -> dict[str, Any]:
    return {
        **{name: getattr(finding, name) for name in _PLAIN},
        "numbers": dict(finding.numbers),
        "remedies": [_of_remedy(remedy) for remedy in finding.remedies],
        "consequences": [_of_finding(child) for child in finding.consequences],
    }


_PLAIN = ("symptom", "severity", "cause", "evidence", "where", "onset", "certainty", "source")


def _of_remedy(remedy: Remedy) -> dict[str, Any]:
    patch = None if remedy.patch is None else remedy.patch.model_dump(mode="json")
    return {"text": remedy.text, "patch": patch, "code": remedy.code}


def _finding(row: Mapping[str, Any]) -> Finding:
    return Finding(
        **{
            **{name: row[name] for name in _PLAIN},
            "evidence": tuple(row["evidence"]),
            "where": tuple(row["where"]),
            "numbers": dict(row["numbers"]),
            "remedies": tuple(_remedy(item) for item in row["remedies"]),
            "consequences": tuple(_finding(child) for child in row["consequences"]),
        }
    )


def _remedy(row: Mapping[str, Any]) -> Remedy:
    patch = None if row["patch"] is None else Patch(**row["patch"])
    return Remedy(row["text"], patch, row["code"])
