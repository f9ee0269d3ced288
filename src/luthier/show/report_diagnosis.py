"""The section of a training's report that tells what the doctor found; the doctor's own types are not imported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from luthier.errors import LuthierError
from luthier.show.diagnosis_layout import (
    alarming,
    by_reason,
    checks,
    circumstances,
    lay_out,
    named,
    noted,
    patch_text,
    sentence,
)
from luthier.show.html import listed, section, text

if TYPE_CHECKING:
    from luthier.doctor.findings import Diagnosis, Finding, Remedy
    from luthier.record import Record

_PLACES = 90  # columns for names of layers


def diagnosis_section(record: Record) -> str:
    """What is wrong, root cause first, with evidence and remedies; one line for a healthy training."""
    try:
        diagnosis = record.diagnose()
    except LuthierError as error:
        return section("Diagnosis", _told("noise", f"Could not be made: {error}"))
    if diagnosis.is_healthy:
        line = "".join(span.text for span in lay_out(diagnosis, width=1000)[0])
        return section("Diagnosis", _told("certain" if diagnosis.healthy else "noise", line), _notes(diagnosis))
    found = "".join(map(_finding, alarming(diagnosis)))
    return section("Diagnosis", found, _notes(diagnosis), _remainder(diagnosis))


def _told(level: str, words: str) -> str:
    return f'<p class="headline brief {level}">{text(words[:1].upper() + words[1:])}</p>'


def _finding(finding: Finding) -> str:
    head = f"<h3><i>{text(finding.severity)}</i> {text(finding.symptom)}</h3>"
    where = f'<p class="note">{text(circumstances(finding, _PLACES))}</p>'
    parts = (
        f"<p>{text(sentence(finding.cause))}</p>",
        _titled("Evidence", listed(map(text, finding.evidence))),
        _titled("Because of it", _consequences(finding.consequences)),
        _titled("What to do", listed(map(_remedy, finding.remedies), "ol")),
        f'<p class="note">Source: {text(finding.source)}</p>' if finding.source else "",
    )
    return f'<article class="finding {text(finding.severity)}">{head}{where}{"".join(parts)}</article>'


def _titled(title: str, content: str) -> str:
    return f"<h4>{text(title)}</h4>{content}" if content else ""


def _consequences(findings: Sequence[Finding]) -> str:
    return listed(f"{_brief(each)}{_consequences(each.consequences)}" for each in findings)


def _brief(finding: Finding) -> str:
    place = f" in {named(finding.where, _PLACES)}" if finding.where else ""
    return f"<b>{text(finding.symptom)}</b>{text(f'{place}: {sentence(finding.cause)}')}"


def _remedy(remedy: Remedy) -> str:
    change = f'<p class="note">recipe: {text(patch_text(remedy.patch))}</p>' if remedy.patch is not None else ""
    return f"{text(remedy.text)}{_code(remedy.code.splitlines())}{change}"


def _code(lines: Iterable[str]) -> str:
    kinds = {"+": "added", "-": "removed"}
    each = [f'<span class="{kinds.get(line[:1], "kept")}">{text(line)}</span>' for line in lines]
    return f"<pre>{chr(10).join(each)}</pre>" if each else ""


def _notes(diagnosis: Diagnosis) -> str:
    return _titled("Worth knowing", listed(map(_brief, noted(diagnosis))))


def _remainder(diagnosis: Diagnosis) -> str:
    """What was in order and what could not be looked at."""
    told = [f"In order: {checks(len(diagnosis.healthy))}."] if diagnosis.healthy else []
    told += [f"Could not look for {', '.join(names)}: {reason}." for reason, names in by_reason(diagnosis)]
    return "".join(f'<p class="note">{text(each)}</p>' for each in [*told, diagnosis.watched] if each)
