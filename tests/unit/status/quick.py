"""A writer in a hurry and the journal that outlives it, for tests that try any history."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING
from unittest import mock

from nri_dranet.status import writer as module

if TYPE_CHECKING:
    from nri_dranet.claims.facts import ClaimFacts
    from nri_dranet.status.writer import StatusWriter

PAUSES = {
    "_FIRST_PAUSE": 0.01,
    "_LONGEST_PAUSE": 0.05,
    "_AWAY_PAUSE": 0.02,
    "_RETURN_SPREAD": 0.01,
    "_REPAIR_PAUSE": 0.01,
    "_MAX_REPAIR_PAUSE": 0.02,
    "_LOOK_FIRST_SECONDS": 0.05,
    "_REFUSED_PAUSE": 0.05,
    "_DRAIN_SECONDS": 0.1,
    "UNKNOWN_DELAY": 0.05,
}


class Memory:
    """The journal's part that the writer uses."""

    def __init__(self) -> None:
        """Begin empty."""
        self.rows: dict[str, ClaimFacts] = {}

    def put_status(self, facts: ClaimFacts) -> None:
        """Keep."""
        self.rows[facts.ref.uid] = facts

    def status_written(self, uid: str) -> None:
        """Forget."""
        self.rows.pop(uid, None)

    def pending_statuses(self) -> list[ClaimFacts]:
        """Return all."""
        return list(self.rows.values())


def hurried() -> contextlib.ExitStack:
    """Make every pause of the writer short, until the stack is closed."""
    stack = contextlib.ExitStack()
    for name, value in PAUSES.items():
        stack.enter_context(mock.patch.object(module, name, value))
    return stack


def kill(writer: StatusWriter) -> None:
    """End a writer as the death of its process does: nothing more is written or kept."""
    writer._store = Memory()
    writer._entries = {}
    writer._stopping = True
    with writer._changed:
        writer._changed.notify_all()
    for thread in writer._threads:
        thread.join(10)
