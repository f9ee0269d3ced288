"""How a diagnosis is laid out as lines, for terminal and plain text alike; the doctor's own types are not imported.

A line is a tuple of spans; a span's role tells what it is, and whoever prints chooses the colour.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from luthier.patch import Scale
from luthier.show.words import value_text

if TYPE_CHECKING:
    from luthier.doctor.findings import Diagnosis, Finding, Remedy
    from luthier.patch import Patch

Role = Literal[
    "critical", "warning", "info", "healthy", "symptom", "label", "text", "dim", "bullet", "added", "removed", "kept"
]
_REMEDIES_SHOWN = 5  # of the first finding
_REMEDIES_OF_OTHERS = 2
_CODE_SHOWN = 3  # remedies whose code is shown
_REASONS_SHOWN = 8  # for not looking; more of them are told as one


class Span(NamedTuple):
    """A piece of a line that is one thing."""

    role: Role
    text: str


Line = tuple[Span, ...]


def lay_out(diagnosis: Diagnosis, width: int = 100) -> list[Line]:
    """The lines of a diagnosis: one for a healthy training, else root cause first.

    Args:
        diagnosis: what was found.
        width: columns that lines keep to (code is never broken).
    """
    if diagnosis.is_healthy:
        return [_calm(diagnosis, width)]
    return [*_sick(diagnosis, width)]


def _calm(diagnosis: Diagnosis, width: int) -> Line:
    """One line: how much was looked at, how much could not be and why, what is worth knowing."""
    n, missing = len(diagnosis.healthy), len(diagnosis.not_seen)
    notes = list(dict.fromkeys(finding.symptom for finding in diagnosis.findings))
    if not n and not notes:
        head, told = Span("warning", "not examined"), f": nothing could be looked at{_why(diagnosis, width - 42)}"
        return (head, Span("text", told))
    head = Span("healthy", "healthy" if n >= missing else "nothing wrong in what could be seen")
    known = f"; worth knowing: {', '.join(notes)}" if notes else ""
    told = f": {checks(n)} in order" + (f", {missing} could not look" if missing else "")
    why = _why(diagnosis, width - len(head.text) - len(told) - len(known)) if missing else ""
    return (head, Span("text", told + why + known))


def checks(n: int) -> str:
    """So many checks in words."""
    return "1 check" if n == 1 else f"{n} checks"


def _why(diagnosis: Diagnosis, room: int) -> str:
    """The most frequent reason for not looking, in brackets, when there is room for it."""
    reasons = list(by_reason(diagnosis))
    told = f" ({reasons[0][0]}" + (", ..." if len(reasons) > 1 else "") + ")" if reasons else ""
    if len(told) <= room:
        return told
    short = told.partition(":")[0]
    return f"{short})" if short != told and len(short) < room else ""


def by_reason(diagnosis: Diagnosis) -> list[tuple[str, list[str]]]:
    """Reasons for not looking with the symptoms that they hid, the most frequent first."""
    groups: dict[str, list[str]] = {}
    for symptom, reason in diagnosis.not_seen.items():
        groups.setdefault(reason, []).append(symptom)
    return sorted(groups.items(), key=lambda item: -len(item[1]))


def _sick(diagnosis: Diagnosis, width: int) -> Iterator[Line]:
    for i, finding in enumerate(alarming(diagnosis)):
        if i:
            yield ()
        yield from _finding(finding, width, _REMEDIES_OF_OTHERS if i else _REMEDIES_SHOWN)
    notes = noted(diagnosis)
    if notes:
        yield ()
        yield (Span("label", "Worth knowing"),)
    for finding in notes:
        yield from _bullet(f"{finding.symptom}{_place(finding)}: {sentence(finding.cause)}", width)
    yield ()
    yield from _remainder(diagnosis, width)


def alarming(diagnosis: Diagnosis) -> list[Finding]:
    """Warnings and critical findings that are shown in full."""
    return [finding for finding in _standing(diagnosis) if finding.severity != "info"]


def noted(diagnosis: Diagnosis) -> list[Finding]:
    """What is only worth knowing."""
    return [finding for finding in _standing(diagnosis) if finding.severity == "info"]


def _standing(diagnosis: Diagnosis) -> list[Finding]:
    """Findings that hang under no other one."""
    below = hung(diagnosis)
    return [finding for finding in diagnosis.findings if not any(finding is each for each in below)]


def hung(diagnosis: Diagnosis) -> list[Finding]:
    """Findings of the list that already stand as a consequence under another one that is shown in full."""
    roots = [finding for finding in diagnosis.findings if finding.severity != "info"]
    below = [child for finding in roots for child in _below(finding)]
    return [finding for finding in diagnosis.findings if any(_same(finding, child) for child in below)]


def _below(finding: Finding) -> Iterator[Finding]:
    for child in finding.consequences:
        yield child
        yield from _below(child)


def _same(one: Finding, other: Finding) -> bool:
    return (one.symptom, one.where, one.onset) == (other.symptom, other.where, other.onset)


def _finding(finding: Finding, width: int, n_remedies: int) -> Iterator[Line]:
    yield from _heading(finding, width)
    yield from _wrapped(sentence(finding.cause), width, "  ")
    if finding.evidence:
        yield (Span("label", "  Evidence"),)
    for evidence in finding.evidence:
        if evidence:
            yield from _bullet(evidence.removesuffix("."), width)
    if finding.consequences:
        yield (Span("label", "  Because of it"),)
    for child in finding.consequences:
        yield from _consequence(child, width, "  ")
    yield from _remedies(finding.remedies, width, n_remedies)
    if finding.source:
        yield from _wrapped(f"Source: {finding.source}", width, "  ", "          ", role="dim")


def sentence(text: str) -> str:
    """A text as a sentence: full stop, and a capital unless it begins with a name of code.

    >>> sentence("the loss stands still"), sentence("fc1.weight is frozen."), sentence("log_softmax is applied twice")
    ('The loss stands still.', 'fc1.weight is frozen.', 'log_softmax is applied twice.')
    """
    text = text.strip()
    first = text.partition(" ")[0]
    return (text[:1].upper() + text[1:] if first.isalpha() else text) + ("" if text.endswith((".", "!", "?")) else ".")


def _heading(finding: Finding, width: int) -> Iterator[Line]:
    """Severity and symptom, with place and time on the same line if they fit, else on the next."""
    head = (Span(finding.severity, finding.severity.upper()), Span("symptom", f"  {finding.symptom}"))
    used = sum(len(span.text) for span in head) + 2
    told = circumstances(finding, width - used)
    if used + len(told) <= width:
        yield (*head, Span("dim", f"  {told}"))
    else:
        yield head
        yield from _wrapped(circumstances(finding, width - 2), width, "  ", role="dim")


def circumstances(finding: Finding, room: int) -> str:
    """Where, since when and how surely it was seen, the places cut to the room there is."""
    onset = "from the start" if finding.onset == 0 else f"from step {finding.onset:,}" if finding.onset else ""
    sure = "seen directly" if finding.certainty >= 0.95 else "measured" if finding.certainty >= 0.7 else "likely"
    tail = f"{onset}, {sure}" if onset else sure
    return f"in {named(finding.where, room - len(tail) - 5)}, {tail}" if finding.where else tail


def named(places: Sequence[str], room: int = 60) -> str:
    """As many names as there is room for, the others counted.

    >>> named(["encoder", "decoder", "head"], room=18)
    'encoder and 2 more'
    """
    kept = 1
    while kept < len(places) and len(", ".join(places[: kept + 1])) + 12 * (kept + 1 < len(places)) <= room:
        kept += 1
    more = len(places) - kept
    return ", ".join(places[:kept]) + (f" and {more} more" if more else "")


def _place(finding: Finding) -> str:
    return f" in {named(finding.where)}" if finding.where else ""


def _consequence(finding: Finding, width: int, indent: str) -> Iterator[Line]:
    since = f" from step {finding.onset:,}" if finding.onset else ""
    yield from _bullet(f"{finding.symptom}{_place(finding)}{since}: {sentence(finding.cause)}", width, f"{indent}  ")
    for child in finding.consequences:
        yield from _consequence(child, width, f"{indent}  ")


def _remedies(remedies: Sequence[Remedy], width: int, n_shown: int) -> Iterator[Line]:
    if not remedies:
        return
    yield (Span("label", "  What to do"),)
    for i, remedy in enumerate(remedies[:n_shown], 1):
        mark = f"  {i:>2}. "
        yield from _wrapped(remedy.text, width, mark, " " * len(mark))
        if remedy.code and i <= _CODE_SHOWN:
            yield from _code(remedy.code, " " * len(mark) + "  ")
        if remedy.patch is not None:
            yield from _wrapped(f"recipe: {patch_text(remedy.patch)}", width, " " * len(mark), role="dim")
    if len(remedies) > n_shown:
        yield (Span("dim", f"      and {len(remedies) - n_shown} more in finding.remedies"),)


def patch_text(patch: Patch) -> str:
    """A patch as few words.

    >>> from luthier.patch import Patch, Set
    >>> patch_text(Patch(reason="", operations=[Set(field="dropout", value=0.3), Scale(field="lr", factor=0.1)]))
    'dropout = 0.3, lr x 0.1'
    """
    return ", ".join(
        f"{each.field} x {each.factor:g}" if isinstance(each, Scale) else f"{each.field} = {_value(each.value)}"
        for each in patch.operations
    )


def _value(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(item) for item in value) or "none"
    return str(value["name"]) if isinstance(value, dict) and "name" in value else value_text(value)


def _code(code: str, indent: str) -> Iterator[Line]:
    roles: dict[str, Role] = {"+": "added", "-": "removed"}
    for line in code.splitlines():
        yield (Span(roles.get(line[:1], "kept"), indent + line),)


def _remainder(diagnosis: Diagnosis, width: int) -> Iterator[Line]:
    """What was in order and what could not be looked at."""
    if diagnosis.healthy:
        yield (Span("dim", f"In order: {checks(len(diagnosis.healthy))}."),)
    reasons = by_reason(diagnosis)
    for reason, symptoms in reasons if len(reasons) <= _REASONS_SHOWN else ():
        yield from _wrapped(f"Could not look for {', '.join(symptoms)}: {reason}.", width, "", "  ", role="dim")
    if len(reasons) > _REASONS_SHOWN:
        missing = ", ".join(symptom for _, symptoms in reasons for symptom in symptoms)
        told = f"Could not look for {missing}: {reasons[0][0]}, and other reasons (diagnosis.not_seen)."
        yield from _wrapped(told, width, "", "  ", role="dim")
    if diagnosis.watched:
        yield from _wrapped(diagnosis.watched, width, "", "  ", role="dim")


def _bullet(text: str, width: int, indent: str = "    ") -> Iterator[Line]:
    for i, line in enumerate(_lines(text, width - len(indent) - 2)):
        yield (Span("bullet", f"{indent}* "), Span("text", line)) if i == 0 else (Span("text", f"{indent}  {line}"),)


def _wrapped(text: str, width: int, first: str, further: str | None = None, role: Role = "text") -> Iterator[Line]:
    further = first if further is None else further
    for i, line in enumerate(_lines(text, width - len(first))):
        yield (Span(role, (further if i else first) + line),)


def _lines(text: str, width: int) -> Iterable[str]:
    return textwrap.wrap(text, max(width, 20), break_long_words=False, break_on_hyphens=False)
