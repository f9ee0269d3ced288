"""Where a study's events are kept: what every database offers the ledger, and the error that all of them raise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from luthier.errors import LuthierError

WAIT_S = 5.0
"""How long a database may take to answer, or be locked by somebody else."""

Row = tuple[int, float, str, str]
"""An event as stored: id, clock, kind, payload as JSON."""


class StudyError(LuthierError):
    """A study that is missing, damaged, locked, unwritable, of another task, or in use by another process."""


class Store(ABC):
    """The events of one study and the claim on it, in a database. Every method raises StudyError.

    A claim is held by an owner until its lease ends, by the clock of the database.

    Attributes:
        where: the study's place in words, for messages; never with a password.
        optuna_url: address of the same database for Optuna.
        study: the study's name in a database that several share; None where it is alone.
    """

    where: str
    optuna_url: str
    study: str | None

    @abstractmethod
    def read(self, after: int) -> list[Row]:
        """Committed events with a higher id, in order."""

    @abstractmethod
    def last_id(self) -> int:
        """The id of the last event; 0: there is none."""

    @abstractmethod
    def holder(self) -> tuple[str | None, float]:
        """Who holds the claim, and for how many seconds more."""

    @abstractmethod
    def claim(self, owner: str, lease_s: float, before: str | None, dead: bool) -> bool:
        """Take the claim over from `before` if its lease has ended or it is dead; False: somebody was faster."""

    @abstractmethod
    def commit(self, rows: Sequence[Row], owner: str, lease_s: float) -> bool:
        """Renew the claim and add events, all or nothing; False: the owner has lost the claim, nothing was added.

        What an interrupted call had added already is not added twice.
        """

    @abstractmethod
    def release(self, owner: str) -> None:
        """Give the claim back."""

    @abstractmethod
    def close(self) -> None:
        """Leave the database; nothing more is written."""
