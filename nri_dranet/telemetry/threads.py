"""Whether the threads live that the program has for as long as it runs: one that has died is shown in readiness.

What a thread dies of is logged; that it stays dead would be seen by nobody otherwise.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Iterable

LOG = logging.getLogger(__name__)


class Threads:
    """The threads that must live, by name."""

    def __init__(self, names: Iterable[str]) -> None:
        """Expect threads of these names."""
        self._names = tuple(names)
        self._found: dict[str, threading.Thread] | None = None

    def take(self) -> None:
        """Look for them now, when all have been started."""
        running = {thread.name: thread for thread in threading.enumerate()}
        self._found = {name: running[name] for name in self._names if name in running}

    @property
    def problem(self) -> str:
        """Say which of them do not live; "" when all do."""
        found = self._found
        if found is None:
            return "the program is starting"
        dead = [name for name in self._names if name not in found or not found[name].is_alive()]
        return f"these threads have ended: {', '.join(dead)}; see the log, and restart the program" if dead else ""


def log_deaths() -> None:
    """Log what a thread dies of, in the form of all other lines."""
    threading.excepthook = _log_death


def _log_death(death: threading.ExceptHookArgs) -> None:
    if death.exc_type is SystemExit:
        return
    name = death.thread.name if death.thread is not None else None
    cause = (death.exc_type, death.exc_value, death.exc_traceback) if death.exc_value is not None else None
    LOG.critical("a thread has ended by an error", exc_info=cause, extra=fields(thread=name))
