"""Opening the journal's SQLite file: settings, migrations, and what is done with a file that cannot be used."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

from nri_dranet.store.schema import STEPS, VERSION
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from pathlib import Path

LOG = logging.getLogger(__name__)


class JournalError(Exception):
    """The journal cannot be written or read now; the text says why. Nothing was changed."""


class JournalTooNewError(JournalError):
    """The file was written by a newer version of this program."""


_BUSY_SECONDS = 5


def open_database(path: Path) -> tuple[sqlite3.Connection, str]:
    """Open the file, bring it to this version, and set it up.

    WAL with ``synchronous=NORMAL``: the death of the process loses nothing, and a loss of power changes the boot ID,
    which voids the rows anyway.

    Args:
        path: the file; its folder is made. A file that is damaged is moved aside and a new one begun.

    Returns:
        The connection, and where a damaged file was moved to ("" where it was sound).

    Raises:
        JournalTooNewError: the file is of a newer version; the text says what to do.
        JournalError: the file cannot be opened or made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        try:
            return _connect(path), ""
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and not _damaged(error):
                raise
            aside = _move_aside(path)
            LOG.error(  # noqa: TRY400 - the reason is in the text; a traceback would say no more
                "the journal is damaged and was moved aside; a new one is begun from what kernel, runtime and API show",
                extra=fields(path=path, aside=aside, error=error),
            )
            return _connect(path), str(aside)
    except (sqlite3.Error, OSError) as error:
        raise JournalError(f"the journal {path} cannot be opened: {error}") from error


def check_version(path: Path) -> None:
    """Refuse the file of a newer version, also one that another instance works with; nothing is changed.

    What cannot be read now is judged when the file is opened.

    Raises:
        JournalTooNewError: it is of a newer version.
    """
    version = 0
    uri = f"file:{quote(str(path))}?mode=ro"
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None)) as connection,
    ):
        version = connection.execute("PRAGMA user_version").fetchone()[0]
    _refuse_newer(version, path)


def _damaged(error: sqlite3.Error) -> bool:
    text = str(error)
    return "malformed" in text or "not a database" in text or "disk image" in text


def _connect(path: Path) -> sqlite3.Connection:
    if path.is_dir():
        raise sqlite3.DatabaseError("not a database: a directory")
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise sqlite3.DatabaseError(f"malformed: {problem}")  # noqa: TRY301 - closes the connection like the rest
        _migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    with contextlib.suppress(OSError):
        path.chmod(0o600)
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    _refuse_newer(version, path)
    for step in range(version, VERSION):
        connection.executescript(f"BEGIN IMMEDIATE; {STEPS[step]} PRAGMA user_version = {step + 1}; COMMIT;")


def _refuse_newer(version: int, path: Path) -> None:
    if version > VERSION:
        raise JournalTooNewError(
            f"the journal {path} has version {version}, this program reads up to {VERSION}: "
            "run the newer version again, or drain the node and remove the file"
        )


def _move_aside(path: Path) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.damaged-{stamp}-{os.getpid()}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        side = path.with_name(path.name + suffix)
        if side.exists():
            side.rename(aside.with_name(aside.name + suffix))
    return aside
