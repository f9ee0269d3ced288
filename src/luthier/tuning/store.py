"""Databases of studies: what each offers the ledger, and the error that all of them raise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from luthier.errors import LuthierError

WAIT_S = 5.0
"""How long a database may take to answer, or be locked by somebody else."""

SETUP_S = 60.0
"""How long to wait while others make tables."""

Row = tuple[int, float, str, str]
"""An event as stored: id, clock, kind, payload as JSON."""


class StudyError(LuthierError):
    """A study that is missing, damaged, locked, unwritable, of another task, or in use by another process."""


class Store(ABC):
    """The events of one study and the claim on it, in a database. Every method raises StudyError.

    A claim is held by an owner until its lease ends, by the clock of the database.

    Attributes:
        where: the study's place in words, for messages; never with a password.
        database: that holds it.
        study: the study's name in a database that several share; empty where it is alone.
    """

    where: str
    database: Database
    study: str

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


class Database(ABC):
    """A database of studies. Every method raises StudyError.

    Attributes:
        address: as its user gives it, without a password.
        patience: options of its driver, by which Optuna's connections wait, but not without end.
    """

    address: str
    patience: ClassVar[Mapping[str, Any]]

    @property
    @abstractmethod
    def optuna_url(self) -> str:
        """Address of the same database for Optuna."""

    @abstractmethod
    def open(self, study: str) -> Store:
        """A study, for writing; made when missing."""

    @abstractmethod
    def read(self, study: str, after: int) -> list[Row]:
        """The committed events of a study with a higher id, in order, also while another process writes it."""

    @abstractmethod
    def setting_up(self) -> AbstractContextManager[None]:
        """One process at a time: for making Optuna's tables, which does not expect company."""
