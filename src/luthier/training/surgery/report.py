"""What an operation did to a network and what it left alone, with the reasons."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """One edit: `path` is the module's dotted name ("" is the model itself), `what` says what was done."""

    path: str
    what: str


@dataclass(frozen=True)
class Refusal:
    """One edit that was not made: where, and why."""

    path: str
    why: str


@dataclass(frozen=True)
class Report:
    """The outcome of `operate`.

    Attributes:
        changes: edits in the order in which they were made.
        refused: what was asked for and could not be done safely.
    """

    changes: tuple[Change, ...] = ()
    refused: tuple[Refusal, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.changes)} changed, {len(self.refused)} left as it was"]
        lines += [f"  {change.path or 'model'}: {change.what}" for change in self.changes]
        lines += [f"  {refusal.path or 'model'}: left, {refusal.why}" for refusal in self.refused]
        return "\n".join(lines)


class Notes:
    """Collects changes and refusals while an operation goes on."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.refused: list[Refusal] = []

    def change(self, path: str, what: str) -> None:
        """Note one edit."""
        self.changes.append(Change(path, what))

    def refuse(self, path: str, why: str) -> None:
        """Note what was left and why, once."""
        if (refusal := Refusal(path, why)) not in self.refused:
            self.refused.append(refusal)

    def report(self) -> Report:
        """The frozen outcome."""
        return Report(tuple(self.changes), tuple(self.refused))
