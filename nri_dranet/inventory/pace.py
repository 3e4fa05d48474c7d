"""How background work lets go of the interpreter lock, so that a hook never waits long for it."""

from __future__ import annotations

import time
from typing import Final

_PAUSE: Final = 50e-6
"""Seconds. With 0 the lock is given up and taken again before a waiting thread has woken up (measured)."""


def breathe() -> None:
    """Let other threads run. Call it after some hundred microseconds of work."""
    time.sleep(_PAUSE)
