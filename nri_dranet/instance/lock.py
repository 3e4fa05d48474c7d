"""One instance at a time works with a journal: its claims are kept in memory, so that two would not know of each other.

The lock is the kernel's (flock(2)): it ends with its process, however that dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class InstanceLock:
    """The right to use the journal beside which its file stands."""

    def __init__(self, journal: Path) -> None:
        """Open the file; the folder is made.

        Raises:
            OSError: it cannot be opened.
        """
        journal.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        self.path = journal.with_name(f"{journal.name}.lock")
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self) -> bool:
        """Take the lock; False while another instance has it. Never waits."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        # For people only, so that a full disk is no reason not to start.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        return True

    def holder(self) -> str:
        """Return the process ID of the instance that has the lock, as that wrote it; "" where it could not."""
        return os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)
