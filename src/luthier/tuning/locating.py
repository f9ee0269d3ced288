"""Where a study's events are: in a file of its folder, or under its name in a database that several studies share.

A folder notes the address of its database, without a password, so that the study is found again by the folder alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from luthier.files import from_json, to_json, write_atomic
from luthier.tuning.store import Database, Row, Store, StudyError
from luthier.tuning.store_postgres import SCHEMES, PostgresDatabase, public
from luthier.tuning.store_sqlite import SCHEME, SqliteDatabase, path_of


@dataclass(frozen=True)
class Located:
    """Where a study's events are.

    Attributes:
        folder: of the study.
        database: what holds them.
        study: the study's name there; empty: it is alone, in the file of its folder.
    """

    folder: Path
    database: Database
    study: str

    def open(self) -> Store:
        """The study, for writing; made when missing.

        Raises:
            StudyError: the database cannot be written, or has a study of this name whose files are in another folder.
        """
        store = self.database.open(self.study)
        try:
            self._check_own(store)
        except BaseException:
            store.close()
            raise
        return store

    def read(self, after: int) -> list[Row]:
        """The committed events with a higher id, also while another process writes.

        Raises:
            StudyError: there is no study, or its database is damaged or out of reach.
        """
        return self.database.read(self.study, after)

    def note(self) -> None:
        """Let the folder know where its study is."""
        if self.study and _noted(self.folder) != self.database.address:
            write_atomic(_mark(self.folder), to_json({"storage": self.database.address}, indent=2))

    def _check_own(self, store: Store) -> None:
        """A study of this name may have its files in another folder, and this folder's study another database."""
        if not self.study:
            return
        noted, begun = _noted(self.folder), store.last_id() > 0
        if noted not in (None, self.database.address) and not begun:
            raise StudyError(f"the study {self.folder} is in {noted}: leave storage out, or choose another folder")
        if noted is None and begun:
            raise StudyError(
                f"there is a study {store.where} already, and its files are not in {self.folder}: go on in its own "
                f"folder, or choose one of another name"
            )


def locate(folder: Path, storage: str | None = None) -> Located:
    """Where the study of a folder is, or is to be.

    Args:
        folder: of the study.
        storage: None: where the folder says, else a SQLite file in the folder; "sqlite": that file; or the address of
            a database that several studies share under the names of their folders: `sqlite:///file.db` or
            `postgresql://user@host/database`.

    Raises:
        StudyError: no address of a database, or the study is elsewhere already.
    """
    noted = _noted(folder)
    if storage == "sqlite" and noted is not None:
        raise StudyError(f"the study {folder} is in {noted}: leave storage out, or choose another folder")
    address = noted if storage in (None, "sqlite") else storage
    database = None if address is None else _shared(address)
    own = SqliteDatabase(own_file(folder), shared=False)
    if database is None or database.address == own.address:
        return Located(folder, own, "")
    if isinstance(database, SqliteDatabase):
        if storage is None and not database.path.exists():
            raise StudyError(
                f"the study {folder} is in {noted}, which is gone: restore that file, or give its new place as storage"
            )
        database.check()
    if own.path.exists():
        raise StudyError(
            f"the study {folder} is in its file {own.path.name}: leave storage out, or choose another folder"
        )
    return Located(folder, database, folder.absolute().name)


def own_file(folder: Path) -> Path:
    """The file of a study that is alone."""
    return folder / "study.db"


def _shared(address: str) -> Database:
    scheme = str(address).partition("://")[0]
    if scheme == SCHEME:
        return SqliteDatabase(path_of(address))
    if scheme in SCHEMES:
        return PostgresDatabase(address)
    raise StudyError(
        "storage must be 'sqlite' or an address such as sqlite:///studies.db or postgresql://user@host/database, got "
        f"{public(str(address))!r}"
    )


def _mark(folder: Path) -> Path:
    return folder / "storage.json"


def _noted(folder: Path) -> str | None:
    try:
        return str(from_json(_mark(folder).read_bytes())["storage"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{_mark(folder)} cannot be read ({error}): restore it, or choose another folder") from None
