"""What is worth trying next, most promising first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from luthier.doctor.findings import Diagnosis, Finding
from luthier.doctor.mending.book import Case, general, known_good, resets
from luthier.patch import NotApplicable, Patch
from luthier.recipe import Recipe

BOOK = "book"
AGAIN = "again"
ROOT_AHEAD = 2.0  # the root's first remedies come before the next finding's first one
INFO = 6.0  # findings that are only worth knowing come after the first remedies of the others
KNOWN_GOOD = (0.5, 2.5)  # settings that work for most networks, after the root's first and third remedies
RESETS = 2.5  # settings outside every recommendation, when the root's first remedies were tried
GENERAL = 5.0  # what is generally worth trying


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


def candidates(
    recipe: Recipe, diagnosis: Diagnosis, case: Case, again: list[Patch], tried: set[str]
) -> tuple[list[Candidate], list[Refused]]:
    """Patches to try on a recipe: what helped before, then by rank what the diagnosis prescribes and the book says.

    Args:
        recipe: the recipe so far.
        diagnosis: of its training.
        case: what the book looks at.
        again: patches that looked good on an earlier recipe, best first.
        tried: keys of recipes that need no further trial.

    Returns:
        Candidates whose recipes are new and differ from each other, and the remedies that do not apply.
    """
    ranked = [(-1.0, AGAIN, patch) for patch in again] + [*prescribed(diagnosis), *from_book(case, diagnosis)]
    found: list[Candidate] = []
    refused: list[Refused] = []
    keys = set(tried)
    for _, source, patch in sorted(ranked, key=lambda item: item[0]):
        patched = patch.apply(recipe)
        if isinstance(patched, NotApplicable):
            if source not in (BOOK, AGAIN) and not patched.reason.startswith("nothing would change"):
                refused.append(Refused(patch, source, patched.reason))
        elif keys.isdisjoint(same := equal_trainings(patched, case)):
            keys |= same
            found.append(Candidate(patch, source, patched))
    return found, refused


def equal_trainings(recipe: Recipe, case: Case) -> set[str]:
    """Keys of the recipes that train alike: dropout at 0 is none at all in a network without its own."""
    alike = recipe.dropout == 0 and not case.drops and recipe.model == case.recipe.model
    return {recipe.key(), recipe.replace({"dropout": None}).key()} if alike else {recipe.key()}


def prescribed(diagnosis: Diagnosis) -> Iterator[tuple[float, str, Patch]]:
    """(rank, symptom, patch) of the findings' remedies: the r-th of the f-th finding has rank r + 2 f.

    Consequences count as the findings after their root.
    """
    for position, finding in enumerate(_flat(diagnosis.findings)):
        late = INFO if finding.severity == "info" else 0.0
        found = (remedy.patch for remedy in finding.remedies if remedy.patch is not None)
        for order, patch in enumerate(found):
            yield order + ROOT_AHEAD * position + late, finding.symptom, patch


def from_book(case: Case, diagnosis: Diagnosis) -> Iterator[tuple[float, str, Patch]]:
    """(rank, "book", patch); a healthy training has nothing else to wait for."""
    for rank, patch in zip(KNOWN_GOOD, known_good(case), strict=True):
        yield 0.0 if diagnosis.is_healthy else rank, BOOK, patch
    for order, patch in enumerate(resets(case)):
        yield RESETS + order, BOOK, patch
    start = 0.0 if diagnosis.is_healthy else GENERAL
    for order, patch in enumerate(general(case)):
        yield start + order / 2, BOOK, patch


def _flat(findings: tuple[Finding, ...]) -> Iterator[Finding]:
    for finding in findings:
        yield finding
        yield from _flat(finding.consequences)
