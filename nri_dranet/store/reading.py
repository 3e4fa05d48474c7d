"""Reading the journal beside the daemon that works with it: no lock is taken, nothing is written, no file is made."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING
from urllib.parse import quote

from nri_dranet.claims import codec
from nri_dranet.store.database import JournalError
from nri_dranet.store.journal import COLUMNS, record_of

if TYPE_CHECKING:
    from pathlib import Path

    from nri_dranet.claims.record import ClaimRecord


def read_records(path: Path, boot_id: str) -> tuple[tuple[ClaimRecord, ...], int]:
    """Return the claims of this boot as they are now, and how many rows cannot be read.

    Args:
        path: the SQLite file.
        boot_id: the kernel's; rows of another boot are passed over.

    Raises:
        JournalError: the file is not there or cannot be read.
    """
    # Without a write-ahead log nobody has the file open; a reader in WAL mode would leave one behind.
    mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "mode=ro&immutable=1"
    try:
        uri = f"file:{quote(str(path))}?{mode}"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=1, isolation_level=None)) as connection:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM claims WHERE boot_id=? ORDER BY rowid",  # noqa: S608 - a constant
                (boot_id,),
            ).fetchall()
    except sqlite3.Error as error:
        raise JournalError(f"the journal {path} cannot be read: {error}") from error
    found = []
    for row in rows:
        with contextlib.suppress(codec.DecodeError):
            found.append(record_of(row))
    return tuple(found), len(rows) - len(found)
