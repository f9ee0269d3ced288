"""What is worth trying next, most promising first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from luthier.doctor.findings import Diagnosis, Finding
from luthier.doctor.mending.book import Case, patches
from luthier.patch import NotApplicable, Patch
from luthier.recipe import Recipe

LATER = 6.0  # remedies of findings that are only worth knowing come after the first ones of the real findings
BOOK = "book"
AGAIN = "again"


@dataclass(frozen=True)
class Candidate:
    """A patch to try.

    Attributes:
        patch: what changes.
        source: the symptom that it is for; "book" for what is generally worth trying, "again" for what helped before.
        recipe: the recipe with the patch.
    """

    patch: Patch
    source: str
    recipe: Recipe


@dataclass(frozen=True)
class Refused:
    """A remedy that cannot be applied, and why."""

    patch: Patch
    source: str
    reason: str


def prescribed(diagnosis: Diagnosis) -> list[tuple[str, Patch]]:
    """Patches of the findings' remedies, best first: those of the first root lead, others follow interleaved.

    The r-th remedy of the f-th finding has rank r + 2 f, so the root's second and third choice come before the next
    finding's first; consequences count as the findings after their root.
    """
    ranked: list[tuple[float, int, str, Patch]] = []
    for position, finding in enumerate(_flat(diagnosis.findings)):
        late = LATER if finding.severity == "info" else 0.0
        found = (remedy.patch for remedy in finding.remedies if remedy.patch is not None)
        for order, patch in enumerate(found):
            ranked.append((order + 2.0 * position + late, len(ranked), finding.symptom, patch))
    return [(symptom, patch) for _, _, symptom, patch in sorted(ranked, key=lambda item: item[:2])]


def _flat(findings: tuple[Finding, ...]) -> Iterator[Finding]:
    for finding in findings:
        yield finding
        yield from _flat(finding.consequences)


def candidates(
    recipe: Recipe, diagnosis: Diagnosis, case: Case, again: list[Patch], tried: set[str]
) -> tuple[list[Candidate], list[Refused]]:
    """Patches to try on a recipe: what helped before, then what the diagnosis prescribes, then the book.

    Args:
        recipe: the recipe so far.
        diagnosis: of its training.
        case: what the book looks at.
        again: patches that looked good on an earlier recipe, best first.
        tried: keys of recipes that need no further trial.

    Returns:
        Candidates whose recipes are new and differ from each other, and the remedies that do not apply.
    """
    wanted = [(AGAIN, patch) for patch in again]
    wanted += prescribed(diagnosis)
    wanted += [(BOOK, patch) for patch in patches(case)]
    found: list[Candidate] = []
    refused: list[Refused] = []
    keys = set(tried)
    for source, patch in wanted:
        patched = patch.apply(recipe)
        if isinstance(patched, NotApplicable):
            if source not in (BOOK, AGAIN) and not patched.reason.startswith("nothing would change"):
                refused.append(Refused(patch, source, patched.reason))
        elif patched.key() not in keys:
            keys.add(patched.key())
            found.append(Candidate(patch, source, patched))
    return found, refused
