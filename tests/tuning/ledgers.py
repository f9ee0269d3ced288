"""Ledgers written and read, for tests of the databases that hold them."""

from pathlib import Path

from luthier.tuning.ledger import Ledger, read_events


def written(ledger: Ledger, *kinds: str) -> None:
    """Commit events of these kinds, with what is hard to store."""
    for kind in kinds:
        ledger.append(kind, 0.25, {"value": float("nan"), "name": "\u0000 ü"})
    ledger.flush()


def kinds(folder: Path) -> list[str]:
    """The kinds of all committed events."""
    return [event.kind for event in read_events(folder)]
