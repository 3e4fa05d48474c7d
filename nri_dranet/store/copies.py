"""A copy of each claim's row beside the journal, for the day when the journal cannot be read.

The undo of a claim (how its devices were on the host) is known to nobody else: neither kernel nor runtime nor API
server could give it back. So the row as Prepare wrote it stands in a small file of its own too. Where the devices are
is not copied, for hooks change that: the kernel shows it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from typing import TYPE_CHECKING, Any

from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

LOG = logging.getLogger(__name__)


class Copies:
    """The copies in one folder. The caller sees to it that no two threads write at once."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, made with the first copy; only this program's user can look into it."""
        self._folder = folder

    def write(self, uid: str, row: Sequence[Any]) -> None:
        """Copy the row of a claim; the file appears whole, by a rename.

        Raises:
            OSError: it cannot be written; the former copy stays.
        """
        path = self._path(uid)
        temporary = path.with_suffix(".new")
        text = json.dumps(list(row), separators=(",", ":"))
        try:
            self._write(temporary, text)
        except FileNotFoundError:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._write(temporary, text)
        temporary.rename(path)

    def remove(self, uid: str) -> None:
        """Remove the copy of a claim. One that cannot be removed is told in the log, and pruned at the next start."""
        try:
            self._path(uid).unlink(missing_ok=True)
        except OSError as error:
            LOG.warning("the copy of a claim's row cannot be removed", extra=fields(claim=uid, error=error))

    def read(self, uid: str) -> list[Any] | None:
        """Return the copy of a claim's row; None where there is none that can be read."""
        return self._read(self._path(uid))

    def all(self) -> list[list[Any]]:
        """Return every row that can be read, the oldest copy first; the others are told in the log."""
        # What was not renamed was never told to be recorded.
        whole = [path for path in self._files() if path.suffix == ".json"]
        rows = [row for path in whole if (row := self._read(path)) is not None]
        return [row for row in rows if row]

    def prune(self, keep: Iterable[str]) -> None:
        """Remove the copies of all claims but these."""
        names = {self._path(uid).name for uid in keep}
        for path in self._files():
            if path.name not in names:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _path(self, uid: str) -> Path:
        return self._folder / f"{hashlib.sha256(uid.encode()).hexdigest()[:32]}.json"

    def _files(self) -> list[Path]:
        try:
            return sorted(self._folder.iterdir(), key=lambda path: path.lstat().st_mtime_ns)
        except OSError:
            return []

    @staticmethod
    def _write(path: Path, text: str) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)

    @staticmethod
    def _read(path: Path) -> list[Any] | None:
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            LOG.warning("the copy of a claim's row cannot be read", extra=fields(path=path, error=error))
            return None
        return found if isinstance(found, list) else None
